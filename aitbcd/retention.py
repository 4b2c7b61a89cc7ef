"""Whether the clock may be believed when it says that results have expired. Pure.

What a wrong clock deletes nobody brings back. So its time is held against two others before
anything goes: the time that the machine has run, since both were read together (an ``Anchor``), and
the time of the newest event, before which it cannot be. Times are microseconds.
"""

from __future__ import annotations

from msgspec import Struct

from aitbcd.wire import Json, rfc3339

_SECOND_US = 1_000_000
#: How far the clock may move on its own: a leap of time servers, an hour of a wrong zone.
JUMP_MAX_US = 86_400 * _SECOND_US
#: A time server that corrects a clock sets it back by seconds.
BEHIND_MAX_US = 60 * _SECOND_US


class Anchor(Struct, frozen=True):
    """A moment at which the clock was believed."""

    #: ``steady`` starts anew with each boot.
    boot_id: str
    now: int
    #: What the machine had run by then, suspended or not (CLOCK_BOOTTIME).
    steady: int
    #: The time of an event that counts no more: somebody has said that the clock is right.
    excused: int | None = None


class Stop(Struct, frozen=True):
    """Why nothing expires at present, and since when by that same clock."""

    reason: str
    since: int


def distrust(anchor: Anchor, now: int, steady: int, newest_event_at: int | None) -> str | None:
    """Return why the clock is not to be believed, as a sentence; None where it is."""
    jump = (now - anchor.now) - (steady - anchor.steady)
    if abs(jump) > JUMP_MAX_US:
        way = "ahead" if jump > 0 else "back"
        days = abs(jump) / JUMP_MAX_US
        return f"the clock was set {way} by {days:,.1f} days, to {_said(now)}"
    if newest_event_at is None or newest_event_at == anchor.excused:
        return None
    if now < newest_event_at - BEHIND_MAX_US:
        return f"the clock says {_said(now)}, and the newest event is of {_said(newest_event_at)}"
    return None


def _said(at: int) -> str:
    return rfc3339(at) or ""


def to_json(value: Anchor | Stop) -> Json:
    if isinstance(value, Stop):
        return {"reason": value.reason, "since": value.since}
    return {
        "boot_id": value.boot_id,
        "now": value.now,
        "steady": value.steady,
        "excused": value.excused,
    }


def anchor_of(value: Json) -> Anchor:
    return Anchor(value["boot_id"], value["now"], value["steady"], value["excused"])


def stop_of(value: Json) -> Stop:
    return Stop(value["reason"], value["since"])
