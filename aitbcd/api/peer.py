"""Who is asking: the kernel says so, never the request.

On the Unix socket SO_PEERCRED (unix(7)) has the uid of the process that connected. On TCP over
loopback the uid is that of the client's own socket, asked for once, when the connection is
accepted, by its exact four-tuple (sock_diag(7)). It is believed only of a socket that is
ESTABLISHED and has an inode: one that was closed at once shows uid 0, and that must be nobody.

A page of a foreign site in somebody's browser has that somebody's uid. It is told by its ``Host``,
which must be a name of ours (an Origin that equals Host is no proof: a foreign name can be bound
to 127.0.0.1), by its ``Origin``, and by what browsers say of where a request comes from.

On an address that a network reaches nobody is believed to be anybody: there only API keys count.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Hashable, Sequence
from urllib.parse import urlsplit

from msgspec import Struct

from aitbcd.errors import Forbidden, Unauthorized
from aitbcd.model import Owner
from aitbcd.users import lookup

_UCRED = struct.Struct("3i")
#: login.defs(5): uids below belong to the system's services.
FIRST_USER_UID = 1000
#: ``nobody``, which is also what an unmapped uid of another user namespace looks like.
_OVERFLOW_UID = 65534

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_TCP_ESTABLISHED = 1
_NLMSGHDR = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI2s2s16s16sIII")
#: Up to the timer's fields; uid and inode come after id, expires, rqueue and wqueue.
_ANSWER = struct.Struct("=BBBB48sIIIII")

#: What proxies add.
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"})

Headers = Sequence[tuple[bytes, bytes]]


class Peer(Struct, frozen=True):
    """The other end of a connection. ``uid`` is None for somebody nobody vouches for."""

    uid: int | None
    is_tcp: bool
    #: Which network it is from, where one reaches us: such as have many addresses are one.
    network: str | None = None
    #: The address of ours that it came to, as it stands in a Host header; "" for loopback.
    reached: str = ""

    @property
    def counted_as(self) -> Hashable:
        """Return for whom its connections and tries are counted."""
        return self.uid if self.network is None else self.network


class Diagnosis:
    """Asks the kernel whose socket is at the other end of an accepted TCP connection."""

    def __init__(self) -> None:
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        )
        # The kernel answers within the send; this is for a kernel that does not.
        self._netlink.settimeout(1.0)
        self._sequence = 0

    def uid_of(self, client: tuple[str, int], server: tuple[str, int]) -> int | None:
        """Return the uid that owns the socket from ``client`` to ``server``; None for nobody."""
        family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
        request = _REQUEST.pack(
            family, socket.IPPROTO_TCP, 0, 0, 1 << _TCP_ESTABLISHED,
            client[1].to_bytes(2, "big"), server[1].to_bytes(2, "big"),
            socket.inet_pton(family, client[0]), socket.inet_pton(family, server[0]),
            0, 0xFFFFFFFF, 0xFFFFFFFF,
        )  # fmt: skip
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        size = _NLMSGHDR.size + len(request)
        head = _NLMSGHDR.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._sequence, 0)
        try:
            self._netlink.send(head + request)
            answer = self._netlink.recv(8192)
            # An answer that came too late for an earlier question must not count for this one.
            while len(answer) >= _NLMSGHDR.size and _sequence_of(answer) != self._sequence:
                answer = self._netlink.recv(8192)
        except OSError:
            return None
        return _believed(answer)

    def close(self) -> None:
        self._netlink.close()


def _sequence_of(answer: bytes) -> int:
    sequence: int = _NLMSGHDR.unpack_from(answer)[3]
    return sequence


def _believed(answer: bytes) -> int | None:
    if len(answer) < _NLMSGHDR.size + _ANSWER.size:
        return None
    _, kind, _, _, _ = _NLMSGHDR.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:  # NLMSG_ERROR: there is no such socket
        return None
    _, state, _, _, _, _, _, _, uid, inode = _ANSWER.unpack_from(answer, _NLMSGHDR.size)
    return int(uid) if state == _TCP_ESTABLISHED and inode else None


def unix_peer(sock: socket.socket) -> Peer:
    """Return who connected to the Unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return Peer(uid if uid >= 0 else None, is_tcp=False)


def tcp_peer(diagnosis: Diagnosis, client: tuple[str, int], server: tuple[str, int]) -> Peer:
    """Return who connected over loopback, and nobody where that says too little."""
    uid = diagnosis.uid_of(client, server)
    if uid is not None and uid != os.getuid() and not FIRST_USER_UID <= uid < _OVERFLOW_UID:
        uid = None
    return Peer(uid, is_tcp=True)


def network_peer(client: str, server: str) -> Peer:
    """Return who connected from ``client``, an address, to one of ours that a network reaches."""
    came_from, reached = _unmapped(client), _unmapped(server)
    bits = 64 if came_from.version == 6 else 32
    network = ipaddress.ip_network((came_from, bits), strict=False)
    if came_from.is_loopback:
        network = ipaddress.ip_network("127.0.0.0/8")
    shown = f"[{reached}]" if reached.version == 6 else str(reached)
    return Peer(None, is_tcp=True, network=str(network), reached=shown)


