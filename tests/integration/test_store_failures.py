"""The store when things fail: killed writers, a full disk, other processes, a busy file."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from aitbcd.errors import StartupError, StorageFull, Unavailable
from aitbcd.model import JobSpec
from aitbcd.store import Store, migrate
from aitbcd.store.writer import Transaction, Writer
from tests.integration.stores import (
    ANN,
    NOW,
    TRUE,
    S,
    assert_gapless,
    assign,
    in_pieces,
    opened,
    python,
    run,
    whole_way,
)

#: Long enough for the slowest machine; nothing waits that long unless it fails.
DEADLINE_S = 60
BATCH = 40

#: A process that writes for ever and says on stdout what was acknowledged.
WRITER = f"""
import asyncio, sys
from msgspec.structs import replace
from pathlib import Path
from aitbcd.store import Store, migrate
from tests.integration.stores import ANN, NOW, TRUE, in_pieces, whole_way

def say(*words):
    print(*words, flush=True)

async def one(store, label):
    for turn in range(10**9):
        name = f"{{label}}-{{turn}}"
        job, _ = await store.submit(ANN, replace(TRUE, name=name), at=NOW)
        say("submitted", job.number, name)
        for move in whole_way(job.number)[: turn % 4]:
            [event] = await store.move(move)
            say("moved", job.number, event.status.value)

async def many(store, label):
    for turn in range(10**9):
        name = f"{{label}}-{{turn}}"
        pieces = in_pieces([replace(TRUE, name=name)] * {BATCH})
        batch = await store.submit_many(ANN, pieces, at=NOW)
        say("batch", batch.ids[0][0], name)

async def main():
    store = await Store.open(Path(sys.argv[1]), now=NOW)
    say("ready")
    label = sys.argv[2]
    singles = [one(store, f"{{label}}.{{i}}") for i in range(4)]
    await asyncio.gather(*singles, many(store, f"{{label}}.many"))

asyncio.run(main())
"""


class Acknowledged:
    """What a writer said before it was killed."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.batches: dict[int, str] = {}
        self.states: dict[int, str] = {}

    def take(self, line: str) -> None:
        kind, number, word = line.split()
        target = {"submitted": self.names, "batch": self.batches, "moved": self.states}[kind]
        target[int(number)] = word


def _killed_writer(path: Path, label: str, lines: int, said: Acknowledged) -> None:
    """Let a writer acknowledge so many changes, kill it, and take every line that it said."""
    process = python(WRITER, path, label)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(lines):
            said.take(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)
    # Not by communicate(), which passes over what readline() has read ahead.
    with process:
        for line in process.stdout:
            if line.endswith("\n"):
                said.take(line)


def test_everything_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    path, said = tmp_path / "queue.db", Acknowledged()

    async def check() -> None:
        async with opened(path) as store:
            for number, name in said.names.items():
                job = await store.job(number)
                assert job is not None
                assert job.name == name
                assert await store.spec(number) == replace(TRUE, name=name)
            for first, name in said.batches.items():
                jobs = [await store.job(number) for number in range(first, first + BATCH)]
                assert {job.name if job else None for job in jobs} == {name}
            reached = {
                number: {event.status.value for event in await store.events(number=number)}
                for number in said.states
            }
            for number, state in said.states.items():
                assert state in reached[number]
            await assert_gapless(store)
            await _assert_whole_batches(store)

    for turn in range(8):
        _killed_writer(path, f"w{turn}", 3 + 37 * turn, said)
        asyncio.run(check())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert len(said.names) > 100
    assert said.batches


async def _assert_whole_batches(store: Store) -> None:
    """A batch that nobody heard of is there as a whole or not at all."""
    counts: dict[str, int] = {}
    for event in await assert_gapless(store):
        if event.status is S.PENDING:
            job = await store.job(event.number)
            assert job is not None
            if job.name and ".many-" in job.name:
                counts[job.name] = counts.get(job.name, 0) + 1
    assert set(counts.values()) <= {BATCH}


# Several processes


