"""What the time is, how long the machine has run, and a call at a time of day.

asyncio's timers follow the monotonic clock: one that is set a week ahead fires at another time
than it was meant for when the clock is corrected meanwhile. The kernel's own (timerfd_create(2))
follow the clock itself, and tell when it is set.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Callable

from msgspec import Struct

_libc = ctypes.CDLL(None, use_errno=True)
# linux/timerfd.h
_CLOCK_REALTIME = 0
_ABSTIME, _CANCEL_ON_SET = 1, 2
#: ``struct itimerspec``: interval and time, each as seconds and nanoseconds.
_TIMER = struct.Struct("@4l")
#: Later than all that expires: a timer of no time would not tell of a clock that is set.
_NEVER_US = 1 << 62


def now_us() -> int:
    return time.time_ns() // 1000


def steady_us() -> int:
    """Return how long the machine has run, suspended or not; nobody can set it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Clock(Struct, frozen=True):
    """Two clocks that should go alike."""

    now: Callable[[], int] = now_us
    steady: Callable[[], int] = steady_us


class Alarm:
    """Calls back at a time of day, and whenever the clock is set."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._fd = _check(_libc.timerfd_create(_CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC))
        #: When it is due; None for no time.
        self.at: int | None = None
        asyncio.get_running_loop().add_reader(self._fd, self._on_ready)

    def set(self, at: int | None) -> None:
        """Ring at ``at``, microseconds; at once when that has passed, and never for None."""
        self.at = at
        seconds, rest = divmod(_NEVER_US if at is None else max(at, 1), 1_000_000)
        timer = _TIMER.pack(0, 0, seconds, rest * 1000)
        _check(_libc.timerfd_settime(self._fd, _ABSTIME | _CANCEL_ON_SET, timer, None))

    def _on_ready(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError:
            # ECANCELED: the clock was set; it is armed no more.
            pass
        self._ring()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
