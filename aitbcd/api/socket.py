"""The sockets, and HTTP/1.1 on them: bind, serve, bind again, stop.

uvicorn's protocol class does the HTTP on listeners of our own; its server is left out, because its
main loop ticks ten times a second. Added to it here: who is at the other end (``peer``), a bound
for everything that a client may make us wait for or keep, and refusals as problem documents.

The Unix socket is bound under a umask, so that it never exists with wider permissions, and a stale
one is probed before it is removed. It is bound again when its path vanishes: XDG_RUNTIME_DIR goes
at logout, and people clean up folders. TCP is an extra: where its port is taken, the socket serves.
Sockets that systemd holds (``activation``) are served as they are, and left to it at the end.

TLS goes between a connection and its HTTP once the connection is counted: who begins a handshake
and does not go on with it takes a seat of his own, for as long as he may.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import resource
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from aitbcd import wire
from aitbcd.api.peer import Diagnosis, Peer, network_peer, tcp_peer, unix_peer
from aitbcd.api.seats import Seat, Seats
from aitbcd.api.websocket import MESSAGE_BYTES_MAX, PING_S, PONG_S, WebSocketProtocol
from aitbcd.certificate import Certificate
from aitbcd.errors import AitbcError, BadRequest, StartupError, TooLarge, Unavailable
from aitbcd.paths import SOCKET_PATH_MAX
from aitbcd.results.watches import Watches

_log = logging.getLogger(__name__)
# A client's garbage is answered, not logged: anybody could fill the log with it. What fails in the
# application is logged there, and it leaves answers unfinished on purpose (``StreamBroken``).
logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

BACKLOG = 1024
#: asm-generic/socket.h; the socket module does not know it yet.
_SO_PASSRIGHTS = 83
#: From Python 3.13 on the path would go with the server, whosever it is; systemd's has to stay.
_UNIX: Mapping[str, Any] = {"backlog": BACKLOG, "cleanup_socket": False}
#: Seconds that a connection may stay open without a request.
IDLE_S = 75.0
#: Seconds from the first byte of a request to the end of its head.
HEAD_S = 20.0
#: Seconds that a TLS handshake may take, and the end of what it began.
HANDSHAKE_S = 10.0
_TLS_END_S = 5.0
#: Connections that are accepted before others are looked after, and the pause before the next one
#: where there are no descriptors or no memory.
_ACCEPTED_AT_ONCE = 64
_ACCEPT_PAUSE_S = 1.0
HEAD_BYTES_MAX = 64 * 1024
#: What the WebSocket library reads of a head: lines, and bytes of each.
_WS_HEADERS_MAX = 128
_WS_LINE_BYTES_MAX = 8 * 1024
#: Of a body that was refused unread; reading it on lets the client see the refusal.
DISCARDED_BYTES_MAX = 512 * 1024 * 1024
#: Where a connection may become a WebSocket; elsewhere the wish is ignored (RFC 9110, 7.8).
WEBSOCKET_PATH = b"/v1/jobs/ws"
#: Descriptors that the rest of the daemon needs: four that look through packages, which may be
#: deep, the attempts that run, the store.
_RESERVED_FDS = 1100
#: Descriptors that a connection may come to need: itself, a package, a file of it.
_FDS_OF_ONE = 3
#: Connections that there are whatever is allowed.
_CONNECTIONS_MIN = 64
_FDS_MAX = 65536
#: Seconds between tries to bind a vanished socket where that fails, and between looks at one that
#: cannot be watched.
_REBIND_PAUSE_S = 5.0


class Clients:
    """What the connections of one server share."""

    def __init__(
        self,
        app: Callable[..., Any],
        is_stopping: asyncio.Event,
        certificate: Callable[[], Certificate] | None = None,
    ) -> None:
        """Prepare it; ``certificate`` gives the one that counts now, where TCP is encrypted."""
        self.certificate = certificate
        self.config = Config(
            app,
            interface="asgi3",
            ws="none",
            ws_max_size=MESSAGE_BYTES_MAX,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PONG_S,
            # A compressor for each of a thousand clients takes more memory than all else.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            timeout_keep_alive=int(IDLE_S),
        )
        self.config.load()
        self.state = ServerState()
        self.is_stopping = is_stopping
        self.diagnosis = Diagnosis()
        allowed = _descriptors_allowed()
        for_connections = allowed - min(_RESERVED_FDS, allowed // 2)
        self.seats = Seats(max(_CONNECTIONS_MIN, for_connections // _FDS_OF_ONE))

    def peer(self, sock: socket.socket, *, is_network: bool) -> Peer:
        """Return who is at the other end of an accepted connection."""
        try:
            if sock.family == socket.AF_UNIX:
                return unix_peer(sock)
            client, server = sock.getpeername()[:2], sock.getsockname()[:2]
        except OSError:
            # It is gone already (ENOTCONN).
            return Peer(None, is_tcp=True)
        if is_network:
            return network_peer(client[0], server[0])
        return tcp_peer(self.diagnosis, client, server)


def _descriptors_allowed() -> int:
    """Take as many descriptors as we may have: the usual 1,024 are few for followers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FDS_MAX if hard == resource.RLIM_INFINITY else min(hard, _FDS_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        clients: Clients,
        *,
        is_network: bool = False,
        admitted: tuple[Peer, Seat] | None = None,
    ) -> None:
        """Prepare it; ``admitted`` is who is at the other end, if that is settled and counted."""
        super().__init__(clients.config, clients.state, {})
        self._clients = clients
        self._is_network = is_network
        self._admitted = admitted
        self._seat: Seat | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._is_in_head = False
        self._discarded = 0
        self._is_upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        admitted = self._admitted or self._admit(transport)
        if admitted is None:
            self.transport = transport
            error = Unavailable("too many connections are open", hint="close some and try again")
            self._refuse(error)
            return
        peer, self._seat = admitted
        self._seat.leave = transport.abort
        self.app_state = {"peer": peer, "abort": transport.abort}
        super().connection_made(transport)
        self._await_request()

    def _admit(self, transport: asyncio.Transport) -> tuple[Peer, Seat] | None:
        sock = transport.get_extra_info("socket")
        peer = self._clients.peer(sock, is_network=self._is_network)
        seat = self._clients.seats.take(peer.counted_as, transport.abort)
        return (peer, seat) if seat else None

    @property
    def has_begun(self) -> bool:
        return self._seat is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        if self._seat is not None:
            self._seat.free()
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._seat is None:
            return
        super().data_received(data)
        if self.transport.is_closing() or self._is_upgraded:
            return
        if self._is_in_head:
            self._bound_head(len(data))
        elif self.timeout_keep_alive_task is None and self._is_idle():
            # Empty lines between requests must not keep a connection for ever.
            self._await_request()

    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _await_request(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(IDLE_S, self.timeout_keep_alive_handler)

    def _bound_head(self, more: int) -> None:
        self._head_bytes += more
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(TooLarge(f"the head of the request exceeds {HEAD_BYTES_MAX} bytes"), 431)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._on_slow_head)

    def _on_slow_head(self) -> None:
        self._head_timer = None
        self._refuse(BadRequest(f"the request did not come within {HEAD_S:.0f} seconds"), 408)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle is not None and self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > DISCARDED_BYTES_MAX:
                self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest("that is no HTTP/1.1 request", hint="see the API's documentation"))

    def _should_upgrade(self) -> bool:
        return self.url.partition(b"?")[0] == WEBSOCKET_PATH and self._get_upgrade() == b"websocket"

    def handle_websocket_upgrade(self) -> None:
        if not self._is_idle():
            # An answer is under way to an earlier request on this connection.
            self.transport.abort()
            return
        if not self._is_handshake():
            self._refuse(BadRequest("that is no WebSocket handshake", hint="see RFC 6455, 4.1"))
            return
        assert self._seat is not None
        self._is_upgraded = True
        self.connections.discard(self)
        protocol = WebSocketProtocol(
            self.config, self.server_state, self.app_state, self._seat.free
        )
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        lines = [b"%s: %s\r\n" % header for header in self.headers]
        protocol.data_received(b"GET %s HTTP/1.1\r\n%s\r\n" % (self.url, b"".join(lines)))
        if not protocol.handshake_initiated:
            self.transport.abort()

    def _is_handshake(self) -> bool:
        """Tell whether the WebSocket library will understand the head; it is silent if not."""
        is_get = self.scope["method"] == "GET" and self.parser.get_http_version() == "1.1"
        is_small = len(self.headers) < _WS_HEADERS_MAX and all(
            len(name) + len(value) + 4 < _WS_LINE_BYTES_MAX for name, value in self.headers
        )
        has_body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        )
        is_plain = self.url.isascii() and len(self.url) + 16 < _WS_LINE_BYTES_MAX
        return is_get and is_small and is_plain and not has_body

    def _unsupported_upgrade_warning(self) -> None:
        """Serve the request as it is, in silence."""

    def _refuse(self, error: AitbcError, status: int | None = None) -> None:
        """Answer outside of a request and hang up."""
        if not self._is_idle():
            self.transport.abort()
            return
        code = status or error.status
        body = wire.encode({**wire.problem(error), "status": code}) + b"\n"
        self.transport.write(
            STATUS_LINE[code]
            + b"content-type: application/problem+json\r\n"
            + b"content-length: %d\r\n" % len(body)
            + b"connection: close\r\n\r\n"
            + body
        )
        self.transport.close()


