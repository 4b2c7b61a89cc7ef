"""A series of samples in a real file: it goes on after a kill, is bounded, and a full disk is none
of the job's business."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aitbcd import samples, series
from aitbcd.model import WHOLE, GpuUse
from aitbcd.samples import Row
from aitbcd.series import Series

SECOND = 1_000_000
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: it mounts a disk")


def row(at: int, gpu: int = 0, busy: int = 50) -> Row:
    times = (at * SECOND, SECOND, SECOND)
    return Row(
        *times, busy * SECOND, 0, 1 << 30, 0, 300_000, -1, 300_000, gpu, busy, 60, 1980, 2619
    )


def use(of: Series) -> GpuUse:
    found = of.use(WHOLE)
    assert found is not None
    return found


def seconds(rows: list[Row]) -> list[int]:
    return sorted(one.at // SECOND for one in rows)


def test_what_was_written_is_there_after_a_kill_and_goes_on(tmp_path: Path) -> None:
    first = Series(tmp_path / "kept/job", 2, 1.0)
    assert first.use(WHOLE) is None
    for at in range(1, 6):
        first.add(row(at))
        first.add(row(at, 1, 10))
    first.write()
    before = use(first)
    first.add(row(6, 0, 100))
    # Killed here.
    second = Series(tmp_path / "kept/job", 2, 5.0)
    assert use(second) == before
    second.add(row(7))
    second.write()
    assert seconds(second.read()) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 7]
    last = second.last(0)
    assert last is not None
    assert (last.at, last.span_us) == (7 * SECOND, 6 * SECOND)


def test_it_is_bounded_and_sums_up_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "ROWS_MAX", 16)
    kept = Series(tmp_path / "job", 1, 1.0)
    for at in range(1, 1001):
        kept.add(row(at, busy=at % 100))
        if kept.is_full:
            kept.tidy()
        if at % 5 == 0:
            kept.write()
            size = (tmp_path / "job").stat().st_size
            assert size <= 200 + 18 * samples.RECORD_BYTES
            # At any time a kill costs no more than what came since.
            left = Series(tmp_path / "job", 1, 1.0)
            assert (use(left).sampled_s, use(left).utilization_peak) == (at, min(at, 99))
            left.close()
    found = use(kept)
    assert (found.interval_s, found.sampled_s, found.energy_j) == (64, 1000, 300_000)
    assert found.utilization_mean == 49.5
    assert len(kept.read()) == found.rows <= 16


def test_a_week_is_kept_in_as_many_rows_as_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In minutes: seconds would be the same, and take a minute.
    monkeypatch.setattr(series, "ROWS_MAX", 60)
    week, gpus = 7 * 24 * 60, 8
    kept = Series(tmp_path / "job", gpus, 60.0)
    for at in range(1, week + 1):
        for gpu in range(gpus):
            kept.add(row(at, gpu, 100 if (at, gpu) == (5000, 3) else 10 * (at % 2)))
        if kept.is_full:
            kept.tidy()
    kept.write()
    found = use(kept)
    assert (found.interval_s, found.rows) == (256 * 60, gpus * math.ceil(week / 256))
    assert (found.utilization_mean, found.utilization_peak) == (5, 100)
    assert sum(one.peak == 100 for one in kept.read()) == 1


def test_one_that_is_closed_makes_no_file_again(tmp_path: Path) -> None:
    kept = Series(tmp_path / "job", 1, 1.0)
    kept.add(row(1))
    kept.write()
    kept.tidy()
    kept.add(row(2))
    kept.close()
    (tmp_path / "job").unlink()
    kept.write()
    kept.tidy()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> None:
    with (disk / "full").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


@needs_root
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_full_disk_costs_samples_at_most(
    disk: Path, is_begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Series(disk / "samples/job", 1, 1.0)
    if is_begun:
        kept.add(row(1))
        kept.write()
    fill(disk)
    for at in range(2, 400):
        kept.add(row(at))
        kept.write()
    assert use(kept).sampled_s == 398 + is_begun
    assert seconds(kept.read()) == list(range(2 - is_begun, 400))
    assert len([record for record in caplog.records if "samples" in record.message]) == 1
    (disk / "full").unlink()
    kept.write()
    kept.close()
    assert use(Series(disk / "samples/job", 1, 1.0)).sampled_s == 398 + is_begun


@needs_root
def test_a_disk_that_fills_up_leaves_what_was_written(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "_UNWRITTEN_MAX", 16)
    monkeypatch.setattr(series, "ROWS_MAX", 300)
    kept = Series(disk / "job", 1, 1.0)
    for at in range(1, 251):
        kept.add(row(at))
    kept.write()
    fill(disk)
    for at in range(251, 2000):
        kept.add(row(at))
        if kept.is_full:
            kept.tidy()
        kept.write()
        assert len(kept.read()) <= 300 + 16
    assert use(kept).sampled_s == 1999
    assert seconds(kept.read())[:250] == list(range(1, 251))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.booleans())
def test_a_file_of_nonsense_is_begun_anew(tmp_path: Path, data: bytes, has_head: bool) -> None:
    path = tmp_path / "job"
    head = series._HEAD.pack(series._MAGIC, 1, 1000) if has_head else b""
    path.write_bytes(head + data)
    kept = Series(path, 1, 1.0)
    known = kept.use(WHOLE)
    kept.add(row(1 << 30))
    kept.write()
    assert len(kept.read()) == (known.rows if known else 0) + 1
    kept.close()
    assert Series(path, 1, 1.0).use(WHOLE) is not None


def test_a_folder_that_cannot_be_used_costs_samples_only(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("a file")
    kept = Series(tmp_path / "samples/job", 1, 1.0)
    kept.add(row(1))
    kept.write()
    assert seconds(kept.read()) == [1]
