"""A real daemon in a folder of its own, for the system tests and the bench.

It runs the installed programs, and leaves no process behind: orphans of the daemon (the launcher,
supervisors, jobs) become children of this process (PR_SET_CHILD_SUBREAPER) and are ended with it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

#: Where pip put the programs of this interpreter.
PROGRAMS = Path(sys.executable).parent
#: For conditions that hold within milliseconds on an idle machine; a hang, not a speed, is found.
DEADLINE_S = 120.0
#: No TCP: tests beside each other must not meet on a port.
PLAIN_CONFIG = '[server]\ntcp = ""\n'
_PR_SET_CHILD_SUBREAPER = 36


def wait_for(what: str, condition: Callable[[], T | None], *, log: Path | None = None) -> T:
    """Return the first true answer of ``condition``; fail after the deadline, with the log."""
    until = time.monotonic() + DEADLINE_S
    while not (answer := condition()):
        if time.monotonic() > until:
            said = log.read_text(errors="replace") if log and log.exists() else ""
            raise AssertionError(f"not within {DEADLINE_S:.0f} s: {what}\n{said}")
        time.sleep(0.005)
    return answer


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let nothing more be opened, though what is open goes on."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def become_subreaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def children(pid: int) -> list[int]:
    """Return the living processes whose parent is ``pid``."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def descendants(pid: int) -> list[int]:
    found = children(pid)
    for child in found:
        found.extend(children(child))
    return found


def environ_of(pid: int) -> dict[bytes, bytes]:
    """Return what a process was started with; nothing when it is gone or another user's."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


def let_others_reach(folder: Path) -> None:
    """Open a folder of a test's, and those of pytest's above it, to other users."""
    top = Path(tempfile.gettempdir())
    for each in (folder, *folder.parents):
        if each == top:
            return
        each.chmod(0o755)


class Service:
    """``aitbcd`` with all its folders below ``folder``."""

    def __init__(
        self,
        folder: Path,
        config: str = PLAIN_CONFIG,
        *,
        before: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        prelude: str = "",
    ) -> None:
        """Prepare it.

        Args:
            before: makes a command another user's (``give_to`` him its folders).
            prelude: Python that runs in the daemon before it begins: what it would wait a minute
                for, a test need not.
        """
        self._pass_fds = pass_fds
        self._prelude = prelude
        self.folder = folder
        self._before = before
        self.state = folder / "state"
        self.log = folder / "daemon.log"
        # Not below ``folder``: its name can be longer than a socket's may be.
        self._runtime = Path(tempfile.mkdtemp(prefix="aitbcd-"))
        # Also where it is never started, or cannot be.
        self._forget = weakref.finalize(self, shutil.rmtree, self._runtime, ignore_errors=True)
        self.socket = self._runtime / "aitbcd.sock"
        self.config = folder / "aitbcd.toml"
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(config)
        self.process: subprocess.Popen[bytes] | None = None

    def give_to(self, uid: int, gid: int) -> None:
        """Make another user the owner of its folders."""
        for path in (self.folder, self.config, self._runtime):
            os.chown(path, uid, gid)

    @property
    def environ(self) -> dict[str, str]:
        """What leads the daemon to its folders, and clients to the daemon."""
        return {
            "AITBCD_STATE_DIR": str(self.state),
            "AITBCD_RUNTIME_DIR": str(self._runtime),
            "AITBCD_CONFIG": str(self.config),
            "AITBC_SOCKET": str(self.socket),
        }

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start the daemon; return when it answers."""
        become_subreaper()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._before, *self._command],
                env=os.environ | self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self._pass_fds,
            )
        wait_for("the daemon answers", self._answers, log=self.log)

    @property
    def _command(self) -> list[str | Path]:
        if not self._prelude:
            return [PROGRAMS / "aitbcd"]
        # -P: the installed program, not the one in the folder that this runs in.
        program = f"{self._prelude}\nfrom aitbcd.__main__ import main\nmain()"
        return [sys.executable, "-P", "-c", program]

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            said = self.log.read_text(errors="replace")
            raise AssertionError(f"the daemon ended with {self.process.returncode}\n{said}")
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self) -> int:
        """End the daemon in order; return its exit code. Its jobs go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """End the daemon at whatever instruction it is (SIGKILL); the rest goes on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the daemon and all that it started."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        end_ours(str(self.state))
        self._forget()

    def ask(self, path: str) -> bytes:
        """Return the body of the answer to a GET; b"" where nobody answers."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(DEADLINE_S)
                sock.connect(str(self.socket))
                sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                data = b"".join(iter(lambda: sock.recv(65536), b""))
        except OSError:
            return b""
        return data.partition(b"\r\n\r\n")[2]

    def run(
        self, *command: str | Path, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of our programs against this daemon."""
        return subprocess.run(
            [PROGRAMS / command[0], *command[1:]],
            env=os.environ | self.environ | dict(environ or {}),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )


def end_ours(state: str) -> None:
    """Kill what a daemon with this state directory left among our descendants, and reap it."""
    ours = [
        pid
        for pid in descendants(os.getpid())
        if os.fsencode(state) in b"\0".join(environ_of(pid).values())
        or os.fsencode(state) in _command_of(pid)
    ]
    for pid in ours:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for pid in ours:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # of another parent, which reaps it


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
