"""Why jobs failed, and who was on their GPUs, against the scripted driver."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aitbcctl import render, tables
from aitbcd.engine import pool, queue
from aitbcd.model import Cause, Event, EventKind, Job, JobState, Reason
from aitbcd.store import Wanted
from tests.driver import GIB, GPU_IS_LOST, Driver, gpu, process, program, uuid_of
from tests.integration.conftest import Box
from tests.integration.engines import Rig, engine_in, until
from tests.integration.test_gpus_api import daemon_with
from tests.service import DEADLINE_S

CONFIG = '[gpus]\nretry = "0.1s"\nforeign_grace = "0.1s"\n[slots]\ncpus = 64\n'
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB."


@pytest.fixture(autouse=True)
def found_by_the_loader(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in driver.environ.items():
        monkeypatch.setenv(name, value)
    # What changes on GPUs that nobody has, or that a job has left, is soon seen.
    monkeypatch.setattr(queue, "_UNHELD_S", 0.1)
    monkeypatch.setattr(pool, "_LOOK_FIRST_S", 0.02)
    monkeypatch.setattr(pool, "_LOOK_MOST_S", 0.2)


def rig_in(folder: Path) -> AbstractAsyncContextManager[Rig]:
    return engine_in(folder, CONFIG)


def go(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def waits_for(gate: Path, then: str) -> tuple[str, str, str]:
    """Return a program that ends so when the file is there."""
    return "sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.01; done; {then}"


async def notes(rig: Rig, job: Job, kind: EventKind) -> list[Event]:
    events = await rig.store.events(number=job.number)
    return [event for event in events if event.kind is kind]


async def noted(rig: Rig, job: Job, kind: EventKind) -> Event:
    """Look until there is such an event of the job."""

    async def look() -> Event | None:
        await rig.gpus.look(max_age_s=0)
        return next(iter(await notes(rig, job, kind)), None)

    return await until(f"{job.job_id} has an event {kind.value}", look)


def described(rig: Rig, job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((rig.package(job) / "output.json").read_text())
    return found


def test_a_job_without_memory_on_its_gpu_says_so_everywhere(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            line = f"for i in $(seq 30); do echo line $i >&2; done; echo '{OOM}' >&2; exit 1"
            job = await rig.run("sh", "-c", line, gpus=1, retries=1)
            assert job.ending
            assert (job.ending.reason, job.ending.cause) == (Reason.EXIT, Cause.CUDA_OOM)
            assert job.ending.message == "exited with status 1: a GPU had no memory left"
            # Both attempts, in the store and in the package.
            first, second = await rig.store.attempts(job.number)
            for attempt in (first, second):
                assert attempt.ending
                assert attempt.ending.snapshot
                assert attempt.ending.snapshot.evidence == OOM
                assert attempt.ending.snapshot.stderr[-2:] == ("line 30", OOM)
                assert len(attempt.ending.snapshot.stderr) == 20
            output = described(rig, job)
            assert output["cause"] == "cuda_oom"
            assert output["snapshot"]["evidence"] == OOM
            assert output["earlier_attempts"][0]["cause"] == "cuda_oom"
            events = await rig.store.events(number=job.number)
            assert [one.cause for one in events if one.cause] == [Cause.CUDA_OOM] * 2
            for uid in (None, job.owner.uid):
                stats = await rig.store.stats(Wanted(uid=uid))
                assert (stats.total.failed, stats.causes) == (1, {"cuda_oom": 1})

    go(scenario())


def test_a_job_that_writes_to_one_log_alone_is_understood(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.run("sh", "-c", f"(echo '{OOM}'; exit 1) 2>&1 | cat; exit 1", gpus=1)
            assert job.ending
            assert job.ending.cause is Cause.CUDA_OOM

    go(scenario())


def test_a_job_that_completes_or_is_canceled_has_no_cause(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            done = await rig.run("sh", "-c", f"echo '{OOM}' >&2", gpus=1)
            assert done.ending
            assert done.ending.cause is None
            running = await rig.submit("sh", "-c", f"echo '{OOM}' >&2; touch {gate}; sleep 1000")
            await until("it has said so", lambda: asyncio.to_thread(gate.exists))
            await rig.engine.cancel(await rig.job(running), force=True)
            canceled = await rig.ended(running)
            assert canceled.ending
            assert canceled.ending.cause is None
            assert (await rig.store.stats(Wanted())).causes == {}

    go(scenario())


def test_a_stranger_on_the_gpu_of_a_job_is_told_once_and_explains_its_end(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))
    gate, pid_file = tmp_path / "gate", tmp_path / "pid"
    line = f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; "

    async def scenario(stranger: int) -> None:
        async with rig_in(tmp_path) as rig:
            program_of_job = waits_for(gate, f"echo '{OOM}' >&2; exit 1")
            job = await rig.submit("sh", "-c", line + program_of_job[2], gpus=1)
            await rig.reached(job, JobState.RUNNING)
            await until("it has a pid", lambda: asyncio.to_thread(pid_file.exists))
            own = process(int(pid_file.read_text()), 60 * GIB)
            both = [own, process(stranger, 19 * GIB)]
            driver.write(gpu(0, process=both, used=79 * GIB))
            told = await noted(rig, job, EventKind.FOREIGN)
            assert told.status is JobState.RUNNING
            assert told.facts
            assert told.facts["gpu"] == uuid_of(0)
            assert told.facts["process"]["pid"] == stranger
            assert told.facts["process"]["memory"] == 19 * GIB
            assert told.facts["process"]["since"]
            assert "(sleep 1000, started " in (told.message or "")
            assert ") holds 19 GiB of GPU 0, which the job has" in (told.message or "")
            # It takes more; it is still the same one.
            both[1] = process(stranger, 20 * GIB)
            driver.write(gpu(0, process=both, used=80 * GIB))
            await rig.gpus.look(max_age_s=-1)
            # What was seen while it lived counts, not what is left.
            driver.write(gpu(0, process=both[1], used=20 * GIB))
            await rig.gpus.look(max_age_s=-1)
            gate.touch()
            ended = await rig.ended(job)
            assert ended.ending
            assert ended.ending.cause is Cause.INTERFERENCE
            assert f"process {stranger} held 20 GiB of it" in (ended.ending.message or "")
            assert len(await notes(rig, job, EventKind.FOREIGN)) == 1
            [attempt] = await rig.store.attempts(job.number)
            assert attempt.ending
            seen = attempt.ending.snapshot
            assert seen
            assert [one.memory for one in seen.gpus[0].processes] == [60 * GIB, 20 * GIB]
            assert [one.job_id for one in seen.gpus[0].processes] == [job.job_id, None]
            # The package may leave the machine: what a stranger typed does not.
            shown = described(rig, job)["snapshot"]["gpus"][0]["processes"]
            assert [one["command"] is None for one in shown] == [False, True]

    with program("sleep", "1000") as running:
        go(scenario(running.pid))


def test_who_keeps_a_job_waiting_stands_in_its_events(driver: Driver, tmp_path: Path) -> None:
    async def scenario(stranger: int) -> None:
        async with rig_in(tmp_path) as rig:
            first, second = [await rig.submit("true", gpus=1) for _ in range(2)]
            told = await noted(rig, first, EventKind.FOREIGN)
            assert told.status is JobState.PENDING
            assert "waits because" in (told.message or "")
            assert str(stranger) in (told.message or "")
            # It waits behind the first, and for the same.
            await noted(rig, second, EventKind.FOREIGN)
            driver.write(gpu(0))
            for each in (first, second):
                await rig.ended(each)
                assert len(await notes(rig, each, EventKind.FOREIGN)) == 1

    with program("sleep", "1000") as running:
        driver.write(gpu(0, process=process(running.pid, 5 * GIB), used=5 * GIB))
        go(scenario(running.pid))


def test_a_thousand_strangers_do_not_fill_the_events_of_a_job(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit("sleep", "1000", gpus=1)
            await rig.reached(job, JobState.RUNNING)
            # Any process is a stranger's that no job has started.
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            listed = [process(pid, GIB) for pid in (pids * 40)[:1000]]
            driver.write(gpu(0, process=listed, used=GIB))
            await noted(rig, job, EventKind.FOREIGN)
            await rig.gpus.look(max_age_s=0)
            await rig.engine.cancel(await rig.job(job), force=True)
            driver.write(gpu(0))
            await rig.ended(job)
            assert len(await notes(rig, job, EventKind.FOREIGN)) <= 20

    go(scenario())


@pytest.mark.parametrize(
    ("xid", "cause", "words"),
    [
        (48, Cause.XID, "XID 48 on GPU 0: an uncorrectable memory error; it needs a reset"),
        (31, Cause.XID, "XID 31 on GPU 0: the program used a bad address"),
        (79, Cause.GPU_LOST, "XID 79 on GPU 0: it has fallen off the bus"),
    ],
)
def test_an_xid_error_is_told_to_the_job_and_explains_its_end(
    driver: Driver, tmp_path: Path, xid: int, cause: Cause, words: str
) -> None:
    driver.write(gpu(0))
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*waits_for(gate, "exit 1"), gpus=1)
            await rig.reached(job, JobState.RUNNING)
            driver.write(gpu(0, xid=f"1 {xid}"))
            told = await noted(rig, job, EventKind.GPU_FAULT)
            assert words in (told.message or "")
            gate.touch()
            ended = await rig.ended(job)
            assert ended.ending
            assert ended.ending.cause is cause
            [attempt] = await rig.store.attempts(job.number)
            assert attempt.ending
            assert attempt.ending.snapshot
            assert [one.xid for one in attempt.ending.snapshot.xids] == [xid]

    go(scenario())


@pytest.mark.parametrize(
    ("xid", "survived_us", "cause"),
    [(31, 60_000_000, Cause.XID), (31, 0, None), (69, 0, None), (48, 0, Cause.XID)],
)
def test_what_another_program_did_on_a_shared_gpu_is_no_cause_long_after(
    driver: Driver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    xid: int,
    survived_us: int,
    cause: Cause | None,
) -> None:
    monkeypatch.setattr("aitbcd.engine.evidence._SURVIVED_US", survived_us)
    driver.write(gpu(0))
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*waits_for(gate, "exit 1"), gpus=1, vram=8 * GIB)
            await rig.reached(job, JobState.RUNNING)
            driver.write(gpu(0, xid=f"1 {xid}"))
            await noted(rig, job, EventKind.GPU_FAULT)
            gate.touch()
            ended = await rig.ended(job)
            assert ended.ending
            assert ended.ending.cause is cause

    go(scenario())


def test_a_job_whose_gpu_is_lost_is_told_and_has_it_as_its_cause(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1))
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*waits_for(gate, "exit 1"), gpus=1, gpu=("0",))
            await rig.reached(job, JobState.RUNNING)
            driver.write(gpu(0, fault=GPU_IS_LOST), gpu(1))
            told = await noted(rig, job, EventKind.GPU_FAULT)
            assert "GPU 0 is lost" in (told.message or "")
            gate.touch()
            ended = await rig.ended(job)
            assert ended.ending
            assert ended.ending.cause is Cause.GPU_LOST

    go(scenario())


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup whose processes have little memory; the kernel ends what takes more."""
    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        folder = Path("/sys/fs/cgroup", root, f"aitbcd-test-{os.getpid()}")
        try:
            folder.mkdir()
            (folder / limit).write_text("30M")
        except OSError:
            with suppress(OSError):
                folder.rmdir()
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("needs root and a cgroup with a limit of memory")


