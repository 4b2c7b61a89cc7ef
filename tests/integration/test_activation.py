"""What the daemon and systemd say to each other, with this test in systemd's place."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.authority import Authority
from tests.integration.conftest import Box
from tests.service import DEADLINE_S, PROGRAMS, Service, wait_for

#: Becomes the service as systemd starts it: its sockets from 3 on, their names, its pid.
START = """
import os, sys
fds, names, environ = sys.argv[1], sys.argv[2], sys.argv[3]
for at, fd in enumerate(map(int, fds.split(","))):
    os.dup2(fd, 3 + at)
os.environ |= {"LISTEN_FDS": str(at + 1), "LISTEN_FDNAMES": names,
               "LISTEN_PID": str(os.getpid())}
os.environ |= dict(word.split("=", 1) for word in environ.split())
os.execv(sys.argv[4], sys.argv[4:])
"""


def as_systemd(
    sockets: list[tuple[str, socket.socket]], environ: str = ""
) -> tuple[list[str], list[int]]:
    """Return what a command is started with, and what it inherits."""
    # Beyond the numbers that they are moved to.
    fds = [sock.fileno() for _, sock in sockets]
    assert min(fds) >= 3 + len(fds)
    names = ":".join(name for name, _ in sockets)
    return [sys.executable, "-c", START, ",".join(map(str, fds)), names, environ], fds


def high(sock: socket.socket) -> socket.socket:
    """Return the same socket under a number beyond those that systemd uses."""
    copy = socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 100))
    sock.close()
    return copy


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aitbcd-") as folder:
        yield Path(folder)


@pytest.fixture
def unix(short: Path) -> Iterator[socket.socket]:
    """A listening Unix socket that outlives daemons."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(short / "aitbcd.sock"))
    sock.listen(64)
    with high(sock) as held:
        yield held


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with high(socket.create_server(("127.0.0.1", 0))) as held:
        yield held


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def test_a_restart_drops_no_connection_that_is_made_meanwhile(
    tmp_path: Path, unix: socket.socket, tcp: socket.socket
) -> None:
    before, fds = as_systemd([("unix", unix), ("tcp", tcp)])
    port = port_of(tcp)
    service = Service(
        tmp_path, f'[server]\ntcp = "127.0.0.1:{port}"\n', before=before, pass_fds=fds
    )
    service.socket = Path(unix.getsockname())
    with service:
        box = Box(service)
        with box.http:
            assert box.run("true")["status"] == "completed"
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        assert service.stop() == 0
        assert service.socket.exists(), "it is systemd's"
        with socket.socket(socket.AF_UNIX) as early, socket.socket() as early_tcp:
            for client, where in ((early, str(service.socket)), (early_tcp, ("127.0.0.1", port))):
                client.settimeout(DEADLINE_S)
                client.connect(where)
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            service.start()
            assert early.recv(15) == b"HTTP/1.1 200 OK"
            assert early_tcp.recv(15) == b"HTTP/1.1 200 OK"


def test_who_waits_for_a_daemon_that_cannot_start_is_told_why(
    tmp_path: Path, unix: socket.socket, tcp: socket.socket
) -> None:
    before, fds = as_systemd([("unix", unix), ("tcp", tcp)])
    service = Service(tmp_path, "[slots]\ncpus = 0\n", before=before, pass_fds=fds)
    service.socket = Path(unix.getsockname())
    environ = os.environ | service.environ
    with socket.create_connection(tcp.getsockname()) as waiting:
        waiting.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        with subprocess.Popen(
            [str(PROGRAMS / "aitbcctl"), "list"], env=environ, stderr=subprocess.PIPE, text=True
        ) as client:
            # It is there when somebody waits, as with systemd.
            assert select.select([unix], [], [], DEADLINE_S)[0]
            command = [*before, str(PROGRAMS / "aitbcd")]
            done = subprocess.run(
                command, env=environ, pass_fds=fds, stderr=subprocess.DEVNULL, check=False
            )
            assert done.returncode == 2
            _, said = client.communicate(timeout=DEADLINE_S)
        assert client.returncode == 5
        assert f"the daemon cannot start: {service.config}, line 2: cpus in [slots] is 0" in said
        waiting.settimeout(DEADLINE_S)
        assert waiting.recv(12) == b"HTTP/1.1 503"
    unix.setblocking(False)
    with pytest.raises(BlockingIOError):
        unix.accept()


def test_a_port_that_is_not_wanted_is_hung_up_on_and_the_daemon_says_why(
    tmp_path: Path, unix: socket.socket, tcp: socket.socket
) -> None:
    before, fds = as_systemd([("unix", unix), ("tcp", tcp)])
    service = Service(tmp_path, before=before, pass_fds=fds)
    service.socket = Path(unix.getsockname())
    with service:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            httpx.get(f"http://127.0.0.1:{port_of(tcp)}/healthz", timeout=DEADLINE_S)
        said = service.log.read_text()
        assert f"nobody is served on 127.0.0.1:{port_of(tcp)}" in said
        assert "systemctl mask --now aitbcd-tcp.socket" in said