SEVERAL = """
import asyncio, sys
from msgspec.structs import replace
from pathlib import Path
from aitbcd.store import Store, migrate
from tests.integration.stores import ANN, NOW, TRUE, in_pieces, whole_way

async def main():
    store = await Store.open(Path(sys.argv[1]), now=NOW)
    for turn in range(40):
        job, _ = await store.submit(ANN, replace(TRUE, name=sys.argv[2]), at=NOW)
        await store.move(*whole_way(job.number))
        await store.submit_many(ANN, in_pieces([TRUE] * 5), at=NOW)
        assert (await store.job(job.number)).name == sys.argv[2]
    await store.close()

asyncio.run(main())
"""


def test_processes_that_write_one_file_never_find_it_locked(tmp_path: Path) -> None:
    path, writers = tmp_path / "queue.db", 4
    processes = [python(SEVERAL, path, f"p{i}") for i in range(writers)]
    for process in processes:
        _, said = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, said

    async def check() -> None:
        async with opened(path) as store:
            events = await assert_gapless(store)
            jobs = {event.number for event in events}
            assert jobs == set(range(1, writers * 40 * 6 + 1))
            assert len(events) == len(jobs) + 3 * writers * 40
            assert await store.count_pending() == writers * 40 * 5

    asyncio.run(check())


def test_two_processes_make_one_new_file(tmp_path: Path) -> None:
    """Whoever comes second finds the schema, or waits for it."""
    script = (
        "import asyncio, sys; from pathlib import Path; from aitbcd.store import Store\n"
        "async def main():\n"
        "    await (await Store.open(Path(sys.argv[1]), now=0)).close()\n"
        "asyncio.run(main())"
    )
    for turn in range(3):
        path = tmp_path / f"queue{turn}.db"
        processes = [python(script, path) for _ in range(4)]
        for process in processes:
            _, said = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, said


def test_a_file_that_another_program_keeps_locked_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "BUSY_MS", 50)
    path = tmp_path / "queue.db"

    async def scenario() -> None:
        async with opened(path) as store:
            await store.submit(ANN, TRUE, at=NOW)
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(Unavailable, match="another program holds a lock on"):
                    await store.submit(ANN, TRUE, at=NOW)
                assert await store.job(1) is not None
                other.execute("ROLLBACK")
            job, _ = await store.submit(ANN, TRUE, at=NOW)
            assert job.number == 2
            await assert_gapless(store)

    asyncio.run(scenario())


# A full disk


