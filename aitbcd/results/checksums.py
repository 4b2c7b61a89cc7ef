"""The manifest of a package with paths as they are beside its folder: ``job_<ID>/result.txt``."""

from __future__ import annotations

import hashlib
from collections.abc import Generator

from aitbcd.results.beneath import OpenFile

_PIECE = 256 * 1024
_DIGEST = 64 + len("  ")


def digest(file: OpenFile) -> str:
    """Return the sha256 of a file."""
    hashed, at = hashlib.sha256(), 0
    while piece := file.pread(_PIECE, at):
        hashed.update(piece)
        at += len(piece)
    return hashed.hexdigest()


def prefixed(file: OpenFile, folder: bytes) -> Generator[bytes]:
    """Yield a sound manifest in pieces of whole lines, ``folder`` before each path."""
    at, rest = 0, b""
    while piece := file.pread(_PIECE, at):
        at += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        if lines:
            yield b"".join(_prefixed(line, folder) for line in lines)


def _prefixed(line: bytes, folder: bytes) -> bytes:
    at = _DIGEST + line.startswith(b"\\")
    return line[:at] + folder + b"/" + line[at:].removeprefix(b"./") + b"\n"
