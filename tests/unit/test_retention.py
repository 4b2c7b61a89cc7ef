"""Nothing expires by a clock that cannot be right."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from aitbcd.retention import (
    BEHIND_MAX_US,
    JUMP_MAX_US,
    Anchor,
    Stop,
    anchor_of,
    distrust,
    stop_of,
    to_json,
)

NOW = 1_790_000_000_000_000
HOUR = 3_600_000_000
DAY = 24 * HOUR
YEARS = st.integers(0, 200 * 365 * DAY)
ANCHOR = Anchor("boot", NOW, 5 * HOUR)


@given(YEARS, st.integers(-JUMP_MAX_US, JUMP_MAX_US))
def test_a_clock_that_goes_with_the_machine_is_believed(ran: int, drift: int) -> None:
    now = NOW + ran + drift
    assert distrust(ANCHOR, now, 5 * HOUR + ran, None) is None
    assert distrust(ANCHOR, now, 5 * HOUR + ran, now) is None


@given(YEARS, st.integers(JUMP_MAX_US + 1, 200 * 365 * DAY), st.sampled_from([-1, 1]))
def test_a_clock_that_jumps_more_than_a_day_is_not(ran: int, jump: int, way: int) -> None:
    now = max(0, NOW + ran + way * jump)
    said = distrust(ANCHOR, now, 5 * HOUR + ran, None)
    assert said is not None
    assert ("ahead" if way > 0 else "back") in said


def test_many_small_jumps_are_a_large_one() -> None:
    now = NOW
    believed = 0
    for _ in range(10):
        now += 5 * HOUR
        if distrust(ANCHOR, now, 5 * HOUR, None):
            break
        believed += 1
    assert believed == 4


@given(st.integers(BEHIND_MAX_US + 1, 100 * 365 * DAY))
def test_a_clock_before_the_newest_event_is_not_believed(behind: int) -> None:
    said = distrust(ANCHOR, NOW, 5 * HOUR, NOW + behind)
    assert said is not None
    assert "newest event" in said


@given(st.integers(0, BEHIND_MAX_US))
def test_a_clock_that_is_corrected_by_seconds_is(behind: int) -> None:
    assert distrust(ANCHOR, NOW, 5 * HOUR, NOW + behind) is None


def test_an_event_that_somebody_excused_counts_no_more() -> None:
    wrong = NOW + 1000 * DAY
    excused = Anchor("boot", NOW, 5 * HOUR, wrong)
    assert distrust(excused, NOW + 1, 5 * HOUR + 1, wrong) is None
    assert distrust(excused, NOW + 1, 5 * HOUR + 1, wrong + 1) is not None


def test_what_is_said_has_the_times_that_do_not_fit() -> None:
    assert distrust(ANCHOR, NOW + 3 * DAY, 5 * HOUR, None) == (
        "the clock was set ahead by 3.0 days, to 2026-09-24T14:13:20Z"
    )
    assert distrust(ANCHOR, NOW, 5 * HOUR, NOW + DAY) == (
        "the clock says 2026-09-21T14:13:20Z, and the newest event is of 2026-09-22T14:13:20Z"
    )


def test_what_is_kept_comes_back() -> None:
    anchor = Anchor("boot", 1, 2, 3)
    assert anchor_of(json.loads(json.dumps(to_json(anchor)))) == anchor
    stop = Stop("why", 4)
    assert stop_of(json.loads(json.dumps(to_json(stop)))) == stop
