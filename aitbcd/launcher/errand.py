"""A child that does one thing, answers once, and ends: what takes long holds up nobody else."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from aitbcd.launcher import protocol
from aitbcd.launcher.linux import close_all_but, highest_descriptor
from aitbcd.launcher.protocol import Message


class Errand(NamedTuple):
    pid: int
    #: Readable when it has ended.
    pidfd: int
    answer: socket.socket

    def end(self) -> Message | None:
        """Return what it has said, once it has ended, and let go of it; None: it was killed.

        What it may have left holds its end of the socket, too.
        """
        os.close(self.pidfd)
        try:
            received = protocol.receive(self.answer)
        except BlockingIOError:
            received = None
        self.answer.close()
        return received[0] if received else None


def send(action: Callable[[], Message], *kept: int) -> Errand:
    """Have a child do this, with these descriptors and none else.

    Raises:
        OSError: there can be no further process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        highest = highest_descriptor()
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        _run(action, theirs, highest, kept)
    theirs.close()
    ours.setblocking(False)
    return Errand(pid, os.pidfd_open(pid), ours)


def _run(
    action: Callable[[], Message], answer: socket.socket, highest: int, kept: tuple[int, ...]
) -> NoReturn:
    """Live as the child. What else is open is its parent's."""
    try:
        signal.set_wakeup_fd(-1)
        close_all_but(highest, answer.fileno(), *kept)
        protocol.send(answer, action())
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(0)
