"""Results that go while the process is killed: a package is noted until it is gone."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path

from msgspec.structs import replace

from aitbcd.errors import NoSuchJob
from aitbcd.model import ResultsState
from aitbcd.store import JobFilter, Store
from tests.integration.stores import ANN, NOW, TRUE, in_pieces, opened, python, whole_way
from tests.integration.test_store_totals import assert_counted

JOBS = 600

#: Expires and deletes one job after the other, and says what it asks for and what was answered.
LEAVER = """
import asyncio, sys
from pathlib import Path
from aitbcd.store import Store
from tests.integration.stores import NOW

def say(*words):
    print(*words, flush=True)

async def leave(store, number):
    if number % 3:
        await store.expire([number], NOW + 1)
        say("expired", number)
    if number % 2:
        await store.delete(number, NOW, None)
        say("deleted", number)
    if number % 5 == 0:
        say("removing", number)
        await store.removed(number)

async def main():
    store = await Store.open(Path(sys.argv[1]), now=NOW)
    numbers = iter(range(int(sys.argv[2]), int(sys.argv[3])))
    say("ready", 0)
    async def work():
        for number in numbers:
            await leave(store, number)
    await asyncio.gather(*(work() for _ in range(3)))

asyncio.run(main())
"""


def killed_leaver(path: Path, first: int, lines: int, said: dict[str, set[int]]) -> None:
    """Kill one after so many lines, and take what it said."""
    process = python(LEAVER, path, first, JOBS + 1)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        heard = [process.stdout.readline() for _ in range(lines)]
    finally:
        process.kill()
        process.wait()
    # Not communicate(): it reads past what readline() has taken in already.
    with process, process.stdout as answers, process.stderr as troubles:
        heard += answers.readlines()
        assert heard[0] == "ready 0\n", troubles.read()
    for line in heard:
        if line.endswith("\n"):
            word, number = line.split()
            said.setdefault(word, set()).add(int(number))


async def fill(path: Path) -> None:
    async with opened(path) as store:
        await store.submit_many(ANN, in_pieces([TRUE] * JOBS), at=NOW)
        for number in range(1, JOBS + 1):
            *begin, end = whole_way(number)
            assert end.ending is not None
            sized = replace(end.ending, result_bytes=number)
            await store.move(*begin, replace(end, ending=sized, expires_at=NOW + 1))


async def look(store: Store, path: Path, said: dict[str, set[int]]) -> None:
    there = {
        job.number: job
        async for piece in store.history(JobFilter())
        for job in piece
        if job.ending is not None
    }
    expired = {
        number
        for number, job in there.items()
        if job.ending and job.ending.results is ResultsState.EXPIRED
    }
    gone = set(range(1, JOBS + 1)) - there.keys()
    assert said.get("expired", set()) <= expired | gone
    assert said.get("deleted", set()) <= gone
    noted = {number for number, _, _ in await store.removals()}
    # A package that no job has is noted, or somebody said that it is gone.
    assert expired | gone <= noted | said.get("removing", set())
    assert noted <= expired | gone
    for number in list(gone)[:5]:
        try:
            await store.spec(number)
        except NoSuchJob:
            continue
        raise AssertionError(f"the spec of {number} is there")
    with closing(sqlite3.connect(path)) as connection:
        sums = "SELECT coalesce(sum(result_bytes), 0) FROM jobs WHERE results = 'kept'"
        assert [(await store.usage(ANN.uid),)] == connection.execute(sums).fetchall()
    await assert_counted(store, path, random.Random(1), has_names=False)


def test_results_that_go_are_noted_whenever_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    asyncio.run(fill(path))
    said: dict[str, set[int]] = {}

    async def check() -> None:
        async with opened(path) as store:
            await look(store, path, said)

    chance = random.Random(3)
    first = 1
    for _ in range(8):
        killed_leaver(path, first, chance.randint(2, 60), said)
        asyncio.run(check())
        # Not the same again: what the killed one had not begun.
        first = max(max(numbers, default=0) for numbers in said.values()) + 3
    assert len(said["deleted"]) > 30
    assert len(said["expired"]) > 30
