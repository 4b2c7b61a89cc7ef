"""A sealed package that stays where it is while it is open.

Who removes a package takes its lock for himself first (flock(2), LOCK_EX on the folder), who reads
it shares that lock, so that none is removed under a download.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from aitbcd.results import beneath


class Package(beneath.OpenFile):
    """The open, locked folder. Close it."""

    __slots__ = ()

    def __init__(self, path: Path) -> None:
        """Open a package.

        Raises:
            beneath.NotThere: it is gone, or is just being removed.
        """
        folder = beneath.open_folder(path)
        try:
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(folder)
            raise beneath.NotThere(os.fspath(path)) from None
        super().__init__(folder)

    def open(self, path: bytes) -> beneath.OpenFile:
        """Return one of its files.

        Raises:
            beneath.NotThere, PermissionError: as ``beneath.open_beneath``.
        """
        with self.held() as folder:
            return beneath.OpenFile(beneath.open_beneath(folder, path))
