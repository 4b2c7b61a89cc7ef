"""What a user of a machine may try against another one, and a job against what runs it.

A daemon of root's with the jobs of two users; each test is an attack of one of them. The page
docs/threat-model.md names them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from tests.integration.conftest import WAIT, Box, User, tcp_of
from tests.service import DEADLINE_S, descendants, environ_of, wait_for

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)
# fcntl.h, linux/fs.h
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def submit(box: Box, user: User, *argv: object, **more: object) -> str:
    made = user.ask(box.service.socket, "POST", "/v1/jobs", {"argv": [*map(str, argv)], **more})
    assert made.status == 201, made.body
    job: str = made.json["job_id"]
    return job


def in_his_name(user: User, action: Callable[[], T]) -> T:
    """Do something with the rights that a user has to files."""
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        return action()
    finally:
        os.seteuid(0)
        os.setegid(0)


def as_him(user: User, *command: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command that is his in every respect."""
    before = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]
    line = [*before, *map(str, command)]
    return subprocess.run(line, capture_output=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody reaches."""
    with tempfile.TemporaryDirectory(prefix="aitbcd-threats-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@contextmanager
def running(box: Box, user: User, folder: Path, **more: object) -> Iterator[tuple[str, int]]:
    """A job of a user with its main process; it ends with the block."""
    gate = folder / "go"
    job = submit(box, user, "/bin/sh", "-c", WAIT, "sh", str(gate), cwd="/", **more)
    box.reached(job, "running")

    def main() -> int | None:
        found = [
            pid
            for pid in descendants(os.getpid())
            if environ_of(pid).get(b"AITBC_JOB_ID") == job.encode()
        ]
        return min(found, default=None)

    try:
        yield job, wait_for("its process is there", main, log=box.service.log)
    finally:
        gate.touch()
        box.ended(job)


class Trap(NamedTuple):
    """What links lead to: none of it may change, and none of it may be in a package."""

    folder: Path
    file: Path

    def state(self) -> list[tuple[int, int, int, bytes]]:
        found = []
        for path in (self.folder, *sorted(self.folder.iterdir())):
            about = path.stat()
            words = path.read_bytes() if path.is_file() else b"".join(map(bytes, path.iterdir()))
            found.append((about.st_mode, about.st_uid, about.st_gid, words))
        return found


SECRET = b"a secret of somebody else"


@pytest.fixture(params=["his own", "another user's", "root's"])
def trap(request: pytest.FixtureRequest, open_folder: Path, ada: User, bob: User) -> Trap:
    folder = open_folder / "trap"
    folder.mkdir()
    made = Trap(folder, folder / "file")
    made.file.write_bytes(SECRET)
    # As open as can be: that he may do something is no reason for us to do it.
    made.file.chmod(0o666)
    folder.chmod(0o777)
    owner = {"his own": ada.uid, "another user's": bob.uid, "root's": 0}[request.param]
    for path in made:
        os.chown(path, owner, 0)
    return made


# -- what a job makes of its own package ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_job_swaps_for_links_leads_nowhere(
    shared: Box, ada: User, trap: Trap, kind: str
) -> None:
    target = trap.folder if kind == "folder" else trap.file
    before = trap.state()
    line = (
        'cd "$(dirname "$AITBC_RESULT")" || exit 1; mkdir old;'
        " for name in artifacts logs result.txt progress output.json output.sha256; do"
        ' mv "$name" old/ 2>/dev/null; ln -s "$0" "$name"; done;'
        ' mkdir -p old/artifacts/a; ln -s "$0" old/artifacts/a/link; ln -s "$0" old/logs/more'
    )
    job = submit(shared, ada, "/bin/sh", "-c", line, target)
    assert shared.ended(job)["status"] == "completed"
    assert trap.state() == before
    package = shared.package(job)
    for folder, folders, files in os.walk(package):
        for name in (*folders, *files):
            about = (Path(folder) / name).lstat()
            assert about.st_uid == ada.uid
            assert stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode)
        assert not [name for name in files if SECRET in (Path(folder) / name).read_bytes()]
    assert shared.http.post(f"/v1/jobs/{job}/verify").json()["ok"]


@contextmanager
def swapping(user: User, folder: Path, pairs: list[tuple[str, str]]) -> Iterator[None]:
    """Have a process of his exchange names below a folder, over and over."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            names = [[os.fsencode(folder / each) for each in pair] for pair in pairs]
            while True:
                for one, other in names:
                    _libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_who_swaps_folders_while_they_are_sealed_gains_nothing(
    shared: Box, ada: User, trap: Trap, open_folder: Path
) -> None:
    before = trap.state()
    line = (
        'cd "$(dirname "$AITBC_RESULT")" || exit 1; mkdir traps artifacts/d;'
        ' for name in a l d; do ln -s "$2" traps/$name; done; ln -s "$2/file" traps/f;'
        " for i in $(seq 300); do echo $i >artifacts/d/$i; done; echo mine >artifacts/f; "
    )
    pairs = [("artifacts", "traps/a"), ("logs", "traps/l"), ("artifacts/d", "traps/d"),
             ("artifacts/f", "traps/f")]  # fmt: skip
    for turn in range(5):
        gate = open_folder / f"go{turn}"
        job = submit(shared, ada, "/bin/sh", "-c", line + WAIT, "sh", gate, trap.folder)
        building = shared.service.state / "results" / f".{job}"
        wait_for("all is laid out", (building / "artifacts/f").exists, log=shared.service.log)
        # It goes on until the package is sealed, which takes the name away.
        with swapping(ada, building, pairs[turn % 4 :][:2]):
            gate.touch()
            final = shared.ended(job)
        answer = shared.http.get(f"/v1/jobs/{job}/download")
        assert SECRET not in answer.content
        assert answer.status_code in (200, 409), final
        assert trap.state() == before
    assert shared.run("true")["status"] == "completed"


@pytest.mark.parametrize(
    "line",
    [
        "mkfifo", "mkdir", "ln -s /dev/zero", 'ln -s "$0/file"', "truncate -s 1T", "ln -s /dev/tty",
        "printf '\\033]0;x\\07 77/100' >",
    ],
)  # fmt: skip
def test_a_progress_that_is_none_holds_nobody_up(
    shared: Box, ada: User, trap: Trap, line: str, open_folder: Path
) -> None:
    trap.file.write_text("77")
    script = f'cd "$(dirname "$AITBC_PROGRESS")"; rm -f progress; {line} progress; '
    gate = open_folder / "go"
    # What $0 names for the script is $1 for the wait.
    job = submit(shared, ada, "/bin/sh", "-c", f"{script} {WAIT}", trap.folder, gate)
    shared.reached(job, "running")
    wait_for(
        "it is there",
        lambda: os.path.lexists(shared.service.state / "results" / f".{job}" / "progress"),
    )
    for _ in range(3):
        assert ada.ask(shared.service.socket, "GET", f"/v1/jobs/{job}").json["progress"] != 77
    gate.touch()
    assert shared.ended(job)["status"] == "completed"
    assert not (shared.package(job) / "progress").exists()


# -- another user, and what runs the jobs ----------------------------------------------------------


def test_nothing_of_another_users_job_is_open(
    shared: Box, ada: User, bob: User, open_folder: Path
) -> None:
    state = shared.service.state
    with running(shared, ada, open_folder, env={"SECRET": "s3cret"}) as (job, pid):
        supervisor = parent_of(pid)
        package = state / "results" / f".{job}"
        attacks = [
            f"cat /proc/{pid}/environ", f"ls /proc/{pid}/fd/", f"head -c 1 /proc/{pid}/mem",
            f"ls /proc/{pid}/root/", f"ls /proc/{pid}/cwd/", f"kill -STOP {pid}",
            f"kill -STOP -{pid}", f"ls {package}/", f"cat {package}/logs/stdout.log",
            f"ls {state}/run/", f"ls {state}/results/", f"cat {state}/queue.db",
            f"cat {state}/queue.db-wal", f"touch {state}/results/job_mine",
            f"touch {state}/mine", f"mv {package} {state}/results/.other",
        ]  # fmt: skip
        ours = [
            f"{attack} {each}"
            for each in (supervisor, parent_of(supervisor), shared.service.pid)
            for attack in ("kill -STOP", "kill -KILL")
        ] + [f"cat /proc/{supervisor}/environ", f"ls /proc/{supervisor}/fd/"]
        for attack in (*attacks, *ours):
            assert as_him(bob, "sh", "-c", attack).returncode != 0, attack
        # His own job's supervisor is no more his than another one's.
        for attack in ours:
            assert as_him(ada, "sh", "-c", attack).returncode != 0, attack
        assert as_him(ada, "sh", "-c", f"kill -CONT {pid}").returncode == 0
    after = shared.package(job)
    for attack in (f"ls {after}/", f"cat {after}/output.json", f"rm -rf {after}", f"mv {after} /"):
        as_him(bob, "sh", "-c", attack)
        assert as_him(bob, "sh", "-c", attack).returncode != 0, attack
    assert shared.http.post(f"/v1/jobs/{job}/verify").json()["ok"]


def test_another_users_job_is_not_his_to_change(
    shared: Box, ada: User, bob: User, open_folder: Path
) -> None:
    where = shared.service.socket
    with running(shared, ada, open_folder) as (job, _):
        number = shared.status(job)["number"]
        wishes = [
            ("POST", "cancel", {"force": True}), ("POST", "retry", {}), ("DELETE", "", None),
            ("POST", "keep", {"until": None}), ("POST", "share", {"expires": "1d"}),
            ("GET", "shares", None), ("DELETE", "shares", None), ("POST", "verify", None),
        ]  # fmt: skip
        for ref in (job, number):
            for method, verb, body in wishes:
                path = f"/v1/jobs/{ref}/{verb}".rstrip("/")
                answer = bob.ask(where, method, path, body)
                assert (answer.status, answer.json["code"]) == (404, "no-such-job"), path
        assert shared.status(job)["status"] == "running"


def test_whatever_is_asked_of_another_users_job_it_is_as_if_there_were_none(
    shared: Box, ada: User, bob: User, open_folder: Path
) -> None:
    """Every route that there is, so that none can be forgotten."""
    over = submit(shared, ada, "true")
    shared.ended(over)
    with running(shared, ada, open_folder) as (job, _):
        paths = shared.http.get("/openapi.json").json()["paths"]
        routes = [(path, method) for path, ways in paths.items() for method in ways]
        asked = 0
        for path, method in routes:
            if "{job}" not in path or method not in ("get", "post", "put", "patch", "delete"):
                continue
            asked += 1
            rest = path.replace("{stream}", "stdout").replace("{path}", "output.json")
            body: object = None if method in ("get", "delete") else {}

            def answer_to(
                ref: str, method: str = method, rest: str = rest, body: object = body
            ) -> tuple[int, bytes]:
                where = rest.replace("{job}", ref)
                answer = bob.ask(shared.service.socket, method.upper(), where, body)
                return answer.status, answer.body.replace(ref.encode(), b"REF")

            for each in (over, job):
                number = str(shared.status(each)["number"])
                for ref, none in (
                    (each, "job_00000000"),
                    (number, "99999999"),
                    (each[:8], "job_0"),
                ):
                    status, said = answer_to(ref)
                    assert (status, said) == answer_to(none), (method, path)
                    assert status == 404
        assert asked > 10
        assert shared.status(job)["status"] == "running"


def test_the_sockets_of_launcher_and_supervisors_are_shut(
    shared: Box, ada: User, open_folder: Path
) -> None:
    run = shared.service.state / "run"

    def connect(path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(path))

    with running(shared, ada, open_folder) as (job, _):
        paths = [run / "launcher.sock", run / f"{job}.1" / "sock"]
        assert paths[0].is_socket()
        for path in paths:
            with pytest.raises(PermissionError):
                in_his_name(ada, lambda path=path: connect(path))  # type: ignore[misc]


def test_who_is_root_in_a_namespace_of_his_own_is_himself(shared: Box, ada: User) -> None:
    body = '{"argv": ["id", "-u"], "name": "namespace"}'
    host, port = tcp_of(shared)
    sock = ["--unix-socket", shared.service.socket, "http://localhost/v1/jobs"]
    for url in (sock, [f"http://{host}:{port}/v1/jobs"]):
        curl = ["curl", "--silent", "--data", body, *url]
        done = as_him(ada, "unshare", "--user", "--map-root-user", *curl)
        assert f'"user":"{ada.name}"'.encode() in done.stdout, done
    mine = ada.ask(shared.service.socket, "GET", "/v1/jobs?name=namespace&limit=2").json["jobs"]
    for job in mine:
        shared.ended(job["job_id"])
        assert shared.log(job["job_id"]) == b"%d\n" % ada.uid
    # Without a mapping his uid is one that nobody has there; here it is his all the same.
    done = as_him(ada, "unshare", "--user", "curl", "--silent", *sock)
    assert b'"jobs":[{' in done.stdout, done


def test_a_name_in_the_journal_is_one_line(shared: Box, ada: User) -> None:
    """What a client sends does not begin a line of its own there."""
    with suppress(OSError):
        ada.ask(shared.service.socket, "GET", "/v1/jobs/%0aERROR%20forged%1b%5b2J/events")
    shared.ended(submit(shared, ada, "/nonexistent\nERROR forged\x1b[2J"))
    said = shared.service.log.read_text()
    assert "\nERROR forged" not in said
    assert "\x1b" not in said
