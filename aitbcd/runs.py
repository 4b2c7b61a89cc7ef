"""The only door to what runs: start an attempt, find it again, signal it, seal it.

Talks to the launcher and the supervisors (``launcher.protocol``) and reads run folders. Messages
are hints, the files are the truth: whoever hears nothing looks again with ``find``. In user mode
the launcher is our child, in a session of its own, and is replaced when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from aitbcd import output
from aitbcd.errors import StartupError
from aitbcd.launcher import protocol
from aitbcd.launcher.protocol import Facts, Message
from aitbcd.model import Ending, JobState
from aitbcd.paths import Paths

_log = logging.getLogger(__name__)

#: Seconds that a launcher may take to listen, or to answer a hello while it ends old requests.
_HELLO_S = 60.0
#: First and longest pause between two looks at a supervisor that does not listen yet.
_LOOK_FIRST_S, _LOOK_MOST_S = 0.005, 5.0
#: How often a launcher is looked for at the start, with growing pauses: three seconds in all.
_CONNECT_TRIES = 9
#: A launcher that dies sooner than this after its start is not replaced at once.
_CRASH_LOOP_S = 1.0

#: Packages that are removed at the same time; each costs the launcher a process.
_REMOVE_AT_ONCE = 8

#: Isolated and without site packages: the standard library and our own files, nothing else.
_PYTHON = (sys.executable, "-I", "-S", "-X", "utf8")

Key = tuple[str, int]

#: What to do where it is a service of its own.
_START_IT = (
    "systemctl start aitbcd-launcher (a user's own: systemctl --user start aitbcd-launcher); why it"
    " ended: systemctl status aitbcd-launcher"
)


class LauncherGone(Exception):
    """The launcher went away before it answered; look at the files."""


class Refused(Exception):
    """The launcher did not do it, and ``why``.

    A start: busy, started, canceled, storage, or forbidden (not as this user). A package that was
    to go: busy (somebody reads it), others (it holds what is not its owner's to remove), storage
    or forbidden.
    """

    def __init__(self, why: str, error: str) -> None:
        super().__init__(error)
        self.why = why


class SealFailed(Exception):
    """The package could not be sealed; ``errno`` says why. Sealing again is safe.

    EOWNERDEAD: who sealed it was killed, and the disk is not to blame.
    """

    def __init__(self, errno: int | None, error: str) -> None:
        super().__init__(error)
        self.errno = errno


class Found(Enum):
    """What an attempt is, by its files, in the order in which they are asked."""

    #: Its package is sealed: the record of its end.
    SEALED = "sealed"
    #: Of another boot: nothing of it can run.
    OTHER_BOOT = "other boot"
    #: Canceled before it was placed.
    TOMBSTONE = "tombstone"
    #: Its supervisor (or a sealer) holds the folder.
    ALIVE = "alive"
    #: Over, with the facts of its end.
    EXITED = "exited"
    #: It never ran.
    NEVER_RAN = "never ran"
    #: It may have run, and nobody saw its end.
    LOST = "lost"


class Finding(Struct, frozen=True):
    found: Found
    #: With EXITED.
    facts: Facts | None = None
    #: With SEALED: how it ended, as sealed.
    status: JobState | None = None
    ending: Ending | None = None
    started_at: int | None = None


def _encode(message: Message) -> bytes:
    # A tenth of the time; but it knows no lone surrogates, which are rare.
    try:
        return msgspec.json.encode(message)
    except UnicodeEncodeError:
        return protocol.encode(message)


def _decode(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return protocol.decode(data)


class _Packets:
    """A SOCK_SEQPACKET connection in the event loop."""

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        #: With descriptors of ours.
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self.is_open = True
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._read)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send now or when the other side reads; ``on_end`` says when it is gone.

        The descriptors are the caller's, who may close them at once.
        """
        packet = _encode(message)
        if not self.is_open or (not self._unsent and self._try_send(packet, fds)):
            return
        if not self._unsent:
            self._loop.add_writer(self._sock.fileno(), self._write)
        self._unsent.append((packet, [os.dup(fd) for fd in fds]))

    def _try_send(self, packet: bytes, fds: Sequence[int]) -> bool:
        try:
            protocol.send_packet(self._sock, packet, list(fds))
        except BlockingIOError:
            return False
        except ConnectionError:
            # The end-of-file is on its way.
            pass
        except OSError as error:
            # For want of a descriptor or memory: whoever waits for an answer is to look again.
            _log.error("a connection is given up: %s", error)
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        return True

    def _write(self) -> None:
        while self._unsent and self._try_send(*self._unsent[0]):
            protocol.close_all(self._unsent.popleft()[1])
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        try:
            received = protocol.receive(self._sock, _decode)
        except BlockingIOError:
            return
        except (ValueError, OSError) as error:
            _log.error("a connection broke off: %s", error)
            received = None
        if received is None:
            self.close()
            self._on_end()
        else:
            self._on_message(*received)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            for _, fds in self._unsent:
                protocol.close_all(fds)
            self._unsent.clear()


class Supervised:
    """An attempt with a supervisor, as its daemon sees it."""

    def __init__(self, runs: Runs, key: Key) -> None:
        self._runs = runs
        self.key = key
        #: Of its supervisor; 0 until it is known.
        self.pid = 0
        self.channel: _Channel | None = None
        self._reports: deque[Message | None] = deque()
        self._waiting: asyncio.Future[None] | None = None

    @property
    def is_there(self) -> bool:
        """Tell whether its supervisor can be told something."""
        return self.channel is not None and self.channel.packets.is_open

    async def report(self) -> Message | None:
        """Return the next word of the supervisor; None when it is gone: look again."""
        while not self._reports:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._reports.popleft()

    def take(self, message: Message | None) -> None:
        self._reports.append(message)
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)

    def cancel(self, grace_s: float) -> None:
        self._send({"op": "cancel", "grace_s": grace_s})

    async def seal(self, order: Message, samples: int | None) -> Message:
        """Have the package sealed and return ``{digest, files, bytes}``.

        Args:
            samples: a sealed memfd of the caller's, which becomes ``logs/gpu.csv``.

        Raises:
            SealFailed: see there.
            LauncherGone: the supervisor is gone; look again.
        """
        self._send({"op": "seal", **order}, _one(samples))
        while (report := await self.report()) is not None:
            if report["op"] == "sealed":
                return report
            if report["op"] == "seal_failed":
                raise SealFailed(report["errno"], report["error"])
        raise LauncherGone

    def stop_seal(self) -> None:
        """Have a sealing that is under way end: it fails with EOWNERDEAD, unless it is done."""
        self._send({"op": "stop_seal"})

    def done(self) -> None:
        """Let the supervisor go: the end of this attempt is recorded."""
        self._send({"op": "done"})
        if self.channel:
            self.channel.dismissed = self.key
        self.forget()

    def hang_up(self) -> None:
        """Close the connection: the supervisor then listens for the next one."""
        if self.channel:
            self.channel.packets.close()
            self._runs.forget_channel(self.channel)

    def forget(self) -> None:
        self._runs.forget(self)

    def _send(self, message: Message, fds: Sequence[int] = ()) -> None:
        if self.channel:
            about = {"job": self.key[0], "attempt": self.key[1]}
            self.channel.packets.send(message | about, fds)


