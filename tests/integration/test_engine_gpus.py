"""An engine that hands out the scripted driver's GPUs: to whom, which, and when they are free."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from aitbcd.backlog import WINDOW
from aitbcd.devices import Gpu, GpuState
from aitbcd.engine import pool, queue
from aitbcd.errors import NotSatisfiable, OverLimit
from aitbcd.gpus import driver as installed
from aitbcd.model import EventKind, Job, JobState, Owner, Reason
from aitbcd.units import format_size
from tests.driver import (
    GIB,
    GPU_IS_LOST,
    MIB,
    NO_PERMISSION,
    RESET_REQUIRED,
    VERSION_MISMATCH,
    Driver,
    gpu,
    mig,
    process,
    program,
    uuid_of,
)
from tests.integration.engines import Rig, engine_in, until
from tests.integration.test_gpus_api import daemon_with
from tests.service import DEADLINE_S, wait_for

CONFIG = '[gpus]\nretry = "0.1s"\nforeign_grace = "0.1s"\n[slots]\ncpus = 64\n'
OTHER = Owner(65534, "nobody")
SLEEP = ("sleep", "1000")
#: The driver counts it, and does not open it.
CLOSED: dict[str, Any] = {"fault__nvmlDeviceGetHandleByIndex_v2": NO_PERMISSION}
#: Says what it sees.
SHOW = ("sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES|$AITBC_GPUS|$CUDA_DEVICE_ORDER"')


@pytest.fixture(autouse=True)
def found_by_the_loader(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in driver.environ.items():
        monkeypatch.setenv(name, value)
    # What changes on GPUs that nobody has, or that a job has left, is soon seen.
    monkeypatch.setattr(queue, "_UNHELD_S", 0.1)
    monkeypatch.setattr(pool, "_LOOK_FIRST_S", 0.02)
    monkeypatch.setattr(pool, "_LOOK_MOST_S", 0.2)


def rig_in(folder: Path, config: str = "") -> AbstractAsyncContextManager[Rig]:
    return engine_in(folder, CONFIG + config)


def go(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def said(rig: Rig, job: Job) -> str:
    return (rig.package(job) / "logs" / "stdout.log").read_text().strip()


async def seen(rig: Rig, number: int) -> Gpu:
    found = (await rig.gpus.look(max_age_s=0)).find(uuid_of(number))
    assert found
    return found


async def waits(rig: Rig, job: Job, *words: str) -> str:
    """Wait until a job says that it waits for this."""

    async def look() -> str | None:
        sentence = rig.engine.waiting(await rig.job(job)) or ""
        return sentence if all(word in sentence for word in words) else None

    return await until(f"{job.job_id} waits for {words}", look)


async def becomes(rig: Rig, number: int, state: GpuState) -> Gpu:
    async def look() -> Gpu | None:
        found = await seen(rig, number)
        return found if found.state is state else None

    return await until(f"GPU {number} is {state.value}", look)


# Which


@pytest.mark.parametrize("count", [1, 2, 8, 16])
def test_each_job_gets_gpus_of_its_own(driver: Driver, tmp_path: Path, count: int) -> None:
    driver.write(*[gpu(number) for number in range(count)])

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            jobs = [await rig.submit(*SLEEP, gpus=1) for _ in range(count + 1)]
            found = [await rig.reached(job, JobState.RUNNING) for job in jobs[:-1]]
            given = [uuid for job in found for uuid in job.gpu_uuids]
            assert sorted(given) == [uuid_of(number) for number in range(count)]
            await waits(rig, jobs[-1], "waits for 1 GPU", f"{found[0].job_id} holds one")
            await rig.engine.cancel(found[0], force=True)
            last = await rig.reached(jobs[-1], JobState.RUNNING)
            assert last.gpu_uuids == found[0].gpu_uuids

    go(scenario())


def test_a_job_sees_its_gpus_and_no_others_whatever_any_environment_says(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1, "4090"))
    lies = (b"CUDA_VISIBLE_DEVICES=0,1,2", b"AITBC_GPUS=all", b"CUDA_DEVICE_ORDER=FASTEST_FIRST")

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            for wish in ({"gpu_type": "rtx"}, {"gpu": ("1",)}, {"gpu": (uuid_of(1),)}):
                job = await rig.run(*SHOW, gpus=1, environment=lies, env=lies, **wish)
                assert said(rig, job) == f"{uuid_of(1)}|{uuid_of(1)}|PCI_BUS_ID"
                assert job.gpu_uuids == (uuid_of(1),)
                output = json.loads((rig.package(job) / "output.json").read_text())
                assert output["gpu_uuids"] == [uuid_of(1)]
            both = await rig.run(*SHOW, gpus=2)
            assert sorted(both.gpu_uuids) == [uuid_of(0), uuid_of(1)]
            none = await rig.run(*SHOW, environment=lies, env=lies)
            assert said(rig, none) == "||PCI_BUS_ID"

    go(scenario())


def cores_of(rig: Rig, job: Job) -> set[int]:
    """Return the cores that a job of ``CORES`` could run on."""
    (line,) = said(rig, job).splitlines()
    ranges = (part.split("-") for part in line.split(":")[1].strip().split(","))
    return {core for part in ranges for core in range(int(part[0]), int(part[-1]) + 1)}


CORES = ("grep", "Cpus_allowed_list", "/proc/self/status")


def test_a_job_runs_near_its_gpus_where_there_are_cores_enough(
    driver: Driver, tmp_path: Path
) -> None:
    every = os.sched_getaffinity(0)
    near = min(every)
    driver.write(gpu(0, cpus=f"{1 << near:x}"), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            there: dict[str, Any] = {"gpus": 1, "gpu": (uuid_of(0),)}
            assert cores_of(rig, await rig.run(*CORES, **there)) == {near}
            # Its supervisor, which has the next one, is where it was.
            assert cores_of(rig, await rig.run(*CORES)) == every
            assert cores_of(rig, await rig.run(*CORES, gpus=1, gpu=(uuid_of(1),))) == every
            assert cores_of(rig, await rig.run(*CORES, cpus=2, **there)) == every
            # With a neighbour on the GPU, who is to run there too, one core is not enough.
            await rig.reached(await rig.submit(*SLEEP, vram=GIB, **there), JobState.RUNNING)
            assert cores_of(rig, await rig.run(*CORES, vram=GIB, **there)) == every

    go(scenario())


MEMORY = ("head", "-n", "1", "/proc/self/numa_maps")


def test_a_job_takes_memory_near_its_gpus_first(driver: Driver, tmp_path: Path) -> None:
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("a kernel without NUMA")
    near = min(os.sched_getaffinity(0))
    driver.write(gpu(0, cpus=f"{1 << near:x}", node=0), gpu(1))
    # As for jobs of other users, and those with a cgroup: with a fork.
    config = f"{CONFIG}[launcher]\nno_new_privs = true\n"

    async def scenario() -> None:
        async with engine_in(tmp_path, config) as rig:
            there: dict[str, Any] = {"gpus": 1, "gpu": (uuid_of(0),)}
            # "prefer:0", or "prefer (many):0" where the kernel can prefer several.
            line = said(rig, await rig.run(*MEMORY, **there))
            assert re.search(r"^\w+ prefer( \(many\))?:0 ", line)
            # More cores than are near: it runs anywhere.
            for anywhere in ({}, {"gpus": 1, "gpu": (uuid_of(1),)}, {**there, "cpus": 2}):
                line = said(rig, await rig.run(*MEMORY, **anywhere))
                assert line.split()[1] == "default"

    go(scenario())


def test_jobs_run_anywhere_where_that_is_configured(driver: Driver, tmp_path: Path) -> None:
    every = os.sched_getaffinity(0)
    driver.write(gpu(0, cpus=f"{1 << min(every):x}"))

    async def scenario() -> None:
        async with engine_in(tmp_path, CONFIG.replace("[gpus]", "[gpus]\nnuma = false")) as rig:
            assert cores_of(rig, await rig.run(*CORES, gpus=1)) == every

    go(scenario())


def test_a_kind_of_gpu_is_kept_to(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, "4090"), gpu(1, "a100"), gpu(2, "h100"))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            large = await rig.run("true", gpus=1, min_vram=60 * GIB)
            assert large.gpu_uuids == (uuid_of(2),)
            as_sold = await rig.run("true", gpus=1, min_vram=24 * GIB)
            assert as_sold.gpu_uuids == (uuid_of(0),)
            first = await rig.submit(*SLEEP, gpus=1, gpu_type="a100")
            await rig.reached(first, JobState.RUNNING)
            second = await rig.submit("true", gpus=1, gpu_type="A100")
            await waits(rig, second, "1 GPU of type NVIDIA A100", first.job_id)
            # Of another kind, it need not wait behind that.
            await rig.run("true", gpus=1, gpu_type="h100")

    go(scenario())


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"gpus": 3}, "3 GPUs and this machine has 1 x NVIDIA H100"),
        ({"gpus": 1, "gpu_type": "h200"}, "no GPU here is a 'h200': there are 1 x NVIDIA H100"),
        ({"gpus": 1, "min_vram": 100 * GIB}, "1 GPU with 100 GiB"),
        ({"gpus": 2, "gpu_type": "4090"}, "2 GPUs of type 4090"),
        ({"gpus": 1, "gpu_type": "nvidia"}, "'nvidia' can mean NVIDIA H100 80GB HBM3 or NVIDIA Ge"),
        ({"gpus": 1, "gpu": ("0",), "gpu_type": "4090"}, "GPU 0 is a NVIDIA H100"),
        ({"gpus": 1, "gpu": ("0",), "min_vram": 100 * GIB}, "GPU 0 (NVIDIA H100 80GB HBM3) has"),
        ({"gpus": 1, "gpu": ("7",)}, "there is no GPU 7 here: known are 0 (GPU-"),
        ({"gpus": 1, "gpu": ("GPU-gone",)}, "there is no GPU GPU-gone here"),
        ({"gpus": 1, "vram": 100 * GIB}, "100 GiB of a GPU's memory"),
    ],
)
def test_what_can_never_be_is_refused_with_what_there_is(
    driver: Driver, tmp_path: Path, wish: dict[str, Any], words: str
) -> None:
    driver.write(gpu(0), gpu(1, "4090"))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            with pytest.raises(NotSatisfiable) as refused:
                await rig.submit("true", **wish)
            assert words in refused.value.detail
            assert await rig.store.count_pending() == 0

    go(scenario())


@pytest.mark.parametrize(
    ("wish", "before", "system", "words"),
    [
        ({"gpus": 1}, [gpu(0), gpu(1)], {"init": VERSION_MISMATCH}, "reboot needed"),
        ({"gpus": 1}, [gpu(0), gpu(1)], {"hang__nvmlInitWithFlags": 1}, "has not answered yet"),
        ({"gpus": 2}, [gpu(0, **CLOSED), gpu(1)], {}, "1 of 2 GPUs cannot be used"),
        ({"gpus": 1, "gpu": ("0",)}, [gpu(0, **CLOSED), gpu(1)], {}, "there is no GPU 0 here"),
    ],
    ids=["mismatch", "slow", "unreachable", "named"],
)
def test_a_job_for_gpus_that_were_never_seen_waits_for_them(
    driver: Driver, tmp_path: Path, wish: dict[str, Any], before: list[str],
    system: dict[str, Any], words: str,
) -> None:  # fmt: skip
    driver.write(*before, **system)

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit("true", **wish)
            await waits(rig, job, words)
            driver.write(gpu(0), gpu(1))
            await rig.ended(job)
            # All have been seen by now.
            driver.write(gpu(0), gpu(1, **CLOSED))
            with pytest.raises(NotSatisfiable, match="3 GPUs"):
                await rig.submit("true", gpus=3)

    go(scenario())


@pytest.mark.parametrize(
    ("gpus", "system"),
    [
        ([gpu(0), gpu(1)], {"init": VERSION_MISMATCH}),
        ([gpu(0), gpu(1, **CLOSED)], {}),
        ([gpu(0)], {}),
    ],
    ids=["mismatch", "unreachable", "gone"],
)
def test_what_there_is_is_known_from_the_daemon_before(
    driver: Driver, tmp_path: Path, gpus: list[str], system: dict[str, Any]
) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            await rig.run("true", gpus=2)
        driver.write(*gpus, **system)
        async with rig_in(tmp_path) as rig:
            both = await rig.submit("true", gpus=2)
            await becomes(rig, 1, GpuState.LOST)
            with pytest.raises(NotSatisfiable, match="50 GPUs and this machine has 2 x NVIDIA"):
                await rig.submit("true", gpus=50)
            named = await rig.submit("true", gpus=1, gpu=("1",))
            assert named.gpu == (uuid_of(1),)
            driver.write(gpu(0), gpu(1))
            await rig.ended(both)
            await rig.ended(named)

    go(scenario())


def test_what_there_is_is_known_while_the_driver_is_being_replaced(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            await rig.run("true", gpus=2)
        monkeypatch.delenv("LD_LIBRARY_PATH")
        if installed.library(os.environ) is not None:
            pytest.skip("this machine has an NVIDIA driver")
        async with rig_in(tmp_path) as rig:
            await becomes(rig, 1, GpuState.LOST)
            await waits(rig, await rig.submit("true", gpus=2), "waits for the GPUs: ")
            with pytest.raises(NotSatisfiable, match="50 GPUs and this machine has 2 x NVIDIA"):
                await rig.submit("true", gpus=50)

    go(scenario())


def test_a_gpu_that_was_taken_out_is_forgotten_with_the_next_boot(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            await rig.run("true", gpus=2)
        record = tmp_path / "state" / "gpus.json"
        document = json.loads(record.read_text())
        assert [each["uuid"] for each in document["devices"]] == [uuid_of(0), uuid_of(1)]
        record.write_text(json.dumps(document | {"devices_boot_id": "the one before"}))
        driver.write(gpu(0))
        async with rig_in(tmp_path) as rig:
            assert (await rig.run("true", gpus=1)).gpu_uuids == (uuid_of(0),)
            with pytest.raises(NotSatisfiable, match="2 GPUs and this machine has 1 x NVIDIA"):
                await rig.submit("true", gpus=2)
        assert len(json.loads(record.read_text())["devices"]) == 1

    go(scenario())


def test_a_job_says_that_it_waits_for_a_driver_that_does_not_answer(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            await becomes(rig, 0, GpuState.FREE)
            driver.write(gpu(0), hang__nvmlDeviceGetMemoryInfo_v2=1)
            while rig.gpus.age_s <= queue._FRESH_S:
                await asyncio.sleep(0.01)
            job = await rig.submit("true", gpus=1)
            await waits(rig, job, "waits for the NVIDIA driver", "has not answered for")
            driver.write(gpu(0))
            await rig.ended(job)

    go(scenario())


def test_shares_of_a_gpu_are_packed_until_it_is_full(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            shares = [await rig.submit(*SLEEP, gpus=1, vram=30 * GIB) for _ in range(2)]
            on = {(await rig.reached(job, JobState.RUNNING)).gpu_uuids for job in shares}
            assert len(on) == 1
            whole = await rig.submit(*SLEEP, gpus=1)
            assert (await rig.reached(whole, JobState.RUNNING)).gpu_uuids not in on
            third = await rig.submit(*SLEEP, gpus=1, vram=30 * GIB)
            await waits(rig, third, "waits for room for 30 GiB on a GPU")
            await rig.engine.cancel(await rig.job(shares[0]), force=True)
            assert {(await rig.reached(third, JobState.RUNNING)).gpu_uuids} == on

    go(scenario())


# In which order


def test_a_sweep_does_not_block_another_user_nor_jobs_without_gpus(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            sweep = [await rig.submit(*SLEEP, gpus=1) for _ in range(100)]
            await rig.reached(sweep[1], JobState.RUNNING)
            other = await rig.submit(*SLEEP, gpus=1, owner=OTHER)
            await rig.run("true")
            await rig.engine.cancel(await rig.job(sweep[0]), force=True)
            await rig.reached(other, JobState.RUNNING)
            assert (await rig.job(sweep[2])).status is JobState.PENDING

    go(scenario())


def test_gpus_are_collected_for_a_job_that_needs_many(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            first = await rig.submit(*SLEEP, gpus=1)
            await rig.reached(first, JobState.RUNNING)
            large = await rig.submit(*SLEEP, gpus=2)
            small = await rig.submit(*SLEEP, gpus=1)
            await waits(rig, large, "1 of 2 GPUs", first.job_id)
            await rig.run("true")
            assert (await rig.job(small)).status is JobState.PENDING
            await rig.engine.cancel(await rig.job(first), force=True)
            await rig.reached(large, JobState.RUNNING)

    go(scenario())


def test_what_is_collected_for_a_job_nobody_takes_who_has_less_by_then(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            there: dict[str, Any] = {"gpus": 1, "gpu": ("0",)}
            first = await rig.submit(*SLEEP, **there)
            await rig.reached(first, JobState.RUNNING)
            second = await rig.submit(*SLEEP, **there)
            wide = await rig.submit(*SLEEP, gpus=2, owner=OTHER)
            await waits(rig, wide, "1 of 2 GPUs", first.job_id)
            await rig.engine.cancel(await rig.job(first), force=True)
            await rig.reached(wide, JobState.RUNNING)
            await waits(rig, second, f"{wide.job_id} holds 2")

    go(scenario())


def test_gpus_are_not_collected_while_a_stranger_has_one_of_them(
    driver: Driver, tmp_path: Path
) -> None:
    with program("sleep", "1000") as running:
        driver.write(gpu(0), gpu(1, process=process(running.pid, 5 * GIB), used=5 * GIB))

        async def scenario() -> None:
            async with rig_in(tmp_path) as rig:
                wide = await rig.submit("true", gpus=2)
                await waits(rig, wide, "1 of 2 GPUs", str(running.pid))
                await rig.run("true", gpus=1)
                assert (await rig.job(wide)).status is JobState.PENDING
                driver.write(gpu(0), gpu(1))
                await rig.ended(wide)

        go(scenario())


def test_a_gpu_is_collected_from_shares_for_a_job_that_needs_it_whole(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            first = await rig.submit(*SLEEP, gpus=1, vram=20 * GIB)
            await rig.reached(first, JobState.RUNNING)
            whole = await rig.submit(*SLEEP, gpus=1)
            shares = [await rig.submit(*SLEEP, gpus=1, vram=20 * GIB) for _ in range(3)]
            await waits(rig, whole, "1 GPU", first.job_id)
            await rig.run("true")
            assert {(await rig.job(job)).status for job in shares} == {JobState.PENDING}
            await rig.engine.cancel(await rig.job(first), force=True)
            await rig.reached(whole, JobState.RUNNING)

    go(scenario())


def test_a_share_says_for_whom_the_gpu_is_kept_that_has_room_for_it(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            first = await rig.submit(*SLEEP, gpus=1, vram=20 * GIB, timeout_s=3600.0)
            await rig.reached(first, JobState.RUNNING)
            both = await rig.submit(*SLEEP, gpus=2)
            share = await rig.submit(*SLEEP, gpus=1, vram=10 * GIB)
            ends = f"{first.job_id} holds 20 GiB of one and ends at 2"
            await waits(rig, both, "waits for 1 of 2 GPUs", ends)
            kept = f"GPU 0, 1 are kept for {both.job_id}, which needs 2 GPUs"
            said = await waits(rig, share, "room for 10 GiB", kept, ends)
            assert said.count(first.job_id) == 1

    go(scenario())


def test_who_has_a_gpu_and_waits_for_more_does_not_wait_for_ever(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1), gpu(2))
    new = Owner(4_000_001, "new")

    async def scenario() -> None:
        async with rig_in(tmp_path, 'patience = "0.1s"\n') as rig:
            await rig.reached(await rig.submit(*SLEEP, gpus=1), JobState.RUNNING)
            others = [await rig.submit(*SLEEP, gpus=1, owner=OTHER) for _ in range(2)]
            for each in others:
                await rig.reached(each, JobState.RUNNING)
            wide = await rig.submit(*SLEEP, gpus=2)
            await asyncio.sleep(0.1)
            late = await rig.submit(*SLEEP, gpus=1, owner=new)
            await rig.engine.cancel(await rig.job(others[0]), force=True)
            await waits(rig, late, f"kept for {wide.job_id}, which needs 2 GPUs", others[1].job_id)
            await rig.engine.cancel(await rig.job(others[1]), force=True)
            await rig.reached(wide, JobState.RUNNING)
            assert (await rig.job(late)).status is JobState.PENDING

    go(scenario())


def test_who_has_the_cores_that_a_job_waits_for_is_said(driver: Driver, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            held = [
                await rig.submit(*SLEEP, cpus=cpus, timeout_s=timeout_s)
                for cpus, timeout_s in ((1, None), (1, 7200.0), (60, None))
            ]
            for job in held:
                await rig.reached(job, JobState.RUNNING)
            first, second, third = (job.job_id for job in held)
            large = await rig.submit(*SLEEP, cpus=4)
            small = await rig.submit("true")
            who = f"{third} holds 60; {second} holds 1 and ends at 2"
            said = await waits(rig, large, "waits for 4 CPU cores (2 of 64 free)", who)
            assert said.endswith(f"at the latest; {first} holds 1")
            await waits(rig, small, f"{large.job_id} is next and waits for 4 CPU cores", who)

    go(scenario())


def test_however_many_have_cores_it_is_said_how_many(driver: Driver, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            held = [await rig.submit(*SLEEP, cpus=1) for _ in range(36)]
            for job in held:
                await rig.reached(job, JobState.RUNNING)
            large = await rig.submit(*SLEEP, cpus=40)
            said = await waits(rig, large, "waits for 40 CPU cores (28 of 64 free)")
            assert said.endswith("; 33 more jobs hold others")

    go(scenario())


LIMITS = "[limits]\ngpus = 1\npending = 3\n"


def test_nobody_has_more_than_he_may(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path, LIMITS) as rig:
            first = await rig.submit(*SLEEP, gpus=1)
            await rig.reached(first, JobState.RUNNING)
            second = await rig.submit(*SLEEP, gpus=1)
            await waits(rig, second, "1 of the 1 GPUs that they may have at a time")
            await rig.run("true")
            with pytest.raises(NotSatisfiable, match="you may have 1 at a time"):
                await rig.submit("true", gpus=2)
            await rig.submit(*SLEEP, gpus=1)
            await rig.submit(*SLEEP, gpus=1)
            with pytest.raises(OverLimit, match="may have 3 jobs waiting"):
                await rig.submit(*SLEEP, gpus=1)
            assert await rig.store.count_pending() == 3

    go(scenario())


def test_when_the_holder_of_a_gpu_is_expected_to_end_is_said(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))
    with daemon_with(driver, tmp_path / "daemon") as box:
        line = 'echo 1/2 > "$AITBC_PROGRESS"; exec sleep 1000'
        holder = box.submit("sh", "-c", line, gpus=1, timeout="10h")["job_id"]
        waiting = box.submit("true", gpus=1)["job_id"]

        def is_expected() -> bool:
            (queued,) = [
                one for one in box.http.get("/v1/queue").json()["jobs"] if one["job_id"] == waiting
            ]
            words = f"{holder} holds one and is expected to end at 2"
            return words in queued["waiting"] and words in box.status(waiting)["waiting"]

        wait_for("it says when", is_expected, log=box.service.log)
        for each in (waiting, holder):
            box.http.post(f"/v1/jobs/{each}/cancel", json={"force": True})
            box.reached(each, "canceled")


# Over a restart


def test_a_new_daemon_gives_nobody_what_a_running_job_has(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))
    with daemon_with(driver, tmp_path / "daemon") as box:
        job = box.submit(*SLEEP, gpus=1)["job_id"]
        held = box.reached(job, "running")["gpu_uuids"]
        box.service.kill()
        # Indices change with a boot or a new card; UUIDs do not.
        driver.write(gpu(1), gpu(0))
        box.service.start()
        other = box.submit(*SLEEP, gpus=1)["job_id"]
        assert box.reached(other, "running")["gpu_uuids"] not in ([], held)
        waiting = box.submit(*SLEEP, gpus=1)["job_id"]
        sentence = box.status(waiting)["waiting"]
        assert job in sentence
        assert other in sentence
        shown = {one["uuid"]: one for one in box.http.get("/v1/gpus").json()["gpus"]}
        assert (shown[held[0]]["state"], shown[held[0]]["jobs"]) == ("busy", [job])
        queued = box.http.get("/v1/queue").json()["jobs"]
        assert [one["gpu_uuids"] for one in queued if one["job_id"] == job] == [held]
        box.submit("true", cpus=1)
        page = box.http.get("/v1/queue", params={"gpus": "true", "limit": 1}).json()
        assert (page["jobs"], page["pending"]) == (queued[:1], 1)
        box.http.post(f"/v1/jobs/{job}/cancel", json={"force": True})
        assert box.reached(waiting, "running")["gpu_uuids"] == held
        for each in (other, waiting):
            box.http.post(f"/v1/jobs/{each}/cancel", json={"force": True})
            box.reached(each, "canceled")


# What comes in between


def test_a_lost_gpu_is_given_to_nobody_and_its_job_goes_on(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=1, gpu=("0",))
            await rig.reached(job, JobState.RUNNING)
            driver.write(gpu(0, fault=GPU_IS_LOST), gpu(1))
            await becomes(rig, 0, GpuState.LOST)
            assert (await rig.job(job)).status is JobState.RUNNING
            waiting = await rig.submit("true", gpus=1, gpu=("0",))
            await waits(rig, waiting, "GPU 0 is lost")
            # It is known what it is, though it does not say.
            both = await rig.submit("true", gpus=2, min_vram=60 * GIB)
            # More than are in memory at a time.
            for _ in range(3 * WINDOW):
                await rig.submit("true", gpus=1, gpu=("0",))
            assert (await rig.run("true", gpus=1)).gpu_uuids == (uuid_of(1),)
            await rig.engine.cancel(await rig.job(job), force=True)
            assert (await rig.ended(job)).status is JobState.CANCELED
            driver.write(gpu(0), gpu(1))
            await rig.ended(waiting)
            await rig.ended(both)

    go(scenario())


def test_a_job_waits_for_who_uses_a_gpu_past_the_queue(driver: Driver, tmp_path: Path) -> None:
    with program("sleep", "1000") as running:
        driver.write(gpu(0, process=process(running.pid, 5 * GIB), used=5 * GIB))

        async def scenario() -> None:
            async with rig_in(tmp_path) as rig:
                job = await rig.submit("true", gpus=1)
                await waits(rig, job, "GPU 0 is foreign", str(running.pid))
                driver.write(gpu(0))
                await rig.ended(job)

        go(scenario())


def test_a_job_behind_others_says_too_whom_it_waits_for(driver: Driver, tmp_path: Path) -> None:
    with program("sleep", "1000") as running:
        stranger = process(running.pid, 5 * GIB)
        driver.write(gpu(0, process=stranger, used=5 * GIB), gpu(1))

        async def scenario() -> None:
            async with rig_in(tmp_path) as rig:
                holder = await rig.submit(*SLEEP, gpus=1, gpu=("1",))
                await rig.reached(holder, JobState.RUNNING)
                both = await rig.submit("true", gpus=2)
                second = await rig.submit("true", gpus=1, gpu=("1",))
                third = await rig.submit("true", gpus=1, gpu=("0",))
                await waits(rig, both, "waits for 2 of 2 GPUs", holder.job_id, str(running.pid))
                said = await waits(rig, second, "waits behind 1 earlier job; waits for GPU")
                assert f"{holder.job_id} holds one" in said
                said = await waits(rig, third, "waits behind 2 earlier jobs; waits for GPU")
                assert f"process {running.pid}" in said

                async def is_noted() -> bool:
                    events = await rig.store.events(number=third.number)
                    return any(event.kind is EventKind.FOREIGN for event in events)

                await until("a stranger keeps it waiting", is_noted)

        go(scenario())


@pytest.mark.parametrize("policy", ["wait", "avoid", "ignore"])
def test_a_share_does_not_come_to_a_stranger_beside_another_share(
    driver: Driver, tmp_path: Path, policy: str
) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario(stranger: int) -> None:
        config = CONFIG.replace("[slots]", f'foreign = "{policy}"\n[slots]')
        async with engine_in(tmp_path, config) as rig:
            there: dict[str, Any] = {"gpus": 1, "vram": 10 * GIB}
            first = await rig.submit(*SLEEP, gpu=("0",), **there)
            await rig.reached(first, JobState.RUNNING)
            driver.write(gpu(0, process=process(stranger, 50 * GIB), used=50 * GIB), gpu(1))
            await until("the stranger is seen", lambda: strange(rig))
            second = await rig.submit(*SLEEP, **there)
            given = (await rig.reached(second, JobState.RUNNING)).gpu_uuids
            assert given == (uuid_of(0 if policy == "ignore" else 1),)
            third = await rig.submit("true", gpu=("0",), **there)
            if policy == "wait":
                await waits(rig, third, "GPU 0 is busy, also past the queue", str(stranger))
                driver.write(gpu(0), gpu(1))
            await rig.ended(third)

    async def strange(rig: Rig) -> bool:
        return (await seen(rig, 0)).has_stranger

    with program("sleep", "1000") as running:
        go(scenario(running.pid))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([gpu(0, fault__nvmlDeviceGetMemoryInfo_v2=RESET_REQUIRED)], [gpu(0)], "needs a reset"),
        ([gpu(0, remap="0 1 1 0")], [gpu(0)], "is to be remapped"),
        ([gpu(0, mig=1)], [gpu(0, mig=1), mig(1)], "nothing is set up"),
    ],
    ids=["reset", "remapped", "divided"],
)
def test_a_job_starts_on_a_gpu_that_was_mended_though_nobody_asks(
    driver: Driver, tmp_path: Path, before: list[str], after: list[str], words: str
) -> None:
    driver.write(*before)

    async def scenario() -> None:
        async with engine_in(tmp_path, CONFIG.replace('retry = "0.1s"', 'retry = "1h"')) as rig:
            job = await rig.submit("true", gpus=1)
            await waits(rig, job, "GPU 0 is drained", words)
            driver.write(*after)
            await rig.ended(job)

    go(scenario())


@pytest.mark.parametrize("given", [0, 1])
def test_a_job_starts_on_a_gpu_that_a_job_left_to_which_it_was_not_given(
    driver: Driver, tmp_path: Path, given: int
) -> None:
    driver.write(gpu(0), gpu(1))
    mark = tmp_path / "pid"
    line = f"echo $$ > {mark}.new; mv {mark}.new {mark}; exec sleep 1000"

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            wish: dict[str, Any] = {"gpus": 1, "gpu": ("0",)} if given else {}
            guest = await rig.submit("sh", "-c", line, **wish)
            await rig.reached(guest, JobState.RUNNING)
            while not mark.exists():
                await asyncio.sleep(0.01)
            there = process(int(mark.read_text()), GIB)
            driver.write(gpu(0), gpu(1, process=there, used=GIB))
            await becomes(rig, 1, GpuState.BUSY)
            job = await rig.submit("true", gpus=1, gpu=("1",))
            await waits(rig, job, f"{guest.job_id} uses GPU 1, which it was not given")
            driver.write(gpu(0), gpu(1))
            await rig.ended(job)

    go(scenario())


@pytest.mark.parametrize("policy", ["avoid", "ignore"])
def test_a_foreign_process_can_be_avoided_or_ignored(
    driver: Driver, tmp_path: Path, policy: str
) -> None:
    with program("sleep", "1000") as running:
        driver.write(gpu(0, process=process(running.pid, 5 * GIB), used=5 * GIB), gpu(1))

        async def scenario() -> None:
            config = CONFIG.replace("[slots]", f'foreign = "{policy}"\n[slots]')
            async with engine_in(tmp_path, config) as rig:
                first = await rig.submit(*SLEEP, gpus=1)
                given = (await rig.reached(first, JobState.RUNNING)).gpu_uuids
                assert given == (uuid_of(1 if policy == "avoid" else 0),)
                second = await rig.submit(*SLEEP, gpus=1)
                await rig.reached(second, JobState.RUNNING)

        go(scenario())


# Free again


def test_a_gpu_whose_memory_does_not_come_back_is_quarantined_until_it_does(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=1)
            await rig.reached(job, JobState.RUNNING)
            driver.write(gpu(0, used=9 * GIB))
            await rig.engine.cancel(await rig.job(job), force=True)
            found = await becomes(rig, 0, GpuState.QUARANTINED)
            assert job.job_id in (found.reason or "")
            assert "9 GiB of its memory are still held" in (found.reason or "")
            waiting = await rig.submit("true", gpus=1)
            await waits(rig, waiting, "GPU 0 is quarantined", job.job_id)
            driver.write(gpu(0))
            await rig.ended(waiting)

    go(scenario())


@pytest.mark.parametrize(
    ("name", "kind", "policy"),
    [
        ("Xorg", "G", "wait"),
        ("nvidia-cuda-mps-server", "C", "wait"),
        ("jupyter", "C", "ignore"),
    ],
)
def test_who_else_is_on_a_gpu_does_not_hide_what_a_job_leaves_there(
    driver: Driver, tmp_path: Path, name: str, kind: str, policy: str
) -> None:
    with program(name, "1000", executable="/bin/sleep") as running:
        listed = process(running.pid, 20 * MIB, kind)
        driver.write(gpu(0, process=listed, used=20 * MIB))

        async def scenario() -> None:
            config = CONFIG.replace("[slots]", f'foreign = "{policy}"\n[slots]')
            async with engine_in(tmp_path, config) as rig:
                job = await rig.submit(*SLEEP, gpus=1)
                await rig.reached(job, JobState.RUNNING)
                driver.write(gpu(0, process=listed, used=20 * MIB + 40 * GIB))
                await rig.engine.cancel(await rig.job(job), force=True)
                found = await becomes(rig, 0, GpuState.QUARANTINED)
                assert f"{job.job_id} of me has ended, but 40 GiB" in (found.reason or "")
                waiting = await rig.submit("true", gpus=1)
                await waits(rig, waiting, "GPU 0 is quarantined", job.job_id)
                driver.write(gpu(0, process=listed, used=20 * MIB))
                await rig.ended(waiting)

        go(scenario())


def test_who_leaves_a_gpu_while_a_job_runs_there_does_not_make_up_for_what_it_leaves(
    driver: Driver, tmp_path: Path
) -> None:
    with program("sleep", "1000") as running:
        driver.write(gpu(0, process=process(running.pid, 5 * GIB), used=5 * GIB))

        async def scenario() -> None:
            config = CONFIG.replace("[slots]", 'foreign = "ignore"\n[slots]')
            async with engine_in(tmp_path, config) as rig:
                job = await rig.submit(*SLEEP, gpus=1)
                await rig.reached(job, JobState.RUNNING)
                driver.write(gpu(0, used=5 * GIB))
                await rig.engine.cancel(await rig.job(job), force=True)
                await becomes(rig, 0, GpuState.QUARANTINED)

        go(scenario())


def test_what_a_share_leaves_is_told_from_what_its_neighbour_has(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            gone, stays = [
                await rig.submit("sh", "-c", "echo $$; exec sleep 1000", gpus=1, vram=30 * GIB)
                for _ in range(2)
            ]
            pid = await pid_of(rig, stays)
            listed = process(pid, 30 * GIB)
            await rig.reached(gone, JobState.RUNNING)
            driver.write(gpu(0, process=listed, used=40 * GIB))
            await rig.engine.cancel(await rig.job(gone), force=True)
            found = await becomes(rig, 0, GpuState.QUARANTINED)
            assert f"{gone.job_id} of me has ended, but 10 GiB" in (found.reason or "")
            driver.write(gpu(0, process=listed, used=30 * GIB))
            await becomes(rig, 0, GpuState.BUSY)

    go(scenario())


async def pid_of(rig: Rig, job: Job) -> int:
    """Return the process of a job that says so first."""
    log = rig.results / f".{job.job_id}" / "logs" / "stdout.log"

    async def look() -> str | None:
        return log.read_text() if log.exists() else None

    return int(await until("it has said its pid", look))


@pytest.mark.parametrize("policy", ["wait", "avoid", "ignore"])
def test_the_dead_that_a_driver_still_lists_are_the_jobs_that_they_were_of(
    driver: Driver, tmp_path: Path, policy: str
) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        config = CONFIG.replace("[slots]", f'foreign = "{policy}"\n[slots]')
        async with engine_in(tmp_path, config) as rig:
            job = await rig.submit("sh", "-c", "echo $$; exec sleep 1000", gpus=1)
            pid = await pid_of(rig, job)
            driver.write(gpu(0, process=process(pid, 40 * GIB), used=40 * GIB))
            while not (await seen(rig, 0)).processes:
                await asyncio.sleep(0.01)
            await rig.engine.cancel(await rig.job(job), force=True)
            await rig.ended(job)
            found = await becomes(rig, 0, GpuState.QUARANTINED)
            said = f"but process {pid} (sleep 1000, gone) still holds 40 GiB"
            assert f"{job.job_id} of me has ended, {said}" == found.reason
            assert [one.job_id for one in found.processes] == [job.job_id]
            waiting = await rig.submit("true", gpus=1)
            await waits(rig, waiting, "GPU 0 is quarantined", str(pid))
            driver.write(gpu(0))
            await rig.ended(waiting)

    go(scenario())


def test_the_dead_that_nobody_saw_alive_account_for_nothing(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))
    with program("true") as dead:
        dead.wait()

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=1)
            await rig.reached(job, JobState.RUNNING)
            driver.write(gpu(0, process=process(dead.pid, 10 * GIB), used=10 * GIB))
            await rig.engine.cancel(await rig.job(job), force=True)
            found = await becomes(rig, 0, GpuState.QUARANTINED)
            assert f"10 GiB of its memory are still held, by process {dead.pid}, gone" in (
                found.reason or ""
            )

    go(scenario())


@pytest.mark.parametrize(("policy", "left"), [("wait", 900 * MIB), ("ignore", 30 * GIB)])
def test_a_new_daemon_knows_what_a_gpu_held_before_its_job_and_that_it_is_quarantined(
    driver: Driver, tmp_path: Path, policy: str, left: int
) -> None:
    before, after = gpu(0, used=300 * MIB), gpu(0, used=300 * MIB + left)
    driver.write(before)
    config = f'[server]\ntcp = ""\n{CONFIG}'.replace("[slots]", f'foreign = "{policy}"\n[slots]')
    with daemon_with(driver, tmp_path / "daemon", config) as box:

        def is_quarantined() -> bool:
            (shown,) = box.http.get("/v1/gpus").json()["gpus"]
            said = f"{job} of root has ended, but {format_size(left)} of its memory"
            return shown["state"] == "quarantined" and said in shown["reason"]

        job = box.submit(*SLEEP, gpus=1)["job_id"]
        box.reached(job, "running")
        box.service.kill()
        box.service.start()
        driver.write(after)
        box.http.post(f"/v1/jobs/{job}/cancel", json={"force": True})
        wait_for("it is quarantined", is_quarantined, log=box.service.log)
        box.service.kill()
        box.service.start()
        waiting = box.submit("true", gpus=1)["job_id"]
        wait_for("it is quarantined again", is_quarantined, log=box.service.log)
        assert box.status(waiting)["status"] == "pending"
        driver.write(before)
        box.reached(waiting, "completed")


def test_nothing_is_taken_back_while_the_driver_cannot_tell(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=1, gpu=("0",))
            await rig.reached(job, JobState.RUNNING)
            driver.write(gpu(0, fault=GPU_IS_LOST), gpu(1))
            await becomes(rig, 0, GpuState.LOST)
            await rig.engine.cancel(await rig.job(job), force=True)
            await rig.ended(job)
            # Whoever takes GPUs back has looked by then.
            await rig.run("true", gpus=1)
            driver.write(gpu(0, used=9 * GIB), gpu(1))
            found = await becomes(rig, 0, GpuState.QUARANTINED)
            assert job.job_id in (found.reason or "")

    go(scenario())


def test_a_repeated_job_does_not_get_back_what_its_last_attempt_left_full(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1))
    gate = tmp_path / "gate"
    line = f"while [ ! -e {gate}$AITBC_ATTEMPT ]; do sleep 0.01; done; test $AITBC_ATTEMPT = 2"

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit("sh", "-c", line, gpus=1, retries=1)
            first = (await rig.reached(job, JobState.RUNNING)).gpu_uuids
            assert first == (uuid_of(0),)
            # Too little to be taken for somebody else's.
            driver.write(gpu(0, used=GIB // 2), gpu(1))
            gate.with_name("gate1").touch()

            async def is_repeated() -> bool:
                found = await rig.job(job)
                return found.status is JobState.RUNNING and found.attempt == 2

            await until("it runs again", is_repeated)
            assert (await rig.job(job)).gpu_uuids == (uuid_of(1),)
            other = await rig.submit("true", gpus=1, gpu=("0",))
            await becomes(rig, 0, GpuState.QUARANTINED)
            assert (await rig.job(other)).status is JobState.PENDING
            gate.with_name("gate2").touch()
            assert (await rig.ended(job)).status is JobState.COMPLETED
            driver.write(gpu(0), gpu(1))
            await rig.ended(other)

    go(scenario())


def test_what_escaped_from_a_job_is_ended_before_its_gpu_is_free(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))
    mark = tmp_path / "pid"
    # A worker that reparents, leads a session of its own, and does not listen to SIGTERM.
    worker = f"trap '' TERM; echo $$ > {mark}.new; mv {mark}.new {mark}; sleep 1000 & wait; wait"
    line = f'setsid -f sh -c "{worker}"; while [ ! -e {mark} ]; do sleep 0.01; done; exit 3'

    async def scenario() -> None:
        async with rig_in(tmp_path, '[jobs]\ncancel_grace = "0.2s"\n') as rig:
            job = await rig.ended(await rig.submit("sh", "-c", line, gpus=1))
            assert (job.ending and job.ending.reason) is Reason.EXIT
            pid = int(mark.read_text())
            deadline = time.monotonic() + DEADLINE_S
            while _is_alive(pid):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await rig.run("true", gpus=1)

    go(scenario())


#: A program with a worker on the GPU, neither of which listens to SIGTERM; the worker says its pid.
TREE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
mark, shape = sys.argv[1:]
def work():
    with open(mark + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(mark + ".new", mark)
    time.sleep(1000)
if os.fork() == 0:
    if shape != "dataloader":
        os.setsid()
    if shape in ("vllm", "ray") and os.fork():
        os._exit(0)
    if shape == "ray":
        code = "import os, sys, time" + chr(10) + "os.chdir('/')" + chr(10)
        code += "open(sys.argv[1] + '.new', 'w').write(str(os.getpid()))" + chr(10)
        code += "os.rename(sys.argv[1] + '.new', sys.argv[1]); time.sleep(1000)"
        os.closerange(0, 256)
        os.execve(sys.executable, [sys.executable, "-c", code, mark], {})
    work()
time.sleep(1000)
"""


