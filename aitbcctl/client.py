"""HTTP/1.1 to the daemon, over its Unix socket or TCP; its problem documents become our errors.

One connection a request: on this machine it costs tens of microseconds, and nothing has to be
known about the state of an old one. Written on ``socket`` alone, because ``submit`` pays for every
import. It prints nothing and does not try again; ``following`` does, where a stream is lost.

Where the daemon is looked for (unix(7), and the design's order): AITBC_SOCKET, AITBC_URL with
AITBC_API_KEY, the user's own socket, the system's. An https address has to have a certificate that
the system's CAs vouch for, or those in AITBC_CA_FILE.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aitbcctl.http1 import NotHttp, ResponseParser, Truncated
from aitbcd import paths
from aitbcd.errors import AitbcError, Unreachable, from_problem

if TYPE_CHECKING:
    from aitbcctl.tls import Encrypted

#: A status document, an event: what the API calls an object.
Json = dict[str, Any]

#: A daemon that is stopped (SIGSTOP, a hung disk) accepts and never answers: then say so.
ANSWER_TIMEOUT_S = 60.0
#: How long a request may be put off by "too many requests".
PATIENCE_S = 30.0
_PIECE = 256 * 1024
#: More than any refusal has, and any id of a job.
_PROBLEM_BYTES_MAX = 1 << 20
_JOB_ID_LENGTH_MAX = 40
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SYSTEM_UNITS = ("/etc/systemd/system", "/usr/lib/systemd/system")
_START_HINT = "start one in another terminal or in the background: aitbcd"


class ConnectionLost(Unreachable):
    """The daemon went away within an answer; what it was asked may have been done."""


class Response:
    """An answer whose head has come; the body is read as it comes. Close it, or use ``with``."""

    __slots__ = ("_is_patient", "_parser", "_pending", "_sock", "where")

    def __init__(self, sock: socket.socket | Encrypted, where: str) -> None:
        self.where = where
        self._sock = sock
        self._is_patient = False
        self._parser = ResponseParser()
        self._pending = b""

    @property
    def status(self) -> int:
        return self._parser.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._parser.headers

    @property
    def is_done(self) -> bool:
        """True when no byte of the body is left to read."""
        return self._parser.is_done and not self._pending

    @property
    def has_pending(self) -> bool:
        """True when ``read_available`` answers without the socket."""
        return bool(self._pending) or self._parser.is_done

    def fileno(self) -> int:
        """Return the socket, to wait for more; look at ``has_pending`` first."""
        return self._sock.fileno()

    def send(self, head: bytes, body: bytes) -> None:
        """Send the request that this answers."""
        try:
            self._sock.sendall(head + body if len(body) < _PIECE else head)
            if len(body) >= _PIECE:
                self._sock.sendall(body)
        except TimeoutError:
            raise self._silent() from None
        except (BrokenPipeError, ConnectionResetError):
            # It closed while we sent: a refusal (413) can lie ready to be read.
            pass

    def read_head(self) -> None:
        while not self.status:
            self._pending += self._receive()

    def read_available(self) -> bytes:
        """Return what one read of the socket gives of the body, which can be nothing."""
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        return b"" if self._parser.is_done else self._receive()

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it comes, to its end."""
        while not self.is_done:
            if data := self.read_available():
                yield data
            elif not self.has_pending:
                self.wait()

    def wait(self) -> None:
        """Wait until there is more to read, where this may last."""
        if self._is_patient:
            poller = select.poll()
            poller.register(self._sock.fileno(), select.POLLIN)
            poller.poll()

    def be_patient(self) -> None:
        """Let the daemon stay silent as long as it likes; a read that finds nothing says so."""
        self._is_patient = True
        self._sock.settimeout(0)

    def read(self) -> bytes:
        return b"".join(self.pieces())

    def read_at_most(self, limit: int) -> bytes:
        """Return the body's beginning."""
        data = b""
        for piece in self.pieces():
            data += piece
            if len(data) >= limit:
                break
        return data[:limit]

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> bytes:
        try:
            data = self._sock.recv(_PIECE)
            if data:
                return self._parser.feed(data)
            self._parser.end()
        except NotHttp as error:
            raise _no_daemon_of_ours(self.where, str(error)) from None
        except BlockingIOError:
            return b""
        except TimeoutError:
            raise self._silent() from None
        except (Truncated, ConnectionError) as error:
            raise ConnectionLost(
                f"the daemon at {self.where} went away before its answer was whole ({error})",
                hint="look whether it runs (aitbcctl list) and try again",
            ) from None
        return b""

    def _silent(self) -> ConnectionLost:
        return ConnectionLost(
            f"the daemon at {self.where} did not answer within {ANSWER_TIMEOUT_S:.0f} seconds",
            hint="it may be stopped or wait for a disk; look at its log",
        )


