"""Who is at the other end of a connection: real sockets, and what must not be believed of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd.api.peer import (
    Diagnosis,
    Peer,
    Site,
    check_origin,
    host_name,
    is_forwarded,
    owner_of,
    tcp_peer,
    unix_peer,
)
from aitbcd.errors import Forbidden, Unauthorized


@pytest.fixture
def diagnosis() -> Iterator[Diagnosis]:
    with closing(Diagnosis()) as made:
        yield made


def pair(family: socket.AddressFamily, host: str) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection: the client's, and the accepted one."""
    with closing(socket.socket(family)) as listener:
        try:
            listener.bind((host, 0))
        except OSError as problem:
            pytest.skip(f"no {host} here: {problem}")
        listener.listen()
        client = socket.socket(family)
        client.connect(listener.getsockname())
        return client, listener.accept()[0]


def asked(diagnosis: Diagnosis, accepted: socket.socket) -> int | None:
    return diagnosis.uid_of(accepted.getpeername()[:2], accepted.getsockname()[:2])


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_the_owner_of_the_client_s_socket_is_who_asks(
    diagnosis: Diagnosis, family: socket.AddressFamily, host: str
) -> None:
    client, accepted = pair(family, host)
    with client, accepted:
        assert asked(diagnosis, accepted) == os.getuid()


def test_a_socket_that_was_shut_down_or_closed_is_nobody_s(diagnosis: Diagnosis) -> None:
    client, accepted = pair(socket.AF_INET, "127.0.0.1")
    with client, accepted:
        client.shutdown(socket.SHUT_WR)
        assert asked(diagnosis, accepted) is None
    client, accepted = pair(socket.AF_INET, "127.0.0.1")
    with accepted:
        client.close()
        # Without this end's FIN the kernel keeps the other in FIN-WAIT-2, without an inode.
        assert asked(diagnosis, accepted) is None


def test_a_connection_that_never_was_is_nobody_s(diagnosis: Diagnosis) -> None:
    client, accepted = pair(socket.AF_INET, "127.0.0.1")
    with client, accepted:
        here = accepted.getsockname()
        assert diagnosis.uid_of(("127.0.0.1", 1), here) is None
        assert diagnosis.uid_of(("127.0.0.2", client.getsockname()[1]), here) is None
        assert asked(diagnosis, accepted) == os.getuid()


def test_questions_do_not_mix(diagnosis: Diagnosis) -> None:
    pairs = [pair(socket.AF_INET, "127.0.0.1") for _ in range(5)]
    for number, (client, accepted) in enumerate(pairs * 3):
        found = diagnosis.uid_of(
            client.getsockname(), accepted.getsockname() if number % 2 else ("127.0.0.1", 1)
        )
        assert found == (os.getuid() if number % 2 else None)
    for ends in pairs:
        for end in ends:
            end.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("uid", "counts"), [(1, False), (999, False), (1000, True), (65534, False)]
)
def test_system_users_are_nobody_over_tcp(diagnosis: Diagnosis, uid: int, counts: bool) -> None:
    os.seteuid(uid)
    try:
        client, accepted = pair(socket.AF_INET, "127.0.0.1")
    finally:
        os.seteuid(0)
    with client, accepted:
        assert asked(diagnosis, accepted) == uid
        peer = tcp_peer(diagnosis, accepted.getpeername(), accepted.getsockname())
        assert peer == Peer(uid if counts else None, is_tcp=True)


def test_the_unix_socket_says_who_connected() -> None:
    ends = socket.socketpair()
    with ends[0], ends[1]:
        assert unix_peer(ends[0]) == Peer(os.getuid(), is_tcp=False)


def test_an_owner_needs_an_entry_in_the_user_database() -> None:
    own = owner_of(Peer(os.getuid(), is_tcp=False))
    assert own.uid == os.getuid()
    with pytest.raises(Unauthorized):
        owner_of(Peer(None, is_tcp=True))
    with pytest.raises(Forbidden):
        owner_of(Peer(54321, is_tcp=False))


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"), ("localhost:8000", "localhost"), ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]", "[::1]"), ("[::1]:8000", "[::1]"), ("localhost:", "localhost"), ("", ""),
        ("example.org:x", "example.org:x"), ("a:b:1", "a:b"),
    ],
)  # fmt: skip
def test_a_host_is_taken_from_its_port(host: str, name: str) -> None:
    assert host_name(host) == name


def headers(**fields: str) -> list[tuple[bytes, bytes]]:
    return [(key.replace("_", "-").encode(), text.encode()) for key, text in fields.items()]


