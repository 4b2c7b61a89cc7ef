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
import shlex
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace

from aitbcd.errors import AmbiguousJob, InvalidValue, NoSuchJob, WrongState
from aitbcd.model import (
    ID_LENGTH,
    Attempt,
    Event,
    Front,
    Job,
    JobSpec,
    Key,
    Lane,
    Owner,
    Share,
)
from aitbcd.store import expiring, listing, queue, rows, stats, totals
from aitbcd.store.access import Access, NewKey, NewShare
from aitbcd.store.changes import Batch, Changes, Move, Note, Pieces, Submission, typical_key
from aitbcd.store.cursors import MAX_NUMBER
from aitbcd.store.expiry import Expiry, removed
from aitbcd.store.ids import JobIds, letters_of
from aitbcd.store.listing import JobFilter, JobPage
from aitbcd.store.migrate import open_database
from aitbcd.store.queue import QueuePage
from aitbcd.store.reader import Reader
from aitbcd.store.sql import QUERIES
from aitbcd.store.stats import Stats, Wanted
from aitbcd.store.writer import Transaction, Writer

_DIGITS = len(str(MAX_NUMBER))
#: How many jobs a history is read at once.
_PIECE = 500
#: How many jobs a message about an ambiguous prefix names.
_NAMED = 5
#: How many numbers are looked up at once where a short prefix fits many jobs.
_CANDIDATES = 500
_SELECT_JOB = QUERIES["select_job"]
_SELECT_EVENT = QUERIES["select_event"]


class SharePage(Struct, frozen=True):
    """Shares, and what ``after`` is for those that follow; None at the end."""

    shares: list[Share]
    next: str | None


