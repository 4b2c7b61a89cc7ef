"""Lists of jobs in any order, page by page: which rows, in which order, from where on.

A list is merged from streams, one for each owner and status: an index has each of them in the
order that is asked for, so a page costs what its rows cost, however many jobs there are. The key
of a job in a list is the value that it is sorted by (None comes before all) and its number.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Any

from aitbcd.model import ACTIVE, FINAL, Job, JobState
from aitbcd.store import cursors, rows
from aitbcd.store.cursors import Key
from aitbcd.store.ids import JobIds
from aitbcd.store.sql import QUERIES


class Sort(str, Enum):
    """What a list is in order of."""

    CREATED = "created"
    #: Jobs that are not over come after all others, or before them where it ascends.
    FINISHED = "finished"
    #: How long the attempt that ended it ran; jobs that did not count as the shortest.
    DURATION = "duration"
    #: Jobs without one come first where it ascends.
    NAME = "name"


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows, and in which order: all that meet every condition."""

    #: None: everybody's.
    uid: int | None = None
    #: The name of their owner, in addition.
    user: str | None = None
    #: Empty: any.
    statuses: frozenset[JobState] = frozenset()
    #: The job's name; ``*`` stands for any characters and ``?`` for one.
    name: str | None = None
    #: created_at at or after this.
    created_from: int | None = None
    #: created_at before this.
    created_before: int | None = None
    sort: Sort = Sort.CREATED
    is_ascending: bool = False
    #: The ``next`` of the page before.
    after: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs in order, and what ``after`` is for those that follow; None at the end."""

    jobs: list[Job]
    next: str | None


def page(connection: sqlite3.Connection, wanted: JobFilter, ids: JobIds) -> JobPage:
    """Return one page, as of now."""
    # One more than asked for tells whether there is a next page.
    order = wanted.sort.value[0] + ("a" if wanted.is_ascending else "d")
    after = (
        None if wanted.after is None else cursors.read(order, wanted.after, *_KINDS[wanted.sort])
    )
    keys = _keys(connection, wanted, after, wanted.limit + 1)
    shown = keys[: wanted.limit]
    return JobPage(
        jobs_by_number(connection, (number for _, number in shown), ids),
        cursors.write(order, shown[-1]) if shown and len(keys) > wanted.limit else None,
    )


def jobs_by_number(
    connection: sqlite3.Connection, numbers: Iterable[int], ids: JobIds
) -> list[Job]:
    """Return the jobs of these numbers, in their order; those that are not there are left out."""
    wanted = list(numbers)
    statement = f"{QUERIES['select_job']} {QUERIES['where_one_of']}"
    found = connection.execute(statement, {"numbers": str(wanted)})
    jobs = {row[0]: rows.job(row, ids) for row in found}
    return [jobs[number] for number in wanted if number in jobs]


def _keys(
    connection: sqlite3.Connection, wanted: JobFilter, after: Key | None, limit: int
) -> list[Key]:
    """Return the keys of a page: the first of all streams together."""
    found: list[Key] = []
    for source, status, uid in _streams(connection, wanted):
        found += _stream(connection, wanted, after, limit, (source, status, uid))
    found.sort(key=_place, reverse=not wanted.is_ascending)
    return found[:limit]


def _place(key: Key) -> tuple[bool, Any, int]:
    return key[0] is not None, key[0] or 0, key[1]


def _streams(
    connection: sqlite3.Connection, wanted: JobFilter
) -> Iterator[tuple[str, JobState | None, int]]:
    """Yield (source, status, uid) of all streams that a list is merged from."""
    statuses = wanted.statuses or frozenset(JobState)
    for uid in _owners(connection, wanted):
        if JobState.PENDING in statuses:
            yield "waiting", None, uid
        for status in statuses & ACTIVE:
            yield "active", status, uid
        for status in statuses & FINAL:
            yield "final", status, uid


def uids(connection: sqlite3.Connection) -> list[int]:
    """Return everyone who submitted a job."""
    return [uid for (uid,) in connection.execute(QUERIES["uids"])]


def _owners(connection: sqlite3.Connection, wanted: JobFilter) -> list[int]:
    """Return whose jobs a list shows."""
    if wanted.user is not None:
        named = [uid for (uid,) in connection.execute(QUERIES["uids_of_user"], (wanted.user,))]
        return [uid for uid in named if wanted.uid in (None, uid)]
    if wanted.uid is not None:
        return [wanted.uid]
    return uids(connection)


def _stream(
    connection: sqlite3.Connection,
    wanted: JobFilter,
    after: Key | None,
    limit: int,
    stream: tuple[str, JobState | None, int],
) -> list[Key]:
    """Return the first keys of a stream, one range of its index after the other."""
    source, status, uid = stream
    found: list[Key] = []
    for begin in ranges(after, is_ascending=wanted.is_ascending):
        if len(found) < limit:
            statement = listing(wanted, source, begin)
            values = _values(wanted, after) | {
                "uid": uid,
                "status": status and status.value,
                "listed_as": status and rows.LISTED_AS.get(status),
                "limit": limit - len(found),
            }
            found += connection.execute(statement, values).fetchall()
    return found


def ranges(after: Key | None, *, is_ascending: bool) -> list[str]:
    """Return the fragments of what lies behind a key: what has its value, then what is beyond."""
    if after is None:
        return [""]
    if is_ascending:
        return ["and_none_up", "and_any"] if after[0] is None else ["and_same_up", "and_up"]
    return ["and_none_down"] if after[0] is None else ["and_same_down", "and_down", "and_none"]


def listing(wanted: JobFilter, source: str, begin: str) -> str:
    """Return the statement for the first keys of a stream behind where it begins."""
    name = wanted.name
    conditions = {
        begin: bool(begin),
        "and_name": name is not None and not is_pattern(name),
        "and_name_like": name is not None and is_pattern(name),
        "and_created_from": wanted.created_from is not None,
        "and_created_before": wanted.created_before is not None,
    }
    parts = [f"keys_of_{source}", *(part for part, is_there in conditions.items() if is_there)]
    parts.append("upwards" if wanted.is_ascending else "downwards")
    text = " ".join(QUERIES[part] for part in parts)
    return text.replace("$value", _VALUE[wanted.sort]).replace("$index", _INDEX[wanted.sort])


_VALUE = {
    Sort.CREATED: "j.created_at",
    Sort.FINISHED: "j.finished_at",
    Sort.DURATION: "j.run_us",
    Sort.NAME: "j.name",
}
_KINDS: dict[Sort, tuple[type, ...]] = {
    Sort.CREATED: (int,),
    Sort.FINISHED: (int, NoneType),
    Sort.DURATION: (int, NoneType),
    Sort.NAME: (str, NoneType),
}
_INDEX = {sort: f"jobs_final_{sort.value}" for sort in Sort}


def is_pattern(name: str) -> bool:
    return "*" in name or "?" in name


def _values(wanted: JobFilter, after: Key | None) -> dict[str, Any]:
    value, number = after or (None, 0)
    return {
        "name": wanted.name and wanted.name.replace("[", "[[]")
        if wanted.name and is_pattern(wanted.name)
        else wanted.name,
        "created_from": wanted.created_from,
        "created_before": wanted.created_before,
        "value": value,
        "after": number,
    }
