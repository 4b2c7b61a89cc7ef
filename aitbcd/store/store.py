"""The store: every job, its attempts, the events. The one door to ``queue.db``.

Changes go to the writer's thread (``writer``, ``changes``) and return after their commit; reads go
to two connections of their own, one for look-ups and one for lists, so that a long list holds up
nobody's status. It decides nothing about jobs: ``lifecycle`` has the table of what may follow
what, and only the engine calls ``move``.

The methods that change something return a future at once: it need not be awaited to happen.
SQLite in WAL mode, https://www.sqlite.org/wal.html.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import aiosqlite

from aitbcd.errors import AmbiguousJob, NoSuchJob
from aitbcd.model import (
    ID_LENGTH,
    Attempt,
    Event,
    Job,
    JobSpec,
    JobState,
    Owner,
)
from aitbcd.store import rows
from aitbcd.store.changes import Batch, Changes, Move, Pieces, typical_key
from aitbcd.store.ids import JobIds, letters_of
from aitbcd.store.migrate import open_database
from aitbcd.store.sql import QUERIES
from aitbcd.store.writer import Transaction, Writer

_MAX_NUMBER = (1 << 63) - 1
_DIGITS = len(str(_MAX_NUMBER))
#: How many jobs a message about an ambiguous prefix names.
_NAMED = 5
#: How many numbers are looked up at once where a short prefix fits many jobs.
_CANDIDATES = 500
_SELECT_JOB = QUERIES["select_job"]
_SELECT_EVENT = QUERIES["select_event"]


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows: all that meet every condition, newest first."""

    #: None: everybody's.
    uid: int | None = None
    #: Empty: any.
    statuses: frozenset[JobState] = frozenset()
    #: created_at at or after this.
    created_from: int | None = None
    #: created_at before this.
    created_before: int | None = None
    #: Only numbers below this: the last one of the page before.
    before: int | None = None
    limit: int = 50


