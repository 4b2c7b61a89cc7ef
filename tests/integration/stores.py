"""What the tests of the store share: real files, users, and jobs on their way."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from aitbcd.lifecycle import Trigger
from aitbcd.model import Ending, Event, Job, JobSpec, JobState, Owner, Reason, ResultsState
from aitbcd.store import Move, Store

ANN, BEN = Owner(1001, "ann"), Owner(1002, "ben")
NOW = 1_790_000_000_000_000
SECOND = 1_000_000
BOOT = "4f8e6d3a-0000-4000-8000-000000000001"
TRUE = JobSpec((b"/bin/true",))
DIGEST = "0123456789abcdef" * 4

S, T = JobState, Trigger


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    store = await Store.open(path, now=NOW)
    try:
        yield store
    finally:
        await store.close()


def on_store(test: Callable[[Store], Awaitable[None]]) -> Callable[[Path], None]:
    """Make a test of an ``async`` function that takes a new store."""

    def run(tmp_path: Path) -> None:
        async def scenario() -> None:
            async with opened(tmp_path / "queue.db") as store:
                await test(store)

        asyncio.run(scenario())

    run.__doc__ = test.__doc__
    return run


def ending(reason: Reason | None = None, *, at: int = NOW, **more: Any) -> Ending:
    return Ending(at, reason, **more)


def assign(number: int, attempt: int = 1, *, at: int = NOW) -> Move:
    return Move(number, attempt, S.PENDING, T.ASSIGN, at, boot_id=BOOT)


def run(number: int, attempt: int = 1, *, at: int = NOW) -> Move:
    return Move(number, attempt, S.ASSIGNED, T.RUN, at, handle="4711")


def complete(number: int, attempt: int = 1, *, at: int = NOW) -> Move:
    end = ending(at=at, exit_code=0, results=ResultsState.KEPT, digest=DIGEST, progress=100)
    return Move(number, attempt, S.RUNNING, T.COMPLETE, at, ending=end)


def whole_way(number: int) -> list[Move]:
    return [assign(number), run(number), complete(number)]


#: How a new job gets to each state.
WAYS: dict[JobState, Callable[[int], list[Move]]] = {
    S.PENDING: lambda number: [],
    S.ASSIGNED: lambda number: [assign(number)],
    S.RUNNING: lambda number: [assign(number), run(number)],
    S.CANCELING: lambda number: [
        assign(number),
        run(number),
        Move(number, 1, S.RUNNING, T.CANCEL, NOW),
    ],
    S.COMPLETED: whole_way,
    S.FAILED: lambda number: [
        assign(number),
        run(number),
        Move(number, 1, S.RUNNING, T.FAIL, NOW, ending=ending(Reason.EXIT, exit_code=3)),
    ],
    S.CANCELED: lambda number: [
        Move(number, 0, S.PENDING, T.CANCELED, NOW, ending=ending(Reason.CANCELED))
    ],
}


async def job_in(store: Store, state: JobState, owner: Owner = ANN, spec: JobSpec = TRUE) -> Job:
    """Submit a job and bring it into a state."""
    submitted, _ = await store.submit(owner, spec, at=NOW)
    if moves := WAYS[state](submitted.number):
        await store.move(*moves)
    job = await store.job(submitted.number)
    assert job is not None
    assert job.status is state
    return job


def in_pieces(specs: Sequence[JobSpec], size: int = 100) -> Callable[[], Iterable[list[JobSpec]]]:
    return lambda: (list(specs[at : at + size]) for at in range(0, len(specs), size))


async def heads(store: Store, limit: int) -> list[Job]:
    """Return the first jobs of each lane, by priority, then in the order of their submits."""
    found = await store.fronts(limit)
    jobs = [job for front in found.values() for job in front.jobs]
    return sorted(jobs, key=lambda job: (-job.priority, job.number))


async def every_event(store: Store) -> list[Event]:
    events: list[Event] = []
    while page := await store.events(since=len(events), limit=5000):
        events += page
    return events


async def assert_gapless(store: Store) -> list[Event]:
    events = await every_event(store)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return events


def dump(path: Path) -> list[str]:
    """Return all that the file holds, as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a script that says on stdout what it does."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    repository = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=repository, stdout=pipe, stderr=pipe, text=True)
