"""A sealed package is removed as its owner: all of it, or with a word why not."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aitbcd.launcher.identity import Identity, do_as
from aitbcd.launcher.protocol import Message, gone_name
from aitbcd.paths import Paths
from aitbcd.runs import Refused, Runs
from tests.launcher import Daemon, Stage, Who, myself
from tests.service import children, wait_for

REMOVED = {"op": "removed", "left": None}


@pytest.fixture(params=["myself", "another user"])
def who(request: pytest.FixtureRequest) -> Who:
    if request.param == "myself":
        return myself()
    found: Who = request.getfixturevalue("other")
    return found


def sealed(stage: Stage, daemon: Daemon, who: Who, line: str = "echo out") -> Path:
    """Return the sealed package of a job that ran this in its artifacts."""
    spec = stage.shell(f'cd "$AITBC_ARTIFACTS_DIR" && {line}', who=who)
    assert daemon.run(spec).facts["exit_code"] == 0
    return stage.sealed(spec)


def remove(daemon: Daemon, package: Path, who: Who) -> Message:
    answer = daemon.ask("remove_package", **about(package, who))
    del answer["rid"]
    return answer


def about(package: Path, who: Who) -> Message:
    return {"job": package.name, "uid": who.uid, "gid": who.gid, "user": who.name}


def as_user(who: Who, action: Callable[[], None]) -> None:
    def step() -> Message:
        action()
        return {}

    do_as(None if who.uid == os.getuid() else Identity(*who), step, 60)


def test_a_package_goes_whole_and_a_second_time_is_as_good(
    stage: Stage, daemon: Daemon, who: Who
) -> None:
    package = sealed(stage, daemon, who, "mkdir -p a/b && echo x > a/b/c && ln -s /etc a/link")
    neighbour = sealed(stage, daemon, who)
    for _ in range(2):
        assert remove(daemon, package, who) == REMOVED
        assert os.listdir(stage.results) == [neighbour.name]


def test_one_that_never_was_is_removed(daemon: Daemon, who: Who) -> None:
    assert remove(daemon, Path("job_00000000"), who) == REMOVED


@pytest.mark.parametrize("is_gone", [False, True])
def test_while_it_is_read_nothing_changes(
    stage: Stage, daemon: Daemon, who: Who, is_gone: bool
) -> None:
    package = sealed(stage, daemon, who, "echo x > file")
    if is_gone:
        package = package.rename(stage.results / gone_name(package.name))
    job = Path(package.name.removeprefix(".gone_"))
    reader = os.open(package, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    answer = remove(daemon, job, who)
    assert (answer["op"], answer["why"]) == ("refused", "busy")
    assert package.name in answer["error"]
    assert (package / "artifacts/file").read_text() == "x\n"
    os.close(reader)
    assert remove(daemon, job, who) == REMOVED
    assert os.listdir(stage.results) == []


def test_what_a_killed_removal_left_goes_with_the_rest(
    stage: Stage, daemon: Daemon, who: Who
) -> None:
    package = sealed(stage, daemon, who, "echo x > file")
    gone = sealed(stage, daemon, who, "mkdir half").rename(stage.results / gone_name(package.name))
    assert gone.exists()
    assert remove(daemon, package, who) == REMOVED
    assert os.listdir(stage.results) == []


def test_a_removal_that_is_killed_goes_on_when_asked_again(
    stage: Stage, daemon: Daemon, who: Who
) -> None:
    package = sealed(stage, daemon, who, "seq 30000 | xargs touch")
    before = set(children(stage.pid))
    rid = daemon.tell("remove_package", **about(package, who))
    gone = stage.results / gone_name(package.name)
    wait_for("it is renamed", gone.exists)
    for pid in set(children(stage.pid)) - before:
        os.kill(pid, signal.SIGKILL)
    # It may have been done before the kill came.
    assert daemon.answer(rid)["op"] in ("failed", "removed")
    assert remove(daemon, package, who) == REMOVED
    assert os.listdir(stage.results) == []


def test_modes_and_names_hold_nothing_up(stage: Stage, daemon: Daemon, who: Who) -> None:
    package = sealed(stage, daemon, who, "mkdir -p a/1/1 1/2 && touch a/1/1/f 1/2/f 2")
    outside = stage.folder / "outside"
    outside.mkdir()
    (outside / "precious").touch()

    def spoil() -> None:
        for path in (package, package / "artifacts", package / "artifacts/a"):
            path.chmod(0o700)
        (package / "artifacts/out").symlink_to(outside)
        (package / "artifacts/a/out").symlink_to(outside)
        os.mkfifo(package / "artifacts/a/fifo")
        for at, folders, files in os.walk(package, topdown=False):
            for name in (*folders, *files):
                if name != "out":
                    os.chmod(f"{at}/{name}", 0)
        package.chmod(0)

    as_user(who, spoil)
    assert remove(daemon, package, who) == REMOVED
    assert os.listdir(stage.results) == []
    assert os.listdir(outside) == ["precious"]


@pytest.fixture
def foreign(stage: Stage, daemon: Daemon, other: Who) -> Iterator[Path]:
    """A package with things in it that root has made, as a container does."""
    package = sealed(stage, daemon, other, "mkdir -p own/er && touch own/er/f own/f")
    for path in ("artifacts/own/er/roots", "artifacts/mine", "artifacts/empty"):
        (package / path).mkdir()
    for path in ("artifacts/own/er/roots/f", "artifacts/mine/f", "artifacts/f"):
        (package / path).touch()
    yield package
    shutil.rmtree(stage.results / gone_name(package.name), ignore_errors=True)


def test_what_is_another_users_stays_and_is_told(
    stage: Stage, daemon: Daemon, foreign: Path, other: Who
) -> None:
    for _ in range(2):
        answer = remove(daemon, foreign, other)
        assert (answer["op"], answer["why"]) == ("refused", "others")
        assert gone_name(foreign.name) in answer["error"]
        gone = stage.results / gone_name(foreign.name)
        assert os.listdir(stage.results) == [gone.name]
        assert sorted(path.name for path in gone.rglob("*") if path.is_file()) == ["f", "f"]
    shutil.rmtree(gone)
    assert remove(daemon, foreign, other) == REMOVED


def test_what_is_mounted_in_it_is_not_emptied(stage: Stage, daemon: Daemon, other: Who) -> None:
    package = sealed(stage, daemon, other, "mkdir disk")
    options = f"uid={other.uid},mode=0700,size=1m"
    disk = package / "artifacts/disk"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    try:
        (disk / "precious").touch()
        answer = remove(daemon, package, other)
        assert (answer["op"], answer["why"]) == ("refused", "others")
        [left] = stage.results.rglob("precious")
    finally:
        subprocess.run(["umount", left.parent], check=True)
    assert remove(daemon, package, other) == REMOVED


def test_the_launcher_hears_others_meanwhile(stage: Stage, daemon: Daemon, who: Who) -> None:
    package = sealed(stage, daemon, who, "seq 5000 | xargs touch")
    rid = daemon.tell("remove_package", **about(package, who))
    assert daemon.run(stage.spec("true")).facts["exit_code"] == 0
    assert daemon.answer(rid)["op"] == "removed"


def test_the_daemon_removes_many_and_hears_why_not(stage: Stage, daemon: Daemon) -> None:
    packages = [sealed(stage, daemon, myself()) for _ in range(5)]
    reader = os.open(packages[0], os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    who = myself()._asdict() | {"user": myself().name}
    del who["name"]

    async def ask() -> list[BaseException | None]:
        runs = Runs(Paths(stage.state, stage.state, stage.state), boot_id="boot")
        opening = asyncio.create_task(runs.open())
        # It connects at once, so that the launcher sees a next daemon and does not end.
        await asyncio.sleep(0)
        daemon.hang_up()
        await opening
        asked = [runs.remove_package(package.name, who) for package in packages]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await runs.close()
        return answers

    busy, *removed = asyncio.run(ask())
    assert isinstance(busy, Refused)
    assert busy.why == "busy"
    assert removed == [None] * 4
    assert os.listdir(stage.results) == [packages[0].name]
    os.close(reader)
