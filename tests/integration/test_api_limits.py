"""How often one may ask, what a request may claim to be, and who somebody is who does not wait."""

from __future__ import annotations

import os
import select
import socket
import struct
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import CONFIG, Box, User, new_user, problem, serving, tcp_of
from tests.service import DEADLINE_S, Service, wait_for

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
LIMITED = CONFIG.replace("[server]", "[server]\nrequest_rate = 5")
CAN_REFUSE_DESCRIPTORS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 16)
WITH_TCP = CONFIG.replace('""', '"127.0.0.1:0"', 1)


def test_who_asks_too_often_is_told_when_again(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon", LIMITED) as box:
        answers = [box.http.get("/v1/jobs") for _ in range(30)]
        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        refused = [answer for answer in answers if answer.status_code != 200]
        limited = problem(refused[0], 429, "rate-limited")
        assert "5 requests a second" in limited["detail"]
        assert int(refused[0].headers["retry-after"]) == limited["retry_after_s"] == 1
        # Those who watch the daemon are not among them.
        for path in ("/healthz", "/openapi.json", "/metrics"):
            assert [box.http.get(path).status_code for _ in range(20)] == [200] * 20
        assert "rate-limited" in described(box, "/v1/jobs", "get", 429)
        time.sleep(limited["retry_after_s"])
        assert box.http.get("/v1/jobs").status_code == 200


def described(box: Box, path: str, method: str, status: int) -> str:
    """Return what the daemon's document says of an answer."""
    operation = box.http.get("/openapi.json").json()["paths"][path][method]
    about: str = operation["responses"][str(status)]["description"]
    return about


def test_who_has_too_many_waiting_is_refused_as_the_document_says(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon", CONFIG + "[limits]\npending = 1\n") as box:
        over = box.run("true")["job_id"]
        body = {"argv": ["sleep", "1000"], "cpus": 4}
        box.http.post("/v1/jobs", json=body)
        wait_for("it runs", lambda: box.http.get("/v1/jobs/@").json()["status"] == "running")
        box.http.post("/v1/jobs", json=body)
        for path in ("/v1/jobs", "/v1/jobs/{job}/retry"):
            refused = box.http.post(path.format(job=over), json=body)
            assert "1 job waiting" in problem(refused, 409, "over-limit")["detail"]
            assert "over-limit" in described(box, path, "post", 409)


def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon", LIMITED) as box:
        codes = [
            box.http.post("/v1/jobs", json={"argv": ["sleep", "100"]}).status_code
            for _ in range(20)
        ]
        assert 429 in codes

        def jobs() -> int | None:
            answer = box.http.get("/v1/jobs")
            return len(answer.json()["jobs"]) if answer.status_code == 200 else None

        assert wait_for("a list", jobs) == codes.count(201)


def test_no_limit_is_none(tmp_path: Path) -> None:
    config = CONFIG.replace("[server]", "[server]\nrequest_rate = 0")
    with serving(tmp_path / "daemon", config) as box:
        assert {box.http.get("/v1/jobs").status_code for _ in range(1500)} == {200}


@only_root
def test_one_user_does_not_spend_what_is_anothers(tmp_path: Path, ada: User, bob: User) -> None:
    config = LIMITED.replace('""', '"127.0.0.1:0"', 1)
    with serving(tmp_path / "daemon", config) as box:
        where = tcp_of(box)
        assert 429 in [ada.ask(where, "GET", "/v1/jobs").status for _ in range(20)]
        assert bob.ask(where, "GET", "/v1/jobs").status == 200
        assert box.http.get("/v1/jobs").status_code == 200
        # Several keys of one user share his.
        keys: list[str] = []
        while len(keys) < 2:
            made = bob.ask(where, "POST", "/v1/keys", {"name": f"key{len(keys)}"})
            keys += [made.json["key"]] if made.status == 201 else []
        url = f"http://127.0.0.1:{where[1]}/v1/jobs"
        with httpx.Client(timeout=DEADLINE_S) as client:
            codes = [client.get(url, headers={"x-api-key": key}).status_code for key in keys * 10]
        assert codes.count(200) < 15


@only_root
def test_users_who_take_all_connections_keep_nobody_out(
    tmp_path: Path, ada: User, bob: User
) -> None:
    few = ["prlimit", "--nofile=320:320"]
    with tempfile.TemporaryDirectory(prefix="aitbcd-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        service = stack.enter_context(Service(Path(folder) / "daemon", CONFIG, before=few))
        service.socket.parent.chmod(0o755)

        def hold(user: User) -> socket.socket:
            os.seteuid(user.uid)
            try:
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(service.socket))
            finally:
                os.seteuid(0)
            sock.settimeout(DEADLINE_S)
            return sock

        root, held = User("root", 0, 0, tmp_path), []
        for _ in range(100):
            held += [hold(ada), hold(bob)]
        # They have all of them, and each of these takes one of theirs.
        for _ in range(2):
            sock = hold(root)
            sock.sendall(b"GET /v1/queue HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in sock.recv(4096)
            for user in (ada, bob):
                said = hold(user).recv(4096)
                assert b"503" in said
                assert b"too many connections" in said
        with new_user("c") as cleo:
            assert cleo.ask(service.socket, "GET", "/v1/queue").status == 200
        for sock in held:
            sock.close()
        ask = wait_for(
            "theirs are free", lambda: ada.ask(service.socket, "GET", "/v1/queue").status == 200
        )
        assert ask


@only_root
def test_who_asks_much_at_once_waits_for_himself(bob: User) -> None:
    with tempfile.TemporaryDirectory(prefix="aitbcd-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        service = stack.enter_context(Service(Path(folder) / "daemon", CONFIG))
        service.socket.parent.chmod(0o755)
        box = Box(service)
        stack.enter_context(box.http)
        lines = '{"argv": ["sleep", "1000"]}\n' * 400
        kind = {"content-type": "application/x-ndjson"}
        made = box.http.post("/v1/jobs:batch", content=lines, headers=kind)
        assert made.status_code == 201
        asked = [stack.enter_context(box.connect()) for _ in range(200)]
        for sock in asked:
            sock.sendall(b"GET /v1/jobs?limit=200 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert bob.ask(service.socket, "GET", "/v1/queue?limit=1").status == 200
        # Had he waited for all that was asked before him, all of it would be here.
        answered, _, _ = select.select(asked, [], [], 0)
        assert len(answered) < len(asked)
        for sock in asked:
            assert b"200 OK" in sock.recv(100)


def test_followers_leave_descriptors_for_all_else(tmp_path: Path) -> None:
    """Each has a log open beside its connection."""
    few = ["prlimit", "--nofile=1024:1024"]
    with Service(tmp_path, CONFIG, before=few) as service, ExitStack() as stack:
        box = Box(service)
        stack.enter_context(box.http)
        job = box.submit_waiting(tmp_path / "go")
        head = f"GET /v1/jobs/{job}/logs/stdout?follow=true HTTP/1.1\r\nHost: x\r\n\r\n"
        said = b""
        while b"503" not in said:
            follower = stack.enter_context(box.connect())
            with suppress(BrokenPipeError):
                follower.sendall(head.encode())
            said = follower.recv(4096)
        assert len(os.listdir(f"/proc/{service.pid}/fd")) < 700
        (tmp_path / "go").touch()
        assert box.ended(job)["status"] == "completed"
        assert "Too many open files" not in service.log.read_text()


def lingering() -> tuple[socket.socket, socket.socket]:
    """Return a connection whose end takes a minute, as long as its other end, too, is open."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    return ours, theirs


@pytest.mark.skipif(not CAN_REFUSE_DESCRIPTORS, reason="only Linux 6.16 and later can")
@pytest.mark.parametrize("is_bound_again", [False, True])
def test_an_open_file_that_takes_long_to_close_holds_up_nobody(
    tmp_path: Path, is_bound_again: bool
) -> None:
    with serving(tmp_path / "daemon") as box:
        if is_bound_again:
            box.service.socket.unlink()
            wait_for("it is there again", box.service.socket.exists)
        ours, theirs = lingering()
        # Closed from the last on, so that nothing lasts here.
        with ours, theirs, box.connect() as client:
            with pytest.raises(PermissionError):
                socket.send_fds(client, [b"GET /healthz HTTP/1.1\r\n"], [ours.fileno()])
            assert box.http.get("/healthz").status_code == 200


@only_root
def test_a_client_that_sends_and_closes_at_once_is_never_root(shared: Box, ada: User) -> None:
    """Its socket is gone when the kernel is asked, and shows uid 0 then."""
    body = b'{"argv": ["id", "-u"], "name": "hasty"}'
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    where = tcp_of(shared)

    def send() -> None:
        for _ in range(50):
            sock = socket.socket()
            sock.connect(where)
            sock.sendall(head + body)
            sock.close()

    os.seteuid(ada.uid)
    try:
        send()
    finally:
        os.seteuid(0)
    # A request behind them: they have been dealt with.
    assert ada.ask(where, "GET", "/v1/jobs").status == 200
    jobs = shared.http.get("/v1/jobs", params={"all": "true", "limit": 200}).json()["jobs"]
    assert {job["user"] for job in jobs if job["name"] == "hasty"} <= {ada.name}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "attacker.example"}, {"host": "attacker.example:8000"},
        {"host": "127.0.0.1.nip.io"},
        {"host": "localhost.attacker.example"}, {"host": "0.0.0.0:8000"}, {"host": "10.0.0.1"},
        {"origin": "http://attacker.example"}, {"origin": "null"}, {"origin": "file://"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
    ids=str,
)  # fmt: skip
def test_a_foreign_page_reaches_nothing(shared: Box, method: str, headers: dict[str, str]) -> None:
    made = shared.http.post("/v1/keys", json={"name": "page"})
    key = made.json()["key"]
    try:
        with httpx.Client(timeout=DEADLINE_S) as client:
            for path in ("/v1/jobs", "/v1/jobs/@", "/healthz", "/openapi.json", "/", "/s/x"):
                if path == "/s/x" and headers.get("sec-fetch-mode") == "navigate":
                    continue
                for more in ({}, {"x-api-key": key}):
                    answer = client.request(
                        method, f"http://127.0.0.1:{tcp_of(shared)[1]}{path}",
                        headers={**headers, **more},
                    )  # fmt: skip
                    assert answer.status_code == 403, (path, answer.text)
                    assert "access-control-allow-origin" not in answer.headers
    finally:
        shared.http.delete("/v1/keys/page")


def test_a_preflight_gets_no_leave(shared: Box) -> None:
    headers = {
        "origin": f"http://127.0.0.1:{tcp_of(shared)[1]}",
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key",
    }
    answer = httpx.request(
        "OPTIONS", f"http://127.0.0.1:{tcp_of(shared)[1]}/v1/jobs", headers=headers,
        timeout=DEADLINE_S,
    )  # fmt: skip
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_clients_beside_each_other_are_told_apart(shared: Box, ada: User, bob: User) -> None:
    """Each connection has its own user, whatever others do at the same moment."""
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    wrong: list[str] = []
    socks = []
    for user in (ada, bob) * 20:
        os.seteuid(user.uid)
        try:
            sock = socket.create_connection(tcp_of(shared), DEADLINE_S)
        finally:
            os.seteuid(0)
        socks.append((user, sock))

    def ask(user: User, sock: socket.socket) -> None:
        with sock:
            body = b'{"argv": ["true"]}'
            sock.sendall(
                b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
            if f'"user":"{user.name}"'.encode() not in answer:
                wrong.append(answer.decode())

    threads = [threading.Thread(target=ask, args=each) for each in socks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert wrong == []
