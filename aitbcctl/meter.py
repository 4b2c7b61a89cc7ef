"""A bar for bytes on their way, on a terminal, for what takes longer than a moment.

Drawn by hand: the import of rich costs more than most downloads.
"""

from __future__ import annotations

import threading
import time

from aitbcctl import terminal
from aitbcctl.render import duration, size

_FIRST_S = 0.5
_STEP_S = 0.2
_WIDTH = 24


class Meter:
    """Counts bytes from any thread; ``with`` it, and its line is gone at the end."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        #: Bytes so far.
        self.done = 0
        self._began_at = time.monotonic()
        self._next_at = self._began_at + (_FIRST_S if terminal.is_shown(2) else float("inf"))
        self._is_drawn = False
        self._lock = threading.Lock()

    def tell(self, count: int) -> None:
        """Note that so many bytes more are done."""
        with self._lock:
            self.done += count
            now = time.monotonic()
            if now >= self._next_at:
                self._next_at = now + _STEP_S
                self._draw(now - self._began_at)

    def expect(self, total: int) -> None:
        """Correct how many bytes there are in all."""
        self._total = total

    def _draw(self, took_s: float) -> None:
        self._is_drawn = True
        terminal.draw(bar(self.done, self._total, took_s))

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_drawn:
            terminal.draw("")


def bar(done: int, total: int | None, took_s: float) -> str:
    """Return the line for so much done in so long."""
    speed = done / took_s if took_s > 0 else 0.0
    rate = f"{size(int(speed))}/s"
    if not total:
        return f"{size(done)}  {rate}"
    share = min(done / total, 1.0)
    full = int(share * _WIDTH)
    line = f"[{'#' * full}{'.' * (_WIDTH - full)}] {share:4.0%}  {size(done)} of {size(total)}"
    left_s = (total - done) / speed if speed and total > done else 0
    return f"{line}  {rate}" + (f"  {duration(int(left_s))} left" if left_s >= 1 else "")
