"""Whose a container is, and that it ends with its job."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aitbcd.launcher import containers, processes
from tests.containers import ID, OF_ROOT, OF_USER, OTHER_ID, container
from tests.driver import program

JOB = "job_0000000a"
SLEEP = ("sleep", "1000")
OWNER = 64321


@pytest.fixture
def results(tmp_path: Path) -> Iterator[int]:
    """A folder with the package of a job that runs, of its own user."""
    (tmp_path / f".{JOB}").mkdir()
    os.chown(tmp_path / f".{JOB}", OWNER, OWNER)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def named(results: int, path: str, uid: int = 0, **env: str) -> str | None:
    """Return the job that a program with this environment in a cgroup is found to be of."""
    with container(path, *SLEEP, uid=uid, env=env) as running:
        return containers.jobs_of([running.pid], results).get(str(running.pid))


@pytest.mark.parametrize("kind", OF_ROOT)
def test_a_container_of_roots_is_of_the_job_that_its_environment_names(
    results: int, kind: str
) -> None:
    path = OF_ROOT[kind].format(id=ID)
    assert named(results, path, AITBC_JOB_ID=JOB) == JOB
    assert named(results, path, uid=65534, AITBC_JOB_ID=JOB) == JOB
    assert named(results, path) is None
    assert named(results, path, AITBC_JOB_ID="../x") is None


@pytest.mark.parametrize("kind", OF_USER)
def test_a_users_container_is_of_a_job_of_that_user_alone(results: int, kind: str) -> None:
    own = OF_USER[kind].format(id=ID, uid=OWNER)
    assert named(results, own, uid=100_000, AITBC_JOB_ID=JOB) == JOB
    assert named(results, own, uid=100_000, AITBC_JOB_ID="job_0000000b") is None
    other = OF_USER[kind].format(id=ID, uid=OWNER + 1)
    assert named(results, other, uid=100_000, AITBC_JOB_ID=JOB) is None


@pytest.mark.parametrize(
    "path",
    [
        "/aitbcd-test",
        # Somebody's service that was given a cgroup of its own can name one below it as it likes.
        "/system.slice/his.service/docker-{id}.scope",
        "/system.slice/docker-{id}x.scope",
    ],
)
def test_another_cgroup_is_no_container_whatever_the_environment_says(
    results: int, path: str
) -> None:
    assert named(results, path.format(id=ID), AITBC_JOB_ID=JOB) is None


def test_a_worker_that_wrote_over_its_environment_is_of_its_container(results: int) -> None:
    path = OF_ROOT["docker, cgroupfs"].format(id=ID)
    with container(path, *SLEEP, env={"AITBC_JOB_ID": JOB}) as init:
        with container(path, *SLEEP) as worker:
            found = containers.jobs_of([init.pid, worker.pid], results)
        assert found == {str(init.pid): JOB, str(worker.pid): JOB}


# Docker's daemon


#: Answers as docker's daemon (Engine 28.2, API 1.50) does of one container with a label, and notes
#: who asked for what.
DAEMON = """
import json, socket, struct, sys
address, known, job, log = sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.bind(address)
server.listen()
print(flush=True)
while True:
    connection, _ = server.accept()
    uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    request = connection.recv(4096).decode()
    with open(log, "a") as file:
        file.write(f"{uid} {request.splitlines()[0]}\\n")
    is_known = f"/containers/{known}/json" in request
    body = {"Id": known, "Config": {"Labels": {"aitbc.job": job}}}
    status = "200 OK" if is_known else "404 Not Found"
    head = f"HTTP/1.0 {status}\\r\\nApi-Version: 1.50\\r\\nContent-Type: application/json\\r\\n"
    text = json.dumps(body if is_known else {"message": "No such container"})
    connection.sendall(f"{head}\\r\\n{text}".encode())
    connection.close()
"""


@contextmanager
def dockerd(address: Path, log: Path, job: str = JOB) -> Iterator[None]:
    """Run a docker that writes to ``log`` who asked for what."""
    log.touch()
    with program(sys.executable, "-c", DAEMON, str(address), ID, job, str(log)) as running:
        assert running.stdout
        assert running.stdout.readline()
        yield


@pytest.fixture
def runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where each docker is, for this test: users' own are below it."""
    monkeypatch.setattr(containers, "_patience_s", {})
    monkeypatch.setattr(containers, "DOCKER", str(tmp_path / "docker.sock"))
    # Where users can get to.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setattr(containers, "RUNTIMES", name)
        os.chmod(name, 0o711)
        folder = Path(name, str(OWNER))
        folder.mkdir(0o700)
        os.chown(folder, OWNER, OWNER)
        yield folder