OURS = [
    headers(host="127.0.0.1:8000"),
    headers(host="localhost"),
    headers(host="LocalHost:8000", origin="http://localhost:8000"),
    headers(host="[::1]:8000", origin="http://[::1]:8000", sec_fetch_site="same-origin"),
    headers(host="127.8.8.8", sec_fetch_site="none"),
]
FOREIGN = [
    [],
    headers(host=""),
    headers(host="example.org"),
    headers(host="127.0.0.1.example.org"),
    headers(host="localhost.example.org:8000"),
    headers(host="example.org", origin="http://example.org"),
    headers(host="127.0.0.1:8000", origin="http://127.0.0.1:9000"),
    headers(host="127.0.0.1:8000", origin="https://127.0.0.1:8000"),
    headers(host="127.0.0.1:8000", origin="null"),
    headers(host="127.0.0.1:8000", origin=""),
    headers(host="127.0.0.1:8000", sec_fetch_site="cross-site"),
    headers(host="127.0.0.1:8000", sec_fetch_site="same-site"),
    headers(host="127.0.0.1") + headers(host="127.0.0.1"),
    headers(host="127.0.0.1", origin="http://127.0.0.1") + headers(origin="http://127.0.0.1"),
]


@pytest.mark.parametrize("fields", OURS, ids=str)
def test_our_own_pages_and_programs_are_let_in(fields: list[tuple[bytes, bytes]]) -> None:
    check_origin(fields, Site())


@pytest.mark.parametrize("fields", FOREIGN, ids=str)
def test_foreign_pages_are_kept_out(fields: list[tuple[bytes, bytes]]) -> None:
    for is_link in (False, True):
        with pytest.raises(Forbidden):
            check_origin(fields, Site(), is_link=is_link)


PUBLIC = Site("https://GPU.example.org/jobs")


@pytest.mark.parametrize(
    "fields",
    [
        headers(host="gpu.example.org"),
        headers(host="GPU.example.org", origin="https://gpu.example.org"),
        headers(host="127.0.0.1:8000", origin="http://127.0.0.1:8000"),
    ],
    ids=str,
)
def test_the_public_address_is_ours(fields: list[tuple[bytes, bytes]]) -> None:
    check_origin(fields, PUBLIC)


@pytest.mark.parametrize(
    "fields",
    [
        headers(host="gpu.example.org", origin="http://gpu.example.org"),
        headers(host="gpu.example.org", origin="https://gpu.example.org:8443"),
        headers(host="gpu.example.org", origin="http://127.0.0.1:8000"),
        headers(host="127.0.0.1:8000", origin="https://gpu.example.org"),
        headers(host="other.example.org"),
        headers(host="example.org"),
        headers(host=""),
    ],
    ids=str,
)
def test_pages_beside_the_public_address_are_foreign(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Forbidden):
        check_origin(fields, PUBLIC)


def test_a_port_counts_unless_it_is_the_usual_one() -> None:
    usual = Site("http://gpu.example.org:80")
    check_origin(headers(host="gpu.example.org", origin="http://gpu.example.org"), usual)
    other = Site("https://gpu.example.org:8443")
    ours = headers(host="gpu.example.org:8443", origin="https://gpu.example.org:8443")
    check_origin(ours, other)


def test_a_link_may_be_followed_from_anywhere_and_not_asked_for_by_a_page() -> None:
    followed = headers(host="localhost", sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    asked = headers(host="localhost", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")
    check_origin(followed, Site(), is_link=True)
    with pytest.raises(Forbidden):
        check_origin(followed, Site())
    with pytest.raises(Forbidden):
        check_origin(asked, Site(), is_link=True)


@pytest.mark.parametrize(
    ("fields", "is_so"),
    [
        (headers(host="gpu.example.org"), True),
        (headers(host="127.0.0.1", x_forwarded_for="10.0.0.1"), True),
        (headers(host="127.0.0.1", x_real_ip="10.0.0.1"), True),
        (headers(host="127.0.0.1", forwarded="for=10.0.0.1"), True),
        (headers(host="127.0.0.1"), False),
        ([], False),
    ],
    ids=str,
)
def test_what_came_through_a_proxy_is_known(fields: list[tuple[bytes, bytes]], is_so: bool) -> None:
    assert is_forwarded(fields, PUBLIC) is is_so
    assert not is_forwarded(headers(host="localhost"), Site("http://localhost:8080"))


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=40))
def test_only_loopback_names_are_ours_whatever_the_host(host: str) -> None:
    name = host.lower().split("]")[0] + "]" if host.startswith("[") else host.split(":")[0]
    try:
        check_origin([(b"host", host.encode("latin-1"))], Site())
    except Forbidden:
        return
    is_address = name.startswith("127.") and set(name) <= set("0123456789.")
    assert is_address or name.lower() in ("localhost", "[::1]")
