"""Results go when they have expired: not before, not by a wrong clock, not while they are read."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from aitbcd.clock import now_us
from aitbcd.errors import Forbidden, WrongState
from aitbcd.model import Job, JobState, ResultsState
from tests.integration.engines import DAY_US, ME, SECOND_US, Rig, Time, engine_in, scenario, until

SHORT = '[plans.free]\nretention = "1s"\n'


def results_of(job: Job) -> ResultsState:
    assert job.ending is not None
    return job.ending.results


async def stopped(rig: Rig) -> str:
    async def look() -> str | None:
        stop = rig.engine.retention.status()
        return stop.reason if stop else None

    return await until("the sweep stops", look)


@scenario
async def test_results_go_at_their_time_and_the_record_stays(folder: Path) -> None:
    async with engine_in(folder, SHORT) as rig:
        job = await rig.run("true")
        assert job.expires_at is not None
        assert job.ending is not None
        assert job.expires_at == job.ending.finished_at + SECOND_US
        assert rig.package(job).exists()
        expired = await rig.expired(job)
        assert now_us() >= job.expires_at
        await rig.gone(job)
        assert (expired.status, expired.expires_at) == (JobState.COMPLETED, job.expires_at)
        assert expired.ending is not None
        assert expired.ending.exit_code == 0
        assert await rig.store.usage(ME.uid) == 0


@scenario
async def test_what_expires_later_is_kept_meanwhile(folder: Path) -> None:
    async with engine_in(folder) as rig:
        job = await rig.run("true")
        assert job.expires_at is not None
        assert job.ending is not None
        assert job.expires_at - job.ending.finished_at == 7 * DAY_US
        page = await rig.engine.retention.preview(ME.uid)
        assert [(each.number, each.expires_at) for each in page.jobs] == [
            (job.number, job.expires_at)
        ]
    time = Time()
    time.pass_by(7 * DAY_US - 100 * SECOND_US)
    async with engine_in(folder, clock=time.clock()) as rig:
        await rig.run("true")
        assert results_of(await rig.job(job)) is ResultsState.KEPT
        # A hundred seconds later, of which a test has none: the clock is told to be there.
        time.pass_by(100 * SECOND_US)
        rig.engine.retention.wake()
        await rig.expired(job)
        await rig.gone(job)


@scenario
async def test_what_expired_while_nothing_ran_goes_at_the_next_start(folder: Path) -> None:
    async with engine_in(folder) as rig:
        jobs = [await rig.run("true") for _ in range(3)]
    time = Time()
    time.pass_by(8 * DAY_US)
    async with engine_in(folder, clock=time.clock()) as rig:
        for job in jobs:
            await rig.expired(job)
            await rig.gone(job)


@scenario
async def test_a_removal_that_a_crash_broke_off_is_finished(folder: Path) -> None:
    async with engine_in(folder) as rig:
        jobs = [await rig.run("true") for _ in range(3)]
    time = Time()
    time.pass_by(8 * DAY_US)
    async with engine_in(folder) as rig:
        # Given up, and killed before anything was removed.
        numbers = [job.number for job in jobs]
        assert await rig.store.expire(numbers, time.clock().now()) == numbers
        assert all(rig.package(job).exists() for job in jobs)
    async with engine_in(folder) as rig:
        for job in jobs:
            await rig.gone(job)


@scenario
async def test_a_package_that_is_read_stays_until_it_is_read(folder: Path) -> None:
    async with engine_in(folder, SHORT) as rig:
        job = await rig.run("true")
        other = await rig.run("true")
        reader = os.open(rig.package(job), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(reader, fcntl.LOCK_SH)
            await rig.expired(job)
            await rig.expired(other)

            async def others_is_gone() -> bool:
                return not rig.package(other).exists()

            await until("the other one goes", others_is_gone)
            assert (rig.package(job) / "output.json").exists()
        finally:
            os.close(reader)
        await rig.gone(job)


# -- the clock ----------------------------------------------------------------------------------


@scenario
async def test_a_clock_that_jumps_deletes_nothing_until_somebody_says_so(folder: Path) -> None:
    time = Time()
    async with engine_in(folder, clock=time.clock()) as rig:
        job = await rig.run("true")
        time.jump(400 * DAY_US)
        rig.engine.retention.wake()
        assert "set ahead by 400.0 days" in await stopped(rig)
        assert rig.package(job).exists()
    # Nor does the next daemon, with whatever clock.
    async with engine_in(folder, clock=time.clock()) as rig:
        assert "set ahead" in await stopped(rig)
        assert results_of(await rig.job(job)) is ResultsState.KEPT
        page = await rig.engine.retention.preview(None)
        assert [each.number for each in page.jobs] == [job.number]
        await rig.engine.retention.resume(ME)
        assert rig.engine.retention.status() is None
        await rig.expired(job)
        await rig.gone(job)
    async with engine_in(folder, clock=time.clock()) as rig:
        await rig.run("true")
        assert rig.engine.retention.status() is None


@scenario
async def test_a_clock_that_jumped_while_nothing_ran_is_found_out(folder: Path) -> None:
    async with engine_in(folder) as rig:
        job = await rig.run("true")
    time = Time()
    time.jump(30 * DAY_US)
    async with engine_in(folder, clock=time.clock()) as rig:
        assert "set ahead by 30.0 days" in await stopped(rig)
        assert results_of(await rig.job(job)) is ResultsState.KEPT


@scenario
async def test_after_a_reboot_a_clock_before_the_newest_event_is_found_out(folder: Path) -> None:
    async with engine_in(folder) as rig:
        await rig.run("true")
    time = Time()
    time.jump(-3 * DAY_US)
    async with engine_in(folder, clock=time.clock(), boot_id="next") as rig:
        assert "newest event" in await stopped(rig)
        # It is right: the one before was wrong.
        await rig.engine.retention.resume(ME)
        rig.engine.retention.wake()
    async with engine_in(folder, clock=time.clock(), boot_id="next") as rig:
        await rig.run("true")
        assert rig.engine.retention.status() is None


@scenario
async def test_a_job_that_ends_by_a_clock_of_long_ago_is_not_old_for_that(folder: Path) -> None:
    async with engine_in(folder) as rig:
        first = await rig.run("true")
        assert first.ending is not None
        terms = rig.engine._terms
        long_ago = first.ending.finished_at - 3000 * DAY_US
        assert await terms.expires_at(first, long_ago) == terms.known_at + 7 * DAY_US
        assert terms.known_at >= first.ending.finished_at


# -- keeping them longer ------------------------------------------------------------------------

KEEPING = """
[plans.free]
retention = "1d"
keep = "10d"
[plans.fixed]
retention = "1d"
keep = "0"
"""


@scenario
async def test_results_are_kept_as_long_as_the_plan_allows(folder: Path) -> None:
    time = Time()
    async with engine_in(folder, KEEPING, clock=time.clock()) as rig:
        job = await rig.run("true")
        kept = await rig.engine.keep(job, None)
        assert kept.expires_at is not None
        assert 10 * DAY_US - 60 * SECOND_US < kept.expires_at - now_us() <= 10 * DAY_US
        assert (await rig.job(job)).expires_at == kept.expires_at
        time.pass_by(2 * DAY_US)
        rig.engine.retention.wake()
        other = await rig.run("true")
        assert results_of(await rig.job(job)) is ResultsState.KEPT
        later = kept.expires_at + DAY_US
        assert (await rig.engine.keep(kept, later)).expires_at == later
        time.pass_by(10 * DAY_US)
        rig.engine.retention.wake()
        await rig.expired(other)
        await rig.expired(job)


@scenario
async def test_what_cannot_be_kept_is_said_and_changes_nothing(folder: Path) -> None:
    async with engine_in(folder, KEEPING) as rig:
        job = await rig.run("true")
        with pytest.raises(Forbidden, match="'free' lets results be kept until") as refused:
            await rig.engine.keep(job, now_us() + 11 * DAY_US)
        assert refused.value.fields["plan"] == "free"
        with pytest.raises(WrongState, match="already"):
            await rig.engine.keep(job, now_us())
        waiting = await rig.submit("sleep", "1000")
        with pytest.raises(WrongState, match="from its end on"):
            await rig.engine.keep(waiting, None)
        await rig.engine.cancel(waiting, force=True)
        assert (await rig.job(job)).expires_at == job.expires_at


@scenario
async def test_a_plan_may_allow_no_keeping(folder: Path) -> None:
    config = KEEPING + '[users.me]\nplan = "fixed"\n'
    async with engine_in(folder, config) as rig:
        job = await rig.run("true")
        with pytest.raises(Forbidden, match="'fixed' does not let results be kept longer"):
            await rig.engine.keep(job, None)


@scenario
async def test_what_has_expired_cannot_be_kept(folder: Path) -> None:
    async with engine_in(folder, SHORT) as rig:
        job = await rig.run("true")
        expired = await rig.expired(job)
        with pytest.raises(WrongState, match="they expired at"):
            await rig.engine.keep(expired, None)
        # Nor by somebody who asked before they had.
        with pytest.raises(WrongState):
            await rig.engine.keep(job, None)
