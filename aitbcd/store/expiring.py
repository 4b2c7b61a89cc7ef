"""Which results go next: read from one index by owner and time."""

from __future__ import annotations

import sqlite3
from typing import Any

from aitbcd.store import cursors
from aitbcd.store.cursors import Key
from aitbcd.store.ids import JobIds
from aitbcd.store.listing import JobPage, jobs_by_number, uids
from aitbcd.store.sql import QUERIES

_ORDER = "x"


def next_one(connection: sqlite3.Connection) -> tuple[int, int] | None:
    """Return (number, expires_at) of the results that go next."""
    found = _keys(connection, uids(connection), cursors.MAX_NUMBER, None, 1)
    return (found[0][1], found[0][0]) if found else None


def page(
    connection: sqlite3.Connection,
    uid: int | None,
    until: int,
    after: str | None,
    limit: int,
    ids: JobIds,
) -> JobPage:
    """Return the jobs whose results go until then, the next one first."""
    owners = uids(connection) if uid is None else [uid]
    behind = None if after is None else cursors.read(_ORDER, after, int)
    found = _keys(connection, owners, until, behind, limit + 1)
    shown = found[:limit]
    return JobPage(
        jobs_by_number(connection, (number for _, number in shown), ids),
        cursors.write(_ORDER, shown[-1]) if shown and len(found) > limit else None,
    )


def _keys(
    connection: sqlite3.Connection, owners: list[int], until: int, behind: Key | None, limit: int
) -> list[tuple[int, int]]:
    value, number = behind or (-cursors.MAX_NUMBER, 0)
    found: list[tuple[int, int]] = []
    for uid in owners:
        values: dict[str, Any] = {
            "uid": uid, "until": until, "value": value, "after": number, "limit": limit,
        }  # fmt: skip
        found += connection.execute(QUERIES["keys_of_expiring"], values)
    found.sort()
    return found[:limit]
