"""Totals as they happen: statistics read these and not the history of jobs.

A row holds the figures of a subject over a quarter of an hour (level 0), a day of UTC (1) or a
block of 32 days (2): the days of any time zone are made of quarters. A subject is an owner (his
uid), everybody (-1), or one name of an owner's jobs in one block (-1 - its id in ``names``).

A change notes what it adds; all notes of a transaction are added up and written before its commit,
at level 0 and for owners and names only. The other levels, and everybody's rows, are written when
a day is over; what comes late for such a day goes into all of them. So it costs one write a
subject and commit, and every row is the sum of its parts at any time, whatever the clock does.

Names: a block has at most NAMES_MAX of them for an owner, the first ones; the others' figures are
in one row without a name. A name is forgotten with the last job that had it, its figures stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from aitbcd.model import Cause
from aitbcd.store import lanes
from aitbcd.store.sql import QUERIES
from aitbcd.store.writer import Transaction

QUARTER_US = 900_000_000
#: Quarters in a day, days in a block.
DAY, BLOCK = 96, 32
EVERYBODY = -1
NAMES_MAX = 256
#: Of how many owners the names are kept in mind.
_IN_MIND = 64

#: Columns of a row, added up one by one; the last is a histogram.
Figures: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, int, int]
FIGURES = (
    "submitted", "completed", "failed", "canceled", "run_us", "cpu_us", "gpu_us",
    "charge_micro", "energy_mj", "wait_us", "waits",
)  # fmt: skip

_NOTHING = (0,) * (len(FIGURES) - 1)
_ADD = QUERIES["add_total"]


class Piece(NamedTuple):
    """Rows of one level from ``begin`` up to ``end``."""

    level: int
    begin: int
    end: int


def note(transaction: Transaction, uid: int, name: str | None, at: int, figures: Figures) -> None:
    """Add to an owner's figures, and to those of a name, at a time."""
    quarter = at // QUARTER_US
    transaction.notes.append((uid, quarter, figures))
    if name is not None:
        name_id = _name_id(transaction, uid, quarter // (DAY * BLOCK), name)
        transaction.notes.append((subject_of(name_id), quarter, figures))


class Submitted:
    """Counts the jobs of one submit, however many: it stays small."""

    def __init__(self, uid: int, at: int) -> None:
        self._uid = uid
        self._quarter = at // QUARTER_US
        self._count = 0
        self._of_names: Counter[int] = Counter()

    def add(self, transaction: Transaction, names: list[str | None]) -> None:
        self._count += len(names)
        block = self._quarter // (DAY * BLOCK)
        for name, count in Counter(names).items():
            if name is not None:
                self._of_names[_name_id(transaction, self._uid, block, name)] += count

    def note(self, transaction: Transaction) -> None:
        transaction.notes.append((self._uid, self._quarter, (self._count, *_NOTHING)))
        for name_id, count in self._of_names.items():
            transaction.execute(QUERIES["count_name"], (count, name_id))
            subject = subject_of(name_id)
            transaction.notes.append((subject, self._quarter, (count, *_NOTHING)))


def subject_of(name_id: int) -> int:
    return EVERYBODY - name_id


def flush(transaction: Transaction) -> None:
    """Write all that was noted, and close the days that are over."""
    if not transaction.notes:
        return
    until: int = transaction.execute(QUERIES["totals_until"]).fetchone()[0]
    sums: dict[tuple[int, int], Figures] = {}
    for subject, quarter, figures in transaction.notes:
        key = subject, quarter
        known = sums.get(key)
        sums[key] = figures if known is None else _added(known, figures)
    transaction.notes.clear()
    for (subject, quarter), figures in sums.items():
        for row in _rows_of(subject, quarter, until):
            transaction.execute(_ADD, (*row, *figures[:-1], lanes.pack(figures[-1])))
    today = max(quarter for _, quarter in sums) // DAY
    if today > until:
        _close(transaction, until, today)


def count_failure(
    transaction: Transaction, uid: int, name: str | None, at: int, cause: Cause
) -> None:
    """Count a job that failed by a cause, with its owner, its name and everybody, at all levels."""
    quarter = at // QUARTER_US
    times = (quarter, quarter // DAY, quarter // (DAY * BLOCK))
    subjects = [uid, EVERYBODY]
    if name is not None:
        subjects.append(subject_of(_name_id(transaction, uid, times[2], name)))
    for subject in subjects:
        for level, begin in enumerate(times):
            values = (subject, level, begin, cause.value)
            transaction.execute(QUERIES["count_failure"], values)


def catch_up(transaction: Transaction) -> None:
    """Close the days of a file that was brought up to date."""
    until, last = transaction.execute(QUERIES["totals_open"]).fetchone()
    if last is not None and last // DAY > until:
        _close(transaction, until, last // DAY)


def _added(one: Figures, other: Figures) -> Figures:
    return tuple(map(int.__add__, one, other))  # type: ignore[return-value]


def _rows_of(subject: int, quarter: int, until: int) -> Iterator[tuple[int, int, int]]:
    """Yield (subject, level, at) of the rows that a quarter belongs to."""
    day, block = quarter // DAY, quarter // (DAY * BLOCK)
    yield subject, 0, quarter
    if day >= until:
        return
    subjects = [subject]
    if subject >= 0:
        yield EVERYBODY, 0, quarter
        subjects.append(EVERYBODY)
    for each in subjects:
        yield each, 1, day
        if (block + 1) * BLOCK <= until:
            yield each, 2, block


def _close(transaction: Transaction, until: int, today: int) -> None:
    """Write the rows of the days from ``until`` up to ``today``, and of blocks that end there."""
    days = {"begin": until, "end": today}
    blocks = {"begin": until // BLOCK, "end": today // BLOCK}
    transaction.execute(QUERIES["close_quarters"], days)
    transaction.execute(QUERIES["close_days"], days)
    transaction.execute(QUERIES["close_blocks"], blocks)
    transaction.execute(QUERIES["set_totals_until"], (today,))


class Names:
    """The names of an owner in a block, as far as they have rows."""

    __slots__ = ("count", "ids")

    def __init__(self, found: Iterable[tuple[int, str | None]]) -> None:
        self.ids = {text: own for own, text in found}
        self.count = 0


def _name_id(transaction: Transaction, uid: int, block: int, name: str) -> int:
    """Return the id of a name in a block: its own, or that of the others."""
    names = transaction.names.get((uid, block))
    if names is None:
        if len(transaction.names) >= _IN_MIND:
            transaction.names.clear()
        found = transaction.execute(QUERIES["names_of_block"], (uid, block)).fetchall()
        names = transaction.names[uid, block] = Names(found)
        # With those that are forgotten: what was counted for the others stays there.
        names.count = len(found)
    known = names.ids.get(name)
    if known is None:
        is_full = names.count >= NAMES_MAX
        known = names.ids.get(None) if is_full else None
        if known is None:
            text = None if is_full else name
            known = transaction.execute(QUERIES["add_name"], (uid, block, text)).lastrowid
            assert known is not None
            names.ids[text] = known
            names.count += 1
    return known


def forget(transaction: Transaction, uid: int, name: str, created_at: int) -> None:
    """Take note that a job is deleted: with the last one that had its name, the name goes."""
    block = created_at // (QUARTER_US * DAY * BLOCK)
    transaction.execute(QUERIES["uncount_name"], (uid, name, block))
    left = transaction.execute(QUERIES["count_of_name"], (uid, name)).fetchone()[0]
    if not left:
        transaction.execute(QUERIES["forget_name"], (uid, name))
        transaction.names.clear()


def pieces(begin: int, end: int, until: int) -> list[Piece]:
    """Return the rows that make up the quarters from ``begin`` up to ``end``, as few as can be.

    Args:
        until: the day up to which days are closed.
    """
    closed = max(begin, min(end, until * DAY))
    first, last = -(-begin // DAY), closed // DAY
    if first >= last:
        found = [Piece(0, begin, closed)]
    else:
        found = [Piece(0, begin, first * DAY), Piece(0, last * DAY, closed)]
        low, high = -(-first // BLOCK), last // BLOCK
        if low >= high:
            found.append(Piece(1, first, last))
        else:
            whole = Piece(1, first, low * BLOCK), Piece(1, high * BLOCK, last)
            found += [*whole, Piece(2, low, high)]
    found.append(Piece(0, closed, end))
    return [piece for piece in found if piece.begin < piece.end]
