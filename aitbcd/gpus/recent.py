"""The last minute of a GPU's utilization, a figure a second. Pure: the time comes in."""

from __future__ import annotations

import math
from collections import deque

SPAN_S = 60
#: Samples that come sooner tell nothing more to whoever sees seconds.
_STEP_S = 0.9


class Recent:
    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SPAN_S)

    def add(self, at: float, utilization: int) -> None:
        """Take a sample; those of one GPU come in the order of their times."""
        if not self._samples or at - self._samples[-1][0] >= _STEP_S:
            self._samples.append((at, utilization))

    def seconds(self, now: float, interval_s: float) -> list[int | None]:
        """Return the figures up to ``now``, the oldest first; None where there was no sample.

        Args:
            interval_s: between two samples; one stands for so long, and a little more.
        """
        found: list[int | None] = [None] * SPAN_S
        length = math.ceil(1.5 * max(interval_s, 1.0))
        for at, utilization in self._samples:
            begin = SPAN_S - 1 - int(now - at)
            for second in range(max(begin, 0), min(begin + length, SPAN_S)):
                found[second] = utilization
        begin = next((at for at, figure in enumerate(found) if figure is not None), SPAN_S)
        return found[begin:]
