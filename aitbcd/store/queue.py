"""The queue as everyone sees it, page by page: what may run, then what waits."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aitbcd.model import Job, Priority
from aitbcd.store import cursors, rows
from aitbcd.store.ids import JobIds
from aitbcd.store.sql import QUERIES

_ACTIVE, _WAITING = "qa", "qw"


@dataclass(frozen=True, slots=True)
class QueuePage:
    """Jobs in order, and what ``after`` is for those that follow; None at the end."""

    jobs: list[Job]
    next: str | None


def page(connection: sqlite3.Connection, after: str | None, limit: int, ids: JobIds) -> QueuePage:
    """Return one page, as of now."""
    jobs: list[Job] = []
    for where, value, number in _parts(after):
        # One more than asked for tells whether there is a next page.
        if (missing := limit + 1 - len(jobs)) > 0:
            statement = f"{QUERIES['select_job']} {QUERIES[where]}"
            values: dict[str, Any] = {"value": value, "after": number, "limit": missing}
            jobs += [rows.job(row, ids) for row in connection.execute(statement, values)]
    shown = jobs[:limit]
    return QueuePage(shown, _cursor(shown[-1]) if shown and len(jobs) > limit else None)


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
