"""The WebSocket: every change once, in order, whatever happens to the daemon or the client."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import resource
import socket
import sqlite3
import termios
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect

from tests.integration.conftest import Box, Json, User, proc_numbers, serving, tcp_of
from tests.service import DEADLINE_S, wait_for

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


@contextmanager
def following(box: Box, query: str = "", **more: Any) -> Iterator[ClientConnection]:
    uri = f"ws://localhost/v1/jobs/ws{query}"
    with unix_connect(str(box.service.socket), uri, open_timeout=DEADLINE_S, **more) as ws:
        yield ws


def message(ws: ClientConnection) -> Json:
    document: Json = json.loads(ws.recv(DEADLINE_S))
    return document


def events_until(ws: ClientConnection, job: str, status: str) -> list[Json]:
    """Return the messages that are events, up to this one."""
    found = []
    while True:
        one = message(ws)
        if "seq" in one:
            found.append(one)
            if (one["job_id"], one["status"]) == (job, status):
                return found


def seqs(messages: list[Json]) -> list[int]:
    return [one["seq"] for one in messages]


def closed(ws: ClientConnection) -> tuple[int, str]:
    """Return code and reason with which the daemon closed."""
    drained(ws)
    assert ws.close_code is not None
    return ws.close_code, ws.close_reason or ""


def drained(ws: ClientConnection) -> list[Json]:
    """Return what came until the daemon closed."""
    found = []
    try:
        while True:
            found.append(message(ws))
    except ConnectionClosed:
        return found


# -- what it says -------------------------------------------------------------------------------


def test_the_documents_program_prints_every_change(shared: Box) -> None:
    printed: list[Json] = []
    opened = threading.Event()

    def on_message(ws: websocket.WebSocketApp, text: str) -> None:
        printed.append(json.loads(text))
        if printed[-1]["status"] == "completed":
            ws.close()

    app = websocket.WebSocketApp(
        f"ws://localhost:{tcp_of(shared)[1]}/v1/jobs/ws",
        on_message=on_message,
        on_open=lambda _: opened.set(),
    )
    thread = threading.Thread(target=app.run_forever)
    thread.start()
    try:
        assert opened.wait(DEADLINE_S)
        job = shared.submit("true")["job_id"]
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    finally:
        app.close()
    events = [one for one in printed if "seq" in one]
    assert [one["status"] for one in events] == ["pending", "assigned", "running", "completed"]
    assert {one["job_id"] for one in events} == {job}
    assert [one["progress"] for one in events] == [0, 0, 0, 100]
    assert all(one["time"].endswith("Z") for one in events)


def test_messages_are_the_events_with_the_progress(box: Box) -> None:
    with following(box) as ws:
        job = box.shell("echo 40 > $AITBC_PROGRESS; exit 3")["job_id"]
        messages = events_until(ws, job, "failed")
    answer = box.http.get(f"/v1/jobs/{job}/events")
    shown = [{k: v for k, v in one.items() if k != "progress"} for one in messages]
    assert shown == answer.json()["events"]
    assert messages[-1]["progress"] == 40
    assert messages[-1]["reason"] == "exit"


def test_progress_comes_between_without_a_seq(box: Box, tmp_path: Path) -> None:
    line = 'echo 30 > $AITBC_PROGRESS; until test -e "$0"; do sleep 0.02; done'
    with following(box) as ws:
        job = box.submit("/bin/sh", "-c", line, str(tmp_path / "go"))["job_id"]
        while "seq" in (one := message(ws)) or one["job_id"] != job:
            pass
        assert one.keys() == {"job_id", "number", "status", "progress", "time"}
        assert (one["status"], one["progress"]) == ("running", 30)
        (tmp_path / "go").touch()
        events_until(ws, job, "completed")


def test_progress_comes_once_a_second_a_job_at_most(box: Box) -> None:
    line = "i=0; while [ $i -lt 100 ]; do echo $i > $AITBC_PROGRESS; i=$((i+1)); sleep 0.03; done"
    with following(box) as ws:
        job = box.submit("/bin/sh", "-c", line)["job_id"]
        percents = []
        while (one := message(ws))["status"] != "completed":
            if "seq" not in one:
                percents.append(one["progress"])
    finished = box.status(job, detail=True)["attempts"][0]
    assert percents == sorted(set(percents))
    assert finished["exit_code"] == 0
    # 100 values in more than three seconds, and a look at each start and end of a second.
    assert 1 <= len(percents) <= 10


def test_a_job_that_runs_already_is_told_of_too(box: Box, tmp_path: Path) -> None:
    wait = 'until test -e "{}"; do sleep 0.02; done; '
    line = wait.format("$0") + "echo 70 > $AITBC_PROGRESS; " + wait.format("$1")
    first, second = tmp_path / "first", tmp_path / "second"
    job = box.submit("/bin/sh", "-c", line, str(first), str(second))["job_id"]
    box.reached(job, "running")
    with following(box, f"?job_id={job}") as ws:
        first.touch()
        assert message(ws)["progress"] == 70
        second.touch()
        events_until(ws, job, "completed")


def test_one_job_alone_can_be_followed(box: Box) -> None:
    other = box.submit("sleep", "0.1")["job_id"]
    job = box.submit("sleep", "0.1")
    with following(box, f"?job_id={job['number']}&since=0") as ws:
        messages = events_until(ws, job["job_id"], "completed")
    box.ended(other)
    assert [one["status"] for one in messages] == ["pending", "assigned", "running", "completed"]


# -- resuming -----------------------------------------------------------------------------------


def test_resuming_neither_misses_nor_repeats(box: Box) -> None:
    jobs = [box.submit("true")["job_id"] for _ in range(5)]
    for job in jobs:
        box.ended(job)
    with following(box, "?since=0") as ws:
        whole = events_until(ws, jobs[-1], "completed")
    assert seqs(whole) == list(range(1, len(whole) + 1))
    for at in (1, len(whole) // 2, len(whole) - 1):
        with following(box, f"?since={whole[at - 1]['seq']}") as ws:
            assert seqs(events_until(ws, jobs[-1], "completed")) == seqs(whole[at:])


def test_resuming_over_a_killed_daemon(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon") as box:
        got: list[int] = []
        for turn in range(4):
            query = f"?since={got[-1]}" if got else "?since=0"
            with following(box, query) as ws:
                ids = [
                    one["job_id"]
                    for one in box.http.post(
                        "/v1/jobs:batch", json={"jobs": [{"argv": ["true"]}] * 30}
                    ).json()["jobs"]
                ]
                try:
                    while len(got) < (turn + 1) * 70:
                        one = message(ws)
                        got += [one["seq"]] if "seq" in one else []
                    (box.service.kill if turn % 2 else box.service.stop)()
                    while True:
                        one = message(ws)
                        got += [one["seq"]] if "seq" in one else []
                except ConnectionClosed as end:
                    code = end.rcvd.code if end.rcvd else None
                    assert code == (None if turn % 2 else 1012)
            box.service.start()
        for job in ids:
            box.ended(job)
        with following(box, f"?since={got[-1]}") as ws:
            total = len(box.http.get(f"/v1/jobs/{ids[-1]}/events").json()["events"])
            assert total == 4
            while len(got) < 4 * 30 * 4:
                one = message(ws)
                got += [one["seq"]] if "seq" in one else []
        assert got == list(range(1, len(got) + 1))


def test_a_batch_is_told_of_in_whole(box: Box) -> None:
    jobs = "\n".join(['{"argv": ["true"]}'] * 400)
    with following(box) as ws:
        ids = box.http.post("/v1/jobs:batch", content=jobs).json()["jobs"]
        numbers: list[int] = []
        while len(numbers) < 400:
            one = message(ws)
            numbers += [one["number"]] if one["status"] == "pending" else []
    assert numbers == [one["number"] for one in ids]
    box.ended(ids[-1]["job_id"])


def test_a_seq_of_another_queue_is_refused_with_4409(box: Box) -> None:
    with following(box, "?since=999999999") as ws:
        code, reason = closed(ws)
    assert code == 4409
    assert "999999999" in reason


def test_what_is_kept_no_more_is_refused_with_4409(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon") as box:
        jobs = [box.run("true")["job_id"] for _ in range(3)]
        box.service.stop()
        with sqlite3.connect(box.service.state / "queue.db") as database:
            database.execute("DELETE FROM events WHERE seq <= 5")
        database.close()
        box.service.start()
        for since in (1, 4):
            with following(box, f"?since={since}") as ws:
                code, reason = closed(ws)
            assert code == 4409
            assert "kept from seq 6 on" in reason
        for since in (0, 5):
            with following(box, f"?since={since}") as ws:
                assert seqs(events_until(ws, jobs[-1], "completed")) == list(range(6, 13))


def test_clients_that_come_and_go_each_see_every_change_once(tmp_path: Path) -> None:
    """However they interleave with commits, restarts of theirs and being behind."""
    jobs, chance = 200, random.Random(4)
    with serving(tmp_path / "daemon") as box:
        wrong: list[object] = []

        def follow(seed: int) -> None:
            own = random.Random(seed)
            last = 0
            while last < 4 * jobs:
                with following(box, f"?since={last}", max_queue=None) as ws:
                    for _ in range(own.choice([1, 2, 5, 20, 60])):
                        one = message(ws)
                        if "seq" not in one:
                            continue
                        if one["seq"] != last + 1:
                            wrong.append((seed, last, one))
                        last = one["seq"]
                        if last == 4 * jobs:
                            break

        threads = [threading.Thread(target=follow, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        left = jobs
        while left:
            count = min(left, chance.choice([1, 1, 5, 10]))
            lines = '{"argv": ["true"]}\n' * count
            assert box.http.post("/v1/jobs:batch", content=lines).status_code == 201
            left -= count
        for thread in threads:
            thread.join(DEADLINE_S)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        all_quiet(box)


@pytest.mark.parametrize(
    ("query", "status", "what"),
    [
        ("?since=-1", 422, "since"), ("?since=x", 422, "since"), ("?since=", 422, "since"),
        ("?since=" + "9" * 30, 422, "since"), ("?job_id=job_zzzzzzzz", 404, "job_zzzzzzzz"),
        ("?job_id=", 404, ""), ("?job=1", 422, "unknown parameter 'job'"),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused_before_the_handshake(
    box: Box, query: str, status: int, what: str
) -> None:
    with pytest.raises(InvalidStatus) as caught, following(box, query):
        pass
    assert caught.value.response.status_code == status
    document = json.loads(caught.value.response.body or b"")
    assert document["status"] == status
    assert what in document["detail"]


def test_a_plain_request_is_told_what_to_do(box: Box) -> None:
    answer = box.http.get("/v1/jobs/ws")
    assert answer.status_code == 400
    assert "WebSocket client" in answer.json()["hint"]


# -- clients that behave badly ------------------------------------------------------------------

HANDSHAKE = (
    "GET /v1/jobs/ws{} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{}\r\n"
)
WELCOME = b"HTTP/1.1 101 Switching Protocols"
#: The first byte of a ping (RFC 6455, 5.2).
PING = b"\x89"


def shaken(box: Box, query: str = "") -> socket.socket:
    """Return a WebSocket whose client does nothing more."""
    sock = box.connect()
    sock.sendall(HANDSHAKE.format(query, "").encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(WELCOME), head
    return sock


def unread(sock: socket.socket) -> int:
    """Return how many bytes the kernel has for who reads (unix(7), FIONREAD)."""
    count = array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


def open_files(box: Box) -> int:
    return len(os.listdir(f"/proc/{box.service.pid}/fd"))


def all_quiet(box: Box) -> None:
    said = box.service.log.read_text()
    assert "Traceback" not in said, said
    assert "failed" not in said, said


def all_gone(box: Box, before: int) -> None:
    wait_for("the connections are gone", lambda: open_files(box) <= before, log=box.service.log)
    all_quiet(box)


def test_clients_that_send_and_close_at_once_leave_nothing(shared: Box) -> None:
    box, address = shared, tcp_of(shared)
    box.http.get("/healthz")
    before = open_files(box)
    for _ in range(50):
        for text in (HANDSHAKE.format("", ""), HANDSHAKE.format("", "")[:50], ""):
            with socket.create_connection(address) as sock:
                sock.sendall(text.encode())
            with box.connect() as sock:
                sock.sendall(text.encode())
    all_gone(box, before)


@pytest.mark.parametrize(
    "head",
    [
        HANDSHAKE.format("", "").replace("GET", "POST"),
        HANDSHAKE.format("", "").replace("HTTP/1.1", "HTTP/1.0"),
        HANDSHAKE.format("?x=\u00ff", ""),
        HANDSHAKE.format("?" + "x" * 9000, ""),
        HANDSHAKE.format("", "Content-Length: 5\r\n"),
        HANDSHAKE.format("", "Transfer-Encoding: chunked\r\n"),
        HANDSHAKE.format("", f"X: {'x' * 9000}\r\n"),
        HANDSHAKE.format("", "X: x\r\n" * 200),
        HANDSHAKE.format("", "").replace("13", "12"),
        HANDSHAKE.format("", "").replace("dGhl", "!"),
    ],
    ids=range(10),
)
def test_a_handshake_that_is_none_is_refused(box: Box, head: str) -> None:
    before = open_files(box)
    with box.connect() as sock:
        sock.sendall(head.encode("latin-1"))
        answer = sock.recv(65536)
        assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer
        # The other end hangs up, too.
        while answer:
            answer = sock.recv(65536)
    all_gone(box, before)


def test_an_upgrade_elsewhere_is_ignored(box: Box) -> None:
    with box.connect() as sock:
        sock.sendall(HANDSHAKE.format("", "").replace("/v1/jobs/ws", "/healthz").encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_an_upgrade_behind_an_unfinished_request_is_no_way_in(box: Box) -> None:
    with box.connect() as sock:
        sock.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
            + HANDSHAKE.format("", "").encode()
        )
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert WELCOME not in answer


def test_a_client_that_pings_without_reading_is_hung_up_on(box: Box) -> None:
    before = open_files(box)
    ping = b"\x89\xfd\x00\x00\x00\x00" + b"x" * 125
    with shaken(box) as sock, pytest.raises(OSError):  # noqa: PT012  # one of them, whichever
        while True:
            sock.sendall(ping * 1000)
    all_gone(box, before)
    assert proc_numbers(box.service.pid, "status")["VmRSS"] < 300 << 20


def test_what_a_client_says_is_ignored_unless_it_is_too_much(box: Box) -> None:
    with following(box) as ws:
        ws.send("hello")
        ws.send(b"\x00" * 1000)
        job = box.submit("true")["job_id"]
        events_until(ws, job, "completed")
        ws.send("x" * 100_000)
        assert closed(ws)[0] == 1009


@pytest.fixture
def usual(tmp_path: Path) -> Iterator[Box]:
    """A daemon with the limit of open files that a shell has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        with serving(tmp_path / "daemon") as made:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            yield made
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_idle_clients_cost_nothing_and_all_are_told(usual: Box) -> None:
    box = usual

    def ticks() -> int:
        fields = Path(f"/proc/{box.service.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before, memory = open_files(box), proc_numbers(box.service.pid, "status")["VmRSS"]
    sockets = [shaken(box) for _ in range(1000)]
    try:
        grown = proc_numbers(box.service.pid, "status")["VmRSS"] - memory
        assert grown < 100 << 20
        start = ticks()
        time.sleep(3)
        assert ticks() - start < 10
        job = box.submit("true")["job_id"]
        for sock in sockets:
            data = b""
            while b"completed" not in data:
                data += sock.recv(65536)
            assert job.encode() in data
        # Jobs have what they had before.
        limits = box.shell("ulimit -Sn")["job_id"]
        assert box.log(limits) == b"1024\n"
    finally:
        for sock in sockets:
            sock.close()
    # The first jobs leave idle supervisors.
    all_gone(box, before + 50)


#: The daemon soon gives up on who does not read; that time has passed when it pings.
HASTY = """
from aitbcd.api import socket, updates
updates._SLOW_S, socket.PING_S = 1.0, 4.0
"""


def test_a_client_that_does_not_read_is_told_to_resume(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon", prelude=HASTY) as box:
        _be_told_to_resume(box)


def _be_told_to_resume(box: Box) -> None:
    # More than the kernel keeps for a client.
    ids = box.http.post(
        "/v1/jobs:batch", json={"jobs": [{"argv": ["true"], "name": "x"}] * 600}
    ).json()["jobs"]
    box.ended(ids[-1]["job_id"])
    before = open_files(box)
    with following(box, "?since=0", max_queue=1, ping_interval=None) as ws:
        wait_for("much waits for it", lambda: unread(ws.socket) > 16 << 10)
        with shaken(box) as other:
            assert other.recv(1) == PING
        got = drained(ws)
        assert ws.close_code == 4408
        assert "since=SEQ" in (ws.close_reason or "")
    assert seqs(got) == list(range(1, len(got) + 1))
    with following(box, f"?since={len(got)}") as ws:
        rest = events_until(ws, ids[-1]["job_id"], "completed")
    assert seqs(rest) == list(range(len(got) + 1, rest[-1]["seq"] + 1))
    all_gone(box, before)


# -- who may listen -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({"origin": "http://example.org"}, ""),
        ({"host": "example.org"}, ""),
        ({"host": "example.org:8000", "origin": "http://example.org:8000"}, ""),
        ({"host": "127.0.0.1.example.org"}, ""),
        ({"origin": "null"}, ""),
        ({"suppress_origin": True}, "Sec-Fetch-Site: cross-site"),
        ({"suppress_origin": True}, "Sec-Fetch-Site: same-site"),
    ],
)
def test_pages_of_others_are_kept_out(shared: Box, options: Json, header: str) -> None:
    ws = websocket.WebSocket()
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        ws.connect(  # type: ignore[no-untyped-call]
            f"ws://localhost:{tcp_of(shared)[1]}/v1/jobs/ws",
            header=[header] if header else [],
            timeout=DEADLINE_S,
            **options,
        )
    assert caught.value.status_code == 403


