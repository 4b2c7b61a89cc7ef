"""Decides which waiting jobs start now, and on which GPUs. Pure: no clock, no I/O.

First comes the higher priority, then whoever has fewest GPUs in use, then fewest cores, then first
come. So that nobody starves who has something already, whoever has waited for long comes before
those who have less: one job of each user in so long a time (``first_overdue``).

A job that lacks cores or memory is overtaken by nobody, so that small ones cannot starve it; one
that asks for more than there is at all, which was taken in when there was more, by all. A job
that lacks GPUs is overtaken by those that do without: GPUs of its kind are kept for it, free ones
and those that shares have yet to leave, as long as enough of them can come without anybody's doing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

from aitbcd.allotment import Held, Stock, Wish
from aitbcd.model import Lane
from aitbcd.units import format_size


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
    #: When it came.
    since: int = 0


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


class Turn(NamedTuple):
    """A job that is considered."""

    lane: Lane
    waiting: Waiting


@dataclass(slots=True)
class Left:
    """What keeps jobs waiting that a plan does not start, though something is free."""

    #: The job that lacks cores or memory, whom nobody overtakes.
    first: Turn | None = None
    #: By UUID, the job for which a GPU is kept.
    kept: dict[str, Turn] = field(default_factory=dict)

    @property
    def collecting(self) -> list[Turn]:
        """Return the jobs for which several GPUs are collected.

        It stays their turn until they start: whoever has less by then would take one of those that
        are kept, again and again, while the others stay idle.
        """
        turns = dict.fromkeys(self.kept.values())
        return [turn for turn in turns if turn.waiting.wish.count > 1]


_NOTHING = Use()
#: Comes before who has nothing in use.
_AHEAD = -1
#: Whose turn it is: priority, GPUs and cores in use, number; and the line as far as it was read.
_Turn = tuple[int, int, int, int, int, Waiting, Lane, Iterator[Waiting]]


def plan(
    lines: Iterable[Line],
    free: Claim,
    stock: Stock | None = None,
    uses: Mapping[int, Use] | None = None,
    caps: Mapping[int, Cap] | None = None,
    ahead: Collection[Turn] = (),
    left: Left | None = None,
    *,
    whole: Claim | None = None,
) -> list[Placement]:
    """Return the jobs to start, in order.

    Args:
        free: what is left of cores and memory.
        uses: by uid, who has what.
        caps: by uid, who may have no more.
        ahead: jobs of the lines that come before those of who has less, whoever it is.
        left: is told why others have to wait.
        whole: what jobs share; None: there is room for each of these.
    """
    stock = stock or Stock()
    left = left or Left()
    uses = dict(uses or {})
    if not stock.has_room:
        lines = [line for line in lines if not line.lane.has_gpus]
        ahead = [turn for turn in ahead if not turn.lane.has_gpus]
    turns = _Turns(lines, uses, caps or {}, ahead)
    chosen: list[Placement] = []
    while (found := turns.first()) is not None:
        lane, waiting = found
        number, claim, wish, _ = waiting
        if whole is not None and not claim.fits(whole):
            turns.advance()
            continue
        uuids = stock.allot(wish)
        if uuids is None:
            turns.refuse(wish)
            if closed := stock.collected_for(wish):
                stock = stock.without(closed)
                left.kept.update(dict.fromkeys(closed, found))
        elif not claim.fits(free):
            left.first = found
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
        self,
        lines: Iterable[Line],
        uses: Mapping[int, Use],
        caps: Mapping[int, Cap],
        ahead: Collection[Turn],
    ) -> None:
        self._uses = uses
        self._caps = caps
        #: Within one plan GPUs only become fewer: what was refused once need not be tried again.
        self._refused: set[Wish] = set()
        self._turns: list[_Turn] = []
        turns = self._turns
        early = {waiting.number for _, waiting in ahead}
        for at, (lane, job) in enumerate(ahead):
            turns.append((-lane.priority, _AHEAD, 0, job.number, ~at, job, lane, iter(())))
        for at, (lane, jobs) in enumerate(lines):
            rest = iter(jobs)
            if early:
                rest = (waiting for waiting in rest if waiting.number not in early)
            if (head := next(rest, None)) is not None:
                priority, uid, _ = lane
                _, gpus, cpus = uses.get(uid, _NOTHING)
                turns.append((-priority, gpus, cpus, head.number, at, head, lane, rest))
        heapify(turns)

    def first(self) -> Turn | None:
        """Return the job whose turn it is; without what cannot start now."""
        turns, uses, caps, refused = self._turns, self._uses, self._caps, self._refused
        while turns:
            priority, gpus, cpus, number, at, head, lane, rest = turns[0]
            uid = lane.uid
            use = uses.get(uid, _NOTHING)
            if gpus != _AHEAD and (gpus != use.gpus or cpus != use.cpus):
                turn = priority, use.gpus, use.cpus, number, at, head, lane, rest
                heapreplace(turns, turn)
            elif uid in caps and caps[uid].reached_by(use, head.wish):
                heappop(turns)
            elif head.wish in refused:
                self._pass_over(rest)
            else:
                return Turn(lane, head)
        return None

    def refuse(self, wish: Wish) -> None:
        """Leave out all jobs that ask for this."""
        self._refused.add(wish)

    def leave_gpus(self) -> None:
        """Leave all lines out that are for GPUs."""
        self._turns = [turn for turn in self._turns if not turn[-2].has_gpus]
        heapify(self._turns)

    def _pass_over(self, rest: Iterator[Waiting]) -> None:
        """Go on to the next job of the first line that asks for something else."""
        for waiting in rest:
            if waiting.wish not in self._refused:
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


def first_overdue(line: Line, before: int, started: Mapping[tuple[int, Wish], int]) -> Turn | None:
    """Return the first job of a line that has waited for long, though it might have been started.

    Args:
        before: who came later has not waited for long.
        started: by uid and wish, when such a job was started last. Whose are started now and then
            does not starve.
    """
    lane, jobs = line
    for waiting in jobs:
        if waiting.since > before:
            break
        if started.get((lane.uid, waiting.wish), 0) <= before:
            return Turn(lane, waiting)
    return None


def lacking(claim: Claim, free: Claim, whole: Claim) -> str:
    """Return as a sentence what a job at the head of the queue waits for; empty: for nothing."""
    if not claim.fits(whole):
        _, asked = too_much(claim, whole)
        return f"{asked} ([slots] in the configuration)"
    lacks = []
    if claim.cpus > free.cpus:
        lacks.append(f"{_count(claim.cpus, 'CPU core')} ({max(free.cpus, 0)} of {whole.cpus} free)")
    if claim.memory > free.memory:
        left = f"{format_size(max(free.memory, 0))} of {format_size(whole.memory)} free"
        lacks.append(f"{format_size(claim.memory)} of memory ({left})")
    return "waits for " + " and ".join(lacks) if lacks else ""


def too_much(claim: Claim, whole: Claim) -> tuple[str, str]:
    """Return which field of a claim is more than jobs share, and that as a sentence of a job."""
    if claim.cpus > whole.cpus:
        cores = _count(claim.cpus, "CPU core")
        return "cpus", f"asks for {cores} and jobs share {whole.cpus} here"
    asked, shared = format_size(claim.memory), format_size(whole.memory)
    return "memory", f"asks for {asked} of memory and jobs share {shared} here"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
