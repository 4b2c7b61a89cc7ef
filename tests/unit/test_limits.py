"""Nobody asks more often than he may, and nobody pays for another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd.api.limits import Limit


def test_a_burst_passes_and_then_the_rate() -> None:
    limit = Limit(rate=2, burst=3)
    assert [limit.take("ada", 0.0) for _ in range(3)] == [0, 0, 0]
    assert limit.take("ada", 0.0) == pytest.approx(0.5)
    assert limit.take("bob", 0.0) == 0
    assert limit.take("ada", 0.5) == 0
    assert limit.take("ada", 0.5) > 0


def test_what_is_refused_costs_nothing() -> None:
    limit = Limit(rate=1, burst=1)
    assert limit.take("ada", 0.0) == 0
    for _ in range(100):
        assert limit.take("ada", 0.5) == pytest.approx(0.5)
    assert limit.take("ada", 1.0) == 0


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    limit = Limit(rate=1, burst=2)
    assert limit.take("ada", 10.0) == 0
    assert limit.take("ada", 5.0) == 0
    assert limit.take("ada", 5.0) > 0


def test_those_who_left_are_forgotten() -> None:
    limit = Limit(rate=1, burst=1)
    for number in range(10_000):
        limit.take(number, float(number))
    assert len(limit._left) <= 4096


@given(st.floats(0.1, 100), st.integers(1, 50), st.lists(st.floats(0, 10), max_size=200))
def test_never_more_than_the_burst_and_the_rate(
    rate: float, burst: int, pauses: list[float]
) -> None:
    limit, now, passed = Limit(rate, burst), 0.0, 0
    for pause in pauses:
        now += pause
        again = limit.take("ada", now)
        passed += again == 0
        assert passed <= burst + now * rate + 1e-6
        assert 0 <= again <= 1 / rate + 1e-6
