"""Tells systemd how the service does (sd_notify(3)); without systemd it says nothing.

The protocol is a datagram of lines to the socket that $NOTIFY_SOCKET names, and needs no library.
The variable is taken out of the environment, so that nothing that we start speaks in our name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Self

#: How often the watchdog is told within its time (sd_watchdog_enabled(3): half of it).
_A_TIME = 2
#: Seconds that the manager may take to make room in its queue.
_PATIENCE_S = 5.0


class Notifier:
    """The connection to the service manager, where there is one."""

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int) -> Self:
        """Return the one that this environment speaks of, and take it out of there."""
        address = environ.pop("NOTIFY_SOCKET", None)
        usec = environ.pop("WATCHDOG_USEC", "")
        for_whom = environ.pop("WATCHDOG_PID", str(pid))
        is_ours = usec.isdigit() and int(usec) > 0 and for_whom == str(pid)
        return cls(address, int(usec) / 1e6 if is_ours else None)

    def ready(self, status: str) -> None:
        """Say that we serve, now or again after a reload."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}", "STATUS=reads the configuration")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def keep_watched(self, describe: Callable[[], str]) -> None:
        """Tell the watchdog that the event loop turns, for as long as it does, and what it does."""
        if self._watchdog_s is None or self._address is None:
            return
        self._send("WATCHDOG=1", f"STATUS={_line(describe())}")
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._watchdog_s / _A_TIME, self.keep_watched, describe)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # An abstract address is written with @ (unix(7)).
        address = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_PATIENCE_S)
                sock.sendto("\n".join(lines).encode(), address)
        except OSError:
            # The manager is away, or does not read: it must not hold us up.
            pass


class Formatter(logging.Formatter):
    """Records whose further lines are set off, and which command no terminal.

    What stands in one can be a user's: a command, a name of a file, a word of a program.
    """

    def __init__(self, form: str, *, is_journal: bool) -> None:
        """``is_journal``: lines get priorities, which the journal takes off (sd-daemon(3))."""
        super().__init__(form)
        self._is_journal = is_journal

    def format(self, record: logging.LogRecord) -> str:
        # Those of syslog(3): 3 is an error, 4 a warning.
        priority = f"<{3 if record.levelno >= logging.ERROR else 4}>" if self._is_journal else ""
        first, *more = map(_escaped, super().format(record).split("\n"))
        lines = [first, *(line if line.startswith("  ") else f"  {line}" for line in more)]
        return "\n".join(priority + line for line in lines)


def _escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def is_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Tell whether the journal reads what is written there (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        about = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


def _line(text: str) -> str:
    return " ".join(text.split())
