"""The empty package that a supervisor keeps ready, and what becomes of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from aitbcd.launcher import folder as run_folder
from aitbcd.launcher import package, seal
from aitbcd.launcher.identity import Identity, do_as
from tests.launcher import Daemon, Stage, Supervised, Who, myself, wait_gone
from tests.service import DEADLINE_S, wait_for

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
    line = 'echo second; ls "$AITBC_ARTIFACTS_DIR"; read _ < gate'
    os.mkfifo(stage.folder / "gate", 0o644)
    (stage.folder / "gate").chmod(0o644)
    second = daemon.start(
        stage.shell(line, job=spec["job"], attempt=2, who=who, cwd=str(stage.folder))
    )
    assert second.supervisor == kept.supervisor
    second.running()
    # An older launcher would not know of it, and could not remove the folder.
    assert not (stage.run_folder(second.spec) / "package").exists()
    (stage.folder / "gate").write_text("\n")
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


def test_what_no_room_is_left_for_takes_none(stage: Stage) -> None:
    with mounted(stage.state, "nr_inodes=20"), opened(stage.run) as folder:
        while (left := os.statvfs(stage.state).f_ffree) > 3:
            (stage.results / str(left)).touch()
        with pytest.raises(OSError, match="No space left"):
            package.prepare(folder)
        assert os.statvfs(stage.state).f_ffree == left


def test_a_launcher_can_clear_up_what_its_owner_is_still_at(stage: Stage) -> None:
    with opened(stage.run) as run_fd, ThreadPoolExecutor(1) as owner:
        for _ in range(200):
            made = run_folder.build(run_fd, ".new.owner")
            leaving = owner.submit(prepare_and_leave, run_fd, made)
            run_folder.clear_temporary(run_fd)
            leaving.result()
            assert os.listdir(run_fd) == []


def prepare_and_leave(run_fd: int, made: run_folder.Folder) -> None:
    """Do what a supervisor does that sees only then that its launcher is gone."""
    with suppress(OSError):
        package.prepare(made.fd).package.close()
    with suppress(OSError):
        run_folder.remove(run_fd, made, ".new.owner")


def test_a_package_that_cannot_be_given_away_keeps_no_file_open(stage: Stage, other: Who) -> None:
    stage.results.chmod(0o777)

    def leaked() -> dict[str, int]:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(PermissionError):
            package.create(results, "job_1", Identity(other.uid + 1, other.gid, "nobody"))
        return {"files": len(os.listdir("/proc/self/fd")) - len(before)}

    with opened(stage.results) as results:
        assert do_as(Identity(*other), leaked, DEADLINE_S) == {"files": 0}


def test_what_was_taken_away_is_made_anew(stage: Stage, daemon: Daemon) -> None:
    kept, ready = prepared(stage, daemon)
    with opened(ready.parent) as folder:
        package.discard_ready(folder)
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
    with opened(stage.run) as run_fd:
        made = run_folder.build(run_fd, ".new.killed")
        package.prepare(made.fd).package.close()
        run_folder.publish(run_fd, ".new.killed", stage.run_folder(spec).name)
        made.close()
    assert daemon.run(spec).facts["exit_code"] == 0
    assert not stage.run_folder(spec).exists()


def test_a_power_cut_takes_no_sealed_package_from_a_disk_without_a_journal(
    stage: Stage,
) -> None:
    disk, after = stage.folder / "disk", stage.folder / "after"
    with disk_without_journal(disk, stage.state), opened(stage.run) as run_fd:
        made = run_folder.build(run_fd, ".new.1")
        # So many that the next one's name is in a block behind the one of the run folder.
        for number in range(200):
            (stage.results / f"{number:0200d}").touch()
        ready = package.prepare(made.fd)
        os.sync()
        spec = stage.spec("true")
        with opened(stage.results) as results_fd:
            package.create(results_fd, spec["job"], None, ready).close()
            seal.seal(results_fd, stage.order(spec), made.fd)
        shutil.copyfile(disk, after)
        made.close()
    subprocess.run(["e2fsck", "-fy", after], check=False, capture_output=True)
    with mounted_as(stage.state, "-o", "loop", str(after)):
        assert (stage.sealed(spec) / "output.json").exists()


@contextmanager
def disk_without_journal(disk: Path, where: Path) -> Iterator[None]:
    if not shutil.which("mkfs.ext4"):
        pytest.skip("needs mkfs.ext4 and e2fsck")
    disk.touch()
    os.truncate(disk, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", disk], check=True)
    with mounted_as(where, "-o", "loop", str(disk)):
        for folder in ("run", "results"):
            (where / folder).mkdir()
        yield


@pytest.mark.parametrize("how", ["-t tmpfs none", "--bind ."])
def test_none_is_made_where_results_are_mounted(
    stage: Stage, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = stage.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with mounted_as(stage.results, *how.split()):
        assert not are_alike(stage)
        launched(stage)
        begun_second(stage)


def test_none_is_made_where_results_hand_on_a_group(stage: Stage, other: Who) -> None:
    os.chown(stage.results, -1, other.gid)
    stage.results.chmod(0o2711)
    launched(stage)
    second = begun_second(stage)
    found = all_of(stage.building(second.spec["job"]))
    assert {stat.st_gid for stat in found.values()} == {other.gid}


def test_none_is_made_where_results_hand_on_a_label(stage: Stage) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can label")
    for folder, label in ((stage.run, b"u:r:run_t"), (stage.results, b"u:r:results_t")):
        os.setxattr(folder, "security.selinux", label)
    assert not are_alike(stage)
    os.setxattr(stage.results, "security.selinux", b"u:r:run_t")
    assert are_alike(stage)


def test_none_is_made_where_results_hand_on_attributes(stage: Stage) -> None:
    tried = subprocess.run(["chattr", "+A", stage.results], check=False, capture_output=True)
    if tried.returncode:
        pytest.skip("this file system has none")
    assert not are_alike(stage)
    subprocess.run(["chattr", "+A", stage.run], check=True)
    assert are_alike(stage)


def are_alike(stage: Stage) -> bool:
    with opened(stage.run) as run_fd, opened(stage.results) as results_fd:
        return package.is_alike(run_fd, results_fd)


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
def opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def mounted(state: Path, options: str) -> Iterator[None]:
    """Have a state directory on a disk of its own."""
    with mounted_as(state, "-t", "tmpfs", "-o", options, "none"):
        for folder in ("run", "results"):
            (state / folder).mkdir()
        yield


@contextmanager
def mounted_as(where: Path, *arguments: str) -> Iterator[None]:
    if os.getuid() != 0:
        pytest.skip("only root can mount")
    subprocess.run(["mount", *arguments, where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)
