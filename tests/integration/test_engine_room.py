"""No room on the disk, or in a user's quota: who waits, what he is told, and who goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aitbcd import settings
from aitbcd.engine.room import Disk
from aitbcd.model import Job, JobSpec, JobState, Owner
from aitbcd.settings import Storage
from aitbcd.units import format_size
from tests.integration.engines import Rig, engine_in, scenario, until

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")

MIB = 1 << 20
#: Root's jobs under another name: a user by his uid alone is enough for the queue.
ANN, BEN = Owner(0, "ann"), Owner(4_000_001, "ben")
TWENTY = '[storage]\nreserve = "20M"\n'
QUOTA = '[storage]\nreserve = 0\nquota = "4M"\n'
KEEP_5M = ("sh", "-c", "head -c 5M /dev/zero > $AITBC_ARTIFACTS_DIR/file")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "aitbcd-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def waits_for(rig: Rig, job: Job, words: str) -> str:
    async def look() -> str | None:
        found = rig.engine.waiting(await rig.job(job))
        return found if found and words in found else None

    return await until(f"{job.job_id} waits for {words}", look)


def test_jobs_wait_for_disk_space_and_start_when_there_is_some(disk: Path) -> None:
    async def test(folder: Path) -> None:
        async with engine_in(folder, TWENTY) as rig:
            gate = folder / "gate"
            line = f"until test -e {gate}; do sleep 0.02; done"
            running = await rig.reached(await rig.submit("sh", "-c", line), JobState.RUNNING)
            filler = folder / "filler"
            filler.write_bytes(b"x" * 50 * MIB)
            waiting = await rig.submit("true")
            said = await waits_for(rig, waiting, "disk space")
            assert said.startswith("waits for disk space: ")
            assert said.endswith(f"free of the 20 MiB that are kept free in {folder}/state")
            gate.touch()
            assert (await rig.ended(running)).status is JobState.COMPLETED
            assert (await rig.job(waiting)).status is JobState.PENDING
            filler.unlink()
            assert (await rig.ended(waiting)).status is JobState.COMPLETED

    scenario(test)(disk)


def test_space_that_a_delete_frees_starts_what_waits(disk: Path) -> None:
    async def test(folder: Path) -> None:
        async with engine_in(folder, TWENTY) as rig:
            large = await rig.run("sh", "-c", "head -c 50M /dev/zero > $AITBC_ARTIFACTS_DIR/file")
            waiting = await rig.submit("true")
            await waits_for(rig, waiting, "disk space")
            assert (await rig.engine.delete(large))[0] > 50 * MIB - 1
            assert (await rig.ended(waiting)).status is JobState.COMPLETED

    scenario(test)(disk)


def test_a_disk_that_says_nothing_is_waited_for(tmp_path: Path) -> None:
    lack = Disk(Storage(), str(tmp_path / "gone")).lack()
    assert lack == f"waits for the disk: {tmp_path}/gone: No such file or directory"


@scenario
async def test_a_user_over_his_quota_waits_and_others_go_on(folder: Path) -> None:
    async with engine_in(folder, QUOTA) as rig:
        kept = await rig.run(*KEEP_5M, owner=ANN)
        assert kept.status is JobState.COMPLETED

        async def is_known() -> bool:
            return bool(rig.engine._quota.blocked())

        await until("the quota is seen", is_known)
        # More of them than the queue's front has places for.
        specs = [JobSpec((b"true",), cwd=b"/") for _ in range(300)]
        await rig.engine.submit_batch(ANN, lambda: [specs])
        waiting = await rig.submit("true", owner=ANN)
        assert kept.ending is not None
        size = format_size(kept.ending.result_bytes)
        assert rig.engine.waiting(await rig.job(waiting)) == (
            f"waits for room: {size} of results are kept of the 4 MiB that a user may have;"
            " delete some: aitbcctl delete JOB"
        )
        # There is no such user, which is found out by starting his job.
        other = await rig.run("true", owner=BEN)
        assert other.status is JobState.FAILED
        assert (await rig.job(waiting)).status is JobState.PENDING
        await rig.engine.delete(kept)
        assert (await rig.ended(waiting)).status is JobState.COMPLETED


@scenario
async def test_a_quota_is_known_again_after_a_restart(folder: Path) -> None:
    async with engine_in(folder, "[storage]\nreserve = 0\n") as rig:
        await rig.run(*KEEP_5M, owner=ANN)
        holder = await rig.reached(
            await rig.submit("sleep", "1000", cpus=4, owner=ANN), JobState.RUNNING
        )
        waiting = await rig.submit("true", owner=ANN, cpus=4)
    async with engine_in(folder, QUOTA) as rig:
        await rig.ended(holder)
        await waits_for(rig, waiting, "waits for room")
        assert (await rig.job(waiting)).status is JobState.PENDING


@scenario
async def test_a_larger_quota_lets_those_start_who_waited_for_it(folder: Path) -> None:
    async with engine_in(folder, QUOTA) as rig:
        await rig.run(*KEEP_5M, owner=ANN)
        waiting = await rig.submit("true", owner=ANN)
        await waits_for(rig, waiting, "waits for room")
        configure(rig, folder, QUOTA.replace("4M", "40M"))
        assert (await rig.ended(waiting)).status is JobState.COMPLETED


@scenario
async def test_a_smaller_quota_keeps_those_who_wait_from_starting(folder: Path) -> None:
    async with engine_in(folder, QUOTA.replace("4M", "40M")) as rig:
        await rig.run(*KEEP_5M, owner=ANN)
        holder = await rig.reached(await rig.submit("sleep", "1000", cpus=4), JobState.RUNNING)
        waiting = await rig.submit("true", owner=ANN)
        configure(rig, folder, QUOTA)
        await waits_for(rig, waiting, "waits for room")
        await rig.engine.cancel(holder, force=True)
        assert (await rig.run("true", owner=BEN)).status is JobState.FAILED
        assert (await rig.job(waiting)).status is JobState.PENDING


def configure(rig: Rig, folder: Path, text: str) -> None:
    """Have the configuration read again."""
    (folder / "aitbcd.toml").write_text(text)
    rig.engine._settings.take(settings.load(folder / "aitbcd.toml"))
    rig.engine.on_settings()