def test_programs_on_this_machine_are_let_in(shared: Box) -> None:
    port = tcp_of(shared)[1]
    for host in ("localhost", "127.0.0.1"):
        ws = websocket.create_connection(f"ws://{host}:{port}/v1/jobs/ws", timeout=DEADLINE_S)
        ws.close()
        with connect(f"ws://{host}:{port}/v1/jobs/ws", open_timeout=DEADLINE_S):
            pass


def as_somebody(user: User, box: Box) -> ClientConnection:
    os.seteuid(user.uid)
    try:
        sock = box.connect()
    finally:
        os.seteuid(0)
    return unix_connect(sock=sock, uri="ws://localhost/v1/jobs/ws?since=0", open_timeout=DEADLINE_S)


@only_root
def test_everybody_hears_of_his_own_jobs_and_root_of_all(shared: Box, ada: User, bob: User) -> None:
    box = shared
    of_ada, of_bob = (
        user.ask(box.service.socket, "POST", "/v1/jobs", {"argv": ["true"]}).json["job_id"]
        for user in (ada, bob)
    )
    with following(box) as root:
        again = ada.ask(box.service.socket, "POST", "/v1/jobs", {"argv": ["true"]}).json["job_id"]
        assert {one["job_id"] for one in events_until(root, again, "completed")} >= {again}
    with as_somebody(ada, box) as ws:
        assert {one["job_id"] for one in events_until(ws, again, "completed")} == {of_ada, again}
    with as_somebody(bob, box) as ws:
        assert {one["job_id"] for one in events_until(ws, of_bob, "completed")} == {of_bob}

    os.seteuid(bob.uid)
    try:
        sock = box.connect()
    finally:
        os.seteuid(0)
    with pytest.raises(InvalidStatus) as caught:
        unix_connect(sock=sock, uri=f"ws://localhost/v1/jobs/ws?job_id={of_ada}")
    assert caught.value.response.status_code == 404