def test_a_job_that_the_kernel_ends_for_want_of_memory_says_so(
    driver: Driver, tmp_path: Path, small_cgroup: Path
) -> None:
    driver.write()
    enter = f"echo $$ > {small_cgroup}/cgroup.procs"
    take = f"exec {sys.executable} -S -c 'bytearray(200 << 20)'"

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            # A moment first: it is not looked at before.
            job = await rig.run("sh", "-c", f"sleep 0.5; {enter}; {take}")
            assert job.ending
            assert (job.ending.signal, job.ending.cause) == (9, Cause.HOST_OOM)
            [attempt] = await rig.store.attempts(job.number)
            assert attempt.ending
            assert attempt.ending.snapshot
            assert attempt.ending.snapshot.oom_kills
            # Killed by somebody: the machine's memory is not to blame.
            killed = await rig.run("sh", "-c", "sleep 0.5; kill -9 $$")
            assert killed.ending
            assert (killed.ending.signal, killed.ending.cause) == (9, None)

    go(scenario())


def test_a_new_daemon_knows_who_was_there_before_it(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0))
    gate = tmp_path / "gate"
    with daemon_with(driver, tmp_path / "daemon") as box, program("sleep", "1000") as running:
        job = box.submit(*waits_for(gate, f"echo '{OOM}' >&2; exit 1"), gpus=1)["job_id"]
        box.reached(job, "running")
        driver.write(gpu(0, process=process(running.pid, 70 * GIB), used=70 * GIB))
        deadline = time.monotonic() + DEADLINE_S
        while not (told := told_of_strangers(box, job)):
            assert time.monotonic() < deadline
            box.http.get("/v1/gpus")
            time.sleep(0.05)
        driver.write(gpu(0))
        box.service.kill()
        box.service.start()
        gate.touch()
        failed = box.reached(job, "failed")
        assert failed["cause"] == "interference"
        assert "run it again" in failed["advice"]
        assert told_of_strangers(box, job) == told
        details = box.http.get(f"/v1/jobs/{job}?detail=true").json()
        assert [one["pid"] for one in details["attempts"][0]["snapshot"]["foreign"]] == [
            running.pid
        ]
        shown = render.detail_block(details, datetime.now(UTC))
        assert f"shown by: {OOM}" in shown
        assert f"{running.pid}  root  sleep 1000  70.0 GiB  (not of the queue)" in shown
        assert f"while running: root's process {running.pid}" in shown
        stats = box.http.get("/v1/stats").json()["total"]
        assert stats["causes"] == {"interference": 1}
        assert "1 (1 interference)" in tables.totals(stats)


