"""The installed command line against an installed daemon."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest

from tests.service import DEADLINE_S, PROGRAMS, Service, wait_for

CONFIG = '[server]\ntcp = ""\n[jobs]\ncancel_grace = "1s"\n'


Running = subprocess.Popen[bytes]


class Cli:
    """``aitbcctl`` of one user, against one daemon."""

    def __init__(self, daemon: Service, folder: Path, before: Sequence[str] = ()) -> None:
        self.daemon = daemon
        #: Where it is run, and jobs with it.
        self.folder = folder
        #: What makes it another user's.
        self._before = before
        self._started: list[Running] = []

    @property
    def environ(self) -> dict[str, str]:
        return os.environ | self.daemon.environ

    def command(self, *args: str | bytes, program: str = "aitbcctl") -> list[str | bytes]:
        return [*self._before, str(PROGRAMS / program), *args]

    def __call__(
        self,
        *args: str | bytes,
        code: int = 0,
        stdin: bytes = b"",
        environ: Mapping[str, str] | None = None,
        program: str = "aitbcctl",
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a verb; fail unless it ends with ``code``."""
        done = subprocess.run(
            self.command(*args, program=program),
            env=self.environ | dict(environ or {}),
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=DEADLINE_S,
        )
        said = f"{args}\nstdout: {done.stdout!r}\nstderr: {done.stderr.decode(errors='replace')}"
        assert done.returncode == code, f"exit code {done.returncode}, not {code}: {said}"
        assert b"Traceback" not in done.stderr, said
        return done

    def start(
        self,
        *args: str,
        stdout: int | IO[bytes] = subprocess.PIPE,
        environ: Mapping[str, str] | None = None,
    ) -> Running:
        """Run a verb in the background, its output in pipes."""
        running = subprocess.Popen(
            self.command(*args),
            env=self.environ | dict(environ or {}),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        self._started.append(running)
        return running

    def close(self) -> None:
        """End what a failed test left in the background."""
        for running in self._started:
            running.kill()
            running.wait()
            for pipe in (running.stdout, running.stderr):
                if pipe is not None:
                    pipe.close()

    def submit(self, *args: str | bytes) -> str:
        """Submit and return the id."""
        return self("submit", *args).stdout.decode().strip()

    def shell(self, line: str, *options: str) -> str:
        return self.submit(*options, "-c", line)

    def json(self, *args: str, code: int = 0) -> Any:
        return json.loads(self(*args, "--json", code=code).stdout)

    def status(self, job: str) -> dict[str, Any]:
        status: dict[str, Any] = self.json("status", job)
        return status

    def ended(self, job: str) -> dict[str, Any]:
        """Wait for a job's end and return its status."""
        self._reached(job, "completed", "failed", "canceled")
        return self.status(job)

    def until(self, job: str, wanted: str) -> dict[str, Any]:
        """Wait until a job is in this state."""
        return self._reached(job, wanted)

    def _reached(self, job: str, *wanted: str) -> dict[str, Any]:
        """Wait for it; the daemon itself is asked, since each command takes its time to begin."""
        job_id = job if job.startswith("job_") else self.status(job)["job_id"]

        def look() -> dict[str, Any] | None:
            found = json.loads(self.daemon.ask(f"/v1/jobs/{job_id}") or "{}")
            return found if found.get("status") in wanted else None

        return wait_for(f"{job} is {' or '.join(wanted)}", look, log=self.daemon.log)

    def job_ids(self) -> list[str]:
        return [job["job_id"] for job in self.json("list", "--limit", "1000")["jobs"]]


class Gate:
    """Holds jobs back: ``wait`` is a shell line that ends when the gate is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)
        #: Open for both, so that neither side waits for the other's open.
        self._fd = os.open(path, os.O_RDWR)

    @property
    def wait(self) -> str:
        return f"head -c 1 '{self._path}' >/dev/null"

    def open(self, jobs: int = 1) -> None:
        os.write(self._fd, b"x" * jobs)

    def close(self) -> None:
        os.close(self._fd)


class Screen:
    """A program on a terminal of its own."""

    def __init__(
        self,
        cli: Cli,
        *args: str,
        columns: int = 80,
        environ: Mapping[str, str] | None = None,
        stderr: Path | None = None,
    ) -> None:
        """Start it; ``stderr`` is a file that takes what it says, instead of the terminal."""
        ours, theirs = pty.openpty()
        errors = theirs if stderr is None else os.open(stderr, os.O_WRONLY | os.O_CREAT)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            cli.command(*args),
            env=cli.environ | {"TERM": "xterm-256color"} | dict(environ or {}),
            cwd=cli.folder,
            stdin=theirs,
            stdout=theirs,
            stderr=errors,
            start_new_session=True,
        )
        for fd in {theirs, errors}:
            os.close(fd)
        self._fd = ours
        self.text = ""

    def expect(self, words: str) -> None:
        """Read until the words were on the screen."""
        until = time.monotonic() + DEADLINE_S
        while words not in self.text:
            left = until - time.monotonic()
            assert left > 0, f"{words!r} was not shown in: {self.text!r}"
            assert self._read(left), f"it ended without {words!r}: {self.text!r}"

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Give it another size, as who drags the corner of a window."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    @property
    def is_line_by_line(self) -> bool:
        """Whether what is typed is edited, and shown, by the terminal."""
        flags: int = termios.tcgetattr(self._fd)[3]
        return flags & (termios.ICANON | termios.ECHO) == termios.ICANON | termios.ECHO

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read to the program's end and return its exit code."""
        while self._read(DEADLINE_S):
            pass
        return self.process.wait(DEADLINE_S)

    def hang_up(self) -> None:
        """Let the terminal be gone, as when a connection breaks."""
        os.close(self._fd)
        self._fd = -1

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One daemon for all tests that leave it alive."""
    with Service(tmp_path_factory.mktemp("daemon"), CONFIG) as running:
        yield running


@pytest.fixture
def cli(daemon: Service, tmp_path: Path) -> Iterator[Cli]:
    with closing(Cli(daemon, tmp_path)) as ours:
        yield ours


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Service]:
    """A daemon of this test's own, to be killed and started again."""
    with Service(tmp_path / "daemon", CONFIG) as running:
        yield running


@pytest.fixture
def own_cli(own_daemon: Service, tmp_path: Path) -> Iterator[Cli]:
    with closing(Cli(own_daemon, tmp_path)) as ours:
        yield ours


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    # Whatever still waits may go.
    made.open(1000)
    made.close()


@pytest.fixture
def screen() -> Iterator[Callable[..., Screen]]:
    """Run a verb on a terminal: ``screen(cli, "watch", job)``."""
    made: list[Screen] = []

    def open_one(cli: Cli, *args: str, columns: int = 80) -> Screen:
        made.append(Screen(cli, *args, columns=columns))
        return made[-1]

    yield open_one
    for one in made:
        one.close()
