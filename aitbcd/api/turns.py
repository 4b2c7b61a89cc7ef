"""Whose request is worked on when many ask at once: of each user a few at a time.

All requests share one loop, and one reader of the store. What a user asks for beyond those few
waits for his own, so that whatever he asks, others wait for no more than these. It is for work,
not for waiting: who follows something gives his turn back before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from types import TracebackType

from aitbcd.errors import RateLimited

#: One that reads while another one's answer is written.
_AT_ONCE = 2
#: Of one user: their clients may have left meanwhile.
_WAITING_MAX = 1000


class _Line:
    def __init__(self) -> None:
        self.free = asyncio.Semaphore(_AT_ONCE)
        #: Those who have their turn, and those who wait.
        self.length = 0


class Turns:
    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line] = {}

    def of(self, who: Hashable) -> Turn:
        """Return a turn, to be taken: ``async with turns.of(who)``."""
        return Turn(self, who)

    def check(self, who: Hashable) -> None:
        """Refuse one more that waits.

        Raises:
            RateLimited: too many of his wait already.
        """
        if who in self._lines and self._lines[who].length >= _WAITING_MAX:
            raise RateLimited(
                f"{_WAITING_MAX} requests of yours wait already: try again in 1 s",
                hint="ask one thing after the other",
                retry_after_s=1,
            )

    async def take(self, who: Hashable) -> None:
        """Wait for a turn; give it back with ``end``."""
        line = self._lines.setdefault(who, _Line())
        line.length += 1
        try:
            await line.free.acquire()
        except BaseException:
            self._leave(who, line)
            raise

    def end(self, who: Hashable) -> None:
        line = self._lines[who]
        line.free.release()
        self._leave(who, line)

    def _leave(self, who: Hashable, line: _Line) -> None:
        line.length -= 1
        if not line.length:
            del self._lines[who]


class Turn:
    __slots__ = ("_is_taken", "_turns", "_who")

    def __init__(self, turns: Turns, who: Hashable) -> None:
        self._turns = turns
        self._who = who
        self._is_taken = False

    async def __aenter__(self) -> Turn:
        await self._turns.take(self._who)
        self._is_taken = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Give it back, also before the block's end; a second time does nothing."""
        if self._is_taken:
            self._is_taken = False
            self._turns.end(self._who)
