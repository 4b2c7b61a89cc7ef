"""Each attempt is charged once for the time that it used, whatever became of it."""

from __future__ import annotations

import os
from pathlib import Path

from aitbcd.clock import Clock
from aitbcd.model import Attempt, Job, JobState
from tests.integration.engines import DAY_US, Rig, Time, engine_in, scenario

#: A price of a millionth for each microsecond of a core, so that figures are times.
CONFIG = "[pricing]\ncpu_hour = 3600\n"


def used_us(attempt: Attempt) -> int:
    assert attempt.ending is not None
    if attempt.started_at is None:
        return 0
    return attempt.ending.finished_at - attempt.started_at


async def charges(rig: Rig, job: Job) -> list[int]:
    """Return what each attempt was charged, after a look at what it should be."""
    job = await rig.job(job)
    attempts = await rig.store.attempts(job.number)
    found = []
    for attempt in attempts:
        assert attempt.ending is not None
        assert attempt.ending.charge_micro == job.cpus * used_us(attempt)
        found.append(attempt.ending.charge_micro)
    assert job.charge_micro == sum(found)
    return found


@scenario
async def test_a_completed_job_is_charged_for_its_time_on_its_cores(folder: Path) -> None:
    async with engine_in(folder, CONFIG) as rig:
        job = await rig.run("sleep", "0.1", cpus=3)
        assert job.status is JobState.COMPLETED
        (charge,) = await charges(rig, job)
        assert charge >= 3 * 100_000


@scenario
async def test_failed_and_canceled_jobs_are_charged_too(folder: Path) -> None:
    async with engine_in(folder, CONFIG) as rig:
        failed = await rig.run("sh", "-c", "exit 1")
        timed_out = await rig.run("sleep", "1000", timeout_s=0.1)
        running = await rig.reached(await rig.submit("sleep", "1000"), JobState.RUNNING)
        await rig.engine.cancel(running, force=True)
        canceled = await rig.ended(running)
        assert canceled.status is JobState.CANCELED
        for job in (failed, timed_out, canceled):
            (charge,) = await charges(rig, job)
            assert charge > 0


@scenario
async def test_every_attempt_is_charged_once(folder: Path) -> None:
    async with engine_in(folder, CONFIG) as rig:
        job = await rig.run("sh", "-c", "sleep 0.2; exit 1", retries=2)
        assert (job.status, job.attempt) == (JobState.FAILED, 3)
        found = await charges(rig, job)
        assert len(found) == 3
        # On a busy machine a start is noted a little after it was.
        assert min(found) >= 50_000


@scenario
async def test_what_never_ran_costs_nothing(folder: Path) -> None:
    async with engine_in(folder, CONFIG) as rig:
        holder = await rig.reached(await rig.submit("sleep", "1000", cpus=4), JobState.RUNNING)
        waiting = await rig.submit("true", cpus=4)
        await rig.engine.cancel(waiting, force=True)
        await rig.engine.cancel(holder, force=True)
        missing = await rig.run("/nonexistent")
        assert missing.status is JobState.FAILED
        for job in (await rig.ended(waiting), missing):
            assert job.charge_micro == 0
            assert sum(await charges(rig, job)) == 0


@scenario
async def test_time_that_nobody_ran_is_not_charged_after_a_power_cut(folder: Path) -> None:
    async with engine_in(folder, CONFIG) as rig:
        job = await rig.submit("sh", "-c", "echo here; sleep 1000")
        job = await rig.reached(job, JobState.RUNNING)
        log = rig.results / f".{job.job_id}" / "logs" / "stdout.log"
        assert job.started_at is not None
        last_us = job.started_at + 2_000_000
        os.utime(log, ns=(last_us * 1000, last_us * 1000))
    time = Time()
    time.pass_by(30 * DAY_US)
    async with engine_in(folder, CONFIG, clock=time.clock(), boot_id="next") as rig:
        lost = await rig.ended(job)
        assert (lost.status, lost.charge_micro) == (JobState.FAILED, 2_000_000)


@scenario
async def test_a_clock_that_jumps_ahead_costs_no_more_than_the_machine_has_run(
    folder: Path,
) -> None:
    uptime_us = 5_000_000
    clock = Clock(steady=lambda: uptime_us)
    async with engine_in(folder, CONFIG, clock=clock) as rig:
        job = await rig.reached(await rig.submit("sleep", "1000"), JobState.RUNNING)
        attempt = rig.engine._active[job.number]
        assert job.started_at is not None
        assert attempt._used_us(job.started_at + 100 * DAY_US) == uptime_us
        assert attempt._used_us(job.started_at + 3) == 3
        assert attempt._used_us(job.started_at - DAY_US) == 0
        await rig.engine.cancel(job, force=True)
        await rig.ended(job)
