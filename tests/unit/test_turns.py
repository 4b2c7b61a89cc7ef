"""Whose request is worked on when many ask at once."""

from __future__ import annotations

import asyncio

import pytest

from aitbcd.api.turns import Turns
from aitbcd.errors import RateLimited


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_of_one_user_two_are_worked_on_and_nobody_else_waits() -> None:
    async def run() -> list[str]:
        turns, begun = Turns(), list[str]()

        async def work(who: str) -> None:
            async with turns.of(who):
                begun.append(who)
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(work(who)) for who in ("ada",) * 5 + ("bob",)]
        await settle()
        first = list(begun)
        # One that is given up lets the next one in; one that waited is no loss.
        tasks[4].cancel()
        tasks[0].cancel()
        await settle()
        assert begun == [*first, "ada"]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert not turns._lines
        return first

    assert asyncio.run(run()) == ["ada", "ada", "bob"]


def test_a_turn_can_be_given_back_before_its_end() -> None:
    async def run() -> None:
        turns = Turns()
        async with turns.of("ada") as first, turns.of("ada"):
            third = asyncio.create_task(turns.take("ada"))
            await settle()
            assert not third.done()
            first.end()
            first.end()
            await third
            turns.end("ada")
        assert not turns._lines

    asyncio.run(run())


def test_more_than_can_wait_is_refused() -> None:
    async def run() -> None:
        turns = Turns()
        tasks = [asyncio.create_task(turns.take("ada")) for _ in range(1000)]
        await settle()
        with pytest.raises(RateLimited):
            turns.check("ada")
        turns.check("bob")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(run())
