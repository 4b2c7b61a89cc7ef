"""What waits goes on: whatever was in its way, and whoever waits before it for what never comes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from aitbcd.model import JobState
from tests.integration.engines import engine_in, scenario

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
