"""A sealed package as a zip that is made while it is sent, of any size, nothing compressed.

The size is known before the first byte, so that a client sees its progress, and one that loses
the connection knows it. A file that changes its size meanwhile (its owner can do that) breaks the
stream off instead of giving a zip that lies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from zipstream import ZIP_STORED, ZipStream  # type: ignore[import-untyped]  # ships no types

from aitbcd.results import beneath

_PIECE = 256 * 1024


class Archive:
    """One zip of one package. ``pieces`` blocks on the disk: iterate in a thread. Close it."""

    def __init__(self, package: Path, name: str) -> None:
        """Look through the package.

        Args:
            name: the folder that everything is in within the zip.

        Raises:
            beneath.NotThere: the package is gone.
        """
        self._folder = beneath.open_folder(package)
        self._zip = ZipStream(compress_type=ZIP_STORED, sized=True)
        try:
            for path, is_file in beneath.walk(self._folder):
                self._add(f"{name}/{_shown(path)}", path, is_file)
        except BaseException:
            self.close()
            raise
        #: Bytes of the whole zip.
        self.size = len(self._zip)

    def pieces(self) -> Iterator[bytes]:
        yield from self._zip

    def close(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _add(self, shown: str, path: bytes, is_file: bool) -> None:
        if path.endswith(b"/"):
            self._zip.mkdir(shown)
        elif is_file:
            try:
                fd = beneath.open_beneath(self._folder, path)
            except (beneath.NotThere, PermissionError):
                return
            size = os.fstat(fd).st_size
            os.close(fd)
            self._zip.add(_File(self._folder, path), shown, size=size)


class _File:
    """Opened when its turn comes: a package may have more files than we may open at once."""

    def __init__(self, folder: int, path: bytes) -> None:
        self._folder = folder
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        fd = beneath.open_beneath(self._folder, self._path)
        try:
            while piece := os.read(fd, _PIECE):
                yield piece
        finally:
            os.close(fd)


def _shown(path: bytes) -> str:
    # A zip's names are UTF-8; what is none stays legible and distinct.
    return path.decode(errors="backslashreplace")
