"""What waits goes on: whatever was in its way, and whoever waits before it for what never comes."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aitbcd.model import JobState
from tests.integration.engines import Rig, engine_in, scenario, until

FOUR, TWO = "[slots]\ncpus = 4\n", "[slots]\ncpus = 2\n"


@scenario
async def test_a_job_that_asks_for_more_than_there_is_now_is_in_nobodys_way(folder: Path) -> None:
    async with engine_in(folder, FOUR) as rig:
        holder = await rig.reached(await rig.submit("sleep", "1000", cpus=4), JobState.RUNNING)
        large = await rig.submit("true", cpus=4)
        small = await rig.submit("true")
    async with engine_in(folder, TWO) as rig:
        await rig.engine.cancel(await rig.job(holder), force=True)
        assert (await rig.ended(small)).status is JobState.COMPLETED
        assert rig.engine.waiting(await rig.job(large)) == (
            "asks for 4 CPU cores and jobs share 2 here ([slots] in the configuration)"
        )
        assert rig.engine.awaited(await rig.job(large)) == []
    async with engine_in(folder, FOUR) as rig:
        assert (await rig.ended(large)).status is JobState.COMPLETED


@scenario
async def test_one_that_was_assigned_when_there_was_more_runs(folder: Path) -> None:
    async with engine_in(folder, FOUR) as rig:
        await rig.run("true")
        os.kill(rig.runs.launcher_pid, signal.SIGSTOP)
        large = await rig.reached(await rig.submit("true", cpus=4), JobState.ASSIGNED)
        small = await rig.submit("true")
    async with engine_in(folder, TWO) as rig:
        assert (await rig.ended(large)).status is JobState.COMPLETED
        assert (await rig.ended(small)).status is JobState.COMPLETED


def rename(folder: Path, old: str, new: str) -> None:
    with closing(sqlite3.connect(folder / "state/queue.db")) as store:
        store.execute(f"ALTER TABLE {old} RENAME TO {new}")


def test_a_queue_that_could_not_be_read_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(folder: Path) -> None:
        async with engine_in(folder, FOUR) as rig:
            await rig.reached(await rig.submit("sleep", "1000", cpus=4), JobState.RUNNING)
            waiting = await rig.submit("true", cpus=4)
        async with engine_in(folder, TWO) as rig:
            await until("nothing runs whose end would have it read", lambda: idle(rig))
        rename(folder, "specs", "gone")
        async with engine_in(folder, FOUR) as rig:
            await until("it was tried", lambda: is_said(caplog, "could not be read"))
            rename(folder, "gone", "specs")
            assert (await rig.ended(waiting)).status is JobState.COMPLETED

    scenario(test)(tmp_path)


async def idle(rig: Rig) -> bool:
    return rig.engine.active_count == 0


async def is_said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return words in caplog.text


@scenario
async def test_a_wish_to_cancel_that_the_launcher_hears_too_late_leaves_nothing(
    folder: Path,
) -> None:
    async with engine_in(folder, FOUR) as rig:
        job = await rig.reached(await rig.submit("sleep", "0.05"), JobState.RUNNING)
        attempt = rig.engine._active[job.number]
        await rig.ended(job)
        await until("nobody attends to it", lambda: idle(rig))
        await attempt._bury()
        assert list((folder / "state/run").glob("job_*")) == []
