"""Decides which waiting jobs start now, and on which GPUs. Pure: no clock, no I/O.

First comes the higher priority, then whoever has fewest GPUs in use, then fewest cores, then first
come. A job that lacks cores or memory is overtaken by nobody, so that small ones cannot starve it.
A job that lacks GPUs is overtaken by those that do without: free GPUs of its kind are kept for it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

from aitbcd.allotment import Stock, Wish
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


#: How many jobs of a line that lack GPUs are looked past for one of another kind.
_PASSED_MOST = 8
_NOTHING, _NO_CAP = Use(), Cap()
_Turn = tuple[int, int, int, int, int]


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
    caps = caps or {}
    queues = _Queues(lines, uses)
    chosen: list[Placement] = []
    refused: set[Wish] = set()
    while (found := queues.first()) is not None:
        waiting, lane = found
        use = uses.get(lane.uid, _NOTHING)
        if caps.get(lane.uid, _NO_CAP).reached_by(use, waiting.wish):
            queues.leave()
            continue
        # Within one plan GPUs only become fewer: what was refused once need not be tried again.
        uuids = None if waiting.wish in refused else stock.allot(waiting.wish)
        if uuids is None:
            if waiting.wish not in refused:
                refused.add(waiting.wish)
                stock = stock.collecting(waiting.wish)
                if not stock.has_room:
                    queues.leave_gpus()
                    continue
            queues.pass_over(refused)
            continue
        if not waiting.claim.fits(free):
            break
        free = free.minus(waiting.claim)
        uses[lane.uid] = use.plus(waiting.claim.cpus, waiting.wish.count)
        if uuids:
            stock = stock.with_held(str(waiting.number), uuids, waiting.wish.share)
        chosen.append(Placement(waiting.number, lane, uuids))
        queues.skip()
        if uuids and not stock.has_room:
            queues.leave_gpus()
    return chosen


class _Queues:
    """The lines, by whose turn it is. Turns only come later, so a stale one is found when due."""

    def __init__(self, lines: Iterable[Line], uses: Mapping[int, Use]) -> None:
        self._uses = uses
        self._lines: list[tuple[Lane, Iterator[Waiting]]] = []
        self._turns: list[tuple[_Turn, Waiting]] = []
        for line in lines:
            jobs = iter(line.jobs)
            self._lines.append((line.lane, jobs))
            if (waiting := next(jobs, None)) is not None:
                self._turns.append((self._turn(len(self._lines) - 1, waiting), waiting))
        heapify(self._turns)
        #: By line, how many jobs were passed over.
        self._passed = [0] * len(self._lines)

    def _turn(self, at: int, waiting: Waiting) -> _Turn:
        priority, uid, _ = self._lines[at][0]
        _, gpus, cpus = self._uses.get(uid, _NOTHING)
        return -priority, gpus, cpus, waiting.number, at

    def first(self) -> tuple[Waiting, Lane] | None:
        """Return the job whose turn it is, and its lane."""
        while self._turns:
            turn, waiting = self._turns[0]
            current = self._turn(turn[-1], waiting)
            if current == turn:
                return waiting, self._lines[turn[-1]][0]
            heapreplace(self._turns, (current, waiting))
        return None

    def leave(self) -> None:
        """Leave the first line out."""
        heappop(self._turns)

    def leave_gpus(self) -> None:
        """Leave all lines out that are for GPUs."""
        self._turns = [one for one in self._turns if not self._lines[one[0][-1]][0].has_gpus]
        heapify(self._turns)

    def pass_over(self, refused: Container[Wish]) -> None:
        """Go on to the next job of the first line that asks for something else; not for ever."""
        turn, _ = self._turns[0]
        at = turn[-1]
        for waiting in self._lines[at][1]:
            self._passed[at] += 1
            if self._passed[at] == _PASSED_MOST:
                break
            if waiting.wish not in refused:
                heapreplace(self._turns, (self._turn(at, waiting), waiting))
                return
        self.leave()

    def skip(self) -> None:
        """Go on to the next job of the first line."""
        turn, _ = heappop(self._turns)
        at = turn[-1]
        if (waiting := next(self._lines[at][1], None)) is not None:
            heappush(self._turns, (self._turn(at, waiting), waiting))


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
