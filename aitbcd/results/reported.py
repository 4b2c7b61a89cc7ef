"""What a job that runs says of its progress, read from its package while it is built."""

from __future__ import annotations

import os
from pathlib import Path

from aitbcd import progress
from aitbcd.results import beneath

_STDERR = b"logs/stderr.log"
_PROGRESS = b"progress"


def percentage(building: Path) -> int | None:
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


def _tail(folder: int, path: bytes) -> bytes:
    try:
        fd = beneath.open_beneath(folder, path)
    except (beneath.NotThere, PermissionError):
        return b""
    try:
        start = max(0, os.fstat(fd).st_size - progress.TAIL_BYTES)
        return os.pread(fd, progress.TAIL_BYTES, start)
    finally:
        os.close(fd)
