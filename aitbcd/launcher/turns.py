"""Turns for heavy sealings: so many of one user at a time, over all supervisors of a state folder.

A turn is a lock (flock(2)) on one of his files in ``run/``, so that whoever is killed gives it
back. It is held by who seals, and that is the job's user, who can stop himself, or make a file
that takes hours to read: so nobody waits for another user's turn, and for one's own not for ever.
"""

from __future__ import annotations

import fcntl
import os
import signal

#: Seconds after which a sealing goes on without a turn.
_LONGEST_S = 3600.0
_COUNT = max(1, (os.cpu_count() or 1) // 2)


class _TooLate(Exception):
    pass


class Turns:
    """A user's, opened by who may open files in ``run/``; ``take`` is for a child soon over."""

    def __init__(self, run_fd: int, uid: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fds = [
            os.open(f"turn.{uid}.{number}", flags, 0o640, dir_fd=run_fd) for number in range(_COUNT)
        ]

    def take(self) -> None:
        """Wait for a turn, and keep it until this process ends."""
        for fd in self._fds:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return
        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, _LONGEST_S)
        try:
            fcntl.flock(self._fds[os.getpid() % _COUNT], fcntl.LOCK_EX)
        except _TooLate:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _give_up(*_: object) -> None:
    raise _TooLate
