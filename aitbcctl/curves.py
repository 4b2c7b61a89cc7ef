"""``logs/gpu.csv`` of a job -> curves, a line a GPU. Pure.

The file is the job's owner's, who may have written anything into it: what makes no sense is left
out, and a bounded number of rows is read.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import islice

from aitbcctl.render import plain

#: Beyond what the daemon writes for any job.
_ROWS_MAX = 200_000
#: Nobody can tell more lines apart.
_GPUS_MAX = 64
#: A silence longer than so many spans is a gap in a line.
_GAP_SPANS = 2.5
#: Round steps of time, in seconds, and ends of other axes, whose quarters are round.
_DURATIONS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
_DAY = 86_400
_ROUND = (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10)


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that can be drawn."""

    title: str
    #: Of ``logs/gpu.csv``; in the unit of the title when divided.
    column: str
    divisor: float = 1.0
    #: Where its axis ends whatever the values are.
    top: float | None = None


METRICS = {
    "utilization": Metric("utilization, %", "utilization", top=100),
    "memory": Metric("memory, GiB", "memory_used", 1 << 30),
    "job-memory": Metric("memory of the job, GiB", "job_memory", 1 << 30),
    "power": Metric("power, W", "power"),
    "temperature": Metric("temperature, C", "temperature"),
    "clock": Metric("clock of the cores, MHz", "sm_clock"),
}

#: Seconds since the first sample began, and a value.
Point = tuple[float, float]


@dataclass(slots=True)
class Course:
    """What one GPU did."""

    uuid: str
    label: str
    times: list[float] = field(default_factory=list)
    spans: list[float] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure of all GPUs over time."""

    title: str
    #: Where the axes end.
    seconds: float
    top: float
    #: A GPU's label, and its curve in stretches without a gap.
    lines: list[tuple[str, list[list[Point]]]]


def read(lines: Iterable[str]) -> list[Course]:
    """Return the courses in a file, in their order; none where there is no row."""
    courses: dict[str, Course] = {}
    begin: float | None = None
    for row in _rows(lines):
        time, span, uuid = _moment(row.get("time")), _number(row.get("seconds")), row.get("gpu")
        if time is None or span is None or not uuid:
            continue
        begin = time - span if begin is None else begin
        course = courses.get(uuid)
        if course is None:
            if len(courses) == _GPUS_MAX:
                continue
            label = plain(row.get("index") or uuid)[:16]
            courses[uuid] = course = Course(uuid, label)
        course.times.append(max(0.0, time - begin))
        course.spans.append(span)
        for metric in METRICS.values():
            course.values.setdefault(metric.column, []).append(_number(row.get(metric.column)))
    found = list(courses.values())
    labels = [course.label for course in found]
    for course in found:
        if labels.count(course.label) > 1:  # the MIG devices of one GPU
            course.label += f" {plain(course.uuid)[:12]}"
    return found


def _rows(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    rows = csv.reader(lines)
    try:
        head = next(rows, [])
        for row in islice(rows, _ROWS_MAX):
            yield dict(zip(head, row))
    except csv.Error:
        pass  # a cell without end: nothing behind it can be told


# All GPUs have a row of one time.
@lru_cache(maxsize=1)
def _moment(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e18 else None


def chart(courses: Sequence[Course], metric: Metric, count: int) -> Chart | None:
    """Return the curves of a figure, each of about ``count`` points; None where nobody knows it."""
    lines = []
    for course in courses:
        share = count / max(len(course.times), 1)
        parts = [
            list(_thinned(part, math.ceil(share * len(part))))
            for part in _stretches(course, metric)
        ]
        if parts:
            lines.append((course.label, parts))
    if not lines:
        return None
    seconds = max(course.times[-1] for course in courses)
    most = max(value for _, parts in lines for part in parts for _, value in part)
    return Chart(
        metric.title, max(seconds, 1.0), max(metric.top or _round_above(most), most), lines
    )


def _stretches(course: Course, metric: Metric) -> Iterator[list[Point]]:
    """Yield a GPU's values without the gaps between."""
    line: list[Point] = []
    before = -math.inf
    for time, span, value in zip(course.times, course.spans, course.values[metric.column]):
        if line and (value is None or time - before > _GAP_SPANS * max(span, 1.0)):
            yield line
            line = []
        if value is not None:
            line.append((time, value / metric.divisor))
        before = time
    if line:
        yield line


def _thinned(line: Sequence[Point], count: int) -> Iterator[Point]:
    """Yield the means of neighbours."""
    step = math.ceil(len(line) / max(count, 1))
    for at in range(0, len(line), step):
        part = line[at : at + step]
        yield sum(time for time, _ in part) / len(part), sum(value for _, value in part) / len(part)


def _round_above(most: float) -> float:
    if most <= 0:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(most))
    return next(one * magnitude for one in _ROUND if one * magnitude >= most * (1 - 1e-9))


def time_ticks(seconds: float, count: int) -> list[tuple[float, str]]:
    """Return at most about ``count`` places on an axis of time, and what is written there."""
    least = seconds / max(count, 1)
    step = next((one for one in _DURATIONS if one >= least), math.ceil(least / _DAY) * _DAY)
    return [(step * at, _clock(step * at)) for at in range(int(seconds / step) + 1)]


def _clock(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s" if seconds else "0"
    if seconds < 3600:
        return f"{seconds // 60} min" if not seconds % 60 else f"{seconds / 60:.1f} min"
    if seconds < _DAY:
        return f"{seconds // 3600} h" if not seconds % 3600 else f"{seconds / 3600:.1f} h"
    return f"{seconds / _DAY:g} d"
