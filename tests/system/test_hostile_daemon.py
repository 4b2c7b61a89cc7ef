"""The command line at a daemon that is none: whoever answers in its place gains nothing by it."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.service import Service
from tests.system.conftest import Cli, Screen

pytestmark = pytest.mark.system

#: A title, a bell, a cleared screen, a C1 control, a line of its own, a name read backwards.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\nforged\x1b[6n\u202egpj"
TIME = "2026-02-13T10:00:00Z"
ID = "job_7k3m9q2x"


def job(**more: object) -> dict[str, Any]:
    event = {"seq": 1, "time": TIME, "job_id": ID, "number": 1, "attempt": 1,
             "status": "completed", "message": HOSTILE, "reason": HOSTILE}  # fmt: skip
    attempt = {"attempt": 1, "machine": HOSTILE, "gpu_uuids": [HOSTILE], "started_at": TIME,
               "finished_at": TIME, "exit_code": 1, "signal": None, "charge": 0.0}  # fmt: skip
    words = ("name", "user", "message", "reason", "cause", "currency", "contact", "command_line",
             "cwd", "waiting", "miner_id")  # fmt: skip
    return {
        **dict.fromkeys(words, HOSTILE),
        "job_id": ID, "number": 1, "status": "failed", "progress": 1, "created_at": TIME,
        "started_at": TIME, "estimated_completion": None, "attempt": 1, "gpu_uuids": [HOSTILE],
        "retry_of": ID, "charge": 1.0, "finished_at": TIME, "exit_code": 1, "expires_at": TIME,
        "result_path": None, "results": "kept", "command": [HOSTILE], "shell": False,
        "env_names": [HOSTILE], "requested": {"cpus": 1, "gpu_type": HOSTILE},
        "attempts": [attempt], "events": [event], "manifest_sha256": None, "shares": 1,
        "result_files": 1, "result_bytes": 1, "files_total": 1,
        "files": [{"path": HOSTILE, "size": 1, "sha256": "0" * 64}], **more,
    }  # fmt: skip


def gpus() -> dict[str, Any]:
    process = {"pid": 1, "user": HOSTILE, "command": HOSTILE, "memory": 1, "job_id": None,
               "since": None}  # fmt: skip
    gpu = {"index": 0, "uuid": HOSTILE, "name": HOSTILE, "memory_total": 2, "memory_used": 1,
           "utilization": 5, "state": "foreign", "reason": HOSTILE, "jobs": [HOSTILE],
           "processes": [process], "faults": [HOSTILE], "mig": None, "power": 1.0,
           "power_limit": 2.0, "temperature": 3.0}  # fmt: skip
    return {"problem": HOSTILE, "driver_version": HOSTILE, "cuda_version": HOSTILE, "time": TIME,
            "gpus": [gpu]}  # fmt: skip


ANSWERS: dict[str, Callable[[], object]] = {
    "/v1/gpus": gpus,
    "/v1/queue": lambda: {"jobs": [job(status="running", priority="low", cpus=1, gpus=0,
                                       memory=None, since=TIME, until=None, is_mine=True)],
                          "next": HOSTILE},
    "/v1/keys": lambda: {"keys": [{"id": HOSTILE, "name": HOSTILE, "user": HOSTILE,
                                   "plan": HOSTILE, "read_only": False, "created_at": TIME,
                                   "expires_at": None, "last_used_at": None}], "next": None},
    "/v1/retention": lambda: {"stopped": {"reason": HOSTILE, "since": TIME}, "jobs": [job()],
                              "next": None},
    "/v1/jobs?": lambda: {"jobs": [job()], "next": HOSTILE},
}  # fmt: skip


class Impostor:
    """Listens in the place of a daemon; ``answer`` gives the bytes for a request's target."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self.answer: Callable[[str], bytes] = whatever
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, suppress(OSError):
                peer.sendall(self.answer(peer.recv(65536).split(b" ", 2)[1].decode()))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def whatever(target: str) -> bytes:
    if "/logs/" in target:
        return http(HOSTILE.encode())
    if "/events" in target:
        return http(json.dumps(job()["events"][0]).encode() + b"\n")
    for begin, answer in ANSWERS.items():
        if target.startswith(begin):
            return http(json.dumps(answer()).encode())
    if target.endswith("/shares") or target.startswith("/v1/shares"):
        share = {"id": HOSTILE, "job_id": ID, "with": HOSTILE, "created_at": TIME,
                 "expires_at": TIME, "uses": 1, "limited_by_results": False}  # fmt: skip
        return http(json.dumps({"shares": [share], "next": None}).encode())
    return http(json.dumps(job()).encode())


