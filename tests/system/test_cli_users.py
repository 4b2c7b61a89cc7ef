"""Several users of one daemon: each sees and touches only what is his."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.service import PROGRAMS, Service
from tests.system.conftest import CONFIG, Cli, Gate

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else"),
]


def as_user(name: str) -> list[str]:
    """Return what runs a command as a user, with his groups."""
    user = pwd.getpwnam(name)
    before = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"]
    # By a shell: setpriv itself may still look where the user it becomes may not.
    line = f"exec '{sys.executable}' -c ''"
    if subprocess.run([*before, "sh", "-c", line], capture_output=True).returncode != 0:
        # The interpreter lies where only root looks: this lets him read it, and no more.
        before += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return before


@pytest.fixture(scope="module")
def user_name() -> Iterator[str]:
    name = f"aitbcd-u{os.getpid()}"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True)
    yield name
    subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def open_daemon() -> Iterator[Service]:
    """A daemon of root's whose folders others can reach."""
    with tempfile.TemporaryDirectory(prefix="aitbcd-users-") as folder:
        Path(folder).chmod(0o755)
        made = Service(Path(folder) / "daemon", CONFIG)
        made.socket.parent.chmod(0o755)
        with made:
            yield made


@pytest.fixture
def root(open_daemon: Service, tmp_path: Path) -> Iterator[Cli]:
    with closing(Cli(open_daemon, tmp_path)) as ours:
        yield ours


@pytest.fixture
def other(open_daemon: Service, user_name: str) -> Iterator[Cli]:
    """The command line of another user than root."""
    home = Path(pwd.getpwnam(user_name).pw_dir)
    with closing(Cli(open_daemon, home, as_user(user_name))) as ours:
        yield ours


def test_a_daemon_of_somebody_else_is_his_to_start_again(other: Cli) -> None:
    path = other.folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    path.chmod(0o666)
    said = other("list", code=5, environ={"AITBC_SOCKET": str(path)}).stderr.decode()
    assert "\n  have root start it again (" in said
    shutil.chown(path, other.folder.owner())
    said = other("list", code=5, environ={"AITBC_SOCKET": str(path)}).stderr.decode()
    assert "\n  start it again (" in said


def test_whose_own_daemon_is_gone_is_told_that_it_is_about_another(
    other: Cli, open_daemon: Service
) -> None:
    gone, found = (other.folder / name / "aitbcd.sock" for name in ("run/aitbcd", "state/runtime"))
    for path in (gone, found):
        path.parent.mkdir(parents=True)
        for folder in (path.parent, path.parent.parent):
            shutil.chown(folder, other.folder.owner())
    # As root's would be found behind it.
    found.symlink_to(open_daemon.socket)
    environ = {
        "AITBC_SOCKET": "",
        "AITBCD_RUNTIME_DIR": "",
        "AITBCD_STATE_DIR": str(found.parent.parent),
        "XDG_RUNTIME_DIR": str(gone.parent.parent),
    }
    assert other("submit", "--", "true", environ=environ).stderr == b""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(gone))
    gone.chmod(0o666)
    for verb in (("submit", "--", "true"), ("submit", "--wait", "--", "true"), ("list",)):
        said = other(*verb, environ=environ).stderr.decode()
        assert said.count(f"nobody listens on {gone}") == 1
        assert said.count(f"this is the one at {found}") == 1


def test_the_doctor_looks_at_the_configuration_of_the_daemon_that_answers(other: Cli) -> None:
    """One's own is for one's own daemon, and says nothing of root's."""
    own = other.folder / ".config/aitbcd/aitbcd.toml"
    own.parent.mkdir(parents=True)
    own.write_text("[nonsense]\n")
    environ = {"HOME": str(other.folder), "XDG_CONFIG_HOME": "", "AITBCD_CONFIG": ""}
    found = json.loads(other("doctor", "--json", environ=environ).stdout)["findings"]
    said = [each["detail"] for each in found if each["about"] == "configuration"]
    assert len(said) == 1
    assert "/etc/aitbcd/aitbcd.toml" in said[0]


def test_the_doctor_takes_nothing_of_ones_own_for_somebody_else_s_daemon(other: Cli) -> None:
    own = other.folder / "own"
    own.mkdir()
    (own / "aitbcd.toml").touch()
    for path in (own, own / "aitbcd.toml"):
        shutil.chown(path, other.folder.owner())
    environ = {"AITBCD_RUNTIME_DIR": str(own), "AITBCD_CONFIG": str(own / "aitbcd.toml")}
    said = other("doctor", environ=environ).stdout.decode()
    assert "OK    permissions: nobody else can change" in said


