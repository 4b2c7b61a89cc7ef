"""Rows of samples: what they sum up to stays the same however often they are merged."""

from __future__ import annotations

import csv
import io
from functools import reduce
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aitbcd import samples
from aitbcd.devices import Gpu, GpuState, Process
from aitbcd.model import WHOLE, GpuUse
from aitbcd.samples import UNKNOWN, Row, halved, measure, merge

SECOND = 1_000_000
JOB = "job_7k3m9q2x"
GPU = Gpu(3, "GPU-a", "H100", None, 80 << 30, 5 << 30, GpuState.BUSY)


def made(gpu: Gpu, *, at: int = SECOND, span_us: int = SECOND, before_mj: int = UNKNOWN) -> Row:
    return measure(0, gpu, JOB, at=at, span_us=span_us, before_mj=before_mj)


def process(pid: int, memory: int | None, job_id: str | None) -> Process:
    return Process(pid, "ann", "python", memory, None, job_id, is_foreign=job_id is None)


figures = st.none() | st.floats(0, 1e6)
gpus = st.builds(
    Gpu,
    index=st.just(0),
    uuid=st.just("GPU-a"),
    name=st.just("H100"),
    bus_id=st.none(),
    memory_total=st.just(80 << 30),
    memory_used=st.integers(0, 80 << 30),
    state=st.just(GpuState.BUSY),
    power=figures,
    energy=figures,
    utilization=st.none() | st.integers(0, 100),
    temperature=st.none() | st.integers(-5, 120),
    sm_clock=st.none() | st.integers(0, 3000),
    memory_clock=st.none() | st.integers(0, 3000),
    processes=st.just(()) | st.tuples(st.just(process(7, 1 << 30, JOB))),
)
spans = st.integers(0, 100 * SECOND)
series = st.lists(st.tuples(gpus, spans, st.integers(0, 2), st.integers(-1, 10**9)), max_size=40)


def rows_of(looks: list[tuple[Gpu, int, int, int]]) -> list[Row]:
    return [
        measure(place, gpu, JOB, at=at * SECOND, span_us=span, before_mj=before)
        for at, (gpu, span, place, before) in enumerate(looks, 1)
    ]


def summed(rows: list[Row]) -> GpuUse:
    of = [[row for row in rows if row.gpu == place] for place in range(3)]
    totals = [reduce(merge, each) if each else None for each in of]
    return samples.summary(totals, interval_s=1, rows=0)


# Merging


@given(series)
def test_sums_means_and_peaks_are_the_same_however_often_it_is_halved(
    looks: list[tuple[Gpu, int, int, int]],
) -> None:
    rows = rows_of(looks)
    expected = summed(rows)
    counts = [len(rows)]
    for _ in range(4):
        rows = list(halved(rows))
        counts.append(len(rows))
        assert summed(rows) == expected
        for place in range(3):
            times = [row.at for row in rows if row.gpu == place]
            assert times == sorted(times)
    for longer, shorter in pairwise(counts):
        assert shorter <= (longer + 3) // 2


@given(series)
def test_rows_are_read_as_they_were_written(looks: list[tuple[Gpu, int, int, int]]) -> None:
    rows = rows_of(looks)
    data = samples.pack(rows)
    assert samples.unpack(data, 3) == rows
    # A write that was cut short costs the row that it cut, and what makes no sense what follows.
    assert samples.unpack(data + bytes(samples.RECORD_BYTES - 1), 3) == rows
    assert samples.unpack(data + bytes(3 * samples.RECORD_BYTES), 3) == rows
    if rows:
        assert samples.unpack(data[:-1], 3) == rows[:-1]


# Energy


def test_energy_is_what_the_counter_says_and_else_power_over_time() -> None:
    gpu = replace(GPU, power=300.0, energy=1000.0)
    assert made(gpu, before_mj=800_000).energy_mj == 200_000
    assert made(gpu, span_us=2 * SECOND).energy_mj == 600_000
    # It begins anew with the driver.
    assert made(gpu, before_mj=2_000_000).energy_mj == 300_000
    assert made(replace(gpu, energy=None), before_mj=800_000).energy_mj == 300_000
    assert made(replace(gpu, energy=None, power=None)).energy_mj == UNKNOWN


def test_a_share_of_a_gpu_is_told_its_part_of_the_energy() -> None:
    row = made(replace(GPU, power=300.0))
    use = samples.summary([row], interval_s=1, rows=1, share=WHOLE // 4)
    assert use.energy_j == 75


# What is not known


def test_what_the_driver_does_not_say_is_not_made_up() -> None:
    use = summed([made(GPU)])
    assert (use.utilization_mean, use.utilization_peak, use.idle_s) == (None, None, None)
    assert use.energy_j is None
    assert use.memory_peak == 5 << 30
    lines = list(samples.csv([made(GPU)], ["GPU-a"], [None]))
    assert lines[1] == f"1970-01-01T00:00:01.000Z,GPU-a,,,{5 << 30},0,,,,,,1\n"


@pytest.mark.parametrize("value", [1e300, -5.0, float(1 << 63)])
def test_a_driver_that_says_nonsense_harms_nothing(value: float) -> None:
    gpu = replace(GPU, power=value, energy=value, temperature=int(value), sm_clock=int(value))
    row = made(replace(gpu, utilization=400, memory_used=int(value)), before_mj=0)
    assert samples.unpack(samples.pack([row]), 1) == [row]
    assert row.peak == 100


# Memory


def test_memory_of_the_job_is_its_own_alone() -> None:
    mine, other = process(1, 2 << 30, JOB), process(2, 3 << 30, "job_00000000")
    both = replace(GPU, processes=(mine, process(3, 1 << 30, JOB), other, process(4, 9, None)))
    assert made(both).job_memory == 3 << 30
    assert made(replace(GPU, processes=(other,))).job_memory == 0
    unknown = replace(GPU, processes=(mine, process(5, None, JOB)))
    assert made(unknown).job_memory == UNKNOWN


# As CSV


def test_the_table_has_a_line_a_row_in_order_of_time() -> None:
    gpu = replace(
        GPU, utilization=50, power=299.5, temperature=61, sm_clock=1980, memory_clock=2619
    )
    late = measure(1, gpu, JOB, at=9 * SECOND, span_us=SECOND)
    early = merge(made(gpu), made(replace(gpu, utilization=99), at=2 * SECOND))
    text = "".join(samples.csv([late, early], ["GPU-a", "GPU-b"], [3, 4]))
    first, second = csv.DictReader(io.StringIO(text))
    assert first == {
        "time": "1970-01-01T00:00:02.000Z", "gpu": "GPU-a", "index": "3", "utilization": "74.5",
        "memory_used": str(5 << 30), "job_memory": "0", "power": "299.5", "temperature": "61",
        "sm_clock": "1980", "memory_clock": "2619", "utilization_peak": "99", "seconds": "2",
    }  # fmt: skip
    assert (second["gpu"], second["index"], second["utilization"]) == ("GPU-b", "4", "50")