class Store:
    """All that is kept about jobs. Make one with ``open``."""

    def __init__(
        self, writer: Writer, changes: Changes, lookups: aiosqlite.Connection,
        lists: aiosqlite.Connection, ids: JobIds,
    ) -> None:  # fmt: skip
        self._writer = writer
        self._changes = changes
        self._lookups = lookups
        self._lists = lists
        self._ids = ids

    @classmethod
    async def open(cls, path: Path, *, now: int) -> Self:
        """Open the file, create it or bring its schema up to date.

        Raises:
            StartupError: it is damaged, of a newer version, or cannot be written; it is unchanged.
        """
        found: list[JobIds] = []

        def connect() -> Transaction:
            connection = open_database(path, now=now)
            offset = connection.execute(QUERIES["meta"], ("id_offset",)).fetchone()[0]
            found.append(JobIds(offset))
            transaction = Transaction(connection, QUERIES["last_numbers"])
            transaction.number, transaction.seq = connection.execute(
                QUERIES["last_numbers"]
            ).fetchone()
            transaction.pending = connection.execute(QUERIES["count_pending"]).fetchone()[0]
            return transaction

        writer = Writer(path, connect, asyncio.get_running_loop())
        await writer.start()
        ids = found[0]
        return cls(writer, Changes(ids), await _reader(path), await _reader(path), ids)

    async def close(self) -> None:
        """Finish what was asked for and close the file."""
        await self._lookups.close()
        await self._lists.close()
        # Last, because the last connection to go writes the log back and removes it.
        await self._writer.close()

    # Changes

    def submit(self, owner: Owner, spec: JobSpec, *, at: int) -> asyncio.Future[tuple[Job, Event]]:
        """Put a job into the queue."""
        return self._writer.submit(self._changes.submit, (owner, spec, at))

    def submit_many(self, owner: Owner, pieces: Pieces, *, at: int) -> asyncio.Future[Batch]:
        """Put jobs into the queue, all or none.

        Args:
            pieces: called once, in the writer's thread; what it raises is raised here, and then
                nothing is stored.
        """
        work = owner, pieces, at
        return self._writer.submit(self._changes.submit_many, work, is_alone=True)

    def move(self, *moves: Move) -> asyncio.Future[list[Event]]:
        """Change statuses: all moves or none, in their order. The only way a status changes.

        Raises:
            WrongState: a job is not as expected; its field ``state`` says how it is.
            IllegalTransition: the table of ``lifecycle`` has no such move.
            StorageFull: nothing could be written; the same moves may be tried again.
        """
        return self._writer.submit(self._changes.move, moves)

    # Look-ups

    async def job(self, number: int) -> Job | None:
        """Return a job, or None where there is none of this number."""
        found = await self._jobs(self._lookups, "where_number", number=number)
        return found[0] if found else None

    async def resolve(self, ref: str, uid: int | None) -> Job:
        """Return the job that ``ref`` names: an id, its number, a unique prefix, ``@``.

        Args:
            ref: an id or prefix with or without ``job_``; ``@`` is the latest.
            uid: whose jobs there are; None for everybody's.

        Raises:
            NoSuchJob: none; another user's job counts as none.
            AmbiguousJob: several ids begin so; its field ``jobs`` names up to five.
        """
        if ref == "@":
            where = "where_latest" if uid is None else "where_latest_of_owner"
            latest = await self._jobs(self._lookups, where, uid=uid)
            if not latest:
                raise NoSuchJob("there is no latest job: none was submitted yet", ref=ref)
            return latest[0]
        if ref.isascii() and ref.isdecimal() and len(ref) < _DIGITS:
            job = await self.job(int(ref))
            if job is not None and uid in (None, job.owner.uid):
                return job
        return await self._by_id(ref, uid)

    async def _by_id(self, ref: str, uid: int | None) -> Job:
        letters = letters_of(ref)
        found: list[Job] = []
        if letters is not None and len(letters) == ID_LENGTH:
            found = await self._of_these([self._ids.number(letters)], uid, 1)
        elif letters is not None:
            found = await self._by_prefix(letters, uid)
        if not found:
            raise _no_such_job(ref)
        if len(found) > 1:
            raise _ambiguous(ref, [job.job_id for job in found])
        return found[0]

    async def _by_prefix(self, letters: str, uid: int | None) -> list[Job]:
        """Return up to six jobs whose ids begin so, looking from the newest down."""
        numbers = self._ids.matching(letters, self._writer.number)
        found: list[Job] = []
        while len(found) < _NAMED + 1 and (some := list(islice(numbers, _CANDIDATES))):
            found += await self._of_these(some, uid, _NAMED + 1 - len(found))
        return found

    async def _of_these(self, numbers: list[int], uid: int | None, limit: int) -> list[Job]:
        return await self._jobs(
            self._lookups, "where_number_in", numbers=str(numbers), uid=uid, limit=limit
        )

    async def spec(self, number: int) -> JobSpec:
        """Return what was submitted.

        Raises:
            NoSuchJob: there is no such job, or what it was is deleted.
        """
        found = await self.specs([number])
        if not found:
            raise _no_such_job(str(number))
        return found[number]

    async def specs(self, numbers: Iterable[int]) -> dict[int, JobSpec]:
        """Return what was submitted by number; jobs that are not there are left out."""
        found = await _fetch(self._lookups, QUERIES["specs"], numbers=str(list(numbers)))
        return {row[0]: rows.spec(row[1:]) for row in found}

    async def head(self, limit: int) -> list[Job]:
        """Return the next jobs of the queue: by priority, then in the order of their submits."""
        return await self._jobs(self._lookups, "where_queue", limit=limit)

    async def active(self) -> list[Job]:
        """Return every job that is assigned, running or canceling, by number."""
        return await self._jobs(self._lookups, "where_active")

    async def attempts(self, number: int) -> list[Attempt]:
        """Return a job's attempts, the first one first."""
        found = await _fetch(self._lookups, QUERIES["attempts"], number=number)
        return [rows.attempt(row) for row in found]

    async def boot_id_of(self, number: int, attempt: int) -> str:
        """Return the boot in which an attempt was assigned.

        Raises:
            NoSuchJob: there is no such attempt.
        """
        found = await _fetch(self._lookups, QUERIES["boot_id"], number=number, attempt=attempt)
        if not found:
            raise _no_such_job(f"{number}, attempt {attempt}")
        boot_id: str = found[0][0]
        return boot_id

    async def typical_us(self, uid: int, name: str | None, command_digest: bytes) -> int | None:
        """Return how long completed runs of the same name, or the same command, took of late.

        Args:
            command_digest: of ``digest_of_command``; looked at only where there is no name.
        """
        key = typical_key(name, command_digest)
        found = await _fetch(self._lookups, QUERIES["typical"], uid=uid, key=key)
        return found[0][0] if found else None

    async def count_pending(self) -> int:
        """Return how many jobs wait; it is kept, not counted."""
        return self._writer.pending

    # Lists

    async def list_jobs(self, wanted: JobFilter) -> list[Job]:
        """Return one page, newest first; the next one is ``before`` the last number of this."""
        if not wanted.statuses or wanted.statuses == frozenset(JobState):
            return await self._page(wanted, None)
        pages = [await self._page(wanted, status) for status in wanted.statuses]
        merged = sorted((job for page in pages for job in page), key=_by_number, reverse=True)
        return merged[: wanted.limit]

    async def events(
        self,
        *,
        number: int | None = None,
        uid: int | None = None,
        since: int = 0,
        limit: int = 1000,
    ) -> list[Event]:
        """Return events with a higher ``seq`` than ``since``, of one job or one user, in order."""
        if number is not None:
            where = "events_of_job"
        else:
            where = "events_since" if uid is None else "events_of_owner"
        found = await _fetch(
            self._lists,
            f"{_SELECT_EVENT} {QUERIES[where]}",
            number=number,
            uid=uid,
            since=since,
            limit=limit,
        )
        return [rows.event(row, self._ids) for row in found]

    async def event_span(self) -> tuple[int, int]:
        """Return the ``seq`` of the oldest event that is kept and of the newest; 0 for none."""
        oldest, newest = (await _fetch(self._lookups, QUERIES["event_span"]))[0]
        return oldest, newest

    async def _page(self, wanted: JobFilter, status: JobState | None) -> list[Job]:
        statement, values = listing(wanted, status)
        return [rows.job(row, self._ids) for row in await _fetch(self._lists, statement, **values)]

    async def _jobs(self, reader: aiosqlite.Connection, *parts: str, **values: Any) -> list[Job]:
        statement = " ".join([_SELECT_JOB, *(QUERIES[part] for part in parts)])
        return [rows.job(row, self._ids) for row in await _fetch(reader, statement, **values)]


