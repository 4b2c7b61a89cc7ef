"""A little disk space kept back, so that the end of a job can be recorded on a full disk."""

from __future__ import annotations

import os
from pathlib import Path

#: Enough for output.json, a manifest and SQLite's log of a few transactions.
RESERVE_BYTES = 2 << 20


class Reserve:
    """A file of allocated blocks (posix_fallocate(3)) beside what it is reserved for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_held = False

    def hold(self) -> None:
        """Set the space aside, if it is not and there is some."""
        if self._is_held:
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
            self._is_held = True
        except OSError:
            # Nothing is gained by a part of it.
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def release(self) -> None:
        """Give the space to whoever needs it now."""
        self._is_held = False
        try:
            os.truncate(self._path, 0)
        except OSError:
            pass