def _one(fd: int | None) -> tuple[int, ...]:
    return () if fd is None else (fd,)


class _Channel:
    """The connection to one supervisor, and the attempts it was given."""

    def __init__(self, runs: Runs, sock: socket.socket, worker: int | None = None) -> None:
        self._runs = runs
        #: The launcher's number of its supervisor; None for an adopted one.
        self.worker = worker
        self.attempts: set[Supervised] = set()
        #: What its supervisor was last told to be done with: it may be killed before it hears it.
        self.dismissed: Key | None = None
        self.packets = _Packets(sock, runs.on_report, self._on_end)

    def add(self, attempt: Supervised) -> None:
        attempt.channel = self
        if self.packets.is_open:
            self.attempts.add(attempt)
        else:
            attempt.take(None)

    def _on_end(self) -> None:
        for attempt in self.attempts:
            attempt.take(None)
        self.attempts.clear()
        self._runs.forget_channel(self)
        if self.dismissed:
            self._runs.on_dismissed(*self.dismissed)


class Runs:
    """``open`` before anything else; ``close`` leaves all that runs alone."""

    def __init__(self, paths: Paths, *, boot_id: str, is_separate: bool = False) -> None:
        """Prepare; ``is_separate``: the launcher is a service of its own, not started by us."""
        self._paths = paths
        self._is_separate = is_separate
        self._boot_id = boot_id
        self._run_fd = -1
        self._launcher: _Packets | None = None
        self._process: subprocess.Popen[bytes] | None = None
        #: What jobs inherit; the daemon's own is raised for its connections.
        self._open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._launched_at = 0.0
        #: 0 while there is none.
        self.launcher_pid = 0
        #: Of which version of the program it is; None while nobody says so.
        self.launcher_version: str | None = None
        #: Where it gives attempts cgroups (``folder``, which can be None), and with what
        #: ``controllers``; None while there is no launcher, or one that does not say so.
        self.cgroups: Message | None = None
        #: Whose it is: root's runs jobs of others.
        self.launcher_uid = -1
        self._ready = asyncio.Event()
        self._is_open = False
        self._rid = 0
        self._asked: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._channels: dict[int, _Channel] = {}
        self._supervised: dict[Key, Supervised] = {}
        self._reopening: asyncio.Task[None] | None = None
        #: Called with an attempt whose end is recorded and whose run folder was left.
        self.on_left: Callable[[str, int], object] = lambda job_id, attempt: None
        self._removing = asyncio.Semaphore(_REMOVE_AT_ONCE)

    # -- the launcher -----------------------------------------------------------------------

    async def open(self) -> None:
        """Find or start the launcher and wait until it has done with an earlier daemon.

        Raises:
            StartupError: it does not start, or does not answer.
        """
        try:
            self._run_fd = os.open(self._paths.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            why = f"{self._paths.run}: {error.strerror}"
            raise StartupError(f"the launcher is not there: {why}", hint=_START_IT) from None
        try:
            async with asyncio.timeout(_HELLO_S):
                await self._connect_to_one()
        except TimeoutError:
            raise StartupError(
                f"the launcher of {self._paths.state} does not answer",
                hint="see whether a process 'aitbcd/launcher' is stopped, and end it",
            ) from None
        self._is_open = True

    async def _connect_to_one(self) -> None:
        """Connect; the launcher of a daemon that has just stopped may be about to end."""
        for tries in range(_CONNECT_TRIES):
            try:
                await self._connect()
                return
            except (LauncherGone, StartupError) as error:
                if isinstance(error, StartupError) and tries == _CONNECT_TRIES - 1:
                    raise
            await asyncio.sleep(_LOOK_FIRST_S * 2**tries)
        raise StartupError(f"the launcher of {self._paths.state} ends as soon as it starts")

    async def close(self) -> None:
        """Leave: what runs goes on, and a launcher without attempts ends by itself."""
        self._is_open = False
        if self._reopening:
            self._reopening.cancel()
        for channel in [*self._channels.values(), *self._live_channels()]:
            channel.packets.close()
        if self._launcher:
            self._launcher.close()
        if self._run_fd >= 0:
            os.close(self._run_fd)

    def _live_channels(self) -> list[_Channel]:
        return [each.channel for each in self._supervised.values() if each.channel]

    async def _connect(self) -> None:
        sock = self._try_connect()
        if sock is None and self._is_separate:
            raise StartupError(f"no launcher serves {self._paths.state}", hint=_START_IT)
        if sock is None:
            await self._launch()
            sock = self._try_connect()
        if sock is None:
            raise StartupError(
                f"the launcher of {self._paths.state} could not be started",
                hint=f"its own words are in {self._paths.run / 'launcher.log'}",
            )
        self._channels = {}
        self.launcher_uid = protocol.peer_uid(sock)
        self._launcher = _Packets(sock, self._on_answer, self._on_launcher_end)
        self._ready.set()
        answer, _ = await self._ask({"op": "hello"})
        self.launcher_pid = answer["pid"]
        self.launcher_version = answer.get("release")
        self.cgroups = answer.get("cgroups")
        if answer["version"] != protocol.VERSION:
            raise StartupError(
                f"the running launcher speaks version {answer['version']} of its protocol, this"
                f" daemon {protocol.VERSION}",
                hint="wait until its jobs have ended, or run the version that started it",
            )

    def _try_connect(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(protocol.address(self._run_fd, protocol.LAUNCHER_SOCKET))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        return sock

    async def _launch(self) -> None:
        """Start a launcher and wait until it listens, or is no more."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        log = os.open(
            self._paths.run / "launcher.log",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
            0o600,
        )
        program = Path(__file__).with_name("launcher")
        if self._process:
            # Its end was told a moment before it could be reaped.
            self._process.poll()
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - a vfork, no waiting
                [*_PYTHON, str(program), str(self._paths.state), "--ready-fd", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                start_new_session=True,
                env={"LC_ALL": "C.UTF-8"},
            )
        finally:
            os.close(writing)
            os.close(log)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, self._open_files)
        self._launched_at = time.monotonic()
        await _readable(reading)
        os.close(reading)

    def _on_launcher_end(self) -> None:
        self._ready.clear()
        self._launcher = None
        self.launcher_pid = 0
        self.launcher_version = None
        self.cgroups = None
        for future in self._asked.values():
            if not future.done():
                future.set_exception(LauncherGone())
        self._asked.clear()
        if self._process:
            self._process.poll()
        if self._is_open and self._reopening is None:
            _log.warning("the launcher is gone; %s another", self._how_next)
            self._reopening = asyncio.create_task(self._reopen())

    @property
    def _how_next(self) -> str:
        return "waiting for" if self._is_separate else "starting"

    async def _reopen(self) -> None:
        """Replace the launcher; running jobs do not notice."""
        why = told = ""
        try:
            while self._is_open:
                if time.monotonic() - self._launched_at < _CRASH_LOOP_S:
                    await asyncio.sleep(_CRASH_LOOP_S)
                try:
                    await self._connect()
                    _log.warning("the launcher is there again, pid %s", self.launcher_pid)
                    return
                except (StartupError, OSError, LauncherGone) as error:
                    before, why = why, str(error) or "it ended before it answered"
                    # One that is restarted is back at the next try.
                    if why == before != told:
                        _log.error("no launcher: %s", why)
                        told = why
                    await asyncio.sleep(_CRASH_LOOP_S)
        finally:
            self._reopening = None

    async def _ask(self, request: Message, fds: Sequence[int] = ()) -> tuple[Message, list[int]]:
        """Send a request and return its answer.

        Raises:
            LauncherGone: it went away first.
        """
        await self._ready.wait()
        if self._launcher is None:
            raise LauncherGone
        self._rid += 1
        future: asyncio.Future[tuple[Message, list[int]]]
        future = asyncio.get_running_loop().create_future()
        self._asked[self._rid] = future
        self._launcher.send(request | {"rid": self._rid}, fds)
        return await future

    def _on_answer(self, message: Message, fds: list[int]) -> None:
        future = self._asked.pop(message["rid"], None)
        if message.get("op") == "placed" and fds:
            # Before anything of the channel's can be missed, whoever waits for the answer.
            worker = message["worker"]
            self._channels[worker] = _Channel(self, socket.socket(fileno=fds.pop()), worker)
        if future is None or future.done():
            protocol.close_all(fds)
        else:
            future.set_result((message, fds))

    # -- attempts ---------------------------------------------------------------------------

    async def start(self, spec: Message) -> Supervised:
        """Start an attempt, once: ask only for what ``find`` says never ran.

        Raises:
            Refused: see there.
            LauncherGone: perhaps it was started; look again.
        """
        attempt = self._register((spec["job"], spec["attempt"]))
        try:
            answer, _ = await self._ask({"op": "start", **spec})
            if answer["op"] == "refused":
                raise Refused(answer["why"], answer["error"])
        except BaseException:
            self.forget(attempt)
            raise
        attempt.pid = answer["pid"]
        channel = self._channels.get(answer["worker"])
        if channel is None:
            attempt.take(None)
        else:
            channel.add(attempt)
        return attempt

    def _register(self, key: Key) -> Supervised:
        attempt = Supervised(self, key)
        self._supervised[key] = attempt
        return attempt

    def forget(self, attempt: Supervised) -> None:
        if self._supervised.get(attempt.key) is attempt:
            del self._supervised[attempt.key]
        if attempt.channel:
            attempt.channel.attempts.discard(attempt)

    def forget_channel(self, channel: _Channel) -> None:
        if channel.worker is not None and self._channels.get(channel.worker) is channel:
            del self._channels[channel.worker]

    def on_dismissed(self, job_id: str, attempt: int) -> None:
        """See whether a supervisor that is gone has left what it was to be done with."""
        if (self._paths.run / protocol.folder_name(job_id, attempt)).exists():
            self.on_left(job_id, attempt)

    def on_report(self, message: Message, fds: list[int]) -> None:
        """Take a supervisor's word to whoever waits for this attempt."""
        protocol.close_all(fds)
        attempt = self._supervised.get((message["job"], message["attempt"]))
        if attempt:
            attempt.take(message)

    async def adopt(self, job_id: str, attempt: int) -> Supervised | None:
        """Connect to the supervisor of a live attempt; None when its folder is not locked any more.

        A supervisor listens as soon as it sees that its daemon is gone. One that is stopped does
        not; it is asked again, ever more rarely.
        """
        name = protocol.folder_name(job_id, attempt)
        pause_s = _LOOK_FIRST_S
        while self._is_locked(name):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.setblocking(False)
            try:
                sock.connect(protocol.address(self._run_fd, f"{name}/{protocol.SOCKET}"))
            except OSError:
                sock.close()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LOOK_MOST_S)
                continue
            adopted = self._register((job_id, attempt))
            adopted.pid = protocol.peer_pid(sock)
            _Channel(self, sock).add(adopted)
            return adopted
        return None

    async def tombstone(self, job_id: str, attempt: int) -> bool:
        """Make sure that an attempt never starts; False when it is placed: cancel it there."""
        answer, _ = await self._ask({"op": "tombstone", "job": job_id, "attempt": attempt})
        return bool(answer["done"])

    async def seal(self, order: Message, samples: int | None) -> Message:
        """Seal a package that has no supervisor. As ``Supervised.seal``."""
        answer, _ = await self._ask({"op": "seal", **order}, _one(samples))
        match answer["op"]:
            case "sealed":
                return answer
            case "seal_failed":
                raise SealFailed(answer["errno"], answer["error"])
            case "failed":
                raise SealFailed(errno.EOWNERDEAD, answer["error"])
        raise LauncherGone

    async def stop_seal(self, job_id: str, attempt: int) -> None:
        """Do what ``Supervised.stop_seal`` does for an attempt without a supervisor."""
        await self._ask({"op": "stop_seal", "job": job_id, "attempt": attempt})

    async def sweep(self, job_id: str, attempt: int, identity: Message) -> list[str]:
        """End what an attempt left running; return ``pid command`` of what would not end."""
        request = {"op": "sweep", "job": job_id, "attempt": attempt, **identity}
        answer, _ = await self._ask(request)
        left: list[str] = answer.get("left", [])
        return left

    async def containers(self, pids: list[int]) -> dict[int, str]:
        """Return which of these processes are in containers of jobs, and of which.

        Raises:
            LauncherGone: ask again.
        """
        answer, _ = await self._ask({"op": "containers", "pids": pids})
        jobs: dict[str, str] = answer.get("jobs", {})
        return {int(pid): job for pid, job in jobs.items()}

    def supervised_by(self, pid: int) -> str | None:
        """Return the job whose supervisor this is."""
        return next((each.key[0] for each in self._supervised.values() if each.pid == pid), None)

    @property
    def job_groups(self) -> str | None:
        """The folder in which attempts have cgroups; None where they have none."""
        folder: str | None = self.cgroups["folder"] if self.cgroups else None
        return folder

    async def remove(self, job_id: str, attempt: int) -> bool:
        """Remove the run folder of an attempt that is over and recorded; False: it is locked."""
        answer, _ = await self._ask({"op": "remove", "job": job_id, "attempt": attempt})
        return bool(answer["done"])

    async def remove_package(self, job_id: str, who: Message) -> None:
        """Remove a sealed package in its owner's name; one that is not there is removed.

        Args:
            who: its owner, as ``launch.identity`` says it.

        Raises:
            Refused: see there. Asking again is safe, after any crash.
            LauncherGone: ask again.
        """
        async with self._removing:
            answer, _ = await self._ask({"op": "remove_package", "job": job_id, **who})
        match answer["op"]:
            case "removed":
                if answer["left"]:
                    words = "job=%s: root may remove %s: it belongs to another user than the job"
                    _log.warning(words, job_id, self._paths.results / answer["left"])
                return
            case "refused":
                raise Refused(answer["why"], answer["error"])
        raise LauncherGone

    # -- the files ----------------------------------------------------------------------------

    def find(self, job_id: str, attempt: int, boot_id: str) -> Finding:
        """Say what an attempt is now. The order of the questions is the protocol's."""
        sealed = output.read_sealed(self._paths.package(job_id), attempt)
        if sealed:
            return Finding(Found.SEALED, None, *sealed)
        if boot_id != self._boot_id:
            return Finding(Found.OTHER_BOOT)
        name = protocol.folder_name(job_id, attempt)
        folder = self._paths.run / name
        if (folder / protocol.CANCELED).exists():
            return Finding(Found.TOMBSTONE)
        if self._is_locked(name):
            return Finding(Found.ALIVE)
        try:
            facts: Facts = json.loads((folder / protocol.EXIT).read_bytes())
            return Finding(Found.EXITED, facts=facts)
        except FileNotFoundError:
            pass
        except ValueError:
            return Finding(Found.LOST)
        if (folder / protocol.STARTED).exists():
            return Finding(Found.LOST)
        return Finding(Found.NEVER_RAN)

    def folders(self) -> list[Key]:
        """Return the attempts that have a run folder."""
        found = []
        for name in os.listdir(self._run_fd):
            job_id, dot, attempt = name.rpartition(".")
            if dot and job_id.startswith("job_") and attempt.isdecimal():
                found.append((job_id, int(attempt)))
        return found

    def _is_locked(self, name: str) -> bool:
        path = f"{name}/{protocol.LOCK}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._run_fd)
        except FileNotFoundError:
            return False
        try:
            return protocol.is_locked(fd)
        finally:
            os.close(fd)


async def _readable(fd: int) -> None:
    """Wait until a descriptor has something to read, or its end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
