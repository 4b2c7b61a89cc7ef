"""The kernel's timer rings at a time of day (timerfd_create(2))."""

from __future__ import annotations

import asyncio

from aitbcd.clock import Alarm, now_us, steady_us


def rings(at: int | None, *, then: int | None = None) -> int:
    """Set an alarm, perhaps a second time; return when it rang."""

    async def scenario() -> int:
        rang = asyncio.Event()
        alarm = Alarm(rang.set)
        try:
            alarm.set(at)
            if then is not None:
                alarm.set(then)
            async with asyncio.timeout(60):
                await rang.wait()
        finally:
            alarm.close()
        return now_us()

    return asyncio.run(scenario())


def test_it_rings_at_its_time_and_not_before() -> None:
    at = now_us() + 100_000
    assert rings(at) >= at


def test_what_has_passed_rings_at_once() -> None:
    assert rings(now_us() - 10**12) > 0
    assert rings(-5) > 0


def test_it_can_be_set_to_another_time() -> None:
    at = now_us() + 50_000
    assert rings(None, then=at) >= at
    assert rings(now_us() + 10**15, then=at) >= at


def test_the_machine_has_run_for_a_while_and_goes_on() -> None:
    first = steady_us()
    assert 0 < first <= steady_us()
