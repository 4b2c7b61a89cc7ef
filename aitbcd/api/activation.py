"""Sockets that systemd holds for us and hands over (sd_listen_fds(3)).

They are bound before we start and stay bound while we are not there: a restart drops no connection,
and nobody else can take the port meanwhile and collect keys. FileDescriptorName= tells them apart.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import NamedTuple

import msgspec

from aitbcd import wire
from aitbcd.errors import AitbcError, StartupError, Unavailable

#: SD_LISTEN_FDS_START.
_FIRST = 3
UNIX, TCP = "unix", "tcp"
#: Seconds for all who wait when the daemon cannot start, and for one of them to send his request.
_TURN_AWAY_S, _REQUEST_S = 2.0, 0.2


class Handed(NamedTuple):
    """What we were given; both may be missing."""

    unix: socket.socket | None
    tcp: list[socket.socket]


def take(environ: MutableMapping[str, str], pid: int) -> Handed:
    """Return the sockets that this environment speaks of, and take them out of there.

    Raises:
        StartupError: one of them is not what its name says.
    """
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    for_whom = environ.pop("LISTEN_PID", "")
    if for_whom != str(pid) or not count.isdigit():
        return Handed(None, [])
    unix, tcp = None, []
    for at in range(int(count)):
        name = names[at] if at < len(names) else ""
        sock = _open(_FIRST + at, name)
        if name == UNIX:
            unix = sock
        else:
            tcp.append(sock)
    return Handed(unix, tcp)


def turn_away(handed: Handed, error: AitbcError) -> None:
    """Answer those who wait on the sockets with why there is no daemon.

    They would wait until they give up, and systemd would start us again for them without end.
    """
    problem = Unavailable(f"the daemon cannot start: {error.detail}", hint=error.hint)
    body = msgspec.json.encode(wire.problem(problem))
    head = (
        f"HTTP/1.1 {problem.status} Service Unavailable\r\nConnection: close\r\n"
        f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    until = time.monotonic() + _TURN_AWAY_S
    for sock in (*handed.tcp, *([handed.unix] if handed.unix else [])):
        while (client := _accept(sock)) is not None:
            with client:
                if time.monotonic() < until:
                    _answer(client, head.encode() + body)


def _accept(sock: socket.socket) -> socket.socket | None:
    try:
        return sock.accept()[0]
    except OSError:
        return None


def _answer(client: socket.socket, answer: bytes) -> None:
    client.settimeout(_REQUEST_S)
    try:
        # Closed with something unread, a connection is reset, and the answer may be lost with it.
        client.recv(1 << 20)
        client.sendall(answer)
    except OSError:
        pass


def _open(fd: int, name: str) -> socket.socket:
    families = {UNIX: (socket.AF_UNIX,), TCP: (socket.AF_INET, socket.AF_INET6)}
    try:
        # What we start must not hold them.
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        is_right = sock.family in families.get(name, ()) and sock.type == socket.SOCK_STREAM
        is_right = is_right and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        is_right = False
    if not is_right:
        raise StartupError(
            f"descriptor {fd}, which systemd hands over as '{name}', is no listening socket for us",
            hint=f"see FileDescriptorName= in the socket units: it is {UNIX} or {TCP}",
        )
    sock.setblocking(False)
    return sock
