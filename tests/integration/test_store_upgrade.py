"""A file of the schema before: nothing of it is lost, and it gets what newer ones have."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from aitbcd.lifecycle import Trigger
from aitbcd.model import Cause, JobState, Reason, ResultsState
from aitbcd.store import By, JobFilter, Move, Wanted, migrate
from tests.integration.stores import (
    ANN,
    BEN,
    NOW,
    SECOND,
    TRUE,
    S,
    assign,
    dump,
    ending,
    opened,
    run,
    whole_way,
)
from tests.integration.test_store_totals import assert_counted

DUMP = Path(__file__).with_name("data") / "schema_1.sql"
WEEK = 7 * 86_400 * SECOND


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "queue.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(DUMP.read_text())
        connection.execute(f"PRAGMA application_id = {migrate.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    return path


def test_every_job_is_as_it_was_and_has_what_it_lacked(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        before = connection.execute(
            "SELECT number, status, name, finished_at, results, message FROM jobs ORDER BY number"
        ).fetchall()
    old = dump(path)

    async def scenario() -> None:
        async with opened(path) as store:
            page = await store.list_jobs(JobFilter(limit=200, is_ascending=True))
            jobs = {job.number: job for job in page.jobs}
            assert {job.status for job in jobs.values()} == set(JobState)
            for number, status, name, finished_at, results, message in before:
                job = jobs.pop(number)
                end = job.ending
                assert (job.status.value, job.name) == (status, name)
                assert (end and end.finished_at) == finished_at
                assert (end and end.message) == message
                assert (end and end.results.value) == results
                assert job.expires_at == (finished_at and finished_at + WEEK)
                assert (job.plan, job.retry_of, job.charge_micro) == (None, None, 0)
                await store.spec(number)
            assert jobs == {}
            await assert_counted(store, path, random.Random(1))
            for owner in (ANN, BEN):
                kept = [
                    job.ending.result_bytes
                    for job in page.jobs
                    if job.owner == owner and job.ending and job.ending.results is ResultsState.KEPT
                ]
                assert await store.usage(owner.uid) == sum(kept)
            assert sum([await store.usage(owner.uid) for owner in (ANN, BEN)]) > 0
            first = await store.next_expiry()
            assert first is not None
            assert first[1] == min(
                job.expires_at or 0
                for job in page.jobs
                if job.ending and job.ending.results is ResultsState.KEPT
            )
            names = await store.stats(Wanted(by=By.NAME))
            assert {"train", "eval", "again", "sweep-7", None} <= {g.key for g in names.groups}
            # It goes on from there.
            waiting = (await store.list_jobs(JobFilter(statuses=frozenset({S.PENDING})))).jobs[0]
            await store.move(*whole_way(waiting.number))
            await assert_counted(store, path, random.Random(2))

    asyncio.run(scenario())
    [copy] = path.parent.glob("queue.db.schema-1.*")
    assert dump(copy) == old


def test_a_new_file_and_an_old_one_have_one_schema(path: Path, tmp_path: Path) -> None:
    async def touch(file: Path) -> None:
        async with opened(file):
            pass

    new = tmp_path / "new.db"
    schemas = []
    for file in (path, new):
        asyncio.run(touch(file))
        with closing(sqlite3.connect(file)) as connection:
            schemas.append(
                connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
            )
    assert schemas[0] == schemas[1]


def test_causes_that_were_not_counted_by_name_are_counted_so(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"

    async def fail(name: str | None) -> None:
        async with opened(path) as store:
            job, _ = await store.submit(ANN, replace(TRUE, name=name), at=NOW)
            end = ending(Reason.EXIT, cause=Cause.CUDA_OOM)
            number = job.number
            move = Move(number, 1, S.RUNNING, Trigger.FAIL, NOW, ending=end)
            await store.move(assign(number), run(number), move)

    async def groups() -> dict[str | None, dict[str, int]]:
        async with opened(path) as store:
            stats = await store.stats(Wanted(by=By.NAME))
            assert stats.causes == {"cuda_oom": 3}
            return {group.key: dict(group.causes) for group in stats.groups}

    for name in ("train", "train", None):
        asyncio.run(fail(name))
    seventh = dict(migrate.migrations())[7]
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"DELETE FROM failures WHERE subject < -1; {seventh}")
    assert asyncio.run(groups()) == {"train": {"cuda_oom": 2}, None: {"cuda_oom": 1}}


def test_an_old_name_that_no_later_job_has_is_forgotten_when_it_is_deleted(path: Path) -> None:
    async def scenario() -> None:
        async with opened(path) as store:
            found = await store.list_jobs(JobFilter(name="again"))
            assert len(found.jobs) == 1
            await store.delete(found.jobs[0].number, NOW, None)
            groups = (await store.stats(Wanted(by=By.NAME))).groups
            assert "again" not in {group.key for group in groups}
            assert groups[-1].is_rest

    asyncio.run(scenario())
