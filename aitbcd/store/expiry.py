"""What a transaction does when results go: expire them, keep them longer, delete a job.

The packages themselves are not touched: each that is to go is noted in ``removals``, in the same
transaction, until somebody says that it is gone. A crash at any point leaves a note too many, and
never a package that nobody knows of.
"""

from __future__ import annotations

from typing import NamedTuple

from aitbcd.errors import NoSuchJob, WrongState
from aitbcd.model import JobState
from aitbcd.store import totals
from aitbcd.store.ids import JobIds
from aitbcd.store.sql import QUERIES
from aitbcd.store.writer import Transaction


class Held(NamedTuple):
    """A job that is there, as far as it matters here."""

    status: str
    uid: int
    results: str | None
    expires_at: int | None
    result_bytes: int
    name: str | None
    created_at: int


class Expiry:
    """The changes; ids are those of the store."""

    def __init__(self, ids: JobIds) -> None:
        self._ids = ids

    def expire(self, transaction: Transaction, work: tuple[tuple[int, ...], int]) -> list[int]:
        """Let results go whose time has come; returns the numbers of those jobs."""
        numbers, at = work
        return [number for number in numbers if _expire(transaction, number, at)]

    def keep(self, transaction: Transaction, work: tuple[int, int]) -> None:
        """Change when a job's results go."""
        number, expires_at = work
        held = self._held(transaction, number)
        if held.results != "kept":
            lost = {None: "has no results yet", "none": "never had results"}
            raise WrongState(
                f"job {self._ids.of(number)} is {held.status} and"
                f" {lost.get(held.results, 'lost its results: they expired')}",
                hint="only results that are there can be kept longer",
                state=held.status,
                job=number,
            )
        transaction.execute(QUERIES["keep_job"], (expires_at, number))

    def delete(self, transaction: Transaction, work: tuple[int, int, int | None]) -> int:
        """Delete a job; returns how many bytes of results go with it."""
        number, at, uid = work
        held = self._held(transaction, number, uid)
        if not JobState(held.status).is_final:
            job_id = self._ids.of(number)
            raise WrongState(
                f"job {job_id} is {held.status} and cannot be deleted",
                hint=f"cancel it first: aitbcctl cancel {job_id}",
                state=held.status,
                job=number,
            )
        for change in ("forget_attempts", "forget_events"):
            transaction.execute(QUERIES[change], (number,))
        transaction.execute(QUERIES["delete_job"], (at, number))
        if held.name is not None:
            totals.forget(transaction, held.uid, held.name, held.created_at)
        _change_spec(transaction, "delete_spec", number)
        transaction.execute(QUERIES["revoke_shares"], (at, number))
        return _let_go(transaction, number, held) if held.results == "kept" else 0

    def _held(self, transaction: Transaction, number: int, uid: int | None = None) -> Held:
        held = find(transaction, number)
        if held is None or uid not in (None, held.uid):
            raise NoSuchJob(
                f"there is no job {self._ids.of(number)}",
                hint="your jobs are listed by: aitbcctl list",
                job=number,
            )
        return held


def removed(transaction: Transaction, number: int) -> None:
    """Note that a package is gone."""
    transaction.execute(QUERIES["drop_removal"], (number,))


def find(transaction: Transaction, number: int) -> Held | None:
    """Return a job that is there."""
    row = transaction.execute(QUERIES["job_held"], (number,)).fetchone()
    return Held(*row) if row else None


def _expire(transaction: Transaction, number: int, at: int) -> bool:
    held = find(transaction, number)
    # It may have been deleted, or put off, since it was found.
    if held is None or held.results != "kept" or held.expires_at is None or held.expires_at > at:
        return False
    transaction.execute(QUERIES["expire_job"], (number,))
    _let_go(transaction, number, held)
    _change_spec(transaction, "strip_spec", number)
    transaction.execute(QUERIES["forget_snapshots"], (number,))
    transaction.execute(QUERIES["revoke_shares"], (at, number))
    return True


def _let_go(transaction: Transaction, number: int, held: Held) -> int:
    transaction.execute(QUERIES["insert_removal"], (number,))
    transaction.execute(QUERIES["add_usage"], (-held.result_bytes, held.uid))
    return held.result_bytes


def _change_spec(transaction: Transaction, change: str, number: int) -> None:
    """Take its environment from a job, and drop it where no other one has it."""
    row = transaction.execute(QUERIES["environment_of"], (number,)).fetchone()
    transaction.execute(QUERIES[change], (number,))
    if row is not None and row[0] is not None:
        transaction.execute(QUERIES["drop_environment"], row)
        # The next job that has it stores it again.
        transaction.environments.clear()
