"""Lists of jobs in any order, page by page: which rows, in which order, from where on.

A list is merged from streams, one for each owner and status: an index has each of them in the
order that is asked for, so a page costs what its rows cost, however many jobs there are. The key
of a job in a list is the value that it is sorted by (None comes before all) and its number.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from types import NoneType
from typing import Any, NamedTuple

from msgspec import Struct

from aitbcd.model import ACTIVE, FINAL, Job, JobState, Value
from aitbcd.store import cursors, rows
from aitbcd.store.cursors import Key
from aitbcd.store.ids import JobIds
from aitbcd.store.sql import QUERIES

#: How many entries of an index are looked at for one page before another way is taken: of those
#: that hold all that is asked for, and of those that say where it is to be found.
_ENTRIES, _ROWS = 30_000, 5_000


class Sort(str, Enum):
    """What a list is in order of."""

    CREATED = "created"
    #: Jobs that are not over come after all others, or before them where it ascends.
    FINISHED = "finished"
    #: How long the attempt that ended it ran; jobs that did not count as the shortest.
    DURATION = "duration"
    #: Jobs without one come first where it ascends.
    NAME = "name"


class JobFilter(Value, frozen=True):
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


class JobPage(Struct, frozen=True):
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


class Stream(NamedTuple):
    """One owner's jobs of one status, or in the queue."""

    source: str
    status: JobState | None
    uid: int
    #: How many are looked at in the order of an index before another one is tried.
    budget: int


def _keys(
    connection: sqlite3.Connection, wanted: JobFilter, after: Key | None, limit: int
) -> list[Key]:
    """Return the keys of a page: the first of all streams together."""
    found: list[Key] = []
    for stream in _streams(connection, wanted, limit):
        found += _stream(connection, wanted, after, limit, stream)
    found.sort(key=_place, reverse=not wanted.is_ascending)
    return found[:limit]


def _place(key: Key) -> tuple[bool, Any, int]:
    return key[0] is not None, key[0] or 0, key[1]


def _streams(connection: sqlite3.Connection, wanted: JobFilter, limit: int) -> Iterator[Stream]:
    """Yield all streams that a list is merged from."""
    statuses = wanted.statuses or frozenset(JobState)
    owners = _owners(connection, wanted)
    entries = _ENTRIES if wanted.sort in (Sort.CREATED, Sort.NAME) else _ROWS
    budget = max(4 * limit, entries // max(1, len(owners) * len(statuses & FINAL)))
    for uid in owners:
        if JobState.PENDING in statuses:
            yield Stream("waiting", None, uid, budget)
        for status in statuses & ACTIVE:
            yield Stream("active", status, uid, budget)
        for status in statuses & FINAL:
            yield Stream("final", status, uid, budget)


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
    stream: Stream,
) -> list[Key]:
    """Return the first keys of a stream that fit."""
    if stream.source == "final" and _is_mixed(wanted):
        return _mixed(connection, wanted, after, limit, stream)
    return _in_order(connection, wanted, after, limit, stream)


def _in_order(
    connection: sqlite3.Connection,
    wanted: JobFilter,
    after: Key | None,
    limit: int,
    stream: Stream,
) -> list[Key]:
    """Return the first keys where an index has all that fits in order, one range after another."""
    found: list[Key] = []
    for begin in ranges(after, is_ascending=wanted.is_ascending):
        if len(found) < limit:
            statement = listing(wanted, f"keys_of_{stream.source}", [begin, *conditions(wanted)])
            values = _values(wanted, after, stream, limit - len(found))
            found += connection.execute(statement, values).fetchall()
    return found


def _is_mixed(wanted: JobFilter) -> bool:
    """Return whether no index has all that fits, and nothing else, in order."""
    if wanted.sort is Sort.CREATED:
        return wanted.name is not None
    return wanted.name is not None or _has_times(wanted)


def _has_times(wanted: JobFilter) -> bool:
    return (wanted.created_from, wanted.created_before) != (None, None)


