"""The GPUs of running jobs are sampled, by the scripted driver's curves; others are let be."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from aitbcd import series, settings
from aitbcd.devices import Gpu
from aitbcd.model import GpuUse, Job, JobState
from aitbcd.store import Wanted
from tests.bench import proc
from tests.driver import (
    GIB,
    GPU_IS_LOST,
    NOT_SUPPORTED,
    Driver,
    gpu,
    mig,
    mig_uuid_of,
    process,
    program,
    uuid_of,
)
from tests.integration.engines import Rig, engine_in, until
from tests.integration.test_gpus_api import daemon_with
from tests.service import children, wait_for

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


def probe(daemon: int | None = None) -> int:
    (found,) = (
        pid
        for pid in children(daemon or os.getpid())
        if b"aitbcd.gpus.probe" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return found


Line = dict[str, str]


def lines_in(package: Path) -> list[Line]:
    with (package / "logs/gpu.csv").open() as file:
        return list(csv.DictReader(file))


async def use_of(rig: Rig, job: Job) -> GpuUse:
    """Return the figures so far, once there are some."""

    async def look() -> GpuUse | None:
        return rig.engine.gpu_use(job.number)

    return await until(f"{job.job_id} is sampled", look)


async def sampled(rig: Rig, job: Job, holds: Callable[[GpuUse], bool]) -> GpuUse:
    async def look() -> GpuUse | None:
        use = rig.engine.gpu_use(job.number)
        return use if use and holds(use) else None

    return await until(f"{job.job_id} is sampled so", look)


async def rows_more(rig: Rig, job: Job, count: int) -> None:
    """Wait for more samples of a job."""
    before = (await use_of(rig, job)).rows
    await sampled(rig, job, lambda use: use.rows >= before + count)


async def cancel(rig: Rig, job: Job) -> tuple[GpuUse, list[Line]]:
    """End a job; return what is recorded of it."""
    await rig.engine.cancel(await rig.job(job), force=True)
    await rig.ended(job)
    return await recorded(rig, job)


async def recorded(rig: Rig, job: Job) -> tuple[GpuUse, list[Line]]:
    *_, attempt = await rig.store.attempts(job.number)
    assert attempt.ending
    use = attempt.ending.gpu_use
    assert use is not None
    package = rig.package(job)
    output = json.loads((package / "output.json").read_text())
    assert output["gpu_use"] == {name: getattr(use, name) for name in GpuUse.__struct_fields__}
    lines = lines_in(package)
    assert len(lines) == use.rows
    seconds = sum(float(line["seconds"]) for line in lines)
    assert seconds == pytest.approx(use.sampled_s, abs=0.001 * len(lines))
    return use, lines


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
            await until("the probe sleeps", _is_at_rest)
            assert rig.gpus.recent(uuid_of(0)) == []
            for job in jobs:
                await rig.engine.cancel(await rig.job(job), force=True)
                await rig.ended(job)
                assert not (rig.package(job) / "logs/gpu.csv").exists()

    go(scenario())


def test_a_job_that_runs_is_sampled_from_when_that_is_wished(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path, QUICK.replace("0.1s", "0", 1)) as rig:
            job = await rig.submit(*SLEEP, gpus=1)
            await rig.reached(job, JobState.RUNNING)
            assert rig.engine.gpu_use(job.number) is None
            rig.engine._settings.take(settings.parse(QUICK, tmp_path))
            rig.engine.on_settings()
            await sampled(rig, job, lambda use: use.rows >= 2)
            rig.engine._settings.take(settings.parse(QUICK.replace("0.1s", "0", 1), tmp_path))
            await until("it is let be", _is_at_rest)
            _, lines = await cancel(rig, job)
            assert len(lines) >= 2

    go(scenario())


async def _is_at_rest() -> bool:
    before = proc.switches(probe())
    await asyncio.sleep(0.5)
    return proc.switches(probe()) == before


def test_sampling_goes_on_after_a_sample_that_failed(
    driver: Driver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver.write(gpu(0))
    failures = 0
    is_failing = False

    def fail(_: Gpu) -> None:
        nonlocal failures
        if is_failing:
            failures += 1
            raise RuntimeError("can't start new thread")

    async def has_failed_twice() -> bool:
        return failures >= 2

    async def scenario() -> None:
        nonlocal is_failing
        async with rig_in(tmp_path) as rig:
            rig.gpus.on_seen(fail)
            job = await rig.submit(*SLEEP, gpus=1)
            await rows_more(rig, job, 1)
            is_failing = True
            await until("samples fail", has_failed_twice)
            is_failing = False
            await rows_more(rig, job, 2)
        assert caplog.text.count("could not be sampled") == 1

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


# What is kept


def test_what_a_jobs_gpus_did_is_in_its_results_and_summed_up(
    driver: Driver, tmp_path: Path
) -> None:
    hot: dict[str, Any] = {"power": 250_000, "temperature": 61, "sm_clock": 1980}
    driver.write(gpu(0), gpu(1), gpu(2))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=2, gpu=("0", "1"))
            await rig.reached(job, JobState.RUNNING)
            driver.write(gpu(0, utilization=80, used=9 * GIB, **hot), gpu(1), gpu(2))
            await sampled(rig, job, lambda use: use.utilization_peak == 80)
            driver.write(gpu(0, utilization=20, used=GIB, **hot), gpu(1), gpu(2))
            await rows_more(rig, job, 4)
            use, lines = await cancel(rig, job)
            assert (use.interval_s, use.utilization_peak, use.memory_peak) == (0.1, 80, 9 * GIB)
            # Two GPUs, one of which is idle.
            assert 5 < (use.utilization_mean or 0) < 45
            assert use.sampled_s / 2 <= (use.idle_s or 0) < use.sampled_s
            assert use.job_memory_peak == 0
            by_gpu = Counter((line["gpu"], line["index"]) for line in lines)
            assert by_gpu.keys() == {(uuid_of(0), "0"), (uuid_of(1), "1")}
            most = next(line for line in lines if line["utilization"] == "80")
            assert (most["gpu"], most["memory_used"]) == (uuid_of(0), str(9 * GIB))
            assert (most["power"], most["temperature"]) == ("250", "61")
            assert (most["sm_clock"], most["memory_clock"]) == ("1980", "2619")
            times = [datetime.fromisoformat(line["time"]) for line in lines]
            assert times == sorted(times)
            assert not list((tmp_path / "state/samples").iterdir())

    go(scenario())


def test_a_short_job_has_figures_too_and_one_without_gpus_has_none(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0, utilization=50))

    async def scenario() -> None:
        async with rig_in(tmp_path, QUICK.replace("0.1s", "1h", 1)) as rig:
            use, lines = await recorded(rig, await rig.run("true", gpus=1))
            assert (len(lines), use.utilization_peak) == (1, 50)
            other = await rig.run("true")
            assert not (rig.package(other) / "logs/gpu.csv").exists()
            output = json.loads((rig.package(other) / "output.json").read_text())
            assert output["gpu_use"] is None
            assert not (tmp_path / "state/samples").exists() or not list(
                (tmp_path / "state/samples").iterdir()
            )

    go(scenario())


def test_whoever_seals_a_package_puts_the_samples_into_it(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, utilization=50))
    large = 'truncate -s 70M "$AITBC_ARTIFACTS_DIR/model"'

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            # More than a supervisor seals itself.
            use, _ = await recorded(rig, await rig.run("sh", "-c", large, gpus=1))
            assert use.utilization_peak == 50
            lost = await rig.submit(*SLEEP, gpus=1)
            await sampled(rig, lost, lambda use: use.rows >= 2)
            (attempt,) = await rig.store.attempts(lost.number)
            os.kill(proc.parent(int(attempt.handle or 0)), signal.SIGKILL)
            assert (await rig.ended(lost)).status is JobState.FAILED
            use, _ = await recorded(rig, lost)
            assert use.rows >= 2

    go(scenario())


def test_each_attempt_has_figures_of_its_own(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, utilization=30))
    gate = tmp_path / "gate"
    line = f"while [ ! -e {gate}$AITBC_ATTEMPT ]; do sleep 0.01; done; test $AITBC_ATTEMPT = 2"

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit("sh", "-c", line, gpus=1, retries=1)
            await sampled(rig, job, lambda use: use.rows >= 2)
            driver.write(gpu(0, utilization=70))
            await sampled(rig, job, lambda use: use.utilization_peak == 70)
            driver.write(gpu(0, utilization=10))
            gate.with_name("gate1").touch()

            async def is_repeated() -> bool:
                found = await rig.job(job)
                return found.status is JobState.RUNNING and found.attempt == 2

            await until("it runs again", is_repeated)
            await sampled(rig, job, lambda use: use.rows >= 2)
            gate.with_name("gate2").touch()
            await rig.ended(job)
            use, _ = await recorded(rig, job)
            assert use.utilization_peak == 10
            first, _ = await rig.store.attempts(job.number)
            assert first.ending
            assert first.ending.gpu_use
            assert first.ending.gpu_use.utilization_peak == 70

    go(scenario())


def test_jobs_that_share_a_gpu_have_memory_energy_and_price_apart(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0, energy=1_000_000))

    async def scenario() -> None:
        prices = "[pricing]\ngpu_hour = { H100 = 3600 }\ncpu_hour = 0\n"
        async with rig_in(tmp_path, QUICK + prices) as rig:
            jobs = [await rig.submit(*SLEEP, gpus=1, vram=gib * GIB) for gib in (20, 40)]
            pids = []
            for job in jobs:
                await rig.reached(job, JobState.RUNNING)
                (attempt,) = await rig.store.attempts(job.number)
                pids.append(int(attempt.handle or 0))
            there = [process(pid, gib * GIB) for pid, gib in zip(pids, (11, 22), strict=True)]
            driver.write(gpu(0, process=there, used=33 * GIB, energy=1_400_000))
            for job in jobs:
                await sampled(rig, job, lambda use: bool(use.job_memory_peak))
            driver.write(gpu(0, energy=1_400_000))
            for job, part in zip(jobs, (0.25, 0.5), strict=True):
                use, _ = await cancel(rig, job)
                assert (use.memory_peak, use.job_memory_peak) == (33 * GIB, 44 * part * GIB)
                assert use.energy_j == 400 * part
                found = await rig.job(job)
                assert found.ending
                assert found.started_at
                used_us = found.ending.finished_at - found.started_at
                assert found.charge_micro == pytest.approx(used_us * part, abs=1)
            total = (await rig.store.stats(Wanted())).total
            assert total.energy_mj == 300_000
            assert total.gpu_us < total.cpu_us / 2

    go(scenario())


def test_energy_is_power_over_time_where_a_gpu_has_no_counter(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0, power=200_000, fault__nvmlDeviceGetTotalEnergyConsumption=NOT_SUPPORTED))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=1)
            await sampled(rig, job, lambda use: use.rows >= 5)
            use, _ = await cancel(rig, job)
            assert use.energy_j == pytest.approx(200 * use.sampled_s, rel=0.001)

    go(scenario())


def test_of_a_part_of_a_gpu_only_memory_is_known(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, mig=1), mig(1), mig(2))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=1, gpu=(mig_uuid_of(2),))
            await rig.reached(job, JobState.RUNNING)
            (attempt,) = await rig.store.attempts(job.number)
            own = process(int(attempt.handle or 0), 3 * GIB)
            driver.write(gpu(0, mig=1), mig(1), mig(2, used=4 * GIB, process=own))
            await sampled(rig, job, lambda use: use.job_memory_peak == 3 * GIB)
            # It is taken apart, and the other parts go on.
            driver.write(gpu(0, mig=1), mig(1))
            use, lines = await cancel(rig, job)
            assert use.memory_peak == 4 * GIB
            assert (use.utilization_mean, use.idle_s, use.energy_j) == (None, None, None)
            assert {line["gpu"] for line in lines} == {mig_uuid_of(2)}
            assert {line["utilization"] for line in lines} == {""}

    go(scenario())


# Gaps


def test_a_gpu_that_is_lost_makes_a_gap_and_the_other_goes_on(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=2)
            await sampled(rig, job, lambda use: use.rows >= 4)
            driver.write(gpu(0, fault=GPU_IS_LOST), gpu(1, utilization=33))
            await sampled(rig, job, lambda use: use.utilization_peak == 33)
            await rows_more(rig, job, 5)
            driver.write(gpu(0), gpu(1))
            _, lines = await cancel(rig, job)
            count = Counter(line["gpu"] for line in lines)
            assert 1 < count[uuid_of(0)] < count[uuid_of(1)] - 3

    go(scenario())


def test_a_driver_that_hangs_makes_a_gap_and_no_job_waits_for_it(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0))

    async def scenario() -> None:
        async with rig_in(tmp_path, QUICK + 'deadline = "0.5s"\n') as rig:
            job = await rig.submit(*SLEEP, gpus=1)
            await sampled(rig, job, lambda use: use.rows >= 2)
            driver.write(gpu(0), hang__nvmlDeviceGetUtilizationRates=1)

            async def is_told() -> bool:
                return "not answered" in str(rig.gpus.inventory.problem)

            await until("it hangs", is_told)
            before = (await use_of(rig, job)).rows
            driver.write(gpu(0, utilization=44))
            use = await sampled(rig, job, lambda use: use.utilization_peak == 44)
            assert use.rows > before
            driver.write(gpu(0), hang__nvmlDeviceGetUtilizationRates=1)
            await until("it hangs", is_told)
            use, lines = await cancel(rig, job)
            times = [datetime.fromisoformat(line["time"]) for line in lines]
            whole_s = (times[-1] - times[0]).total_seconds()
            # Nothing is made up for what nobody saw.
            assert use.sampled_s < whole_s

    go(scenario())


def test_a_series_goes_on_behind_a_daemon_that_was_killed(driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, utilization=11, energy=1_000_000))
    with daemon_with(driver, tmp_path / "daemon") as box:
        box.service.stop()
        config = box.service.config
        config.write_text(config.read_text() + 'sample = "0.1s"\n')
        box.service.start()
        kept = box.service.state / "samples"
        job = box.submit(*SLEEP, gpus=1)["job_id"]
        file = kept / f"{job}.1"
        wait_for(
            "it is written", lambda: file.exists() and file.stat().st_size, log=box.service.log
        )
        assert set(box.http.get("/v1/gpus").json()["gpus"][0]["recent"]) == {11}
        (kept / "job_00000000.1").touch()
        box.service.kill()
        driver.write(gpu(0, utilization=99, energy=1_700_000))
        box.service.start()
        assert [path.name for path in kept.iterdir()] == [file.name]

        def use() -> Any:
            return box.status(job, detail=True)["attempts"][-1]["gpu_use"]

        def is_seen_again() -> bool:
            found = use()
            return bool(found) and found["utilization_peak"] == 99

        wait_for("it is sampled again", is_seen_again, log=box.service.log)
        box.http.post(f"/v1/jobs/{job}/cancel", json={"force": True})
        box.reached(job, "canceled")
        lines = lines_in(box.service.state / "results" / job)
        assert {line["utilization"] for line in lines} == {"11", "99"}
        # The driver's counter knows of the gap.
        assert use()["energy_j"] == 700
        assert not list(kept.iterdir())


def test_what_a_job_used_is_known_also_where_the_daemon_was_killed_soon_after_its_start(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0, energy=1_000_000))
    with daemon_with(driver, tmp_path / "daemon") as box:
        job = box.submit(*SLEEP, gpus=1)["job_id"]

        def use() -> Any:
            return box.status(job, detail=True)["attempts"][-1]["gpu_use"]

        wait_for("it is sampled", lambda: box.status(job)["attempt"] and use(), log=box.service.log)
        box.service.kill()
        driver.write(gpu(0, energy=1_700_000, utilization=99))
        box.service.start()

        def is_seen_again() -> bool:
            found = use()
            return bool(found) and found["utilization_peak"] == 99

        wait_for("it is sampled again", is_seen_again, log=box.service.log)
        box.http.post(f"/v1/jobs/{job}/cancel", json={"force": True})
        box.reached(job, "canceled")
        assert use()["energy_j"] == 700


def test_a_job_that_ended_while_no_daemon_was_there_keeps_its_samples(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0, energy=1_000_000))
    gate = tmp_path / "gate"
    with daemon_with(driver, tmp_path / "daemon") as box:
        job = box.submit("sh", "-c", f"until test -e {gate}; do sleep 0.02; done", gpus=1)["job_id"]
        box.reached(job, "running")
        file = box.service.state / "samples" / f"{job}.1"
        wait_for(
            "it is written", lambda: file.exists() and file.stat().st_size, log=box.service.log
        )
        box.service.kill()
        gate.touch()
        # What the GPU used after the job is not the job's.
        driver.write(gpu(0, energy=900_000_000))
        run_folder = box.service.state / "run" / f"{job}.1"
        wait_for("it is over", (run_folder / "exit.json").exists, log=box.service.log)
        box.service.start()
        box.reached(job, "completed")
        found = box.status(job, detail=True)["attempts"][-1]["gpu_use"]
        assert found["rows"] == len(lines_in(box.service.state / "results" / job)) > 0
        assert found["energy_j"] == 0
        # The last job with a GPU: neither daemon nor probe has anything to wake for.
        pids = box.service.pid, probe(box.service.pid)

        def is_still() -> bool:
            before = [proc.switches(pid) for pid in pids]
            time.sleep(2)
            return [proc.switches(pid) for pid in pids] == before

        wait_for("nothing happens for two seconds", is_still, log=box.service.log)


# Bounds


def test_a_long_series_is_merged_and_says_so(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "ROWS_MAX", 8)
    monkeypatch.setattr("aitbcd.engine.sampling._WRITE_S", 0.1)
    driver.write(gpu(0, utilization="0 100 every 0.1", power=100_000), gpu(1))

    async def scenario() -> None:
        async with rig_in(tmp_path) as rig:
            job = await rig.submit(*SLEEP, gpus=2)
            use = await sampled(rig, job, lambda use: use.interval_s >= 0.8)
            assert use.rows <= 2 * (8 + 2)
            use, lines = await cancel(rig, job)
            assert (use.utilization_peak, use.interval_s) == (100, 0.8)
            means = [float(line["utilization"]) for line in lines if line["gpu"] == uuid_of(0)]
            assert any(0 < mean < 100 for mean in means)

    go(scenario())
