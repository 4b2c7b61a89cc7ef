"""What a sealing leaves out of a package, kept in the run folder until the package is sealed.

A sealing that is killed has perhaps dropped something already; the next one no longer finds it.
So each entry is written before anything is dropped: one JSON line, in order.
"""

from __future__ import annotations

import binascii
import errno
import json
import os
from typing import Any

from aitbcd.launcher.protocol import LEFT_OUT

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Notes:
    """One reason a path. Without a run folder (a power cut can take it) nothing outlives us."""

    def __init__(self, folder_fd: int | None) -> None:
        self._folder_fd = folder_fd
        self._fd = -1
        #: Path as ``shown`` in JSON text -> entry of output.json.
        self._entries: dict[str, dict[str, Any]] = {}
        if folder_fd is not None:
            self._read(folder_fd)

    @property
    def entries(self) -> list[dict[str, Any]]:
        return list(self._entries.values())

    def open(self) -> None:
        """Make the file now: whoever becomes another user cannot do it later."""
        if self._fd < 0 and self._folder_fd is not None:
            self._fd = os.open(LEFT_OUT, _FLAGS, 0o640, dir_fd=self._folder_fd)

    def add(self, path: bytes, why: str) -> None:
        """Note what is about to be left out.

        Raises:
            OSError: there is no room for it; then do not drop it.
        """
        entry = {"path": shown(path), "why": why}
        key = json.dumps(entry["path"])
        if self._entries.get(key) == entry:
            return
        self._entries[key] = entry
        self.open()
        if self._fd >= 0:
            # The line before may lack its end.
            line = b"\n%s\n" % json.dumps(entry).encode()
            if os.write(self._fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, folder_fd: int) -> None:
        try:
            fd = os.open(LEFT_OUT, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
        except FileNotFoundError:
            return
        with open(fd, "rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    self._entries[json.dumps(entry["path"])] = entry
                except (ValueError, KeyError, TypeError):
                    # Its writer was killed within the line, and had dropped nothing yet.
                    continue


def shown(path: bytes) -> Any:
    """Return a path for JSON: text, or ``{"b64": ...}`` where it is no UTF-8."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return {"b64": binascii.b2a_base64(path, newline=False).decode()}
