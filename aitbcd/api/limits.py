"""How often somebody may ask: token buckets. Pure; the time comes in."""

from __future__ import annotations

from collections.abc import Hashable

#: Buckets that are kept before those that are full again go.
_KEPT = 4096


class Limit:
    """So many a second on average, after so many at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        #: How much was left of each, and when.
        self._left: dict[Hashable, tuple[float, float]] = {}

    def take(self, who: Hashable, now: float) -> float:
        """Return 0 and count it, or the seconds after which it may be tried again."""
        left, before = self._left.get(who, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - before) * self._rate)
        if left < 1:
            return (1 - left) / self._rate
        if len(self._left) >= _KEPT:
            self._forget_idle(now)
        self._left[who] = left - 1, now
        return 0.0

    def _forget_idle(self, now: float) -> None:
        idle_s = self._burst / self._rate
        self._left = {who: kept for who, kept in self._left.items() if now - kept[1] < idle_s}
