"""Statistics from the totals that are kept: of an owner or everybody, whole or in groups."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta, tzinfo
from enum import Enum
from typing import Any

from msgspec import Struct, field

from aitbcd.model import Value
from aitbcd.store import lanes
from aitbcd.store.listing import uids
from aitbcd.store.sql import QUERIES
from aitbcd.store.totals import BLOCK, DAY, EVERYBODY, FIGURES, QUARTER_US, Piece, pieces

#: In the place of a name where there is none; no job's name is empty.
_UNNAMED = ""
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class By(str, Enum):
    """What makes a group."""

    USER = "user"
    NAME = "name"
    DAY = "day"


class Totals(Struct, frozen=True):
    """Figures of many jobs: of those submitted, and of those that ended, in a time."""

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    #: How long completed jobs ran.
    run_us: int = 0
    #: Cores, and GPUs, times the time that attempts ran, whatever became of them. A share of a GPU
    #: is that part of one.
    cpu_us: int = 0
    gpu_us: int = 0
    charge_micro: int = 0
    #: What their GPUs used.
    energy_mj: int = 0
    #: From the submit to the first start, of those that ended and had one.
    wait_us: int = 0
    #: The same as a histogram (lanes.py).
    waits: int = 0

    @property
    def finished(self) -> int:
        return self.completed + self.failed + self.canceled

    @property
    def mean_run_us(self) -> float | None:
        return self.run_us / self.completed if self.completed else None

    @property
    def median_wait_us(self) -> int | None:
        return lanes.quantile_us(self.waits, 0.5)

    @property
    def p95_wait_us(self) -> int | None:
        return lanes.quantile_us(self.waits, 0.95)

    def plus(self, other: Totals, times: int = 1) -> Totals:
        return Totals(*(getattr(self, n) + times * getattr(other, n) for n in FIGURES))


assert Totals.__struct_fields__ == FIGURES


class Group(Struct, frozen=True):
    """A user's, a name's or a day's part."""

    #: A user, a name or a date; None for jobs without a name.
    key: str | None
    totals: Totals
    #: How many failed by a cause.
    causes: Mapping[str, int] = field(default_factory=dict)
    #: Names that are not counted one by one, and those of deleted jobs.
    is_rest: bool = False


class Stats(Struct, frozen=True):
    total: Totals
    groups: list[Group]
    #: How many of all failed by a cause.
    causes: Mapping[str, int] = field(default_factory=dict)


class Wanted(Value, frozen=True):
    """Which statistics; times are widened to whole quarters of an hour."""

    #: None: everybody's.
    uid: int | None = None
    begin: int | None = None
    end: int | None = None
    by: By | None = None
    #: In which days are days.
    zone: tzinfo | None = None
    #: How many groups at most; days are the last ones, names the ones with the most jobs.
    limit: int = 1000


def read(connection: sqlite3.Connection, wanted: Wanted) -> Stats:
    """Return the statistics, as of now."""
    until: int = connection.execute(QUERIES["totals_until"]).fetchone()[0]
    begin, end = _span(connection, wanted)
    total = _total(connection, wanted.uid, begin, end, until)
    causes = _causes(connection, [("", _subject(wanted.uid), begin, end)]).get("", {})
    groups: list[Group] = []
    if wanted.by is By.USER:
        groups = _by_user(connection, wanted, begin, end, until)
    elif wanted.by is By.NAME:
        groups = _by_name(connection, wanted, begin, end, until, total, causes)
    elif wanted.by is By.DAY:
        groups = _by_day(connection, wanted, begin, end, until)
    return Stats(total, groups, causes)


def _subject(uid: int | None) -> int:
    return EVERYBODY if uid is None else uid


def _causes(
    connection: sqlite3.Connection, asked: Iterable[tuple[Any, int, int, int]]
) -> dict[Any, dict[str, int]]:
    """Return by key and cause how many jobs of (key, subject, begin, end) failed.

    All levels are written as jobs fail, so that every day counts as closed.
    """
    found: dict[Any, dict[str, int]] = {}
    text = json.dumps(
        [
            (key, subject, *p)
            for key, subject, first, last in asked
            for p in pieces(first, last, last)
        ]
    )
    for key, cause, jobs in connection.execute(QUERIES["sum_failures"], {"pieces": text}):
        found.setdefault(key, {})[cause] = jobs
    return found


def _causes_by_name(
    connection: sqlite3.Connection, owners: Iterable[int], begin: int, end: int
) -> tuple[dict[str, dict[str, int]], Counter[str]]:
    """Return how many failed by name and cause, and of all names that are or were there."""
    asked = [
        (uid, block, *piece)
        for block, low, high in _blocks(begin, end)
        for uid in owners
        for piece in pieces(low, high, high)
    ]
    found: dict[str, dict[str, int]] = {}
    total: Counter[str] = Counter()
    rows = connection.execute(QUERIES["sum_named_failures"], {"pieces": json.dumps(asked)})
    for name, cause, jobs in rows:
        total[cause] += jobs
        if name is not None:
            found.setdefault(name, {})[cause] = jobs
    return found, total


