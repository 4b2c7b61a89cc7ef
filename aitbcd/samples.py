"""Samples of an attempt's GPUs as rows: made, merged, summed up, as bytes and as CSV. Pure.

A row says what one GPU did over a span of time. Two that follow each other make one: spans, busy
and idle time and energy add up, peaks stay peaks, the rest is the mean over time. So a series that
is too long is made half as long, as often as it takes, and what it sums up to stays the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from aitbcd.devices import Gpu
from aitbcd.model import WHOLE, GpuUse

#: A GPU that is used less than this (percent) is idle: a display or a monitor uses some.
IDLE_BELOW = 5
#: What a row says of a figure that the driver does not know.
UNKNOWN = -1
#: The first line of ``logs/gpu.csv``.
HEADER = (
    "time,gpu,index,utilization,memory_used,job_memory,power,temperature,sm_clock,memory_clock,"
    "utilization_peak,seconds\n"
)
_RECORD = struct.Struct("<9qi6h")
RECORD_BYTES = _RECORD.size
_MOST_64, _MOST_32, _MOST_16 = (1 << 62), (1 << 31) - 1, (1 << 15) - 1
_EPOCH = datetime.fromtimestamp(0, UTC)


class Row(NamedTuple):
    """One GPU over one span, all whole numbers; ``UNKNOWN`` where the driver does not say."""

    #: When the span ends, microseconds since the epoch.
    at: int
    span_us: int
    #: How much of it the driver said how busy the GPU was.
    measured_us: int
    #: The utilization (percent) times the time.
    busy: int
    #: Time in which it was idle.
    idle_us: int
    #: Bytes, the most in the span: of the GPU, and of the job's processes there.
    memory_used: int
    job_memory: int
    #: Millijoules used in the span; what the driver's counter of them said at its end.
    energy_mj: int
    counter_mj: int
    #: Milliwatts, the mean.
    power_mw: int
    #: Which of the attempt's GPUs.
    gpu: int
    #: Percent, the most in the span.
    peak: int
    #: Degrees Celsius, the most.
    temperature: int
    #: MHz, the mean.
    sm_clock: int
    memory_clock: int
    #: Pads the record.
    spare: int = 0


def measure(
    place: int, gpu: Gpu, job_id: str, *, at: int, span_us: int, before_mj: int = UNKNOWN
) -> Row:
    """Return the row of a GPU that was looked at ``at`` the end of a span.

    Args:
        place: which of the attempt's GPUs it is.
        before_mj: what its counter of energy said before the span.
    """
    known = gpu.utilization is not None
    used = min(gpu.utilization or 0, 100)
    power_mw = _fit(gpu.power and gpu.power * 1000, _MOST_32)
    now_mj = counter_mj(gpu)
    energy_mj = now_mj - before_mj
    if UNKNOWN in (now_mj, before_mj) or energy_mj < 0:
        # No counter, or one that has begun anew with the driver: power over time.
        energy_mj = UNKNOWN if power_mw == UNKNOWN else power_mw * span_us // 1_000_000
    return Row(
        at=at,
        span_us=span_us,
        measured_us=span_us if known else 0,
        busy=used * span_us,
        idle_us=span_us if known and used < IDLE_BELOW else 0,
        memory_used=_fit(gpu.memory_used, _MOST_64),
        job_memory=_memory_of(gpu, job_id),
        energy_mj=energy_mj,
        counter_mj=now_mj,
        power_mw=power_mw,
        gpu=place,
        peak=used if known else UNKNOWN,
        temperature=_fit(gpu.temperature, _MOST_16),
        sm_clock=_fit(gpu.sm_clock, _MOST_16),
        memory_clock=_fit(gpu.memory_clock, _MOST_16),
    )


def counter_mj(gpu: Gpu) -> int:
    """Return what a GPU's counter of energy says."""
    return _fit(gpu.energy and gpu.energy * 1000, _MOST_64)


def _fit(value: float | None, most: int) -> int:
    return UNKNOWN if value is None else max(0, min(int(value), most))


def _memory_of(gpu: Gpu, job_id: str) -> int:
    held = [one.memory for one in gpu.processes if one.job_id == job_id]
    return UNKNOWN if None in held else _fit(sum(filter(None, held)), _MOST_64)


