"""The front of the queue, in memory: the next jobs to start. The whole queue lives in the store.

A window over what waits, in the order of the queue, refilled from the store when it runs low, so
that memory does not follow the queue's length.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from aitbcd.model import Job, JobSpec
from aitbcd.planner import Claim, Waiting

#: Jobs in the window; each may carry an environment of its own.
WINDOW = 64
#: Below this the window is refilled while jobs wait in the store.
LOW = 24


class Entry(NamedTuple):
    """A waiting job. Entries sort as the queue does."""

    rank: tuple[int, int]
    job: Job
    #: None when it was not at hand.
    spec: JobSpec | None

    @property
    def waiting(self) -> Waiting:
        return Waiting(self.job.number, claim_of(self.job))


def claim_of(job: Job) -> Claim:
    return Claim(job.cpus, job.memory or 0, job.gpus)


def _entry(job: Job, spec: JobSpec | None) -> Entry:
    return Entry((-job.priority, job.number), job, spec)


def _rank(entry: Entry) -> tuple[int, int]:
    return entry.rank


class Backlog:
    def __init__(self) -> None:
        self._window: list[Entry] = []
        #: True while the window holds all that waits.
        self._is_whole = False
        #: Raised with every job that comes, so that a refill knows whether it missed one.
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._window)

    @property
    def is_low(self) -> bool:
        return not self._is_whole and len(self._window) < LOW

    def waiting(self) -> Iterator[Waiting]:
        """Yield the window in order, made as it is asked for: mostly few are."""
        return (entry.waiting for entry in self._window)

    def place(self, number: int) -> int | None:
        """Return how many jobs of the window stand before this one; None: it is not in it."""
        for place, entry in enumerate(self._window):
            if entry.job.number == number:
                return place
        return None

    def offer(self, job: Job, spec: JobSpec | None) -> None:
        """Take in a job that was just committed, if its place is within the window."""
        self._arrivals += 1
        entry = _entry(job, spec)
        if not self._is_whole and (not self._window or entry.rank > self._window[-1].rank):
            return
        if self.place(job.number) is None:
            insort(self._window, entry, key=_rank)
        if len(self._window) > 2 * WINDOW:
            del self._window[WINDOW:]
            self._is_whole = False

    def arrived(self) -> None:
        """Note that jobs came which were not offered one by one."""
        self._arrivals += 1
        self._is_whole = False

    def take(self, number: int) -> Entry | None:
        place = self.place(number)
        return self._window.pop(place) if place is not None else None

    def drop(self, uid: int) -> None:
        """Leave out a user whose jobs have to wait; what else waits stays as it is."""
        self._window = [entry for entry in self._window if entry.job.owner.uid != uid]

    @property
    def arrivals(self) -> int:
        return self._arrivals

    def without_spec(self, jobs: Iterable[Job]) -> list[int]:
        """Return the numbers of those whose spec is not in the window."""
        known = {entry.job.number for entry in self._window if entry.spec}
        return [job.number for job in jobs if job.number not in known]

    def refill(
        self,
        jobs: Iterable[Job],
        specs: Mapping[int, JobSpec],
        *,
        but: Container[int],
        is_all: bool,
        arrivals: int,
    ) -> None:
        """Take the front of the queue as just read.

        Args:
            specs: of those that were ``without_spec``.
            but: numbers that have been chosen, though the store may not know it yet.
            is_all: no more jobs waited in the store.
            arrivals: ``arrivals`` from before the read; a job that came since may be missing.
        """
        known = {entry.job.number: entry.spec for entry in self._window}
        self._window = [
            _entry(job, known.get(job.number) or specs.get(job.number))
            for job in jobs
            if job.number not in but
        ]
        self._is_whole = is_all and arrivals == self._arrivals
