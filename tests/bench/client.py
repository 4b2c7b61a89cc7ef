"""HTTP over the daemon's Unix socket for measuring: one warm connection, little of its own cost."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self


class Connection(HTTPConnection):
    """A connection to a Unix socket that stays open between requests."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(
        self, method: str, path: str, body: bytes | None = None, kind: str = "json"
    ) -> bytes:
        """Return the body of the answer; where it is no success, raise with its words."""
        self.request(method, path, body, {"Content-Type": f"application/{kind}"} if body else {})
        response = self.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status}: {answer.decode()}")
        return answer

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        return json.loads(self.answer(method, path, body))

    def submit(self, *argv: str, **wish: int) -> str:
        body = json.dumps({"argv": argv, **wish}).encode()
        return str(self.ask("POST", "/v1/jobs", body)["job_id"])

    def submit_lines(self, lines: bytes) -> bytes:
        """Submit JSON lines in one call; return the answer as it came: ``jobs_in`` reads it."""
        return self.answer("POST", "/v1/jobs:batch", lines, "x-ndjson")

    def read_log(self, job: str) -> bytes:
        self.request("GET", f"/v1/jobs/{job}/logs/stdout")
        return self.getresponse().read()


def jobs_in(answer: bytes) -> list[str]:
    """Return the ids in the answer to a batch."""
    return [str(job["job_id"]) for job in json.loads(answer)["jobs"]]


def events(path: Path, job: str) -> Iterator[dict[str, Any]]:
    """Yield the events of a job as they come, to its end."""
    with Connection(path) as connection:
        connection.request("GET", f"/v1/jobs/{job}/events?follow=true")
        with connection.getresponse() as response:
            for line in response:
                yield json.loads(line)


def wait_until(path: Path, job: str, status: str) -> None:
    """Return as soon as the daemon says that a job has this status; fail when it ends otherwise."""
    last: dict[str, Any] = {}
    for event in events(path, job):
        last = event
        if event.get("status") == status:
            return
    raise RuntimeError(f"{job} never was {status}; its last event: {last}")
