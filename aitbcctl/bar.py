"""The live line of ``watch``. Imported only where there is a terminal to draw on: rich is dear."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from aitbcctl.client import Json
from aitbcctl.render import duration, elapsed, moment, plain

#: Of what a job waits for; status shows all of it.
_WAITING_MAX = 40


class Bar:
    """Shows one job: name, state, bar, percent, time so far, time left."""

    def __init__(self, status: Json) -> None:
        # Only the bar gives way on a narrow terminal.
        fixed = Column(no_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=fixed.copy()),
            TextColumn("{task.fields[state]}", markup=False, table_column=fixed.copy()),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%", table_column=fixed.copy()),
            _Times(table_column=fixed.copy()),
            console=Console(highlight=False),
            expand=True,
            refresh_per_second=4,
            # The final sentence takes the line's place.
            transient=True,
        )
        name = plain(status.get("name") or "")[:16]
        self._task = self._progress.add_task(
            f"{status['job_id']} {name}".rstrip(), total=100, state="", times=_NO_TIMES
        )
        self.show(status)

    def show(self, status: Json) -> None:
        """Draw what this status says."""
        waiting = plain(status.get("waiting") or "")
        if len(waiting) > _WAITING_MAX:
            waiting = waiting[: _WAITING_MAX - 1] + "…"
        self._progress.update(
            self._task,
            completed=status["progress"],
            state=waiting or status["status"] + _gpus(status),
            times=_times(status),
        )

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _gpus(status: Json) -> str:
    uuids = status.get("gpu_uuids") or []
    if len(uuids) == 1:
        return f" on {plain(uuids[0])[:12]}"
    return f" on {len(uuids)} GPUs" if uuids else ""


#: When the attempt began and when its end is expected, on the monotonic clock.
_Span = tuple[float | None, float | None]
_NO_TIMES: _Span = (None, None)


def _times(status: Json) -> _Span:
    now, clock = datetime.now(UTC), time.monotonic()
    ran = elapsed(status, now)
    expected = moment(status.get("estimated_completion"))
    return (
        None if ran is None else clock - ran,
        None if expected is None else clock + (expected - now).total_seconds(),
    )


class _Times(ProgressColumn):
    """Time so far and time left, counted on between two changes."""

    def render(self, task: Task) -> Text:
        began, expected = task.fields["times"]
        clock = time.monotonic()
        if began is None:
            return Text("")
        text = duration(int(clock - began))
        if expected is not None and expected > clock:
            text += f", {duration(int(expected - clock))} left"
        return Text(text)
