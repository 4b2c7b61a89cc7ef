"""Processes on a GPU that are a job's although its environment does not say so."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from aitbcd.devices import Gpu, GpuState
from aitbcd.model import Job, JobState
from tests.containers import ID, OF_ROOT, OTHER_ID, container
from tests.driver import GIB, Driver, gpu, process, uuid_of
from tests.integration.engines import Rig, engine_in, until

SLEEP = ("sleep", "1000")
CONFIG = '[gpus]\nretry = "0.1s"\nforeign_grace = "0.1s"\n[slots]\ncpus = 64\n'


@pytest.fixture(autouse=True)
def found_by_the_loader(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in driver.environ.items():
        monkeypatch.setenv(name, value)


def go(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def first(rig: Rig) -> Gpu:
    found = (await rig.gpus.look(max_age_s=0)).find(uuid_of(0))
    assert found
    return found


async def shows(rig: Rig, job: Job, pid: int) -> Gpu:
    """Wait until a process is seen on the GPU as the job's."""

    async def look() -> Gpu | None:
        found = await first(rig)
        is_there = [(one.pid, one.job_id) for one in found.processes] == [(pid, job.job_id)]
        return found if is_there else None

    return await until(f"{pid} is {job.job_id}'s", look)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_what_descends_from_a_supervisor_is_its_jobs_whoever_it_has_become(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))
    mark = tmp_path / "pid"
    # Without environment, in a session of its own, of another user, its parent gone.
    inner = f"echo $$ > {mark}.new; mv {mark}.new {mark}; exec setpriv --reuid 65534 sleep 1000"
    line = f"setsid -f env -i /bin/sh -c '{inner}'; exec env -i sleep 1000"

    async def scenario() -> None:
        async with engine_in(tmp_path, CONFIG) as rig:
            job = await rig.submit("sh", "-c", line, gpus=1)
            await rig.reached(job, JobState.RUNNING)
            await until("it has a pid", lambda: asyncio.to_thread(mark.exists))
            pid = int(mark.read_text())
            driver.write(gpu(0, process=process(pid, GIB), used=GIB))
            found = await shows(rig, job, pid)
            assert (found.state, found.reason) == (GpuState.BUSY, None)
            assert not [e for e in await rig.store.events(number=job.number) if e.facts]

    go(scenario())


def test_a_container_of_docker_is_the_jobs_that_it_names_and_ends_with_it(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with engine_in(tmp_path, CONFIG) as rig:
            line = f"while [ ! -e {gate} ]; do sleep 0.01; done"
            job = await rig.submit("sh", "-c", line, gpus=1)
            await rig.reached(job, JobState.RUNNING)
            path = OF_ROOT["docker, systemd"].format(id=ID)
            named = {"AITBC_JOB_ID": job.job_id}
            with container(path, "sleep", "1000", uid=65534, env=named) as running:
                driver.write(gpu(0, process=process(running.pid, GIB), used=GIB))
                found = await shows(rig, job, running.pid)
                assert (found.state, found.reason) == (GpuState.BUSY, None)
                gate.touch()
                ended = await rig.ended(job)
                assert ended.status is JobState.COMPLETED
                # Its results are stored: it is the job's all the same.
                assert await asyncio.to_thread(running.wait, 10) == -9
                driver.write(gpu(0))
                await rig.run("true", gpus=1)

    go(scenario())


def test_containers_without_a_gpu_end_with_their_job_too_and_no_others(tmp_path: Path) -> None:
    systemd, cgroupfs = OF_ROOT["docker, systemd"], OF_ROOT["docker, cgroupfs"]

    async def scenario() -> None:
        async with engine_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP)
            await rig.reached(job, JobState.RUNNING)
            named = {"AITBC_JOB_ID": job.job_id, "AITBC_ATTEMPT": "1"}
            other = named | {"AITBC_ATTEMPT": "2"}
            with (
                container(systemd.format(id=ID), *SLEEP, uid=65534, env=named) as its,
                container(cgroupfs.format(id=OTHER_ID), *SLEEP, env=other) as anothers,
            ):
                await rig.engine.cancel(job, force=False)
                assert (await rig.ended(job)).status is JobState.CANCELED
                # Before that was said.
                assert its.poll() == -9
                assert anothers.poll() is None

    go(scenario())


def test_a_container_that_names_no_job_is_foreign(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with engine_in(tmp_path, CONFIG) as rig:
            path = OF_ROOT["docker, systemd"].format(id=ID)
            with container(path, "sleep", "1000", env={"AITBC_JOB_ID": "job_00000009"}) as running:
                driver.write(gpu(0, process=process(running.pid, GIB), used=GIB))

                async def look() -> bool:
                    return (await first(rig)).state is GpuState.FOREIGN

                await until("it is foreign", look)

    go(scenario())
