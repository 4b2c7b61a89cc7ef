"""HTTP where a network reaches it: encrypted, for holders of keys, with certificates that renew."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.authority import Authority
from tests.integration.conftest import CONFIG, Box, User, problem, serving
from tests.service import DEADLINE_S, PROGRAMS, wait_for

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextmanager
def encrypted(
    folder: Path, authority: Authority, address: str = "0.0.0.0:0"
) -> Iterator[tuple[Box, str]]:
    """Run a daemon that a network reaches; yield it with HOST:PORT where it is certified."""
    folder.mkdir()
    cert, key = authority.issue("box", "DNS:localhost", "IP:127.0.0.1", "DNS:gpu.example.org")
    shutil.copy(cert, folder / "cert.pem")
    shutil.copy(key, folder / "key.pem")
    lines = f'tcp = "{address}"\ntls_cert = "{folder}/cert.pem"\ntls_key = "{folder}/key.pem"\n'
    with serving(folder / "daemon", CONFIG.replace('tcp = ""\n', lines)) as box:

        def port() -> str | None:
            found = re.findall(r"https://\S+:(\d+)\n", box.service.log.read_text())
            return found[-1] if found else None

        yield box, f"127.0.0.1:{wait_for('it says its port', port, log=box.service.log)}"


@pytest.fixture(scope="module")
def wide(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[tuple[Box, str]]:
    with encrypted(tmp_path_factory.mktemp("wide") / "box", authority) as made:
        yield made


@pytest.fixture(scope="module")
def key(wide: tuple[Box, str]) -> str:
    secret: str = wide[0].http.post("/v1/keys", json={"name": "laptop"}).json()["key"]
    return secret


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.certificate))


@pytest.fixture(scope="module")
def http(authority: Authority, wide: tuple[Box, str]) -> Iterator[httpx.Client]:
    base = f"https://{wide[1]}"
    with httpx.Client(verify=trusting(authority), base_url=base, timeout=DEADLINE_S) as client:
        yield client


def connect(where: str) -> socket.socket:
    host, _, port = where.rpartition(":")
    return socket.create_connection((host, int(port)), DEADLINE_S)


def serial(where: str, authority: Authority) -> str:
    """Return the number of the certificate that a new client is shown."""
    with (
        connect(where) as plain,
        trusting(authority).wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        shown: dict[str, Any] = sock.getpeercert() or {}
        return str(shown["serialNumber"])


# -- who is served


def test_only_a_key_says_who_somebody_is(http: httpx.Client, key: str) -> None:
    # This very test runs as the daemon's user, and that counts for nothing here.
    problem(http.get("/v1/jobs"), 401, "unauthorized")
    problem(http.get("/v1/jobs", headers={"x-api-key": "aitbc_x"}), 401, "unauthorized")
    answer = http.get("/v1/jobs", headers={"x-api-key": key})
    assert answer.status_code == 200
    made = http.post("/v1/jobs", json={"argv": ["true"]}, headers={"x-api-key": key})
    assert made.status_code == 201, made.text


def test_nothing_is_served_in_the_clear(wide: tuple[Box, str], key: str) -> None:
    with connect(wide[1]) as sock:
        sock.sendall(
            f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\n\r\n".encode()
        )
        try:
            said = sock.recv(4096)
        except ConnectionResetError:
            said = b""
        assert b"HTTP" not in said


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_nothing_older_than_tls_1_2_is_spoken(wide: tuple[Box, str], authority: Authority) -> None:
    context = trusting(authority)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with connect(wide[1]) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(plain, server_hostname="localhost")
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        connect(wide[1]) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        assert sock.version() == "TLSv1.2"


def test_names_of_the_certificate_are_ours_and_others_are_not(http: httpx.Client) -> None:
    for host in ("gpu.example.org", "GPU.example.org:8443", "localhost", "127.0.0.1"):
        assert http.get("/healthz", headers={"host": host}).status_code == 200, host
    own = {"host": "gpu.example.org", "origin": "https://gpu.example.org"}
    assert http.get("/healthz", headers=own).status_code == 200
    for host in ("evil.example", "example.org", "a.gpu.example.org", "10.1.2.3", "0.0.0.0"):
        problem(http.get("/healthz", headers={"host": host}), 403, "forbidden")
    for origin in ("http://gpu.example.org", "https://evil.example", "null"):
        foreign = {"host": "gpu.example.org", "origin": origin}
        problem(http.get("/healthz", headers=foreign), 403, "forbidden")


def test_updates_come_over_tls(wide: tuple[Box, str], authority: Authority, key: str) -> None:
    box, where = wide
    url = f"wss://{where}/v1/jobs/ws"
    headers = {"X-Api-Key": key}

    async def first() -> str:
        async with websockets.connect(
            url, ssl=trusting(authority), additional_headers=headers
        ) as socket:
            job = box.submit("true")["job_id"]
            async with asyncio.timeout(DEADLINE_S):
                # That of a test before may still go on.
                while job not in (said := str(await socket.recv())):
                    pass
                return said

    async def refused(**more: Any) -> int:
        try:
            async with websockets.connect(url, ssl=trusting(authority), **more):
                return 101
        except websockets.InvalidStatus as error:
            return error.response.status_code

    assert '"status":"pending"' in asyncio.run(first())
    assert asyncio.run(refused()) == 401
    foreign: Any = {"additional_headers": headers, "origin": "https://evil.example"}
    assert asyncio.run(refused(**foreign)) == 403


# -- the command line


def test_the_command_line_asks_and_follows_over_tls(
    wide: tuple[Box, str], authority: Authority, key: str
) -> None:
    box, where = wide
    url = f"https://localhost:{where.rpartition(':')[2]}"
    environ = {
        "AITBC_SOCKET": "",
        "AITBC_URL": url,
        "AITBC_API_KEY": key,
        "AITBC_CA_FILE": str(authority.certificate),
    }
    line = "seq 200000; echo problem >&2"
    done = box.service.run("aitbcctl", "submit", "--follow", "-c", line, environ=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 200001))
    assert "problem" in done.stderr
    shown = box.service.run("aitbcctl", "logs", "@", environ=environ)
    assert shown.stdout == done.stdout
    history = box.service.run("aitbcctl", "export", environ=environ)
    assert history.stdout.rstrip().endswith("]")
    # Large bodies, too.
    many = box.service.folder / "many.jsonl"
    many.write_text('{"argv": ["true", "%s"]}\n' % ("x" * 10_000) * 100)
    batch = box.service.run("aitbcctl", "submit", "--batch", many, "--wait", environ=environ)
    assert batch.returncode == 0, batch.stderr

    def said(**other: str) -> str:
        refused = box.service.run("aitbcctl", "list", environ=environ | other)
        assert refused.returncode == 5, refused.stdout
        return refused.stderr

    assert "is not to be trusted" in said(AITBC_CA_FILE="")
    assert "AITBC_CA_FILE=FILE" in said(AITBC_CA_FILE="")
    assert "No such file" in said(AITBC_CA_FILE="/nonexistent")
    assert "holds no certificate" in said(AITBC_CA_FILE="/etc/passwd")
    # By the other address the certificate does not hold.
    assert "not valid for '127.0.0.2'" in said(AITBC_URL=url.replace("localhost", "127.0.0.2"))
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        silent.close()
        assert "nobody answers" in said(AITBC_URL=f"https://localhost:{where.rpartition(':')[2]}0")


def test_who_speaks_no_tls_is_said_to(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon", CONFIG.replace('""', '"127.0.0.1:0"', 1)) as box:

        def port() -> str | None:
            found = re.findall(r"http://\S+:(\d+)\n", box.service.log.read_text())
            return found[-1] if found else None

        url = f"https://localhost:{wait_for('it says its port', port)}"
        done = box.service.run("aitbcctl", "list", environ={"AITBC_SOCKET": "", "AITBC_URL": url})
        assert done.returncode == 5
        assert "does not speak TLS" in done.stderr


# -- handshakes


def test_handshakes_that_do_not_go_on_hold_up_nobody_and_end(
    tmp_path: Path, authority: Authority
) -> None:
    with encrypted(tmp_path / "box", authority) as (box, where), ExitStack() as stack:
        silent = [stack.enter_context(connect(where)) for _ in range(300)]
        half = [stack.enter_context(connect(where)) for _ in range(20)]
        for sock in half:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert box.run("true")["status"] == "completed"
        with httpx.Client(verify=trusting(authority), timeout=DEADLINE_S) as client:
            assert client.get(f"https://{where}/healthz").status_code == 200
        for sock in (silent[0], half[0]):
            sock.settimeout(DEADLINE_S)
            with pytest.raises(ConnectionResetError):
                raise ConnectionResetError if sock.recv(1) == b"" else AssertionError
        # One that is gone within its handshake leaves nothing.
        for sock in (*silent, *half):
            sock.close()

        def sockets() -> bool:
            links = Path(f"/proc/{box.service.pid}/fd").iterdir()
            return sum(os.readlink(link).startswith("socket:") for link in links) < 40

        wait_for("they are gone", sockets)
        assert "Traceback" not in box.service.log.read_text()


def test_a_stop_does_not_wait_for_handshakes(tmp_path: Path, authority: Authority) -> None:
    with encrypted(tmp_path / "box", authority) as (box, where), connect(where):
        assert box.service.stop() == 0
        assert "Traceback" not in box.service.log.read_text()


# -- certificates


def test_a_renewed_certificate_counts_without_dropping_anybody(
    tmp_path: Path, authority: Authority
) -> None:
    with encrypted(tmp_path / "box", authority) as (box, where), ExitStack() as stack:
        folder = tmp_path / "box"
        before = serial(where, authority)
        plain = stack.enter_context(connect(where))
        early = stack.enter_context(
            trusting(authority).wrap_socket(plain, server_hostname="localhost")
        )
        cert, key = authority.issue("renewed", "DNS:localhost", "DNS:new.example.org")
        # Half of a pair is refused, and said; the other half makes it count, by itself.
        shutil.copy(cert, folder / "cert.pem")
        log = box.service.log
        wait_for("it is said", lambda: "does not belong" in log.read_text(), log=log)
        assert serial(where, authority) == before
        shutil.copy(key, folder / "key.pem")
        wait_for("it counts", lambda: serial(where, authority) != before, log=log)
        early.sendall(b"GET /healthz HTTP/1.1\r\nHost: new.example.org\r\n\r\n")
        assert b"200 OK" in early.recv(4096)
        # One that is broken changes nothing; a reload says so.
        (folder / "cert.pem").write_text("no certificate")
        os.kill(box.service.pid, signal.SIGHUP)
        wait_for("it is said", lambda: "holds no certificate" in log.read_text(), log=log)
        assert serial(where, authority) != before
        checked = box.service.run("aitbcctl", "config", "check", str(box.service.config))
        assert checked.returncode == 2
        assert f"{folder}/cert.pem, which is tls_cert" in checked.stderr


@pytest.fixture(scope="module")
def wrong(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return files that make no certificate, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("wrong")
    cert, key = authority.issue("right", "DNS:localhost")
    _, other = authority.issue("other", "DNS:localhost")
    client, client_key = authority.issue("client", "DNS:localhost", usage="clientAuth")
    files = {"cert": cert, "key": key, "other": other, "client": client, "client_key": client_key}
    for name in ("junk", "open", "locked"):
        files[name] = folder / name
    files["junk"].write_text("junk")
    files["junk"].chmod(0o600)
    shutil.copy(key, files["open"])
    files["open"].chmod(0o644)
    lock = f"openssl pkey -in {key} -aes128 -passout pass:x -out {files['locked']}"
    subprocess.run(lock.split(), check=True, capture_output=True)
    files["locked"].chmod(0o600)
    files["missing"] = folder / "missing"
    return files


@pytest.mark.parametrize(
    ("cert", "key", "which", "why"),
    [
        ("missing", "key", "tls_cert", "cannot be read: No such file or directory"),
        ("cert", "missing", "tls_key", "cannot be read: No such file or directory"),
        ("junk", "key", "tls_cert", "holds no certificate"),
        ("cert", "junk", "tls_key", "holds no private key"),
        ("cert", "other", "tls_key", "does not belong to the certificate"),
        ("cert", "locked", "tls_key", "needs a passphrase"),
        ("cert", "open", "tls_key", "everybody can read it"),
        ("client", "client_key", "tls_cert", "no client accepts it"),
    ],
)
def test_a_wrong_certificate_starts_nothing_and_is_said_beforehand(
    tmp_path: Path, wrong: dict[str, Path], cert: str, key: str, which: str, why: str
) -> None:
    file = tmp_path / "aitbcd.toml"
    file.write_text(f'[server]\ntls_cert = "{wrong[cert]}"\ntls_key = "{wrong[key]}"\n')
    with serving_not(tmp_path, file) as said:
        assert f"{wrong[cert if which == 'tls_cert' else key]}, which is {which}" in said
        assert why in said


@contextmanager
def serving_not(folder: Path, config: Path) -> Iterator[str]:
    """Yield what the daemon says that does not start, after a look at the check beforehand."""
    places = f"--state-dir {folder}/state --runtime-dir {folder}/run --config {config}"
    words = []
    for command in (f"aitbcd {places}", f"aitbcctl config check {config}"):
        line = f"{PROGRAMS}/{command}".split()
        done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        words.append(done.stderr.partition(": ")[2])
    assert not (folder / "state").exists()
    assert words[0].split() == words[1].split()
    yield words[0]


def test_one_that_has_expired_is_served_and_said(tmp_path: Path, authority: Authority) -> None:
    cert, key = authority.issue("old", days=-1)
    config = CONFIG.replace(
        'tcp = ""', f'tcp = "127.0.0.1:0"\ntls_cert = "{cert}"\ntls_key = "{key}"'
    )
    with serving(tmp_path / "daemon", config) as box:
        said = box.service.log.read_text()
        assert "has expired" in said
        assert "for no name" in said
        checked = box.service.run("aitbcctl", "config", "check", str(box.service.config))
        assert checked.returncode == 0
        assert "has expired" in checked.stderr


# -- without TLS


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('tcp = "0.0.0.0:8000"', ["line 2", "tcp", "without TLS", "loopback", "i-know"]),
        ('tcp = "[::]:8000"', ["line 2", "without TLS"]),
        ('tcp = "0.0.0.0:1"\nplaintext = "yes"', ["line 3", "plaintext", '"i-know"']),
        ('tls_cert = "/a"', ["line 2", "tls_cert", "without tls_key"]),
        ('tls_key = "/a"', ["line 2", "tls_key", "without tls_cert"]),
        ('tls_cert = "a"\ntls_key = "/a"', ["line 2", "tls_cert", "path"]),
    ],
)
def test_a_network_is_not_served_in_the_clear_by_mistake(
    tmp_path: Path, lines: str, words: list[str]
) -> None:
    file = tmp_path / "aitbcd.toml"
    file.write_text(f"[server]\n{lines}\n")
    with serving_not(tmp_path, file) as said:
        assert [word for word in words if word not in said] == []


@only_root
def test_told_so_in_words_it_is_and_only_keys_count(tmp_path: Path, ada: User) -> None:
    config = CONFIG.replace('tcp = ""', 'tcp = "0.0.0.0:0"\nplaintext = "i-know"')
    with serving(tmp_path / "daemon", config) as box:

        def port() -> str | None:
            found = re.findall(r"http://0\.0\.0\.0:(\d+)\n", box.service.log.read_text())
            return found[-1] if found else None

        where = ("127.0.0.1", int(wait_for("it says its port", port, log=box.service.log)))
        assert ada.ask(where, "GET", "/v1/jobs").status == 401
        assert User("root", 0, 0, Path("/root")).ask(where, "GET", "/v1/jobs").status == 401
        key = box.http.post("/v1/keys", json={"name": "laptop"}).json()["key"]
        with httpx.Client(base_url=f"http://127.0.0.1:{where[1]}", timeout=DEADLINE_S) as client:
            assert client.get("/v1/jobs", headers={"x-api-key": key}).status_code == 200
            # It is reached by its address, and by no name that somebody could point at it.
            assert client.get("/healthz", headers={"host": "127.0.0.1:1"}).status_code == 200
            problem(client.get("/healthz", headers={"host": "10.9.9.9"}), 403, "forbidden")
            problem(client.get("/healthz", headers={"host": "evil.example"}), 403, "forbidden")
