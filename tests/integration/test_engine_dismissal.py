"""Run folders of attempts whose end is recorded, and whose supervisor does not live to hear it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from aitbcd.model import JobState
from tests.integration.engines import Rig, engine_in, scenario, until
from tests.integration.test_engine_return import unwritable


async def recorded_unheard(rig: Rig, folder: Path) -> tuple[int, Path]:
    """Return a stopped supervisor whose attempt's end is recorded, and its run folder."""
    gate = folder / "gate"
    os.mkfifo(gate)
    job = await rig.submit("sh", "-c", f"echo $PPID; read x < {gate}")
    await rig.reached(job, JobState.RUNNING)
    log = rig.results / f".{job.job_id}/logs/stdout.log"

    async def told() -> int | None:
        return int(log.read_text() or 0)

    supervisor = await until("the job says who its supervisor is", told)

    async def has_sealed() -> bool:
        where = Path(f"/proc/{supervisor}/wchan").read_text()
        return rig.package(job).exists() and "poll" in where

    with unwritable(folder):
        gate.write_text("\n")
        await until("it has sealed, and waits to hear that this is recorded", has_sealed)
        os.kill(supervisor, signal.SIGSTOP)
    assert (await rig.ended(job)).status is JobState.COMPLETED
    return supervisor, folder / f"state/run/{job.job_id}.1"


async def goes(run_folder: Path) -> None:
    async def look() -> bool:
        return not run_folder.exists()

    await until(f"{run_folder.name} is gone", look)


async def left_by(folder: Path, kill: Callable[[Rig, int], None]) -> None:
    async with engine_in(folder) as rig:
        supervisor, run_folder = await recorded_unheard(rig, folder)
        assert run_folder.exists()
        kill(rig, supervisor)
        await goes(run_folder)
        assert (await rig.run("true")).status is JobState.COMPLETED


@scenario
async def test_what_a_killed_supervisor_leaves_is_removed(folder: Path) -> None:
    await left_by(folder, lambda rig, supervisor: os.kill(supervisor, signal.SIGKILL))


@scenario
async def test_what_is_left_is_removed_though_the_launcher_is_killed_too(folder: Path) -> None:
    def kill(rig: Rig, supervisor: int) -> None:
        os.kill(rig.runs.launcher_pid, signal.SIGKILL)
        os.kill(supervisor, signal.SIGKILL)

    await left_by(folder, kill)
