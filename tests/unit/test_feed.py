"""Events reach those who wait for them, and a slow reader harms nobody."""

from __future__ import annotations

import asyncio

import pytest

from aitbcd.feed import Feed, Overrun
from aitbcd.model import Event, JobState


def event(seq: int, number: int = 1, uid: int = 1) -> Event:
    return Event(seq, number, f"job_{number}", uid, seq, JobState.PENDING, 0)


def test_a_reader_gets_what_it_asked_for_in_order() -> None:
    async def run() -> None:
        feed = Feed()
        with feed.subscribe(number=2) as of_job, feed.subscribe(uid=7) as of_user:
            feed.publish([event(1), event(2, number=2), event(3, uid=7)])
            feed.publish([event(4, number=2, uid=7)])
            assert [(await anext(of_job)).seq for _ in range(2)] == [2, 4]
            assert [(await anext(of_user)).seq for _ in range(2)] == [3, 4]

    asyncio.run(run())


def test_a_waiting_reader_is_woken() -> None:
    async def run() -> int:
        feed = Feed()
        with feed.subscribe() as subscription:
            waiting = asyncio.create_task(anext(subscription))
            await asyncio.sleep(0)
            feed.publish([event(9)])
            found: Event = await waiting
            return found.seq

    assert asyncio.run(run()) == 9


def test_a_slow_reader_is_told_to_resume_from_the_store() -> None:
    async def run() -> None:
        feed = Feed()
        with feed.subscribe(limit=3) as slow, feed.subscribe() as quick:
            feed.publish(event(seq) for seq in range(1, 6))
            with pytest.raises(Overrun):
                await anext(slow)
            assert [(await anext(quick)).seq for _ in range(5)] == [1, 2, 3, 4, 5]

    asyncio.run(run())


def test_readers_end_with_the_feed() -> None:
    async def run() -> list[int]:
        feed = Feed()
        with feed.subscribe() as subscription:
            feed.publish([event(1)])
            feed.close()
            return [found.seq async for found in subscription]

    assert asyncio.run(run()) == [1]


def test_whoever_reads_the_store_is_woken_by_any_change() -> None:
    async def run() -> None:
        feed, woken = Feed(), asyncio.Event()
        with feed.waking(woken):
            feed.publish(())
            assert woken.is_set()
        woken.clear()
        feed.publish([event(1)])
        assert not woken.is_set()

    asyncio.run(run())
