"""Decides what runs: takes jobs in, starts them as the planner says, cancels them.

With ``attempt`` it is the only writer of job state: it decides, commits, then acts; the shell
around the pure parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from aitbcd import launch, plans, users
from aitbcd.backlog import Entry, claim_of
from aitbcd.clock import Clock
from aitbcd.engine import admission, strays
from aitbcd.engine.attempt import Attempt, Parts, clear
from aitbcd.engine.evidence import Evidence
from aitbcd.engine.holds import Holds
from aitbcd.engine.pool import Pool
from aitbcd.engine.queue import Ends, Queue
from aitbcd.engine.removals import Removals
from aitbcd.engine.room import Disk, Quota
from aitbcd.engine.sampling import Sampling
from aitbcd.engine.sweeper import Sweeper
from aitbcd.engine.terms import Terms
from aitbcd.errors import Forbidden, WrongState
from aitbcd.feed import Feed
from aitbcd.gpus import Gpus
from aitbcd.lifecycle import Trigger
from aitbcd.model import (
    Ending,
    GpuUse,
    Job,
    JobSpec,
    JobState,
    Machine,
    Owner,
    Reason,
    ResultsState,
)
from aitbcd.paths import Paths
from aitbcd.planner import Claim
from aitbcd.reserve import Reserve
from aitbcd.runs import Found, LauncherGone, Runs
from aitbcd.settings import Settings
from aitbcd.store import Batch, Move, Store
from aitbcd.wire import rfc3339

#: How long a delete waits for the disk space to be free.
_DELETE_S = 2.0
#: That no GPU is known may be that old when a job is refused for want of them.
_KNOWN_S = 10.0
_NONE: Ends = {}

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
        gpus: Gpus,
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
        )
        self._clock = clock or Clock()
        self._terms = Terms(settings)
        self._disk = Disk(settings.storage, str(paths.state))
        self._quota = Quota(settings.storage, store, spawn=self._spawn, on_change=self._on_quota)
        self._removals = Removals(
            store, runs, spawn=self._spawn, on_space=lambda: self._queue.has_space()
        )
        #: Gives up what has expired; says what will.
        self.retention = Sweeper(
            store, self._removals, self._terms, self._quota, self._clock, boot_id=machine.boot_id
        )
        self._pool = Pool(
            gpus,
            settings.gpus,
            Holds(paths.state / "gpu-holds.json", machine.boot_id),
            sweep=self._sweep,
            spawn=self._spawn,
            on_change=lambda: self._queue.pump(),
        )
        self._sampling = Sampling(gpus, settings.gpus, paths.samples, spawn=self._spawn)
        self._evidence = Evidence(gpus, store, feed, self._spawn)
        runs.on_left = lambda job_id, attempt: self._spawn(clear(runs, job_id, attempt))
        self._active: dict[int, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue = Queue(
            store,
            self._pool,
            self._terms,
            self._disk,
            self._quota,
            settings.slots,
            self._whole,
            active=self._active,
            begin=self._begin,
            spawn=self._spawn,
            on_stranger=self._evidence.kept_from,
        )
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
            self._evidence,
            self._sampling,
            near=self._pool.near,
            on_free=self._on_free,
            on_obstacle=self._queue.hold,
            on_ended=self._on_ended,
            spawn=self._spawn,
        )
        self._is_closed = False

    # -- life -------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up every job where the files say it is, and start what waits."""
        self._parts.reserve.hold()
        await strays.skip(self._store, self._parts.results)
        await self.retention.open()
        self._removals.look()
        self._spawn(self.retention.run())
        for job in await self._store.active():
            boot_id, models, share = await self._store.placement(job.number, job.attempt)
            attempt = Attempt(self._parts, job, None, boot_id, models, share)
            self._pool.take_again(job)
            attempt.assigned.set()
            self._attend_to(attempt, is_new=False)
            if self._may_stand_by(job, boot_id):
                self._queue.stand_by(attempt)
            else:
                self._queue.let_go(attempt)
        await self._watch_what_is_left()
        ours = {(each.job.job_id, each.job.attempt) for each in self._active.values()}
        self._sampling.clear(ours)
        for job_id, number in self._runs.folders():
            if (job_id, number) not in ours:
                self._spawn(clear(self._runs, job_id, number))
        self._queue.pump()

    async def _watch_what_is_left(self) -> None:
        """Go on waiting for the GPUs of jobs that are over to be as before."""
        for kept in self._pool.not_given_back():
            job = await self._store.job(kept.number)
            if job and job.job_id == kept.job_id:
                job = replace(job, attempt=kept.attempt, gpu_uuids=kept.uuids)
                self._pool.take_again(job)
                self._pool.give_back(job)

    def _may_stand_by(self, job: Job, boot_id: str) -> bool:
        """Tell whether nothing of an assigned job has been started, so that it may wait."""
        if job.status is not JobState.ASSIGNED or job.gpu_uuids:
            return False
        if not claim_of(job).fits(self._whole):
            # Jobs shared more when it was assigned; there will never be room.
            return False
        return self._runs.find(job.job_id, job.attempt, boot_id).found is Found.NEVER_RAN

    async def close(self) -> None:
        """Stop deciding. What runs goes on; the next daemon finds it."""
        self._is_closed = True
        self._queue.close()
        self._removals.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sampling.close()
        self.retention.close()
        self._feed.close()

    def on_settings(self) -> None:
        """Look again at what waits: the configuration has changed."""
        self._sampling.resume()
        self._spawn(self._look_again())

    async def _look_again(self) -> None:
        await self._terms.learn_again()
        self._quota.forget()
        self._queue.read_again()
        self._queue.has_space()
        self._queue.pump()

    @property
    def active_count(self) -> int:
        return len(self._active)

    @property
    def launcher_pid(self) -> int:
        """Return who starts jobs; 0 while nobody does."""
        return self._runs.launcher_pid

    @property
    def launcher_version(self) -> str | None:
        return self._runs.launcher_version

    @property
    def cgroups(self) -> dict[str, Any] | None:
        """Return where attempts have cgroups, as /healthz says it; None while nobody knows."""
        return self._runs.cgroups

    @property
    def whole(self) -> Claim:
        return self._whole

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- what users ask -----------------------------------------------------------------------

    async def admission(self, owner: Owner) -> Callable[[JobSpec], JobSpec]:
        """Return what refuses the jobs of a user that can never run; it may run in any thread.

        It returns the job with the GPUs that it names by UUID, and raises

        NotSatisfiable: more than this machine has, or than this user may have.
        Forbidden: this daemon cannot run jobs of this user.
        """
        if owner.uid == 0 != os.getuid() and not self._settings.launcher.root:
            raise Forbidden(
                "jobs do not run as root here",
                hint="submit it as whose it is; root = true in [launcher] of the configuration"
                " allows them",
            )
        if not self._pool.inventory.gpus:
            await self._pool.look(max_age_s=_KNOWN_S)
        limits = await self._terms.learn(owner)
        return lambda spec: admission.check(
            spec, owner, limits, self._whole, self._pool.inventory, runs_as=self._uid
        )

    async def submit(
        self, owner: Owner, spec: JobSpec, *, plan: str | None = None, retry_of: int | None = None
    ) -> Job:
        """Put a job into the queue; it is durable when this returns.

        Args:
            plan: of the key that it is submitted with, if that has one.
            retry_of: the number of the job that it repeats.

        Raises:
            NotSatisfiable, Forbidden: see ``admission``.
            OverLimit: too many jobs of this user wait already.
            StorageFull: nothing was changed.
        """
        self._disk.check()
        spec = (await self.admission(owner))(spec)
        limits = self._terms.limits(owner.uid)
        await self._quota.learn([owner.uid])
        job, event = await self._store.submit(
            owner,
            spec,
            at=self._clock.now(),
            plan=plan,
            retry_of=retry_of,
            pending_max=limits.pending if limits else None,
        )
        self._feed.publish([event])
        self._queue.offer(job, spec)
        return job

    async def submit_batch(self, owner: Owner, pieces: Pieces, *, plan: str | None = None) -> Batch:
        """Put many jobs into the queue, all or none. ``pieces`` as in ``Store.submit_many``."""

        self._disk.check()
        check = await self.admission(owner)
        limits = self._terms.limits(owner.uid)

        def checked() -> Iterable[Sequence[JobSpec]]:
            for piece in pieces():
                yield [check(spec) for spec in piece]

        batch = await self._store.submit_many(
            owner,
            checked,
            at=self._clock.now(),
            plan=plan,
            pending_max=limits.pending if limits else None,
        )
        self._feed.publish(())
        self._queue.arrived(owner.uid)
        return batch

    async def cancel(self, job: Job, *, force: bool, by: Owner | None = None) -> Job:
        """Cancel a job; returns it canceled, or canceling while its processes end.

        Args:
            by: who wishes it; None is its owner.

        Raises:
            WrongState: it is over already.
        """
        grace_s = 0.0 if force else self._settings.jobs.cancel_grace_s
        wish = f"by {'its owner' if by is None or by.uid == job.owner.uid else by.name}"
        while True:
            if attempt := self._active.get(job.number):
                await attempt.assigned.wait()
                if self._active.get(job.number) is not attempt:
                    continue
                if canceled := await attempt.cancel(grace_s, wish):
                    return canceled
            try:
                return await self._cancel_waiting(job, wish)
            except WrongState:
                # It has just been assigned, or is over.
                current = await self._store.job(job.number)
                if current is None or current.status.is_final:
                    status = current.status.value if current else "deleted"
                    raise WrongState(
                        f"{job.job_id} is over ({status}): there is nothing to cancel",
                        state=status,
                    ) from None
                job = current
                await asyncio.sleep(0)

    async def _cancel_waiting(self, job: Job, wish: str) -> Job:
        at = self._clock.now()
        ending = Ending(at, Reason.CANCELED, message=f"canceled {wish} before it started")
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
        self._queue.take(job)
        self._feed.publish(events)
        if job.attempt:
            # An earlier attempt has left a package.
            self._removals.look()
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

    async def delete(self, job: Job) -> tuple[int, bool]:
        """Delete a job and its results; return how many bytes those had, and whether they are gone.

        They are when that takes no longer than two seconds: else nobody waits for it.

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
            return freed, True
        self._quota.look(job.owner.uid)
        removal = self._removals.add(job.number, job.job_id, job.owner.uid)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DELETE_S):
                await removal.is_over.wait()
        return freed, removal.is_gone

    def waiting(self, job: Job, expected: Ends = _NONE) -> str | None:
        """Return what keeps a job from going on, as a sentence; None when nothing does.

        Args:
            expected: by number, when jobs of ``awaited`` are expected to end.
        """
        if job.status is not JobState.PENDING:
            attempt = self._active.get(job.number)
            return attempt.waiting if attempt and not job.status.is_final else None
        return self._queue.waiting(job, expected)

    def awaited(self, job: Job) -> list[Job]:
        """Return the jobs that have what a job waits for."""
        return self._queue.awaited(job) if job.status is JobState.PENDING else []

    def gpu_use(self, number: int) -> GpuUse | None:
        """Return what a job that runs has made of its GPUs so far."""
        attempt = self._active.get(number)
        return attempt.gpu_use if attempt else None

    async def gpu_samples(self, job: Job) -> bytes | None:
        """Return ``logs/gpu.csv`` of a job that runs, as far as it is; None while it is empty."""
        return await self._sampling.csv(job)

    # -- attempts -----------------------------------------------------------------------------

    def _begin(self, entry: Entry, gpu_uuids: tuple[str, ...]) -> Attempt:
        job = replace(entry.job, attempt=entry.job.attempt + 1, gpu_uuids=gpu_uuids)
        models = self._pool.models(gpu_uuids)
        share = self._pool.share(job)
        attempt = Attempt(self._parts, job, entry.spec, self._machine.boot_id, models, share)
        self._pool.take(job)
        self._attend_to(attempt, is_new=True)
        return attempt

    def _attend_to(self, attempt: Attempt, *, is_new: bool) -> None:
        self._queue.occupy(attempt.job)
        self._active[attempt.job.number] = attempt
        self._spawn(self._attend(attempt, is_new=is_new))

    async def _attend(self, attempt: Attempt, *, is_new: bool) -> None:
        try:
            await attempt.attend(is_new=is_new)
        finally:
            del self._active[attempt.job.number]
            self._evidence.take(attempt.job)
            if not self._is_closed:
                attempt.free()
        self._sampling.discard(attempt.job)
        if attempt.status is not JobState.PENDING:
            self._queue.succeeded()
            return
        # Back in the queue, or never out of it: the window may lack it.
        self._queue.returned(attempt.job)

    def _on_free(self, attempt: Attempt) -> None:
        self._pool.give_back(attempt.job)
        self._queue.vacate(attempt)

    def _on_ended(self, job: Job, ending: Ending, expires_at: int) -> None:
        if ending.results is ResultsState.KEPT:
            self.retention.note(expires_at)
            self._quota.look(job.owner.uid)
        else:
            self._removals.look()

    def _on_quota(self, uid: int, has_to_wait: bool) -> None:
        if has_to_wait:
            self._queue.drop(uid)
        else:
            self._queue.arrived(uid)

    async def _sweep(self, job: Job) -> None:
        """End what a job has left running that is over."""
        who = launch.identity(users.stranger(job.owner.uid))
        with contextlib.suppress(LauncherGone):
            await self._runs.sweep(job.job_id, job.attempt, who)


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
