"""Finding jobs: by every form of a name, and in pages that are what filtering all would give."""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aitbcd.errors import AmbiguousJob, InvalidValue, NoSuchJob
from aitbcd.model import FINAL, ID_ALPHABET, Job, JobState, Lane, Priority
from aitbcd.store import JobFilter, Sort, Store
from aitbcd.store.listing import listing, ranges
from aitbcd.store.sql import QUERIES
from tests.integration.stores import (
    ANN,
    BEN,
    NOW,
    TRUE,
    WAYS,
    S,
    assert_gapless,
    assign,
    heads,
    in_pieces,
    job_in,
    on_store,
    opened,
    whole_way,
)

# One job by its name


@on_store
async def test_each_form_of_a_name_leads_to_the_job(store: Store) -> None:
    batch = await store.submit_many(ANN, in_pieces([TRUE] * 500), at=NOW)
    number, job_id = batch.ids[321]
    job = await store.job(number)
    letters = job_id.removeprefix("job_")
    for ref in (job_id, letters, job_id[:-1], letters[:5], letters.upper(), str(number)):
        assert await store.resolve(ref, None) == job
        assert await store.resolve(ref, ANN.uid) == job


@on_store
async def test_the_latest_is_the_callers_own(store: Store) -> None:
    for uid in (None, ANN.uid):
        with pytest.raises(NoSuchJob, match="none was submitted"):
            await store.resolve("@", uid)
    ann, _ = await store.submit(ANN, TRUE, at=NOW)
    ben, _ = await store.submit(BEN, TRUE, at=NOW)
    assert await store.resolve("@", ANN.uid) == ann
    assert await store.resolve("@", BEN.uid) == await store.resolve("@", None) == ben


@on_store
async def test_jobs_of_others_are_not_there(store: Store) -> None:
    job, _ = await store.submit(ANN, TRUE, at=NOW)
    for ref in (job.job_id, job.job_id[:8], job.job_id[4:5], "1", "@"):
        with pytest.raises(NoSuchJob):
            await store.resolve(ref, BEN.uid)


@pytest.mark.parametrize(
    "ref",
    [
        "2", "0", "-1", "99999999999999999999999", "1.0", "00", "", "job_", "@@", "job_@", "%", "_",
        "job_1", "x' OR 1", "job_zzzzzzzz", "ß", "٣", "1\n", "\ud800", "9" * 5000,
    ],
)  # fmt: skip
def test_what_names_no_job_is_refused_by_its_name(ref: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "queue.db") as store:
            job, _ = await store.submit(ANN, TRUE, at=NOW)
            if job.job_id.startswith(("job_1", f"job_{ref}")) or ref == "job_zzzzzzzz":
                # One offset in thirty-two gives such an id: then the number alone is not it.
                return
            with pytest.raises(NoSuchJob) as refused:
                await store.resolve(ref, None)
            assert refused.value.fields["ref"] == ref

    asyncio.run(scenario())


@on_store
async def test_an_exact_number_wins_over_a_prefix(store: Store) -> None:
    batch = await store.submit_many(ANN, in_pieces([TRUE] * 2000), at=NOW)
    digits = [i for n, i in batch.ids if i[4:6].isdecimal() and i[4] != "0"]
    for job_id in digits[:20]:
        number = int(job_id[4:6])
        assert (await store.resolve(job_id[4:6], ANN.uid)).number == number
        # With job_ before it, it is an id.
        try:
            named = await store.resolve(job_id[:6], ANN.uid)
        except AmbiguousJob:
            continue
        assert named.job_id == job_id


@on_store
async def test_a_number_that_another_user_has_or_that_is_deleted_is_no_prefix(store: Store) -> None:
    await store.submit_many(ANN, in_pieces([TRUE] * 99), at=NOW)
    mine = await store.submit_many(BEN, in_pieces([TRUE] * 2000), at=NOW)
    digits = [i[4:6] for _, i in mine.ids if i[4:6].isdecimal() and i[4] != "0"]
    assert len(digits) > 10
    for each in digits:
        with pytest.raises(NoSuchJob):
            await store.resolve(each, BEN.uid)
    # Beyond the numbers that there are it can only be an id.
    beyond = [i[4:8] for _, i in mine.ids if i[4:8].isdecimal() and int(i[4:8]) > 2099]
    far = next(each for each in beyond if beyond.count(each) == 1)
    assert (await store.resolve(far, BEN.uid)).job_id.startswith(f"job_{far}")