class _EncryptedListener:
    """Accepts connections that are to be encrypted: counted first, then HTTP within TLS."""

    def __init__(
        self,
        clients: Clients,
        sock: socket.socket,
        certificate: Callable[[], Certificate],
        *,
        is_network: bool,
    ) -> None:
        self._clients = clients
        self._sock = sock
        self._certificate = certificate
        self._is_network = is_network
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._loop.add_reader(sock, self._on_connections)

    def close(self) -> None:
        """Accept no more, and give up handshakes that are under way."""
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for handshake in self._handshakes:
            handshake.cancel()

    def _on_connections(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as problem:
                if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._pause()
                    return
                continue  # It is gone already.
            self._begin(sock)

    def _pause(self) -> None:
        """Try again in a while: until then each look would say the same."""
        self._loop.remove_reader(self._sock)
        self._loop.call_later(_ACCEPT_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._on_connections)

    def _begin(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        peer = self._clients.peer(sock, is_network=self._is_network)
        handshake: asyncio.Task[None] | None = None

        def leave() -> None:
            assert handshake is not None
            handshake.cancel()

        seat = self._clients.seats.take(peer.counted_as, leave)
        if seat is None:
            sock.close()
            return
        http = HttpProtocol(self._clients, admitted=(peer, seat))
        handshake = self._loop.create_task(self._shake_hands(sock, http))
        self._handshakes.add(handshake)

        def end(done: asyncio.Task[None]) -> None:
            self._handshakes.discard(done)
            if not http.has_begun:
                sock.close()
                seat.free()

        handshake.add_done_callback(end)

    async def _shake_hands(self, sock: socket.socket, http: HttpProtocol) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: http,
                sock,
                ssl=self._certificate().context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=_TLS_END_S,
            )
        except OSError:
            pass  # No TLS, too slow, or gone: a client's garbage is not logged.


class _HangUp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.abort()


class Server:
    """The listeners of one daemon."""

    def __init__(self, clients: Clients, path: Path, fallback: Path, *, is_for_all: bool) -> None:
        """Keep what is needed to bind.

        Args:
            path: of the Unix socket.
            fallback: where to bind when the folder of ``path`` is gone and cannot be made again.
            is_for_all: every user may connect (and is told apart by SO_PEERCRED).
        """
        self.path = path
        #: Where TCP is served; None where it is not.
        self.tcp: str | None = None
        self._clients = clients
        self._candidates = (path, fallback)
        self._mode = 0o666 if is_for_all else 0o600
        self._inode: tuple[int, int] | None = None
        #: Its path is ours to remove.
        self._is_own = True
        self._unix: asyncio.Server | None = None
        self._tcp: list[asyncio.Server | _EncryptedListener] = []

    async def listen(self, handed: socket.socket | None = None) -> None:
        """Serve on the Unix socket that was handed over, else on one that is bound here.

        Raises:
            StartupError: another daemon listens there, or it cannot be bound.
        """
        self._is_own = handed is None
        if handed is not None:
            self.path = Path(os.fsdecode(handed.getsockname()))
        sock = handed or bind_unix(self.path, self._mode)
        self._inode = _inode(self.path)
        await self._serve_unix(sock)

    async def listen_tcp(self, address: tuple[str, int]) -> None:
        """Serve on a TCP address too.

        Raises:
            OSError: the port is taken, or not for us.
        """
        await self.serve_tcp(bind_tcp(address))

    async def serve_tcp(self, sock: socket.socket) -> None:
        """Serve on a bound TCP socket, encrypted where there is a certificate."""
        is_network = not ipaddress.ip_address(sock.getsockname()[0]).is_loopback
        self.tcp = self.tcp or shown_address(sock)
        if certificate := self._clients.certificate:
            listener = _EncryptedListener(self._clients, sock, certificate, is_network=is_network)
            self._tcp.append(listener)
            return

        def protocol() -> HttpProtocol:
            return HttpProtocol(self._clients, is_network=is_network)

        loop = asyncio.get_running_loop()
        self._tcp.append(await loop.create_server(protocol, sock=sock, backlog=BACKLOG))

    async def refuse_tcp(self, sock: socket.socket) -> None:
        """Hang up on whoever connects there: nobody would ever answer him."""
        loop = asyncio.get_running_loop()
        self._tcp.append(await loop.create_server(_HangUp, sock=sock, backlog=BACKLOG))

    async def _serve_unix(self, sock: socket.socket) -> None:
        refuse_descriptors(sock)
        loop = asyncio.get_running_loop()
        self._unix = await loop.create_unix_server(
            lambda: HttpProtocol(self._clients), sock=sock, **_UNIX
        )

    async def guard(self, watches: Watches) -> None:
        """Bind the Unix socket again whenever its path is gone; runs until it is cancelled."""
        while True:
            woken = asyncio.Event()
            try:
                with watches.on_removal(self.path.parent, woken):
                    if self._is_there():
                        await woken.wait()
                        continue
            except OSError:
                # The folder is gone too; or the limit of watches is reached, which is one for all
                # programs of a user: then it is looked at now and then.
                if self._is_there():
                    await asyncio.sleep(_REBIND_PAUSE_S)
                    continue
            await self._bind_again()

    def _is_there(self) -> bool:
        return self._inode is not None and _inode(self.path) == self._inode

    async def _bind_again(self) -> None:
        for path in self._candidates:
            try:
                sock = bind_unix(path, self._mode)
            except StartupError as error:
                problem = error
                continue
            _log.warning("the socket %s was gone; bound again at %s", self.path, path)
            if self._unix is not None:
                self._unix.close()
            self.path, self._inode, self._is_own = path, _inode(path), True
            await self._serve_unix(sock)
            return
        _log.error("the socket %s is gone and cannot be bound again: %s", self.path, problem)
        await asyncio.sleep(_REBIND_PAUSE_S)

    async def stop(self, grace_s: float) -> None:
        """Accept no more, let requests end within ``grace_s`` seconds, hang up."""
        for server in (self._unix, *self._tcp):
            if server is not None:
                server.close()
        if self._is_own and self._is_there():
            self.path.unlink(missing_ok=True)
        for connection in list(self._clients.state.connections):
            connection.shutdown()
        if self._clients.state.tasks:
            await asyncio.wait(list(self._clients.state.tasks), timeout=grace_s)
        left = list(self._clients.state.tasks)
        for task in left:
            task.cancel()
        for connection in list(self._clients.state.connections):
            connection.transport.abort()
        if left:
            await asyncio.wait(left, timeout=1.0)
        self._clients.diagnosis.close()


def check_path(path: Path) -> None:
    """Refuse a path that no socket can have.

    Raises:
        StartupError: with its length and the limit.
    """
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_MAX:
        raise StartupError(
            f"the socket's path has {length} bytes and may have {SOCKET_PATH_MAX}: {path}",
            hint="name a shorter folder: aitbcd --runtime-dir DIR (or AITBCD_RUNTIME_DIR)",
        )


def check_free(path: Path) -> None:
    """Refuse a path where no socket can be bound, before anything else is started.

    Raises:
        StartupError: it is too long, or somebody listens there.
    """
    check_path(path)
    try:
        _refuse_live(path)
    except OSError:
        pass  # Its folder is not there yet, or closed to us: binding will tell.


def bind_unix(path: Path, mode: int) -> socket.socket:
    """Return a bound socket, made with ``mode`` from the start; a stale one is replaced.

    Raises:
        StartupError: a daemon listens there, something else has the name, or the system refuses.
    """
    check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(mode=0o755 if mode & 0o006 else 0o700, parents=True, exist_ok=True)
        _remove_stale(path)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        # At once: until then it looks stale to others.
        sock.listen(BACKLOG)
    except OSError as problem:
        sock.close()
        raise StartupError(
            f"cannot make the socket {path}: {problem.strerror}",
            hint="name a folder of your own: aitbcd --runtime-dir DIR (or AITBCD_RUNTIME_DIR)",
        ) from None
    except BaseException:
        sock.close()
        raise
    return sock


def refuse_descriptors(sock: socket.socket) -> None:
    """Let nobody who connects send open files along (unix(7), SCM_RIGHTS).

    Whoever reads a packet closes what came with it and he does not take, and closing can last: a
    TCP connection waits for its SO_LINGER. Before Linux 6.16 there is no way to refuse them.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise


def _remove_stale(path: Path) -> None:
    if _refuse_live(path):
        path.unlink()


def _refuse_live(path: Path) -> bool:
    """Return whether there is a stale socket; refuse anything else that is there."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(kind):
        raise StartupError(f"{path} is in the way: it is no socket", hint="remove or rename it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        refused = probe.connect_ex(os.fspath(path))
    # Only this says that nobody listens: EAGAIN is a full queue, EACCES somebody else's socket.
    if refused != errno.ECONNREFUSED:
        raise StartupError(
            f"another program listens on the socket {path}",
            hint="stop it first, or name another folder with --runtime-dir",
        )
    return True


def bind_tcp(address: tuple[str, int]) -> socket.socket:
    """Return a bound socket.

    Raises:
        OSError: the port is taken, or not for us.
    """
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # A restarted daemon must not wait for the old one's connections in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1" if host == "localhost" else host, port))
        # Another listener on the port shows only now, if it has SO_REUSEADDR too.
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def shown_address(sock: socket.socket) -> str:
    """Return HOST:PORT of a bound TCP socket."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
