"""Decides what runs: takes jobs in, starts them as the planner says, cancels them.

With ``attempt`` it is the only writer of job state: it decides, commits, then acts; the shell
around the pure parts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any

from aitbcd import planner, plans
from aitbcd.backlog import WINDOW, Backlog, Entry, claim_of
from aitbcd.clock import Clock
from aitbcd.engine.attempt import (
    AGAIN_FIRST_S,
    AGAIN_MOST_S,
    Attempt,
    Parts,
    clear,
)
from aitbcd.engine.removals import Removals
from aitbcd.engine.room import Disk, Quota
from aitbcd.engine.standby import Standby
from aitbcd.engine.sweeper import Sweeper
from aitbcd.engine.terms import Terms
from aitbcd.errors import Forbidden, NotSatisfiable, WrongState
from aitbcd.feed import Feed
from aitbcd.lifecycle import Trigger
from aitbcd.model import Ending, Job, JobSpec, JobState, Machine, Owner, Reason, ResultsState
from aitbcd.paths import Paths
from aitbcd.planner import Claim
from aitbcd.reserve import Reserve
from aitbcd.runs import Found, Runs
from aitbcd.settings import Settings
from aitbcd.store import Batch, Move, Store
from aitbcd.units import format_size
from aitbcd.wire import rfc3339

_log = logging.getLogger(__name__)

#: How long a delete waits for the disk space to be free.
_DELETE_S = 2.0
#: How often it is looked whether there is enough of it again, while jobs wait for that.
_SPACE_S = 2.0

Pieces = Callable[[], Iterable[Sequence[JobSpec]]]


class Engine:
    """``recover`` before anything else; ``close`` leaves running jobs alone."""

    def __init__(
        self,
        store: Store,
        runs: Runs,
        feed: Feed,
        settings: Settings,
        machine: Machine,
        paths: Paths,
        *,
        uid: int,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._runs = runs
        self._feed = feed
        self._settings = settings
        self._machine = machine
        self._uid = uid
        self._whole = Claim(
            settings.slots.cpus or machine.cpus,
            settings.slots.memory or machine.memory,
            machine.gpus,
        )
        self._free = self._whole
        self._clock = clock or Clock()
        self._terms = Terms(settings)
        self._disk = Disk(settings.storage, str(paths.state))
        self._quota = Quota(
            settings.storage.quota, store, spawn=self._spawn, on_change=self._on_quota
        )
        self._removals = Removals(store, runs, spawn=self._spawn, on_space=self._on_space)
        #: Gives up what has expired; says what will.
        self.retention = Sweeper(
            store, self._removals, self._terms, self._quota, self._clock, boot_id=machine.boot_id
        )
        self._backlog = Backlog()
        self._active: dict[int, Attempt] = {}
        #: Whose claim is taken, since when (monotonic).
        self._holders: dict[int, float] = {}
        self._standby = Standby(self._whole.cpus)
        self._tasks: set[asyncio.Task[None]] = set()
        self._parts = Parts(
            store,
            runs,
            feed,
            settings,
            machine,
            str(paths.results),
            Reserve(paths.state / "reserve"),
            self._terms,
            self._clock,
            on_free=self._on_free,
            on_obstacle=self._hold,
            on_ended=self._on_ended,
            spawn=self._spawn,
        )
        self._is_pumping = False
        self._refilling = False
        self._is_closed = False
        #: Why nothing starts at present; None when nothing is in the way.
        self._obstacle: str | None = None
        self._obstacle_pause_s = AGAIN_FIRST_S
        #: The obstacle is that too little is free on the disk.
        self._is_short = False
        self._timer: asyncio.TimerHandle | None = None

    # -- life -------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up every job where the files say it is, and start what waits."""
        self._parts.reserve.hold()
        await self.retention.open()
        self._removals.look()
        self._spawn(self.retention.run())
        for job in await self._store.active():
            boot_id = await self._store.boot_id_of(job.number, job.attempt)
            attempt = Attempt(self._parts, job, None, boot_id)
            attempt.assigned.set()
            self._attend_to(attempt, is_new=False)
            if self._may_stand_by(job, boot_id):
                self._standby.add(attempt)
            else:
                self._give_room(attempt)
                attempt.has_room.set()
        ours = {(each.job.job_id, each.job.attempt) for each in self._active.values()}
        for job_id, number in self._runs.folders():
            if (job_id, number) not in ours:
                self._spawn(clear(self._runs, job_id, number))
        self._pump()

    def _may_stand_by(self, job: Job, boot_id: str) -> bool:
        """Tell whether nothing of an assigned job has been started, so that it may wait."""
        if job.status is not JobState.ASSIGNED:
            return False
        return self._runs.find(job.job_id, job.attempt, boot_id).found is Found.NEVER_RAN

    async def close(self) -> None:
        """Stop deciding. What runs goes on; the next daemon finds it."""
        self._is_closed = True
        self._removals.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.retention.close()
        self._feed.close()

    @property
    def active_count(self) -> int:
        return len(self._active)

    @property
    def whole(self) -> Claim:
        return self._whole

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- what users ask -----------------------------------------------------------------------

    def check(self, owner: Owner, spec: JobSpec) -> None:
        """Refuse what this machine can never run.

        Raises:
            NotSatisfiable: more than it has.
            Forbidden: this daemon cannot run jobs of this user.
        """
        if owner.uid != self._uid and self._uid != 0:
            raise Forbidden(
                f"this daemon runs as uid {self._uid} and cannot run jobs of {owner.name}",
                hint="start aitbcd as yourself, or ask the administrator for a system-wide one",
            )
        if spec.gpus > self._whole.gpus:
            why = self._machine.gpu_problem or "no more were detected"
            asked = f"{spec.gpus} GPU{'' if spec.gpus == 1 else 's'}"
            raise NotSatisfiable(
                f"the job asks for {asked} and this machine has {self._whole.gpus}: {why}",
                hint="ask for --gpus 0",
                field="gpus",
            )
        if spec.cpus > self._whole.cpus:
            raise NotSatisfiable(
                f"the job asks for {spec.cpus} CPU cores and jobs share {self._whole.cpus} here",
                hint="ask for fewer, or raise [slots] cpus in the configuration",
                field="cpus",
            )
        if (spec.memory or 0) > self._whole.memory:
            raise NotSatisfiable(
                f"the job asks for {format_size(spec.memory or 0)} of memory and jobs share"
                f" {format_size(self._whole.memory)} here",
                hint="ask for less, or raise [slots] memory in the configuration",
                field="memory",
            )

    async def submit(
        self, owner: Owner, spec: JobSpec, *, plan: str | None = None, retry_of: int | None = None
    ) -> Job:
        """Put a job into the queue; it is durable when this returns.

        Args:
            plan: of the key that it is submitted with, if that has one.
            retry_of: the number of the job that it repeats.

        Raises:
            NotSatisfiable, Forbidden: see ``check``.
            StorageFull: nothing was changed.
        """
        self.check(owner, spec)
        await self._quota.learn([owner.uid])
        job, event = await self._store.submit(
            owner, spec, at=self._clock.now(), plan=plan, retry_of=retry_of
        )
        self._feed.publish([event])
        if job.number not in self._active and not self._quota.lack(owner.uid):
            self._backlog.offer(job, spec)
        self._pump()
        return job

    async def submit_batch(self, owner: Owner, pieces: Pieces, *, plan: str | None = None) -> Batch:
        """Put many jobs into the queue, all or none. ``pieces`` as in ``Store.submit_many``."""

        def checked() -> Iterable[Sequence[JobSpec]]:
            for piece in pieces():
                for spec in piece:
                    self.check(owner, spec)
                yield piece

        batch = await self._store.submit_many(owner, checked, at=self._clock.now(), plan=plan)
        self._feed.publish(())
        self._backlog.arrived()
        self._pump()
        return batch

    async def cancel(self, job: Job, *, force: bool) -> Job:
        """Cancel a job; returns it canceled, or canceling while its processes end.

        Raises:
            WrongState: it is over already.
        """
        grace_s = 0.0 if force else self._settings.jobs.cancel_grace_s
        while True:
            if attempt := self._active.get(job.number):
                await attempt.assigned.wait()
                if self._active.get(job.number) is attempt:
                    return await attempt.cancel(grace_s)
                continue
            try:
                return await self._cancel_waiting(job)
            except WrongState:
                # It has just been assigned, or is over.
                current = await self._store.job(job.number)
                if current is None or current.status.is_final:
                    status = current.status.value if current else "deleted"
                    raise WrongState(
                        f"job {job.job_id} is over ({status}): there is nothing to cancel",
                        state=status,
                    ) from None
                await asyncio.sleep(0)

    async def _cancel_waiting(self, job: Job) -> Job:
        at = self._clock.now()
        ending = Ending(at, Reason.CANCELED, message="canceled by its owner before it started")
        move = Move(
            job.number,
            job.attempt,
            JobState.PENDING,
            Trigger.CANCELED,
            at,
            ending=ending,
            expires_at=await self._terms.expires_at(job, at),
        )
        events = await self._store.move(move)
        self._backlog.take(job.number)
        self._feed.publish(events)
        if job.attempt:
            # An earlier attempt has left a package.
            self._removals.look()
        self._pump()
        return replace(job, status=JobState.CANCELED, ending=ending, expires_at=move.expires_at)

    async def retry(self, job: Job, owner: Owner, *, plan: str | None = None) -> Job:
        """Submit what a job was once more, as a new job that is linked to it.

        Raises:
            WrongState: it is not over, or its environment left with its expired results.
            NoSuchJob: what it was has been deleted.
            NotSatisfiable, Forbidden, StorageFull: as ``submit``.
        """
        if not job.status.is_final:
            raise WrongState(
                f"job {job.job_id} is {job.status.value} and cannot be run again before it is over",
                hint=f"wait for it: aitbcctl watch {job.number}; or: aitbcctl cancel {job.number}",
                state=job.status.value,
            )
        spec = await self._store.spec_to_repeat(job.number)
        return await self.submit(owner, spec, plan=plan, retry_of=job.number)

    async def keep(self, job: Job, until: int | None) -> Job:
        """Put off the time at which a job's results expire; return the job as it is then.

        Args:
            until: microseconds; None is as long as the plan allows.

        Raises:
            WrongState: it has no results, or none any more, or they are kept longer already.
            Forbidden: its plan does not let them be kept so long.
        """
        if job.ending is None or job.ending.results is not ResultsState.KEPT:
            raise _nothing_to_keep(job)
        name, plan = await self._terms.plan_of(job)
        longest = plans.keepable_until(plan, self._clock.now())
        expires_at = job.expires_at or 0
        at = max(longest or 0, expires_at) if until is None else until
        if longest is None or at > max(longest, expires_at):
            raise _over_plan(job, name, longest)
        if at < expires_at:
            raise WrongState(
                f"the results of job {job.job_id} are kept until {rfc3339(expires_at)} already",
                hint=f"to have them removed earlier: aitbcctl delete {job.number}",
                state=job.status.value,
                field="until",
            )
        await self._store.keep(job.number, at)
        return replace(job, expires_at=at)

    async def delete(self, job: Job) -> int:
        """Delete a job and its results; return how many bytes those had.

        They are gone when this returns, if that takes no longer than two seconds.

        Raises:
            WrongState: it is not over.
            NoSuchJob: somebody has just deleted it.
        """
        if not job.status.is_final:
            raise WrongState(
                f"job {job.job_id} is {job.status.value} and cannot be deleted",
                hint=f"cancel it first: aitbcctl cancel {job.number}",
                state=job.status.value,
            )
        freed = await self._store.delete(job.number, self._clock.now(), job.owner.uid)
        if job.ending is None or job.ending.results is not ResultsState.KEPT:
            return freed
        self._quota.look(job.owner.uid)
        removal = self._removals.add(job.number, job.job_id, job.owner.uid)
        try:
            async with asyncio.timeout(_DELETE_S):
                await removal.is_over.wait()
        except TimeoutError:
            # It goes on.
            pass
        return freed

    def waiting(self, job: Job) -> str | None:
        """Return what keeps a job from going on, as a sentence; None when nothing does."""
        if job.status is not JobState.PENDING:
            attempt = self._active.get(job.number)
            return attempt.waiting if attempt and not job.status.is_final else None
        if lack := self._obstacle or self._quota.lack(job.owner.uid):
            return lack
        place = self._backlog.place(job.number)
        if place == 0:
            return planner.lacking(claim_of(job), self._free, self._whole) or "is about to start"
        if place is None:
            known = len(self._backlog)
            return f"waits behind more than {known} earlier jobs" if known else "is about to start"
        return f"waits behind {place} earlier job{'s' if place > 1 else ''}"

    # -- the queue ----------------------------------------------------------------------------

    def _pump(self) -> None:
        """Start what can start, soon: once for all that happens in this turn of the loop."""
        if not self._is_pumping:
            self._is_pumping = True
            asyncio.get_running_loop().call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._is_pumping = False
        if self._is_closed or self._obstacle or not self._call_up():
            return
        chosen = planner.plan(self._backlog.waiting(), self._free)
        if chosen and (lack := self._disk.lack()):
            self._hold_for_space(lack)
            return
        for number in chosen:
            if entry := self._backlog.take(number):
                attempt = self._begin(entry)
                self._give_room(attempt)
                attempt.has_room.set()
        self._assign_ahead()
        if self._backlog.is_low and not self._refilling:
            self._refilling = True
            self._spawn(self._refill())

    def _call_up(self) -> bool:
        """Start who stands by as far as there is room; False when somebody is left."""
        while attempt := self._standby.first():
            if not claim_of(attempt.job).fits(self._free):
                return False
            self._give_room(attempt)
            self._standby.call_up()
        return True

    def _assign_ahead(self) -> None:
        if vacancies := self._standby.vacancies:
            for number in planner.plan(self._backlog.waiting(), self._whole)[:vacancies]:
                if entry := self._backlog.take(number):
                    self._standby.add(self._begin(entry))

    async def _refill(self) -> None:
        try:
            arrivals = self._backlog.arrivals
            limit = WINDOW + len(self._active)
            jobs = await self._head(limit)
            specs = await self._store.specs(self._backlog.without_spec(jobs))
            self._backlog.refill(
                [job for job in jobs if not self._quota.lack(job.owner.uid)],
                specs,
                but=self._active,
                is_all=len(jobs) < limit,
                arrivals=arrivals,
            )
        finally:
            self._refilling = False
        self._pump()

    async def _head(self, limit: int) -> list[Job]:
        """Return the front of the queue without those who keep more than they may."""
        while True:
            jobs = await self._store.head(limit, without=self._quota.blocked())
            if not await self._quota.learn(job.owner.uid for job in jobs):
                return jobs

    def _begin(self, entry: Entry) -> Attempt:
        job = replace(entry.job, attempt=entry.job.attempt + 1)
        attempt = Attempt(self._parts, job, entry.spec, self._machine.boot_id)
        self._attend_to(attempt, is_new=True)
        return attempt

    def _give_room(self, attempt: Attempt) -> None:
        self._free = self._free.minus(claim_of(attempt.job))
        self._holders[attempt.job.number] = time.monotonic()

    def _attend_to(self, attempt: Attempt, *, is_new: bool) -> None:
        self._active[attempt.job.number] = attempt
        self._spawn(self._attend(attempt, is_new=is_new))

    async def _attend(self, attempt: Attempt, *, is_new: bool) -> None:
        try:
            await attempt.attend(is_new=is_new)
        finally:
            del self._active[attempt.job.number]
            if not self._is_closed:
                attempt.free()
        if attempt.status is not JobState.PENDING:
            self._obstacle_pause_s = AGAIN_FIRST_S
            return
        # Back in the queue, or never out of it: the window may lack it.
        self._backlog.arrived()
        self._pump()

    def _on_free(self, attempt: Attempt) -> None:
        since = self._holders.pop(attempt.job.number, None)
        if since is not None:
            self._free = self._free.plus(claim_of(attempt.job))
            self._standby.note(time.monotonic() - since)
        self._pump()

    def _on_ended(self, job: Job, ending: Ending, expires_at: int) -> None:
        if ending.results is ResultsState.KEPT:
            self.retention.note(expires_at)
            self._quota.look(job.owner.uid)
        else:
            self._removals.look()

    def _on_quota(self, uid: int, has_to_wait: bool) -> None:
        if has_to_wait:
            self._backlog.drop(uid)
        else:
            self._backlog.arrived()
        self._pump()

    def _on_space(self) -> None:
        if self._is_short:
            self._try_again()

    def _hold_for_space(self, lack: str) -> None:
        """Start nothing while too little is free. Others free it: nobody tells us when."""
        if not self._is_short:
            self._is_short = True
            _log.warning("no job starts for now: %s", lack)
        self._obstacle = lack
        self._set_timer(_SPACE_S)

    def _hold(self, obstacle: str) -> None:
        """Start nothing for a while: what is in the way is in the way of every job."""
        if self._obstacle is None:
            _log.warning("no job starts for now: %s", obstacle)
        self._obstacle = obstacle
        self._set_timer(self._obstacle_pause_s)
        self._obstacle_pause_s = min(2 * self._obstacle_pause_s, AGAIN_MOST_S)

    def _set_timer(self, pause_s: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._try_again)

    def _try_again(self) -> None:
        self._obstacle = None
        # At once, so that nobody who asks in between is told that nothing is in the way.
        self._pump_now()
        self._is_short = self._is_short and self._obstacle is not None


def _nothing_to_keep(job: Job) -> WrongState:
    if job.ending is None:
        why = f"is {job.status.value}: its results are kept from its end on"
    elif job.ending.results is ResultsState.EXPIRED:
        why = f"has no results any more: they expired at {rfc3339(job.expires_at)}"
    else:
        why = "has no results: it never ran"
    return WrongState(
        f"job {job.job_id} {why}",
        hint=f"see aitbcctl status {job.number}",
        state=job.status.value,
    )


def _over_plan(job: Job, name: str, longest: int | None) -> Forbidden:
    if longest is None:
        detail = f"the plan '{name}' does not let results be kept longer"
        hint = f"download them before {rfc3339(job.expires_at)}: aitbcctl download {job.number}"
    else:
        detail = f"the plan '{name}' lets results be kept until {rfc3339(longest)} at most"
        hint = f"leave out the time to keep them so long: aitbcctl keep {job.number}"
    return Forbidden(detail, hint=hint, plan=name, longest=rfc3339(longest))
