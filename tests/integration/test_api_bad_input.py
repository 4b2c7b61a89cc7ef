"""What clients send that is wrong, and a full disk: said in words, and it hurts nobody else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.integration.conftest import (
    CONFIG,
    WAIT,
    Box,
    Json,
    problem,
    proc_numbers,
    serving,
)
from tests.service import wait_for

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can do that")
MIB = 1 << 20


# -- which job ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ref",
    ["job_zzzzzzzz", "zzzzzzzzz", "job_", "999999999", "9" * 5000, "ILOU", "%00", "%ff", "x" * 9000,
     "job_%0a", "@@", "-1", "1.5"],
    ids=lambda ref: ref[:20],
)  # fmt: skip
def test_an_unknown_job_is_said_so_by_each_route(box: Box, ref: str) -> None:
    seen = ("", "?detail=true", "/events", "/logs/stdout", "/download", "/result", "/checksums")
    routes = [("GET", path) for path in seen]
    routes += [("POST", path) for path in ("/cancel", "/verify", "/retry", "/keep")]
    for method, path in [*routes, ("DELETE", "")]:
        problem(box.http.request(method, f"/v1/jobs/{ref}{path}"), 404, "no-such-job")


def test_an_ambiguous_prefix_names_the_jobs(box: Box) -> None:
    answer = box.http.post("/v1/jobs:batch", json={"jobs": [{"argv": ["true"]}] * 100})
    ids = [job["job_id"] for job in answer.json()["jobs"]]
    first = [job_id[4] for job_id in ids]
    letter = next(letter for letter in first if first.count(letter) > 1 and letter.isalpha())
    document = problem(box.http.get(f"/v1/jobs/{letter}"), 409, "ambiguous-job")
    assert 2 <= len(document["jobs"]) <= 5
    assert all(job_id.startswith(f"job_{letter}") for job_id in document["jobs"])
    for job_id in ids:
        box.ended(job_id)


# -- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"argv": ["\xff"]}', b"\xff\xfe", b"[" * 100_000, b"\0",
     b'{"argv": ["\\ud800"]}', b'{"argv": ["a"]} x', b'"\xc3"', b'{"jobs": [{"argv": ["\xff"]}]}'],
    ids=lambda body: repr(body[:40]),
)  # fmt: skip
def test_a_body_that_is_no_json_is_refused(box: Box, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    problem(box.http.post("/v1/jobs", content=body, headers=headers), 400, "bad-request")
    # Where it begins as something else than a batch, that may be said first.
    answer = box.http.post("/v1/jobs:batch", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) in (
        (400, "bad-request"),
        (422, "invalid-job"),
    )
    if body:
        lines = {"content-type": "application/x-ndjson"}
        answer = box.http.post("/v1/jobs:batch", content=body, headers=lines)
        assert problem(answer, 400, "bad-request")["line"] == 1


def refusal_without_body(box: Box, route: str, size: int) -> bytes:
    """Announce a body, send nothing of it, and return the answer."""
    with box.connect() as sock:
        head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
        sock.sendall(head.encode())
        answer = b""
        while b"}\n" not in answer:
            piece = sock.recv(65536)
            assert piece, answer
            answer += piece
        return answer


def test_a_body_of_100_mb_is_refused_at_once(box: Box) -> None:
    for route in ("/v1/jobs", "/v1/jobs:batch", "/v1/jobs/@/cancel"):
        box.run("true")
        assert refusal_without_body(box, route, 100 * MIB).startswith(b"HTTP/1.1 413 ")


def test_memory_stays_flat_whatever_is_sent(box: Box) -> None:
    box.run("true")
    before = proc_numbers(box.service.pid, "smaps_rollup")["Pss"]
    high = proc_numbers(box.service.pid, "status")["VmHWM"]

    def endless(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield b" " * MIB

    for route in ("/v1/jobs", "/v1/jobs:batch"):
        problem(box.http.post(route, content=endless(100)), 413, "too-large")
        assert box.run("true")["status"] == "completed"
    after = proc_numbers(box.service.pid, "smaps_rollup")["Pss"]
    assert after - before < 10 * MIB
    # One job may have 16 MiB, which is what is kept of it at the most.
    assert proc_numbers(box.service.pid, "status")["VmHWM"] - high < 64 * MIB


def test_bodies_that_do_not_come_to_their_end_take_no_memory(tmp_path: Path) -> None:
    with serving(tmp_path) as box, ExitStack() as unfinished:
        before = proc_numbers(box.service.pid, "smaps_rollup")["Pss"]
        for _ in range(20):
            sock = unfinished.enter_context(box.connect())
            sock.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
            # All but what the kernel keeps is with the daemon when this returns.
            sock.sendall(b'{"argv":["' + b"x" * 8_000_000)
        assert box.run("true")["status"] == "completed"
        assert proc_numbers(box.service.pid, "smaps_rollup")["Pss"] - before < 40_000_000


def test_one_user_has_a_bounded_part_of_unfinished_bodies(tmp_path: Path) -> None:
    with serving(tmp_path) as box, ExitStack() as unfinished:
        lines = b"Content-Type: application/x-ndjson\r\nContent-Length: 60000000\r\n\r\n"
        for _ in range(6):
            sock = unfinished.enter_context(box.connect())
            sock.sendall(b"POST /v1/jobs:batch HTTP/1.1\r\nHost: x\r\n" + lines)
            sock.sendall(b" " * (50 * MIB))
        # Of the last one a part was too much.
        answer = sock.recv(4096)
        assert b" 429 " in answer
        assert b"retry-after: 1" in answer
        assert b"256 MiB" in answer
        held = sum(
            link.stat().st_size
            for link in Path(f"/proc/{box.service.pid}/fd").iterdir()
            if "(deleted)" in os.readlink(link)
        )
        assert 200 * MIB < held <= 256 * MIB
        unfinished.close()
        wait_for(
            "they are given up",
            lambda: box.http.post("/v1/jobs", json={"argv": ["true"]}).status_code == 201,
        )


def test_arguments_and_environment_larger_than_a_packet_arrive_whole(box: Box) -> None:
    # A single string may have 128 KiB for the kernel.
    parts = [bytes([65 + place]) * 60_000 + b"\xff\n" for place in range(5)]
    coded = [{"b64": base64.b64encode(part).decode()} for part in parts]
    job = box.run("printf", "%s", *coded)
    assert job["status"] == "completed", box.log(job["job_id"], "stderr")
    assert box.log(job["job_id"]) == b"".join(parts)
    env = {f"V{place}": part for place, part in enumerate(coded)}
    for how in ("env", "environment"):
        job = box.shell('printf %s "$V0" "$V1" "$V2" "$V3" "$V4"', **{how: env})
        assert job["status"] == "completed", box.log(job["job_id"], "stderr")
        assert box.log(job["job_id"]) == b"".join(parts), how


def test_an_argument_too_long_for_the_kernel_fails_the_job_in_its_words(box: Box) -> None:
    job = box.run("echo", "x" * 200_000)
    assert (job["status"], job["reason"]) == ("failed", "cannot_start")
    assert "Argument list too long" in job["message"]


def test_output_of_any_bytes_comes_back_as_it_was(box: Box, tmp_path: Path) -> None:
    raw = os.urandom(3 * MIB) + b"\0\xff\r\n\x1b[31m"
    (tmp_path / "in").write_bytes(raw)
    job = box.shell("tee /dev/stderr", stdin=str(tmp_path / "in"))["job_id"]
    for stream in ("stdout", "stderr"):
        assert hashlib.sha256(box.log(job, stream)).digest() == hashlib.sha256(raw).digest()
        answer = box.http.get(f"/v1/jobs/{job}/logs/{stream}?follow=true")
        assert answer.content == raw
    assert box.http.post(f"/v1/jobs/{job}/verify").json()["ok"]


# -- a full disk --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Box]:
    """A daemon whose state lies on a disk of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "aitbcd-test", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    try:
        with serving(disk / "daemon", CONFIG + "[storage]\nreserve = 0\n") as box:
            yield box
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(path: Path) -> None:
    """Leave no free block on the disk of this file."""
    with path.open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)


