"""What a job that runs says of its progress, read from its package while it is built."""

from __future__ import annotations

import os
from pathlib import Path

from aitbcd import progress
from aitbcd.results import beneath

_STDOUT = b"logs/stdout.log"
_STDERR = b"logs/stderr.log"
_PROGRESS = b"progress"


def percentage(building: Path | str) -> int | None:
    """Return what a job says of its progress, None where it says nothing."""
    try:
        folder = beneath.open_folder(building)
    except (beneath.NotThere, PermissionError):
        return None
    try:
        percent = progress.from_file(_tail(folder, _PROGRESS))
        return progress.from_stderr(_tail(folder, _STDERR)) if percent is None else percent
    finally:
        os.close(folder)


def last_words(building: str, length: int) -> bytes:
    """Return the end of what a job wrote to its standard error, or else to its output.

    Many a job joins the two (``2>&1 | tee log``). Nothing where they are shut to us.
    """
    try:
        folder = beneath.open_folder(building)
    except (beneath.NotThere, PermissionError):
        return b""
    try:
        said = _tail(folder, _STDERR, length)
        return said if said.strip() else _tail(folder, _STDOUT, length)
    finally:
        os.close(folder)


def last_sign(building: str) -> int | None:
    """Return when a job last wrote to its logs or of its progress, microseconds."""
    signs = []
    for path in (_STDOUT, _STDERR, _PROGRESS):
        try:
            with beneath.open_in(building, path) as file:
                signs.append(file.changed_at)
        except (beneath.NotThere, PermissionError):
            continue
    return max(signs, default=None)


def _tail(folder: int, path: bytes, length: int = progress.TAIL_BYTES) -> bytes:
    try:
        fd = beneath.open_beneath(folder, path)
    except (beneath.NotThere, PermissionError):
        return b""
    try:
        start = max(0, os.fstat(fd).st_size - length)
        return os.pread(fd, length, start)
    finally:
        os.close(fd)
