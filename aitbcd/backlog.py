"""The front of the queue, in memory: the next jobs to start. The whole queue lives in the store.

A window over each lane of what waits, refilled from the store when it runs low, so that memory
does not follow the queue's length and no user's jobs hide another's.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from aitbcd.allotment import Wish
from aitbcd.model import Job, JobSpec, Lane
from aitbcd.planner import Claim, Line, Waiting

#: Jobs in the window of a lane; each may carry an environment of its own.
WINDOW = 64
#: Below this a window is refilled while more jobs wait in the store.
LOW = 24


class Entry(NamedTuple):
    """A waiting job."""

    job: Job
    #: None when it was not at hand.
    spec: JobSpec | None
    #: The same for the planner, which looks at it many times.
    waiting: Waiting

    @classmethod
    def of(cls, job: Job, spec: JobSpec | None) -> Entry:
        return cls(job, spec, Waiting(job.number, claim_of(job), wish_of(job)))


def claim_of(job: Job) -> Claim:
    return Claim(job.cpus, job.memory or 0)


def wish_of(asked: Job | JobSpec) -> Wish:
    return Wish(asked.gpus, asked.gpu_type, asked.min_vram, asked.gpu, asked.vram)


def lane_of(job: Job) -> Lane:
    return Lane(int(job.priority), job.owner.uid, job.gpus > 0)


def _number(entry: Entry) -> int:
    return entry.job.number


_waiting = attrgetter("waiting")


@dataclass(slots=True)
class _Window:
    entries: list[Entry] = field(default_factory=list)
    #: It holds all that waits in its lane.
    is_whole: bool = False
    #: A job may be missing in its middle.
    is_torn: bool = False

    @property
    def is_low(self) -> bool:
        return self.is_torn or (not self.is_whole and len(self.entries) < LOW)

    def offer(self, entry: Entry) -> None:
        if not self.is_whole and (not self.entries or _number(entry) > _number(self.entries[-1])):
            return
        if all(_number(each) != _number(entry) for each in self.entries):
            insort(self.entries, entry, key=_number)
        if len(self.entries) > 2 * WINDOW:
            del self.entries[WINDOW:]
            self.is_whole = False


class Backlog:
    def __init__(self) -> None:
        self._windows: dict[Lane, _Window] = {}
        #: Every lane in which jobs wait is here.
        self._is_known = False
        #: Raised with every job that comes, so that a refill knows whether it missed one.
        self._arrivals = 0

    def __len__(self) -> int:
        return sum(len(window.entries) for window in self._windows.values())

    @property
    def is_low(self) -> bool:
        return not self._is_known or any(window.is_low for window in self._windows.values())

    def lines(self) -> list[Line]:
        """Return the lanes for the planner."""
        return [
            Line(lane, map(_waiting, window.entries))
            for lane, window in self._windows.items()
            if window.entries
        ]

    def fronts(self, count: int) -> Iterator[Job]:
        """Yield the first so many jobs of each lane."""
        return (entry.job for window in self._windows.values() for entry in window.entries[:count])

    def place(self, lane: Lane, number: int) -> int | None:
        """Return how many jobs of its lane stand before one; None: the window lacks it."""
        window = self._windows.get(lane)
        for place, entry in enumerate(window.entries if window else ()):
            if _number(entry) == number:
                return place
        return None

    def ahead(self, job: Job) -> int:
        """Return how many jobs are known to be before this one, were there no turns to take."""
        rank = (-job.priority, job.number)
        return sum(
            (-lane.priority, _number(entry)) < rank
            for lane, window in self._windows.items()
            if lane.priority >= job.priority
            for entry in window.entries
        )

    def offer(self, job: Job, spec: JobSpec | None) -> None:
        """Take in a job that was just committed, if its place is within the window."""
        self._arrivals += 1
        window = self._windows.get(lane_of(job))
        if window is None and self._is_known:
            window = self._windows[lane_of(job)] = _Window(is_whole=True)
        if window is not None:
            window.offer(Entry.of(job, spec))

    def arrived(self, uid: int) -> None:
        """Note that jobs of a user came which were not offered one by one."""
        self._arrivals += 1
        self._is_known = False
        for lane, window in self._windows.items():
            if lane.uid == uid:
                window.is_whole = False

    def returned(self, job: Job) -> None:
        """Note that a job came back into the queue, to where it was."""
        self._arrivals += 1
        if window := self._windows.get(lane_of(job)):
            window.is_torn = True
        else:
            self._is_known = False

    def take(self, lane: Lane, number: int) -> Entry | None:
        place = self.place(lane, number)
        return None if place is None else self._windows[lane].entries.pop(place)

    def drop(self, uid: int) -> None:
        """Leave out a user whose jobs have to wait; what else waits stays as it is."""
        self._windows = {lane: window for lane, window in self._windows.items() if lane.uid != uid}

    @property
    def arrivals(self) -> int:
        return self._arrivals

    def full(self) -> frozenset[Lane]:
        """Return the lanes that need not be read."""
        return frozenset(lane for lane, window in self._windows.items() if not window.is_low)

    def without_spec(self, jobs: Iterable[Job]) -> list[int]:
        """Return the numbers of those whose spec is not in a window."""
        known = {
            _number(entry)
            for window in self._windows.values()
            for entry in window.entries
            if entry.spec
        }
        return [job.number for job in jobs if job.number not in known]

    def refill(
        self,
        heads: Mapping[Lane, Sequence[Job]],
        specs: Mapping[int, JobSpec],
        *,
        but: Container[int],
        limit: int,
        unread: Collection[Lane] = (),
        arrivals: int,
    ) -> None:
        """Take the front of the queue as just read.

        Args:
            heads: the first jobs of each lane.
            specs: of those that were ``without_spec``.
            but: numbers that have been chosen, though the store may not know it yet.
            limit: how many jobs of a lane were read; fewer were all.
            unread: lanes that stay as they are.
            arrivals: ``arrivals`` from before the read; a job that came since may be missing.
        """
        is_current = arrivals == self._arrivals
        kept = {lane: window for lane, window in self._windows.items() if lane in unread}
        for lane, jobs in heads.items():
            before = self._windows.get(lane)
            known = {_number(entry): entry.spec for entry in (before.entries if before else ())}
            kept[lane] = _Window(
                [
                    Entry.of(job, known.get(job.number) or specs.get(job.number))
                    for job in jobs
                    if job.number not in but
                ],
                is_whole=is_current and len(jobs) < limit,
                is_torn=not is_current and before is not None and before.is_torn,
            )
        self._windows = kept
        self._is_known = is_current
