"""The queue: as everyone sees it, page by page, and the jobs that are next in each lane of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from operator import attrgetter
from typing import Any

from msgspec import Struct

from aitbcd.model import Front, Job, Lane, Priority
from aitbcd.store import cursors, rows
from aitbcd.store.ids import JobIds
from aitbcd.store.sql import QUERIES

_ACTIVE, _WAITING = "qa", "qw"
_NEXT_USER = QUERIES["next_user_of_queue"]
_NEXT_WISH = QUERIES["next_wish_of_lane"]


class QueuePage(Struct, frozen=True):
    """Jobs in order, and what ``after`` is for those that follow; None at the end."""

    jobs: list[Job]
    next: str | None


def page(
    connection: sqlite3.Connection,
    after: str | None,
    limit: int,
    ids: JobIds,
    needs_gpus: bool,
) -> QueuePage:
    """Return one page, as of now."""
    jobs: list[Job] = []
    for where, value, number in _parts(after):
        # One more than asked for tells whether there is a next page.
        if (missing := limit + 1 - len(jobs)) > 0:
            statement = f"{QUERIES['select_job']} {QUERIES[where]}"
            values: dict[str, Any] = {
                "value": value, "after": number, "limit": missing, "needs_gpus": needs_gpus
            }  # fmt: skip
            jobs += [rows.job(row, ids) for row in connection.execute(statement, values)]
    shown = jobs[:limit]
    return QueuePage(shown, _cursor(shown[-1]) if shown and len(jobs) > limit else None)


def fronts(
    connection: sqlite3.Connection,
    limit: int,
    wishes: int,
    begin: Mapping[Lane, str],
    without: Collection[int],
    but: Collection[Lane],
    ids: JobIds,
) -> dict[Lane, Front]:
    """Return the first jobs of each lane: one look-up a user and wish, not one a job."""
    found: dict[Lane, Front] = {}
    for lane in _lanes(connection):
        if lane.uid in without or lane in but:
            continue
        if lane.has_gpus:
            front = _by_wish(connection, lane, limit, wishes, begin.get(lane, ""), ids)
        else:
            front = Front(_jobs(connection, "where_lane", lane._asdict() | {"limit": limit}, ids))
        if front.jobs or front.next is not None:
            found[lane] = front
    return found


def _by_wish(
    connection: sqlite3.Connection, lane: Lane, limit: int, wishes: int, begin: str, ids: JobIds
) -> Front:
    """Return the first jobs of each of so many wishes from one on."""
    values: dict[str, Any] = lane._asdict() | {"limit": limit, "wish": begin}
    jobs: list[Job] = []
    for _ in range(wishes):
        if (row := connection.execute(_NEXT_WISH, values).fetchone()) is None:
            if begin and not jobs:
                return _by_wish(connection, lane, limit, wishes, "", ids)
            return Front(sorted(jobs, key=attrgetter("number")))
        values["wish"] = row[0]
        jobs += _jobs(connection, "where_wish", values, ids)
    is_more = connection.execute(_NEXT_WISH, values).fetchone() is not None
    return Front(sorted(jobs, key=attrgetter("number")), values["wish"] if is_more else None)


def _jobs(
    connection: sqlite3.Connection, where: str, values: dict[str, Any], ids: JobIds
) -> list[Job]:
    statement = f"{QUERIES['select_job']} {QUERIES[where]}"
    return [rows.job(row, ids) for row in connection.execute(statement, values)]


def _lanes(connection: sqlite3.Connection) -> Iterator[Lane]:
    """Yield where jobs may wait."""
    for priority in sorted(Priority, reverse=True):
        uid = -1
        while row := connection.execute(_NEXT_USER, {"priority": priority, "uid": uid}).fetchone():
            uid = row[0]
            yield Lane(int(priority), uid, False)
            yield Lane(int(priority), uid, True)


def _parts(after: str | None) -> Iterator[tuple[str, Any, int]]:
    """Yield (fragment, value, number) of what lies behind a cursor: an index has each in order."""
    lowest: Any = max(Priority) + 1
    if after is None or after.startswith(_ACTIVE):
        value, number = (-1, 0) if after is None else cursors.read(_ACTIVE, after, int)
        yield "queue_of_active", value, number
    else:
        lowest, number = cursors.read(_WAITING, after, int)
        yield "queue_of_waiting", lowest, number
    for priority in sorted(Priority, reverse=True):
        if priority < lowest:
            yield "queue_of_waiting", int(priority), 0


def _cursor(job: Job) -> str:
    if job.status.is_active:
        return cursors.write(_ACTIVE, (job.assigned_at, job.number))
    return cursors.write(_WAITING, (int(job.priority), job.number))