def told_of_strangers(box: Box, job: str) -> list[dict[str, Any]]:
    events = box.http.get(f"/v1/jobs/{job}/events").json()["events"]
    return [event for event in events if event["kind"] == "foreign"]


def test_a_job_that_never_came_to_its_gpu_shows_how_full_that_was(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))
    gate = tmp_path / "gate"

    async def scenario(stranger: int) -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*waits_for(gate, f"echo '{OOM}' >&2; exit 1"), gpus=1)
            await rig.reached(job, JobState.RUNNING)
            # It is seen empty first.
            await rig.gpus.look(max_age_s=-1)
            driver.write(gpu(0, process=process(stranger, 79 * GIB), used=79 * GIB))
            await noted(rig, job, EventKind.FOREIGN)
            gate.touch()
            await rig.ended(job)
            [attempt] = await rig.store.attempts(job.number)
            assert attempt.ending
            assert attempt.ending.snapshot
            [seen] = attempt.ending.snapshot.gpus
            assert (seen.memory_used, len(seen.processes)) == (79 * GIB, 1)

    with program("sleep", "1000") as running:
        go(scenario(running.pid))


def test_a_fault_that_comes_while_a_job_runs_is_told_and_one_from_before_is_not(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0, ecc=3))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            await rig.gpus.look(max_age_s=-1)
            await rig.gpus.resume(uuid_of(0))
            job = await rig.submit("sleep", "1000", gpus=1)
            await rig.reached(job, JobState.RUNNING)
            await rig.gpus.look(max_age_s=-1)
            driver.write(gpu(0, ecc=4))
            told = await noted(rig, job, EventKind.GPU_FAULT)
            assert "GPU 0 has 4 uncorrectable memory errors" in (told.message or "")
            assert told.facts
            assert "reset it when nothing runs on it" in told.facts["reason"]
            assert len(await notes(rig, job, EventKind.GPU_FAULT)) == 1

    go(scenario())
