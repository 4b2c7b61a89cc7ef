"""The empty package that a supervisor keeps ready, and what becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aitbcd.launcher import folder as run_folder
from aitbcd.launcher import package
from tests.launcher import Daemon, Stage, Supervised, Who, myself, wait_gone
from tests.service import wait_for

#: Seconds since the epoch when nobody had submitted anything.
LONG_AGO = 1_000_000_000


@pytest.fixture(params=["myself", "other"])
def who(request: pytest.FixtureRequest) -> Who:
    if request.param == "myself":
        return myself()
    found: Who = request.getfixturevalue("other")
    return found


def kept_in(stage: Stage, supervisor: int) -> Path:
    return stage.run / run_folder.spare_name(supervisor) / "package"


def prepared(stage: Stage, daemon: Daemon) -> tuple[Supervised, Path]:
    """See a job through; return it, and the package that its supervisor then has ready."""
    attempt = daemon.start(stage.spec("true"))
    attempt.exited()
    attempt.finish()
    ready = kept_in(stage, attempt.supervisor)
    wait_for("a package is ready", (ready / "logs/stderr.log").exists, log=stage.log)
    return attempt, ready


def all_of(top: Path) -> dict[str, os.stat_result]:
    return {str(path.relative_to(top)): path.lstat() for path in (top, *top.rglob("*"))}


def test_a_job_begins_with_it_as_if_it_was_made_for_the_job(
    stage: Stage, daemon: Daemon, who: Who
) -> None:
    first = daemon.start(stage.shell("sleep 1000", who=who))
    first.running()
    made = all_of(stage.building(first.spec["job"]))
    first.cancel(0)
    first.exited()
    first.finish()
    ready = kept_in(stage, first.supervisor)
    wait_for("a package is ready", (ready / "logs/stderr.log").exists, log=stage.log)
    for path in (ready, *ready.rglob("*")):
        os.utime(path, (LONG_AGO, LONG_AGO))
    inode = ready.stat().st_ino
    before = time.time()
    attempt = daemon.start(stage.shell("sleep 1000", who=who))
    assert attempt.supervisor == first.supervisor
    attempt.running()
    building = stage.building(attempt.spec["job"])
    assert building.stat().st_ino == inode
    assert not ready.parent.exists()
    assert not (stage.run_folder(attempt.spec) / "package").exists()
    found = all_of(building)
    for name, stat in made.items():
        rights = stat.st_mode, stat.st_uid, stat.st_gid
        assert (found[name].st_mode, found[name].st_uid, found[name].st_gid) == rights
    # The clock of files ticks in steps of some milliseconds.
    assert min(stat.st_mtime for stat in found.values()) > before - 1
    assert found.keys() == made.keys()
    attempt.cancel(0)
    attempt.exited()
    assert attempt.finish()["op"] == "sealed"


def test_what_an_earlier_attempt_left_makes_way(stage: Stage, daemon: Daemon, who: Who) -> None:
    spec = stage.shell('echo first; echo x > "$AITBC_ARTIFACTS_DIR/first"; sleep 1000', who=who)
    first = daemon.start(spec)
    stage.line_of(spec)
    os.kill(first.supervisor, signal.SIGKILL)
    first.wait_lost()
    assert daemon.ask("remove", job=spec["job"], attempt=1)["done"]
    kept, _ = prepared(stage, daemon)
    line = 'echo second; ls "$AITBC_ARTIFACTS_DIR"'
    second = daemon.start(stage.shell(line, job=spec["job"], attempt=2, who=who))
    assert second.supervisor == kept.supervisor
    assert second.exited()["exit_code"] == 0
    assert stage.log_of(spec) == b"second\n"
    assert second.finish()["op"] == "sealed"


def test_it_needs_no_inode_of_a_full_disk(stage: Stage) -> None:
    with mounted(stage.state, "nr_inodes=200"):
        launched(stage)
        daemon = stage.connect()
        prepared(stage, daemon)
        for number in range(200):
            try:
                (stage.results / str(number)).touch()
            except OSError:
                break
        attempt = daemon.start(stage.spec("true"))
        assert attempt.exited()["exit_code"] == 0


def test_what_was_taken_away_is_made_anew(stage: Stage, daemon: Daemon) -> None:
    kept, ready = prepared(stage, daemon)
    package.discard(os.open(ready.parent, os.O_RDONLY), ready.name)
    attempt = daemon.start(stage.shell("echo here"))
    assert attempt.supervisor == kept.supervisor
    assert attempt.exited()["exit_code"] == 0
    assert stage.log_of(attempt.spec) == b"here\n"
    assert attempt.finish()["op"] == "sealed"


@pytest.mark.parametrize("number", [signal.SIGKILL, None], ids=["killed", "let go"])
def test_it_goes_with_its_supervisor(
    stage: Stage, daemon: Daemon, number: signal.Signals | None
) -> None:
    kept, ready = prepared(stage, daemon)
    if number is None:
        stage.kill()
    else:
        os.kill(kept.supervisor, number)
    wait_gone(kept.supervisor)
    wait_for("its folder is gone", lambda: not ready.parent.exists(), log=stage.log)


def test_it_is_no_trace_of_a_start_that_was_killed_before_it_began(
    stage: Stage, daemon: Daemon
) -> None:
    spec = stage.spec("true")
    run_fd = os.open(stage.run, os.O_RDONLY)
    made = run_folder.build(run_fd, ".new.killed")
    package.prepare(made.fd).package.close()
    run_folder.publish(run_fd, ".new.killed", stage.run_folder(spec).name)
    made.close()
    os.close(run_fd)
    assert daemon.run(spec).facts["exit_code"] == 0
    assert not stage.run_folder(spec).exists()


def test_none_is_made_where_results_are_on_another_disk(stage: Stage) -> None:
    with mounted(stage.results, "size=8m"):
        launched(stage)
        second = begun_second(stage)
        # One that cannot be moved would still be there.
        assert not (stage.run_folder(second.spec) / "package").exists()


def test_none_is_made_where_results_hand_on_a_group(stage: Stage, other: Who) -> None:
    os.chown(stage.results, -1, other.gid)
    stage.results.chmod(0o2711)
    launched(stage)
    second = begun_second(stage)
    found = all_of(stage.building(second.spec["job"]))
    assert {stat.st_gid for stat in found.values()} == {other.gid}


def begun_second(stage: Stage) -> Supervised:
    """Return a running attempt of a supervisor that had one before."""
    daemon = stage.connect()
    first = daemon.start(stage.spec("true"))
    first.exited()
    first.finish()
    second = daemon.start(stage.spec("sleep", "1000"))
    assert second.supervisor == first.supervisor
    second.running()
    return second


def launched(stage: Stage) -> None:
    assert stage.launch(), stage.said()


@contextmanager
def mounted(where: Path, options: str) -> Iterator[None]:
    if os.getuid() != 0:
        pytest.skip("only root can mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", where], check=True)
    try:
        for folder in ("run", "results"):
            if where.name == "state":
                (where / folder).mkdir()
        yield
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)
