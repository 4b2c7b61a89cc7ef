"""The first files of a package, as its manifest has them, and itself: what fits on a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from aitbcd import manifest
from aitbcd.results import beneath
from aitbcd.results.package import Package

_PIECE = 1 << 20
#: Of a manifest that is looked at: what is larger has far more lines than fit on a page.
BYTES_MAX = 16 << 20
#: A path, its size (None where the file is missing or is none), its sha256.
StoredFile: TypeAlias = tuple[bytes, int | None, str]


def first(package: Path, most: int, digest: str) -> list[StoredFile]:
    """Return at most so many files; ``digest`` is that of the manifest, as it was sealed.

    What its owner has made unreadable, or no manifest, has none.
    """
    try:
        with Package(package) as held, held.open(manifest.FILE_NAME.encode()) as file:
            if stated := manifest.parse(_lines(file, most)):
                stated[manifest.FILE_NAME.encode()] = digest
            return sized(held, stated, most)
    except (beneath.NotThere, PermissionError, manifest.BadManifest):
        return []


def sized(package: Package, stated: Mapping[bytes, str], most: int) -> list[StoredFile]:
    """Return the first of the files that a manifest states, with their sizes."""
    return [(path, _size(package, path), stated[path]) for path in sorted(stated)[:most]]


def _lines(file: beneath.OpenFile, most: int) -> bytes:
    """Return at most so many whole lines from the start."""
    text = bytearray()
    while text.count(b"\n") < most and len(text) < BYTES_MAX:
        piece = file.pread(_PIECE, len(text))
        if not piece:
            break
        text += piece
    lines = bytes(text).split(b"\n", most)
    return b"".join(line + b"\n" for line in lines[:-1][:most])


def _size(package: Package, path: bytes) -> int | None:
    try:
        with package.open(path) as file:
            return file.size
    except (beneath.NotThere, PermissionError):
        return None