def refusal(_: str) -> bytes:
    problem = {"code": "forbidden", "title": HOSTILE, "detail": HOSTILE, "hint": HOSTILE}
    return http(json.dumps(problem).encode(), "403 No")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Where a daemon would be."""
    made = Service(tmp_path / "daemon")
    yield made
    made.socket.unlink(missing_ok=True)
    made.socket.parent.rmdir()


@pytest.fixture
def impostor(service: Service) -> Iterator[Impostor]:
    with closing(Impostor(service.socket)) as made:
        yield made


@pytest.fixture
def cli(service: Service, impostor: Impostor, tmp_path: Path) -> Iterator[Cli]:
    with closing(Cli(service, tmp_path)) as ours:
        yield ours


VERBS = [
    "list", "status @", "get @", "queue", "gpus", "watch @", "retention", "key list",
    "share --list @", "cancel @", "retry @", "submit -- true", "submit --wait -- true",
    "verify @", "doctor", "logs @",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_no_word_of_a_daemon_commands_a_terminal(
    impostor: Impostor, cli: Cli, screen: Callable[..., Screen], verb: str
) -> None:
    for answer in (whatever, refusal):
        impostor.answer = answer
        shown = screen(cli, *verb.split())
        shown.end()
        assert "Traceback" not in shown.text
        harmful = ["\x1b]", "\x07", "\x9b", "\x1b[6n", *([] if "logs" in verb else ["\x1b[2J"])]
        assert [each for each in harmful if each in shown.text] == []
        if "logs" not in verb:
            assert "\nforged" not in shown.text
            assert "\u202e" not in shown.text


@pytest.mark.parametrize(
    "name", ["../owned", "/tmp/owned", "job_/../owned", "job_..", ".", "job_a\n", "x" * 5000, 7]
)
@pytest.mark.parametrize("shape", ["folder", "zip"])
def test_no_name_of_a_job_leads_out_of_the_folder(
    impostor: Impostor, cli: Cli, name: object, shape: str
) -> None:
    answer = http(json.dumps(job(job_id=name)).encode())
    impostor.answer = lambda _: answer
    before = sorted(os.listdir(cli.folder.parent)), sorted(os.listdir(cli.folder))
    done = cli("download", "@", "--force", "--format", shape, code=5)
    assert b"it calls a job" in done.stderr
    assert (sorted(os.listdir(cli.folder.parent)), sorted(os.listdir(cli.folder))) == before
    assert not Path("/tmp/owned").exists()


@pytest.mark.parametrize("name", ["../owned", "/etc/owned", "a/../../owned", "a//b", "./a", "a\0b"])
def test_no_name_of_a_file_leads_out_of_the_folder(impostor: Impostor, cli: Cli, name: str) -> None:
    listed = f"{'0' * 64}  {name}\n".encode()
    others = http(json.dumps(job(status="completed")).encode())

    def answer(target: str) -> bytes:
        return http(listed) if "/files/output.sha256" in target else others

    impostor.answer = answer
    for shape in ("folder", "zip"):
        done = cli("download", "@", "--format", shape, code=1)
        assert b"nothing was copied" in done.stderr
        assert sorted(os.listdir(cli.folder)) == ["daemon"]


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-8\r\n{}",
        b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\xfe{}",
        b"HTTP/1.1 500 No\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000,
        b"HTTP/1.1 429 No\r\nRetry-After: -1\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=range(8),
)
def test_an_answer_that_is_none_is_said_in_a_sentence(
    impostor: Impostor, cli: Cli, said: bytes
) -> None:
    impostor.answer = lambda _: said
    assert b"is no aitbcd" in cli("list", code=5).stderr