@on_store
async def test_an_ambiguous_prefix_names_up_to_five_of_ones_own(store: Store) -> None:
    """Each letter begins three of a hundred jobs, and half of them are somebody else's."""
    for owner in (ANN, BEN) * 50:
        await store.submit(owner, TRUE, at=NOW)
    jobs = [await store.resolve(str(number), None) for number in range(1, 101)]
    for letter, uid in product(ID_ALPHABET, (None, ANN.uid, BEN.uid)):
        fits = [job for job in jobs if job.job_id[4] == letter and uid in (None, job.owner.uid)]
        fits.reverse()
        ref = f"job_{letter}"
        if len(fits) > 1:
            with pytest.raises(AmbiguousJob) as refused:
                await store.resolve(ref, uid)
            assert refused.value.fields["jobs"] == [job.job_id for job in fits[:5]]
            assert all(job.job_id in refused.value.detail for job in fits[:5])
        elif fits:
            assert await store.resolve(ref, uid) == fits[0]
        else:
            with pytest.raises(NoSuchJob):
                await store.resolve(ref, uid)


@on_store
async def test_ones_only_job_is_found_by_a_letter_among_thousands(store: Store) -> None:
    mine, _ = await store.submit(BEN, TRUE, at=NOW)
    await store.submit_many(ANN, in_pieces([TRUE] * 40_000, 1000), at=NOW)
    assert await store.resolve(mine.job_id[:5], BEN.uid) == mine
    with pytest.raises(AmbiguousJob, match="and more"):
        await store.resolve(mine.job_id[:5], ANN.uid)


@on_store
async def test_parts_of_a_job_that_is_not_there(store: Store) -> None:
    assert await store.job(1) is None
    assert await store.attempts(1) == []
    assert await store.events(number=1) == []
    with pytest.raises(NoSuchJob):
        await store.spec(1)
    with pytest.raises(NoSuchJob):
        await store.placement(1, 1)


# The queue


@on_store
async def test_nobodys_jobs_hide_anothers(store: Store) -> None:
    gpus = replace(TRUE, gpus=2)
    await store.submit_many(ANN, in_pieces([gpus] * 300), at=NOW)
    await store.submit(ANN, TRUE, at=NOW)
    await store.submit(BEN, gpus, at=NOW)
    await store.submit(BEN, replace(TRUE, priority=Priority.LOW), at=NOW)
    found = await store.fronts(2)
    numbers = {lane: [job.number for job in front.jobs] for lane, front in found.items()}
    ann, ben = ANN.uid, BEN.uid
    assert numbers == {
        (0, ann, True): [1, 2],
        (0, ann, False): [301],
        (0, ben, True): [302],
        (-1, ben, False): [303],
    }
    found = await store.fronts(2, without=[BEN.uid], but=[Lane(0, ann, True)])
    assert [lane.has_gpus for lane in found] == [False]


@on_store
async def test_jobs_for_one_gpu_do_not_hide_those_for_another(store: Store) -> None:
    wishes: list[dict[str, Any]] = [
        {"gpu": ("GPU-gone",)}, {"gpu": ("GPU-gone", "GPU-1")}, {"gpu_type": "a b"}, {},
        {"min_vram": 1}, {"vram": 1}, {"gpu_type": "GPU-gone"},
    ]  # fmt: skip
    for wish in wishes:
        await store.submit_many(ANN, in_pieces([replace(TRUE, gpus=1, **wish)] * 100), at=NOW)
    lane = Lane(0, ANN.uid, True)
    found = (await store.fronts(3, wishes=10))[lane]
    assert [job.number for job in found.jobs] == [
        100 * at + number for at in range(len(wishes)) for number in (1, 2, 3)
    ]
    assert found.next is None
    # More wishes than are read: the rest, and the first ones again.
    seen: list[int] = []
    begin: dict[Lane, str] = {}
    for _ in range(4):
        front = (await store.fronts(1, wishes=2, begin=begin))[lane]
        seen += [job.number for job in front.jobs]
        begin = {lane: front.next or ""}
    assert sorted(seen) == [100 * at + 1 for at in range(len(wishes))]
    assert begin == {lane: ""}
    nowhere = (await store.fronts(1, wishes=2, begin={lane: "9"}))[lane]
    assert [job.number for job in nowhere.jobs] == seen[:2]


