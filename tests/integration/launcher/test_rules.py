"""A root launcher for a daemon of another user, who may have been taken over: what he can ask for.

The test speaks in that daemon's place.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher import Daemon, Stage, Who, myself
from tests.service import wait_for

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can have others' jobs run")


@pytest.fixture(scope="module")
def service() -> Iterator[Who]:
    """The user of the daemon: one of the system's."""
    name = f"aitbcd-s{os.getpid()}"
    subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", name], check=True)
    entry = pwd.getpwnam(name)
    yield Who(entry.pw_uid, entry.pw_gid, name)
    subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.fixture
def config(stage: Stage, other: Who) -> Path:
    """A table that allows ``other``, by his further group."""
    file = stage.folder / "aitbcd.toml"
    file.write_text(f'[launcher]\ngroups = ["{other.name}-x"]\n')
    return file


def launch(stage: Stage, service: Who, config: Path) -> bool:
    os.chown(stage.state, service.uid, service.gid)
    listens = stage.launch("--lasting", "--config", config)
    if not listens:
        stage.wait()
    return listens


@pytest.fixture
def separate(stage: Stage, service: Who, config: Path) -> Daemon:
    assert launch(stage, service, config), stage.said()
    daemon = stage.connect()
    daemon.hello()
    return daemon


def test_a_member_s_job_runs_as_him_and_the_daemon_can_read_its_package(
    stage: Stage, separate: Daemon, other: Who, service: Who
) -> None:
    spec = stage.shell("id -u; id -Gn", who=other)
    done = separate.run(spec)
    uid, groups = done.stdout.decode().splitlines()
    assert int(uid) == other.uid
    assert set(groups.split()) == {other.name, f"{other.name}-x"}
    sealed = stage.sealed(spec).stat()
    assert (sealed.st_uid, sealed.st_gid) == (other.uid, service.gid)
    assert (stage.run.stat().st_uid, stage.run.stat().st_gid) == (0, service.gid)


def refused(stage: Stage, daemon: Daemon, who: Who) -> str:
    spec = stage.spec("/bin/touch", str(stage.folder / "ran"), who=who)
    answer = daemon.ask("start", **spec)
    assert (answer["op"], answer["why"]) == ("refused", "forbidden")
    assert not stage.run_folder(spec).exists()
    assert not stage.building(spec["job"]).exists()
    said: str = answer["error"]
    return said


def test_nobody_else_s_job_starts(stage: Stage, separate: Daemon, other: Who, service: Who) -> None:
    assert "[launcher] root = true" in refused(stage, separate, myself())
    assert "is no person's" in refused(stage, separate, service)
    assert "is no person's" in refused(stage, separate, Who(1, 1, "daemon"))
    assert "is no person's" in refused(stage, separate, Who(65534, 65534, "nobody"))
    # The right uid with rights that are another's.
    for claimed in (
        other._replace(gid=0),
        other._replace(name="root"),
        Who(other.uid, 65534, f"#{other.uid}"),
        Who(0, other.gid, other.name),
    ):
        refused(stage, separate, claimed)
    assert not (stage.folder / "ran").exists()


def test_who_is_in_none_of_the_groups_is_told_which_they_are(
    stage: Stage, service: Who, other: Who
) -> None:
    config = stage.folder / "aitbcd.toml"
    assert launch(stage, service, config), stage.said()
    daemon = stage.connect()
    daemon.hello()
    assert "none of the groups aitbc, aitbc-admin" in refused(stage, daemon, other)


def test_an_order_to_seal_as_somebody_else_is_carried_out_as_the_job_s_user(
    stage: Stage, separate: Daemon, other: Who
) -> None:
    spec = stage.spec("/bin/true", who=other)
    attempt = separate.start(spec)
    attempt.exited()
    secret = stage.folder / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    sealed = attempt.seal(uid=0, gid=0, user="root", artifacts=["secret"], cwd=str(stage.folder))
    assert sealed["op"] == "sealed"
    assert stage.sealed(spec).stat().st_uid == other.uid
    assert not (stage.sealed(spec) / "artifacts" / "secret").exists()
    refusal = separate.ask("seal", **stage.order(stage.spec("x", who=myself())))
    assert refusal["op"] == "seal_failed"


