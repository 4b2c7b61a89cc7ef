"""Which jobs a list or an export shows: what can be asked, the same for both."""

from __future__ import annotations

from aitbcd.api.context import sees_all
from aitbcd.api.operations import Asked, Parameter, choice, choices, flag, moment, number, text
from aitbcd.clock import now_us
from aitbcd.errors import Forbidden
from aitbcd.model import JobState, Owner
from aitbcd.store import JobFilter, Sort

PAGE_MAX = 200
_DAY_US = 86_400_000_000
#: A century: longer than any job is kept.
_DAYS_MAX = 36_525
#: ``cursors`` has the form.
_CURSOR = r"^[a-z]{1,2}\.(n|-?[0-9]{1,18}|s[A-Za-z0-9_-]{0,1400})\.[0-9]{1,18}$"

STATUS = choices("status", "In one of these states", [state.value for state in JobState])
FROM = moment("from", "Submitted at this time or later")
TO = moment("to", "Submitted before this time, or on this day or before", is_end=True)
DAYS = number("days", "Submitted in the last so many days", 1, _DAYS_MAX, default=None)
USER = text("user", "Of this user: another one than oneself is the administrators' to ask")
NAME = text("name", "Of this name; * stands for any characters, ? for one", longest=255)
ALL = flag("all", "Everybody's: for administrators")
SORT = choice(
    "sort",
    "By what: the newest, the last to end, the longest first, names from a to z; - reverses",
    [sign + sort.value for sort in Sort for sign in ("", "-")],
    default=Sort.CREATED.value,
)
LIMIT = number("limit", "How many at most", 1, PAGE_MAX, default=50)
AFTER: Parameter[str | None] = text(
    "after", "The next of the page before", _CURSOR, longest=1500, wanted="the next of a page"
)
#: What chooses jobs, and their order.
CHOICE = (STATUS, FROM, TO, DAYS, USER, NAME, ALL, SORT)


def wanted(owner: Owner, asked: Asked) -> JobFilter:
    """Return what ``CHOICE`` was asked with, for this user.

    Raises:
        Forbidden: others' jobs, and he is not root.
    """
    word: str = asked[SORT]
    sort = Sort(word.removeprefix("-"))
    return JobFilter(
        uid=whose(owner, asked),
        user=asked[USER],
        statuses=frozenset(JobState(name) for name in asked[STATUS]),
        name=asked[NAME],
        created_from=since(asked[FROM], asked[DAYS]),
        created_before=asked[TO],
        sort=sort,
        is_ascending=(sort is Sort.NAME) != word.startswith("-"),
    )


def whose(owner: Owner, asked: Asked) -> int | None:
    """Return whose jobs are asked for with ``ALL`` and ``USER``; None for everybody's."""
    if asked[ALL]:
        sees_all(owner)
        return None
    if asked[USER] in (None, owner.name):
        return owner.uid
    if not owner.is_admin:
        raise Forbidden(
            f"only administrators see the jobs of {asked[USER]}; you are {owner.name}",
            hint="everybody's place in the queue is shown by: aitbcctl queue",
        )
    return None


def since(begin: int | None, days: int | None) -> int | None:
    """Return where a span of time begins that is given by a time, by days until now, or both."""
    if days is None:
        return begin
    return max(begin or 0, now_us() - days * _DAY_US)