def _unmapped(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address; an IPv4 one that an IPv6 socket shows as its own as what it is."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def owner_of(peer: Peer, *, is_shared: bool = False) -> Owner:
    """Return the user that a peer acts as.

    Args:
        is_shared: the daemon serves other users too, though it is not root.

    Raises:
        Unauthorized: nobody vouches for it.
        Forbidden: it is known, and this daemon does not serve it.
    """
    if peer.uid is None:
        raise Unauthorized(
            "the kernel does not say whose connection this is",
            hint="use the Unix socket, or send an API key: X-Api-Key",
        )
    own = os.getuid()
    if peer.uid not in (own, 0) and own != 0 and not is_shared:
        raise Forbidden(
            f"this daemon belongs to uid {own} and serves nobody else (you are uid {peer.uid})",
            hint="start your own: aitbcd",
        )
    user = lookup(peer.uid)
    if user is None:
        raise Forbidden(
            f"uid {peer.uid} has no entry in this machine's user database",
            hint="an administrator can add it (useradd, or the directory service)",
        )
    return Owner(user.uid, user.name, is_admin=user.uid == 0)


class Site:
    """What we are called: loopback, ``public_url``, and what the certificate says."""

    def __init__(
        self, public_url: str = "", is_certified: Callable[[str], bool] = lambda _: False
    ) -> None:
        """Keep the names; ``is_certified`` tells whether one is in the certificate."""
        parts = urlsplit(public_url.lower())
        name = parts.hostname or ""
        name = f"[{name}]" if ":" in name else name
        #: The name in ``public_url``; "" where there is none but those of loopback.
        self.public_name = "" if _is_loopback(name) else name
        is_usual = parts.port in (None, {"http": 80, "https": 443}.get(parts.scheme))
        port = "" if is_usual else f":{parts.port}"
        self._public_origin = f"{parts.scheme}://{name}{port}"
        self._is_certified = is_certified

    def origin_of(self, host: str, *, is_tls: bool = False, reached: str = "") -> str | None:
        """Return the Origin of our pages under this Host; None where it is no name of ours.

        Args:
            reached: the address that the connection came to; a foreign name cannot look like it.
        """
        name = host_name(host)
        is_own = _is_loopback(name) or (name != "" and name == reached)
        if is_own or (is_tls and self._is_certified(name)):
            return f"{'https' if is_tls else 'http'}://{host}"
        return self._public_origin if name and name == self.public_name else None


def _is_loopback(name: str) -> bool:
    # An address is no name that a foreign name server could point here.
    is_address = name.startswith("127.") and not name.strip("0123456789.")
    return is_address or name in ("localhost", "[::1]")


def check_origin(
    headers: Headers,
    site: Site,
    *,
    is_link: bool = False,
    is_tls: bool = False,
    reached: str = "",
) -> None:
    """Refuse what a foreign page makes a browser send over TCP.

    Args:
        is_tls, reached: as ``Site.origin_of``.
        is_link: what is asked for is open to whoever has its address, so that a page of others may
            lead there.

    Raises:
        Forbidden: Host is no name of ours, or Origin is not that very Host.
    """
    host = _single(headers, b"host") or ""
    allowed = site.origin_of(host, is_tls=is_tls, reached=reached)
    if allowed is None:
        raise Forbidden(
            f"the request is for the host '{host}', which is not this daemon",
            hint="use 127.0.0.1 or localhost, or name it in [server] public_url",
        )
    origin = _single(headers, b"origin")
    if origin is not None and origin != allowed:
        raise Forbidden(f"the request comes from a page of '{origin}', not from this daemon's own")
    came_from = _single(headers, b"sec-fetch-site")
    is_followed = is_link and _single(headers, b"sec-fetch-mode") == "navigate"
    if came_from not in (None, "none", "same-origin") and not is_followed:
        raise Forbidden("the request comes from another site's page")


def is_forwarded(headers: Headers, site: Site) -> bool:
    """Tell whether a proxy sent this on, whose uid then says nothing."""
    host = host_name(_single(headers, b"host") or "")
    return (site.public_name != "" and host == site.public_name) or any(
        name in _FORWARDED for name, _ in headers
    )


def _single(headers: Headers, wanted: bytes) -> str | None:
    """Return a header in lower case; one that is there twice is as good as empty."""
    found = [value for name, value in headers if name == wanted]
    if not found:
        return None
    return found[0].decode("latin-1").lower() if len(found) == 1 else ""


def host_name(host: str) -> str:
    """Return the name in a Host header, without its port; "" for none."""
    name, colon, port = host.rpartition(":")
    if colon and (port.isdigit() or not port) and not name.endswith(":"):
        return name
    return host