@pytest.mark.parametrize("job", ["../../job_x", "job_../x", "job_x/../..", "", "job_", 7])
def test_a_name_that_leads_out_of_the_folders_is_not_obeyed(
    stage: Stage, separate: Daemon, job: object
) -> None:
    before = sorted(stage.folder.rglob("*"))
    separate.tell("tombstone", job=job, attempt=1)
    assert separate.sock.recv(1) == b""
    assert sorted(stage.folder.rglob("*")) == before
    again = stage.connect()
    assert again.hello()["pid"] == stage.pid


@pytest.mark.parametrize("name", ["run", "results"])
def test_a_folder_that_the_daemon_has_put_there_is_not_used(
    stage: Stage, service: Who, config: Path, name: str
) -> None:
    (stage.state / name).rename(stage.state / "away")
    (stage.state / name).symlink_to("/etc")
    stage.log = stage.folder / "log"
    assert not launch(stage, service, config)
    assert name in stage.said()
    (stage.state / name).unlink()
    (stage.state / name).mkdir()
    os.chown(stage.state / name, service.uid, service.gid)
    assert not launch(stage, service, config)
    assert "belongs to another user" in stage.said()


def test_a_table_that_others_can_write_is_not_believed(
    stage: Stage, service: Who, config: Path
) -> None:
    os.chown(config, service.uid, 0)
    assert not launch(stage, service, config)
    assert "others than root can write it" in stage.said()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[launcher", "Expected ']'"),
        ("[launcher]\ngroups = 'all'\n", "expected a list of names"),
        ("[launcher]\nroot = 1\n", "expected true or false"),
        ("[launcher]\nno_new_privs = 'no'\n", "no_new_privs in [launcher] is 'no': expected true"),
        ("[launcher]\nuser = 'x'\n", "unknown key in [launcher]: user"),
        ("launcher = 3\n", "launcher is 3: expected a table"),
        ("[[launcher]]\nroot = true\n", "expected a table [launcher]"),
    ],
)
def test_a_wrong_table_starts_nothing_and_changes_nothing_later(
    stage: Stage, service: Who, config: Path, other: Who, text: str, words: str
) -> None:
    right = config.read_text()
    config.write_text(text)
    assert not launch(stage, service, config)
    assert stage.wait() == 2
    assert f"{config}: " in stage.said()
    assert words in stage.said()
    config.write_text(right)
    assert launch(stage, service, config)
    daemon = stage.connect()
    daemon.hello()
    before = len(stage.said())
    config.write_text(text)
    assert stage.process is not None
    stage.process.send_signal(signal.SIGHUP)
    wait_for("it is said", lambda: words in stage.said()[before:], log=stage.log)
    assert daemon.run(stage.spec("/bin/true", who=other)).facts["exit_code"] == 0


def test_new_privileges_are_forbidden_by_its_own_table(
    stage: Stage, service: Who, other: Who, config: Path
) -> None:
    config.write_text(config.read_text() + "no_new_privs = true\n")
    assert launch(stage, service, config), stage.said()
    daemon = stage.connect()
    daemon.hello()
    spec = stage.shell("grep NoNewPrivs /proc/self/status", who=other, no_new_privs=False)
    assert daemon.run(spec).stdout == b"NoNewPrivs:\t1\n"


def test_the_table_is_read_again_on_sighup(stage: Stage, separate: Daemon, config: Path) -> None:
    refused(stage, separate, myself())
    config.write_text("[launcher]\nroot = true\n")
    assert stage.process is not None
    stage.process.send_signal(signal.SIGHUP)

    def is_allowed() -> bool:
        answer = separate.ask("start", **stage.spec("/bin/true"))
        return bool(answer["op"] == "placed")

    wait_for("root may have jobs", is_allowed, log=stage.log)


def test_a_table_that_was_saved_counts_for_the_next_job(
    stage: Stage, separate: Daemon, config: Path, other: Who
) -> None:
    def is_allowed() -> bool:
        return bool(separate.ask("start", **stage.spec("/bin/true", who=other))["op"] == "placed")

    right = config.read_text()
    config.write_text("[launcher]\ngroups = []\n")
    assert not is_allowed()
    # As an editor saves.
    new = config.with_name("new")
    new.write_text(right)
    new.rename(config)
    assert is_allowed()
    for spoil in (
        lambda: config.write_text("[launcher]\ngroups = x\n"),
        lambda: config.chmod(0o666),
        config.unlink,
    ):
        spoil()
        assert is_allowed()
    assert is_allowed()
    said = stage.said()
    assert said.count("the table as it was stays") == 2
    assert f"{config}: Invalid value (at line" in said
    assert f"{config}: others than root can write it" in said
