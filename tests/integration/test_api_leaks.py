"""A daemon that has done much holds no more than before, and an idle one does nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.conftest import CONFIG, WAIT, Box, proc_numbers, serving
from tests.service import wait_for

MIB = 1 << 20


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Box]:
    """A daemon of one's own, which has served each kind of request once."""
    with serving(tmp_path / "daemon", CONFIG) as box:
        job = box.run("true")["job_id"]
        read_everything(box, job)
        yield box


def read_everything(box: Box, job: str) -> None:
    for route in (
        "", "?detail=true", "/events", "/events?follow=true", "/logs/stdout", "/download",
        "/logs/stderr?follow=true", "/logs/stdout?tail=3", "/result", "/files/result.txt",
    ):  # fmt: skip
        assert box.http.get(f"/v1/jobs/{job}{route}").status_code == 200, route
    for route in ("/files/none", "/files/../x", "/logs/none"):
        assert box.http.get(f"/v1/jobs/{job}{route}").status_code == 404, route
    assert box.http.post(f"/v1/jobs/{job}/verify").json()["ok"]
    assert box.http.get("/v1/jobs").status_code == 200


def descriptors(box: Box) -> list[str]:
    """Return what the daemon has open, but for what comes and goes by itself."""
    folder = f"/proc/{box.service.pid}/fd"
    found = []
    for fd in os.listdir(folder):
        try:
            found.append(os.readlink(f"{folder}/{fd}"))
        except FileNotFoundError:
            continue
    return sorted(name.partition(":")[0] for name in found)


def test_requests_and_followers_leave_no_descriptor_behind(quiet: Box, tmp_path: Path) -> None:
    box = quiet
    before = descriptors(box)
    done = box.run("true")["job_id"]
    for _ in range(40):
        read_everything(box, done)
    line = f"echo begin; {WAIT}"
    job = box.submit("sh", "-c", line, "sh", str(tmp_path / "go"))["job_id"]
    box.reached(job, "running")
    with ExitStack() as stack:
        followers: list[socket.socket] = []
        for number in range(50):
            sock = stack.enter_context(box.connect())
            route = "events" if number % 5 == 0 else "logs/stdout"
            sock.sendall(
                f"GET /v1/jobs/{job}/{route}?follow=true HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            assert b"200 OK" in sock.recv(4096)
            followers.append(sock)
        # Half of them go before the job ends.
        for sock in followers[:25]:
            sock.close()
        (tmp_path / "go").touch()
        box.ended(job)
    unfinished = [f"/v1/jobs/{done}/{route}" for route in ("download", "logs/stdout")]
    for path in unfinished * 10:
        with box.connect() as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with box.connect() as sock:
        sock.sendall(b"POST /v1/jobs:batch HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        sock.sendall(b" " * 2_000_000)
    wait_for("all is closed", lambda: descriptors(box) == before)


def test_many_pending_jobs_cost_little_memory(quiet: Box) -> None:
    box = quiet
    first = box.submit("sleep", "100000", cpus=4)["job_id"]
    box.reached(first, "running")
    assert box.http.get("/v1/jobs").status_code == 200
    before = proc_numbers(box.service.pid, "smaps_rollup")["Pss"]
    answer = box.http.post(
        "/v1/jobs:batch",
        content=b'{"argv": ["true"]}\n' * 100_000,
        headers={"content-type": "application/x-ndjson"},
    )
    assert answer.status_code == 201
    made = answer.json()
    assert made["count"] == len(made["jobs"]) == 100_000
    assert len({job["job_id"] for job in made["jobs"]}) == 100_000
    assert box.http.get("/v1/jobs?limit=200").status_code == 200
    after = proc_numbers(box.service.pid, "smaps_rollup")["Pss"]
    assert after - before < 10 * MIB
    assert box.status(made["jobs"][-1]["job_id"])["status"] == "pending"


def wakeups(pid: int) -> int:
    """Return how often the threads of a process have been switched to."""
    count = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        numbers = proc_numbers(pid, f"task/{thread.name}/status")
        count += numbers["voluntary_ctxt_switches"] + numbers["nonvoluntary_ctxt_switches"]
    return count


def is_still_for(pid: int, seconds: float) -> bool:
    before = wakeups(pid)
    time.sleep(seconds)
    return wakeups(pid) == before


def test_an_idle_daemon_does_not_wake(quiet: Box, tmp_path: Path) -> None:
    box = quiet
    pid = box.service.pid
    # It may have something to finish first; from then on there is nothing.
    wait_for("nothing happens for two seconds", lambda: is_still_for(pid, 2.0))
    # Nor is there while a job runs, a request is held open and somebody follows.
    job = box.submit_waiting(tmp_path / "go")
    with box.connect() as idle, box.connect() as follower:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in idle.recv(4096)
        follower.sendall(
            f"GET /v1/jobs/{job}/logs/stdout?follow=true HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert b"200 OK" in follower.recv(4096)
        wait_for("nothing happens for two seconds", lambda: is_still_for(pid, 2.0))
    (tmp_path / "go").touch()
    box.ended(job)