def _blocks(begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (block, quarter of its begin, quarter behind its end) within a time."""
    size = DAY * BLOCK
    for block in range(begin // size, -(-end // size)):
        yield block, max(begin, block * size), min(end, (block + 1) * size)


def _span(connection: sqlite3.Connection, wanted: Wanted) -> tuple[int, int]:
    """Return the quarters from the first to behind the last that have figures and are asked for."""
    subjects = uids(connection) if wanted.uid is None else [wanted.uid]
    rows = [
        (
            connection.execute(QUERIES["first_total"], {"subject": subject}).fetchone()[0],
            connection.execute(QUERIES["last_total"], {"subject": subject}).fetchone()[0],
        )
        for subject in subjects
    ]
    there = [(first, last) for first, last in rows if first is not None]
    begin = min((first for first, _ in there), default=0)
    end = max((last + 1 for _, last in there), default=0)
    if wanted.begin is not None:
        begin = max(begin, wanted.begin // QUARTER_US)
    if wanted.end is not None:
        end = min(end, -(-wanted.end // QUARTER_US))
    return begin, max(begin, end)


def _subjects(
    connection: sqlite3.Connection, uid: int | None, begin: int, end: int, until: int
) -> Iterator[tuple[int, Piece]]:
    """Yield the rows that make up a time: everybody's rows are there for closed days only."""
    owners = [uid] if uid is not None else []
    for piece in pieces(begin, end, until):
        if uid is None and (piece.level or piece.end <= until * DAY):
            yield EVERYBODY, piece
            continue
        owners = owners or uids(connection)
        for owner in owners:
            yield owner, piece


def _sums(
    connection: sqlite3.Connection, query: str, asked: Iterable[Sequence[Any]]
) -> dict[Any, Totals]:
    text = json.dumps(list(asked))
    found = connection.execute(QUERIES[query], {"pieces": text})
    return {row[0]: _totals(row) for row in found}


def _totals(row: Sequence[Any]) -> Totals:
    return Totals(*(*row[1:-1], lanes.unpack(row[-1])))


def _total(
    connection: sqlite3.Connection, uid: int | None, begin: int, end: int, until: int
) -> Totals:
    asked = [("", subject, *p) for subject, p in _subjects(connection, uid, begin, end, until)]
    return _sums(connection, "sum_totals", asked).get("", Totals())


def _by_user(
    connection: sqlite3.Connection, wanted: Wanted, begin: int, end: int, until: int
) -> list[Group]:
    users = dict(connection.execute(QUERIES["users"]))
    owners = [uid for uid in users if wanted.uid in (None, uid)]
    asked = [(uid, uid, *piece) for uid in owners for piece in pieces(begin, end, until)]
    sums = _sums(connection, "sum_totals", asked)
    causes = _causes(connection, [(uid, uid, begin, end) for uid in sums])
    found = (Group(users[uid], sums[uid], causes.get(uid, {})) for uid in sums)
    return sorted(found, key=_size)[: wanted.limit]


def _by_name(
    connection: sqlite3.Connection,
    wanted: Wanted,
    begin: int,
    end: int,
    until: int,
    total: Totals,
    causes: Mapping[str, int],
) -> list[Group]:
    owners = uids(connection) if wanted.uid is None else [wanted.uid]
    asked = []
    for block, low, high in _blocks(begin, end):
        for uid in owners:
            asked += [(uid, block, *piece) for piece in pieces(low, high, until)]
    # There may be a hundred thousand names: only those that are shown become objects.
    found = connection.execute(
        QUERIES["sum_named_totals"], {"pieces": json.dumps(asked)}
    ).fetchall()
    columns = [*zip(*found, strict=True)][1:] or [()] * len(FIGURES)
    named = Totals(*(*map(sum, columns[:-1]), sum(map(lanes.unpack, columns[-1]))))
    if (unnamed := total.plus(named, -1)) != Totals():
        figures = (getattr(unnamed, n) for n in FIGURES[:-1])
        found.append((_UNNAMED, *figures, lanes.pack(unnamed.waits)))
    found = [row for row in found if row[0] is not None]
    found.sort(key=lambda row: (-max(row[1], row[2] + row[3] + row[4]), row[0]))
    failed, of_names = _causes_by_name(connection, owners, begin, end)
    failed[_UNNAMED] = Counter(causes) - of_names
    shown = [
        Group(row[0] or None, _totals(row), failed.get(row[0], {})) for row in found[: wanted.limit]
    ]
    rest, left = total, Counter(causes)
    for group in shown:
        rest = rest.plus(group.totals, -1)
        left -= Counter(group.causes)
    return shown if rest == Totals() else [*shown, Group(None, rest, left, is_rest=True)]


def _size(group: Group) -> tuple[int, str]:
    """Return the place of a group: those with the most jobs come first."""
    return -max(group.totals.submitted, group.totals.finished), group.key or ""


def _by_day(
    connection: sqlite3.Connection, wanted: Wanted, begin: int, end: int, until: int
) -> list[Group]:
    asked = [
        (day, subject, *piece)
        for day, first, last in _days(wanted, begin, end)
        for subject, piece in _subjects(connection, wanted.uid, first, last, until)
    ]
    sums = _sums(connection, "sum_totals", asked)
    subject = _subject(wanted.uid)
    causes = _causes(
        connection, [(day, subject, first, last) for day, first, last in _days(wanted, begin, end)]
    )
    return [Group(day, sums[day], causes.get(day, {})) for day in sorted(sums)][-wanted.limit :]


def _days(wanted: Wanted, begin: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Yield (date, quarter of its begin, quarter behind its end) of the days of a zone."""
    if begin >= end:
        return
    zone = wanted.zone or _EPOCH.tzinfo
    day = (_EPOCH + timedelta(seconds=begin * 900)).astimezone(zone).date()
    first = begin
    while first < end:
        following = day + timedelta(days=1)
        last = min(end, max(first, _quarter(following, zone)))
        yield day.isoformat(), first, last
        day, first = following, last


def _quarter(day: date, zone: tzinfo | None) -> int:
    """Return the quarter in which a day of a zone begins."""
    midnight = datetime.combine(day, time(), zone)
    return int((midnight - _EPOCH).total_seconds()) // 900
