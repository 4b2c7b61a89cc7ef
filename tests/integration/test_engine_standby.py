"""Jobs that are assigned ahead in a stream of short ones: they start in order, and only then."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aitbcd.engine import standby
from aitbcd.engine.standby import AHEAD, STREAM
from aitbcd.model import Job, JobState, Reason
from tests.integration.engines import Rig, engine_in, scenario
from tests.service import DEADLINE_S

STANDS_BY = "starts when a job before it has ended"
ONE_SLOT = "[slots]\ncpus = 1\n"


async def stream_then_long(
    rig: Rig, folder: Path, *next_ones: str, gone: int = 0
) -> tuple[Job, list[Job]]:
    """Let short jobs run, then one that lasts, with others behind it; the first stands by.

    Args:
        gone: before those, so many that are no longer in the queue when they are to stand by.
    """
    gate = folder / "gate"
    os.mkfifo(gate)
    first = await rig.submit("sh", "-c", f"read x < {gate}")
    await rig.reached(first, JobState.RUNNING)
    for _ in range(20):
        await rig.submit("true")
    long = await rig.submit("sleep", "1000")
    for _ in range(gone):
        _take_away(folder, await rig.submit("true"))
    behind = [await rig.submit("touch", str(folder / name)) for name in next_ones]
    for _ in range(STREAM):
        await rig.submit("true")
    with pytest.MonkeyPatch.context() as patch:
        # On a busy machine nothing is short.
        patch.setattr(standby, "SHORT_S", DEADLINE_S)
        gate.write_text("go\n")
        await rig.reached(long, JobState.RUNNING)
        # Read once more, one that was gone may be the only one that stands by.
        if not gone:
            await rig.reached(behind[0], JobState.ASSIGNED)
    return long, behind


@scenario
async def test_who_stands_by_starts_in_order_when_there_is_room(folder: Path) -> None:
    async with engine_in(folder, ONE_SLOT) as rig:
        more = [str(number) for number in range(AHEAD)]
        long, (standing, *_, other) = await stream_then_long(rig, folder, "standing", *more)
        assert (await rig.job(other)).status is JobState.PENDING
        assert rig.engine.waiting(await rig.job(standing)) == STANDS_BY
        assert not (folder / "standing").exists()
        await rig.engine.cancel(await rig.job(long), force=True)
        ends = [await rig.ended(job) for job in (standing, other)]
        assert [job.status for job in ends] == [JobState.COMPLETED] * 2
        assert ends[0].started_at is not None
        assert ends[1].started_at is not None
        assert ends[0].started_at < ends[1].started_at


@scenario
async def test_who_stands_by_is_canceled_at_once_and_never_runs(folder: Path) -> None:
    async with engine_in(folder, ONE_SLOT) as rig:
        long, (standing, other) = await stream_then_long(rig, folder, "standing", "other")
        await rig.engine.cancel(await rig.job(standing), force=False)
        ended = await rig.ended(standing)
        assert ended.status is JobState.CANCELED
        assert ended.ending is not None
        assert ended.ending.reason is Reason.CANCELED
        assert (await rig.job(long)).status is JobState.RUNNING
        await rig.engine.cancel(await rig.job(long), force=True)
        assert (await rig.ended(other)).status is JobState.COMPLETED
        assert not (folder / "standing").exists()


def _take_away(folder: Path, job: Job) -> None:
    """Change a job behind the back of the queue, as it is when it was read before it ended."""
    with closing(sqlite3.connect(folder / "state/queue.db")) as store, store:
        store.execute("UPDATE jobs SET attempt = 1 WHERE number = ?", (job.number,))


@scenario
async def test_who_cannot_be_assigned_ahead_takes_nobody_s_room(folder: Path) -> None:
    async with engine_in(folder, ONE_SLOT) as rig:
        long, (standing,) = await stream_then_long(rig, folder, "standing", gone=2)
        await rig.engine.cancel(await rig.job(long), force=True)
        assert (await rig.ended(standing)).status is JobState.COMPLETED
        assert (await rig.run("true")).status is JobState.COMPLETED


@scenario
async def test_who_stood_by_waits_for_room_after_a_restart_too(folder: Path) -> None:
    async with engine_in(folder, ONE_SLOT) as rig:
        long, (standing,) = await stream_then_long(rig, folder, "standing")
    async with engine_in(folder, ONE_SLOT) as rig:
        assert (await rig.job(long)).status is JobState.RUNNING
        assert (await rig.job(standing)).status is JobState.ASSIGNED
        assert rig.engine.waiting(await rig.job(standing)) == STANDS_BY
        later = await rig.submit("touch", str(folder / "later"))
        await rig.engine.cancel(await rig.job(long), force=True)
        assert (await rig.ended(standing)).status is JobState.COMPLETED
        assert (await rig.ended(later)).status is JobState.COMPLETED
        assert (folder / "standing").stat().st_mtime_ns <= (folder / "later").stat().st_mtime_ns


@scenario
async def test_nobody_stands_by_behind_jobs_that_last(folder: Path) -> None:
    async with engine_in(folder, ONE_SLOT) as rig:
        for _ in range(10):
            await rig.run("true")
        await rig.run("sleep", "0.06")
        long = await rig.submit("sleep", "1000")
        waiting = await rig.submit("true")
        await rig.reached(long, JobState.RUNNING)
        assert (await rig.job(waiting)).status is JobState.PENDING
        await rig.engine.cancel(await rig.job(long), force=True)
        assert (await rig.ended(waiting)).status is JobState.COMPLETED