@only_root
def test_a_disk_that_is_full_at_sealing_fails_the_job_only(small_disk: Box, tmp_path: Path) -> None:
    box = small_disk
    (tmp_path / "large").write_bytes(b"x" * 40 * MIB)
    job = box.run("true", cwd=str(tmp_path), artifacts=["large"])
    assert (job["status"], job["reason"]) == ("failed", "storage"), job
    assert "space" in job["message"].lower()
    after = box.run("echo", "on")
    assert after["status"] == "completed"
    assert box.log(after["job_id"]) == b"on\n"
    assert box.http.post(f"/v1/jobs/{after['job_id']}/verify").json()["ok"]


@only_root
def test_a_disk_that_is_full_at_the_end_of_a_job_is_lived_through(
    small_disk: Box, tmp_path: Path
) -> None:
    box = small_disk
    running = box.submit_waiting(tmp_path / "go")
    waiting = box.submit("true", cpus=4)["job_id"]
    filler = box.service.folder / "filler"
    fill(filler)
    (tmp_path / "go").touch()
    over = box.ended(running)
    assert over["status"] in ("completed", "failed")
    assert over["reason"] in (None, "storage")
    filler.unlink()
    assert box.ended(waiting)["status"] in ("completed", "failed")
    assert box.run("true")["status"] == "completed"
    assert box.http.get("/healthz").json()["pid"] == box.service.pid


