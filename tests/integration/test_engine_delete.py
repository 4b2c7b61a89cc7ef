"""Delete and retry: what goes, what stays, and what is refused."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aitbcd.engine import removals
from aitbcd.errors import NoSuchJob, WrongState
from aitbcd.model import JobState, Owner, Priority
from tests.integration.conftest import new_user
from tests.integration.engines import Rig, engine_in, scenario, until
from tests.service import descendants, let_others_reach

ANN = Owner(os.getuid(), "ann")
only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


@scenario
async def test_a_deleted_job_and_its_results_are_gone_when_it_is_said(folder: Path) -> None:
    async with engine_in(folder) as rig:
        job = await rig.run("sh", "-c", "echo much > $AITBC_ARTIFACTS_DIR/file")
        assert job.ending is not None
        used = await rig.store.usage(ANN.uid)
        assert used == job.ending.result_bytes > 0
        assert await rig.engine.delete(job) == (used, True)
        assert list(rig.results.iterdir()) == []
        assert await rig.store.job(job.number) is None
        assert await rig.store.usage(ANN.uid) == 0
        assert await rig.store.removals() == []
        with pytest.raises(NoSuchJob):
            await rig.engine.delete(job)


@scenario
async def test_what_runs_or_waits_is_not_deleted(folder: Path) -> None:
    async with engine_in(folder) as rig:
        running = await rig.submit("sleep", "1000", cpus=4)
        running = await rig.reached(running, JobState.RUNNING)
        waiting = await rig.submit("true", cpus=4)
        for job in (running, waiting):
            with pytest.raises(WrongState, match=job.status.value) as refused:
                await rig.engine.delete(job)
            assert refused.value.hint == f"cancel it first: aitbcctl cancel {job.number}"
            assert refused.value.fields["state"] == job.status.value
            with pytest.raises(WrongState, match="before it is over"):
                await rig.engine.retry(job, ANN)
            assert (await rig.job(job)).status is job.status
        await rig.engine.cancel(waiting, force=True)
        await rig.engine.cancel(running, force=True)
        # One that never had results goes as well.
        assert await rig.engine.delete(await rig.ended(waiting)) == (0, True)
        await rig.engine.delete(await rig.ended(running))
        assert list(rig.results.iterdir()) == []


@scenario
async def test_deleting_what_somebody_reads_is_answered_and_goes_on(folder: Path) -> None:
    async with engine_in(folder) as rig:
        job = await rig.run("echo", "here")
        reader = os.open(rig.package(job), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(reader, fcntl.LOCK_SH)
            size, is_gone = await rig.engine.delete(job)
            assert size > 0
            assert not is_gone
            assert await rig.store.job(job.number) is None
            assert (rig.package(job) / "output.json").exists()
        finally:
            os.close(reader)
        await rig.gone(job)


@scenario
async def test_others_are_answered_while_a_large_package_goes(folder: Path) -> None:
    make = "import os\nfor n in range(30_000): open(str(n), 'w').close()"
    async with engine_in(folder) as rig:
        job = await rig.run("sh", "-c", f'cd $AITBC_ARTIFACTS_DIR && {sys.executable} -c "{make}"')
        other = await rig.run("true")
        deleting = asyncio.create_task(rig.engine.delete(job))
        answered = 0
        while any(job.job_id in path.name for path in rig.results.iterdir()):
            await rig.job(other)
            answered += 1
        await deleting
        assert answered > 10
        await rig.gone(job)


@scenario
async def test_nothing_is_left_of_an_attempt_whose_job_is_canceled_before_the_next(
    folder: Path,
) -> None:
    async with engine_in(folder, "[slots]\ncpus = 1\n") as rig:
        gate = folder / "gate"
        os.mkfifo(gate)
        job = await rig.submit("sh", "-c", f"read x < {gate}; exit 1", retries=1)
        await rig.reached(job, JobState.RUNNING)
        # It takes the slot when the first attempt has failed.
        other = await rig.submit("sleep", "1000", priority=Priority.HIGH)
        gate.write_text("go\n")
        await rig.reached(other, JobState.RUNNING)
        waiting = await rig.reached(job, JobState.PENDING)
        assert waiting.attempt == 1
        assert [path.name for path in rig.results.iterdir() if job.job_id in path.name]
        await rig.engine.cancel(waiting, force=False)
        await rig.gone(job)
        await rig.engine.cancel(other, force=True)
        await rig.ended(other)


@scenario
async def test_a_retry_is_a_new_job_of_the_same_kind(folder: Path) -> None:
    async with engine_in(folder) as rig:
        failed = await rig.run("sh", "-c", "echo $X; exit 3", name="n", env=(b"X=1",), retries=0)
        assert failed.status is JobState.FAILED
        again = await rig.engine.retry(failed, ANN, plan="pro")
        assert again.number != failed.number
        assert (again.retry_of, again.name, again.plan) == (failed.job_id, "n", "pro")
        over = await rig.ended(again)
        assert (over.status, over.retry_of) == (JobState.FAILED, failed.job_id)
        log = (rig.package(over) / "logs" / "stdout.log").read_bytes()
        assert log == b"1\n"
        await rig.engine.delete(failed)
        with pytest.raises(NoSuchJob):
            await rig.engine.retry(failed, ANN)
        assert (await rig.job(over)).retry_of == failed.job_id


@only_root
@scenario
async def test_a_package_goes_as_its_owner_and_others_things_stay(folder: Path) -> None:
    name = f"aitbcd-d{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", name], check=True)
    try:
        uid = int(subprocess.check_output(["id", "-u", name]))
        him = Owner(uid, name)
        let_others_reach(folder)
        async with engine_in(folder) as rig:
            job = await rig.run("sh", "-c", "echo x > $AITBC_ARTIFACTS_DIR/file", owner=him)
            assert job.status is JobState.COMPLETED, job
            assert rig.package(job).stat().st_uid == uid
            assert (await rig.engine.delete(job))[1]
            assert list(rig.results.iterdir()) == []
            await _leave_roots_things(rig, him)
    finally:
        subprocess.run(["userdel", name], check=True)


async def _leave_roots_things(rig: Rig, him: Owner) -> None:
    """What is not his is not removed for him, and holds up nobody."""
    job = await rig.run("echo", "here", owner=him)
    artifacts = rig.package(job) / "artifacts"
    (artifacts / "roots").mkdir(mode=0o755)
    (artifacts / "roots" / "file").write_text("of root")
    size, is_gone = await rig.engine.delete(job)
    assert size > 0
    assert not is_gone

    async def is_all_else_gone() -> bool:
        left = [path for path in rig.results.rglob("*") if not path.is_dir()]
        return [path.name for path in left] == ["file"]

    await until("all but root's file goes", is_all_else_gone)
    assert await rig.store.job(job.number) is None
    other = await rig.run("true", owner=him)
    await rig.engine.delete(other)
    assert not rig.package(other).exists()


@only_root
def test_why_results_do_not_go_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @scenario
    async def run(folder: Path) -> None:
        async with engine_in(folder) as rig:
            job = await rig.run("true")
            os.chown(rig.package(job), 54321, -1)
            assert (await rig.engine.delete(job))[1] is False
            removal = rig.engine._removals._known[job.number]

            async def is_tried_again() -> bool:
                return removal.pause_s > 2 * removals._AGAIN_FIRST_S

            await until("it is tried again", is_tried_again)
            os.chown(rig.package(job), ANN.uid, -1)
            await rig.gone(job)

    run(tmp_path)
    assert caplog.text.count("its results are not removed") == 1


@only_root
@scenario
async def test_who_stops_the_removal_of_his_results_stops_nobody_elses(folder: Path) -> None:
    let_others_reach(folder)
    make = "cd $AITBC_ARTIFACTS_DIR && seq 10000 | xargs touch"
    with new_user("s") as stopping, new_user("o") as other:
        async with engine_in(folder) as rig:
            his = [
                await rig.run("sh", "-c", make, owner=Owner(stopping.uid, stopping.name))
                for _ in range(4)
            ]
            others = await rig.run("true", owner=Owner(other.uid, other.name))
            deleting = [asyncio.create_task(rig.engine.delete(job)) for job in his]

            async def has_stopped_two() -> bool:
                stopped = _stop_all(rig, stopping.uid)
                return len(stopped) == 2

            await until("two of his are stopped", has_stopped_two)
            await rig.engine.delete(others)
            await rig.gone_alone(others)
            await asyncio.gather(*deleting)
            for pid in _stop_all(rig, stopping.uid):
                os.kill(pid, signal.SIGCONT)
            for job in his:
                await rig.gone_alone(job)


def _stop_all(rig: Rig, uid: int) -> list[int]:
    """Stop all that the launcher has a user do, as he can himself; return the processes."""
    found = []
    for folder in (Path(f"/proc/{pid}") for pid in descendants(rig.engine.launcher_pid)):
        try:
            if folder.stat().st_uid == uid or f"\nUid:\t{uid}\t" in (folder / "status").read_text():
                os.kill(int(folder.name), signal.SIGSTOP)
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@scenario
async def test_more_packages_than_are_kept_in_mind_all_go(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removals, "_PAGE", 4)
        async with engine_in(folder) as rig:
            jobs = [await rig.submit("true") for _ in range(40)]
            ended = [await rig.ended(job) for job in jobs]
            assert len(list(rig.results.iterdir())) == len(jobs)
            last = max(job.expires_at or 0 for job in ended)
            await rig.store.expire([job.number for job in ended], at=last)
            assert len(await rig.store.removals()) == len(jobs)
            rig.engine._removals.look()
            for job in jobs:
                await rig.gone(job)
