"""``share`` and ``key``: others, and programs on TCP."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest

from tests.service import Service
from tests.system.conftest import Cli, Screen

pytestmark = pytest.mark.system


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def tcp_daemon(tmp_path_factory: pytest.TempPathFactory, address: str) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("tcp"), f'[server]\ntcp = "{address}"\n') as running:
        yield running


@pytest.fixture
def tcp_cli(tcp_daemon: Service, tmp_path: Path) -> Iterator[Cli]:
    with closing(Cli(tcp_daemon, tmp_path)) as ours:
        yield ours


@pytest.fixture
def job(tcp_cli: Cli) -> str:
    done = tcp_cli.shell("echo out")
    tcp_cli.ended(done)
    return done


class TestShare:
    def test_a_link_gives_the_package_until_it_is_revoked(self, tcp_cli: Cli, job: str) -> None:
        done = tcp_cli("share", job, "--expires", "1h")
        url = done.stdout.decode().strip()
        assert b"whoever has this link" in done.stderr
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200
            assert f"{job}/result.txt" in zipfile.ZipFile(BytesIO(answer.read())).namelist()
        listed = tcp_cli("share", "--list", job).stdout.decode()
        assert "whoever has the link" in listed
        assert url not in listed
        assert tcp_cli("share", job, "--revoke").stdout == b"1 share revoked\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url)
        assert tcp_cli("share", "--list", job).stderr == b"nothing is shared\n"

    def test_a_share_that_the_results_do_not_outlive_says_so(self, tcp_cli: Cli, job: str) -> None:
        made = tcp_cli.json("share", job, "--expires", "1000d")
        assert made["url"].startswith("http://127.0.0.1:")
        assert made["expires_at"] == tcp_cli.status(job)["expires_at"]
        assert b"when the results expire" in tcp_cli("share", job, "--expires", "1000d").stderr

    def test_what_is_wrong_is_said(self, tcp_cli: Cli, job: str, cli: Cli) -> None:
        assert b"expires" in tcp_cli("share", job, "--expires", "soon", code=2).stderr
        assert b"three things" in tcp_cli("share", job, "--list", "--expires", "1d", code=2).stderr
        assert b"name the job" in tcp_cli("share", code=2).stderr
        offline = cli.shell("true")
        cli.ended(offline)
        assert b"public_url" in cli("share", offline, code=4).stderr


class TestKey:
    def test_a_key_is_its_owner_on_tcp_until_it_is_revoked(
        self, tcp_cli: Cli, address: str, job: str
    ) -> None:
        done = tcp_cli("key", "create", "--name", "laptop", "--expires", "90d")
        secret = done.stdout.decode().strip()
        assert secret.startswith("aitbc_")
        assert b"not shown again" in done.stderr
        over_tcp = {"AITBC_SOCKET": "", "AITBC_URL": f"http://{address}", "AITBC_API_KEY": secret}
        assert job in tcp_cli("list", environ=over_tcp).stdout.decode()
        assert b"laptop" in tcp_cli("key", "list").stdout
        assert secret.encode() not in tcp_cli("key", "list", "--json").stdout
        tcp_cli("key", "revoke", "laptop")
        assert tcp_cli("list", environ=over_tcp, code=4).stdout == b""
        assert b"laptop" in tcp_cli("key", "revoke", "laptop", code=3).stderr

    def test_a_read_only_key_changes_nothing(self, tcp_cli: Cli, address: str) -> None:
        secret = tcp_cli.json("key", "create", "--name", "eyes", "--read-only")["key"]
        over_tcp = {"AITBC_SOCKET": "", "AITBC_URL": f"http://{address}", "AITBC_API_KEY": secret}
        tcp_cli("list", environ=over_tcp)
        tcp_cli("submit", "--", "true", environ=over_tcp, code=4)

    def test_tables_fit_a_terminal(
        self, tcp_cli: Cli, job: str, screen: Callable[..., Screen]
    ) -> None:
        tcp_cli("key", "create", "--name", "n" * 60)
        tcp_cli("share", job)
        for words in (("key", "list"), ("share", "--list"), ("retention", "--dry-run")):
            shown = screen(tcp_cli, *words, columns=80)
            assert shown.end() == 0
            assert max(map(len, shown.text.splitlines())) <= 80

    @pytest.mark.parametrize(
        ("args", "code"),
        [(["create"], 2), (["create", "--name", ""], 2), (["create", "--name", "a b"], 2),
         (["create", "--name", "x", "--expires", "never"], 2), (["revoke", "none"], 3),
         (["create", "--name", "x", "--plan", "gold"], 2), (["revoke", "../jobs"], 3)],
    )  # fmt: skip
    def test_what_is_wrong_is_said(self, tcp_cli: Cli, args: list[str], code: int) -> None:
        assert tcp_cli("key", *args, code=code).stderr
