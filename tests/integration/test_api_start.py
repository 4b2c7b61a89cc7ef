"""The daemon's start and stop: what it says, what it refuses, and what it does to sockets."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import CONFIG, Box, User, as_user, serving
from tests.service import DEADLINE_S, PLAIN_CONFIG, PROGRAMS, Service, wait_for

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    folder = Path(tempfile.mkdtemp(prefix="aitbcd-"))
    yield folder
    shutil.rmtree(folder)


def start(*arguments: object, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``aitbcd`` that is expected to end by itself."""
    command = [*(before or []), str(PROGRAMS / "aitbcd"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)


def refused(*arguments: object, code: int = 1, before: list[str] | None = None) -> str:
    """Return what a daemon says that does not start."""
    done = start(*arguments, before=before)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("aitbcd: "), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def in_folder(folder: Path) -> list[object]:
    return ["--state-dir", folder / "state", "--runtime-dir", folder / "run", "--config",
            folder / "aitbcd.toml"]  # fmt: skip


def config(folder: Path, text: str = PLAIN_CONFIG) -> Path:
    file = folder / "aitbcd.toml"
    file.write_text(text)
    return file


def serves(service: Service) -> None:
    """See a job through over a connection of its own."""
    box = Box(service)
    with box.http:
        assert box.run("true")["status"] == "completed"


# -- what it says


def test_the_version_is_said() -> None:
    done = start("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"aitbcd \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_serves_and_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with Service(tmp_path, CONFIG.replace('""', '"127.0.0.1:0"', 1)) as service:
        # The socket answers a moment before the last line is written.
        wait_for("it says what it has", lambda: "processor cores" in service.log.read_text())
        said = service.log.read_text()
        assert f"pid {service.pid}" in said
        assert str(service.socket) in said
        assert "4 CPU cores" in said
        assert "no GPUs" in said
        found = re.search(r"http://127\.0\.0\.1:(\d+)\n", said)
        assert found
        answer = httpx.get(f"http://127.0.0.1:{found[1]}/healthz", timeout=DEADLINE_S)
        assert answer.json()["pid"] == service.pid
        assert service.process is not None
        service.process.send_signal(number)
        assert service.process.wait(DEADLINE_S) == 0
        assert not service.socket.exists()
        assert "aitbcd stops" in service.log.read_text()


def test_jobs_go_on_over_a_stop_and_are_counted(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon") as box:
        job = box.submit_waiting(tmp_path / "go")
        assert box.service.stop() == 0
        assert "1 job goes on running" in box.service.log.read_text()
        (tmp_path / "go").touch()
        box.service.start()
        assert box.ended(job)["status"] == "completed"


def test_followers_are_hung_up_on_at_a_stop_and_see_that_it_was_not_the_end(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon") as box:
        job = box.submit_waiting(tmp_path / "go")
        for route in ("logs/stdout", "events"):
            with box.connect() as follower, box.connect() as idle, box.connect() as slow:
                idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200 OK" in idle.recv(4096)
                slow.sendall(b"GET /v1/jo")
                url = f"/v1/jobs/{job}/{route}?follow=true"
                follower.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert b"200 OK" in follower.recv(4096)
                assert box.service.stop() == 0
                rest = b"".join(iter(lambda: follower.recv(4096), b""))
                assert not rest.endswith(b"0\r\n\r\n")
            box.service.start()
        assert "ERROR" not in box.service.log.read_text()
        (tmp_path / "go").touch()
        assert box.ended(job)["status"] == "completed"


# -- the state directory


def test_a_second_daemon_is_told_the_pid_of_the_first(tmp_path: Path, short: Path) -> None:
    with serving(tmp_path / "daemon") as box:
        said = refused("--state-dir", box.service.state, "--runtime-dir", short)
        assert f"pid {box.service.pid}" in said
        assert str(box.service.state) in said
        assert not (short / "aitbcd.sock").exists()
        assert box.run("true")["status"] == "completed"


def test_the_lock_of_a_killed_daemon_holds_nobody_up(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon") as box:
        box.service.kill()
        assert box.service.socket.exists()
        box.service.start()
        assert box.run("true")["status"] == "completed"


@only_root
def test_a_state_directory_that_cannot_be_written_is_named(short: Path, ada: User) -> None:
    short.chmod(0o755)
    config(short)
    said = refused(*in_folder(short), before=as_user(ada))
    assert f"the state directory {short}/state cannot be used: Permission denied" in said
    assert "--state-dir" in said


def test_a_file_in_place_of_the_state_directory_is_said(short: Path) -> None:
    config(short)
    (short / "state").write_text("")
    why = "cannot be used: something on its path is no directory"
    assert f"{short}/state {why}" in refused(*in_folder(short))
    below = short / "state" / "below"
    assert f"{below} {why}" in refused("--state-dir", below, "--runtime-dir", short)


def test_a_newer_store_is_left_alone_and_both_versions_are_said(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon") as box:
        box.run("true")
        box.service.stop()
        database = box.service.state / "queue.db"
        with sqlite3.connect(database) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute("PRAGMA user_version = 999")
        connection.close()
        before = database.read_bytes()
        where = ["--state-dir", box.service.state, "--runtime-dir", tmp_path / "r"]
        said = refused(*where, code=2)
        assert "999" in said
        assert re.search(rf"\b{version}\b", said)
        assert database.read_bytes() == before


def test_a_damaged_store_is_left_alone(short: Path) -> None:
    config(short)
    (short / "state").mkdir()
    database = short / "state/queue.db"
    database.write_bytes(b"no database at all" * 1000)
    said = refused(*in_folder(short), code=2)
    assert str(database) in said
    assert database.read_bytes() == b"no database at all" * 1000


@only_root
def test_the_state_is_closed_to_others_but_for_their_own_results(tmp_path: Path) -> None:
    with serving(tmp_path / "daemon") as box:
        state = box.service.state
        modes = {name: stat.S_IMODE((state / name).stat().st_mode) for name in os.listdir(state)}
        assert stat.S_IMODE(state.stat().st_mode) == 0o711
        assert (modes["results"], modes["queue.db"], modes["lock"]) == (0o711, 0o600, 0o600)
        assert modes["run"] & 0o007 == 0


# -- the configuration


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[slots]\ncpu = 4\n", ["line 2", "unknown key 'cpu'", "cpus, memory"]),
        ("\n[jobs]\nlog_limit = true\n", ["line 3", "log_limit", "true", "1G"]),
        ("[server]\ntcp = '0.0.0.0:8000'\n", ["line 2", "0.0.0.0:8000", "loopback"]),
        ("[server\n", ["line 1", "not TOML"]),
    ],
)
def test_a_wrong_configuration_starts_nothing(short: Path, text: str, words: list[str]) -> None:
    file = config(short, text)
    said = refused(*in_folder(short), code=2)
    for word in [str(file), *words]:
        assert word in said
    assert not (short / "state").exists()
    assert not (short / "run").exists()


def test_a_named_configuration_must_exist(short: Path) -> None:
    assert "there is no such file" in refused(*in_folder(short), code=2)


# -- the sockets


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    service = Service(tmp_path, CONFIG)
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(service.socket))
    with service:
        serves(service)


def test_a_live_socket_of_somebody_else_is_left_alone(tmp_path: Path, short: Path) -> None:
    config(short)
    (short / "run").mkdir()
    path = short / "run/aitbcd.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        said = refused(*in_folder(short))
        assert f"another program listens on the socket {path}" in said
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    # Nothing was started that would now be left behind.
    assert not (short / "state/queue.db").exists()


def test_what_is_no_socket_is_not_removed(short: Path) -> None:
    config(short)
    (short / "run").mkdir()
    (short / "run/aitbcd.sock").write_text("precious")
    assert "it is no socket" in refused(*in_folder(short))
    assert (short / "run/aitbcd.sock").read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_said_with_both_lengths(short: Path) -> None:
    config(short)
    runtime = short / ("x" * 100)
    said = refused("--state-dir", short / "state", "--runtime-dir", runtime, "--config",
                   short / "aitbcd.toml")  # fmt: skip
    assert f"has {len(str(runtime / 'aitbcd.sock'))} bytes and may have 107" in said
    assert "--runtime-dir" in said
    assert not runtime.exists()


def test_the_longest_possible_path_works(short: Path, tmp_path: Path) -> None:
    runtime = short / ("x" * (107 - len(str(short)) - len("//aitbcd.sock")))
    service = Service(tmp_path, CONFIG)
    service.socket = runtime / "aitbcd.sock"
    assert len(str(service.socket)) == 107
    environ = os.environ | service.environ | {"AITBCD_RUNTIME_DIR": str(runtime)}
    with service.log.open("wb") as log:
        service.process = subprocess.Popen([PROGRAMS / "aitbcd"], env=environ, stderr=log)
    try:
        wait_for("it answers", service._answers, log=service.log)
        serves(service)
    finally:
        service.__exit__(None, None, None)


def test_a_taken_port_costs_only_tcp(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(tmp_path, f'[server]\ntcp = "127.0.0.1:{port}"\n') as box:
            log = box.service.log
            wait_for("it says what it has", lambda: "processor cores" in log.read_text())
            said = log.read_text()
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said
            assert f"http://127.0.0.1:{port}" not in said
            assert box.run("true")["status"] == "completed"


@pytest.mark.parametrize("what", ["the socket", "its folder"])
def test_the_socket_is_bound_again_when_its_path_is_gone(tmp_path: Path, what: str) -> None:
    with serving(tmp_path / "daemon") as box:
        path = box.service.socket
        job = box.run("true")["job_id"]
        before = path.stat().st_ino
        # Renamed, not removed: a daemon that is quick puts its socket into a folder that goes.
        (path if what == "the socket" else path.parent).rename(tmp_path / "away")

        def is_back() -> bool:
            return path.exists() and path.stat().st_ino != before and box.service._answers()

        wait_for("it is bound again", is_back, log=box.service.log)
        # Open connections were not harmed.
        assert box.status(job)["status"] == "completed"
        serves(box.service)
        assert box.service.stop() == 0
        assert not path.exists()


def test_without_watches_the_socket_is_looked_at_now_and_then(tmp_path: Path) -> None:
    """The kernel's limit is one for all programs of a user: an editor can use it up."""
    often = "from aitbcd.api import socket; socket._REBIND_PAUSE_S = 0.2"
    no_watch = ["unshare", "--map-root-user", "sh", "-c", NO_WATCH]
    with Service(tmp_path, CONFIG, before=no_watch, prelude=often) as service:
        inode = service.socket.stat().st_ino
        for _ in range(3):
            serves(service)
        assert "bound again" not in service.log.read_text()
        service.socket.rename(tmp_path / "away")
        wait_for("it is bound again", service.socket.exists, log=service.log)
        assert service.socket.stat().st_ino != inode
        serves(service)
        assert service.stop() == 0


NO_WATCH = 'echo 0 >/proc/sys/user/max_inotify_watches && exec "$0" "$@"'


def test_what_it_says_may_go_nowhere(tmp_path: Path) -> None:
    """A disk that is full of logs keeps no daemon from its work."""
    with Service(tmp_path / "prepared", CONFIG) as service:
        assert service.stop() == 0
        with open("/dev/full", "wb") as full:
            service.process = subprocess.Popen(
                [PROGRAMS / "aitbcd"], env=os.environ | service.environ, stderr=full
            )
        wait_for("it answers", service._answers)
        serves(service)
        assert service.stop() == 0


@only_root
def test_a_user_s_own_daemon_serves_him_and_root_and_runs_only_his_jobs(
    short: Path, ada: User, bob: User
) -> None:
    short.chmod(0o755)
    config(short, CONFIG)
    home = ada.home
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    where = home / ".local/state/aitbcd/runtime/aitbcd.sock"
    log = short / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [*as_user(ada), str(PROGRAMS / "aitbcd"), "--config", str(short / "aitbcd.toml")],
            env=environ, stderr=output, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        wait_for("it serves", lambda: b"serves" in log.read_bytes() and where.exists(), log=log)
        assert stat.S_IMODE(where.stat().st_mode) == 0o600
        assert stat.S_IMODE(where.parent.stat().st_mode) == 0o700
        made = ada.ask(where, "POST", "/v1/jobs", {"argv": ["id", "-u"]})
        assert made.status == 201, made.body
        job = made.json["job_id"]

        def over() -> bool:
            return bool(ada.ask(where, "GET", f"/v1/jobs/{job}").json["status"] == "completed")

        wait_for("it ran", over, log=log)
        assert ada.ask(where, "GET", f"/v1/jobs/{job}/logs/stdout").body == b"%d\n" % ada.uid
        root = User("root", 0, 0, Path("/root"))
        assert root.ask(where, "GET", f"/v1/jobs/{job}").json["user"] == ada.name
        refusal = root.ask(where, "POST", "/v1/jobs", {"argv": ["id"]})
        assert (refusal.status, refusal.json["code"]) == (403, "forbidden")
        with pytest.raises(PermissionError):
            bob.ask(where, "GET", "/v1/jobs")
    finally:
        daemon.terminate()
        assert daemon.wait(DEADLINE_S) == 0
        shutil.rmtree(home / ".local")