@on_store
async def test_the_queue_is_by_priority_then_by_number(store: Store) -> None:
    priorities = random.Random(4).choices(list(Priority), k=60)
    await store.submit_many(
        ANN, in_pieces([replace(TRUE, priority=priority) for priority in priorities]), at=NOW
    )
    for number in (3, 17, 18, 60):
        await store.move(*whole_way(number)[: number % 3 + 1])
    jobs = [await store.resolve(str(number), None) for number in range(1, 61)]
    waiting = [job for job in jobs if job.status is S.PENDING]
    waiting.sort(key=lambda job: (-job.priority, job.number))
    assert await heads(store, 100) == waiting
    for priority in Priority:
        lane = [job for job in waiting if job.priority is priority]
        assert [job for job in await heads(store, 7) if job.priority is priority] == lane[:7]
    assert await store.count_pending() == len(waiting) == 56
    assert [job.number for job in await store.active()] == [
        job.number for job in jobs if job.status.is_active
    ]


# Lists


FILTERS: Sequence[JobFilter] = [
    JobFilter(),
    JobFilter(uid=ANN.uid),
    JobFilter(uid=BEN.uid, statuses=frozenset({S.COMPLETED})),
    JobFilter(statuses=frozenset(FINAL)),
    JobFilter(uid=ANN.uid, statuses=frozenset({S.PENDING, S.RUNNING, S.FAILED})),
    JobFilter(uid=BEN.uid, statuses=frozenset({S.ASSIGNED, S.CANCELING})),
    JobFilter(statuses=frozenset(JobState)),
    JobFilter(uid=ANN.uid, created_from=NOW + 50, created_before=NOW + 200),
    JobFilter(created_before=NOW + 90, statuses=frozenset({S.PENDING, S.CANCELED})),
    JobFilter(uid=999),
    JobFilter(created_from=NOW + 10**9),
    JobFilter(user="ben"),
    JobFilter(user="ben", uid=ANN.uid),
    JobFilter(user="carl"),
    JobFilter(name="train"),
    JobFilter(name="train*", statuses=frozenset({S.COMPLETED, S.RUNNING})),
    JobFilter(name="*-?", uid=ANN.uid, created_from=NOW + 100),
    JobFilter(name="a[b]*"),
    JobFilter(name="nothing"),
]
VALUES = ("uid", "listed_as", "value", "after", "limit")


async def _many(store: Store) -> list[Job]:
    """Submit jobs of two users and bring them somewhere, with a clock that jumps."""
    chance = random.Random(7)
    jobs = []
    for number in range(1, 151):
        at = NOW + chance.randrange(300)
        name = chance.choice([None, "train", "train-1", "train-ß", "a[b]c", "\U0001f600-x"])
        await store.submit(chance.choice([ANN, BEN]), replace(TRUE, name=name), at=at)
        if moves := WAYS[chance.choice(list(WAYS))](number):
            await store.move(*moves)
        jobs.append(await store.resolve(str(number), None))
    return jobs


def _fits(job: Job, wanted: JobFilter) -> bool:
    return (
        wanted.uid in (None, job.owner.uid)
        and wanted.user in (None, job.owner.name)
        and (not wanted.statuses or job.status in wanted.statuses)
        and (wanted.name is None or fnmatchcase(job.name or "", wanted.name.replace("[", "[[]")))
        and (wanted.created_from is None or job.created_at >= wanted.created_from)
        and (wanted.created_before is None or job.created_at < wanted.created_before)
    )


def _value_of(job: Job, sort: Sort) -> int | str | None:
    if sort is Sort.NAME:
        return job.name
    if sort is Sort.CREATED:
        return job.created_at
    if job.ending is None:
        return None
    if sort is Sort.FINISHED:
        return job.ending.finished_at
    return None if job.started_at is None else max(0, job.ending.finished_at - job.started_at)


def _in_order(jobs: list[Job], wanted: JobFilter) -> list[Job]:
    def place(job: Job) -> tuple[bool, Any, int]:
        value = _value_of(job, wanted.sort)
        return value is not None, value or 0, job.number

    fitting = [job for job in jobs if _fits(job, wanted)]
    return sorted(fitting, key=place, reverse=not wanted.is_ascending)


