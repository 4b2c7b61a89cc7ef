"""Wakes who waits for a write to an open file or a change of a folder (inotify(7)).

One inotify instance for all: a user may have 128 of them, and a job may have more followers.
Without waiters it costs nothing. It tells that something happened, not what: look again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from asyncinotify import Event, Inotify, Mask

#: A name went from the folder, or the folder itself did.
_GONE = Mask.DELETE | Mask.MOVED_FROM | Mask.DELETE_SELF | Mask.MOVE_SELF


class Watches:
    """Made within a running loop; close it before the loop ends."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._inotify = Inotify()
        self._waiting: dict[int, set[asyncio.Event]] = {}
        self._loop.add_reader(self._inotify.fd, self._on_events)

    @contextmanager
    def on_write(self, fd: int) -> Iterator[asyncio.Event]:
        """Give an event that is set at each write to the open file ``fd``; clear it, then read.

        Raises:
            OSError: the user's limit of watches is reached (ENOSPC, ENOMEM).
        """
        with self._watching(f"/proc/self/fd/{fd}", Mask.MODIFY) as woken:
            yield woken

    @contextmanager
    def on_removal(self, folder: str | os.PathLike[str]) -> Iterator[asyncio.Event]:
        """Give an event that is set when something in the folder, or it, is removed or renamed."""
        with self._watching(os.fspath(folder), _GONE) as woken:
            yield woken

    def close(self) -> None:
        self._loop.remove_reader(self._inotify.fd)
        self._inotify.close()

    @contextmanager
    def _watching(self, path: str, mask: Mask) -> Iterator[asyncio.Event]:
        # The kernel has one watch an inode, so that waiters for the same one share it.
        watch = self._inotify.add_watch(path, mask)
        woken = asyncio.Event()
        waiting = self._waiting.setdefault(watch.wd, set())
        waiting.add(woken)
        try:
            yield woken
        finally:
            waiting.discard(woken)
            if not waiting and self._waiting.get(watch.wd) is waiting:
                del self._waiting[watch.wd]
                try:
                    self._inotify.rm_watch(watch)
                except OSError:
                    pass  # EINVAL: the file is gone, and its watch with it

    def _on_events(self) -> None:
        try:
            event: Event | None = self._inotify.sync_get()
            while event is not None:
                self._wake(event)
                event = self._inotify.sync_get()
        except BlockingIOError:
            pass

    def _wake(self, event: Event) -> None:
        if event.mask & Mask.Q_OVERFLOW:
            everybody = [woken for waiting in self._waiting.values() for woken in waiting]
        elif event.watch is not None:
            everybody = list(self._waiting.get(event.watch.wd, ()))
        else:
            return
        for woken in everybody:
            woken.set()
