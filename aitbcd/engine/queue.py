"""What waits: its front in memory, what is free for it, and what stands in its way.

It decides with the planner when and on which GPUs a job starts; ``Engine`` starts it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from aitbcd import allotment, planner
from aitbcd.allotment import Stock, Wish
from aitbcd.backlog import WINDOW, WISHES, Backlog, Entry, claim_of, lane_of, wish_of
from aitbcd.clock import now_us
from aitbcd.devices import Gpu, GpuState
from aitbcd.engine.attempt import AGAIN_FIRST_S, AGAIN_MOST_S, Attempt
from aitbcd.engine.pool import Pool
from aitbcd.engine.room import Disk, Quota
from aitbcd.engine.standby import STREAM, Standby
from aitbcd.engine.terms import Terms
from aitbcd.model import Front, Job, JobSpec, Lane
from aitbcd.planner import Cap, Claim, Left, Line, Placement, Turn, Use
from aitbcd.settings import Slots
from aitbcd.store import Store
from aitbcd.units import format_size
from aitbcd.wire import rfc3339

_log = logging.getLogger(__name__)

#: By number, when jobs are expected to end; None for one of which nobody knows.
Ends = Mapping[int, int | None]

#: How often it is looked whether there is enough room on the disk, while jobs wait for that.
_SPACE_S = 2.0
#: How often GPUs are looked at that no job has and none can get, while jobs wait for such.
_UNHELD_S = 3.0
#: What is known of GPUs is that old at most when one is given.
_FRESH_S = 0.2
#: Pause before a driver that does not answer is asked again for a job's sake.
_PAUSE_S = 1.0
#: A driver that takes longer is told of.
_SLOW_S = 1.5
#: What is said of a GPU that jobs have and somebody uses past the queue as well.
_BESIDE = ", also past the queue"
#: How many jobs or GPUs a sentence names.
_NAMED = 3
#: How many running jobs are asked for their end.
_ASKED = 32
#: Of how many jobs that ask for the same it is noted that a stranger keeps them waiting.
_TOLD = 16
#: Pause before other wishes of a lane are looked at that has more than are in memory.
_TURN_S = 1.0
#: So many starts are kept in mind without asking whether they matter any more.
_STARTS_KNOWN = 1024


class Queue:
    def __init__(
        self,
        store: Store,
        pool: Pool,
        terms: Terms,
        disk: Disk,
        quota: Quota,
        settings: Slots,
        whole: Claim,
        *,
        active: Mapping[int, Attempt],
        begin: Callable[[Entry, tuple[str, ...]], Attempt],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_stranger: Callable[[Job, list[Gpu]], None],
    ) -> None:
        self.whole = whole
        self._store = store
        self._pool = pool
        self._terms = terms
        self._disk = disk
        self._quota = quota
        self._settings = settings
        #: By number, the jobs that were chosen and are not over.
        self._active = active
        self._begin = begin
        self._spawn = spawn
        #: Told that a job waits for GPUs which somebody uses past the queue.
        self._on_stranger = on_stranger
        self._free = whole
        #: By uid, what is taken or assigned ahead.
        self._uses: dict[int, Use] = {}
        #: By uid and wish, when such a job was chosen last; by uid, one that had waited for long.
        self._started: dict[tuple[int, Wish], int] = {}
        self._helped: dict[int, int] = {}
        #: What keeps those waiting whom the last plan did not start.
        self._left = Left()
        #: Whose claim is taken, since when (monotonic).
        self._holders: dict[int, float] = {}
        self._standby = Standby(whole.cpus)
        self._backlog = Backlog()
        self._is_pumping = self._is_refilling = self._is_looking = False
        self._is_closed = False
        #: Since when it is asked for a fresh look (monotonic).
        self._asking_since: float | None = None
        #: Why nothing starts at present; None when nothing is in the way.
        self._obstacle: str | None = None
        self._obstacle_pause_s = AGAIN_FIRST_S
        #: The obstacle is that too little is free on the disk.
        self._is_short = False
        self._timer: asyncio.TimerHandle | None = None
        #: When GPUs are looked at that no job has and none can get.
        self._watch: asyncio.TimerHandle | None = None
        #: When other wishes of a lane are looked at.
        self._turning: asyncio.TimerHandle | None = None
        #: When the GPUs were seen whose strangers were told of last.
        self._noted_at = 0

    def close(self) -> None:
        self._is_closed = True
        for timer in (self._timer, self._watch, self._turning):
            if timer:
                timer.cancel()

    # -- what comes and goes ------------------------------------------------------------------

    def offer(self, job: Job, spec: JobSpec) -> None:
        """Take in a job that was just committed."""
        if job.number not in self._active and not self._quota.lack(job.owner.uid):
            self._backlog.offer(job, spec)
        self.pump()

    def arrived(self, uid: int) -> None:
        """Note that jobs of a user came, or may start again."""
        self._backlog.arrived(uid)
        self.pump()

    def read_again(self) -> None:
        """Find out anew who may start."""
        self._backlog.outdated()
        self.pump()

    def returned(self, job: Job) -> None:
        """Note that a job is in the queue again."""
        self._backlog.returned(job)
        self.pump()

    def take(self, job: Job) -> None:
        """Leave out a job that waits no more."""
        self._backlog.take(lane_of(job), job.number)
        self.pump()

    def drop(self, uid: int) -> None:
        """Leave out a user whose jobs have to wait."""
        self._backlog.drop(uid)
        self.pump()

    def occupy(self, job: Job) -> None:
        """Count what a user has with a job that was chosen."""
        use = self._uses.get(job.owner.uid, Use())
        self._uses[job.owner.uid] = use.plus(job.cpus, job.gpus)
        key = job.owner.uid, wish_of(job)
        self._started[key] = max(self._started.get(key, 0), job.assigned_at or now_us())

    def let_go(self, attempt: Attempt) -> None:
        """Let a job start, on what it takes."""
        self._free = self._free.minus(claim_of(attempt.job))
        self._holders[attempt.job.number] = time.monotonic()
        attempt.has_room.set()

    def stand_by(self, attempt: Attempt) -> None:
        """Let an assigned job start when there is room, before anything that waits."""
        self._standby.add(attempt)

    def vacate(self, attempt: Attempt) -> None:
        """Have back what a job took."""
        job = attempt.job
        since = self._holders.pop(job.number, None)
        if since is not None:
            self._free = self._free.plus(claim_of(job))
            self._standby.note(time.monotonic() - since)
        use = self._uses[job.owner.uid].minus(job.cpus, job.gpus)
        if use.running:
            self._uses[job.owner.uid] = use
        else:
            del self._uses[job.owner.uid]
        self.pump()

    # -- starting -----------------------------------------------------------------------------

    def pump(self) -> None:
        """Start what can start, soon: once for all that happens in this turn of the loop."""
        if not self._is_pumping:
            self._is_pumping = True
            asyncio.get_running_loop().call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._is_pumping = False
        if self._is_closed or self._obstacle or not self._call_up():
            return
        overdue = {turn.waiting.number: turn for turn in self._overdue().values()}
        collecting = {turn.waiting.number: turn for turn in self._left.collecting}
        ahead = [turn for turn in (overdue | collecting).values() if self._is_waiting(turn)]
        self._left = Left()
        chosen = self._plan(self._backlog.lines(), self._free, ahead, self._left)
        if chosen and (lack := self._disk.lack()):
            self._hold_for_space(lack)
            return
        for placement in chosen:
            if placement.gpu_uuids and not self._is_fresh:
                self._look()
            elif entry := self._backlog.take(placement.lane, placement.number):
                if placement.number in overdue:
                    self._helped[placement.lane.uid] = now_us()
                self.let_go(self._begin(entry, placement.gpu_uuids))
        self._assign_ahead()
        if self._backlog.is_low and not self._is_refilling:
            self._is_refilling = True
            self._spawn(self._refill())
        self._watch_gpus()
        if self._turning is None and self._backlog.has_more_wishes and self._pool.stock().has_room:
            loop = asyncio.get_running_loop()
            self._turning = loop.call_later(_TURN_S, self._turn)

    def _turn(self) -> None:
        """Look at jobs of those whose wishes are more than are in memory at a time."""
        self._turning = None
        self._backlog.turn()
        self.pump()

    def _call_up(self) -> bool:
        """Start who stands by as far as there is room; False when somebody is left."""
        while attempt := self._standby.first():
            if not claim_of(attempt.job).fits(self._free):
                return False
            self.let_go(attempt)
        return True

    def _assign_ahead(self) -> None:
        vacancies = self._standby.vacancies
        # Of a few that wait none need be ahead, and a later one of a higher priority comes first.
        if vacancies and len(self._backlog) >= STREAM:
            # Not for GPUs: what is free of them shows when it is.
            lines = [line for line in self._backlog.lines() if not line.lane.has_gpus]
            for placement in self._plan(lines, self.whole, ())[:vacancies]:
                if entry := self._backlog.take(placement.lane, placement.number):
                    self.stand_by(self._begin(entry, ()))

    def _plan(
        self,
        lines: list[Line],
        free: Claim,
        ahead: Collection[Turn],
        left: Left | None = None,
    ) -> list[Placement]:
        caps = {}
        for uid in {line.lane.uid for line in lines}:
            if limits := self._terms.limits(uid):
                caps[uid] = Cap(limits.running, limits.gpus)
        return planner.plan(
            lines, free, self._pool.stock(), self._uses, caps, ahead, left, whole=self.whole
        )

    def _is_waiting(self, turn: Turn) -> bool:
        return self._backlog.place(turn.lane, turn.waiting.number) is not None

    def _overdue(self) -> dict[int, Turn]:
        """Return by uid which jobs have waited for long: one of a user in so long a time."""
        before = now_us() - round(self._settings.patience_s * 1e6)
        if len(self._started) > _STARTS_KNOWN:
            self._started = {key: at for key, at in self._started.items() if at > before}
            self._helped = {uid: at for uid, at in self._helped.items() if at > before}
        found: dict[int, Turn] = {}
        for turn in self._backlog.overdue(before, self._started):
            uid = turn.lane.uid
            if self._helped.get(uid, 0) <= before:
                found[uid] = min(found.get(uid, turn), turn, key=_rank)
        return found

    @property
    def _is_fresh(self) -> bool:
        return self._pool.age_s <= _FRESH_S

    def _look(self) -> None:
        """Look at the GPUs before some are given, beside: other jobs need not wait for that."""
        if self._asking_since is None:
            self._asking_since = time.monotonic()
        if not self._is_looking:
            self._is_looking = True
            self._spawn(self._look_and_pump())

    async def _look_and_pump(self) -> None:
        try:
            await self._pool.look(max_age_s=_FRESH_S / 2)
            if self._is_fresh:
                self._asking_since = None
            else:
                # The driver takes its time: what is known of its GPUs may be no more true.
                await asyncio.sleep(_PAUSE_S)
        finally:
            self._is_looking = False
        self._pump_now()

    def _watch_gpus(self) -> None:
        """Look again by the clock while a job waits for what no job gives back."""
        unheld = self._pool.left_alone_unseen()
        if not unheld:
            return
        seen_at = self._pool.inventory.at
        if self._noted_at != seen_at:
            # Once for each look: that is when strangers come.
            self._noted_at = seen_at
            self._note_strangers(self._pool.used_past_the_queue())
        if self._watch is None:
            lines = (line for line in self._backlog.lines() if line.lane.has_gpus)
            wishes = {waiting.wish for line in lines for waiting in line.jobs}
            if any(allotment.fits(gpu, wish) for wish in wishes for gpu in unheld):
                loop = asyncio.get_running_loop()
                self._watch = loop.call_later(_UNHELD_S, self._look_again)

    def _note_strangers(self, foreign: list[Gpu]) -> None:
        """Tell of the jobs that would start on a GPU that somebody uses past the queue."""
        stock = self._pool.stock()
        for job in self._backlog.fronts(_TOLD):
            wish = wish_of(job)
            wanted = [gpu for gpu in foreign if wish.count and allotment.fits(gpu, wish)]
            if wanted and stock.allot(wish) is None and not self._over_limit(job):
                self._on_stranger(job, wanted)

    def _look_again(self) -> None:
        self._watch = None
        self._look()

    async def _refill(self) -> None:
        try:
            await self._read()
        except Exception:
            # Nobody else would come back to it, and all that waits would wait for ever.
            _log.exception("the queue could not be read; trying again")
            await asyncio.sleep(_PAUSE_S)
        finally:
            self._is_refilling = False
        self.pump()

    async def _read(self) -> None:
        """Read the front of the queue."""
        arrivals, begin = self._backlog.begin_refill()
        limit = WINDOW + self._starting()
        unread = self._backlog.full()
        fronts = await self._fronts(limit, begin, unread)
        jobs = [job for front in fronts.values() for job in front.jobs]
        specs = await self._store.specs(self._backlog.without_spec(jobs))
        for owner in {job.owner for job in jobs}:
            if self._terms.limits(owner.uid) is None:
                await self._terms.learn(owner)
        self._backlog.refill(
            {lane: each for lane, each in fronts.items() if not self._quota.lack(lane.uid)},
            specs,
            but=self._active,
            limit=limit,
            unread=unread,
            arrivals=arrivals,
        )

    def _starting(self) -> int:
        """Return how many jobs the store may not know yet as chosen, at most."""
        return sum(use.running for use in self._uses.values())

    async def _fronts(
        self, limit: int, begin: Mapping[Lane, str], unread: Iterable[Lane]
    ) -> dict[Lane, Front]:
        """Return the front of the queue without those who keep more than they may."""
        while True:
            fronts = await self._store.fronts(
                limit,
                wishes=WISHES,
                begin=begin,
                without=self._quota.blocked(),
                but=frozenset(unread),
            )
            if not await self._quota.learn(lane.uid for lane in fronts):
                return fronts

    # -- what is in the way -------------------------------------------------------------------

    def hold(self, obstacle: str) -> None:
        """Start nothing for a while: what is in the way is in the way of every job."""
        if self._obstacle is None:
            _log.warning("no job starts for now: %s", obstacle)
            # Once for all that met it together: the pause grows with the tries.
            self._set_timer(self._obstacle_pause_s)
            self._obstacle_pause_s = min(2 * self._obstacle_pause_s, AGAIN_MOST_S)
        self._obstacle = obstacle

    def succeeded(self) -> None:
        """Note that nothing was in a job's way."""
        self._obstacle_pause_s = AGAIN_FIRST_S

    def has_space(self) -> None:
        """Note that something was removed from the disk."""
        if self._is_short:
            self._try_again()

    def _hold_for_space(self, lack: str) -> None:
        """Start nothing while too little is free. Others free it: nobody tells us when."""
        if not self._is_short:
            self._is_short = True
            _log.warning("no job starts for now: %s", lack)
        self._obstacle = lack
        self._set_timer(_SPACE_S)

    def _set_timer(self, pause_s: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._try_again)

    def _try_again(self) -> None:
        self._obstacle = None
        # At once, so that nobody who asks in between is told that nothing is in the way.
        self._pump_now()
        self._is_short = self._is_short and self._obstacle is not None

    # -- what a job waits for -----------------------------------------------------------------

    def awaited(self, job: Job) -> list[Job]:
        """Return the jobs that have what a job waits for, as they are now."""
        if self._over_limit(job):
            return [each for each in self._running() if each.owner.uid == job.owner.uid]
        found = self._holding_gpus(job)
        first = self._first()
        for each in filter(None, (job, first)):
            if not each.gpus and not claim_of(each).fits(self._free):
                found += self._running()
        return list({each.number: each for each in found}.values())

    def waiting(self, job: Job, expected: Ends) -> str:
        """Return what a job of the queue waits for, as a sentence.

        Args:
            expected: by number, when jobs of ``awaited`` are expected to end.
        """
        if lack := self._obstacle or self._quota.lack(job.owner.uid):
            return lack
        if not claim_of(job).fits(self.whole):
            return planner.lacking(claim_of(job), self._free, self.whole)
        if lack := self._over_limit(job):
            return f"{lack}{_first_end(self.awaited(job), expected)}"
        place = self._backlog.place(lane_of(job), job.number)
        lack = self._lacking_gpus(job, expected)
        if place == 0 and (lack := lack or self._lacking(job, expected)):
            return lack
        lack = lack or self._behind_first(job, expected)
        if place is None and not (known := len(self._backlog)):
            return lack or "is about to start"
        if place is None:
            behind = f"waits behind more than {known} earlier jobs"
        elif ahead := max(place, self._backlog.ahead(job)):
            least = "" if self._backlog.knows_all_before(job) else "at least "
            behind = f"waits behind {least}{ahead} earlier job{'s' if ahead > 1 else ''}"
        else:
            behind = self._about_to_start(job)
        return f"{behind}; {lack}" if lack else behind

    def _about_to_start(self, job: Job) -> str:
        asked_s = time.monotonic() - self._asking_since if self._asking_since else 0.0
        if job.gpus and asked_s > _SLOW_S:
            return (
                "waits for the NVIDIA driver to say that its GPUs are free, which has not answered"
                f" for {asked_s:.0f} s"
            )
        return "is about to start"

    def _over_limit(self, job: Job) -> str | None:
        limits = self._terms.limits(job.owner.uid)
        if limits is None:
            return None
        use = self._uses.get(job.owner.uid, Use())
        match Cap(limits.running, limits.gpus).reached_by(use, wish_of(job)):
            case "running":
                return (
                    f"waits for one of {job.owner.name}'s jobs to end, of which {limits.running}"
                    " may run at a time"
                )
            case "gpus":
                return (
                    f"waits for one of {job.owner.name}'s jobs to end: they have {use.gpus} of the"
                    f" {limits.gpus} GPUs that they may have at a time"
                )
            case _:
                return None

    def _running(self) -> list[Job]:
        """Return the jobs that have cores and memory, as they are now, the first ones."""
        return [attempt.current for attempt in islice(self._holding(), _ASKED)]

    def _holding(self) -> Iterator[Attempt]:
        return (self._active[number] for number in self._holders if number in self._active)

    def _first(self) -> Job | None:
        """Return the job that lacks cores or memory, whom nobody overtakes."""
        turn = self._left.first
        return self._backlog.find(turn.lane, turn.waiting.number) if turn else None

    def _lacking(self, job: Job, expected: Ends) -> str:
        """Return which cores and memory a job waits for, and who has them; empty: for none."""
        claim = claim_of(job)
        if not (lack := planner.lacking(claim, self._free, self.whole)):
            return ""
        if claim.memory > self._free.memory:
            count = sum(1 for each in self._holding() if each.job.memory)
            jobs = [each for each in self._running() if each.memory]
            jobs.sort(key=lambda each: -(each.memory or 0))
            parts = {each.number: format_size(each.memory or 0) for each in jobs}
        else:
            count = sum(1 for _ in self._holding())
            jobs = _by_end(self._running(), expected)
            jobs.sort(key=lambda each: -each.cpus)
            parts = {each.number: str(each.cpus) for each in jobs}
        return "; ".join([lack, *_having(jobs, parts, expected, count)])

    def _behind_first(self, job: Job, expected: Ends) -> str:
        first = self._first()
        if first is None or first.number == job.number:
            return ""
        lack = self._lacking(first, expected)
        return f"{first.job_id} is next and {lack}" if lack else ""

    def _holding_gpus(self, job: Job) -> list[Job]:
        """Return who has GPUs of those that a job waits for, or for which others wait before it."""
        wish = wish_of(job)
        if not wish.count or self._available(job).allot(wish) is not None:
            return []
        wishes = {wish, *(turn.waiting.wish for turn in self._kept_from(job).values())}
        fitting = (
            gpu.uuid
            for gpu in self._pool.inventory.gpus
            if any(allotment.fits(gpu, each) for each in wishes)
        )
        held = self._pool.holders(fitting)
        current = (self._active.get(each.number) for each in held)
        return [now.current if now else each for now, each in zip(current, held, strict=True)]

    def _kept_from(self, job: Job) -> dict[str, Turn]:
        """Return the GPUs, by UUID, that are kept for others, which a job could have."""
        wish = wish_of(job)
        return {
            uuid: turn
            for uuid, turn in self._left.kept.items()
            if turn.waiting.number != job.number
            and (gpu := self._pool.inventory.find(uuid))
            and allotment.fits(gpu, wish)
        }

    def _available(self, job: Job) -> Stock:
        """Return what is there for a job, without what is kept for others."""
        return self._pool.stock().without(self._kept_from(job))

    def _lacking_gpus(self, job: Job, expected: Ends) -> str:
        """Return which GPUs a job waits for and who has them; empty: it waits for none."""
        wish = wish_of(job)
        if not wish.count or (available := self._available(job)).allot(wish) is not None:
            return ""
        inventory = self._pool.inventory
        if inventory.problem and not any(gpu.state.is_usable for gpu in inventory.gpus):
            return f"waits for the GPUs: {inventory.problem}"
        if never := allotment.impossible(inventory.gpus, wish):
            why = f": {inventory.problem}" if inventory.problem else ""
            return f"waits for a GPU that is not there at present: {never}{why}"
        fitting = [gpu for gpu in inventory.gpus if allotment.fits(gpu, wish)]
        guests = [
            f"{job_id} uses GPU {gpu.label}, which it was not given"
            for gpu in fitting
            for job_id in gpu.jobs
            if gpu.state is GpuState.BUSY and job_id not in self._pool.jobs_on(gpu.uuid)
        ]
        reasons = [
            f"GPU {gpu.label} is {gpu.state.value}{_BESIDE if gpu.state.is_usable else ''}:"
            f" {gpu.reason}"
            for gpu in fitting
            if gpu.reason
        ]
        holders = _by_end(self._holding_gpus(job), expected)
        parts = {each.number: _part(each) for each in holders}
        said = [f"waits for {allotment.lacking(available, wish, fitting)}", *self._keeping(job)]
        said += _having(holders, parts, expected, len(holders))
        return "; ".join([*said, *guests[:_NAMED], *reasons[:_NAMED]])

    def _keeping(self, job: Job) -> Iterator[str]:
        """Yield which GPUs are kept for whom."""
        kept = self._kept_from(job)
        for turn in dict.fromkeys(kept.values()):
            found = self._backlog.find(turn.lane, turn.waiting.number)
            uuids = [uuid for uuid, each in kept.items() if each == turn]
            gpus = [gpu.label for gpu in self._pool.inventory.gpus if gpu.uuid in uuids]
            if found:
                verb = "is" if len(gpus) == 1 else "are"
                asked = allotment.describe(turn.waiting.wish)
                yield f"GPU {', '.join(gpus)} {verb} kept for {found.job_id}, which needs {asked}"