def merge(one: Row, later: Row) -> Row:
    """Return two rows of a GPU that follow each other as one."""
    spans = one.span_us, later.span_us
    return Row(
        later.at,
        sum(spans),
        one.measured_us + later.measured_us,
        one.busy + later.busy,
        one.idle_us + later.idle_us,
        max(one.memory_used, later.memory_used),
        max(one.job_memory, later.job_memory),
        _sum(one.energy_mj, later.energy_mj),
        one.counter_mj if later.counter_mj == UNKNOWN else later.counter_mj,
        _mean(one.power_mw, later.power_mw, *spans),
        later.gpu,
        max(one.peak, later.peak),
        max(one.temperature, later.temperature),
        _mean(one.sm_clock, later.sm_clock, *spans),
        _mean(one.memory_clock, later.memory_clock, *spans),
    )


def _sum(one: int, other: int) -> int:
    return UNKNOWN if one == other == UNKNOWN else max(one, 0) + max(other, 0)


def _mean(one: int, other: int, its_us: int, others_us: int) -> int:
    if UNKNOWN in (one, other):
        return max(one, other)
    if not its_us + others_us:
        return (one + other) // 2
    return (one * its_us + other * others_us) // (its_us + others_us)


def halved(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows in order of time, of each GPU two as one."""
    firsts: dict[int, Row] = {}
    for row in rows:
        first = firsts.pop(row.gpu, None)
        if first is None:
            firsts[row.gpu] = row
        else:
            yield merge(first, row)
    yield from firsts.values()


def pack(rows: Iterable[Row]) -> bytes:
    return b"".join([_RECORD.pack(*row) for row in rows])


def unpack(data: bytes, gpus: int) -> list[Row]:
    """Return the rows in what was written, up to where it makes no sense: a crash can leave that.

    Args:
        gpus: how many GPUs the attempt has.
    """
    whole = memoryview(data)[: len(data) // RECORD_BYTES * RECORD_BYTES]
    rows = []
    for fields in _RECORD.iter_unpack(whole):
        row = Row(*fields)
        if row.at <= 0 or row.span_us < 0 or not 0 <= row.gpu < gpus:
            break
        rows.append(row)
    return rows


def summary(
    totals: Sequence[Row | None], *, interval_s: float, rows: int, share: int = WHOLE
) -> GpuUse:
    """Return what the GPUs of an attempt did, from the rows of each merged into one.

    Args:
        rows: how many there are.
        share: millionths of the GPUs that the attempt has, and so of the energy that they use.
    """
    known = [row for row in totals if row is not None]
    measured_us = sum(row.measured_us for row in known)
    energy = [row.energy_mj for row in known if row.energy_mj != UNKNOWN]
    busy = sum(row.busy for row in known)
    return GpuUse(
        interval_s=interval_s,
        rows=rows,
        sampled_s=sum(row.span_us for row in known) / 1e6,
        utilization_mean=round(busy / measured_us, 1) if measured_us else None,
        utilization_peak=_most(row.peak for row in known),
        memory_peak=_most(row.memory_used for row in known),
        job_memory_peak=_most(row.job_memory for row in known),
        energy_j=sum(energy) * share // WHOLE / 1000 if energy else None,
        idle_s=sum(row.idle_us for row in known) / 1e6 if measured_us else None,
    )


def _most(values: Iterable[int]) -> int | None:
    most = max(values, default=UNKNOWN)
    return None if most == UNKNOWN else most


def csv(rows: Iterable[Row], uuids: Sequence[str], indices: Sequence[int | None]) -> Iterator[str]:
    """Yield ``logs/gpu.csv``, a line a row, in order of time and of the attempt's GPUs."""
    names = [
        f"{uuid},{'' if index is None else index}"
        for uuid, index in zip(uuids, indices, strict=True)
    ]
    yield HEADER
    at, time = 0, ""
    for row in sorted(rows, key=lambda row: (row.at, row.gpu)):
        if row.at != at:
            at, time = row.at, _time(row.at)
        mean = row.busy / row.measured_us if row.measured_us else row.peak
        yield (
            f"{time},{names[row.gpu]},{_shown(mean)},{_shown(row.memory_used)},"
            f"{_shown(row.job_memory)},{_shown(row.power_mw, 1000)},{_shown(row.temperature)},"
            f"{_shown(row.sm_clock)},{_shown(row.memory_clock)},{_shown(row.peak)},"
            f"{round(row.span_us / 1e6, 3):g}\n"
        )


def _time(at: int) -> str:
    """Return RFC 3339 with milliseconds."""
    text = (_EPOCH + timedelta(milliseconds=at // 1000)).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _shown(value: float, unit: int = 1) -> str:
    if value == UNKNOWN:
        return ""
    return str(value) if unit == 1 and isinstance(value, int) else f"{value / unit:g}"