@only_root
def test_a_job_that_fills_the_disk_says_so_until_there_is_room(small_disk: Box) -> None:
    box = small_disk
    filler = box.service.folder / "filler"
    filler.write_bytes(b"x" * 4 * MIB)
    job = box.submit("head", "-c", "40M", "/dev/zero")["job_id"]
    told = "its results cannot be stored: No space left on device; tries again"

    def is_told() -> bool:
        return bool(box.http.get(f"/v1/jobs/{job}").json()["waiting"] == told)

    wait_for("its owner is told", is_told, log=box.service.log)
    filler.unlink()
    over = box.ended(job)
    assert (over["status"], over["reason"]) == ("failed", "storage")
    # Once, however often it was tried.
    assert box.service.log.read_text().count("cannot seal its results") == 1


@only_root
def test_a_submit_to_a_full_disk_changes_nothing(small_disk: Box) -> None:
    box = small_disk
    # It waits behind this one, so that nothing but the submits wants to write.
    first = box.submit("sleep", "1000", cpus=4)["job_id"]
    box.reached(first, "running")
    filler = box.service.folder / "filler"
    fill(filler)
    body = {"argv": ["true"], "cpus": 4, "env": {"LONG": "x" * 100_000}}
    made = []
    for _ in range(100):
        # Until what the log of the database had allocated is used up.
        answer = box.http.post("/v1/jobs", json=body)
        if answer.status_code != 201:
            break
        made.append(answer.json()["job_id"])
    document = problem(answer, 507, "storage-full")
    assert document["hint"]
    lines = b'{"argv": ["true"]}\n' * 200_000
    spooled = box.http.post(
        "/v1/jobs:batch", content=lines, headers={"content-type": "application/x-ndjson"}
    )
    problem(spooled, 507, "storage-full")
    listed = [job["job_id"] for job in box.http.get("/v1/jobs?limit=200").json()["jobs"]]
    assert listed == [*made[::-1], first]
    filler.unlink()
    answer = box.http.post("/v1/jobs", json=body)
    assert answer.status_code == 201
    box.http.post(f"/v1/jobs/{first}/cancel", json={"force": True})
    for job in (*made, answer.json()["job_id"]):
        assert box.ended(job)["status"] == "completed"