def _having(jobs: list[Job], parts: Mapping[int, str], expected: Ends, count: int) -> Iterator[str]:
    """Yield who has which part of something, by number, and until when.

    Args:
        jobs: those that are asked, of so many that have any.
    """
    for job in jobs[:_NAMED]:
        yield f"{job.job_id} holds {parts[job.number]}{_end(job, expected, ' and')}"
    if (more := count - _NAMED) > 0:
        yield f"{more} more {'job holds' if more == 1 else 'jobs hold'} others"


def _first_end(jobs: list[Job], expected: Ends) -> str:
    """Return which of these jobs ends first; empty where nobody knows."""
    for job in _by_end(jobs, expected)[:1]:
        if end := _end(job, expected):
            return f"; {job.job_id}{end}"
    return ""


def _part(job: Job) -> str:
    """Return what a job has of GPUs."""
    if job.vram is not None:
        return f"{format_size(job.vram)} of one"
    return "one" if len(job.gpu_uuids) == 1 else str(len(job.gpu_uuids))


def _deadline(job: Job) -> int | None:
    """Return when a job's time is over."""
    if job.started_at is None or job.timeout_s is None:
        return None
    return job.started_at + round(job.timeout_s * 1e6)


def _by_end(jobs: list[Job], expected: Ends) -> list[Job]:
    """Return jobs by when they end; of whom nobody knows last."""

    def end(job: Job) -> float:
        known = (expected.get(job.number), _deadline(job))
        return min((at for at in known if at is not None), default=math.inf)

    return sorted(jobs, key=end)


def _end(job: Job, expected: Ends, link: str = "") -> str:
    """Return when a job ends, as the end of a sentence; empty where nobody knows."""
    at, deadline = expected.get(job.number), _deadline(job)
    if at is not None and (deadline is None or at < deadline):
        return f"{link} is expected to end at {rfc3339(at)}"
    return f"{link} ends at {rfc3339(deadline)} at the latest" if deadline is not None else ""


def _rank(turn: Turn) -> tuple[int, int]:
    return -turn.lane.priority, turn.waiting.number
