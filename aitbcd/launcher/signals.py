"""What signals do to the launcher and to all that it forks.

The handlers are set once, in the launcher: to set them anew in a fork, Python would look through
the enums of ``signal``, and so copy 65 pages. Instead each process says what is to be done in it,
and nothing of that is handed on: a fork that says nothing ends when it is asked to.

Nothing is ignored: a signal that its parent has caught has its default in a program, and one that
was ignored stays so (signal(7)).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STOP, _RELOAD = int(signal.SIGTERM), int(signal.SIGHUP)
#: For each signal, what is to be done and the process that does it.
_actions: dict[int, tuple[int, Callable[[], None]]] = {}


def listen() -> None:
    """Take over from whoever started us, who may have had some ignored or blocked.

    The ends of children have to be caught too: where they are ignored nobody can wait for them.
    """
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _handle)
    for caught in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
        signal.signal(caught, _handle)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def open_wakeups() -> tuple[int, int]:
    """Return a pipe whose first end is readable when this process has caught a signal.

    One that comes just before a wait begins would not end it: its handler runs when the wait is
    over (signal.set_wakeup_fd). A fork has to forget it, or open its own.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading, writing


def take(wakeups: int) -> None:
    """Read what signals have written, whose handlers have run by then."""
    os.read(wakeups, 4096)


def at_stop(action: Callable[[], None]) -> None:
    """Do this from now on when this process is asked to end."""
    _actions[_STOP] = os.getpid(), action


def at_reload(action: Callable[[], None]) -> None:
    _actions[_RELOAD] = os.getpid(), action


@contextmanager
def held() -> Iterator[None]:
    """Hear only afterwards that we are asked to end, and do then what was to be done before."""
    before = dict(_actions)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    try:
        yield
    finally:
        _actions.update(before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


def _handle(number: int, _: object) -> None:
    pid, action = _actions.get(number, (0, None))
    if action and pid == os.getpid():
        action()
    elif number == _STOP:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
