"""Totals: whatever happens, and whatever the clock does, they are what counting again gives."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aitbcd.errors import AitbcError
from aitbcd.lifecycle import Trigger
from aitbcd.model import Cause, GpuUse, Owner, Reason
from aitbcd.store import By, Group, Move, Store, Totals, Wanted, lanes, totals
from aitbcd.store.totals import QUARTER_US, pieces
from tests.integration.stores import (
    ANN,
    BEN,
    NOW,
    SECOND,
    TRUE,
    S,
    assign,
    complete,
    ending,
    in_pieces,
    on_store,
    opened,
    run,
    whole_way,
)

HOUR = 3600 * SECOND
DAY = 24 * HOUR
ZONES: list[tzinfo] = [
    UTC,
    ZoneInfo("Europe/Berlin"),
    ZoneInfo("Asia/Kathmandu"),
    timezone(timedelta(hours=-9, minutes=-30)),
]


# Counting again


class Moment(NamedTuple):
    """What happened to a job."""

    at: int
    user: str
    name: str | None
    figures: Totals
    #: By what it failed.
    cause: str | None = None


def counted(path: Path, uid: int | None) -> list[Moment]:
    """Return all that happened, from the jobs themselves."""
    moments = []
    with closing(sqlite3.connect(path)) as connection:
        jobs = connection.execute(
            "SELECT number, uid, user, name, status, cpus, gpus, created_at, finished_at, run_us,"
            " attempt, cause FROM jobs"
        ).fetchall()
        for (
            number,
            owner,
            user,
            name,
            status,
            cpus,
            gpus,
            created_at,
            finished_at,
            run_us,
            last,
            cause,
        ) in jobs:
            if uid not in (None, owner):
                continue
            moments.append(Moment(created_at, user, name, Totals(submitted=1)))
            attempts = connection.execute(
                "SELECT started_at, finished_at, charge_micro, gpu_use FROM attempts"
                " WHERE number = ?",
                (number,),
            ).fetchall()
            for started, ended, charge, gpu_use in attempts:
                if ended is not None:
                    used = 0 if started is None else max(0, ended - started)
                    energy_j = json.loads(gpu_use)["energy_j"] if gpu_use else 0
                    part = Totals(
                        cpu_us=used * cpus,
                        gpu_us=used * gpus,
                        charge_micro=charge,
                        energy_mj=round(energy_j * 1000),
                    )
                    moments.append(Moment(ended, user, name, part))
            if finished_at is None:
                continue
            starts = [started for started, *_ in attempts if started is not None]
            wait = max(0, min(starts) - created_at) if starts and last else None
            final = Totals(
                completed=status == "completed",
                failed=status == "failed",
                canceled=status == "canceled",
                run_us=(run_us or 0) if status == "completed" else 0,
                wait_us=wait or 0,
                waits=0 if wait is None else lanes.one(wait),
            )
            failed_by = cause if status == "failed" else None
            moments.append(Moment(finished_at, user, name, final, failed_by))
    return moments


def added(parts: Iterable[Totals]) -> Totals:
    total = Totals()
    for part in parts:
        total = total.plus(part)
    return total


def causes_of(moments: Iterable[Moment]) -> Counter[str]:
    return Counter(moment.cause for moment in moments if moment.cause)


def groups_of(moments: Iterable[tuple[str | None, Moment]]) -> list[Group]:
    keys: dict[str | None, list[Moment]] = {}
    for key, moment in moments:
        keys.setdefault(key, []).append(moment)
    groups = [
        Group(key, added(each.figures for each in parts), causes_of(parts))
        for key, parts in keys.items()
    ]
    return [group for group in groups if group.totals != Totals()]


async def assert_counted(
    store: Store, path: Path, chance: random.Random, *, has_names: bool = True
) -> None:
    """Compare totals of any time with a recount."""
    for uid in (None, ANN.uid, BEN.uid, 4):
        every = counted(path, uid)
        times = [NOW, *(moment.at for moment in every)]
        for _ in range(4):
            begin, end = (chance.choice([None, chance.choice(times)]) for _ in range(2))
            low = -(1 << 62) if begin is None else begin // QUARTER_US * QUARTER_US
            high = 1 << 62 if end is None else -(-end // QUARTER_US) * QUARTER_US
            inside = [moment for moment in every if low <= moment.at < high]
            wanted = Wanted(uid, begin, end)
            stats = await store.stats(wanted)
            assert stats.total == added(moment.figures for moment in inside)
            assert stats.causes == causes_of(inside)
            assert stats.groups == []
            zone = chance.choice(ZONES)

            expected = {
                By.DAY: groups_of((day_of(each.at, zone), each) for each in inside),
                By.USER: groups_of((each.user, each) for each in inside),
                By.NAME: groups_of((each.name, each) for each in inside),
            }
            for by in By if has_names else (By.DAY, By.USER):
                found = await store.stats(replace(wanted, by=by, zone=zone))
                assert found.total == stats.total
                there = [group for group in found.groups if group.totals != Totals()]
                assert sorted(there, key=_place) == sorted(expected[by], key=_place)


def _place(group: Group) -> str:
    return str(group.key)


def day_of(at: int, zone: tzinfo) -> str:
    return datetime.fromtimestamp(at // SECOND, UTC).astimezone(zone).date().isoformat()


#: How far the clock goes between two things.
STEPS = [1, SECOND, 20 * 60 * SECOND, 5 * HOUR, 3 * DAY, 40 * DAY, -2 * DAY]


class Life:
    """Jobs that are submitted, moved and deleted at random, with a clock that jumps."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.now = NOW
        self.last = 0

    def tick(self) -> int:
        self.now += self.chance.choice(
            [1, SECOND, 20 * 60 * SECOND, 5 * HOUR, 3 * DAY, 40 * DAY, -2 * DAY]
        )
        return self.now

    async def step(self) -> None:
        chance = self.chance
        owner: Owner = chance.choice([ANN, BEN])
        name = chance.choice([None, "train", "eval", "train-2"])
        spec = replace(TRUE, name=name, cpus=chance.choice([1, 3]), gpus=chance.choice([0, 2]))
        if not self.last or chance.random() < 0.1:
            job, _ = await self.store.submit(owner, spec, at=self.tick())
            self.last = job.number
        elif chance.random() < 0.02:
            batch = await self.store.submit_many(owner, in_pieces([spec] * 5, 2), at=self.tick())
            self.last = batch.ids[-1][0]
        else:
            number = chance.randint(max(1, self.last - 5), self.last)
            try:
                await self.move(number)
            except AitbcError:
                pass

    async def move(self, number: int) -> None:
        chance = self.chance
        job = await self.store.job(number)
        if job is None:
            return
        attempt, charge = job.attempt, chance.randrange(100)
        if job.status is S.PENDING:
            await self.store.move(assign(number, attempt + 1, at=self.tick()))
        elif job.status is S.ASSIGNED:
            await self.store.move(run(number, attempt, at=self.tick()))
        elif job.status is S.RUNNING:
            at = self.tick()
            cause = chance.choice([None, Cause.CUDA_OOM, Cause.XID])
            use = GpuUse(1.0, 1, 1.0, energy_j=chance.randrange(900)) if job.gpus else None
            end = ending(Reason.EXIT, at=at, charge_micro=charge, cause=cause, gpu_use=use)
            await self.store.move(
                chance.choice(
                    [
                        complete(number, attempt, at=at),
                        Move(number, attempt, S.RUNNING, Trigger.FAIL, at, ending=end),
                        Move(number, attempt, S.RUNNING, Trigger.REQUEUE, at, ending=end),
                    ]
                ),
                # Sometimes the second sinks the first.
                *[run(number)] * (chance.random() < 0.1),
            )