@pytest.mark.parametrize(
    "shape",
    [
        "dataloader",  # a child
        "ddp",  # one that leads a session of its own
        "vllm",  # one whose parent is gone
        "ray",  # such a one with another program, without an environment and open files
    ],
)
def test_the_gpu_of_a_canceled_tree_is_free_when_all_of_it_is_gone_and_its_memory_back(
    driver: Driver, tmp_path: Path, shape: str
) -> None:
    driver.write(gpu(0))
    mark = tmp_path / "pid"

    async def scenario() -> None:
        config = f'{CONFIG}[jobs]\ncancel_grace = "0.2s"\n'
        async with engine_in(tmp_path, config) as rig:
            job = await rig.submit(sys.executable, "-c", TREE, str(mark), shape, gpus=1)
            await rig.reached(job, JobState.RUNNING)

            async def its_pid() -> int | None:
                return int(mark.read_text()) if mark.exists() else None

            pid = await until("the worker is there", its_pid)
            driver.write(gpu(0, process=process(pid, 10 * GIB), used=10 * GIB))

            async def is_seen() -> bool:
                return [one.job_id for one in (await seen(rig, 0)).processes] == [job.job_id]

            await until("it is seen as the job's", is_seen)
            waiting = await rig.submit("true", gpus=1)
            await rig.engine.cancel(await rig.job(job), force=False)
            assert (await rig.ended(job)).status is JobState.CANCELED
            assert not os.path.exists(f"/proc/{pid}")
            found = await becomes(rig, 0, GpuState.QUARANTINED)
            assert f"{job.job_id} of me has ended, but process {pid} (" in (found.reason or "")
            assert "gone) still holds 10 GiB" in (found.reason or "")
            driver.write(gpu(0, used=10 * GIB))

            async def is_told() -> bool:
                return "by no process" in ((await seen(rig, 0)).reason or "")

            await until("the memory is told of", is_told)
            assert (await rig.job(waiting)).status is JobState.PENDING
            driver.write(gpu(0))
            await rig.ended(waiting)

    go(scenario())


def _is_alive(pid: int) -> bool:
    try:
        return "(sleep)" not in Path(f"/proc/{pid}/stat").read_text() and os.path.exists(
            f"/proc/{pid}/exe"
        )
    except OSError:
        return False


# What it costs


PRICES = '[pricing]\ncpu_hour = 0\ngpu_hour = { H100 = 3600, "4090" = 36 }\n'


def test_a_charge_follows_the_models_that_were_used(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0), gpu(1, "4090"))

    async def scenario() -> None:
        async with rig_in(tmp_path, PRICES) as rig:
            for number, price in ((0, 1), (1, 0.01)):
                job = await rig.run("sleep", "0.1", gpus=1, gpu=(str(number),))
                assert job.ending
                assert job.started_at
                used_us = job.ending.finished_at - job.started_at
                assert job.charge_micro == pytest.approx(used_us * price, abs=1)

    go(scenario())