ASKED = f"GET /containers/{ID}/json HTTP/1.0"


def test_a_label_names_the_job_where_the_environment_does_not(
    results: int, runtimes: Path, tmp_path: Path
) -> None:
    with dockerd(Path(containers.DOCKER), tmp_path / "log"):
        assert named(results, OF_ROOT["docker, systemd"].format(id=ID)) == JOB
        assert (tmp_path / "log").read_text() == f"0 {ASKED}\n"
        assert named(results, OF_ROOT["docker, systemd"].format(id=OTHER_ID)) is None
        # Who has a slice of his own has no say in what root's docker runs.
        assert named(results, OF_USER["docker, rootless"].format(id=ID, uid=OWNER)) is None
        assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_a_user_s_own_docker_is_asked_as_that_user_and_of_his_jobs_alone(
    results: int, runtimes: Path, tmp_path: Path
) -> None:
    path, address = OF_USER["docker, rootless"].format(id=ID, uid=OWNER), runtimes / "docker.sock"
    with dockerd(address, tmp_path / "log"):
        os.chown(address, OWNER, OWNER)
        os.chmod(address, 0o600)
        assert named(results, path) == JOB
        assert (tmp_path / "log").read_text() == f"{OWNER} {ASKED}\n"
    address.unlink()
    with dockerd(address, tmp_path / "log", "job_0000000b"):
        os.chown(address, OWNER, OWNER)
        assert named(results, path) is None
    # A name for a socket that he cannot get to himself.
    address.unlink()
    with dockerd(Path(containers.DOCKER), tmp_path / "roots"):
        os.chmod(containers.DOCKER, 0o600)
        os.chmod(tmp_path, 0o711)
        address.symlink_to(containers.DOCKER)
        assert named(results, path) is None
        assert not (tmp_path / "roots").read_text()


def test_docker_s_daemon_is_not_waited_for_twice(
    results: int, runtimes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "_ANSWERS_S", 0.1)
    path = OF_ROOT["docker, cgroupfs"]
    with (
        socket.socket(socket.AF_UNIX) as silent,
        container(path.format(id=ID), *SLEEP) as one,
        container(path.format(id=OTHER_ID), *SLEEP) as other,
    ):
        silent.bind(containers.DOCKER)
        silent.listen()
        assert containers.jobs_of([one.pid, other.pid], results) == {}
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


# Its end


@pytest.mark.parametrize("path", [*OF_ROOT.values(), *OF_USER.values()])
def test_containers_count_that_are_not_older_than_an_attempt(path: str) -> None:
    before = processes.ticks_now()
    with container(path.format(id=ID, uid=OWNER), *SLEEP) as running:
        (started,) = processes.of_pids([running.pid])
        assert before <= started.start <= processes.ticks_now()
        assert containers.is_any_since(before, OWNER)
        assert not containers.is_any_since(started.start + 1, OWNER)
        if path in OF_USER.values():
            assert not containers.is_any_since(before, OWNER + 1)
    assert not containers.is_any_since(before, OWNER)


def test_the_containers_of_an_attempt_end_with_it_and_no_others(results: int) -> None:
    path = OF_ROOT["docker, cgroupfs"]
    ours = {"AITBC_JOB_ID": JOB, "AITBC_ATTEMPT": "1"}
    with (
        container(path.format(id=ID), *SLEEP, uid=65534, env=ours) as init,
        container(path.format(id=ID), *SLEEP, uid=65534) as worker,
        container(path.format(id=OTHER_ID), *SLEEP, env=ours | {"AITBC_ATTEMPT": "2"}) as other,
    ):
        assert containers.end(JOB, 1, results) == []
        assert [init.wait(10), worker.wait(10)] == [-9, -9]
        assert other.poll() is None
        assert containers.end("job_0000000b", 1, results) == []
        assert other.poll() is None