def test_that_nobody_holds_the_port_is_said(tmp_path: Path, unix: socket.socket) -> None:
    before, fds = as_systemd([("unix", unix)])
    service = Service(tmp_path, '[server]\ntcp = "127.0.0.1:0"\n', before=before, pass_fds=fds)
    service.socket = Path(unix.getsockname())
    with service:
        said = "systemd does not hold 127.0.0.1:"
        wait_for("it is said", lambda: said in service.log.read_text(), log=service.log)


def test_an_address_that_the_network_reaches_is_not_served(
    tmp_path: Path, unix: socket.socket
) -> None:
    with high(socket.create_server(("0.0.0.0", 0))) as wide:
        before, fds = as_systemd([("unix", unix), ("tcp", wide)])
        config = f'[server]\ntcp = "127.0.0.1:{port_of(wide)}"\n'
        service = Service(tmp_path, config, before=before, pass_fds=fds)
        service.socket = Path(unix.getsockname())
        with service, pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            httpx.get(f"http://127.0.0.1:{port_of(wide)}/healthz", timeout=DEADLINE_S)


def test_an_address_that_is_meant_for_a_network_is_served_encrypted(
    tmp_path: Path, unix: socket.socket, tcp: socket.socket
) -> None:
    authority = Authority(tmp_path / "authority")
    cert, key = authority.issue("box", "DNS:localhost")
    with high(socket.create_server(("0.0.0.0", 0))) as wide:
        before, fds = as_systemd([("unix", unix), ("tcp", tcp), ("tcp", wide)])
        address = f"0.0.0.0:{port_of(wide)}"
        config = f'[server]\ntcp = "{address}"\ntls_cert = "{cert}"\ntls_key = "{key}"\n'
        service = Service(tmp_path / "daemon", config, before=before, pass_fds=fds)
        service.socket = Path(unix.getsockname())
        with service:
            context = ssl.create_default_context(cafile=str(authority.certificate))
            url = f"https://localhost:{port_of(wide)}/healthz"
            assert httpx.get(url, verify=context, timeout=DEADLINE_S).status_code == 200
            # What the package holds besides is loopback, and not what is meant.
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                httpx.get(f"http://127.0.0.1:{port_of(tcp)}/healthz", timeout=DEADLINE_S)
            said = service.log.read_text()
            assert f"nobody is served on 127.0.0.1:{port_of(tcp)}" in said
            assert f"https://{address}" in said
            assert "Exception" not in said


@pytest.mark.parametrize("name", ["http", ""])
def test_a_socket_without_a_known_name_starts_nothing(
    tmp_path: Path, unix: socket.socket, name: str
) -> None:
    before, fds = as_systemd([(name, unix)])
    done = subprocess.run(
        [*before, str(PROGRAMS / "aitbcd"), "--state-dir", str(tmp_path / "state")],
        capture_output=True,
        text=True,
        pass_fds=fds,
    )
    assert done.returncode == 1
    assert f"as '{name}'" in done.stderr
    assert "it is unix or tcp" in done.stderr
    assert not (tmp_path / "state").exists()


class Manager:
    """Hears what a service says of itself."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(DEADLINE_S)
        self.environ = f"NOTIFY_SOCKET={path}"

    def hear(self, wanted: str) -> dict[str, str]:
        """Return the next message that has this variable."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            lines = self.sock.recv(65536).decode().splitlines()
            said = dict(line.split("=", 1) for line in lines)
            if wanted in said:
                return said
        raise AssertionError(f"nothing was said of {wanted}")


def test_systemd_is_told_of_the_start_the_watchdog_and_the_stop(
    tmp_path: Path, short: Path, unix: socket.socket
) -> None:
    manager = Manager(short / "notify")
    with manager.sock:
        before, fds = as_systemd([("unix", unix)], f"{manager.environ} WATCHDOG_USEC=200000")
        service = Service(tmp_path, before=before, pass_fds=fds)
        service.socket = Path(unix.getsockname())
        with service:
            assert manager.hear("READY")["STATUS"] == "serves; 0 jobs under way"
            box, gate = Box(service), tmp_path / "gate"
            job = box.submit_waiting(gate)
            wait_for(
                "the watchdog tells of the job",
                lambda: manager.hear("WATCHDOG")["STATUS"] == "serves; 1 job under way",
            )
            environ = box.shell("env")["job_id"]
            assert b"NOTIFY_SOCKET" not in box.log(environ)
            box.http.close()
            service.stop()
            assert manager.hear("STOPPING")["STATUS"] == "stops; 1 job left running"
            service.start()
            gate.touch()
            box = Box(service)
            with box.http:
                assert box.ended(job)["status"] == "completed"
