"""Jobs that are committed as assigned before there is room for them, while short ones run.

Between two jobs a slot waits for the commit that assigns the next one, and where jobs are over
sooner than a commit takes, that is most of the time. So while they are, ``AHEAD`` for each slot are
assigned ahead; each starts when its room is free, in order, before anything that waits.
"""

from __future__ import annotations

from collections import deque

from aitbcd.engine.attempt import Attempt

#: What is over sooner (from its room to its end, seconds) is short.
SHORT_S = 0.05
#: So many short ones in a row are a stream of them, and so many have to wait for it to go on.
STREAM = 8
#: How many are ahead for each slot: they share a commit, and all that comes later is behind them.
AHEAD = 4


class Standby:
    def __init__(self, slots: int) -> None:
        self._most = AHEAD * slots
        self._line: deque[Attempt] = deque()
        self._short_ones = 0

    def note(self, took_s: float) -> None:
        """Take note of how long a job had its room."""
        self._short_ones = self._short_ones + 1 if took_s < SHORT_S else 0

    @property
    def vacancies(self) -> int:
        """How many may be assigned ahead now."""
        return self._most - len(self._line) if self._short_ones >= STREAM else 0

    def add(self, attempt: Attempt) -> None:
        self._line.append(attempt)

    def first(self) -> Attempt | None:
        """Return whose turn it is; nobody who has been let go, or was canceled meanwhile."""
        while self._line and self._line[0].has_room.is_set():
            self._line.popleft()
        return self._line[0] if self._line else None
