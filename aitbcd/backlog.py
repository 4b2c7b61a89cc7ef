"""The front of the queue, in memory: the next jobs to start. The whole queue lives in the store.

A window over each lane of what waits, refilled from the store when it runs low, so that memory
does not follow the queue's length and no user's jobs hide another's. It has the first jobs of each
wish of its lane, so that those for one GPU do not hide those for another either; where a user has
more different wishes than it takes, it has some of them after the other (``turn``).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from aitbcd import planner
from aitbcd.allotment import Wish
from aitbcd.model import Front, Job, JobSpec, Lane
from aitbcd.planner import Claim, Line, Turn, Waiting

#: Jobs in a window that wish for the same; each may carry an environment of its own.
WINDOW = 64
#: Below this a window is refilled while more such jobs wait in the store.
LOW = 24
#: Different wishes in a window.
WISHES = 32
#: Above the number of any job.
_NONE_BEHIND = 1 << 63


class Entry(NamedTuple):
    """A waiting job."""

    job: Job
    #: None when it was not at hand.
    spec: JobSpec | None
    #: The same for the planner, which looks at it many times.
    waiting: Waiting

    @classmethod
    def of(cls, job: Job, spec: JobSpec | None) -> Entry:
        return cls(job, spec, Waiting(job.number, claim_of(job), wish_of(job), job.created_at))


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
    #: Of these wishes more jobs may wait in the store, behind those that are here.
    unread: set[Wish] = field(default_factory=set)
    #: A job, or all that wish for something, may be missing.
    is_torn: bool = False
    #: Where the wishes were read from, and where they go on that are not here.
    begin: str = ""
    next: str | None = None
    #: How many are here of each wish.
    counts: Counter[Wish] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = Counter(entry.waiting.wish for entry in self.entries)

    @property
    def is_low(self) -> bool:
        if self.next is not None and len(self.entries) < LOW:
            return True
        return self.is_torn or any(self.counts[wish] < LOW for wish in self.unread)

    @property
    def has_all_wishes(self) -> bool:
        return not self.begin and self.next is None

    def ahead(self, number: int) -> int:
        """Return how many are before a job that has this number."""
        return bisect_left(self.entries, number, key=_number)

    def has_all_before(self, number: int) -> bool:
        """Tell whether of each wish those that are not here come behind a job of this number."""
        unread = set(self.unread)
        for entry in reversed(self.entries):
            if not unread or _number(entry) <= number:
                break
            unread.discard(entry.waiting.wish)
        return self.has_all_wishes and not unread

    def firsts(self) -> Iterator[Waiting]:
        """Yield the first job of each wish."""
        seen: set[Wish] = set()
        for _, _, waiting in self.entries:
            if waiting.wish not in seen:
                yield waiting
                seen.add(waiting.wish)
                if len(seen) == len(self.counts):
                    return

    def pop(self, place: int) -> Entry:
        entry = self.entries.pop(place)
        wish = entry.waiting.wish
        self.counts[wish] -= 1
        if not self.counts[wish]:
            del self.counts[wish]
        return entry

    def offer(self, entry: Entry) -> None:
        wish = entry.waiting.wish
        known = [_number(each) for each in self.entries if each.waiting.wish == wish]
        if _number(entry) in known:
            return
        if wish in self.unread and (not known or _number(entry) > known[-1]):
            return
        if not known and len(self.counts) >= WISHES:
            # There are more than are read at a time.
            self.is_torn = True
        if not known and not self.has_all_wishes:
            return
        insort(self.entries, entry, key=_number)
        self.counts[wish] += 1
        if len(known) >= 2 * WINDOW:
            self._cut(wish, known[WINDOW - 1])

    def _cut(self, wish: Wish, last: int) -> None:
        """Leave out those who are behind one that wish for the same."""
        self.entries = [
            each for each in self.entries if each.waiting.wish != wish or _number(each) <= last
        ]
        self.counts[wish] = WINDOW
        self.unread.add(wish)


class Backlog:
    def __init__(self) -> None:
        self._windows: dict[Lane, _Window] = {}
        #: Every lane in which jobs wait is here.
        self._is_known = False
        #: Raised with every job that comes, so that a refill knows whether it missed one.
        self._arrivals = 0
        #: Lanes for GPUs into which jobs came since the last refill began.
        self._stirred: set[Lane] = set()

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

    def overdue(self, before: int, started: Mapping[tuple[int, Wish], int]) -> Iterator[Turn]:
        """Yield of each lane the first job that has waited for long: see the planner."""
        for lane, window in self._windows.items():
            line = Line(lane, window.firsts())
            if (turn := planner.first_overdue(line, before, started)) is not None:
                yield turn

    def fronts(self, count: int) -> Iterator[Job]:
        """Yield of each lane the first so many jobs of each wish."""
        for window in self._windows.values():
            seen: dict[Wish, int] = {}
            for job, _, waiting in window.entries:
                seen[waiting.wish] = seen.get(waiting.wish, 0) + 1
                if seen[waiting.wish] <= count:
                    yield job

    def find(self, lane: Lane, number: int) -> Job | None:
        place = self.place(lane, number)
        return None if place is None else self._windows[lane].entries[place].job

    def place(self, lane: Lane, number: int) -> int | None:
        """Return how many known jobs of its lane stand before one; None: the window lacks it."""
        window = self._windows.get(lane)
        if window is None:
            return None
        place = window.ahead(number)
        is_here = place < len(window.entries) and _number(window.entries[place]) == number
        return place if is_here else None

    def ahead(self, job: Job) -> int:
        """Return how many jobs are known to be before this one, were there no turns to take."""
        return sum(
            len(window.entries) if lane.priority > job.priority else window.ahead(job.number)
            for lane, window in self._windows.items()
            if lane.priority >= job.priority
        )

    def knows_all_before(self, job: Job) -> bool:
        """Tell whether ``ahead`` counts all of them."""
        return self._is_known and all(
            window.has_all_before(_NONE_BEHIND if lane.priority > job.priority else job.number)
            for lane, window in self._windows.items()
            if lane.priority >= job.priority
        )

    @property
    def has_more_wishes(self) -> bool:
        """Tell whether jobs wait that wish for what no job in memory does."""
        return any(not window.has_all_wishes for window in self._windows.values())

    def turn(self) -> None:
        """Let the next wishes of those lanes be read whose window does not take all."""
        for window in self._windows.values():
            if not window.has_all_wishes:
                window.begin, window.is_torn = window.next or "", True

    def offer(self, job: Job, spec: JobSpec | None) -> None:
        """Take in a job that was just committed, if its place is within the window."""
        self._arrivals += 1
        lane = lane_of(job)
        window = self._windows.get(lane)
        if window is None and self._is_known:
            window = self._windows[lane] = _Window()
        if lane.has_gpus:
            self._stirred.add(lane)
        if window is not None:
            window.offer(Entry.of(job, spec))

    def arrived(self, uid: int) -> None:
        """Note that jobs of a user came which were not offered one by one."""
        self._arrivals += 1
        self._is_known = False
        for lane, window in self._windows.items():
            if lane.uid != uid:
                continue
            if lane.has_gpus:
                window.is_torn = True
                self._stirred.add(lane)
            else:
                window.unread.add(Wish())

    def outdated(self) -> None:
        """Note that others may start than those who are here."""
        self._arrivals += 1
        self._is_known = False
        for window in self._windows.values():
            window.is_torn = True

    def returned(self, job: Job) -> None:
        """Note that a job came back into the queue, to where it was."""
        self._arrivals += 1
        if window := self._windows.get(lane_of(job)):
            window.is_torn = True
        else:
            self._is_known = False

    def take(self, lane: Lane, number: int) -> Entry | None:
        place = self.place(lane, number)
        return None if place is None else self._windows[lane].pop(place)

    def drop(self, uid: int) -> None:
        """Leave out a user whose jobs have to wait; what else waits stays as it is."""
        self._windows = {lane: window for lane, window in self._windows.items() if lane.uid != uid}

    def begin_refill(self) -> tuple[int, dict[Lane, str]]:
        """Return what ``refill`` is to be given, and from where the wishes of lanes are read."""
        self._stirred.clear()
        return self._arrivals, {lane: window.begin for lane, window in self._windows.items()}

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
        fronts: Mapping[Lane, Front],
        specs: Mapping[int, JobSpec],
        *,
        but: Container[int],
        limit: int,
        unread: Collection[Lane] = (),
        arrivals: int,
    ) -> None:
        """Take the front of the queue as just read.

        Args:
            fronts: the first jobs of each lane.
            specs: of those that were ``without_spec``.
            but: numbers that have been chosen, though the store may not know it yet.
            limit: how many jobs of a wish were read; fewer were all.
            unread: lanes that stay as they are.
            arrivals: of ``begin_refill``, before the read; a job that came since may be missing.
        """
        is_current = arrivals == self._arrivals
        kept = {lane: window for lane, window in self._windows.items() if lane in unread}
        for lane, front in fronts.items():
            before = self._windows.get(lane)
            known = {_number(entry): entry.spec for entry in (before.entries if before else ())}
            read = Counter(map(wish_of, front.jobs))
            is_torn = not is_current and before is not None and before.is_torn
            kept[lane] = _Window(
                [
                    Entry.of(job, known.get(job.number) or specs.get(job.number))
                    for job in front.jobs
                    if job.number not in but
                ],
                unread={wish for wish in read if not is_current or read[wish] >= limit},
                is_torn=is_torn or lane in self._stirred,
                begin=before.begin if before else "",
                next=front.next,
            )
        self._windows = kept
        self._is_known = is_current
