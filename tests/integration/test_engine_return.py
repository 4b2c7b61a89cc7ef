"""Jobs that go back into the queue, for another try or because the disk kept them from starting."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aitbcd.engine.attempt import AGAIN_MOST_S
from aitbcd.model import Job, JobState, Priority, Reason
from tests.integration.engines import Rig, engine_in, scenario, until

ONE_SLOT = "[slots]\ncpus = 1\n"
FAIL = ("sh", "-c", "exit 1")


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Keep changes from being committed for a while, as another program does with a lock."""
    other = sqlite3.connect(folder / "state/queue.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def says(rig: Rig, job: Job, words: str) -> None:
    async def look() -> bool:
        return words in (rig.engine.waiting(await rig.job(job)) or "")

    await until(f"{job.job_id} says: {words}", look)


@asynccontextmanager
async def put_back(rig: Rig, folder: Path, retries: int = 0) -> AsyncIterator[Job]:
    """Keep a job from starting, as a full disk does; it goes back when the block is left."""
    os.kill(rig.runs.launcher_pid, signal.SIGSTOP)
    job = await rig.reached(await rig.submit(*FAIL, retries=retries), JobState.ASSIGNED)
    next_one = await rig.submit("true")
    in_the_way = folder / f"state/run/{job.job_id}.1"
    in_the_way.touch()
    with unwritable(folder):
        os.kill(rig.runs.launcher_pid, signal.SIGCONT)
        await says(rig, next_one, "waits for the disk: no run folder")
        in_the_way.unlink()
        yield job
    assert (await rig.ended(next_one)).status is JobState.COMPLETED


async def gated(rig: Rig, folder: Path, retries: int) -> tuple[Job, Job, Path]:
    """Return a job as submitted, as it runs, and the pipe by which it is told to fail."""
    gate = folder / "gate"
    os.mkfifo(gate)
    job = await rig.submit("sh", "-c", f"read x < {gate}; exit 1", retries=retries)
    return job, await rig.reached(job, JobState.RUNNING), gate


@scenario
async def test_a_wish_to_cancel_reaches_a_job_that_is_about_to_be_tried_again(folder: Path) -> None:
    async with engine_in(folder) as rig:
        _, job, gate = await gated(rig, folder, retries=5)
        with unwritable(folder):
            gate.write_text("\n")
            await says(rig, job, "stores its results")
            canceling = asyncio.create_task(rig.engine.cancel(job, force=True))
            await asyncio.sleep(0)
        await canceling
        ended = await rig.ended(job)
        assert (ended.status, ended.attempt) == (JobState.CANCELED, 1)


@scenario
async def test_a_wish_to_cancel_reaches_a_job_that_the_disk_puts_back(folder: Path) -> None:
    async with engine_in(folder, ONE_SLOT) as rig:
        async with put_back(rig, folder) as job:
            canceling = asyncio.create_task(rig.engine.cancel(job, force=False))
            await asyncio.sleep(0)
        assert (await canceling).status is JobState.CANCELED
        assert (await rig.job(job)).status is JobState.CANCELED


@scenario
async def test_a_job_is_canceled_that_went_back_since_it_was_looked_up(folder: Path) -> None:
    async with engine_in(folder, ONE_SLOT) as rig:
        as_submitted, job, gate = await gated(rig, folder, retries=5)
        first = await rig.submit("sleep", "1000", priority=Priority.HIGH)
        gate.write_text("\n")
        await rig.reached(first, JobState.RUNNING)
        assert (as_submitted.attempt, (await rig.job(job)).attempt) == (0, 1)
        canceled = await rig.engine.cancel(as_submitted, force=False)
        assert canceled.status is JobState.CANCELED
        assert (await rig.job(job)).status is JobState.CANCELED


@scenario
async def test_what_the_disk_kept_from_starting_costs_no_retry(folder: Path) -> None:
    async with engine_in(folder, ONE_SLOT) as rig:
        async with put_back(rig, folder, retries=1) as job:
            pass
        assert (await rig.ended(job)).status is JobState.FAILED
        attempts = await rig.store.attempts(job.number)
        reasons = [each.ending and each.ending.reason for each in attempts]
        assert reasons == [Reason.STORAGE, Reason.EXIT, Reason.EXIT]


@scenario
async def test_jobs_that_are_put_back_together_wait_once(folder: Path) -> None:
    async with engine_in(folder, "[slots]\ncpus = 16\n") as rig:
        os.kill(rig.runs.launcher_pid, signal.SIGSTOP)
        jobs = [await rig.submit("true") for _ in range(16)]
        in_the_way = [folder / f"state/run/{job.job_id}.1" for job in jobs]
        for path in in_the_way:
            path.touch()

        async def are_asked_for() -> bool:
            return len(rig.runs._asked) == len(jobs)

        await until("all are to be started", are_asked_for)
        with unwritable(folder):
            os.kill(rig.runs.launcher_pid, signal.SIGCONT)
            # It answers in order.
            await rig.runs.remove("job_00000000", 1)
            for path in in_the_way:
                path.unlink()
        begin = time.monotonic()
        assert [(await rig.ended(job)).status for job in jobs] == [JobState.COMPLETED] * 16
        assert time.monotonic() - begin < AGAIN_MOST_S / 2
