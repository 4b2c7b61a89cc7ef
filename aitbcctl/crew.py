"""One kind of work on many things, on all cores: hashlib and file I/O let other threads run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
#: More threads than this only make a disk seek.
_HANDS_MAX = 32


class Halted(Exception):
    """Another piece of the work failed, or ^C came: leave yours."""


class Crew:
    """Threads for one piece of work; the first failure ends it all."""

    def __init__(self) -> None:
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Ask between two steps whether to go on.

        Raises:
            Halted: no.
        """
        if self._failure is not None:
            raise Halted

    def work(self, do: Callable[[T], None], things: Iterable[T]) -> None:
        """Call ``do`` for each thing; return when all are done, or raise the first failure."""
        rest = iter(things)

        def hand() -> None:
            try:
                while self._failure is None:
                    with self._lock:
                        thing = next(rest)
                    do(thing)
            except StopIteration:
                pass
            except BaseException as failure:
                self._fail(failure)

        hands = [
            threading.Thread(target=hand, daemon=True)
            for _ in range(min(len(os.sched_getaffinity(0)), _HANDS_MAX) - 1)
        ]
        try:
            for one in hands:
                one.start()
            hand()
            for one in hands:
                one.join()
        except BaseException as interruption:
            self._fail(interruption)
            for one in hands:
                if one.ident is not None:
                    one.join()
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or failure
