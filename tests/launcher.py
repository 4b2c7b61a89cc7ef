"""A real launcher in a state directory of its own, started as the daemon starts it.

The test is its daemon: it speaks the protocol itself, a request at a time or many.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from aitbcd.launcher import protocol
from aitbcd.launcher.protocol import Facts, Message
from tests.service import DEADLINE_S, become_subreaper, children, descendants, wait_for

PYTHON = (sys.executable, "-I", "-S", "-X", "utf8")
PROGRAM = Path(protocol.__file__).parent
#: What a supervisor may need to read, for those who start one by other means.
CODE = PROGRAM.parents[1]
PATH = "/usr/local/bin:/usr/bin:/bin"
MIB = 1 << 20

_LOADED = """
import hashlib, os, resource, sys
sys.path.append(sys.argv.pop(1))
from aitbcd.launcher import __main__, identity, launcher, linux, logs, seal, spawn
PRELUDE
sys.exit(__main__.main())
"""
#: Gives a launcher to its user for good. He may not be able to read this interpreter's files, and
#: what has changed its ids is otherwise still root's in proc(5).
_BECOME = """
identity.Identity({uid}, {gid}, "{name}").become()
linux._libc.prctl(4, 1, 0, 0, 0)
"""

Key = tuple[str, int]


class Who(NamedTuple):
    uid: int
    gid: int
    name: str


def myself() -> Who:
    entry = pwd.getpwuid(os.getuid())
    return Who(entry.pw_uid, entry.pw_gid, entry.pw_name)


class Done(NamedTuple):
    """An attempt that is over, and its logs as it left them."""

    facts: Facts
    stdout: bytes
    stderr: bytes
    worker: int


class Stage:
    """A state directory that other users can pass through, and who runs in it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aitbcd-stage-"))
        self.folder.chmod(0o711)
        self.state = self.folder / "state"
        self.run = self.state / "run"
        self.results = self.state / "results"
        for made, mode in ((self.state, 0o711), (self.run, 0o750), (self.results, 0o711)):
            made.mkdir()
            made.chmod(mode)
        self.log = self.run / "launcher.log"
        self.process: subprocess.Popen[bytes] | None = None
        # Of a job of the same name in another run of tests processes would be ended, too.
        self._numbers = itertools.count(1 + os.getpid() % 9000 * 10_000)
        self._daemons: list[Daemon] = []
        become_subreaper()
        self._others = frozenset(descendants(os.getpid()))

    # -- the launcher -----------------------------------------------------------------------

    def launch(
        self,
        *arguments: str | Path,
        before: Sequence[str] = (),
        prelude: str | None = None,
    ) -> bool:
        """Start a launcher; return when it listens (True) or has ended (False).

        ``prelude`` is Python that runs in it, with all its modules loaded, before it begins.
        """
        reading, writing = os.pipe()
        command: list[str | Path] = [*PYTHON, PROGRAM]
        if prelude is not None:
            command = [*PYTHON, "-c", _LOADED.replace("PRELUDE", prelude), CODE]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*before, *command, self.state, *arguments, "--ready-fd", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                start_new_session=True,
                env={"LC_ALL": "C.UTF-8"},
            )
        os.close(writing)
        with open(reading, "rb") as pipe:
            return pipe.read() == b"1"

    def launch_as(self, who: Who, prelude: str = "") -> Daemon:
        """Start a launcher of another user and become its daemon."""
        for folder in (self.state, self.run, self.results):
            os.chown(folder, who.uid, who.gid)
        become = _BECOME.format(uid=who.uid, gid=who.gid, name=who.name)
        assert self.launch(prelude=become + prelude), self.said()
        daemon = self.connect()
        daemon.hello()
        return daemon

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def connect(self) -> Daemon:
        """Become the daemon; whoever was it before should have hung up."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(DEADLINE_S)
        sock.connect(str(self.run / protocol.LAUNCHER_SOCKET))
        daemon = Daemon(self, sock)
        self._daemons.append(daemon)
        return daemon

    def kill(self) -> None:
        """Kill the launcher and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def wait(self) -> int:
        """Wait until the launcher has ended; return its exit code."""
        assert self.process is not None
        return self.process.wait(DEADLINE_S)

    def supervisors(self) -> list[int]:
        """Return all that there are: with an attempt, between two, and some that had none yet."""
        return children(self.pid)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    # -- what it is told ----------------------------------------------------------------------

    def spec(
        self,
        *argv: str,
        job: str | None = None,
        attempt: int = 1,
        who: Who | None = None,
        env: Mapping[str, str] | None = None,
        **more: object,
    ) -> Message:
        """Return the start of a new attempt; ``more`` replaces its other fields."""
        who = who or myself()
        job = job or f"job_{next(self._numbers):08d}"
        building = self.building(job)
        ours = {
            "AITBC_JOB_ID": job,
            "AITBC_ATTEMPT": str(attempt),
            "AITBC_RESULT": f"{building}/result.txt",
            "AITBC_ARTIFACTS_DIR": f"{building}/artifacts",
        }
        return {
            "job": job,
            "attempt": attempt,
            "uid": who.uid,
            "gid": who.gid,
            "user": who.name,
            "argv": list(argv),
            "env": {"PATH": PATH} | ours | dict(env or {}),
            "cwd": "/",
            "umask": 0o022,
            "stdin": None,
            "timeout_s": None,
            "grace_s": 10.0,
            "log_limit": 64 * MIB,
            "artifacts": [],
            **more,
        }

    def shell(self, line: str, **more: Any) -> Message:
        return self.spec("/bin/sh", "-c", line, **more)

    @staticmethod
    def order(spec: Message, **more: object) -> Message:
        """Return the order to seal what this spec has left."""
        known = ("job", "attempt", "uid", "gid", "user", "cwd", "log_limit", "artifacts")
        output = {"format": 1, "attempt": spec["attempt"], "status": "completed"}
        return {name: spec[name] for name in known} | {"output": output} | more

    # -- the files ----------------------------------------------------------------------------

    def run_folder(self, spec: Message) -> Path:
        return self.run / protocol.folder_name(spec["job"], spec["attempt"])

    def building(self, job: str) -> Path:
        return self.results / protocol.package_name(job, is_sealed=False)

    def sealed(self, spec: Message) -> Path:
        return self.results / protocol.package_name(spec["job"], is_sealed=True)

    def log_of(self, spec: Message, stream: str = "stdout") -> bytes:
        return (self.building(spec["job"]) / "logs" / f"{stream}.log").read_bytes()

    def line_of(self, spec: Message) -> str:
        """Return the first whole line that the job has written, once it has."""
        path = self.building(spec["job"]) / "logs" / "stdout.log"
        said = wait_for(
            f"{spec['job']} says something",
            lambda: text if path.exists() and b"\n" in (text := path.read_bytes()) else None,
            log=self.log,
        )
        return said.partition(b"\n")[0].decode()

    def is_locked(self, spec: Message) -> bool:
        try:
            fd = os.open(self.run_folder(spec) / protocol.LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return protocol.is_locked(fd)
        finally:
            os.close(fd)

    def facts_on_disk(self, spec: Message) -> Facts:
        facts: Facts = json.loads((self.run_folder(spec) / protocol.EXIT).read_bytes())
        return facts

    # -- the end ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all that came to be here, whatever became of its parents."""
        for daemon in self._daemons:
            daemon.hang_up()
        while ours := [pid for pid in descendants(os.getpid()) if pid not in self._others]:
            for pid in ours:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in ours:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        if self.process:
            self.process.poll()
        shutil.rmtree(self.folder)


class Supervised:
    """An attempt, as its daemon sees it."""

    def __init__(
        self, stage: Stage, spec: Message, channel: Channel, supervisor: int, worker: int
    ) -> None:
        self.stage = stage
        self.spec = spec
        self.channel = channel
        #: The pid of its supervisor, and its number where the launcher has told it.
        self.supervisor = supervisor
        self.worker = worker

    @property
    def key(self) -> Key:
        return self.spec["job"], self.spec["attempt"]

    def running(self) -> Message:
        return self.channel.word(self.key, "running")

    def exited(self) -> Facts:
        facts: Facts = self.channel.word(self.key, "exited")["facts"]
        return facts

    def cancel(self, grace_s: float) -> None:
        self.tell("cancel", grace_s=grace_s)

    def seal(self, **more: object) -> Message:
        self.tell("seal", **self.stage.order(self.spec, **more))
        return self.channel.word(self.key, "sealed", "seal_failed")

    def done(self) -> None:
        """Let the supervisor go; return when the run folder is gone."""
        self.tell("done")
        folder = self.stage.run_folder(self.spec)
        wait_for(f"{folder} is gone", lambda: not folder.exists(), log=self.stage.log)

    def finish(self) -> Message:
        sealed = self.seal()
        self.done()
        return sealed

    def tell(self, op: str, **more: object) -> None:
        about = {"op": op, "job": self.spec["job"], "attempt": self.spec["attempt"]}
        protocol.send(self.channel.sock, about | more)

    def wait_lost(self) -> None:
        """Wait until the supervisor has let go of the channel and of the folder, as it died."""
        while self.channel.next() is not None:
            pass
        stage = self.stage
        wait_for("nobody holds it", lambda: not stage.is_locked(self.spec), log=stage.log)


class Channel:
    """The connection to a supervisor; words about one attempt do not hide those about another."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        self.sock = sock
        self._waiting: list[Message] = []

    def next(self) -> Message | None:
        received = protocol.receive(self.sock)
        if received is None:
            return None
        message, fds = received
        assert not fds
        return message

    def word(self, key: Key, *ops: str) -> Message:
        """Return the next word of this kind about this attempt."""
        for message in self._waiting:
            if self._is(message, key, ops):
                self._waiting.remove(message)
                return message
        while (received := self.next()) is not None:
            if self._is(received, key, ops):
                return received
            self._waiting.append(received)
        raise AssertionError(f"the supervisor hung up before it said {ops} of {key}")

    @staticmethod
    def _is(message: Message, key: Key, ops: tuple[str, ...]) -> bool:
        return (message["job"], message["attempt"]) == key and message["op"] in ops


class Daemon:
    """A connection to the launcher, with the channels that came over it."""

    def __init__(self, stage: Stage, sock: socket.socket) -> None:
        self.stage = stage
        self.sock = sock
        self.channels: dict[int, Channel] = {}
        self._adopted: list[Channel] = []
        self._rid = 0
        self._answers: dict[int, Message] = {}

    def tell(self, op: str, **fields: object) -> int:
        """Send a request; return its number."""
        self._rid += 1
        protocol.send(self.sock, {"op": op, "rid": self._rid, **fields})
        return self._rid

    def answer(self, rid: int) -> Message:
        """Return the answer to a request, whatever is answered before it."""
        while rid not in self._answers:
            received = protocol.receive(self.sock)
            assert received is not None, f"the launcher hung up:\n{self.stage.said()}"
            message, fds = received
            if fds:
                assert message["op"] == "placed"
                sock = socket.socket(fileno=fds.pop())
                self.channels[message["worker"]] = Channel(sock)
            assert not fds
            self._answers[message["rid"]] = message
        return self._answers.pop(rid)

    def ask(self, op: str, **fields: object) -> Message:
        return self.answer(self.tell(op, **fields))

    def hello(self) -> Message:
        return self.ask("hello")

    def start(self, spec: Message) -> Supervised:
        answer = self.ask("start", **spec)
        assert answer["op"] == "placed", answer
        return self.placed(spec, answer)

    def placed(self, spec: Message, answer: Message) -> Supervised:
        worker = answer["worker"]
        return Supervised(self.stage, spec, self.channels[worker], answer["pid"], worker)

    def run(self, spec: Message) -> Done:
        """See an attempt through to its recorded end."""
        attempt = self.start(spec)
        facts = attempt.exited()
        logs = (self.stage.log_of(spec), self.stage.log_of(spec, "stderr"))
        attempt.finish()
        return Done(facts, *logs, attempt.worker)

    def adopt(self, spec: Message) -> Supervised:
        """Connect to a supervisor that has lost its daemon, once it listens."""
        address = self.stage.run_folder(spec) / protocol.SOCKET

        def connected() -> socket.socket | None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if sock.connect_ex(str(address)) == 0:
                return sock
            sock.close()
            return None

        sock = wait_for(f"{spec['job']} is to be found", connected, log=self.stage.log)
        channel = Channel(sock)
        self._adopted.append(channel)
        return Supervised(self.stage, spec, channel, protocol.peer_pid(sock), -1)

    def forget(self, attempt: Supervised) -> None:
        """Close the channel to a supervisor that is gone."""
        self.channels.pop(attempt.worker).sock.close()

    def hang_up(self) -> None:
        """Go as a killed daemon goes: all its connections at once."""
        self.sock.close()
        for channel in [*self.channels.values(), *self._adopted]:
            channel.sock.close()
        self.channels.clear()


def proc_status(text: str) -> dict[str, str]:
    """Return the fields of a ``/proc/PID/status`` (proc_pid_status(5))."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(")") + 2] not in "ZX"


def wait_gone(pid: int) -> None:
    wait_for(f"process {pid} is gone", lambda: not is_alive(pid))
