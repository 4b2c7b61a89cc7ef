"""The GPUs of running jobs are sampled, by the scripted driver's curves; others are let be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from aitbcd.devices import Gpu
from aitbcd.model import JobState
from tests.bench import proc
from tests.driver import GIB, Driver, gpu, process, program, uuid_of
from tests.integration.engines import Rig, engine_in, until
from tests.service import children

QUICK = '[gpus]\nsample = "0.1s"\nretry = "0.1s"\nforeign_grace = "0.1s"\n'
SLEEP = ("sleep", "1000")


@pytest.fixture(autouse=True)
def found_by_the_loader(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in driver.environ.items():
        monkeypatch.setenv(name, value)


def rig_in(folder: Path, config: str = QUICK) -> AbstractAsyncContextManager[Rig]:
    return engine_in(folder, config)


def go(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def probe() -> int:
    (found,) = (
        pid
        for pid in children(os.getpid())
        if b"aitbcd.gpus.probe" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return found


# When


def test_gpus_of_running_jobs_are_sampled_and_others_are_not(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0, utilization=40), gpu(1, utilization=7))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=1, gpu=("0",))
            await rig.reached(job, JobState.RUNNING)

            async def is_sampled() -> bool:
                return rig.gpus.recent(uuid_of(0)) == [40]

            await until("it is sampled", is_sampled)
            assert rig.gpus.recent(uuid_of(1)) == []
            driver.write(gpu(0, utilization=90), gpu(1))

            async def is_known() -> bool:
                found = rig.gpus.inventory.find(uuid_of(0))
                return found is not None and found.utilization == 90

            await until("nobody has to ask", is_known)

    go(scenario())


@pytest.mark.parametrize("sample", ["0", "0.1s"])
def test_nothing_wakes_while_there_is_nothing_to_sample(
    driver: Driver, tmp_path: Path, sample: str
) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path, QUICK.replace("0.1s", sample, 1)) as rig:
            await rig.run("true", gpus=1)
            jobs = [await rig.submit(*SLEEP)]
            if sample == "0":
                jobs.append(await rig.submit(*SLEEP, gpus=1))
            for job in jobs:
                await rig.reached(job, JobState.RUNNING)

            async def is_at_rest() -> bool:
                before = proc.switches(probe())
                await asyncio.sleep(0.5)
                return proc.switches(probe()) == before

            await until("the probe sleeps", is_at_rest)
            assert rig.gpus.recent(uuid_of(0)) == []

    go(scenario())


# Who is there


def test_a_process_that_comes_to_a_jobs_gpu_is_seen_without_a_question(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1))
    seen: list[Gpu] = []

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            rig.gpus.on_seen(seen.append)
            job = await rig.submit(*SLEEP, gpus=1, gpu=("0",))
            await rig.reached(job, JobState.RUNNING)
            with program(*SLEEP) as other:
                there = process(other.pid, 5 * GIB)
                driver.write(gpu(0, process=there, used=5 * GIB), gpu(1))

                async def is_told() -> Gpu | None:
                    return next((one for one in seen if one.processes), None)

                found = await until("the process is told", is_told)
            assert (found.uuid, found.jobs) == (uuid_of(0), (job.job_id,))
            (foreign,) = found.processes
            assert (foreign.pid, foreign.is_foreign, foreign.memory) == (other.pid, True, 5 * GIB)
            assert {one.uuid for one in seen} == {uuid_of(0)}

    go(scenario())
