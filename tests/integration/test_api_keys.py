"""API keys: made once, told once, good for what they are for, and for nothing afterwards."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.integration.conftest import CONFIG, Box, Json, User, as_user, problem, serving, tcp_of
from tests.service import DEADLINE_S, PROGRAMS, wait_for

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
WITH_TCP = CONFIG.replace('""', '"127.0.0.1:0"', 1)


def make(box: Box, name: str, **more: object) -> Json:
    answer = box.http.post("/v1/keys", json={"name": name, **more})
    assert answer.status_code == 201, answer.text
    key: Json = answer.json()
    return key


def ask(
    box: Box, key: str | None, method: str = "GET", path: str = "/v1/jobs", **more: object
) -> httpx.Response:
    """Send a request over TCP."""
    host, port = tcp_of(box)
    headers = {} if key is None else {"x-api-key": key}
    with httpx.Client(timeout=DEADLINE_S) as client:
        return client.request(method, f"http://{host}:{port}{path}", headers=headers, **more)  # type: ignore[arg-type]


def of_user(box: Box, user: User, name: str, **more: object) -> Json:
    answer = user.ask(box.service.socket, "POST", "/v1/keys", {"name": name, **more})
    assert answer.status == 201, answer.body
    return answer.json


@contextmanager
def tcp_as(user: User, box: Box) -> Iterator[socket.socket]:
    """A TCP connection that somebody made."""
    os.seteuid(user.uid)
    try:
        sock = socket.create_connection(tcp_of(box), DEADLINE_S)
    finally:
        os.seteuid(0)
    with sock:
        yield sock


def ended(ws: ClientConnection) -> None:
    while True:
        ws.recv(DEADLINE_S)


def test_a_key_is_told_once_and_kept_as_a_hash(shared: Box) -> None:
    made = make(shared, "laptop")
    assert re.fullmatch(r"aitbc_[a-z2-7]{32}", made["key"])
    assert re.fullmatch(r"key_[0-9a-hjkmnp-tv-z]{8}", made["id"])
    assert (made["name"], made["plan"], made["read_only"]) == ("laptop", None, False)
    assert made["expires_at"] is None
    listed = shared.http.get("/v1/keys").json()["keys"]
    [mine] = [key for key in listed if key["id"] == made["id"]]
    assert "key" not in mine
    assert mine == {name: value for name, value in made.items() if name != "key"}
    for file in shared.service.state.glob("queue.db*"):
        assert made["key"].encode() not in file.read_bytes()
        assert made["key"][6:].encode() not in file.read_bytes()
    assert made["key"] not in shared.service.log.read_text()


def test_the_documents_programs_work_with_a_key(shared: Box) -> None:
    import requests

    key = make(shared, "document")["key"]
    job = shared.run("echo", "hello")["job_id"]
    base = f"http://localhost:{tcp_of(shared)[1]}"
    response = requests.get(f"{base}/v1/jobs/{job}", headers={"X-Api-Key": key}, timeout=DEADLINE_S)
    assert response.json()["status"] == "completed"
    response = requests.get(
        f"{base}/v1/jobs/{job}/download", headers={"X-Api-Key": key}, timeout=DEADLINE_S
    )
    assert response.content[:2] == b"PK"


@pytest.mark.parametrize(
    "key",
    ["your-key", "", "aitbc_", "aitbc_" + "a" * 32, "x" * 10_000, "aitbc_\u00e9", "' OR 1=1 --"],
    ids=range(7),
)
def test_a_wrong_key_is_nobody_also_on_loopback(tmp_path: Path, key: str, shared: Box) -> None:
    for path in ("/v1/jobs", "/v1/jobs/job_zzzzzzzz", "/v1/keys"):
        answer = ask(shared, key.encode("latin-1"), path=path)  # type: ignore[arg-type]
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            return
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"]


def test_without_a_key_loopback_is_whoever_asks(shared: Box) -> None:
    assert ask(shared, None).status_code == 200


def test_wrong_keys_are_slowed_down_and_right_ones_are_not(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon", WITH_TCP) as box:
        key = make(box, "right")["key"]
        codes = [ask(box, f"wrong{number}").status_code for number in range(12)]
        assert codes[:10] == [401] * 10
        assert codes[10:] == [429] * 2
        limited = problem(ask(box, "wrong"), 429, "rate-limited")
        assert limited["retry_after_s"] >= 1
        assert int(ask(box, "wrong").headers["retry-after"]) >= 1
        assert ask(box, key).status_code == 200


def test_two_keys_in_one_request_are_none(shared: Box) -> None:
    key = make(shared, "twice")["key"]
    for first, second in ((key, "wrong"), ("wrong", key), (key, key)):
        text = (
            "GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"X-Api-Key: {first}\r\nx-api-key: {second}\r\n\r\n"
        )
        with socket.create_connection(tcp_of(shared), DEADLINE_S) as sock:
            sock.sendall(text.encode())
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 401"), answer


@pytest.mark.parametrize(
    "line", ["X-Api-Key : {}", "X-Api-Key: {}, {}", " X-Api-Key: {}", "X_Api_Key: {}"]
)
def test_a_key_in_a_header_that_is_not_quite_one_gives_nothing(
    shared: Box, bob: User, line: str
) -> None:
    key = make(shared, "smuggled")["key"]
    shared.http.delete("/v1/keys/smuggled")
    key = make(shared, "smuggled")["key"]
    head = f"GET /v1/keys HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{line}\r\n\r\n"
    with tcp_as(bob, shared) as sock:
        sock.sendall(head.format(key, key).encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert b"smuggled" not in answer, answer
    shared.http.delete("/v1/keys/smuggled")


@only_root
def test_a_key_is_its_user_whoever_holds_it(shared: Box, ada: User, bob: User) -> None:
    key = of_user(shared, ada, "mine")["key"]
    made = ask(shared, key, "POST", json={"argv": ["id", "-u"]})
    assert made.status_code == 201, made.text
    job = made.json()["job_id"]
    assert made.json()["user"] == ada.name
    shared.ended(job)
    assert shared.log(job).strip() == str(ada.uid).encode()
    # The holder's own uid counts no more: neither root's here nor bob's.
    assert ask(shared, key, path="/v1/jobs?all=true").status_code == 403
    other = shared.run("true")["job_id"]
    assert ask(shared, key, path=f"/v1/jobs/{other}").status_code == 404
    with tcp_as(bob, shared) as sock:
        sock.sendall(
            f"GET /v1/jobs/{job} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\n\r\n".encode()
        )
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


@only_root
def test_on_the_unix_socket_only_the_kernel_counts(shared: Box, ada: User) -> None:
    key = of_user(shared, ada, "unused")["key"]
    answer = shared.http.get("/v1/jobs?all=true", headers={"x-api-key": key})
    assert answer.status_code == 200
    assert shared.http.get("/v1/jobs", headers={"x-api-key": "wrong"}).status_code == 200


def test_a_key_counts_until_it_expires(shared: Box) -> None:
    made = make(shared, "short", expires="1.2s")
    assert ask(shared, made["key"]).status_code == 200
    with (
        connect(
            f"ws://localhost:{tcp_of(shared)[1]}/v1/jobs/ws",
            additional_headers={"X-Api-Key": made["key"]},
            open_timeout=DEADLINE_S,
        ) as ws,
        pytest.raises(ConnectionClosed),
    ):
        ws.recv(DEADLINE_S)
    answer = ask(shared, made["key"])
    assert "expired" in problem(answer, 401, "unauthorized")["detail"]


def test_a_revoked_key_counts_no_more_and_what_it_has_open_is_ended(shared: Box) -> None:
    made = make(shared, "lost")
    job = shared.submit("sleep", "1000")["job_id"]
    follow = f"GET /v1/jobs/{job}/logs/stdout?follow=true HTTP/1.1\r\nHost: localhost\r\n"
    with (
        connect(
            f"ws://localhost:{tcp_of(shared)[1]}/v1/jobs/ws",
            additional_headers={"X-Api-Key": made["key"]},
            open_timeout=DEADLINE_S,
        ) as ws,
        socket.create_connection(tcp_of(shared), DEADLINE_S) as log,
    ):
        log.sendall(f"{follow}X-Api-Key: {made['key']}\r\n\r\n".encode())
        assert b"200 OK" in log.recv(4096)
        # With itself, too.
        answer = ask(shared, made["key"], "DELETE", "/v1/keys/lost")
        assert (answer.status_code, answer.json()) == (200, {"revoked": 1})
        with pytest.raises(ConnectionClosed):
            ended(ws)
        try:
            assert log.recv(4096) == b""
        except ConnectionResetError:
            pass
    assert ask(shared, made["key"]).status_code in (401, 429)
    assert "lost" not in [key["name"] for key in shared.http.get("/v1/keys").json()["keys"]]
    problem(shared.http.delete("/v1/keys/lost"), 404, "no-such-key")
    shared.http.post(f"/v1/jobs/{job}/cancel", json={"force": True})
    make(shared, "lost")


def test_a_read_only_key_changes_nothing(shared: Box) -> None:
    key = make(shared, "reader", read_only=True)["key"]
    job = shared.submit("sleep", "1000")["job_id"]
    before = len(shared.http.get("/v1/jobs", params={"limit": 200}).json()["jobs"])
    for method, path in (
        ("POST", "/v1/jobs"), ("POST", "/v1/jobs:batch"), ("POST", f"/v1/jobs/{job}/cancel"),
        ("DELETE", f"/v1/jobs/{job}"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/reader"),
        ("POST", f"/v1/jobs/{job}/share"),
    ):  # fmt: skip
        answer = ask(shared, key, method, path, content=b'{"argv": ["true"]}')
        assert "read-only" in problem(answer, 403, "forbidden")["detail"]
    assert ask(shared, key, path=f"/v1/jobs/{job}").status_code == 200
    assert ask(shared, key, "HEAD", f"/v1/jobs/{job}").status_code == 200
    assert shared.status(job)["status"] in ("pending", "assigned", "running")
    assert len(shared.http.get("/v1/jobs", params={"limit": 200}).json()["jobs"]) == before
    shared.http.post(f"/v1/jobs/{job}/cancel", json={"force": True})
    over = shared.run("true")["job_id"]
    assert ask(shared, key, "POST", f"/v1/jobs/{over}/verify").json()["ok"] is True


def test_a_key_makes_no_keys(shared: Box) -> None:
    key = make(shared, "parent")["key"]
    problem(ask(shared, key, "POST", "/v1/keys", json={"name": "child"}), 403, "forbidden")
    assert "child" not in [one["name"] for one in shared.http.get("/v1/keys").json()["keys"]]


def test_a_name_is_taken_until_its_key_is_revoked(shared: Box) -> None:
    first = make(shared, "same")
    refusal = problem(shared.http.post("/v1/keys", json={"name": "same"}), 409, "wrong-state")
    assert "aitbcctl key revoke same" in refusal["hint"]
    assert shared.http.delete(f"/v1/keys/{first['id']}").json() == {"revoked": 1}
    second = make(shared, "same")
    assert ask(shared, second["key"]).status_code == 200
    assert ask(shared, first["key"]).status_code in (401, 429)


def test_the_name_of_an_expired_key_is_free(shared: Box) -> None:
    first = make(shared, "again", expires="1s")

    def is_over() -> bool:
        # What is asked with it when its time is over is hung up on.
        with suppress(httpx.RemoteProtocolError, httpx.ReadError):
            return ask(shared, first["key"]).status_code == 401
        return False

    wait_for("it is over", is_over)
    second = make(shared, "again")
    named = [one["id"] for one in shared.http.get("/v1/keys").json()["keys"]
             if one["name"] == "again"]  # fmt: skip
    assert named == [second["id"]]


@only_root
def test_keys_are_ones_own_and_root_sees_all(shared: Box, ada: User, bob: User) -> None:
    made = of_user(shared, ada, "hers")
    where = shared.service.socket
    assert made["user"] == ada.name
    assert bob.ask(where, "DELETE", f"/v1/keys/{made['id']}").status == 404
    assert bob.ask(where, "DELETE", "/v1/keys/hers").status == 404
    assert "hers" not in str(bob.ask(where, "GET", "/v1/keys").json)
    assert bob.ask(where, "GET", "/v1/keys?all=true").status == 403
    assert "hers" not in str(shared.http.get("/v1/keys").json())
    everybody: list[Json] = []
    after = None
    while True:
        params = {"all": "true", "limit": "2"} | ({"after": after} if after else {})
        page = shared.http.get("/v1/keys", params=params).json()
        everybody += page["keys"]
        if (after := page["next"]) is None:
            break
    assert made["id"] in [key["id"] for key in everybody]
    assert len({key["id"] for key in everybody}) == len(everybody)
    assert shared.http.delete(f"/v1/keys/{made['id']}").json() == {"revoked": 1}
    assert ask(shared, made["key"]).status_code in (401, 429)


@only_root
def test_a_plan_is_ones_own_unless_an_administrator_gives_it(shared: Box, ada: User) -> None:
    where = shared.service.socket
    refused = ada.ask(where, "POST", "/v1/keys", {"name": "rich", "plan": "pro"})
    assert refused.status == 403
    assert "free" in refused.json["detail"]
    assert of_user(shared, ada, "poor", plan="free")["plan"] == "free"
    assert make(shared, "rich", plan="pro")["plan"] == "pro"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"), ({"name": ""}, "name"), ({"name": "a b"}, "name"), ({"name": "a/b"}, "name"),
        ({"name": "x" * 65}, "name"), ({"name": 1}, "name"), ({"name": "x", "plan": "no"}, "plan"),
        ({"name": "x", "expires": "soon"}, "expires"), ({"name": "x", "expires": "-1d"}, "expires"),
        ({"name": "x", "read_only": "yes"}, "read_only"), ({"name": "x", "more": 1}, "more"),
    ],
)  # fmt: skip
def test_bad_wishes_are_refused_by_name(box: Box, body: Json, field: str) -> None:
    refusal = problem(box.http.post("/v1/keys", json=body), 422, "invalid-value")
    assert refusal["field"] == field
    assert box.http.get("/v1/keys").json() == {"keys": [], "next": None}


def test_keys_live_over_a_kill_and_their_use_is_noted(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon", WITH_TCP) as box:
        made = make(box, "kept")
        box.service.kill()
        box.service.start()
        assert ask(box, made["key"]).status_code == 200

        def noted() -> bool:
            with sqlite3.connect(f"file:{box.service.state / 'queue.db'}?mode=ro", uri=True) as db:
                return db.execute("SELECT last_used_at FROM keys").fetchone()[0] is not None

        wait_for("its use is written down", noted)
        [shown] = box.http.get("/v1/keys").json()["keys"]
        assert shown["last_used_at"] >= shown["created_at"]
        assert box.http.delete("/v1/keys/kept").status_code == 200
        box.service.kill()
        box.service.start()
        assert ask(box, made["key"]).status_code == 401


def test_a_user_has_a_hundred_keys_at_most(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon") as box:
        for number in range(100):
            make(box, f"key{number}")
        refusal = problem(box.http.post("/v1/keys", json={"name": "more"}), 409, "wrong-state")
        assert "aitbcctl key revoke" in refusal["hint"]
        assert len(box.http.get("/v1/keys", params={"limit": 200}).json()["keys"]) == 100
        box.http.delete("/v1/keys/key7")
        make(box, "more")


def test_behind_a_proxy_only_a_key_counts(tmp_path: Path) -> None:
    config = WITH_TCP.replace("[server]", '[server]\npublic_url = "https://gpu.example.org"')
    with serving(tmp_path / "daemon", config) as box:
        key = make(box, "outside")["key"]
        url = f"http://127.0.0.1:{tcp_of(box)[1]}/v1/jobs"
        outside = {"host": "gpu.example.org"}
        with httpx.Client(timeout=DEADLINE_S) as client:
            assert client.get(url).status_code == 200
            for headers in (outside, {"x-forwarded-for": "10.0.0.1"}):
                problem(client.get(url, headers=headers), 401, "unauthorized")
                with_key = {**headers, "x-api-key": key}
                assert client.get(url, headers=with_key).status_code == 200
            page = {**outside, "origin": "https://gpu.example.org", "x-api-key": key}
            assert client.get(url, headers=page).status_code == 200
            page["origin"] = "https://example.org"
            problem(client.get(url, headers=page), 403, "forbidden")


def raw(user: User, where: tuple[str, int], path: str, *headers: str) -> bytes:
    """Return the answer to a GET on a TCP connection that somebody made."""
    os.seteuid(user.uid)
    try:
        sock = socket.create_connection(where, DEADLINE_S)
    finally:
        os.seteuid(0)
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
    with sock:
        sock.sendall("\r\n".join(lines).encode())
        return b"".join(iter(lambda: sock.recv(65536), b""))


@only_root
def test_a_users_own_daemon_lets_others_in_with_his_key_only(ada: User, bob: User) -> None:
    with tempfile.TemporaryDirectory(prefix="aitbcd-") as folder:
        os.chown(folder, ada.uid, ada.gid)
        config, log = Path(folder) / "aitbcd.toml", Path(folder) / "log"
        config.write_text(WITH_TCP)
        config.chmod(0o644)
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                [*as_user(ada), str(PROGRAMS / "aitbcd"), "--config", str(config),
                 "--state-dir", f"{folder}/state", "--runtime-dir", f"{folder}/run"],
                env={"HOME": str(ada.home), "PATH": os.environ["PATH"]},
                stderr=output, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            wait_for("it serves", lambda: b"devices" in log.read_bytes(), log=log)
            port = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
            assert port
            where, unix = ("127.0.0.1", int(port[1])), Path(folder) / "run/aitbcd.sock"
            made = ada.ask(unix, "POST", "/v1/keys", {"name": "lent", "plan": "enterprise"})
            assert (made.status, made.json["plan"]) == (201, "enterprise")
            key = f"X-Api-Key: {made.json['key']}"
            root = User("root", 0, 0, Path("/root"))
            assert raw(ada, where, "/v1/jobs").startswith(b"HTTP/1.1 200")
            assert raw(bob, where, "/v1/jobs").startswith(b"HTTP/1.1 403")
            # System services and root have no say in a user's daemon over TCP.
            assert raw(root, where, "/v1/jobs").startswith(b"HTTP/1.1 401")
            for user in (ada, bob, root):
                assert raw(user, where, "/v1/jobs", key).startswith(b"HTTP/1.1 200")
            job = ada.ask(unix, "POST", "/v1/jobs", {"argv": ["echo", "hi"]}).json["job_id"]
            ada.ask(unix, "GET", f"/v1/jobs/{job}/events?follow=true")
            refused = ada.ask(unix, "POST", f"/v1/jobs/{job}/share", {"with": bob.name})
            assert refused.status == 409
            url = ada.ask(unix, "POST", f"/v1/jobs/{job}/share", {}).json["url"]
            path = "/s/" + url.rpartition("/")[2]
            assert raw(bob, where, path + "/files/result.txt").endswith(b"hi\n")
        finally:
            daemon.terminate()
            assert daemon.wait(DEADLINE_S) == 0
