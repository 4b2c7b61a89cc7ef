"""Questions about a history of any length: a store made by SQL alone, and what each costs there.

Its jobs are of forty users, most of them of one; nine in ten completed, named after sweeps or
their own numbers, spread over a year, a few of them waiting. The totals are counted by the
migration, as for a file of an older version.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from itertools import product
from pathlib import Path
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from aitbcd.model import JobState
from aitbcd.store import By, JobFilter, Sort, Store, Wanted, migrate

NOW = 1_790_000_000_000_000
#: Whose most jobs are.
UID = 1000
_YEAR_US = 365 * 86_400 * 1_000_000

# Of job n: the owner, the name and how it ended follow from n by remainders.
_JOBS = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
INSERT INTO jobs (number, uid, user, status, name, cpus, gpus, priority, retries, attempt, current,
    created_at, finished_at, reason, results, result_bytes)
SELECT n, uid, 'user' || uid, status,
    CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN 'train' WHEN 2 THEN 'sweep-' || n % 5000
        ELSE 'job-' || n END,
    1, n % 2, n % 3 - 1, 0, 1, 1, created_at, created_at + 1000000 * (1 + n * 7919 % 86400),
    CASE status WHEN 'completed' THEN NULL WHEN 'failed' THEN 'exit' ELSE 'canceled' END,
    CASE WHEN n % 3 THEN 'expired' ELSE 'kept' END, 1000
FROM (
    SELECT n, CASE WHEN n % 10 < 6 THEN 1000 ELSE 1000 + n % 40 END AS uid,
        CASE n % 20 WHEN 3 THEN 'failed' WHEN 14 THEN 'canceled' ELSE 'completed' END AS status,
        :begin + n * (:span / :count) AS created_at
    FROM numbers
)
"""
_WAITING = """
UPDATE jobs SET
    status = 'pending', current = NULL, finished_at = NULL, reason = NULL, results = NULL
WHERE number > :count - min(:count / 10, 10000)
"""
_ATTEMPTS = """
INSERT INTO attempts (number, attempt, boot_id, assigned_at, started_at, finished_at, exit_code)
SELECT number, 1, 'boot', created_at, created_at + 1000 * (number % 100000), finished_at, 0
FROM jobs WHERE finished_at IS NOT NULL
"""
_SPECS = """
INSERT INTO specs (number, argv, is_shell, env, artifacts)
SELECT number, x'2f62696e2f7472756500', 0, x'', x'' FROM jobs
"""
_EVENTS = """
INSERT INTO events (number, uid, at, status, attempt)
SELECT number, uid, created_at, 'pending', 0 FROM jobs
UNION ALL SELECT number, uid, finished_at, status, 1 FROM jobs WHERE finished_at IS NOT NULL
"""


def make(path: Path, count: int) -> None:
    """Make a file with so many jobs, in the schema before the totals, and bring it up to date."""
    values = {"count": count, "begin": NOW - _YEAR_US, "span": _YEAR_US}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for setting in ("journal_mode = WAL", "synchronous = OFF", "cache_size = -200000"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN")
        for statement in migrate.statements(migrate.migrations()[0][1]):
            connection.execute(statement)
        for statement in (_JOBS, _WAITING, _ATTEMPTS, _SPECS, _EVENTS):
            connection.execute(statement, values if ":count" in statement else {})
        connection.execute(f"PRAGMA application_id = {migrate.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("COMMIT")
    migrate.open_database(path, now=NOW).close()


Question = Callable[[Store], Awaitable[object]]

_DAY = 86_400 * 1_000_000
_FILTERS = [
    JobFilter(),
    *(JobFilter(statuses=frozenset({status})) for status in JobState),
    JobFilter(created_from=NOW - 7 * _DAY),
    JobFilter(created_from=NOW - 330 * _DAY, created_before=NOW - 300 * _DAY),
    JobFilter(name="train"),
    JobFilter(name="job-7"),
    JobFilter(name="sweep-12*"),
    JobFilter(name="*-4321*"),
    JobFilter(name="*-4321*", statuses=frozenset({JobState.FAILED})),
    JobFilter(
        name="job-7",
        statuses=frozenset({JobState.COMPLETED}),
        created_from=NOW - 330 * _DAY,
        created_before=NOW - 300 * _DAY,
    ),
]


def lists(uid: int | None) -> list[Question]:
    """Return every filter in every order."""

    def ask(wanted: JobFilter) -> Question:
        return lambda store: store.list_jobs(wanted)

    return [
        ask(replace(wanted, uid=uid, sort=sort, is_ascending=is_ascending))
        for wanted, sort, is_ascending in product(_FILTERS, Sort, (False, True))
    ]


def statistics_of(uid: int | None) -> list[Question]:
    def ask(wanted: Wanted) -> Question:
        return lambda store: store.stats(wanted)

    zone = ZoneInfo("Europe/Berlin")
    times = [(None, None), (NOW - 7 * _DAY, None), (NOW - 200 * _DAY, NOW - 100 * _DAY)]
    return [
        ask(Wanted(uid, begin, end, by, zone)) for (begin, end), by in product(times, (None, *By))
    ]


#: What is measured, the questions, and how many seconds the slowest of them may take.
KINDS: list[tuple[str, list[Question], float]] = [
    ("one's own lists", lists(UID), 0.1),
    ("everybody's lists", lists(None), 0.1),
    ("one's own statistics", statistics_of(UID), 0.2),
    ("everybody's statistics", statistics_of(None), 0.2),
    ("queue", [lambda store: store.queue(None, 200)], 0.1),
    ("next expiry", [lambda store: store.next_expiry()], 0.01),
    ("results that expire", [lambda store: store.expiring(UID, 2 * NOW)], 0.01),
    ("usage", [lambda store: store.usage(UID)], 0.01),
]


async def _seconds(store: Store, question: Question, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        await question(store)
        times.append(time.perf_counter() - started)
    return min(times)


async def _slowest(path: Path, rounds: int) -> list[float]:
    store = await Store.open(path, now=NOW)
    try:
        return [
            max([await _seconds(store, question, rounds) for question in questions])
            for _, questions, _ in KINDS
        ]
    finally:
        await store.close()


def slowest(path: Path, rounds: int = 3) -> list[float]:
    """Return the seconds of the slowest question of each kind."""
    return asyncio.run(_slowest(path, rounds))