class Store:
    """All that is kept about jobs. Make one with ``open``."""

    def __init__(
        self, writer: Writer, changes: Changes, lookups: Reader,
        lists: Reader, ids: JobIds,
    ) -> None:  # fmt: skip
        self._writer = writer
        self._changes = changes
        self._lookups = lookups
        self._lists = lists
        self.ids = ids
        self._access = Access(ids)
        self._expiry = Expiry(ids)

    @classmethod
    async def open(cls, path: Path, *, now: int) -> Self:
        """Open the file, create it or bring its schema up to date.

        Raises:
            StartupError: it is damaged, of a newer version, or cannot be written; it is unchanged.
        """
        found: list[JobIds] = []

        def connect() -> Transaction:
            connection = open_database(path, now=now)
            offset = connection.execute(QUERIES["meta"], {"key": "id_offset"}).fetchone()[0]
            found.append(JobIds(offset))
            transaction = Transaction(connection, QUERIES["last_numbers"])
            transaction.number, transaction.seq = connection.execute(
                QUERIES["last_numbers"]
            ).fetchone()
            transaction.pending = connection.execute(QUERIES["count_pending"]).fetchone()[0]
            connection.execute("BEGIN IMMEDIATE")
            totals.catch_up(transaction)
            connection.execute("COMMIT")
            return transaction

        writer = Writer(path, connect, totals.flush, asyncio.get_running_loop())
        await writer.start()
        ids = found[0]
        return cls(writer, Changes(ids), await Reader.open(path), await Reader.open(path), ids)

    @property
    def last_number(self) -> int:
        """The highest number that a job has had."""
        return self._writer.number

    async def close(self) -> None:
        """Finish what was asked for and close the file."""
        await self._lookups.close()
        await self._lists.close()
        # Last, because the last connection to go writes the log back and removes it.
        await self._writer.close()

    # Changes

    def submit(
        self,
        owner: Owner,
        spec: JobSpec,
        *,
        at: int,
        plan: str | None = None,
        retry_of: int | None = None,
        pending_max: int | None = None,
    ) -> asyncio.Future[tuple[Job, Event]]:
        """Put a job into the queue.

        Args:
            plan: of the API key that it was submitted with.
            retry_of: the number of the job that is tried again.
            pending_max: how many jobs of this user may wait.

        Raises:
            OverLimit: more would wait.
        """
        submission = Submission(owner, at, plan, retry_of, pending_max)
        return self._writer.submit(self._changes.submit, (submission, spec))

    def submit_many(
        self,
        owner: Owner,
        pieces: Pieces,
        *,
        at: int,
        plan: str | None = None,
        pending_max: int | None = None,
    ) -> asyncio.Future[Batch]:
        """Put jobs into the queue, all or none.

        Args:
            pieces: called once, in the writer's thread; what it raises is raised here, and then
                nothing is stored.
            pending_max: how many jobs of this user may wait.
        """
        work = Submission(owner, at, plan, pending_max=pending_max), pieces
        return self._writer.submit(self._changes.submit_many, work, is_alone=True)

    def move(self, *moves: Move, can_wait: bool = False) -> asyncio.Future[list[Event]]:
        """Change statuses: all moves or none, in their order. The only way a status changes.

        Args:
            can_wait: as for ``Writer.submit``.

        Raises:
            WrongState: a job is not as expected; its field ``state`` says how it is.
            IllegalTransition: the table of ``lifecycle`` has no such move.
            StorageFull: nothing could be written; the same moves may be tried again.
        """
        return self._writer.submit(self._changes.move, moves, can_wait=can_wait)

    def note(self, note: Note) -> asyncio.Future[list[Event]]:
        """Add to a job's events what changes no status; returns it, or nothing.

        Nothing is added to a job that is over, to another attempt than it is at, or where there are
        many of the kind.
        """
        return self._writer.submit(self._changes.note, note)

    # Results that go

    def keep(self, number: int, expires_at: int) -> asyncio.Future[None]:
        """Change when a job's results go.

        Raises:
            NoSuchJob: there is none.
            WrongState: it has none; its field ``state`` says how the job is.
        """
        return self._writer.submit(self._expiry.keep, (number, expires_at))

    def expire(self, numbers: Iterable[int], at: int) -> asyncio.Future[list[int]]:
        """Let results go that expired until then, and note their packages as to be removed.

        Returns:
            the numbers of those jobs; one whose results were kept longer is not among them.
        """
        return self._writer.submit(self._expiry.expire, (tuple(numbers), at))

    def delete(self, number: int, at: int, uid: int | None) -> asyncio.Future[int]:
        """Delete a job and note its package as to be removed; its figures stay.

        Args:
            uid: whose job it has to be; None for anybody's.

        Returns:
            how many bytes of results go with it.

        Raises:
            NoSuchJob: there is none, or it is another user's.
            WrongState: it is not over; its field ``state`` says how it is.
        """
        return self._writer.submit(self._expiry.delete, (number, at, uid))

    def removed(self, number: int) -> asyncio.Future[None]:
        """Note that a package is gone."""
        return self._writer.submit(removed, number)

    def skip_to(self, number: int) -> asyncio.Future[None]:
        """Give no job a number up to this one any more."""
        return self.set_meta("number_floor", str(number))

    def set_meta(self, key: str, value: str | None) -> asyncio.Future[None]:
        """Keep a word about the store itself; None keeps it no longer."""
        return self._writer.submit(_set_meta, (key, value))

    # Keys and shares

    def add_key(
        self,
        owner: Owner,
        name: str,
        digest: bytes,
        *,
        plan: str | None = None,
        is_read_only: bool = False,
        expires_at: int | None = None,
        at: int,
    ) -> asyncio.Future[Key]:
        """Store an API key by the sha256 of its secret.

        Raises:
            WrongState: this user has one of this name.
        """
        new = NewKey(owner, name, digest, plan, is_read_only, expires_at, at)
        return self._writer.submit(self._access.add_key, new)

    def revoke_key(self, key_id: str, uid: int | None, at: int) -> asyncio.Future[Key | None]:
        """Revoke a key; None where this user (None: anybody) has none of this id."""
        return self._writer.submit(self._access.revoke_key, (key_id, uid, at))

    def used_key(self, key_id: str, at: int) -> asyncio.Future[None]:
        """Note that a key was used."""
        return self._writer.submit(self._access.used_key, (key_id, at))

    def add_share(
        self,
        number: int,
        owner: Owner,
        *,
        digest: bytes | None = None,
        user: str | None = None,
        expires_at: int,
        at: int,
    ) -> asyncio.Future[Share]:
        """Share a job's results by a link (``digest`` of its secret) or with a user.

        It ends with the results at the latest: see its ``expires_at``.

        Raises:
            NoSuchJob: there is none.
            WrongState: it has no results; its field ``state`` says how the job is.
        """
        new = NewShare(number, owner, digest, user, expires_at, at)
        return self._writer.submit(self._access.add_share, new)

    def revoke_shares(self, number: int, at: int) -> asyncio.Future[int]:
        """Revoke all shares of a job; returns how many there were."""
        return self._writer.submit(self._access.revoke_shares, (number, at))

    def used_share(self, share_id: str, at: int) -> asyncio.Future[None]:
        """Count one more use."""
        return self._writer.submit(self._access.used_share, (share_id, at))

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
            if int(ref) <= self.last_number:
                # Whoever asks for a deleted job, say, must not get one whose id begins so.
                raise _no_such_job(ref)
        return await self._by_id(ref, uid)

    async def _by_id(self, ref: str, uid: int | None) -> Job:
        letters = letters_of(ref)
        found: list[Job] = []
        if letters is not None and len(letters) == ID_LENGTH:
            found = await self._of_these([self.ids.number(letters)], uid, 1)
        elif letters is not None:
            found = await self._by_prefix(letters, uid)
        if not found:
            raise _no_such_job(ref)
        if len(found) > 1:
            raise _ambiguous(ref, [job.job_id for job in found])
        return found[0]

    async def _by_prefix(self, letters: str, uid: int | None) -> list[Job]:
        """Return up to six jobs whose ids begin so, looking from the newest down."""
        numbers = self.ids.matching(letters, self._writer.number)
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

    async def spec_to_repeat(self, number: int) -> JobSpec:
        """Return what was submitted, whole: to be submitted once more.

        Raises:
            NoSuchJob: there is no such job.
            WrongState: it had an environment, which left the store with its results.
        """
        spec = await self.spec(number)
        if (await self._lookups.fetch(QUERIES["is_stripped"], number=number))[0][0]:
            raise WrongState(
                f"the results of job {self.ids.of(number)} expired, and its environment with them",
                hint="submit it again from a shell that has the environment it needs",
                job=number,
            )
        return spec

    async def specs(self, numbers: Iterable[int]) -> dict[int, JobSpec]:
        """Return what was submitted by number; jobs that are not there are left out."""
        found = await self._lookups.fetch(QUERIES["specs"], numbers=str(list(numbers)))
        return {row[0]: rows.spec(row[1:]) for row in found}

    async def command_lines(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return by number what jobs run, as a line for people; cut where it is long."""
        found = await self._lists.fetch(QUERIES["commands"], numbers=str(list(numbers)))
        return {row[0]: rows.command_line(*row[1:]) for row in found}

    async def fronts(
        self,
        limit: int,
        *,
        wishes: int = 1,
        begin: Mapping[Lane, str] | None = None,
        without: Collection[int] = (),
        but: Collection[Lane] = (),
    ) -> dict[Lane, Front]:
        """Return the next jobs of each lane of the queue, in the order of their submits.

        However many jobs a user has waiting, the other users' are found, and of each lane those
        that wish for other GPUs.

        Args:
            limit: of each lane and wish.
            wishes: of each lane.
            begin: behind which of a lane's wishes; before all where nothing is said.
            without: uids whose jobs are passed over.
            but: lanes that are passed over.
        """
        return await self._lookups.run(
            queue.fronts, limit, wishes, begin or {}, set(without), set(but), self.ids
        )

    async def active(self) -> list[Job]:
        """Return every job that is assigned, running or canceling, by number."""
        return await self._jobs(self._lookups, "where_active")

    async def attempts(self, number: int) -> list[Attempt]:
        """Return a job's attempts, the first one first."""
        found = await self._lookups.fetch(QUERIES["attempts"], number=number)
        return [rows.attempt(row) for row in found]

    async def placement(self, number: int, attempt: int) -> tuple[str, tuple[str, ...], int]:
        """Return an attempt's boot, the models of its GPUs, and the millionths of them that it has.

        Raises:
            NoSuchJob: there is no such attempt.
        """
        found = await self._lookups.fetch(QUERIES["placement"], number=number, attempt=attempt)
        if not found:
            raise _no_such_job(f"{number}, attempt {attempt}")
        boot_id, models, share = found[0]
        return boot_id, tuple(models.splitlines()), share

    async def typical_us(self, uid: int, name: str | None, command_digest: bytes) -> int | None:
        """Return how long completed runs of the same name, or the same command, took of late.

        Args:
            command_digest: of ``digest_of_command``; looked at only where there is no name.
        """
        key = typical_key(name, command_digest)
        found = await self._lookups.fetch(QUERIES["typical"], uid=uid, key=key)
        return found[0][0] if found else None

    async def count_pending(self) -> int:
        """Return how many jobs wait; it is kept, not counted."""
        return self._writer.pending

    async def count_pending_for_gpus(self) -> int:
        """Return how many jobs wait for GPUs; counted, by an index of what waits."""
        rows = await self._lookups.fetch(QUERIES["count_pending_for_gpus"])
        return int(rows[0][0])

    async def keys(self) -> dict[bytes, Key]:
        """Return all API keys that are not revoked, by the digests of their secrets."""
        found = await self._lookups.fetch(QUERIES["keys"])
        return {row[-1]: rows.key(row, self.ids) for row in found}

    async def share_by_digest(self, digest: bytes) -> Share | None:
        """Return what a link's secret is for, also one that is over or revoked."""
        found = await self._shares(self._lookups, "share_by_digest", digest=digest)
        return found[0] if found else None

    async def share_with(self, user: str, number: int, now: int) -> Share | None:
        """Return by what a user may read a job's results that are not his."""
        found = await self._shares(
            self._lookups, "share_of_reader", user=user, number=number, now=now
        )
        return found[0] if found else None

    async def count_shares(self, number: int, now: int) -> int:
        """Return how many shares of a job count now."""
        counted: int = (await self._lookups.fetch(QUERIES["count_shares"], number=number, now=now))[
            0
        ][0]
        return counted

    async def next_expiry(self) -> tuple[int, int] | None:
        """Return (number, expires_at) of the results that go next."""
        return await self._lookups.run(expiring.next_one)

    async def expired(self, now: int, limit: int) -> list[Job]:
        """Return jobs whose results go until now, the oldest first."""
        return (await self._lookups.run(expiring.page, None, now, None, limit, self.ids)).jobs

    async def removals(
        self, after: int = 0, limit: int = 1000, *, without: Collection[int] = ()
    ) -> list[tuple[int, str, int]]:
        """Return (number, job_id, uid) of packages that are to be removed, by number.

        Args:
            without: leave out those of these users.
        """
        found = await self._lookups.fetch(
            QUERIES["removals"], after=after, limit=limit, without=str(list(without))
        )
        return [(number, self.ids.of(number), uid) for number, uid in found]

    async def usage(self, uid: int) -> int:
        """Return how many bytes of a user's results are kept; it is kept, not counted."""
        found = await self._lookups.fetch(QUERIES["usage"], uid=uid)
        return found[0][0] if found else 0

    async def newest_event_at(self) -> int | None:
        """Return when the last change of a status was."""
        found = await self._lookups.fetch(QUERIES["newest_event"])
        return found[0][0] if found else None

    async def meta(self, key: str) -> str | None:
        """Return a word that ``set_meta`` keeps."""
        found = await self._lookups.fetch(QUERIES["meta"], key=key)
        return found[0][0] if found else None

    # Lists

    async def list_jobs(self, wanted: JobFilter) -> JobPage:
        """Return one page of the jobs that fit, in the order that is asked for.

        Raises:
            InvalidValue: no list gave such a cursor.
        """
        return await self._lists.run(listing.page, wanted, self.ids)

    async def history(self, wanted: JobFilter) -> AsyncGenerator[list[Job]]:
        """Yield all jobs that fit, piece by piece; those that are added meanwhile may be there."""
        page = await self.list_jobs(replace(wanted, limit=_PIECE))
        while page.jobs:
            yield page.jobs
            if page.next is None:
                return
            page = await self.list_jobs(replace(wanted, limit=_PIECE, after=page.next))

    async def queue(
        self, after: str | None = None, limit: int = 50, *, needs_gpus: bool = False
    ) -> QueuePage:
        """Return a page of everybody's queue: what may run, then what waits in its order.

        With ``needs_gpus`` only jobs that have or want GPUs. A job that starts while the pages are
        read moves from the second part to the first: it is never there twice, and may be in none.

        Raises:
            InvalidValue: no page gave such a cursor.
        """
        return await self._lists.run(queue.page, after, limit, self.ids, needs_gpus)

    async def stats(self, wanted: Wanted) -> Stats:
        """Return figures of many jobs from the totals that are kept, deleted jobs included."""
        return await self._lists.run(stats.read, wanted)

    async def expiring(
        self, uid: int | None, until: int, *, after: str | None = None, limit: int = 50
    ) -> JobPage:
        """Return a page of the jobs whose results go until then, the next one first.

        Raises:
            InvalidValue: no page gave such a cursor.
        """
        return await self._lists.run(expiring.page, uid, until, after, limit, self.ids)

    async def shares(
        self,
        uid: int | None,
        *,
        number: int | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> SharePage:
        """Return a page of what somebody shares, or of one job's shares, the newest first.

        Those that are revoked are left out, those that are over are not.
        """
        before = MAX_NUMBER
        if after is not None and not (before := self.ids.number_of(after, "share_")):
            raise InvalidValue(f"after is '{after[:80]}', which is no share", field="after")
        where = "shares_of_owner" if uid is not None else "shares"
        found = await self._shares(
            self._lists,
            "shares_of_job" if number is not None else where,
            uid=uid,
            number=number,
            after=before,
            limit=limit + 1,
        )
        page = found[:limit]
        return SharePage(page, page[-1].id if len(found) > limit and page else None)

    async def events(
        self,
        *,
        number: int | None = None,
        uid: int | None = None,
        since: int = 0,
        until: int = MAX_NUMBER,
        limit: int = 1000,
    ) -> list[Event]:
        """Return events with a higher ``seq`` than ``since``, of one job or one user, in order.

        Args:
            until: the last ``seq`` to look at. To find the few of one user all between are read.
        """
        if number is not None:
            where = "events_of_job"
        else:
            where = "events_since" if uid is None else "events_of_owner"
        found = await self._lists.fetch(
            f"{_SELECT_EVENT} {QUERIES[where]}",
            number=number,
            uid=uid,
            since=since,
            until=until,
            limit=limit,
        )
        return [rows.event(row, self.ids) for row in found]

    async def event_span(self) -> tuple[int, int]:
        """Return the ``seq`` of the oldest event that is kept and of the newest; 0 for none."""
        oldest, newest = (await self._lookups.fetch(QUERIES["event_span"]))[0]
        return oldest, newest

    async def _jobs(self, reader: Reader, *parts: str, **values: Any) -> list[Job]:
        statement = " ".join([_SELECT_JOB, *(QUERIES[part] for part in parts)])
        return [rows.job(row, self.ids) for row in await reader.fetch(statement, **values)]

    async def _shares(self, reader: Reader, where: str, **values: Any) -> list[Share]:
        statement = f"{QUERIES['select_share']} {QUERIES[where]}"
        return [rows.share(row, self.ids) for row in await reader.fetch(statement, **values)]


def _set_meta(transaction: Transaction, work: tuple[str, str | None]) -> None:
    key, value = work
    if value is None:
        transaction.execute(QUERIES["drop_meta"], (key,))
    else:
        transaction.execute(QUERIES["set_meta"], (key, value))


def _no_such_job(ref: str) -> NoSuchJob:
    hint = "your jobs are listed by: aitbcctl list"
    if not (ref.isdigit() or ref.startswith(("@", "job_"))):
        hint += f" (by name: --name {shlex.quote(ref)})"
    return NoSuchJob(f"there is no job {ref}", hint=hint, ref=ref)


def _ambiguous(ref: str, found: list[str]) -> AmbiguousJob:
    named = found[:_NAMED]
    more = " and more" if len(found) > _NAMED else ""
    return AmbiguousJob(
        f"{ref} is the beginning of several jobs: {', '.join(named)}{more}",
        hint="give one letter more",
        ref=ref,
        jobs=named,
    )
