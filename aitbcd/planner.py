"""Decides which waiting jobs start now, and on which GPUs. Pure: no clock, no I/O.

First comes the higher priority, then whoever has fewest GPUs in use, then fewest cores, then first
come. A job that lacks cores or memory is overtaken by nobody, so that small ones cannot starve it.
A job that lacks GPUs is overtaken by those that do without: GPUs of its kind are kept for it, free
ones and those that shares have yet to leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

from aitbcd.allotment import Held, Stock, Wish
from aitbcd.model import Lane


class Claim(NamedTuple):
    """What a job takes of the machine while it runs, beside GPUs."""

    cpus: int
    #: Bytes; 0 claims none.
    memory: int = 0

    def plus(self, other: Claim) -> Claim:
        return Claim(self.cpus + other.cpus, self.memory + other.memory)

    def minus(self, other: Claim) -> Claim:
        return Claim(self.cpus - other.cpus, self.memory - other.memory)

    def fits(self, free: Claim) -> bool:
        return self.cpus <= free.cpus and self.memory <= free.memory


class Waiting(NamedTuple):
    number: int
    claim: Claim
    wish: Wish = Wish()


class Line(NamedTuple):
    """The jobs of a lane, which start in their order."""

    lane: Lane
    jobs: Iterable[Waiting]


class Use(NamedTuple):
    """What a user has in use."""

    running: int = 0
    gpus: int = 0
    cpus: int = 0

    def plus(self, cpus: int, gpus: int) -> Use:
        return Use(self.running + 1, self.gpus + gpus, self.cpus + cpus)

    def minus(self, cpus: int, gpus: int) -> Use:
        return Use(self.running - 1, self.gpus - gpus, self.cpus - cpus)


class Cap(NamedTuple):
    """What a user may have in use; None is no limit."""

    running: int | None = None
    gpus: int | None = None

    def reached_by(self, use: Use, wish: Wish) -> str | None:
        """Return which limit keeps a job from running now."""
        if self.running is not None and use.running >= self.running:
            return "running"
        if self.gpus is not None and wish.count and use.gpus + wish.count > self.gpus:
            return "gpus"
        return None


class Placement(NamedTuple):
    number: int
    lane: Lane
    gpu_uuids: tuple[str, ...]


#: How many wishes of a line, whatever jobs have each, are looked past for one that can be granted.
PASSED_MOST = 15
_NOTHING = Use()
#: Whose turn it is: priority, GPUs and cores in use, number; and the line as far as it was read.
_Turn = tuple[int, int, int, int, int, Waiting, Lane, Iterator[Waiting]]


def plan(
    lines: Iterable[Line],
    free: Claim,
    stock: Stock | None = None,
    uses: Mapping[int, Use] | None = None,
    caps: Mapping[int, Cap] | None = None,
) -> list[Placement]:
    """Return the jobs to start, in order.

    Args:
        free: what is left of cores and memory.
        uses: by uid, who has what.
        caps: by uid, who may have no more.
    """
    stock = stock or Stock()
    uses = dict(uses or {})
    if not stock.has_room:
        lines = [line for line in lines if not line.lane.has_gpus]
    turns = _Turns(lines, uses, caps or {})
    chosen: list[Placement] = []
    while (found := turns.first()) is not None:
        (number, claim, wish), lane = found
        uuids = stock.allot(wish)
        if uuids is None:
            turns.refuse(wish)
            stock = stock.collecting(wish)
        elif not claim.fits(free):
            break
        else:
            free = free.minus(claim)
            uses[lane.uid] = uses.get(lane.uid, _NOTHING).plus(claim.cpus, wish.count)
            chosen.append(Placement(number, lane, uuids))
            turns.advance()
            if not uuids:
                continue
            stock = stock.with_held(Held(uuids, wish.share))
        if not stock.has_room:
            turns.leave_gpus()
    return chosen


class _Turns:
    """The lines, by whose turn it is. Turns only come later, so a stale one is found when due."""

    def __init__(
        self, lines: Iterable[Line], uses: Mapping[int, Use], caps: Mapping[int, Cap]
    ) -> None:
        self._uses = uses
        self._caps = caps
        #: Within one plan GPUs only become fewer: what was refused once need not be tried again.
        self._refused: set[Wish] = set()
        #: By line, how many wishes were passed over.
        self._passed: dict[int, int] = {}
        self._turns: list[_Turn] = []
        turns = self._turns
        for at, (lane, jobs) in enumerate(lines):
            rest = iter(jobs)
            if (head := next(rest, None)) is not None:
                priority, uid, _ = lane
                _, gpus, cpus = uses.get(uid, _NOTHING)
                turns.append((-priority, gpus, cpus, head.number, at, head, lane, rest))
        heapify(turns)

    def first(self) -> tuple[Waiting, Lane] | None:
        """Return the job whose turn it is, and its lane; without what cannot start now."""
        turns, uses, caps, refused = self._turns, self._uses, self._caps, self._refused
        while turns:
            priority, gpus, cpus, number, at, head, lane, rest = turns[0]
            uid = lane.uid
            use = uses.get(uid, _NOTHING)
            if gpus != use.gpus or cpus != use.cpus:
                turn = priority, use.gpus, use.cpus, number, at, head, lane, rest
                heapreplace(turns, turn)
            elif uid in caps and caps[uid].reached_by(use, head.wish):
                heappop(turns)
            elif head.wish in refused:
                self._pass_over(at, rest)
            else:
                return head, lane
        return None

    def refuse(self, wish: Wish) -> None:
        """Leave out all jobs that ask for this."""
        self._refused.add(wish)

    def leave_gpus(self) -> None:
        """Leave all lines out that are for GPUs."""
        self._turns = [turn for turn in self._turns if not turn[-2].has_gpus]
        heapify(self._turns)

    def _pass_over(self, at: int, rest: Iterator[Waiting]) -> None:
        """Go on to the next job of the first line that asks for something else; not for ever."""
        passed, refused = self._passed.get(at, 0), self._refused
        if passed < PASSED_MOST:
            for waiting in rest:
                if waiting.wish not in refused:
                    self._passed[at] = passed + 1
                    self._go_on(waiting)
                    return
        heappop(self._turns)

    def advance(self) -> None:
        """Go on to the next job of the first line."""
        if (waiting := next(self._turns[0][-1], None)) is None:
            heappop(self._turns)
        else:
            self._go_on(waiting)

    def _go_on(self, head: Waiting) -> None:
        priority, gpus, cpus, _, at, _, lane, rest = self._turns[0]
        # What the user has by now is looked up when it seems to be his turn.
        turn = priority, gpus, cpus, head.number, at, head, lane, rest
        heapreplace(self._turns, turn)


def lacking(claim: Claim, free: Claim, whole: Claim) -> str:
    """Return as a sentence what a job at the head of the queue waits for; empty: for nothing."""
    lacks = []
    if claim.cpus > free.cpus:
        lacks.append(f"{_count(claim.cpus, 'CPU core')} ({max(free.cpus, 0)} of {whole.cpus} free)")
    if claim.memory > free.memory:
        left = f"{_gib(max(free.memory, 0))} of {_gib(whole.memory)} free"
        lacks.append(f"{_gib(claim.memory)} of memory ({left})")
    return "waits for " + " and ".join(lacks) if lacks else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
