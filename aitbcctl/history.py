"""The last minute of each GPU's utilization: as the daemon has it, else as it was seen here. Pure.

The daemon keeps it while jobs run on a GPU; what somebody does past the queue only a watcher sees.
"""

from __future__ import annotations

from collections import deque

from aitbcctl.client import Json

SPAN_S = 60


class History:
    """Takes each answer of ``/v1/gpus``, and gives the columns of a sparkline."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, list[int | None]]] = {}
        self._seen: dict[str, deque[tuple[int, int | None]]] = {}

    def note(self, gpus: list[Json], second: int) -> None:
        """Take what GPUs did; ``second`` counts from anywhere."""
        for gpu in gpus:
            uuid = gpu["uuid"]
            self._told[uuid] = second, gpu.get("recent") or []
            self._seen.setdefault(uuid, deque()).append((second, gpu.get("utilization")))
        for seen in self._seen.values():
            while seen and seen[0][0] <= second - 2 * SPAN_S:
                seen.popleft()

    def gap(self, second: int) -> None:
        """Note that nobody answered."""
        for seen in self._seen.values():
            if seen and seen[-1][1] is not None:
                seen.append((second, None))

    def columns(self, uuid: str, width: int) -> list[float | None]:
        """Return the last minute as shares of one, the newest last; None where nothing is known.

        A column stands for the same seconds as long as it is shown, so that a line moves on in
        steps instead of flickering.
        """
        by_second = self._by_second(uuid)
        if not by_second:
            return [None] * width
        step = SPAN_S / width
        last = int(max(by_second) / step)
        sums: list[list[int]] = [[] for _ in range(width)]
        for second, value in by_second.items():
            if 0 <= (at := width - 1 - last + int(second / step)) < width:
                sums[at].append(value)
        return [sum(values) / len(values) / 100 if values else None for values in sums]

    def _by_second(self, uuid: str) -> dict[int, int]:
        """Return what is known, the daemon's word before our own."""
        known: dict[int, int] = {}
        before: tuple[int, int | None] | None = None
        for second, value in self._seen.get(uuid, ()):
            # Between two answers it did what it did at the first one.
            if before is not None and before[1] is not None:
                known |= dict.fromkeys(range(before[0], second), before[1])
            if value is not None:
                known[second] = value
            before = second, value
        second, told = self._told.get(uuid, (0, []))
        for age, value in enumerate(reversed(told[-SPAN_S:])):
            if value is not None:
                known[second - age] = value
        return known