async def _pages(store: Store, wanted: JobFilter) -> list[Job]:
    found: list[Job] = []
    page = await store.list_jobs(wanted)
    while True:
        assert len(page.jobs) <= wanted.limit
        found += page.jobs
        assert len({job.number for job in found}) == len(found), "a job is there twice"
        if page.next is None:
            return found
        assert re.fullmatch(r"[a-zA-Z0-9._-]+", page.next)
        assert page.jobs, "a page before the end is empty"
        page = await store.list_jobs(replace(wanted, after=page.next))


@pytest.fixture(params=[False, True])
def looks_far(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a list gives up at once to find what fits in the order of its index."""
    if not request.param:
        monkeypatch.setattr("aitbcd.store.listing._ENTRIES", 0)
        monkeypatch.setattr("aitbcd.store.listing._ROWS", 0)
    return bool(request.param)


@pytest.mark.usefixtures("looks_far")
def test_pages_are_what_filtering_all_gives(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "queue.db") as store:
            jobs = await _many(store)
            for wanted, sort, is_ascending in product(FILTERS, Sort, (False, True)):
                whole = replace(wanted, sort=sort, is_ascending=is_ascending)
                expected = _in_order(jobs, whole)
                for limit in (1, 7, 200):
                    assert await _pages(store, replace(whole, limit=limit)) == expected
                pieces = [piece async for piece in store.history(whole)]
                assert [job for piece in pieces for job in piece] == expected

    asyncio.run(scenario())


@on_store
async def test_pages_are_steady_while_jobs_arrive_and_move(store: Store) -> None:
    await store.submit_many(ANN, in_pieces([TRUE] * 30), at=NOW)
    first = await store.list_jobs(JobFilter(uid=ANN.uid, limit=10))
    await store.submit_many(ANN, in_pieces([TRUE] * 30), at=NOW)
    await store.move(*whole_way(25))
    second = await store.list_jobs(JobFilter(uid=ANN.uid, limit=10, after=first.next))
    assert [job.number for job in first.jobs + second.jobs] == [*range(30, 10, -1)]


@pytest.mark.parametrize("seed", range(4))
def test_pages_join_to_the_whole_while_jobs_are_added(
    seed: int, looks_far: bool, tmp_path: Path
) -> None:
    """Whoever was there at the first page is there once, in order; nobody is there twice."""
    chance = random.Random(seed + 100 * looks_far)

    async def add(store: Store, count: int) -> None:
        for _ in range(count):
            name = chance.choice([None, "a", "b-1", "b-2"])
            at = NOW + chance.randrange(1000)
            job, _ = await store.submit(chance.choice([ANN, BEN]), replace(TRUE, name=name), at=at)
            if chance.random() < 0.7:
                await store.move(*WAYS[chance.choice(list(FINAL))](job.number))

    async def scenario() -> None:
        async with opened(tmp_path / "queue.db") as store:
            await add(store, 80)
            for sort, is_ascending in product(Sort, (False, True)):
                uid, name = chance.choice([None, ANN.uid]), chance.choice([None, "a", "b-*", "*2"])
                wanted = JobFilter(
                    uid, name=name, sort=sort, is_ascending=is_ascending, limit=chance.randint(1, 9)
                )
                whole = [job.number for job in await _pages(store, replace(wanted, limit=200))]
                found: list[int] = []
                page = await store.list_jobs(wanted)
                while True:
                    found += [job.number for job in page.jobs]
                    assert len(set(found)) == len(found), "a job is there twice"
                    if page.next is None:
                        break
                    await add(store, chance.randint(0, 2))
                    page = await store.list_jobs(replace(wanted, after=page.next))
                assert [number for number in found if number in whole] == whole

    asyncio.run(scenario())


@on_store
async def test_a_cursor_that_no_list_gave_is_refused(store: Store) -> None:
    await store.submit_many(ANN, in_pieces([TRUE] * 3), at=NOW)
    given = (await store.list_jobs(JobFilter(limit=1))).next
    assert given is not None
    wrong = [
        "", "1", ".", "..", "cd", "cd.1", "cd.1.2.3", "cd.n.1", "cd.sYQ.1", "cd.01.2", "cd.1.x",
        f"cd.{1 << 63}.1", "cd.1." + "9" * 5000, "cd. 1.2", "cd.1_0.2", "cd.\u0663.1", "x" * 9000,
        "cd.\ud800.1", given + "\n", given.upper(),
    ]  # fmt: skip
    for word in wrong:
        with pytest.raises(InvalidValue, match="after is"):
            await store.list_jobs(JobFilter(after=word))
        with pytest.raises(InvalidValue, match="after is"):
            await store.queue(word)
        with pytest.raises(InvalidValue, match="after is"):
            await store.expiring(None, NOW, after=word)
    for word in ("na.s*.1", "na.sgA.1", "na.s\u0663.1", "na.1.1", given):
        with pytest.raises(InvalidValue, match="after is"):
            await store.list_jobs(JobFilter(after=word, sort=Sort.NAME, is_ascending=True))


@pytest.mark.parametrize("sort", Sort)
@pytest.mark.parametrize("after", [None, (1, 2), (None, 2)])
@pytest.mark.parametrize("is_ascending", [False, True])
def test_a_page_is_read_in_the_order_of_an_index(
    sort: Sort, after: tuple[int | None, int] | None, is_ascending: bool, tmp_path: Path
) -> None:
    """A page costs what its rows cost, however many jobs there are: nothing else is sorted."""
    wanted = JobFilter(sort=sort, is_ascending=is_ascending)
    for begin in ranges(after, is_ascending=is_ascending):
        plan = _plan(tmp_path, listing(wanted, "keys_of_final", [begin]), dict.fromkeys(VALUES, 1))
        assert f"SEARCH j USING COVERING INDEX jobs_final_{sort.value}" in plan
        assert "TEMP B-TREE" not in plan


def test_what_a_start_reads_is_found_by_an_index(tmp_path: Path) -> None:
    statement = f"{QUERIES['select_job']} {QUERIES['where_active']}"
    assert "SCAN j USING INDEX jobs_active" in _plan(tmp_path, statement, {})
    lane = {"priority": 0, "uid": 1, "has_gpus": 0, "limit": 5}
    plan = _plan(tmp_path, f"{QUERIES['select_job']} {QUERIES['where_lane']}", lane)
    assert "SEARCH j USING INDEX jobs_lanes (priority=? AND uid=? AND <expr>=?)" in plan
    assert "TEMP B-TREE" not in plan
    plan = _plan(tmp_path, QUERIES["next_user_of_queue"], {"priority": 0, "uid": 1})
    assert "jobs_lanes (priority=? AND uid>?)" in plan


def _plan(folder: Path, statement: str, values: dict[str, Any]) -> str:
    async def make() -> None:
        async with opened(folder / "queue.db") as store:
            await store.submit(ANN, TRUE, at=NOW)

    asyncio.run(make())
    with closing(sqlite3.connect(folder / "queue.db")) as connection:
        steps = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
    return "; ".join(step[3] for step in steps)


# Events


@on_store
async def test_events_are_read_by_job_by_user_and_from_where_one_stopped(store: Store) -> None:
    for owner in (ANN, BEN, ANN):
        await store.submit(owner, TRUE, at=NOW)
    await store.move(*whole_way(2))
    await store.move(assign(1), *whole_way(3))
    every = await assert_gapless(store)
    assert [event.number for event in every] == [1, 2, 3, 2, 2, 2, 1, 3, 3, 3]
    for since, limit in product((0, 1, 5, 9, 10, 99), (1, 3, 100)):
        later = [event for event in every if event.seq > since]
        assert await store.events(since=since, limit=limit) == later[:limit]
        for uid in (ANN.uid, BEN.uid, 5):
            own = [event for event in later if event.uid == uid]
            assert await store.events(uid=uid, since=since, limit=limit) == own[:limit]
            for number in (1, 2, 3, 4):
                of_job = [event for event in later if event.number == number]
                found = await store.events(number=number, since=since, limit=limit)
                assert found == of_job[:limit]
                of_owner = [event for event in of_job if event.uid == uid]
                found = await store.events(number=number, uid=uid, since=since, limit=limit)
                assert found == of_owner[:limit]


@on_store
async def test_a_reader_sees_what_was_answered(store: Store) -> None:
    for number in range(1, 200):
        job = await job_in(store, S.ASSIGNED)
        assert job.number == number
        page = await store.list_jobs(JobFilter(limit=1, sort=Sort.FINISHED))
        assert [one.number for one in page.jobs] == [number]
