"""The command line's HTTP client against real sockets, most of them not as they should be."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aitbcctl.client import Client, ConnectionLost, job_path, quote
from aitbcd.errors import AitbcError, NoSuchJob, TooLarge, Unreachable, WrongState
from tests.service import let_others_reach


@contextmanager
def answering(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[Client]:
    """Listen at ``path``, hand each connection to ``answer``, and give a client for it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                answer(peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Client({"AITBC_SOCKET": str(path)})
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def says(data: bytes) -> Callable[[socket.socket], None]:
    def answer(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(data)

    return answer


def problem(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def refused(path: Path) -> AitbcError:
    with pytest.raises(Unreachable) as caught:
        Client({"AITBC_SOCKET": str(path)}).get("/v1/jobs")
    return caught.value


def test_where_no_socket_is_the_message_says_how_to_start_a_daemon(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.sock")
    assert str(tmp_path / "none.sock") in error.detail
    assert error.hint is not None
    assert error.hint.endswith("aitbcd")


def test_all_usual_places_are_named_when_none_has_a_socket(tmp_path: Path) -> None:
    environ = {"AITBCD_RUNTIME_DIR": str(tmp_path / "r"), "HOME": str(tmp_path)}
    with pytest.raises(Unreachable) as caught:
        Client(environ).get("/v1/jobs")
    assert f"{tmp_path}/r/aitbcd.sock or " in caught.value.detail


def test_a_stale_socket_is_told_from_none(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "stale.sock"))
    assert "the daemon that made it is gone" in refused(tmp_path / "stale.sock").detail


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file").detail.endswith("is no socket")


def test_a_path_longer_than_sockets_allow_is_named_with_its_length(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 108)
    assert f"has {len(str(path))} bytes" in refused(path).detail


def test_the_own_socket_is_tried_before_the_systems(tmp_path: Path) -> None:
    environ = {"AITBCD_RUNTIME_DIR": str(tmp_path)}
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"mine": true}'
    with answering(tmp_path / "aitbcd.sock", says(answer)):
        assert Client(environ).get("/healthz") == {"mine": True}


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        problem(502, b"<html>Bad gateway</html>"),
        problem(404, b'{"error": "not found"}'),
    ],
)
def test_another_program_on_the_socket_is_not_taken_for_a_daemon(
    tmp_path: Path, data: bytes
) -> None:
    with (
        answering(tmp_path / "s", says(data)) as client,
        pytest.raises(Unreachable, match="is no aitbcd"),
    ):
        client.get("/v1/jobs")


def test_a_daemon_that_dies_within_its_answer_is_lost(tmp_path: Path) -> None:
    for data in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"):
        path = tmp_path / f"s{len(data)}"
        with answering(path, says(data)) as client, pytest.raises(ConnectionLost):
            client.get("/v1/jobs")


def test_a_problem_becomes_the_error_of_its_code(tmp_path: Path) -> None:
    body = b'{"code": "wrong-state", "detail": "it is done", "hint": "no", "state": "completed"}'
    with answering(tmp_path / "s", says(problem(409, body))) as client:
        with pytest.raises(WrongState, match="it is done") as caught:
            client.post("/v1/jobs/x/cancel")
        assert caught.value.hint == "no"
        assert caught.value.fields == {"state": "completed"}


def test_a_problem_of_a_newer_daemon_is_still_told(tmp_path: Path) -> None:
    body = b'{"code": "unheard-of", "detail": "something new"}'
    with answering(tmp_path / "s", says(problem(418, body))) as client:
        with pytest.raises(AitbcError, match="something new") as caught:
            client.get("/v1/jobs")
        assert caught.value.exit_code == 1


def test_a_refusal_before_the_body_was_read_is_understood(tmp_path: Path) -> None:
    def refuse_early(peer: socket.socket) -> None:
        peer.recv(100)
        peer.sendall(problem(413, b'{"code": "too-large", "detail": "at most 16 MiB"}'))

    with (
        answering(tmp_path / "s", refuse_early) as client,
        pytest.raises(TooLarge, match="at most 16 MiB"),
    ):
        client.post("/v1/jobs", b"x" * (8 << 20))


def test_a_job_reference_is_one_part_of_the_path(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def note(peer: socket.socket) -> None:
        seen.append(peer.recv(65536))
        peer.sendall(problem(404, b'{"code": "no-such-job", "detail": "none"}'))

    with answering(tmp_path / "s", note) as client, pytest.raises(NoSuchJob):
        client.get(job_path("../x y?\u00e4"), detail=True)
    assert seen[0].startswith(b"GET /v1/jobs/..%2Fx%20y%3F%C3%A4?detail=true HTTP/1.1\r\n")
    assert quote(b"a/b\xff", safe=b"/") == "a/b%FF"


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1:1", "127.0.0.1:8000", "http://", "http://h:x", "http://u@h/", "http://h/p"]
)  # fmt: skip
def test_a_wrong_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(Unreachable, match="expected http://HOST:PORT"):
        Client({"AITBC_URL": url}).get("/v1/jobs")


def test_a_tcp_port_where_nobody_listens_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unreachable, match=url):
            Client({"AITBC_URL": url}).get("/v1/jobs")


def test_over_tcp_the_key_and_the_true_host_are_sent() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        netloc = f"127.0.0.1:{listener.getsockname()[1]}"
        seen: list[bytes] = []

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                seen.append(peer.recv(65536))
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Thread(target=serve)
        thread.start()
        Client({"AITBC_URL": f"http://{netloc}/", "AITBC_API_KEY": "k3y"}).get("/v1/jobs")
        thread.join()
    assert f"\r\nHost: {netloc}\r\n".encode() in seen[0]
    assert b"\r\nX-Api-Key: k3y\r\n" in seen[0]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be somebody else")
def test_a_socket_that_is_closed_to_the_caller_is_said_with_its_owner(tmp_path: Path) -> None:
    let_others_reach(tmp_path)
    path = tmp_path / "s"
    with answering(path, says(b"")):
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            detail = refused(path).detail
        finally:
            os.seteuid(0)
    assert detail == f"permission denied on the socket {path}, which belongs to root with mode 0600"