class Disk:
    """A small file system of its own, which can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "none", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"needs to mount a small file system: {made.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


LARGE = JobSpec((b"/bin/true", b"x" * 100_000))


def test_a_full_disk_is_said_and_nothing_is_half_stored(disk: Disk) -> None:
    async def scenario() -> None:
        async with opened(disk.folder / "queue.db") as store:
            await store.submit(ANN, TRUE, at=NOW)
            disk.fill()
            stored = await _until_it_is_full(store)
            before = await store.job(1)
            for change in (
                store.submit(ANN, LARGE, at=NOW),
                store.submit_many(ANN, in_pieces([LARGE] * 50), at=NOW),
            ):
                with pytest.raises(StorageFull) as refused:
                    await change
                assert "file system is full" in refused.value.detail
                assert "nothing was changed" in refused.value.detail
                assert str(disk.folder) in (refused.value.hint or "")
            assert await store.job(1) == before
            assert await store.job(1 + stored + 1) is None
            assert len(await assert_gapless(store)) == 1 + stored
            assert await store.count_pending() == 1 + stored

            disk.free()
            job, _ = await store.submit(ANN, LARGE, at=NOW)
            assert job.number == 1 + stored + 1
            await store.move(*whole_way(1))
            assert await store.spec(job.number) == LARGE
            await assert_gapless(store)
        async with opened(disk.folder / "queue.db") as store:
            assert await store.count_pending() == 1 + stored
            await assert_gapless(store)

    asyncio.run(scenario())


async def _until_it_is_full(store: Store) -> int:
    """Submit until the disk is full; return how many were stored."""
    for stored in range(500):
        try:
            await store.submit(ANN, LARGE, at=NOW)
        except StorageFull:
            return stored
    raise AssertionError("fifty megabytes went into twelve")


def test_a_full_disk_fails_every_change_of_its_group(disk: Disk) -> None:
    async def scenario() -> None:
        async with opened(disk.folder / "queue.db") as store:
            for _ in range(3):
                await store.submit(ANN, TRUE, at=NOW)
            disk.fill()
            stored = await _until_it_is_full(store)
            is_busy, is_free = threading.Event(), threading.Event()

            def pieces() -> Iterator[list[JobSpec]]:
                is_busy.set()
                is_free.wait(DEADLINE_S)
                yield [LARGE] * 9

            together = [store.submit_many(ANN, pieces, at=NOW)]
            await asyncio.to_thread(is_busy.wait, DEADLINE_S)
            rest = [
                store.submit(ANN, TRUE, at=NOW),
                store.move(assign(1)),
                store.submit(ANN, LARGE, at=NOW),
                store.move(assign(2), run(2)),
            ]
            is_free.set()
            outcomes = await asyncio.gather(*together, *rest, return_exceptions=True)
            assert [type(one) for one in outcomes] == [StorageFull] * 5
            for number in (1, 2, 3):
                job = await store.job(number)
                assert job is not None
                assert job.status is S.PENDING
            assert await store.count_pending() == 3 + stored
            disk.free()
            await store.move(assign(1), assign(2), run(2))
            await assert_gapless(store)

    asyncio.run(scenario())


def test_a_disk_that_is_full_at_the_start_is_said(disk: Disk) -> None:
    disk.fill()
    with pytest.raises(StartupError) as refused:
        asyncio.run(Store.open(disk.folder / "queue.db", now=NOW))
    assert str(disk.folder / "queue.db") in refused.value.detail
    disk.free()

    async def scenario() -> None:
        async with opened(disk.folder / "queue.db") as store:
            await store.submit(ANN, TRUE, at=NOW)

    asyncio.run(scenario())


def test_little_room_for_the_log_is_given_back_and_enough(disk: Disk) -> None:
    """The log's reserve is a wish: without room for it the store works as well."""

    async def scenario() -> None:
        async with opened(disk.folder / "queue.db") as store:
            await store.submit(ANN, TRUE, at=NOW)
        disk.fill()
        os.truncate(disk.folder / "filler", (disk.folder / "filler").stat().st_size - (1 << 20))
        async with opened(disk.folder / "queue.db") as store:
            log = disk.folder / "queue.db-wal"
            assert log.stat().st_size < 1 << 20
            await store.submit(ANN, TRUE, at=NOW)

    asyncio.run(scenario())


def test_a_read_only_file_system_is_said(disk: Disk) -> None:
    async def scenario() -> None:
        async with opened(disk.folder / "queue.db") as store:
            await store.submit(ANN, TRUE, at=NOW)

    asyncio.run(scenario())
    subprocess.run(["mount", "-o", "remount,ro", str(disk.folder)], check=True)
    with pytest.raises(StartupError, match="cannot be written") as refused:
        asyncio.run(Store.open(disk.folder / "queue.db", now=NOW))
    assert "--state-dir" in (refused.value.hint or "")


def test_what_nobody_has_thought_of_fails_its_group_and_no_other(tmp_path: Path) -> None:
    def connect() -> Transaction:
        connection = sqlite3.connect(tmp_path / "db", isolation_level=None)
        connection.execute("CREATE TABLE numbers(number)")
        return Transaction(connection, "SELECT 0, 0")

    def refuse_twos(transaction: Transaction) -> None:
        if transaction.execute("SELECT count(*) FROM numbers").fetchone() == (2,):
            raise OverflowError("two are too many")

    def insert(transaction: Transaction, number: int) -> int:
        transaction.execute("INSERT INTO numbers VALUES (?)", (number,))
        return number

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        writer = Writer(tmp_path / "db", connect, refuse_twos, loop)
        await writer.start()
        async with asyncio.timeout(DEADLINE_S):
            assert await writer.submit(insert, 1) == 1
            with pytest.raises(OverflowError):
                await writer.submit(insert, 2)
            both = writer.submit(insert, 3), writer.submit(insert, 4)
            assert [await one for one in both] == [3, 4]
            await writer.close()
        with closing(sqlite3.connect(tmp_path / "db")) as database:
            assert database.execute("SELECT * FROM numbers").fetchall() == [(1,), (3,), (4,)]

    asyncio.run(scenario())
