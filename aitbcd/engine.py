"""The only writer of job state: decides, commits, then acts; the shell around the pure parts.

Each active job has one task, ``_attend``, that sees its attempt through: it looks at what the
attempt is (``Runs.find``), does what follows from that, and looks again whenever it heard nothing.
A restart enters the same task at the same place, so that the ordinary way and recovery are one.
Nothing that a task knows is needed after a crash: what is decided is committed first.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aitbcd import launch, outcome, output, planner, users
from aitbcd.backlog import WINDOW, Backlog, Entry, claim_of
from aitbcd.errors import (
    AitbcError,
    Forbidden,
    NotSatisfiable,
    StorageFull,
    Unavailable,
    WrongState,
)
from aitbcd.feed import Feed
from aitbcd.launcher.protocol import Facts, Message
from aitbcd.lifecycle import Trigger, after
from aitbcd.model import (
    Ending,
    Event,
    Job,
    JobSpec,
    JobState,
    Machine,
    Owner,
    Reason,
    ResultsState,
)
from aitbcd.outcome import Outcome
from aitbcd.paths import Paths
from aitbcd.planner import Claim
from aitbcd.reserve import Reserve
from aitbcd.runs import Found, LauncherGone, Refused, Runs, SealFailed, Supervised
from aitbcd.settings import Settings
from aitbcd.store import Batch, Move, Store

_log = logging.getLogger(__name__)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
#: Pause before a failed commit, sealing or start is tried again: first, and at most.
_AGAIN_FIRST_S, _AGAIN_MOST_S = 0.5, 30.0
#: How often a sealing that fails for another reason than space is tried.
_SEAL_TRIES = 4

Pieces = Callable[[], Iterable[Sequence[JobSpec]]]


def now_us() -> int:
    return time.time_ns() // 1000


@dataclass(slots=True, eq=False)
class _Active:
    """A job that has left the queue, until its end is recorded."""

    #: With the number of this attempt; its status and start are ``status`` and ``started_at``.
    job: Job
    spec: JobSpec | None
    boot_id: str
    #: As last committed.
    status: JobState = JobState.PENDING
    started_at: int | None = None
    #: Set once its attempt is committed as assigned, or given up.
    assigned: asyncio.Event = field(default_factory=asyncio.Event)
    handle: Supervised | None = None
    #: The last change of its status that was asked for.
    moving: asyncio.Future[list[Event]] | None = None
    #: What its supervisor said of its start, and whether that is committed.
    running: Move | None = None
    grace_s: float | None = None
    holds_claim: bool = True
    #: Its processes are gone: too late to cancel.
    is_over: bool = False
    task: asyncio.Task[None] | None = None


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
        self._results = str(paths.results)
        self._uid = uid
        self._whole = Claim(
            settings.slots.cpus or machine.cpus,
            settings.slots.memory or machine.memory,
            machine.gpus,
        )
        self._free = self._whole
        self._backlog = Backlog()
        self._active: dict[int, _Active] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reserve = Reserve(paths.state / "reserve")
        self._is_pumping = False
        self._refilling = False
        self._is_closed = False
        #: Why nothing starts at present; None when nothing is in the way.
        self._obstacle: str | None = None
        self._obstacle_pause_s = _AGAIN_FIRST_S

    # -- life -------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up every job where the files say it is, and start what waits."""
        self._reserve.hold()
        for job in await self._store.active():
            boot_id = await self._store.boot_id_of(job.number, job.attempt)
            active = _Active(job, None, boot_id, job.status, job.started_at)
            active.assigned.set()
            if job.status is JobState.CANCELING:
                active.grace_s = self._settings.jobs.cancel_grace_s
            self._attend_to(active, is_new=False)
        ours = {(each.job.job_id, each.job.attempt) for each in self._active.values()}
        for job_id, attempt in self._runs.folders():
            if (job_id, attempt) not in ours:
                self._spawn(self._clear(job_id, attempt))
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
    def free(self) -> Claim:
        return self._free

    @property
    def whole(self) -> Claim:
        return self._whole

    async def _clear(self, job_id: str, attempt: int) -> None:
        """Remove the run folder of an attempt whose end is recorded, or dismiss its supervisor."""
        try:
            while not await self._runs.remove(job_id, attempt):
                handle = await self._runs.adopt(job_id, attempt)
                if handle:
                    handle.done()
                    return
        except LauncherGone:
            # The next start of the daemon, or the next launcher's, sees it again.
            _log.warning("a run folder was left: job=%s attempt=%d", job_id, attempt)

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
            raise NotSatisfiable(
                f"the job asks for {spec.gpus} GPUs and this machine has {self._whole.gpus}: {why}",
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
                f"the job asks for {spec.memory} bytes of memory and jobs share"
                f" {self._whole.memory} here",
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
            if active := self._active.get(job.number):
                await active.assigned.wait()
                if self._active.get(job.number) is active:
                    return await self._cancel_active(active, grace_s)
                continue
            try:
                return await self._cancel_waiting(job)
            except WrongState:
                # It has just been assigned, or is over.
                current = await self._store.job(job.number)
                if current is None or current.status.is_final:
                    status = current.status.value if current else "deleted"
                    raise WrongState(
                        f"job {job.job_id} is {status} and cannot be canceled",
                        hint="nothing of it runs",
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

    async def _cancel_active(self, active: _Active, grace_s: float) -> Job:
        await self._settled(active)
        if active.is_over:
            raise WrongState(
                f"job {active.job.job_id} has ended; its results are being stored",
                hint=f"see aitbcctl status {active.job.job_id}",
                state=active.status.value,
            )
        if active.status is not JobState.CANCELING:
            cancel = self._next(active, Trigger.CANCEL)
            await self._move(active, *self._unsaid(active), cancel)
        active.grace_s = grace_s
        if active.handle:
            active.handle.cancel(grace_s)
        else:
            self._spawn(self._bury(active))
        return replace(active.job, status=active.status, started_at=active.started_at)

    async def _bury(self, active: _Active) -> None:
        """Keep an attempt that may not be placed yet from starting."""
        try:
            await self._runs.tombstone(active.job.job_id, active.job.attempt)
        except LauncherGone:
            # Its task looks at the files again, and sees that it is to be canceled.
            pass

    def waiting(self, job: Job) -> str | None:
        """Return what a job in the queue waits for, as a sentence; None for any other."""
        if job.status is not JobState.PENDING:
            return None
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
            self._backlog.refill(
                jobs, but=self._active, is_all=len(jobs) < limit, arrivals=arrivals
            )
        finally:
            self._refilling = False
        self._pump()

    def _begin(self, entry: Entry) -> None:
        job = replace(entry.job, attempt=entry.job.attempt + 1)
        self._attend_to(_Active(job, entry.spec, self._machine.boot_id), is_new=True)

    def _attend_to(self, active: _Active, *, is_new: bool) -> None:
        self._free = self._free.minus(claim_of(active.job))
        self._active[active.job.number] = active
        active.task = self._spawn(self._attend(active, is_new=is_new))

    def _release(self, active: _Active) -> None:
        if active.holds_claim:
            active.holds_claim = False
            self._free = self._free.plus(claim_of(active.job))
            self._pump()

    def _hold(self, obstacle: str) -> None:
        """Start nothing for a while: what is in the way is in the way of every job."""
        if self._obstacle is None:
            _log.warning("no job starts for now: %s", obstacle)
        self._obstacle = obstacle
        asyncio.get_running_loop().call_later(self._obstacle_pause_s, self._try_again)
        self._obstacle_pause_s = min(2 * self._obstacle_pause_s, _AGAIN_MOST_S)

    def _try_again(self) -> None:
        self._obstacle = None
        self._pump()

    # -- one attempt --------------------------------------------------------------------------

    async def _attend(self, active: _Active, *, is_new: bool) -> None:
        """See an attempt through, from wherever it is to its recorded end."""
        pause_s = _AGAIN_FIRST_S
        try:
            if is_new and not await self._assign(active):
                return
            active.assigned.set()
            never_ran = is_new
            while True:
                try:
                    if await self._step(active, never_ran=never_ran):
                        return
                except LauncherGone:
                    pass
                except AitbcError as error:
                    _log.error("job=%s: %s; trying again", active.job.job_id, error.detail)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _AGAIN_MOST_S)
                except Exception:
                    # A bug of ours must cost no job: say it, wait, look at the files again.
                    _log.exception("job=%s: unexpected", active.job.job_id)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _AGAIN_MOST_S)
                never_ran = False
        finally:
            active.assigned.set()
            del self._active[active.job.number]
            if not self._is_closed:
                self._release(active)
                if active.status is JobState.PENDING:
                    # Back in the queue, or never out of it: the window may lack it.
                    self._backlog.arrived()
                    self._pump()

    async def _assign(self, active: _Active) -> bool:
        """Commit that this attempt is to run; False when the job is no longer in the queue."""
        move = Move(
            active.job.number,
            active.job.attempt,
            JobState.PENDING,
            Trigger.ASSIGN,
            now_us(),
            boot_id=active.boot_id,
        )
        try:
            await self._move(active, move)
        except WrongState:
            return False
        except (StorageFull, Unavailable) as error:
            self._hold(f"waits: {error.detail}")
            return False
        return True

    async def _step(self, active: _Active, *, never_ran: bool) -> bool:
        """Do what follows from what the attempt is now; True when its end is recorded."""
        job = active.job
        if never_ran:
            return await self._launch(active)
        finding = self._runs.find(job.job_id, job.attempt, active.boot_id)
        match finding.found:
            case Found.SEALED if finding.status and finding.ending:
                self._note_started(active, finding.started_at)
                await self._record(active, finding.status, finding.ending, None)
            case Found.OTHER_BOOT:
                await self._lose(active, "the machine was restarted while it ran", [])
            case Found.TOMBSTONE:
                await self._record_unrun(active)
            case Found.NEVER_RAN:
                return await self._launch(active)
            case Found.ALIVE:
                handle = await self._runs.adopt(job.job_id, job.attempt)
                return handle is not None and await self._supervise(active, handle)
            case Found.EXITED if finding.facts:
                await self._conclude(active, finding.facts, None)
            case _:
                await self._lose_swept(active)
        return True

    async def _launch(self, active: _Active) -> bool:
        if active.status is JobState.CANCELING:
            await self._record_unrun(active)
            return True
        user = users.lookup(active.job.owner.uid)
        if user is None:
            await self._fail_unrun(active, f"there is no user with uid {active.job.owner.uid}")
            return True
        spec = await self._spec(active)
        message = launch.start_message(
            active.job,
            spec,
            user,
            results=self._results,
            grace_s=self._settings.jobs.cancel_grace_s,
            log_limit=self._settings.jobs.log_limit,
        )
        try:
            handle = await self._runs.start(message)
        except Refused as refusal:
            if refusal.why == "storage":
                await self._put_back(active, str(refusal))
                return True
            return False
        return await self._supervise(active, handle)

    async def _spec(self, active: _Active) -> JobSpec:
        if active.spec is None:
            active.spec = await self._store.spec(active.job.number)
        return active.spec

    async def _supervise(self, active: _Active, handle: Supervised) -> bool:
        """Listen to a supervisor until the attempt is over; False when it fell silent."""
        active.handle = handle
        try:
            if active.status is JobState.CANCELING and active.grace_s is not None:
                handle.cancel(active.grace_s)
            while (report := await handle.report()) is not None:
                if report["op"] == "running":
                    await self._on_running(active, report)
                elif report["op"] == "exited":
                    await self._conclude(active, report["facts"], handle)
                    return True
            return False
        except Exception:
            # The next look finds it as a new daemon would.
            handle.hang_up()
            raise
        finally:
            active.handle = None
            handle.forget()

    def _note_started(self, active: _Active, at: int | None, pid: int | None = None) -> None:
        """Take note of a start that is to be recorded, at the latest with its end."""
        if at and not active.running and active.status is JobState.ASSIGNED:
            word = None if pid is None else str(pid)
            active.running = self._next(active, Trigger.RUN, at=at, handle=word)

    async def _on_running(self, active: _Active, report: Message) -> None:
        self._obstacle_pause_s = _AGAIN_FIRST_S
        await self._settled(active)
        self._note_started(active, report["at"], report["pid"])
        if said := self._unsaid(active):
            # Nothing waits for it: should it fail, the final commit takes it along.
            self._move(active, *said).add_done_callback(_note_failure)

    # -- ends ---------------------------------------------------------------------------------

    async def _conclude(self, active: _Active, facts: Facts, handle: Supervised | None) -> None:
        """Decide what an attempt's end means, have it sealed, and record it."""
        self._release(active)
        await self._settled(active)
        if facts.get("storage"):
            await self._put_back(active, facts["cannot_start"] or "storage failed", handle)
            return
        active.is_over = True
        if active.status is JobState.ASSIGNED and facts.get("started_at") and not active.running:
            active.running = self._next(active, Trigger.RUN, at=facts["started_at"] or 0)
        decided = outcome.judge(facts, active.status, retries_left=self._retries_left(active))
        await self._end(active, decided, handle, facts.get("kept_whole", []))

    def _retries_left(self, active: _Active) -> int:
        return active.job.retries - (active.job.attempt - 1)

    async def _lose_swept(self, active: _Active) -> None:
        user = users.lookup(active.job.owner.uid)
        left: list[str] = []
        if user:
            who = launch.identity(user)
            left = await self._runs.sweep(active.job.job_id, active.job.attempt, who)
        await self._lose(active, "its supervisor was killed, so nobody saw how it ended", left)

    async def _lose(self, active: _Active, message: str, left: list[str]) -> None:
        await self._settled(active)
        active.is_over = True
        self._release(active)
        decided = outcome.lost(
            now_us(),
            message,
            active.status,
            retries_left=self._retries_left(active),
            left=left,
        )
        await self._end(active, decided, None, [])

    async def _end(
        self, active: _Active, decided: Outcome, handle: Supervised | None, kept_whole: list[str]
    ) -> None:
        if decided.trigger is Trigger.REQUEUE:
            await self._requeue(active, decided.ending, handle)
            return
        status, ending = await self._seal(active, decided, handle, kept_whole)
        await self._record(active, status, ending, handle)

    async def _requeue(
        self, active: _Active, ending: Ending | None, handle: Supervised | None
    ) -> None:
        move = self._next(active, Trigger.REQUEUE, ending=ending)
        await self._commit(active, *self._unsaid(active), move)
        await self._dismiss(active, handle)

    async def _put_back(
        self, active: _Active, obstacle: str, handle: Supervised | None = None
    ) -> None:
        """Return a job that the disk kept from starting; it is not to blame."""
        await self._settled(active)
        if active.status is JobState.CANCELING:
            await self._record_unrun(active, handle)
            return
        ending = Ending(now_us(), Reason.STORAGE, message=obstacle)
        self._hold(f"waits for the disk: {obstacle}")
        await self._requeue(active, ending, handle)

    async def _seal(
        self, active: _Active, decided: Outcome, handle: Supervised | None, kept_whole: list[str]
    ) -> tuple[JobState, Ending]:
        """Have the package sealed, however long the disk is full; return what it says."""
        user = users.lookup(active.job.owner.uid)
        if user is None:
            raise AitbcError(f"there is no user with uid {active.job.owner.uid} any more")
        spec = await self._spec(active)
        pause_s, tries = _AGAIN_FIRST_S, 0
        while True:
            status = after(self._status(active), decided.trigger, job=active.job.job_id)
            order = await self._order(active, spec, user, status, decided.ending, kept_whole)
            if tries:
                order["artifacts"] = []
            try:
                report = await (handle or self._runs).seal(order)
            except LauncherGone:
                # A supervisor that was killed, or a sealer that is at it: whoever takes the lock.
                handle = None
                await asyncio.sleep(_AGAIN_FIRST_S / 10)
                continue
            except SealFailed as failure:
                tries += 1
                _log.error("job=%s: cannot seal its results: %s", active.job.job_id, failure)
                decided = _for_want_of_storage(decided, failure)
                if failure.errno not in _NO_ROOM and tries >= _SEAL_TRIES:
                    return after(self._status(active), decided.trigger), decided.ending
                self._reserve.release()
                if tries > 1:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _AGAIN_MOST_S)
                continue
            return status, replace(
                decided.ending,
                results=ResultsState.KEPT,
                digest=report["digest"],
                result_bytes=report["bytes"],
                result_files=report["files"],
            )

    async def _order(
        self,
        active: _Active,
        spec: JobSpec,
        user: users.User,
        status: JobState,
        ending: Ending,
        kept_whole: list[str],
    ) -> Message:
        job = active.job
        earlier = await self._store.attempts(job.number) if job.attempt > 1 else []
        document = output.build(
            job,
            spec,
            status,
            ending,
            started_at=active.running.at if active.running else active.started_at,
            earlier=[one for one in earlier if one.attempt < job.attempt],
            environment_names=launch.environment_names(spec, user),
            cwd=launch.cwd_of(spec, user),
            miner_id=self._machine.miner_id,
            gpu_uuids=(),
            kept_whole=kept_whole,
        )
        return launch.seal_order(job, spec, user, document, log_limit=self._settings.jobs.log_limit)

    async def _record(
        self, active: _Active, status: JobState, ending: Ending, handle: Supervised | None
    ) -> None:
        """Commit the final status of a sealed attempt; then its run folder goes."""
        await self._settled(active)
        active.is_over = True
        moves = self._unsaid(active)
        current = self._status(active)
        if current is JobState.ASSIGNED and status is JobState.COMPLETED:
            moves = [self._next(active, Trigger.RUN, at=ending.finished_at)]
            current = JobState.RUNNING
        elif current is not JobState.CANCELING and status is JobState.CANCELED:
            # Sealed as canceled, so its owner's wish was committed; it cannot be otherwise.
            raise AitbcError(f"job {active.job.job_id} was sealed as canceled but is {current}")
        elif current is JobState.CANCELING and status is JobState.COMPLETED:
            status = JobState.CANCELED
            ending = replace(ending, reason=Reason.CANCELED)
        trigger = _FINAL_TRIGGERS[status]
        moves.append(self._next(active, trigger, expected=current, ending=ending))
        await self._commit(active, *moves)
        await self._dismiss(active, handle)

    async def _record_unrun(self, active: _Active, handle: Supervised | None = None) -> None:
        ending = Ending(
            now_us(), Reason.CANCELED, message="canceled by its owner before it started"
        )
        await self._settled(active)
        active.is_over = True
        await self._commit(active, self._next(active, Trigger.CANCELED, ending=ending))
        await self._dismiss(active, handle)

    async def _fail_unrun(self, active: _Active, message: str) -> None:
        ending = Ending(now_us(), Reason.CANNOT_START, message=message)
        await self._settled(active)
        active.is_over = True
        await self._commit(active, self._next(active, Trigger.FAIL, ending=ending))

    async def _dismiss(self, active: _Active, handle: Supervised | None) -> None:
        """Let the run folder go: its end is in the store."""
        if handle:
            handle.done()
        else:
            await self._clear(active.job.job_id, active.job.attempt)

    # -- commits ------------------------------------------------------------------------------

    def _status(self, active: _Active) -> JobState:
        """Return the status once what its supervisor said of its start is committed too."""
        return JobState.RUNNING if self._unsaid(active) else active.status

    def _unsaid(self, active: _Active) -> list[Move]:
        is_unsaid = active.running and active.status is JobState.ASSIGNED
        return [active.running] if active.running and is_unsaid else []

    def _next(
        self,
        active: _Active,
        trigger: Trigger,
        *,
        expected: JobState | None = None,
        at: int | None = None,
        handle: str | None = None,
        ending: Ending | None = None,
    ) -> Move:
        job = active.job
        return Move(
            job.number,
            job.attempt,
            expected or (active.status if trigger is Trigger.RUN else self._status(active)),
            trigger,
            at or (ending.finished_at if ending else now_us()),
            handle=handle,
            ending=ending,
        )

    def _move(self, active: _Active, *moves: Move) -> asyncio.Future[list[Event]]:
        """Ask for changes of a job's status; when they are committed, ``job`` and readers know."""
        future = self._store.move(*moves)
        active.moving = future
        future.add_done_callback(lambda done: self._on_moved(active, moves, done))
        return future

    def _on_moved(
        self, active: _Active, moves: tuple[Move, ...], done: asyncio.Future[list[Event]]
    ) -> None:
        if done.cancelled() or done.exception():
            return
        for move in moves:
            active.status = after(move.expected, move.trigger)
            if move.trigger is Trigger.RUN:
                active.started_at = move.at
        self._feed.publish(done.result())

    async def _settled(self, active: _Active) -> None:
        """Wait until no change of this job's status is under way."""
        while active.moving and not active.moving.done():
            await asyncio.wait([active.moving])

    async def _commit(self, active: _Active, *moves: Move) -> None:
        """Commit what has happened and cannot be taken back, however long the disk is full."""
        pause_s = _AGAIN_FIRST_S
        while True:
            try:
                await self._move(active, *moves)
                break
            except (StorageFull, Unavailable) as error:
                self._reserve.release()
                _log.error("job=%s: %s; trying again", active.job.job_id, error.detail)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _AGAIN_MOST_S)
        self._reserve.hold()


_FINAL_TRIGGERS = {
    JobState.COMPLETED: Trigger.COMPLETE,
    JobState.FAILED: Trigger.FAIL,
    JobState.CANCELED: Trigger.CANCELED,
}


def _note_failure(done: asyncio.Future[list[Event]]) -> None:
    if not done.cancelled() and (error := done.exception()):
        _log.error("the start of a job is recorded with its end: %s", error)


def _for_want_of_storage(decided: Outcome, failure: SealFailed) -> Outcome:
    """Return the outcome of an attempt whose results could not be stored as they are."""
    message = f"its results could not be stored in full: {failure}"
    if decided.trigger is Trigger.CANCELED or decided.ending.reason is Reason.CANCELLATION_FAILED:
        return Outcome(decided.trigger, replace(decided.ending, message=message))
    ending = replace(decided.ending, reason=Reason.STORAGE, message=message)
    return Outcome(Trigger.FAIL, ending)