def _mixed(
    connection: sqlite3.Connection,
    wanted: JobFilter,
    after: Key | None,
    limit: int,
    stream: Stream,
) -> list[Key]:
    """Return the first keys that fit where others are between them.

    If much fits, a page of it is among the first that an index has in order. If not, what fits is
    looked for in another index, and sorted.
    """
    found: list[Key] = []
    left = stream.budget
    for begin in ranges(after, is_ascending=wanted.is_ascending):
        statement = listing(wanted, "first_keys_of_final", [begin])
        rows = connection.execute(statement, _values(wanted, after, stream, left)).fetchall()
        found += [(value, number) for value, number, fits in rows if fits]
        left -= len(rows)
        if len(found) >= limit:
            return found[:limit]
        if left <= 0:
            break
    else:
        return found
    parts = [_behind(after, is_ascending=wanted.is_ascending), *conditions(wanted)]
    index = Sort.CREATED
    has_values = wanted.sort in (Sort.CREATED, Sort.NAME) and not _has_times(wanted)
    if wanted.name is not None and (has_values or _prefix(wanted.name)):
        parts.append("and_prefix")
        index = Sort.NAME
    statement = listing(wanted, "keys_of_final", parts, index)
    return connection.execute(statement, _values(wanted, after, stream, limit)).fetchall()


def ranges(after: Key | None, *, is_ascending: bool) -> list[str]:
    """Return the fragments of what lies behind a key: what has its value, then what is beyond."""
    if after is None:
        return [""]
    if is_ascending:
        return ["and_none_up", "and_any"] if after[0] is None else ["and_same_up", "and_up"]
    return ["and_none_down"] if after[0] is None else ["and_same_down", "and_down", "and_none"]


def _behind(after: Key | None, *, is_ascending: bool) -> str:
    """Return the fragment of all that lies behind a key."""
    if after is None:
        return ""
    if after[0] is None:
        return "and_behind_none_up" if is_ascending else "and_none_down"
    return "and_behind_up" if is_ascending else "and_behind_down"


def conditions(wanted: JobFilter) -> list[str]:
    """Return the fragments of what is wanted of a job."""
    name = wanted.name
    found = {
        "and_name": name is not None and not is_pattern(name),
        "and_name_like": name is not None and is_pattern(name),
        "and_created_from": wanted.created_from is not None,
        "and_created_before": wanted.created_before is not None,
    }
    return [part for part, is_there in found.items() if is_there]


def listing(wanted: JobFilter, head: str, parts: list[str], index: Sort | None = None) -> str:
    """Return the statement for the first keys of a stream.

    Args:
        index: in the order of which it is read, where that is not the list's own.
    """
    end = "upwards" if wanted.is_ascending else "downwards"
    text = " ".join(QUERIES[part] for part in [head, *filter(None, parts), end])
    fits = " ".join(QUERIES[part] for part in conditions(wanted))
    text = text.replace("$conditions", fits).replace("$value", _VALUE[wanted.sort])
    return text.replace("$index", _INDEX[index or wanted.sort])


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


def _prefix(name: str) -> str:
    """Return what all names begin with that fit."""
    return re.split(r"[*?]", name, maxsplit=1)[0]


def _values(wanted: JobFilter, after: Key | None, stream: Stream, limit: int) -> dict[str, Any]:
    value, number = after or (None, 0)
    name = wanted.name
    if name is not None and is_pattern(name):
        # A bracket means nothing but itself.
        name = name.replace("[", "[[]")
    prefix = _prefix(wanted.name or "")
    return {
        "uid": stream.uid,
        "status": stream.status and stream.status.value,
        "listed_as": stream.status and rows.LISTED_AS.get(stream.status),
        "name": name,
        "prefix": prefix,
        "prefix_end": prefix + chr(sys.maxunicode),
        "created_from": wanted.created_from,
        "created_before": wanted.created_before,
        "value": value,
        "after": number,
        "limit": limit,
    }