async def _reader(path: Path) -> aiosqlite.Connection:
    reader = await aiosqlite.connect(path, isolation_level=None)
    await reader.execute_fetchall("PRAGMA query_only = ON")
    return reader


async def _fetch(reader: aiosqlite.Connection, statement: str, **values: Any) -> list[rows.Row]:
    return list(await reader.execute_fetchall(statement, values))


def listing(wanted: JobFilter, status: JobState | None) -> tuple[str, dict[str, Any]]:
    """Return the statement for the newest jobs of one status; no index has several in order."""
    conditions = {
        "and_owner": wanted.uid,
        "and_created_from": wanted.created_from,
        "and_created_before": wanted.created_before,
    }
    begin, end = _ends_of(status, wanted.uid)
    middle = [part for part, value in conditions.items() if value is not None]
    values = {
        "uid": wanted.uid,
        "status": status and status.value,
        "created_from": wanted.created_from,
        "created_before": wanted.created_before,
        "before": _MAX_NUMBER if wanted.before is None else wanted.before,
        "limit": wanted.limit,
    }
    return " ".join(QUERIES[part] for part in ["select_job", *begin, *middle, end]), values


def _ends_of(status: JobState | None, uid: int | None) -> tuple[list[str], str]:
    """Return the fragments that begin a list and the one that ends it."""
    if status is not None and status.is_active:
        return ["where_listed_active"], "newest_first_of_few"
    begin = ["where_listed"]
    if status is not None:
        # Of all users together, the final ones are in no order of their numbers.
        begin.append("and_final" if status.is_final and uid is not None else "and_status")
    return begin, "newest_first"


def _by_number(job: Job) -> int:
    return job.number


def _no_such_job(ref: str) -> NoSuchJob:
    return NoSuchJob(
        f"there is no job {ref}", hint="your jobs are listed by: aitbcctl list", ref=ref
    )


def _ambiguous(ref: str, found: list[str]) -> AmbiguousJob:
    named = found[:_NAMED]
    more = " and more" if len(found) > _NAMED else ""
    return AmbiguousJob(
        f"{ref} is the beginning of several jobs: {', '.join(named)}{more}",
        hint="give one letter more",
        ref=ref,
        jobs=named,
    )
