"""Tells who uses a GPU past the queue: calls what is configured (``gpus.foreign_command``).

Once for each process and GPU, when it has been there for a while, also over restarts of the daemon.
While there is such a command, the GPUs are looked at by a slow clock: nobody else may ask for them.
The command has a deadline, and nothing waits for it. It gets what is known of the process as JSON
on its standard input, and the most of it as variables. What the process is called is its user's
word: it is never a part of the command line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from aitbcd import wire
from aitbcd.clock import now_us
from aitbcd.devices import Gpu, GpuState, Inventory, Process
from aitbcd.errors import AitbcError
from aitbcd.gpus.drains import Drains
from aitbcd.gpus.gpus import Gpus
from aitbcd.settings import Gpus as Settings
from aitbcd.units import format_size

_log = logging.getLogger(__name__)

#: Seconds that the command may take.
DEADLINE_S = 30.0
#: Seconds between two looks at the least, where nobody asks.
LOOK_LEAST_S = 30.0
#: Commands that run at the same time.
_AT_ONCE = 4
#: Processes that are kept in mind.
_KNOWN_MAX = 1024
#: Bytes of what the command says that are kept for the log.
_WORDS = 2048
#: What it has of the daemon's environment.
_ENVIRONMENT = ("PATH", "LANG", "HOME", "TZ")


class _Key(NamedTuple):
    uuid: str
    pid: int
    since: int | None

    @property
    def mark(self) -> str:
        return f"{self.pid} {self.since}"


class Telling:
    def __init__(self, gpus: Gpus, settings: Settings, drains: Drains) -> None:
        self._gpus = gpus
        self._settings = settings
        self._drains = drains
        #: When a process was seen first (monotonic; microseconds since the epoch).
        self._seen: dict[_Key, tuple[float, int]] = {}
        self._told: set[_Key] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: When it is looked though nobody asks.
        self._clock: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._is_closed = False
        gpus.listen(self._on_change)
        gpus.on_seen(self._on_gpu)
        self.keep_looking()

    def keep_looking(self) -> None:
        """Look by the clock from now on, if there is a command: the configuration may be new."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if self._settings.foreign_command and not self._is_closed:
            pause_s = max(LOOK_LEAST_S, self._settings.foreign_command_after_s)
            self._clock = asyncio.get_running_loop().call_later(pause_s, self._on_clock)

    def _on_clock(self) -> None:
        # A driver that fails is asked again with pauses of its own.
        if any(gpu.state is not GpuState.LOST for gpu in self._gpus.inventory.gpus):
            self._spawn(self._look)
        self.keep_looking()

    async def _look(self) -> None:
        for gpu in (await self._gpus.look()).gpus:
            self._on_gpu(gpu)

    async def close(self) -> None:
        """End what runs of it."""
        self._is_closed = True
        for timer in (self._timer, self._clock):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- who is there -----------------------------------------------------------------------------

    def _on_change(self, inventory: Inventory) -> None:
        for gpu in inventory.gpus:
            self._on_gpu(gpu)

    def _on_gpu(self, gpu: Gpu) -> None:
        if self._is_closed or not self._settings.foreign_command:
            return
        there = {_key(gpu, one) for one in gpu.processes if one.is_foreign}
        for key in [key for key in self._seen if key.uuid == gpu.uuid and key not in there]:
            del self._seen[key]
        now = time.monotonic(), now_us()
        for key in there - self._seen.keys() - self._told:
            if len(self._seen) < _KNOWN_MAX and not self._drains.was_told(key.uuid, key.mark):
                self._seen[key] = now
        self._set_timer()

    def _set_timer(self) -> None:
        if self._seen and self._timer is None and not self._is_closed:
            due = min(at for at, _ in self._seen.values()) + self._settings.foreign_command_after_s
            delay_s = max(0.0, due - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_due)

    def _on_due(self) -> None:
        self._timer = None
        self._spawn(self._look_and_tell)

    async def _look_and_tell(self) -> None:
        """Tell those who are still there."""
        inventory = await self._gpus.look()
        due = time.monotonic() - self._settings.foreign_command_after_s
        for gpu in inventory.gpus:
            # It is told of changes alone.
            self._on_gpu(gpu)
            for process in gpu.processes:
                at, since = self._seen.get(_key(gpu, process), (None, 0))
                if at is not None and at <= due:
                    self._tell(gpu, process, since)
        self._set_timer()

    # -- telling ----------------------------------------------------------------------------------

    def _tell(self, gpu: Gpu, process: Process, seen_at: int) -> None:
        key = _key(gpu, process)
        del self._seen[key]
        if len(self._told) >= _KNOWN_MAX:
            self._told.clear()
        self._told.add(key)
        try:
            # First: two daemons, one after the other, tell nobody twice.
            self._drains.note_told(gpu.uuid, key.mark)
        except AitbcError as problem:
            _log.warning("gpu=%s %s", gpu.uuid, problem.detail)
        facts = _facts(gpu, process, seen_at)
        self._spawn(lambda: self._call(self._settings.foreign_command, facts))

    async def _call(self, command: Iterable[str], facts: dict[str, Any]) -> None:
        about = f"gpus.foreign_command for process {facts['process']['pid']}"
        async with self._turns:
            try:
                failure = await _run(tuple(command), facts)
            except OSError as problem:
                failure = f"cannot be started: {problem.strerror}"
        if failure:
            _log.warning("gpu=%s %s %s", facts["gpu"], about, failure)

    def _spawn(self, work: Callable[[], Any]) -> None:
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _run(command: tuple[str, ...], facts: dict[str, Any]) -> str | None:
    """Run it; return what went wrong."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=DEVNULL, stderr=PIPE, env=_environment(facts), cwd="/",
            start_new_session=True,
        )
    )  # fmt: skip
    try:
        running = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Cancelled before its pipes are connected, asyncio would wait for them for ever.
        _kill(await starting)
        raise
    words = bytearray()
    try:
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(_feed(running, facts), _hear(running, words))
            await running.wait()
    except TimeoutError:
        _kill(running)
        return f"did not end within {DEADLINE_S:g} s and was killed"
    except asyncio.CancelledError:
        _kill(running)
        raise
    if not running.returncode:
        return None
    said = " ".join(words.decode(errors="replace").split())
    number = running.returncode
    how = f"was ended by signal {-number}" if number < 0 else f"exited with status {number}"
    return f"{how}: {said}" if said else how


def _kill(running: asyncio.subprocess.Process) -> None:
    """End it with all that is of its process group."""
    try:
        os.killpg(running.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


async def _feed(running: asyncio.subprocess.Process, facts: dict[str, Any]) -> None:
    assert running.stdin is not None
    try:
        running.stdin.write(msgspec.json.encode(facts) + b"\n")
        await running.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        # It does not read it.
        pass
    finally:
        running.stdin.close()


async def _hear(running: asyncio.subprocess.Process, words: bytearray) -> None:
    """Keep the end of what it says, however much that is."""
    assert running.stderr is not None
    while piece := await running.stderr.read(_WORDS):
        words += piece
        del words[:-_WORDS]


def _key(gpu: Gpu, process: Process) -> _Key:
    return _Key(gpu.uuid, process.pid, process.since)


def _facts(gpu: Gpu, process: Process, seen_at: int) -> dict[str, Any]:
    """Return what is known, as JSON has it."""
    held = f"holds {format_size(process.memory)} of" if process.memory else "is on"
    command = f" ({process.command})" if process.command else ""
    host = socket.gethostname()
    return {
        "gpu": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name,
        "host": host,
        "process": {
            "pid": process.pid,
            "user": process.user,
            "command": process.command,
            "memory": process.memory,
            "since": wire.rfc3339(process.since),
        },
        "seen_at": wire.rfc3339(seen_at),
        "jobs": list(gpu.jobs),
        "text": (
            f"Your process {process.pid}{command} {held} GPU {gpu.index} of {host}, seen since"
            f" {wire.rfc3339(seen_at)}. The GPUs of this machine are shared by a queue: please end"
            " it when you can, and submit it instead (aitbcctl submit --gpus 1 ...)."
        ),
    }


def _environment(facts: dict[str, Any]) -> dict[str, str]:
    process = facts["process"]
    told = {
        "AITBC_USER": process["user"],
        "AITBC_PID": process["pid"],
        "AITBC_COMMAND": process["command"],
        "AITBC_MEMORY": process["memory"],
        "AITBC_SINCE": process["since"],
        "AITBC_GPU": facts["index"],
        "AITBC_GPU_UUID": facts["gpu"],
        "AITBC_TEXT": facts["text"],
    }
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return kept | {name: "" if value is None else str(value) for name, value in told.items()}
