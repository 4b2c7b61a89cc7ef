"""A store with any number of jobs, made by SQL alone: what a list costs does not depend on them.

Its jobs are of forty users, most of them of one; nine in ten completed, named after sweeps or
their own numbers, spread over a year, a few of them waiting. The totals are counted by the
migration, as for a file of an older version.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from aitbcd.store import migrate

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