def test_a_job_runs_as_who_submitted_it(other: Cli, user_name: str) -> None:
    job = other.shell("id -un; id -u; echo $HOME; touch made", "--clean-env")
    assert other.ended(job)["status"] == "completed", other("logs", job).stderr
    user = pwd.getpwnam(user_name)
    lines = other("logs", job).stdout.decode().splitlines()
    assert lines == [user_name, str(user.pw_uid), user.pw_dir]
    assert (other.folder / "made").stat().st_uid == user.pw_uid
    assert other.status(job)["user"] == user_name


def test_his_results_are_his_to_read_download_and_verify(other: Cli, user_name: str) -> None:
    job = other.shell("echo his")
    other.ended(job)
    result = Path(other.status(job)["result_path"])
    assert result.stat().st_uid == pwd.getpwnam(user_name).pw_uid
    other("verify", job)
    copy = other.folder / job
    other("download", job)
    assert (copy / "result.txt").read_text() == "his\n"
    assert (copy / "result.txt").stat().st_uid == pwd.getpwnam(user_name).pw_uid
    shutil.rmtree(copy)


def test_where_he_may_not_write_nothing_is_copied(other: Cli) -> None:
    job = other.submit("--", "true")
    other.ended(job)
    done = other("download", job, "--output", "/", code=1)
    assert f"cannot write /{job}: Permission denied" in done.stderr.decode()


@pytest.mark.parametrize("verb", ["status", "get", "logs", "watch", "cancel", "download", "verify"])
def test_another_users_job_does_not_exist(root: Cli, other: Cli, gate: Gate, verb: str) -> None:
    job = root.shell(gate.wait)
    other(verb, job, code=3)
    assert job not in other.job_ids()
    assert root.status(job)["status"] != "canceled"


def test_the_latest_job_is_the_callers_own(root: Cli, other: Cli) -> None:
    his = other.submit("--", "true")
    ours = root.submit("--", "true")
    assert other.status("@")["job_id"] == his
    assert root.status("@")["job_id"] == ours


def test_root_may_see_and_end_anybodys_job(root: Cli, other: Cli, user_name: str) -> None:
    job = other.shell("exec sleep 1000")
    other.until(job, "running")
    assert root.status(job)["user"] == user_name
    assert job not in root.job_ids(), "the list is of one's own"
    for options in (["--all"], ["--user", user_name]):
        assert job in [one["job_id"] for one in root.json("list", *options)["jobs"]]
    assert b"only administrators" in other("list", "--all", code=4).stderr
    assert b"only administrators" in other("list", "--user", "root", code=4).stderr
    assert job in other("queue").stdout.decode()
    root("cancel", "--force", job)
    assert other.status(job)["status"] == "canceled"


def test_a_daemon_of_one_user_is_closed_to_the_others(tmp_path: Path, user_name: str) -> None:
    """A socket with mode 0600 is refused with whose it is."""
    user = pwd.getpwnam(user_name)
    home = Path(user.pw_dir)
    service = Service(home / "own")
    for path in (service.folder, service.config):
        os.chown(path, user.pw_uid, user.pw_gid)
    runtime = service.socket.parent
    runtime.chmod(0o755)
    os.chown(runtime, user.pw_uid, user.pw_gid)
    started = subprocess.Popen(
        [*as_user(user_name), str(PROGRAMS / "aitbcd")],
        env=os.environ | service.environ | {"HOME": user.pw_dir},
        cwd=home,
        stderr=subprocess.PIPE,
    )
    try:
        assert started.stderr is not None
        said = b""
        for line in started.stderr:
            said += line
            if str(service.socket).encode() in line:
                break
        else:
            pytest.fail(said.decode())
        nobody = Cli(service, Path("/"), as_user("nobody"))
        done = nobody("list", code=5)
        assert f"belongs to {user_name} with mode 0600" in done.stderr.decode()
        assert Cli(service, home, as_user(user_name))("list").stderr == b"no jobs\n"
    finally:
        started.terminate()
        started.communicate()
        runtime.rmdir()


def test_results_shared_with_a_user_are_his_to_download_and_verify_and_no_more(
    root: Cli, other: Cli, user_name: str
) -> None:
    job = root.shell("echo shared; head -c 100000 /dev/urandom >$AITBC_ARTIFACTS_DIR/x")
    root.ended(job)
    other("download", job, code=3)
    said = root("share", job, "--with", user_name).stdout.decode()
    assert f"aitbcctl download {job}" in said
    other("download", job, "--output", "folder")
    other("download", job, "--output", "zip", "--format", "zip")
    assert b"all as sealed" in other("verify", job).stdout
    for args in ((job, "--path", "folder"), ("--path", f"folder/{job}")):
        done = other("verify", *args)
        assert b"all as sealed" in done.stdout
        assert f"{job} is another user's" in done.stderr.decode()
    for verb in ("get", "logs", "cancel", "share", "delete", "retry", "keep"):
        other(verb, job, code=3)
    root("share", job, "--revoke")
    other("verify", job, code=3)