class Client:
    """Speaks to the daemon that the environment names, or that is found on this machine."""

    __slots__ = ("_api_key", "_environ", "_on_gone", "_url")

    def __init__(
        self, environ: Mapping[str, str], on_gone: Callable[[str, str], None] | None = None
    ) -> None:
        """``on_gone`` is called, once, with the socket of a daemon that is gone, and ours."""
        self._environ = environ
        self._on_gone = on_gone
        has_socket = bool(environ.get("AITBC_SOCKET"))
        self._url = None if has_socket else environ.get("AITBC_URL") or None
        self._api_key = environ.get("AITBC_API_KEY") if self._url else None

    def get(self, path: str, **query: object) -> Json:
        """Return the JSON object at ``path``; a ``query`` value of None is left out."""
        with self.open("GET", path + _query(query)) as response:
            return _decode(response)

    def post(
        self,
        path: str,
        body: bytes = b"",
        *,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        content_type: str = "application/json",
    ) -> Json:
        """Return the JSON object that the daemon answers."""
        with self.open("POST", path, body, content_type=content_type, timeout_s=timeout_s) as got:
            return _decode(got)

    def delete(self, path: str) -> Json:
        """Return the JSON object that the daemon answers; deleting takes as long as it takes."""
        with self.open("DELETE", path, timeout_s=None) as response:
            return _decode(response)

    def stream(self, path: str, **query: object) -> Response:
        """Return an answer that may stay silent as long as it likes between its pieces."""
        response = self.open("GET", path + _query(query))
        response.be_patient()
        return response

    def open(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        content_type: str = "application/json",
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Return the answer to one request, its head read.

        Raises:
            Unreachable: no daemon answers, or it went away.
            AitbcError: it refused; the class is the one of the problem's ``code``.
        """
        more = dict(headers or {})
        if body:
            more["Content-Type"] = content_type
        until = time.monotonic() + PATIENCE_S
        while True:
            response = self._ask(method, target, more, body, timeout_s)
            pause_s = _pause_s(response)
            if pause_s is None or time.monotonic() + pause_s > until:
                break
            # Too many requests: it was not even looked at.
            response.close()
            time.sleep(pause_s)
        if response.status >= 400:
            with response:
                raise _refusal(response)
        return response

    def _ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        timeout_s: float | None,
    ) -> Response:
        sock, where, host = self._connect()
        response = Response(sock, where)
        try:
            sock.settimeout(timeout_s)
            response.send(self._head(method, target, host, headers, len(body)), body)
            response.read_head()
        except BaseException:
            sock.close()
            raise
        return response

    def _head(
        self, method: str, target: str, host: str, headers: Mapping[str, str], length: int
    ) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
        if self._api_key:
            lines.append(f"X-Api-Key: {self._api_key}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if method != "GET":
            lines.append(f"Content-Length: {length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")

    def _connect(self) -> tuple[socket.socket | Encrypted, str, str]:
        if self._url:
            _check_key(self._api_key or "")
            return _connect_tcp(self._url, self._environ.get("AITBC_CA_FILE") or None)
        sock, path, gone = _connect_unix(paths.client_sockets(self._environ, os.getuid()))
        if gone and self._on_gone:
            tell, self._on_gone = self._on_gone, None
            tell(gone, path)
        return sock, path, "localhost"


def quote(part: str | bytes, safe: bytes = b"") -> str:
    """Return ``part`` percent-encoded for a URL (RFC 3986)."""
    raw = os.fsencode(part)
    return "".join(
        chr(byte) if byte in _UNRESERVED or byte in safe else f"%{byte:02X}" for byte in raw
    )


def job_path(ref: str, *rest: str) -> str:
    """Return the path of a job, or of what is below it."""
    return "/".join(("/v1/jobs", quote(ref), *rest))


def _query(query: Mapping[str, object]) -> str:
    pairs = [
        f"{name}={quote(str(value).lower() if isinstance(value, bool) else str(value))}"
        for name, value in query.items()
        if value is not None
    ]
    return "?" + "&".join(pairs) if pairs else ""


def _decode(response: Response) -> Json:
    body = response.read()
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _no_daemon_of_ours(response.where, "its answer is no JSON object")
    jobs = value.get("jobs")
    for each in (value, *(jobs if isinstance(jobs, list) else ())):
        # It is shown, and becomes the name of a folder.
        if isinstance(each, dict) and not _is_job_id(each.get("job_id")):
            raise _no_daemon_of_ours(response.where, f"it calls a job {each['job_id']!r}")
    return value


def _is_job_id(value: object) -> bool:
    """Tell whether this is what jobs are called, or there is none."""
    if value is None:
        return True
    return (
        isinstance(value, str)
        and value.isascii()
        and len(value) <= _JOB_ID_LENGTH_MAX
        and value.startswith("job_")
        and value[4:].isalnum()
    )


def _pause_s(response: Response) -> float | None:
    """Return after how long to ask again, where the daemon says so."""
    said = response.headers.get("retry-after", "")
    if response.status != 429 or not (said.isascii() and said.isdigit()):
        return None
    return float(said[:9])


def _refusal(response: Response) -> AitbcError:
    try:
        problem = json.loads(response.read_at_most(_PROBLEM_BYTES_MAX))
        if "code" in problem and "detail" in problem:
            return from_problem(problem)
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    return _no_daemon_of_ours(response.where, f"it answers {response.status} in other words")


def _no_daemon_of_ours(where: str, why: str) -> Unreachable:
    return Unreachable(
        f"what listens at {where} is no aitbcd: {why}",
        hint="AITBC_SOCKET or AITBC_URL names another place; unset them to look in the usual ones",
    )


def _connect_unix(candidates: list[str]) -> tuple[socket.socket, str, str | None]:
    """Connect to the first socket that answers; of several failures tell the most telling.

    Return also which it is, and one before it that a daemon has left behind.
    """
    refusals: list[tuple[str, OSError]] = []
    for path in candidates:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Blocking, but not for ever: a non-blocking connect(2) fails at once (EAGAIN) where the
        # listener's queue is only full for a moment.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(ANSWER_TIMEOUT_S))
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            refusals.append((path, error))
            continue
        gone = (path for path, error in refusals if error.errno == errno.ECONNREFUSED)
        return sock, path, next(gone, None)
    raise _unreachable(refusals)


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    import sys

    size = 8 if sys.maxsize > 2**32 else 4
    return whole.to_bytes(size, sys.byteorder) + bytes(size)


def _unreachable(refusals: list[tuple[str, OSError]]) -> Unreachable:
    for path, error in refusals:
        if error.errno in (errno.EACCES, errno.EPERM):
            return _no_permission(path)
    for path, error in refusals:
        if error.errno == errno.ECONNREFUSED:
            return _stale(path)
        if error.errno == errno.EAGAIN:
            return Unreachable(
                f"the daemon at {path} takes no connection: its queue is full",
                hint="it may be stopped; look at its log",
                socket=path,
            )
        if error.errno is None:  # Python's own "AF_UNIX path too long"
            return Unreachable(
                f"the socket path {path} has {len(os.fsencode(path))} bytes, "
                f"and Unix sockets allow {paths.SOCKET_PATH_MAX}",
                hint="use a shorter one: AITBCD_RUNTIME_DIR for the daemon, AITBC_SOCKET here",
                socket=path,
            )
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return Unreachable(
                f"cannot connect to the socket {path}: {error.strerror}", socket=path
            )
    tried = [path for path, _ in refusals]
    return Unreachable(
        "no daemon is running here: there is no socket at " + " or ".join(tried),
        hint=_how_to_start(tried),
        sockets=tried,
    )


def _how_to_start(tried: list[str]) -> str:
    """Return what to do where no daemon has any of these sockets.

    One that is a service is not to be started by hand beside that.
    """
    start = _start_of_service(tried)
    if start is None:
        return _START_HINT
    return f"it is a service here: {start}; what is wrong with it: aitbcctl doctor"


def _start_of_service(tried: list[str]) -> str | None:
    """Return what starts the daemon of one of these sockets, where it is a service."""
    own = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    system = f"{paths.SYSTEM_RUNTIME}/{paths.SOCKET_NAME}"
    if not os.environ.get("AITBC_SOCKET") and _is_service(f"{own}/systemd/user"):
        return "systemctl --user start aitbcd"
    if system in tried and any(map(_is_service, _SYSTEM_UNITS)):
        return "sudo systemctl start aitbcd"
    return None


def _is_service(folder: str) -> bool:
    return os.path.exists(f"{folder}/aitbcd.service")


def _no_permission(path: str) -> Unreachable:
    try:
        status = os.stat(path)
        owner = f", which belongs to {_user(status.st_uid)} with mode {status.st_mode & 0o777:04o}"
    except OSError:
        owner = ", whose folder is closed to you"
    return Unreachable(
        f"permission denied on the socket {path}{owner}",
        hint="that daemon serves other users than you; start your own: aitbcd",
        socket=path,
    )


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _stale(path: str) -> Unreachable:
    import stat

    try:
        status = os.stat(path)
    except OSError:
        is_socket, owner = True, os.getuid()
    else:
        is_socket, owner = stat.S_ISSOCK(status.st_mode), status.st_uid
    if not is_socket:
        return Unreachable(
            f"{path} is no socket", hint="set AITBC_SOCKET to the daemon's socket", socket=path
        )
    start = _start_of_service([path]) or "aitbcd"
    # One that this user starts would be another daemon, beside that one.
    who = "" if owner == os.getuid() or start != "aitbcd" else f"have {_user(owner)} "
    return Unreachable(
        f"nobody listens on the socket {path}: the daemon that made it is gone",
        hint=f"{who}start it again (it replaces the stale socket; running jobs were not harmed): "
        + start,
        socket=path,
    )


def _check_key(key: str) -> None:
    """Refuse what would be more than one header, or another one than was meant."""
    if not (key.isascii() and key.isprintable()):
        raise Unreachable(
            "AITBC_API_KEY is no API key: it has other characters than one has",
            hint="copy it again, without line breaks: aitbc_...",
        )


def _connect_tcp(url: str, ca_file: str | None) -> tuple[socket.socket | Encrypted, str, str]:
    is_encrypted, host, port = _split_url(url)
    netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        sock = socket.create_connection((host, port), timeout=ANSWER_TIMEOUT_S)
    except OSError as error:
        raise Unreachable(
            f"nobody answers at {url} (AITBC_URL): {error.strerror or error}",
            hint=f"{_START_HINT}; or unset AITBC_URL to use its socket",
            url=url,
        ) from None
    if not is_encrypted:
        return sock, url, netloc
    # Its import costs as much as a whole submit on this machine.
    from aitbcctl.tls import encrypt

    try:
        return encrypt(sock, host, url, ca_file), url, netloc
    except BaseException:
        sock.close()
        raise


def _split_url(url: str) -> tuple[bool, str, int]:
    """Return whether a URL asks for TLS, and its host and port."""
    scheme, _, rest = url.partition("://")
    netloc = rest.rstrip("/")
    if netloc.startswith("["):
        host, _, port = netloc[1:].partition("]")
    else:
        host, colon, port = netloc.partition(":")
        port = colon + port
    if scheme not in ("http", "https") or not host or "/" in netloc or "@" in netloc:
        raise _wrong_url(url)
    if port and not (port.startswith(":") and port[1:].isdigit() and port.isascii()):
        raise _wrong_url(url)
    usual = 443 if scheme == "https" else 8000
    return scheme == "https", host, int(port[1:]) if port else usual


def _wrong_url(url: str) -> Unreachable:
    return Unreachable(
        f"AITBC_URL is {url!r}: expected http://HOST:PORT or https://HOST:PORT, for example"
        " http://127.0.0.1:8000"
    )
