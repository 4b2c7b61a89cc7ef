"""Wakes when an NVIDIA driver may have come: inotify(7) on /dev and on the loader's cache.

/dev gets its nvidia nodes when the kernel module is loaded; ldconfig(8) replaces ld.so.cache when
libraries are installed. Nothing runs in between.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterator

_libc = ctypes.CDLL(None, use_errno=True)
# sys/inotify.h
_IN_CREATE, _IN_MOVED_TO, _IN_CLOSE_WRITE = 0x100, 0x80, 0x8
_EVENT = struct.Struct("iIII")
_FOLDERS = ((b"/dev", _IN_CREATE), (b"/etc", _IN_MOVED_TO | _IN_CLOSE_WRITE))


class Arrival:
    def __init__(self, on_arrival: Callable[[], None]) -> None:
        self._on_arrival = on_arrival
        # Without one (all instances of this user are taken) a driver is found when it is asked for.
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            for folder, mask in _FOLDERS:
                _libc.inotify_add_watch(self._fd, folder, mask)
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            names = list(_names(os.read(self._fd, 65536)))
        except BlockingIOError:
            return
        if any(name.startswith(b"nvidia") or name == b"ld.so.cache" for name in names):
            self._on_arrival()

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _names(events: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(events):
        length: int = _EVENT.unpack_from(events, at)[3]
        at += _EVENT.size
        yield events[at : at + length].rstrip(b"\0")
        at += length
