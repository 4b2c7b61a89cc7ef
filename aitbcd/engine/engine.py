"""Decides what runs: takes jobs in, starts them as the planner says, cancels them.

With ``attempt`` it is the only writer of job state: it decides, commits, then acts; the shell
around the pure parts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any

from aitbcd import planner
from aitbcd.backlog import WINDOW, Backlog, Entry, claim_of
from aitbcd.engine.attempt import (
    AGAIN_FIRST_S,
    AGAIN_MOST_S,
    Attempt,
    Parts,
    clear,
    now_us,
)
from aitbcd.errors import Forbidden, NotSatisfiable, WrongState
from aitbcd.feed import Feed
from aitbcd.lifecycle import Trigger
from aitbcd.model import Ending, Job, JobSpec, JobState, Machine, Owner, Reason
from aitbcd.paths import Paths
from aitbcd.planner import Claim
from aitbcd.reserve import Reserve
from aitbcd.runs import Runs
from aitbcd.settings import Settings
from aitbcd.store import Batch, Move, Store
from aitbcd.units import format_size

_log = logging.getLogger(__name__)

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
        self._backlog = Backlog()
        self._active: dict[int, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._parts = Parts(
            store,
            runs,
            feed,
            settings,
            machine,
            str(paths.results),
            Reserve(paths.state / "reserve"),
            on_free=self._on_free,
            on_obstacle=self._hold,
            spawn=self._spawn,
        )
        self._is_pumping = False
        self._refilling = False
        self._is_closed = False
        #: Why nothing starts at present; None when nothing is in the way.
        self._obstacle: str | None = None
        self._obstacle_pause_s = AGAIN_FIRST_S

    # -- life -------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up every job where the files say it is, and start what waits."""
        self._parts.reserve.hold()
        for job in await self._store.active():
            boot_id = await self._store.boot_id_of(job.number, job.attempt)
            attempt = Attempt(self._parts, job, None, boot_id)
            attempt.assigned.set()
            self._attend_to(attempt, is_new=False)
        ours = {(each.job.job_id, each.job.attempt) for each in self._active.values()}
        for job_id, number in self._runs.folders():
            if (job_id, number) not in ours:
                self._spawn(clear(self._runs, job_id, number))
        self._pump()

    async def close(self) -> None:
        """Stop deciding. What runs goes on; the next daemon finds it."""
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
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

    async def submit(self, owner: Owner, spec: JobSpec) -> Job:
        """Put a job into the queue; it is durable when this returns.

        Raises:
            NotSatisfiable, Forbidden: see ``check``.
            StorageFull: nothing was changed.
        """
        self.check(owner, spec)
        job, event = await self._store.submit(owner, spec, at=now_us())
        self._feed.publish([event])
        if job.number not in self._active:
            self._backlog.offer(job, spec)
        self._pump()
        return job

    async def submit_batch(self, owner: Owner, pieces: Pieces) -> Batch:
        """Put many jobs into the queue, all or none. ``pieces`` as in ``Store.submit_many``."""

        def checked() -> Iterable[Sequence[JobSpec]]:
            for piece in pieces():
                for spec in piece:
                    self.check(owner, spec)
                yield piece

        batch = await self._store.submit_many(owner, checked, at=now_us())
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
        at = now_us()
        ending = Ending(at, Reason.CANCELED, message="canceled by its owner before it started")
        move = Move(job.number, job.attempt, JobState.PENDING, Trigger.CANCELED, at, ending=ending)
        events = await self._store.move(move)
        self._backlog.take(job.number)
        self._feed.publish(events)
        self._pump()
        return replace(job, status=JobState.CANCELED, ending=ending)

    def waiting(self, job: Job) -> str | None:
        """Return what keeps a job from going on, as a sentence; None when nothing does."""
        if job.status is not JobState.PENDING:
            attempt = self._active.get(job.number)
            return attempt.waiting if attempt and not job.status.is_final else None
        if self._obstacle:
            return self._obstacle
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
        if self._is_closed or self._obstacle:
            return
        for number in planner.plan(self._backlog.waiting(), self._free):
            if entry := self._backlog.take(number):
                self._begin(entry)
        if self._backlog.is_low and not self._refilling:
            self._refilling = True
            self._spawn(self._refill())

    async def _refill(self) -> None:
        try:
            arrivals = self._backlog.arrivals
            limit = WINDOW + len(self._active)
            jobs = await self._store.head(limit)
            specs = await self._store.specs(self._backlog.without_spec(jobs))
            self._backlog.refill(
                jobs, specs, but=self._active, is_all=len(jobs) < limit, arrivals=arrivals
            )
        finally:
            self._refilling = False
        self._pump()

    def _begin(self, entry: Entry) -> None:
        job = replace(entry.job, attempt=entry.job.attempt + 1)
        attempt = Attempt(self._parts, job, entry.spec, self._machine.boot_id)
        self._attend_to(attempt, is_new=True)

    def _attend_to(self, attempt: Attempt, *, is_new: bool) -> None:
        self._free = self._free.minus(claim_of(attempt.job))
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
        self._free = self._free.plus(claim_of(attempt.job))
        self._pump()

    def _hold(self, obstacle: str) -> None:
        """Start nothing for a while: what is in the way is in the way of every job."""
        if self._obstacle is None:
            _log.warning("no job starts for now: %s", obstacle)
        self._obstacle = obstacle
        asyncio.get_running_loop().call_later(self._obstacle_pause_s, self._try_again)
        self._obstacle_pause_s = min(2 * self._obstacle_pause_s, AGAIN_MOST_S)

    def _try_again(self) -> None:
        self._obstacle = None
        self._pump()
