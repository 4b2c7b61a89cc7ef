"""A real daemon for the tests of its API: one a module, and further ones where a test needs it."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.driver import Driver, build
from tests.service import PLAIN_CONFIG, Service, wait_for

Json = dict[str, Any]

CONFIG = PLAIN_CONFIG + '[slots]\ncpus = 4\nmemory = "8G"\n[jobs]\ncancel_grace = "1s"\n'
#: Runs until the file that $1 names is there.
WAIT = 'until test -e "$1"; do sleep 0.02; done'


class Box:
    """A daemon, an HTTP client for it, and what tests do with both."""

    def __init__(self, service: Service) -> None:
        self.service = service
        transport = httpx.HTTPTransport(uds=str(service.socket))
        self.http = httpx.Client(transport=transport, base_url="http://localhost", timeout=120)

    def submit(self, *argv: object, **more: object) -> Json:
        """Submit a job; return its status."""
        body = {"argv": [*argv], **more} if argv else more
        answer = self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 201, answer.text
        job: Json = answer.json()
        return job

    def submit_waiting(self, gate: Path, **more: object) -> str:
        """Submit a job that runs until ``gate`` is there; return its id when it runs."""
        job: str = self.submit("/bin/sh", "-c", WAIT, "sh", str(gate), **more)["job_id"]
        self.reached(job, "running")
        return job

    def run(self, *argv: object, **more: object) -> Json:
        """Submit a job and return its status when it is over."""
        return self.ended(self.submit(*argv, **more)["job_id"])

    def shell(self, line: str, **more: object) -> Json:
        return self.run("/bin/sh", "-c", line, **more)

    def status(self, ref: str, *, detail: bool = False) -> Json:
        answer = self.http.get(f"/v1/jobs/{ref}", params={"detail": "true"} if detail else {})
        assert answer.status_code == 200, answer.text
        job: Json = answer.json()
        return job

    def reached(self, ref: str, status: str) -> Json:
        """Return the job's status once it is this one."""

        def look() -> Json | None:
            job = self.status(ref)
            return job if job["status"] == status else None

        return wait_for(f"{ref} is {status}", look, log=self.service.log)

    def ended(self, ref: str) -> Json:
        """Return the job's status once it is over."""
        # The stream ends with the job.
        answer = self.http.get(f"/v1/jobs/{ref}/events", params={"follow": "true"})
        assert answer.status_code == 200, answer.text
        return self.status(ref)

    def log(self, ref: str, stream: str = "stdout") -> bytes:
        answer = self.http.get(f"/v1/jobs/{ref}/logs/{stream}")
        assert answer.status_code == 200, answer.text
        return answer.content

    def package(self, ref: str) -> Path:
        return Path(self.status(ref)["result_path"])

    def connect(self) -> socket.socket:
        """Return a connection of a client that need not speak HTTP well."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(120)
        sock.connect(str(self.service.socket))
        return sock


@contextmanager
def serving(folder: Path, config: str = CONFIG, *, prelude: str = "") -> Iterator[Box]:
    """Run a daemon of one's own."""
    with Service(folder, config, prelude=prelude) as service:
        box = Box(service)
        with box.http:
            yield box


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with serving(tmp_path_factory.mktemp("daemon")) as made:
        yield made


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(nvml_library: Path, tmp_path: Path) -> Driver:
    """A driver without GPUs, until the test writes some."""
    return Driver(nvml_library, tmp_path / "nvml.script")


@pytest.fixture(scope="module")
def shared() -> Iterator[Box]:
    """A daemon of root's whose socket others reach."""
    with tempfile.TemporaryDirectory(prefix="aitbcd-users-") as folder:
        Path(folder).chmod(0o755)
        service = Service(Path(folder) / "daemon", CONFIG.replace('""', '"127.0.0.1:0"', 1))
        service.socket.parent.chmod(0o755)
        with service:
            box = Box(service)
            with box.http:
                yield box


def tcp_of(box: Box) -> tuple[str, int]:
    """Return where a daemon serves TCP, once it says so."""

    def look() -> tuple[str, int] | None:
        # The one that runs now: a daemon before it may have said another.
        said = box.service.log.read_text().partition(f"pid {box.service.pid}\n")[2]
        found = re.search(r"http://127\.0\.0\.1:(\d+)\n", said)
        return ("127.0.0.1", int(found[1])) if found else None

    return wait_for("it says its port", look, log=box.service.log)


def problem(answer: httpx.Response, status: int, code: str) -> Json:
    """Return the problem document of an answer after a look at its form (RFC 9457)."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: Json = answer.json()
    assert {"type", "title", "status", "detail", "code", "hint"} <= document.keys()
    assert (document["status"], document["code"]) == (status, code), document
    assert document["type"] == f"urn:aitbc:problem:{code}"
    return document


def proc_numbers(pid: int, file: str) -> dict[str, int]:
    """Return the numbers of /proc/PID/FILE by name, in bytes where they are in kB."""
    found = {}
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


# -- other users --------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        document: Json = json.loads(self.body)
        return document


class User(NamedTuple):
    """Somebody else than root, who asks with his own credentials."""

    name: str
    uid: int
    gid: int
    home: Path

    def ask(
        self, where: Path | tuple[str, int], method: str, path: str, body: object = None
    ) -> Answer:
        """Send one request, on a connection that he makes."""
        connection = _Connection(where, self.uid)
        try:
            text = json.dumps(body).encode() if body is not None else None
            connection.request(method, path, text)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, headers, answer.read())
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, where: Path | tuple[str, int], uid: int) -> None:
        super().__init__("127.0.0.1", timeout=120)
        self._where = where
        self._uid = uid

    def connect(self) -> None:
        # The kernel keeps whose a socket is from here on.
        os.seteuid(self._uid)
        try:
            if isinstance(self._where, Path):
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.connect(str(self._where))
            else:
                self.port = self._where[1]
                self.sock = socket.socket(socket.AF_INET)
                self.sock.connect(self._where)
        finally:
            os.seteuid(0)
        self.sock.settimeout(120)


@contextmanager
def new_user(suffix: str) -> Iterator[User]:
    name = f"aitbcd-{suffix}{os.getpid()}"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True)
    try:
        entry = pwd.getpwnam(name)
        yield User(name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


@pytest.fixture(scope="session")
def ada() -> Iterator[User]:
    with new_user("a") as user:
        yield user


@pytest.fixture(scope="session")
def bob() -> Iterator[User]:
    with new_user("b") as user:
        yield user


def as_user(user: User) -> list[str]:
    """Return what runs a command as a user."""
    before = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]
    line = f"exec '{sys.executable}' -c ''"
    if subprocess.run([*before, "sh", "-c", line], capture_output=True).returncode != 0:
        # The interpreter lies where only root looks: this lets him read it, and no more.
        before += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return before
