"""The file itself: what it refuses to hold, how it comes up to date, and which files it refuses."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from enum import Enum
from pathlib import Path

import pytest

from aitbcd.errors import StartupError
from aitbcd.model import JobState, Reason, ResultsState
from aitbcd.store import Store, migrate
from aitbcd.store.sql import QUERIES, parse
from tests.integration.stores import ANN, NOW, TRUE, WAYS, dump, in_pieces, job_in, opened

NEWEST = migrate.migrations()[-1][0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with a job in each state."""

    async def fill() -> None:
        async with opened(tmp_path / "queue.db") as store:
            for state in WAYS:
                await job_in(store, state)
            await store.submit_many(ANN, in_pieces([TRUE] * 600), at=NOW)

    asyncio.run(fill())
    return tmp_path / "queue.db"


@pytest.fixture
def rows(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        migrate.register(connection)
        yield connection


def reopened(path: Path) -> None:
    async def scenario() -> None:
        async with opened(path) as store:
            await store.submit(ANN, TRUE, at=NOW)

    asyncio.run(scenario())


def refusal(path: Path) -> StartupError:
    """Return how the file is refused, and look that it was not changed."""
    before = {file: file.read_bytes() for file in path.parent.glob("queue.db*")}
    with pytest.raises(StartupError) as refused:
        asyncio.run(Store.open(path, now=NOW))
    after = {file: file.read_bytes() for file in before if file.exists()}
    assert {file: text for file, text in before.items() if file.suffix != ".db-shm"} == {
        file: text for file, text in after.items() if file.suffix != ".db-shm"
    }
    assert refused.value.hint
    return refused.value


# What it refuses to hold


@pytest.mark.parametrize(
    ("column", "values"), [("status", JobState), ("reason", Reason), ("results", ResultsState)]
)
def test_the_lists_of_the_schema_are_those_of_the_model(
    column: str, values: type[Enum], rows: sqlite3.Connection
) -> None:
    tables = rows.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
    text = "\n".join(sql for (sql,) in tables)
    lists = re.findall(rf"CASE {column}\s(.*?)\bEND\b", text, re.DOTALL)
    assert lists
    for names in lists:
        assert sorted(re.findall(r"WHEN '(\w+)'", names)) == sorted(v.value for v in values)


def test_a_state_and_a_reason_that_nobody_knows_are_refused(rows: sqlite3.Connection) -> None:
    for change in ("status = 'stuck'", "reason = 'bored'", "results = 'gone'"):
        for number in range(1, len(WAYS) + 1):
            with pytest.raises(sqlite3.IntegrityError):
                rows.execute(f"UPDATE jobs SET {change} WHERE number = {number}")
    with pytest.raises(sqlite3.IntegrityError):
        rows.execute("UPDATE events SET status = 'stuck' WHERE seq = 1")
    with pytest.raises(sqlite3.IntegrityError):
        rows.execute("UPDATE attempts SET reason = 'bored'")


@pytest.mark.parametrize(
    "change",
    [
        "finished_at = 1 WHERE status = 'pending'",
        "finished_at = 1 WHERE status = 'running'",
        "finished_at = NULL WHERE status = 'completed'",
        "finished_at = NULL WHERE status = 'canceled'",
        "status = 'failed' WHERE status = 'completed'",
        "status = 'completed' WHERE status = 'failed'",
        "status = 'running' WHERE status = 'pending'",
        "status = 'pending' WHERE status = 'running'",
        "status = 'completed' WHERE status = 'running'",
        "reason = 'exit' WHERE status = 'running'",
        "reason = NULL WHERE status = 'failed'",
        "current = attempt + 1 WHERE status = 'running'",
        "results = NULL WHERE status = 'completed'",
        "results = 'kept' WHERE status = 'running'",
        "progress = 101 WHERE status = 'completed'",
        "priority = 2",
        "uid = NULL",
        "number = -number",
    ],
)
def test_a_row_that_cannot_be_is_refused(change: str, rows: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        rows.execute(f"UPDATE jobs SET {change}")


def test_a_job_stays_so_that_its_number_is_never_used_again(rows: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
        rows.execute("DELETE FROM jobs WHERE number = (SELECT max(number) FROM jobs)")


@pytest.mark.parametrize("table", ["specs", "attempts", "events"])
def test_nothing_belongs_to_a_job_that_is_not_there(table: str, rows: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        rows.execute(f"UPDATE {table} SET number = 999999 WHERE number = 2")


def test_an_attempt_is_there_once(rows: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        rows.execute("INSERT INTO attempts SELECT * FROM attempts LIMIT 1")


# Statements


#: Parts of the list, of which test_store_reads tries each.
FRAGMENTS = ("and_", "keys_of_final", "first_keys", "keys_of_waiting", "keys_of_active", "upwards")
SHARES = [
    "shares_of_owner", "shares_of_job", "shares", "share_by_id", "share_by_digest",
    "share_of_reader",
]  # fmt: skip


def test_every_statement_is_valid(rows: sqlite3.Connection) -> None:
    ends = [name for name in QUERIES if name.startswith(("where_", "queue_of"))]
    heads = {
        "select_job": ends,
        "select_event": ["events_since", "events_of_owner"],
        "select_share": SHARES,
    }
    parts = {"events_of_job", "events_since", "events_of_owner", *ends, *SHARES}
    for name, text in QUERIES.items():
        if name in parts or name.startswith((*FRAGMENTS, "downwards")):
            continue
        for end in heads.get(name, [""]):
            statement = f"{text} {QUERIES[end]}" if end else text
            values = dict.fromkeys(re.findall(r":(\w+)", statement), 1)
            rows.execute(f"EXPLAIN {statement}", values or [None] * statement.count("?"))


def test_a_name_that_is_there_twice_or_empty_is_refused() -> None:
    one = "-- a --\n-- Why.\nSELECT 1\n"
    assert dict(parse(f"-- head\n{one}")) == {"a": "SELECT 1"}
    for text in (one + one, "-- a --\n-- Why.\n-- b --\nSELECT 1\n"):
        with pytest.raises(ValueError, match="twice or empty"):
            parse(text)


# Coming up to date


@pytest.fixture
def more_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.FOLDER, folder)
    monkeypatch.setattr(migrate, "FOLDER", folder)

    def add(number: int, text: str) -> None:
        (folder / f"{number:04}_more.sql").write_text(text)

    return add


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return version


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [number for number, _ in migrate.migrations()] == [*range(1, NEWEST + 1)]


def test_a_new_file_is_marked_as_ours(path: Path) -> None:
    assert version_of(path) == NEWEST
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (0x41495442,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_comes_up_to_date_and_a_copy_is_kept(
    path: Path, more_migrations: Callable[[int, str], None]
) -> None:
    before = dump(path)
    more_migrations(NEWEST + 1, "ALTER TABLE jobs ADD COLUMN one TEXT DEFAULT 'a;b';")
    more_migrations(NEWEST + 2, "-- A comment; with this.\nCREATE TABLE two (a);\n")
    reopened(path)
    assert version_of(path) == NEWEST + 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT one FROM jobs LIMIT 1").fetchall() == [("a;b",)]
    [copy] = path.parent.glob(f"queue.db.schema-{NEWEST}.*")
    assert re.fullmatch(r"queue\.db\.schema-\d+\.\d{8}T\d{6}Z", copy.name)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert dump(copy) == before
    assert version_of(copy) == NEWEST
    reopened(path)
    assert len(list(path.parent.glob("queue.db.schema-*"))) == 1


def test_a_migration_that_fails_leaves_all_as_it_was(
    path: Path, more_migrations: Callable[[int, str], None]
) -> None:
    before = dump(path)
    more_migrations(NEWEST + 1, "CREATE TABLE one (a);")
    more_migrations(NEWEST + 2, "CREATE TABLE two (a);\nINSERT INTO three VALUES (1);\n")
    for _ in range(3):
        with pytest.raises(StartupError, match="no such table: three; it is as it was"):
            asyncio.run(Store.open(path, now=NOW))
    assert dump(path) == before
    assert not list(path.parent.glob("queue.db.schema-*"))
    assert version_of(path) == NEWEST


# Files that are refused


def test_a_newer_schema_is_refused_with_both_numbers(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {NEWEST + 7}")
        connection.commit()
    error = refusal(path)
    assert f"schema {NEWEST + 7}" in error.detail
    assert f"up to {NEWEST}" in error.detail
    assert str(path) in error.detail


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (title)")
    assert "another program" in refusal(path).detail


def _garbage(path: Path) -> None:
    path.write_bytes(b"This is no database, it is a shopping list. " * 99)


def _header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(100))


def _half(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _odd_length(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)


def _zeros(path: Path) -> None:
    """As after a power cut: some pages in the middle were never written."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(bytes(3 * 4096))


def _noise(path: Path) -> None:
    with path.open("r+b") as file:
        for at in range(4096, path.stat().st_size, 4096):
            file.seek(at)
            file.write(b"\xa5" * 16)


@pytest.mark.parametrize("damage", [_garbage, _header, _half, _odd_length, _zeros, _noise])
def test_a_damaged_file_is_refused_and_left_as_it_is(
    damage: Callable[[Path], None], path: Path
) -> None:
    damage(path)
    error = refusal(path)
    assert str(path) in error.detail
    assert "damaged" in error.detail
    assert "nothing was changed" in error.detail
    assert str(error.fields["backup"]) == f"{path}.damaged"
    assert "queue.db.damaged" in (error.hint or "")


def test_a_damaged_file_names_the_copies_that_there_are(path: Path) -> None:
    shutil.copy(path, f"{path}.schema-1.20260101T000000Z")
    _noise(path)
    assert "queue.db.schema-1.20260101T000000Z" in refusal(path).detail


def test_what_can_be_read_of_a_damaged_file_can_be_saved_as_the_message_says(path: Path) -> None:
    """The file may be moved away; the store then starts anew beside it."""
    _noise(path)
    refusal(path)
    path.rename(f"{path}.damaged")
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{path}.damaged{suffix}")
    reopened(path)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_log_without_its_file_is_not_thrown_away(is_there: bool, tmp_path: Path) -> None:
    path, log = tmp_path / "queue.db", tmp_path / "queue.db-wal"

    async def crash() -> None:
        async with opened(path) as store:
            await store.submit(ANN, TRUE, at=NOW)
            shutil.copy(log, tmp_path / "kept")

    asyncio.run(crash())
    shutil.move(tmp_path / "kept", log)
    path.unlink()
    if is_there:
        path.touch()
    error = refusal(path)
    assert str(log) in error.detail
    log.unlink()
    reopened(path)


def test_a_file_that_was_created_and_nothing_more_is_taken(tmp_path: Path) -> None:
    """The daemon was killed before its first transaction."""
    for name in ("empty", "wal"):
        path = tmp_path / name / "queue.db"
        path.parent.mkdir()
        path.touch()
        if name == "wal":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        reopened(path)
        reopened(path)


@pytest.mark.parametrize("name", ["missing/queue.db", "folder", "file/queue.db"])
def test_a_path_that_cannot_be_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(StartupError) as refused:
        asyncio.run(Store.open(tmp_path / name, now=NOW))
    assert str(tmp_path / name) in refused.value.detail
    assert refused.value.hint
