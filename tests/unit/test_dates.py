"""Days of the caller's zone, as instants."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aitbcctl import dates
from aitbcctl.refusals import Usage

ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Asia/Kathmandu"]


@contextmanager
def zone(name: str) -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


def parsed(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


@given(st.dates(date(1971, 1, 2), date(2036, 1, 1)), st.sampled_from(ZONES), st.integers(0, 86399))
def test_a_day_holds_each_of_its_times_and_no_other(day: date, name: str, second: int) -> None:
    with zone(name):
        first, end = parsed(dates.since(day.isoformat())), parsed(dates.until(day.isoformat()))
    inside = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(name)).astimezone(UTC)
    moment = inside + timedelta(seconds=second)
    # Until 2011 St. John's went back at 00:01, to 23:01: that day came in two parts.
    assume(name != "America/St_Johns" or day.year > 2011)
    is_of_it = moment.astimezone(ZoneInfo(name)).date() == day
    assert (first <= moment < end) == is_of_it
    assert (end - timedelta(microseconds=1)).astimezone(ZoneInfo(name)).date() == day


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),  # noqa: DTZ001
    st.integers(-1439, 1439),
)
def test_a_time_with_a_zone_is_that_instant(moment: datetime, minutes: int) -> None:
    offset = timedelta(minutes=minutes)
    text = (
        moment.isoformat()
        + datetime(1, 1, 2, tzinfo=UTC).replace(tzinfo=timezone(offset)).isoformat()[19:]
    )
    assert parsed(dates.since(text)) == (moment - offset).replace(tzinfo=UTC)
    assert dates.until(text) == dates.since(text)


def test_a_time_without_a_zone_is_local() -> None:
    with zone("Asia/Kathmandu"):
        assert dates.since("2026-01-31 10:00") == "2026-01-31T04:15:00Z"


@given(st.text(max_size=30))
def test_whatever_is_written_is_an_instant_or_refused(text: str) -> None:
    for read in (dates.since, dates.until):
        with suppress(Usage):
            assert parsed(read(text)).tzinfo is not None


@pytest.mark.parametrize("text", ["2026-02-30", "yesterday", "", "9999-12-32", "12:00"])
def test_no_such_day_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="--to"):
        dates.until(text)


@pytest.mark.parametrize("name", ZONES)
def test_the_last_day_there_is_ends_with_time_itself(name: str) -> None:
    with zone(name):
        assert dates.until("9999-12-31") == "9999-12-31T23:59:59.999999Z"


def test_days_before_any_time_are_refused() -> None:
    with pytest.raises(Usage, match="--days 99999999"):
        dates.days_before(datetime(2026, 1, 1, tzinfo=UTC), 99999999)