@only_root
def test_the_last_of_the_disk_is_not_for_jobs_that_wait(tmp_path: Path) -> None:
    """What waits is in nobody's quota, and a user may send very much."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96M", "none", str(disk)], check=True)
    try:
        with serving(disk / "daemon", CONFIG + '[storage]\nreserve = "80M"\n') as box:
            body = {"argv": ["true"], "env": {"LONG": "x" * 100_000}}
            assert box.http.post("/v1/jobs", json=body).status_code == 201
            (disk / "filler").write_bytes(b"x" * 75 * MIB)
            document = problem(box.http.post("/v1/jobs", json=body), 507, "storage-full")
            assert "less than 20 MiB are free" in document["detail"]
            lines = b'{"argv": ["true"]}\n'
            kind = {"content-type": "application/x-ndjson"}
            answer = box.http.post("/v1/jobs:batch", content=lines, headers=kind)
            problem(answer, 507, "storage-full")
            (disk / "filler").unlink()
            assert box.http.post("/v1/jobs", json=body).status_code == 201
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# -- connections --------------------------------------------------------------------------------


def read_all(sock: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    "garbage",
    [b"\0\1\2\3\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n",
     b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
     b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
     b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
     b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
    ids=lambda garbage: repr(garbage[:40]),
)  # fmt: skip
def test_garbage_is_answered_with_a_problem_and_hung_up_on(box: Box, garbage: bytes) -> None:
    with box.connect() as sock:
        sock.sendall(garbage)
        answer = read_all(sock)
    if answer:
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b"application/problem+json" in answer
    assert box.http.get("/healthz").status_code == 200


def test_a_head_without_end_is_refused(box: Box) -> None:
    with box.connect() as sock, suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(b"GET / HTTP/1.1\r\n")
        for number in range(1000):
            sock.sendall(b"X-%d: %s\r\n" % (number, b"y" * 1000))
    with box.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"y" * (65 * 1024))
        answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 431 "), answer[:200]
    assert box.http.get("/healthz").status_code == 200


def test_slow_and_half_open_connections_hold_up_nobody(box: Box) -> None:
    with ExitStack() as stack:
        for text in (
            b"",
            b"GET /v1/jo",
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
            b"POST /v1/jobs:batch HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n{",
            b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n" * 3,
        ):
            for is_half in (False, True):
                for _ in range(8):
                    sock = stack.enter_context(box.connect())
                    sock.sendall(text)
                    if is_half:
                        sock.shutdown(socket.SHUT_WR)
        assert box.run("echo", "hi")["status"] == "completed"
        assert box.http.get("/healthz").status_code == 200


def test_who_does_not_read_holds_up_nobody(box: Box, tmp_path: Path) -> None:
    line = f"head -c 20000000 /dev/zero; {WAIT}"
    job = box.submit("sh", "-c", line, "sh", str(tmp_path / "go"))["job_id"]
    box.reached(job, "running")
    with ExitStack() as stack:
        for route in ("logs/stdout?follow=true", "logs/stdout", "events?follow=true"):
            for _ in range(5):
                sock = stack.enter_context(box.connect())
                sock.sendall(f"GET /v1/jobs/{job}/{route} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        (tmp_path / "go").touch()
        assert box.ended(job)["status"] == "completed"
        assert len(box.log(job)) == 20_000_000


# -- TCP ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Box, tuple[str, int]]]:
    folder = tmp_path_factory.mktemp("tcp")
    with serving(folder, CONFIG.replace('tcp = ""', 'tcp = "127.0.0.1:0"')) as box:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", box.service.log.read_text())
        assert found
        yield box, ("127.0.0.1", int(found[1]))


def over_tcp(where: tuple[str, int], *headers: str) -> tuple[int, Json]:
    """Ask for the list; return the answer."""
    with closing(socket.create_connection(where)) as sock:
        lines = ["GET /v1/jobs HTTP/1.1", "Connection: close", *headers, "", ""]
        sock.sendall("\r\n".join(lines).encode())
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_only_our_own_pages_and_programs_get_in_over_tcp(
    tcp: tuple[Box, tuple[str, int]],
) -> None:
    _, where = tcp
    own = f"127.0.0.1:{where[1]}"
    for headers in (
        [f"Host: {own}"], [f"Host: localhost:{where[1]}"], ["Host: LOCALHOST"], ["Host: [::1]:1"],
        [f"Host: {own}", f"Origin: http://{own}"], [f"Host: {own}", "Sec-Fetch-Site: same-origin"],
    ):  # fmt: skip
        assert over_tcp(where, *headers)[0] == 200, headers
    for headers in (
        ["Host: example.org"], [f"Host: example.org:{where[1]}"], ["Host: 127.0.0.1.example.org"],
        ["Host: localhost.example.org"], ["Host:"], ["Host: [::1].example.org"],
        [f"Host: {own}", "Origin: http://example.org"], [f"Host: {own}", "Origin: null"],
        [f"Host: {own}", f"Origin: http://localhost:{where[1]}"],
        ["Host: example.org", "Origin: http://example.org"],
        [f"Host: {own}", "Sec-Fetch-Site: cross-site"],
        [f"Host: {own}", "Host: example.org"],
    ):  # fmt: skip
        status, document = over_tcp(where, *headers)
        assert (status, document["code"]) in ((403, "forbidden"), (400, "bad-request")), headers


def submit_and(where: tuple[str, int], how: int | None) -> socket.socket:
    """Send a job over TCP and shut the connection down at once, before it is accepted."""
    body = b'{"argv": ["true"], "name": "one-shot"}'
    sock = socket.create_connection(where)
    sock.sendall(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    if how is None:
        sock.close()
    else:
        sock.shutdown(how)
    return sock


def test_who_has_gone_when_he_is_looked_up_is_nobody(tcp: tuple[Box, tuple[str, int]]) -> None:
    box, where = tcp
    os.kill(box.service.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{box.service.pid}/stat")
    wait_for("it stopped", lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    for _ in range(5):
        submit_and(where, None)
    half_closed = [submit_and(where, socket.SHUT_WR) for _ in range(5)]
    os.kill(box.service.pid, signal.SIGCONT)
    for sock in half_closed:
        with sock:
            answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 401 "), answer
    # Those that were closed have been served before: connections are accepted in their order.
    names = [job["name"] for job in box.http.get("/v1/jobs?all=true&limit=200").json()["jobs"]]
    assert "one-shot" not in names
