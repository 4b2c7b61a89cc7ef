"""The writer: one thread, one connection, one transaction for all that waits. It knows no job.

SQLite in WAL mode has one writer at a time, and a commit costs an fsync whatever is in it. So the
thread takes every change that waits, runs them in one transaction and answers them together, with
one wake-up of the event loop. A refused change undoes only itself. Most are refused before they
write anything, and then there is nothing to undo; when one had written (``total_changes`` tells)
the group is rolled back and run again, each change in a savepoint. That keeps savepoints, which
copy every page that is touched, out of the common path. What is large enough to fill a transaction
has one to itself.

What somebody waits for is committed at once, with all that is there. The rest has a pause of
``_PAUSE_S`` since the last commit to wait for company (PostgreSQL's ``commit_delay``): where short
jobs follow each other, three changes share a commit in place of one or two.

FULL, IOERR, NOMEM and any error of COMMIT end the transaction for all (SQLite drops the savepoints
with it): then nothing of the group is stored, and every caller is told so.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from aitbcd.errors import AitbcError, StorageFull, Unavailable

T = TypeVar("T")
Change = Callable[["Transaction", Any], T]
Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]

#: Seconds from one commit to the next, unless somebody waits for it; and the shortest that the
#: event loop can wait.
_PAUSE_S = 0.004
_TICK_S = 0.001
#: What a refused change leaves standing: the statement was undone, the transaction goes on.
_REFUSALS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
)
_WORDS = {
    sqlite3.SQLITE_FULL: "its file system is full",
    sqlite3.SQLITE_IOERR: "its file system failed",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is damaged",
    sqlite3.SQLITE_READONLY: "it cannot be written",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
}


def storage_error(path: Path, error: BaseException) -> AitbcError:
    """Return what to tell every caller of a group that could not be stored."""
    code = getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR
    if isinstance(error, MemoryError):
        code = sqlite3.SQLITE_NOMEM
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(
            f"another program holds a lock on {path}: {error}; nothing was changed",
            hint="end that program, then try again",
        )
    words = _WORDS.get(code & 0xFF, "SQLite refused the transaction")
    return StorageFull(
        f"could not write {path}: {words} ({error}); nothing was changed",
        hint=f"see to the file system of {path.parent} (df -h; df -i), then try again",
        sqlite=getattr(error, "sqlite_errorname", None),
    )


class Transaction:
    """What a change works with: a cursor and the two counters.

    The counters are read when a transaction begins and go back with what is rolled back: numbers
    and events have no gaps, and a second process that writes the file does no harm.
    """

    __slots__ = (
        "_last", "_undone", "connection", "environments", "execute", "executemany", "names",
        "notes", "number", "owners", "pending", "seq",
    )  # fmt: skip

    def __init__(self, connection: sqlite3.Connection, last_numbers: str) -> None:
        self.connection = connection
        cursor = connection.cursor()
        self.execute = cursor.execute
        self.executemany = cursor.executemany
        self._last = last_numbers
        self._undone = 0
        #: The highest numbers in use; a change raises them as it uses more.
        self.number = 0
        self.seq = 0
        #: Jobs in the queue.
        self.pending = 0
        #: What is known to be in the file: ids of environments, names of owners.
        self.environments: dict[tuple[bytes, ...], int] = {}
        self.owners: dict[int, str] = {}
        self.names: dict[tuple[int, int], Any] = {}
        #: What ``finish`` of the writer adds up before the commit.
        self.notes: list[tuple[Any, ...]] = []

    def begin(self) -> None:
        self.notes.clear()
        self.execute("BEGIN IMMEDIATE")
        self.number, self.seq = self.execute(self._last).fetchone()

    def mark(self) -> tuple[int, int, int, int]:
        return self.number, self.seq, self.pending, len(self.notes)

    def reset(self, mark: tuple[int, int, int, int]) -> None:
        self.number, self.seq, self.pending, notes = mark
        del self.notes[notes:]

    def forget(self) -> None:
        """Take nothing for known any more: it may be rolled back, or deleted."""
        self.environments.clear()
        self.owners.clear()
        self.names.clear()

    def roll_back(self) -> None:
        self.forget()
        # A failed COMMIT or a full disk may have ended the transaction already.
        if self.connection.in_transaction:
            # Should it fail, the next BEGIN does, and comes here again.
            with suppress(sqlite3.Error):
                self.execute("ROLLBACK")

    @property
    def written(self) -> int:
        """Rows written so far, without those that a savepoint took back."""
        return self.connection.total_changes - self._undone

    def in_savepoint(self, change: Change[T], argument: Any) -> T:
        """Run a change in a savepoint: an exception leaves nothing of it."""
        mark, written = self.mark(), self.written
        self.execute("SAVEPOINT change")
        try:
            result = change(self, argument)
        except BaseException:
            self.reset(mark)
            self.forget()
            self._undone += self.written - written
            if self.connection.in_transaction:
                self.execute("ROLLBACK TO change")
                self.execute("RELEASE change")
            raise
        self.execute("RELEASE change")
        return result


@dataclass(slots=True)
class _Asked:
    """A change that waits for the thread."""

    future: asyncio.Future[Any]
    change: Change[Any]
    argument: Any
    is_alone: bool


class _WroteBeforeRefusal(Exception):
    """A change without a savepoint wrote something and then failed."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Writer:
    """Runs changes in its own thread; every answer comes after the commit."""

    def __init__(
        self,
        path: Path,
        connect: Callable[[], Transaction],
        finish: Callable[[Transaction], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._path = path
        self._connect = connect
        self._finish = finish
        self._loop = loop
        #: What is to be done; None is the end.
        self._asked: deque[_Asked | None] = deque()
        #: Wakes the thread, which need not be woken twice. It never waits for a time: up to Python
        #: 3.12, ``SimpleQueue.get`` with a timeout can wait for ever (gone with 3.13's rewrite).
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._is_woken = False
        #: Ends the pause, after which what could wait is committed.
        self._timer: asyncio.TimerHandle | None = None
        self._is_committing = False
        #: When the last commit was done (monotonic).
        self._committed_at = 0.0
        self._ended = loop.create_future()
        self._is_closed = False
        #: Jobs that wait and the highest number, as of the last commit.
        self.pending = 0
        self.number = 0

    async def start(self) -> None:
        """Open the connection in the thread; what ``connect`` raises is raised here."""
        ready: asyncio.Future[None] = self._loop.create_future()
        thread = threading.Thread(target=self._run, args=(ready,), name="store", daemon=True)
        thread.start()
        await ready

    def submit(
        self, change: Change[T], argument: Any, *, is_alone: bool = False, can_wait: bool = False
    ) -> asyncio.Future[T]:
        """Queue a change. A caller that goes away does not take it back.

        Args:
            can_wait: nobody waits for it who would mind a few milliseconds.
            change: all or nothing by itself only as far as it refuses before it writes; the rest
                is seen to here. It may run twice, unless it ``is_alone`` in its transaction.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if self._is_closed:
            future.set_exception(Unavailable("the store is closed", hint="start aitbcd again"))
        else:
            self._asked.append(_Asked(future, change, argument, is_alone))
            self._wake(can_wait=can_wait)
        return future

    def _wake(self, *, can_wait: bool) -> None:
        if self._is_woken:
            return
        if can_wait and (left := self._pause_left_s()) > 0:
            if self._timer is None:
                self._timer = self._loop.call_later(max(left, _TICK_S), self._on_pause_over)
            return
        self._is_woken = True
        self._wakes.put(None)

    def _pause_left_s(self) -> float:
        if self._is_committing:
            return _PAUSE_S
        return self._committed_at + _PAUSE_S - time.monotonic()

    def _on_pause_over(self) -> None:
        self._timer = None
        # What somebody waited for may have taken it along.
        if self._asked:
            self._wake(can_wait=True)

    async def close(self) -> None:
        """Finish what is queued, close the connection, end the thread."""
        if not self._is_closed:
            self._is_closed = True
            self._asked.append(None)
            self._wake(can_wait=False)
        await asyncio.shield(self._ended)

    # Below here: the thread.

    def _run(self, ready: asyncio.Future[None]) -> None:
        try:
            transaction = self._connect()
        except BaseException as error:
            self._answer([(ready, None, error)])
            return
        self.pending, self.number = transaction.pending, transaction.number
        self._answer([(ready, None, None)])
        while self._take(transaction):
            pass
        transaction.connection.close()
        self._answer([(self._ended, None, None)])

    def _take(self, transaction: Transaction) -> bool:
        """Wait for changes, commit all that are there; False at the end.

        A function of its own, so that nothing of what was answered is kept while it waits.
        """
        self._wakes.get()
        self._is_committing = True
        try:
            return self._commit_asked(transaction)
        finally:
            self._is_committing = False

    def _commit_asked(self, transaction: Transaction) -> bool:
        group: list[_Asked] = []
        for one in self._take_asked():
            if group and (one is None or one.is_alone or group[-1].is_alone):
                self._answer(self._commit(transaction, group))
                group = []
            if one is None:
                return False
            group.append(one)
        if group:
            self._answer(self._commit(transaction, group))
        return True

    def _take_asked(self) -> list[_Asked | None]:
        # Not after: what comes in between would not wake us. A wake too many finds nothing to do.
        self._is_woken = False
        return [self._asked.popleft() for _ in range(len(self._asked))]

    def _answer(self, outcomes: list[Outcome]) -> None:
        try:
            self._loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:
            # The loop is closed: nobody waits any more, and what was committed stays.
            pass

    def _commit(self, transaction: Transaction, group: list[_Asked]) -> list[Outcome]:
        try:
            try:
                outcomes = self._run_group(transaction, group, in_savepoints=False)
            except _WroteBeforeRefusal as refusal:
                transaction.roll_back()
                if len(group) == 1:
                    return [(group[0].future, None, refusal.error)]
                outcomes = self._run_group(transaction, group, in_savepoints=True)
            self._finish(transaction)
            transaction.execute("COMMIT")
            self._committed_at = time.monotonic()
        except Exception as error:
            # Also what nobody has thought of: the thread must live to answer the next ones.
            transaction.roll_back()
            is_storage = isinstance(error, (sqlite3.Error, MemoryError))
            failure = storage_error(self._path, error) if is_storage else error
            return [(asked.future, None, failure) for asked in group]
        self.pending, self.number = transaction.pending, transaction.number
        return outcomes

    def _run_group(
        self, transaction: Transaction, group: list[_Asked], *, in_savepoints: bool
    ) -> list[Outcome]:
        transaction.pending = self.pending
        transaction.begin()
        outcomes: list[Outcome] = []
        for asked in group:
            mark, written = transaction.mark(), transaction.written
            try:
                if in_savepoints:
                    result = transaction.in_savepoint(asked.change, asked.argument)
                else:
                    result = asked.change(transaction, asked.argument)
            except Exception as error:
                refusal = _as_refusal(error)
                if transaction.written != written:
                    raise _WroteBeforeRefusal(refusal) from None
                transaction.reset(mark)
                outcomes.append((asked.future, None, refusal))
            else:
                outcomes.append((asked.future, result, None))
        return outcomes


def _as_refusal(error: Exception) -> Exception:
    """Return what to tell the caller of one change; what ends the transaction is raised again."""
    if isinstance(error, _REFUSALS):
        return AitbcError(f"the store refused the change: {error}")
    if isinstance(error, (sqlite3.Error, MemoryError)):
        raise error
    return error


def _resolve(outcomes: list[Outcome]) -> None:
    for future, result, error in outcomes:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
