"""What the command line says when there is nobody to talk to, or nobody to listen."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.service import DEADLINE_S, PROGRAMS
from tests.system.conftest import Cli, Gate

pytestmark = pytest.mark.system

VERBS = [
    ["submit", "--", "true"],
    ["submit", "--batch", "-"],
    ["status", "1"],
    ["watch", "1"],
    ["logs", "-f", "1"],
    ["list"],
    ["get", "1"],
    ["cancel", "1"],
    ["download", "1"],
    ["verify", "1"],
    ["queue"],
    ["retry", "1"],
    ["delete", "1"],
    ["keep", "1"],
    ["stats"],
    ["export"],
    ["export", "--output", "jobs.csv"],
    ["share", "1"],
    ["share", "--list"],
    ["key", "create", "--name", "x"],
    ["key", "list"],
    ["key", "revoke", "x"],
    ["retention"],
    ["retention", "resume"],
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb[:2]))
def test_without_a_daemon_each_verb_says_how_to_start_one(cli: Cli, verb: list[str]) -> None:
    path = str(cli.folder / "none.sock")
    done = cli(*verb, code=5, environ={"AITBC_SOCKET": path}, stdin=b"{}\n")
    assert done.stdout == b""
    assert path in done.stderr.decode()
    assert done.stderr.decode().rstrip().endswith(": aitbcd")


def test_without_a_daemon_waiting_fails_with_a_code_that_no_job_has(cli: Cli) -> None:
    environ = {"AITBC_SOCKET": str(cli.folder / "none.sock")}
    cli("submit", "--wait", "--", "true", code=125, environ=environ)
    cli("submit", "--follow", "--", "true", code=125, environ=environ)


def test_a_stale_socket_is_said(cli: Cli) -> None:
    path = str(cli.folder / "stale.sock")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(path)
    done = cli("list", code=5, environ={"AITBC_SOCKET": path})
    assert f"nobody listens on the socket {path}" in done.stderr.decode()


def test_a_url_is_used_and_named(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = cli("list", code=5, environ={"AITBC_SOCKET": "", "AITBC_URL": url})
    assert f"nobody answers at {url}" in done.stderr.decode()


@pytest.mark.parametrize("key", ["aitbc_a\r\nX-More: b", "aitbc_\u00e9"])
def test_what_can_be_no_key_is_not_sent(cli: Cli, key: str) -> None:
    environ = {"AITBC_SOCKET": "", "AITBC_URL": "http://127.0.0.1:1", "AITBC_API_KEY": key}
    assert b"AITBC_API_KEY is no API key" in cli("list", code=5, environ=environ).stderr


@pytest.mark.parametrize(
    "verb", [["list", "--json"], ["status", "@"], ["get", "@"], ["verify", "@"]]
)
def test_a_reader_that_went_away_is_no_error_message(cli: Cli, verb: list[str]) -> None:
    cli.ended(cli.submit("--", "true"))
    ours, theirs = os.pipe()
    os.close(ours)
    verb_run = cli.start(*verb, stdout=theirs)
    os.close(theirs)
    said = verb_run.communicate(timeout=DEADLINE_S)[1]
    assert (verb_run.returncode, said) == (141, b"")


def test_a_follower_ends_with_its_reader_and_the_job_goes_on(cli: Cli, gate: Gate) -> None:
    line = f"exec 3>&1; echo first; {gate.wait}; seq 100000; {gate.wait}"
    with cli.start("submit", "--follow", "-c", line) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        assert following.stdout.readline() == b"first\n"
        following.stdout.close()
        gate.open()
        said = following.stderr.read()
        assert following.wait(DEADLINE_S) == 141
    assert b"Error" not in said
    assert cli.status("@")["status"] == "running"


def test_a_full_disk_under_the_output_is_said(cli: Cli) -> None:
    cli.submit("--", "true")
    with Path("/dev/full").open("wb") as full:
        listing = cli.start("list", stdout=full)
        said = listing.communicate(timeout=DEADLINE_S)[1]
    assert listing.returncode == 1
    assert b"cannot write the output: No space left on device" in said


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_not_taken_for_sockets(cli: Cli, closed: str) -> None:
    line = f"'{PROGRAMS}/aitbcctl' submit --wait -c 'echo out; echo err >&2' {closed}"
    done = subprocess.run(["sh", "-c", line], cwd=cli.folder, env=cli.environ, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert cli.status("@")["status"] == "completed"


def test_an_answer_of_another_version_is_no_traceback(cli: Cli) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(cli.folder / "s"))
        listener.listen()
        listing = cli.start("list", environ={"AITBC_SOCKET": str(cli.folder / "s")})
        peer, _ = listener.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        said = listing.communicate(timeout=DEADLINE_S)[1]
    assert listing.returncode == 1
    assert said.startswith(b"aitbcctl: a mistake of this program: KeyError")
    assert b"Traceback" not in said


def test_a_locale_without_the_letters_costs_no_answer(cli: Cli) -> None:
    job = cli.submit("--name", "ärger", "--", "true")
    environ = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert "rger" in cli("status", job, environ=environ).stdout.decode()


def test_bytes_in_arguments_survive_a_locale_without_utf8(cli: Cli) -> None:
    environ = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = cli("submit", "--", "printf", "%s", "ä".encode(), b"\xff", environ=environ)
    job = done.stdout.decode().strip()
    cli.ended(job)
    assert cli("logs", job).stdout == "ä".encode() + b"\xff"


def test_running_as_a_module_is_the_same_program(cli: Cli) -> None:
    version = cli("--version").stdout
    done = subprocess.run([PROGRAMS / "python", "-P", "-m", "aitbcctl", "--version"],
                          capture_output=True, check=True)  # fmt: skip
    assert done.stdout == version
