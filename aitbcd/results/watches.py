"""Wakes who waits for a write to an open file or a change of a folder (inotify(7)).

One inotify instance for all: a user may have 128 of them, and a job may have more followers. A
watch wakes once (IN_ONESHOT) and is set again by whoever wants to go on: a job that writes without
pause costs a wakeup a look, not a wakeup a write. It tells that something happened, not what: set
it, look, and wait only when there was nothing.

Over the C library itself: of the packages that wrap it one opens a descriptor that blocks, the
other has a thread that ticks.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_libc = ctypes.CDLL(None, use_errno=True)

# sys/inotify.h
_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
_ATTRIB, _CLOSE_WRITE = 0x4, 0x8
_DELETE_SELF, _MOVE_SELF, _OVERFLOW = 0x400, 0x800, 0x4000
_MASK_ADD, _ONESHOT = 0x20000000, 0x80000000
_EVENT = struct.Struct("iIII")
#: The kernel returns whole events only; one has at most a header and NAME_MAX + 1 bytes.
_BUFFER = 64 * 1024


class Watches:
    """Made within a running loop; close it before the loop ends."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._waiting: dict[int, set[asyncio.Event]] = {}
        self._loop.add_reader(self._fd, self._on_events)

    @contextmanager
    def on_write(self, fd: int, woken: asyncio.Event) -> Iterator[None]:
        """Set ``woken`` at the next write to the open file ``fd``.

        Raises:
            OSError: the user's limit of watches is reached (ENOSPC, ENOMEM).
        """
        with self._once(f"/proc/self/fd/{fd}", _MODIFY, woken):
            yield

    @contextmanager
    def on_change(self, fd: int, woken: asyncio.Event) -> Iterator[None]:
        """Set ``woken`` when the next file in the open folder ``fd`` is made or written."""
        with self._once(f"/proc/self/fd/{fd}", _MODIFY | _CREATE | _MOVED_TO, woken):
            yield

    @contextmanager
    def on_removal(self, folder: str | os.PathLike[str], woken: asyncio.Event) -> Iterator[None]:
        """Set ``woken`` when something in the folder, or it, is removed or renamed."""
        mask = _DELETE | _MOVED_FROM | _DELETE_SELF | _MOVE_SELF
        with self._once(os.fspath(folder), mask, woken):
            yield

    @contextmanager
    def on_save(self, folder: str | os.PathLike[str], woken: asyncio.Event) -> Iterator[None]:
        """Set ``woken`` when a file in the folder was written, put there, or opened to us.

        install(1) writes first, and says then who may read it.

        Raises:
            OSError: there is no such folder, or the user's limit of watches is reached.
        """
        with self._once(os.fspath(folder), _CLOSE_WRITE | _MOVED_TO | _ATTRIB, woken):
            yield

    @contextmanager
    def on_arrival(self, folder: str | os.PathLike[str], woken: asyncio.Event) -> Iterator[None]:
        """Set ``woken`` when something is made in the folder, put there, or opened to us.

        Raises:
            OSError: there is no such folder, or the user's limit of watches is reached.
        """
        with self._once(os.fspath(folder), _CREATE | _MOVED_TO | _ATTRIB, woken):
            yield

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    @contextmanager
    def _once(self, path: str, mask: int, woken: asyncio.Event) -> Iterator[None]:
        # The kernel has one watch an inode, so that all who wait for the same one share it.
        flags = ctypes.c_uint32(mask | _ONESHOT | _MASK_ADD)
        watch = _check(_libc.inotify_add_watch(self._fd, os.fsencode(path), flags))
        waiting = self._waiting.setdefault(watch, set())
        waiting.add(woken)
        try:
            yield
        finally:
            waiting.discard(woken)
            if not waiting and self._waiting.get(watch) is waiting:
                del self._waiting[watch]
                # Fails (EINVAL) when it has fired already, or its file is gone: it is over then.
                _libc.inotify_rm_watch(self._fd, watch)

    def _on_events(self) -> None:
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            self._wake(watch, mask)

    def _wake(self, watch: int, mask: int) -> None:
        if mask & _OVERFLOW:
            everybody = [woken for waiting in self._waiting.values() for woken in waiting]
            self._waiting.clear()
        else:
            everybody = list(self._waiting.pop(watch, ()))
        for woken in everybody:
            woken.set()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
