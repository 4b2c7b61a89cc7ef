"""The daemon's side of the probe: starts it, asks it, hears of XID errors, ends it."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from aitbcd.gpus.facts import DeviceFacts, Failure, Fault, Message, Report

#: A report of sixteen GPUs with hundreds of processes is far smaller.
_LINE_MAX = 16 << 20
#: It ends at once, unless the driver hangs.
_CLOSE_S = 1.0
#: Found from wherever this daemon was, and behind everything else on the path.
#: Has our own environment come before packages of the distribution's, whose NVML is often older.
OURS_FIRST = """
import sys
others = [at for at, path in enumerate(sys.path) if path.endswith("-packages")]
sys.path.insert(min(others, default=len(sys.path)), sys.argv[1])
"""
_PROGRAM = f"{OURS_FIRST}from aitbcd.gpus.probe import main; main()"
_decode = msgspec.json.Decoder(Message).decode


class ProbeEnded(Exception):
    """It gives no more answers: ``failure`` is what it said of NVML, if it did."""

    def __init__(self, returncode: int, failure: Failure | None, *, is_outdated: bool) -> None:
        super().__init__(returncode, failure)
        self.returncode = returncode
        self.failure = failure
        #: It ended because a newer library is there.
        self.is_outdated = is_outdated


class Child:
    """One probe. ``on_fault`` is called with None for something that is no fault of one GPU."""

    def __init__(self, process: Process, on_fault: Callable[[Fault | None], None]) -> None:
        self._process = process
        self._on_fault = on_fault
        self._answer: asyncio.Future[Message] | None = None
        self._failure: Failure | None = None
        self._is_outdated = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, on_fault: Callable[[Fault | None], None]) -> Child:
        """Start one.

        Raises:
            OSError: there is no room for another process.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-c", _PROGRAM, os.fspath(Path(__file__).parents[2])),
            stdin=PIPE,
            stdout=PIPE,
            limit=_LINE_MAX,
            cwd="/",
            # The terminal's ^C is the daemon's business.
            start_new_session=True,
        )
        return cls(process, on_fault)

    async def ask(self) -> Report:
        """Return what there is now; one question at a time.

        Raises:
            ProbeEnded: there will be no answer.
        """
        report = (await self._exchange("")).report
        assert report is not None
        return report

    async def sample(self, uuids: Iterable[str]) -> tuple[DeviceFacts, ...]:
        """Return some GPUs that were in the last report, as they are now. Raises as ``ask``."""
        return (await self._exchange(" ".join(uuids))).sample or ()

    async def _exchange(self, question: str) -> Message:
        assert self._process.stdin is not None
        if self._reading.done():
            raise await self._ended()
        self._answer = asyncio.get_running_loop().create_future()
        self._process.stdin.write(f"{question}\n".encode())
        either: set[asyncio.Future[Any]] = {self._answer, self._reading}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._answer.done():
            return self._answer.result()
        raise await self._ended()

    async def _ended(self) -> ProbeEnded:
        returncode = await self._process.wait()
        return ProbeEnded(returncode, self._failure, is_outdated=self._is_outdated)

    async def wait(self) -> None:
        """Return when it is gone, which a hung driver can put off for days."""
        await self._process.wait()

    async def close(self) -> None:
        """End it, as far as it lets itself be ended."""
        self.kill()
        self._reading.cancel()
        await asyncio.wait({self._reading, asyncio.ensure_future(self.wait())}, timeout=_CLOSE_S)

    def kill(self) -> None:
        try:
            self._process.kill()
        except ProcessLookupError:
            pass

    async def _read(self) -> None:
        """Take its lines until it ends, or says something that is none of ours."""
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                self._take(_decode(line))
        except (ValueError, msgspec.DecodeError):
            self.kill()

    def _take(self, message: Message) -> None:
        if message.report is not None or message.sample is not None:
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(message)
        elif message.failure is not None:
            self._failure = message.failure
        elif message.is_outdated:
            self._is_outdated = True
        elif message.fault is not None or message.is_disturbed:
            self._on_fault(message.fault)
