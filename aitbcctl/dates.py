"""Dates and times as people write them -> RFC 3339, for the API. Pure but for the local zone.

A date alone is a day of the caller's zone: from its first instant, to its last one. A time without
a zone is local, too.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

from aitbcctl.refusals import Usage


def since(text: str) -> str:
    """Return the first instant that ``--from TEXT`` means."""
    return _rfc3339("--from", text, is_end=False)


def until(text: str, option: str = "--to") -> str:
    """Return the first instant that ``--to TEXT`` leaves out."""
    return _rfc3339(option, text, is_end=True)


def days_before(now: datetime, days: int) -> str:
    """Return the instant so many days before ``now``.

    Raises:
        Usage: there was no such time.
    """
    try:
        return _format(now - timedelta(days=days))
    except OverflowError:
        raise Usage(f"--days {days}: there was no such time") from None


def is_before(begin: str, end: str) -> bool:
    """Tell whether one result of the above is an earlier instant than another."""
    return datetime.fromisoformat(begin) < datetime.fromisoformat(end)


def _rfc3339(option: str, text: str, *, is_end: bool) -> str:
    try:
        return _format(_moment(text.strip(), is_end=is_end))
    except (ValueError, OverflowError):
        raise Usage(
            f"{option} {text!r}: expected a date or a time, "
            "for example 2026-01-31 or 2026-01-31T10:00:00Z"
        ) from None


def _moment(text: str, *, is_end: bool) -> datetime:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return datetime.fromisoformat(text)
    if is_end and day == date.max:
        return datetime.max.replace(tzinfo=UTC)
    if is_end:
        day += timedelta(days=1)
    # Midnight by the wall clock: a day of a change of the clocks has 23 or 25 hours.
    return datetime.combine(day, time.min)


def _format(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
