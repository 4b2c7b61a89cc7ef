"""The first files of a package, as its manifest has them, and itself: what fits on a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from aitbcd import manifest
from aitbcd.results import beneath

_PIECE = 1 << 20
#: Of a manifest that is looked at.
_BYTES_MAX = 16 << 20
#: A path, its size (None where the file is missing or is none), its sha256.
StoredFile: TypeAlias = tuple[bytes, int | None, str]


def first(package: Path, most: int, digest: str) -> list[StoredFile]:
    """Return at most so many files; ``digest`` is that of the manifest, as it was sealed.

    What its owner has made unreadable, or no manifest, has none.
    """
    try:
        folder = beneath.open_folder(package)
    except (beneath.NotThere, PermissionError):
        return []
    try:
        if stated := _stated(folder, most):
            stated[manifest.FILE_NAME.encode()] = digest
        return [(path, _size(folder, path), stated[path]) for path in sorted(stated)[:most]]
    finally:
        os.close(folder)


def _stated(folder: int, most: int) -> dict[bytes, str]:
    try:
        with beneath.OpenFile(beneath.open_beneath(folder, manifest.FILE_NAME.encode())) as file:
            return manifest.parse(_lines(file, most))
    except (beneath.NotThere, PermissionError, manifest.BadManifest):
        return {}


def _lines(file: beneath.OpenFile, most: int) -> bytes:
    """Return at most so many whole lines from the start."""
    text = bytearray()
    while text.count(b"\n") < most and len(text) < _BYTES_MAX:
        piece = file.pread(_PIECE, len(text))
        if not piece:
            break
        text += piece
    lines = bytes(text).split(b"\n", most)
    return b"".join(line + b"\n" for line in lines[:-1][:most])


def _size(folder: int, path: bytes) -> int | None:
    try:
        with beneath.OpenFile(beneath.open_beneath(folder, path)) as file:
            return file.size
    except (beneath.NotThere, PermissionError):
        return None
