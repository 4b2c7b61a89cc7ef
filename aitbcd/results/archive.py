"""A sealed package as a zip that is made while it is sent, of any size, nothing compressed.

The size is known before the first byte, so that a client sees its progress, and one that loses
the connection knows it. A file that changes its size meanwhile (its owner can do that) breaks the
stream off instead of giving a zip that lies.
"""

from __future__ import annotations

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
        self._folder = beneath.OpenFile(beneath.open_folder(package))
        self._file: beneath.OpenFile | None = None
        self._is_closed = False
        self._zip = ZipStream(compress_type=ZIP_STORED, sized=True)
        try:
            with self._folder.held() as folder:
                for path, is_file in beneath.walk(folder):
                    self._add(folder, f"{name}/{_shown(path)}", path, is_file)
        except BaseException:
            self.close()
            raise
        #: Bytes of the whole zip.
        self.size = len(self._zip)

    def pieces(self) -> Iterator[bytes]:
        yield from self._zip

    def close(self) -> None:
        """Close what is open, also while a thread is in ``pieces``: that ends with an error."""
        self._is_closed = True
        self._folder.close()
        if self._file is not None:
            self._file.close()

    def open(self, path: bytes) -> beneath.OpenFile:
        """Open the file whose turn it is."""
        with self._folder.held() as folder:
            self._file = beneath.OpenFile(beneath.open_beneath(folder, path))
        if self._is_closed:
            self._file.close()
        return self._file

    def _add(self, folder: int, shown: str, path: bytes, is_file: bool) -> None:
        if path.endswith(b"/"):
            self._zip.mkdir(shown)
        elif is_file:
            try:
                with beneath.OpenFile(beneath.open_beneath(folder, path)) as file:
                    size = file.size
            except (beneath.NotThere, PermissionError):
                return
            self._zip.add(_File(self, path), shown, size=size)


class _File:
    """Opened when its turn comes: a package may have more files than we may open at once."""

    def __init__(self, archive: Archive, path: bytes) -> None:
        self._archive = archive
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        with self._archive.open(self._path) as file:
            at = 0
            while piece := file.pread(_PIECE, at):
                at += len(piece)
                yield piece


def _shown(path: bytes) -> str:
    # A zip's names are UTF-8; what is none stays legible and distinct.
    return path.decode(errors="backslashreplace")