@pytest.mark.parametrize("seed", range(4))
def test_totals_are_what_counting_again_gives(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "queue.db"

    async def scenario() -> None:
        async with opened(path) as store:
            life = Life(store, seed)
            for _ in range(6):
                for _ in range(10):
                    # Together, so that they share commits and refusals.
                    await asyncio.gather(*(life.step() for _ in range(8)))
                await assert_counted(store, path, life.chance)
        async with opened(path) as store:
            await assert_counted(store, path, random.Random(seed))
            stats = await store.stats(Wanted())
            assert stats.total.completed
            assert stats.causes

    asyncio.run(scenario())


def test_deleting_changes_no_total(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"

    async def scenario() -> None:
        async with opened(path) as store:
            life = Life(store, 9)
            for _ in range(200):
                await life.step()
            before = await store.stats(Wanted())
            names = await store.stats(Wanted(by=By.NAME))
            assert before.total.finished > 5
            for number in range(1, life.last + 1):
                try:
                    await store.delete(number, NOW, None)
                except AitbcError:
                    continue
            assert await store.stats(Wanted()) == before
            await assert_counted(store, path, life.chance, has_names=False)
            after = await store.stats(Wanted(by=By.NAME))
            assert added(group.totals for group in after.groups) == before.total
            assert {group.key for group in after.groups} <= {group.key for group in names.groups}

    asyncio.run(scenario())


@on_store
async def test_a_name_is_forgotten_with_the_last_job_that_had_it(store: Store) -> None:
    for number in (1, 2, 3):
        name = "other" if number == 3 else "secret"
        at = NOW + (number == 2) * 40 * DAY
        await store.submit(ANN, replace(TRUE, name=name), at=at)
        await store.move(*whole_way(number))
    wanted = Wanted(by=By.NAME)
    assert [group.key for group in (await store.stats(wanted)).groups] == ["secret", "other"]
    await store.delete(1, NOW, None)
    assert [group.key for group in (await store.stats(wanted)).groups] == ["secret", "other"]
    await store.delete(2, NOW, None)
    groups = (await store.stats(wanted)).groups
    assert [(group.key, group.is_rest) for group in groups] == [("other", False), (None, True)]
    assert groups[1].totals.completed == 2


@on_store
async def test_names_stay_few_when_every_job_has_its_own(store: Store) -> None:
    specs = [replace(TRUE, name=f"job {n}") for n in range(1000)]
    await store.submit_many(ANN, in_pieces(specs), at=NOW)
    for number in (1, 2, 999):
        await store.move(*whole_way(number))
    await store.submit(BEN, replace(TRUE, name="mine"), at=NOW)
    groups = (await store.stats(Wanted(by=By.NAME))).groups
    assert len(groups) == totals.NAMES_MAX + 2
    assert groups[-1] == Group(None, groups[-1].totals, is_rest=True)
    assert groups[-1].totals.submitted == 1000 - totals.NAMES_MAX
    assert groups[-1].totals.completed == 1
    assert sum(group.totals.submitted for group in groups) == 1001
    few = (await store.stats(Wanted(by=By.NAME, limit=3))).groups
    assert [group.key for group in few] == ["job 0", "job 1", "job 10", None]
    assert added(group.totals for group in few) == added(group.totals for group in groups)


@on_store
async def test_what_names_failed_by_is_told_and_of_the_others_together(store: Store) -> None:
    specs = [replace(TRUE, name=name) for name in ("big", "big", "small", None)]
    await store.submit_many(ANN, in_pieces(specs), at=NOW)
    for number, cause in enumerate((Cause.CUDA_OOM, Cause.CUDA_OOM, Cause.XID, Cause.XID), 1):
        end = ending(Reason.EXIT, cause=cause)
        fail = Move(number, 1, S.RUNNING, Trigger.FAIL, NOW, ending=end)
        await store.move(assign(number), run(number), fail)

    async def shown(limit: int) -> list[tuple[str | None, bool, dict[str, int]]]:
        groups = (await store.stats(Wanted(by=By.NAME, limit=limit))).groups
        return [(group.key, group.is_rest, dict(group.causes)) for group in groups]

    big = "big", False, {"cuda_oom": 2}
    assert await shown(9) == [big, (None, False, {"xid": 1}), ("small", False, {"xid": 1})]
    assert await shown(1) == [big, (None, True, {"xid": 2})]
    await store.delete(3, NOW, None)
    assert await shown(9) == [big, (None, False, {"xid": 1}), (None, True, {"xid": 1})]


# The parts of a time


@given(st.integers(0, 9000), st.integers(0, 9000), st.integers(0, 90))
def test_pieces_make_up_a_time_once_and_are_few(one: int, other: int, until: int) -> None:
    begin, end = sorted((one, other))
    sizes = (1, totals.DAY, totals.DAY * totals.BLOCK)
    found: list[int] = []
    for level, low, high in pieces(begin, end, until):
        found += range(low * sizes[level], high * sizes[level])
        if level:
            assert high * sizes[level] <= until * totals.DAY
    assert sorted(found) == list(range(begin, end))
    assert len(pieces(begin, end, until)) <= 6


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=50))
def test_a_quantile_is_near_the_wait_of_that_rank(waits: list[int]) -> None:
    histogram = sum(map(lanes.one, waits))
    assert lanes.count(histogram) == len(waits)
    assert lanes.unpack(lanes.pack(histogram)) == histogram
    for part in (0.5, 0.95):
        found = lanes.quantile_us(histogram, part)
        assert found is not None
        wait = sorted(waits)[math.ceil(part * len(waits)) - 1]
        assert abs(found - wait) <= 0.2 * wait + 1000
    assert lanes.quantile_us(0, 0.5) is None
