"""One attempt of a job as the daemon sees it: sees it through, and records what becomes of it.

It looks at what the attempt is (``Runs.find``), does what follows from that, and looks again
whenever it heard nothing. A restart enters at the same place, so that the ordinary way and
recovery are one. Nothing that is known here is needed after a crash: what is decided is committed
before it is done.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from aitbcd import causes, launch, model, outcome, output, users
from aitbcd.clock import Clock, now_us
from aitbcd.devices import Near
from aitbcd.engine.evidence import Evidence, Seen
from aitbcd.engine.sampling import Sampling
from aitbcd.engine.terms import Terms
from aitbcd.errors import AitbcError, StorageFull, Unavailable, WrongState
from aitbcd.feed import Feed
from aitbcd.launcher.protocol import Facts, Message, package_name
from aitbcd.lifecycle import Trigger, after
from aitbcd.model import (
    Ending,
    Event,
    EventKind,
    GpuUse,
    Job,
    JobSpec,
    JobState,
    Machine,
    Reason,
    ResultsState,
)
from aitbcd.outcome import Outcome
from aitbcd.reserve import Reserve
from aitbcd.results import reported
from aitbcd.runs import Found, LauncherGone, Refused, Runs, SealFailed, Supervised
from aitbcd.settings import Settings
from aitbcd.store import Move, Store

_log = logging.getLogger(__name__)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
#: Pause before a failed commit or sealing is tried again: first, and at most.
AGAIN_FIRST_S, AGAIN_MOST_S = 0.5, 30.0
#: Seconds after which it is told that a launcher or supervisor is silent, and those that it may
#: take to see that something cannot be killed.
_ANSWER_S, _KILL_S = 10.0, 15.0
#: A sealing that would fail so again, unless it had less to do.
_TOO_LONG = frozenset({errno.EOWNERDEAD, errno.ETIMEDOUT})
#: How often a sealing that fails for another reason than space is tried.
_SEAL_TRIES = 4
#: Launchers that may go away over the removal of one run folder.
_CLEAR_TRIES = 3


class Parts(Struct, frozen=True):
    """What an attempt works with, and whom it tells."""

    store: Store
    runs: Runs
    feed: Feed
    settings: Settings
    machine: Machine
    #: The absolute path of ``results/``.
    results: str
    reserve: Reserve
    terms: Terms
    clock: Clock
    evidence: Evidence
    sampling: Sampling
    #: Where a job is to run.
    near: Callable[[Job], Near]
    #: Its processes are gone, and with them its claim.
    on_free: Callable[[Attempt], None]
    #: It could not start for a reason that stands in every job's way; a sentence.
    on_obstacle: Callable[[str], None]
    #: Its end is committed: the job, its ending, and when its results expire.
    on_ended: Callable[[Job, Ending, int], None]
    #: Does something beside.
    spawn: Callable[[Coroutine[Any, Any, None]], object]


class Attempt:
    """``job`` has the number of this attempt; ``status`` is as last committed."""

    def __init__(
        self,
        parts: Parts,
        job: Job,
        spec: JobSpec | None,
        boot_id: str,
        gpu_models: tuple[str, ...],
        gpu_share: int,
    ) -> None:
        self.job = job
        self.status = job.status
        self.started_at = job.started_at
        #: Set once it is committed as assigned, or given up.
        self.assigned = asyncio.Event()
        #: Set when it may start: its claim is taken.
        self.has_room = asyncio.Event()
        #: Too late to cancel: its processes are gone.
        self.is_over = False
        #: Its job goes back into the queue; set when it is there again.
        self._returns = False
        self._has_returned = asyncio.Event()
        #: Nobody attends to it any more.
        self._has_ended = False
        self._parts = parts
        self._spec = spec
        self._boot_id = boot_id
        self._gpu_models = gpu_models
        self._gpu_share = gpu_share
        self._handle: Supervised | None = None
        #: The last change of its status that was asked for.
        self._moving: asyncio.Future[list[Event]] | None = None
        #: What its supervisor said of its start, to be committed with the next change.
        self._running: Move | None = None
        self._grace_s: float = parts.settings.jobs.cancel_grace_s
        self._is_free = False
        #: When what we wait for should have been said (monotonic); None: nothing is to be said.
        self._due_at: float | None = None
        #: It has a supervisor.
        self._is_placed = False
        #: Why the artifacts are not kept; None: they are.
        self._drop: str | None = None
        #: Why its package could not be sealed when that was tried last.
        self._unsealed: str | None = None

    # -- its owner's wish -----------------------------------------------------------------------

    async def cancel(self, grace_s: float, wish: str) -> Job | None:
        """End it, as somebody wishes (``by ...``); returns the job as it is then: canceling.

        None: this attempt is over, and its job is in the queue again for another one.

        Without a grace the wish also reaches a job whose results are being stored: what it left in
        its artifacts is given up, and it ends as it has ended.

        Raises:
            WrongState: it has ended by itself.
        """
        await self._settled()
        if self._returns:
            await self._has_returned.wait()
            return None
        if self.is_over:
            if grace_s <= 0:
                await self._give_up_artifacts()
                return self.current
            raise WrongState(
                f"job {self.job.job_id} has ended; its results are being stored",
                hint=f"without its artifacts: aitbcctl cancel --force {self.job.job_id}",
                state=self.status.value,
            )
        if self.status is not JobState.CANCELING:
            canceling = replace(self._next(Trigger.CANCEL), message=wish)
            await self._move(*self._unsaid(), canceling)
        self._grace_s = grace_s
        self._due_at = time.monotonic() + grace_s + _KILL_S + _ANSWER_S
        if self._handle:
            self._handle.cancel(grace_s)
        elif self.has_room.is_set():
            # Not waited for: the launcher may be busy, and the wish is committed.
            self._parts.spawn(self._bury())
        else:
            # It need not wait for room to end.
            self.has_room.set()
        return self.current

    @property
    def current(self) -> Job:
        """Return the job as it is now."""
        return replace(self.job, status=self.status, started_at=self.started_at)

    @property
    def waiting(self) -> str | None:
        """What keeps it from going on, as a sentence; None when nothing does."""
        if self.is_over and self._unsealed:
            return f"its results cannot be stored: {self._unsealed}; tries again"
        if self.is_over:
            return "stores its results"
        if not self.has_room.is_set():
            return "starts when a job before it has ended"
        if self._due_at is None or time.monotonic() < self._due_at:
            return None
        pid = self._parts.runs.launcher_pid
        who = f"launcher (pid {pid})" if pid else "launcher"
        if self._is_placed:
            who = f"supervisor (pid {self._handle.pid})" if self._handle else "supervisor"
        return f"its {who} does not answer: it is stopped or the machine is overloaded"

    async def _give_up_artifacts(self) -> None:
        self._drop = "given up by its owner while its results were stored"
        if self._handle:
            self._handle.stop_seal()
            return
        try:
            await self._parts.runs.stop_seal(self.job.job_id, self.job.attempt)
        except LauncherGone:
            # With it what sealed; the next try gives them up.
            pass

    async def _bury(self) -> None:
        """Keep an attempt that may not be placed yet from starting."""
        try:
            is_marked = await self._parts.runs.tombstone(self.job.job_id, self.job.attempt)
        except LauncherGone:
            # ``attend`` looks at the files again, and sees that it is to be canceled.
            return
        if is_marked and self._has_ended:
            # It was placed before, and has run and ended before a slow launcher came to this.
            await clear(self._parts.runs, self.job.job_id, self.job.attempt)

    @property
    def gpu_use(self) -> GpuUse | None:
        """Return what it has made of its GPUs so far."""
        return self._parts.sampling.use(self.job, self._gpu_share)

    def free(self) -> None:
        """Give its claim back, once: its processes are gone."""
        if not self._is_free:
            self._is_free = True
            self._parts.sampling.stop(self.job)
            self._parts.on_free(self)

    # -- its course ---------------------------------------------------------------------------

    async def attend(self, *, is_new: bool) -> None:
        """See the attempt through, from wherever it is to its recorded end, once it ``has_room``.

        Args:
            is_new: it was chosen just now, and the store does not know it yet.
        """
        pause_s = AGAIN_FIRST_S
        try:
            if is_new:
                if not await self._assign():
                    return
                # Now its events can tell of it.
                self._parts.evidence.open(self.job)
            self.assigned.set()
            await self.has_room.wait()
            # It has, if an older copy of the queue was put back, in which it still waited.
            never_ran = is_new and not os.path.lexists(self._folder(is_sealed=True))
            while True:
                try:
                    if await self._look(never_ran=never_ran):
                        return
                except LauncherGone:
                    pass
                except Exception as error:
                    # A bug of ours must cost no job: say it, wait, look at the files again.
                    if isinstance(error, AitbcError):
                        _log.error("job=%s: %s; trying again", self.job.job_id, error.detail)
                    else:
                        _log.exception("job=%s: unexpected", self.job.job_id)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, AGAIN_MOST_S)
                never_ran = False
        finally:
            self._has_ended = True
            self.assigned.set()
            # Should it stand by, it is to be given none any more.
            self.has_room.set()

    async def _assign(self) -> bool:
        """Commit that this attempt is to run; False when the job is no longer in the queue."""
        move = Move(
            self.job.number,
            self.job.attempt,
            JobState.PENDING,
            Trigger.ASSIGN,
            now_us(),
            boot_id=self._boot_id,
            gpu_uuids=self.job.gpu_uuids,
            gpu_models=self._gpu_models,
            gpu_share=self._gpu_share,
        )
        try:
            await self._move(move)
        except WrongState:
            return False
        except (StorageFull, Unavailable) as error:
            self._parts.on_obstacle(f"waits: {error.detail}")
            return False
        return True

    async def _look(self, *, never_ran: bool) -> bool:
        """Take a step, and let go of the supervisor that it had; True as for ``_step``."""
        try:
            return await self._step(never_ran=never_ran)
        except Exception:
            # The next look finds it as a new daemon would.
            if self._handle:
                self._handle.hang_up()
            raise
        finally:
            self._forget_handle()

    async def _step(self, *, never_ran: bool) -> bool:
        """Do what follows from what the attempt is now; True when its end is recorded."""
        job = self.job
        if never_ran:
            return await self._launch()
        finding = self._parts.runs.find(job.job_id, job.attempt, self._boot_id)
        match finding.found:
            case Found.SEALED if finding.status and finding.ending:
                self._note_started(finding.started_at)
                await self._record_sealed(finding.status, finding.ending)
            case Found.OTHER_BOOT:
                until = reported.last_sign(self._folder(is_sealed=False))
                await self._lose("the machine was restarted while it ran", [], until)
            case Found.TOMBSTONE:
                await self._record_unrun()
            case Found.NEVER_RAN:
                return await self._launch()
            case Found.ALIVE:
                self._is_placed = True
                self._due_at = time.monotonic() + _ANSWER_S
                handle = await self._parts.runs.adopt(job.job_id, job.attempt)
                # Not before: its processes are known by their supervisor.
                self._parts.evidence.open_again(job)
                return handle is not None and await self._supervise(handle)
            case Found.EXITED if finding.facts:
                await self._conclude(finding.facts)
            case _:
                await self._lose_swept()
        return True

    async def _launch(self) -> bool:
        if self.status is JobState.CANCELING:
            await self._record_unrun()
            return True
        user = await users.find(self.job.owner.uid)
        if user is None:
            await self._fail_unrun(f"there is no user with uid {self.job.owner.uid}")
            return True
        spec = await self._get_spec()
        message = launch.start_message(
            self.job,
            spec,
            user,
            results=self._parts.results,
            grace_s=self._parts.settings.jobs.cancel_grace_s,
            log_limit=self._parts.settings.jobs.log_limit,
            no_new_privs=self._parts.settings.launcher.no_new_privs,
            processes=self._parts.settings.jobs.processes,
            shared=self._parts.settings.slots.memory,
            gpu_uuids=self.job.gpu_uuids,
            near=self._parts.near(self.job),
        )
        self._due_at = time.monotonic() + _ANSWER_S
        try:
            handle = await self._parts.runs.start(message)
        except Refused as refusal:
            if refusal.why == "storage":
                await self._put_back(str(refusal))
                return True
            if refusal.why == "forbidden":
                await self._fail_unrun(str(refusal))
                return True
            return False
        return await self._supervise(handle)

    async def _get_spec(self) -> JobSpec:
        if self._spec is None:
            self._spec = await self._parts.store.spec(self.job.number)
        return self._spec

    async def _supervise(self, handle: Supervised) -> bool:
        """Listen to a supervisor until the attempt is over; False when it fell silent."""
        self._handle = handle
        self._is_placed = True
        await self._parts.sampling.begin(self.job)
        if self.status is JobState.CANCELING:
            self._due_at = time.monotonic() + self._grace_s + _KILL_S + _ANSWER_S
            handle.cancel(self._grace_s)
        while (report := await handle.report()) is not None:
            if self.status is not JobState.CANCELING:
                self._due_at = None
            if report["op"] == "running":
                await self._on_running(report)
            elif report["op"] == "exited":
                await self._conclude(report["facts"])
                return True
        return False

    def _forget_handle(self) -> None:
        if self._handle:
            self._handle.forget()
            self._handle = None

    def _note_started(self, at: int | None, pid: int | None = None) -> None:
        """Take note of a start that is to be recorded, at the latest with its end."""
        if at and not self._running and self.status is JobState.ASSIGNED:
            word = None if pid is None else str(pid)
            self._running = self._next(Trigger.RUN, at=at, handle=word)

    async def _on_running(self, report: Message) -> None:
        await self._settled()
        self._note_started(report["at"], report["pid"])
        if said := self._unsaid():
            # Nothing waits for it: should it fail, the final commit takes it along.
            self._move(*said, can_wait=True).add_done_callback(_note_failure)

    # -- ends ---------------------------------------------------------------------------------

    async def _conclude(self, facts: Facts) -> None:
        """Decide what an attempt's end means, have it sealed, and record it."""
        if facts.get("containers"):
            facts = facts | {"undead": [*facts.get("undead", []), *await self._sweep()]}
        seen = self._parts.evidence.take(self.job)
        self.free()
        retries_left = await self._retries_left()
        await self._settled()
        if facts.get("storage"):
            await self._put_back(facts["cannot_start"] or "storage failed")
            return
        self._note_started(facts.get("started_at"), facts.get("pid"))
        decided = outcome.judge(facts, self.status, retries_left=retries_left)
        self._note_decided(decided)
        decided = await self._with_wish(decided)
        if decided.wants_a_cause:
            decided = await self._explained(decided, facts, seen)
        if decided.trigger in (Trigger.FAIL, Trigger.CANCELED) and facts.get("started_at"):
            # The last that it said of it; sealing drops the file.
            said = reported.percentage(self._folder(is_sealed=False))
            decided = decided._replace(ending=replace(decided.ending, progress=said))
        used_us = self._used_us(decided.ending.finished_at)
        await self._end(decided, facts.get("kept_whole", []), used_us)

    async def _explained(self, decided: Outcome, facts: Facts, seen: Seen) -> Outcome:
        """Return it with what stood behind it, where that can be told."""
        clues = await self._parts.evidence.clues(self.job, seen, facts.get("started_at"))
        clues = replace(
            clues,
            stderr=reported.last_words(self._folder(is_sealed=False), causes.TAIL_BYTES),
            was_killed=outcome.was_killed(facts),
            oom_kills=facts.get("oom_kills"),
            machine_oom_kills=facts.get("machine_oom_kills"),
        )
        found = causes.find(clues)
        return decided.explained(*found) if found else decided

    async def _with_wish(self, decided: outcome.Outcome) -> outcome.Outcome:
        if decided.trigger is not Trigger.CANCELED:
            return decided
        return decided._replace(ending=replace(decided.ending, message=await self._canceled()))

    async def _canceled(self) -> str:
        """Say by whose wish it ends, as that was committed, perhaps by the daemon before this."""
        events = await self._parts.store.events(number=self.job.number)
        wishes = [
            event.message
            for event in events
            if event.status is JobState.CANCELING and event.kind is EventKind.STATUS
        ]
        return f"canceled {wishes[-1]}" if wishes and wishes[-1] else "canceled"

    def _note_decided(self, decided: Outcome) -> None:
        """Take note, in the same turn of the loop, of what a wish to cancel it would meet."""
        self.is_over = True
        self._returns = decided.trigger is Trigger.REQUEUE

    async def _retries_left(self) -> int:
        """Return how often it may be tried again; what the disk kept from starting is no try."""
        job = self.job
        if not job.retries or job.attempt == 1:
            return job.retries
        earlier = await self._parts.store.attempts(job.number)
        tries = [one for one in earlier if one.attempt < job.attempt and not _was_put_back(one)]
        return job.retries - len(tries)

    async def _lose_swept(self) -> None:
        left = await self._sweep()
        await self._lose("its supervisor was killed, so nobody saw how it ended", left)

    async def _sweep(self) -> list[str]:
        """End what the attempt has left, its containers too; return what does not end."""
        who = launch.identity(users.stranger(self.job.owner.uid))
        return await self._parts.runs.sweep(self.job.job_id, self.job.attempt, who)

    async def _lose(self, message: str, left: list[str], until: int | None = None) -> None:
        """Record an attempt whose end nobody saw; ``until``: its last sign of life, if known."""
        self.free()
        retries_left = await self._retries_left()
        await self._settled()
        decided = outcome.lost(now_us(), message, self.status, retries_left=retries_left, left=left)
        self._note_decided(decided)
        decided = await self._with_wish(decided)
        used_us = self._used_us(until or decided.ending.finished_at)
        await self._end(decided, [], used_us)

    def _used_us(self, until: int) -> int:
        """Return how long the attempt used the machine, to be charged for."""
        started_at = self._running.at if self._running else self.started_at
        if started_at is None:
            return 0
        if self._boot_id != self._parts.machine.boot_id:
            return max(0, until - started_at)
        # Whatever became of the clock meanwhile: it took no longer than the machine has run.
        return min(max(0, until - started_at), self._parts.clock.steady())

    def _charge_micro(self, used_us: int) -> int:
        models, share = self._gpu_models, self._gpu_share
        return self._parts.terms.charge_micro(self.job, models, share, used_us)

    async def _end(self, decided: Outcome, kept_whole: list[str], used_us: int) -> None:
        ending = replace(
            decided.ending,
            charge_micro=self._charge_micro(used_us),
            gpu_use=await self._parts.sampling.finish(self.job, self._gpu_share),
        )
        decided = decided._replace(ending=ending)
        if decided.trigger is Trigger.REQUEUE:
            await self._requeue(decided.ending)
            return
        samples = await self._parts.sampling.table(self.job)
        try:
            status, ending = await self._seal(decided, kept_whole, samples)
        finally:
            if samples is not None:
                os.close(samples)
        await self._record(status, ending)

    async def _requeue(self, ending: Ending) -> None:
        move = self._next(Trigger.REQUEUE, ending=ending)
        await self._commit(*self._unsaid(), move)
        self._has_returned.set()
        await self._dismiss()

    async def _put_back(self, obstacle: str) -> None:
        """Return a job that the disk kept from starting; it is not to blame."""
        await self._settled()
        if self.status is JobState.CANCELING:
            await self._record_unrun()
            return
        self._returns = True
        ending = Ending(now_us(), Reason.STORAGE, message=obstacle)
        self._parts.on_obstacle(f"waits for the disk: {obstacle}")
        await self._requeue(ending)

    async def _seal(
        self,
        decided: Outcome,
        kept_whole: list[str],
        samples: int | None,
    ) -> tuple[JobState, Ending]:
        """Have the package sealed, however long the disk is full; return what it says.

        By its supervisor, where it has one: ``_handle`` may then be another than before.
        """
        user = await self._get_user()
        spec = await self._get_spec()
        pause_s, look_s, tries, kills = AGAIN_FIRST_S, AGAIN_FIRST_S / 10, 0, 0
        while True:
            status = after(self._status(), decided.trigger, job=self.job.job_id)
            order = await self._order(spec, user, status, decided.ending, kept_whole)
            if tries:
                order["artifacts"] = []
            if self._drop:
                order["drop"] = self._drop
            try:
                report = await (self._handle or self._parts.runs).seal(order, samples)
            except LauncherGone:
                # A supervisor that was killed, or a sealer that is at it: whoever takes the lock.
                self._forget_handle()
                await asyncio.sleep(look_s)
                look_s = min(2 * look_s, AGAIN_MOST_S)
                await self._adopt_sealing()
                continue
            except SealFailed as failure:
                if failure.errno == errno.EOWNERDEAD and kills < _SEAL_TRIES:
                    # Not the disk; perhaps we, to go on without the artifacts.
                    kills += "drop" in order or self._drop is None
                    _log.warning("job=%s: storing its results anew: %s", self.job.job_id, failure)
                    continue
                if failure.errno in _TOO_LONG:
                    self._drop = self._drop or f"they could not be stored: {failure}"
                tries += 1
                if self._unsealed != str(failure):
                    _log.error("job=%s: cannot seal its results: %s", self.job.job_id, failure)
                self._unsealed = str(failure)
                decided = _for_want_of_storage(decided, failure)
                if failure.errno not in _NO_ROOM and tries >= _SEAL_TRIES:
                    return after(self._status(), decided.trigger), decided.ending
                self._parts.reserve.release()
                if tries > 1:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, AGAIN_MOST_S)
                continue
            return status, replace(
                decided.ending,
                results=ResultsState.KEPT,
                digest=report["digest"],
                result_bytes=report["bytes"],
                result_files=report["files"],
            )

    async def _adopt_sealing(self) -> None:
        """Go on with a supervisor that lives, and has only lost its connection to us."""
        self._handle = await self._parts.runs.adopt(self.job.job_id, self.job.attempt)
        if self._handle and self._drop:
            # It may not have heard of it.
            self._handle.stop_seal()

    async def _get_user(self) -> users.User:
        """Return the job's user; his uid alone when he was removed while it ran."""
        uid = self.job.owner.uid
        return await users.find(uid) or users.stranger(uid)

    async def _order(
        self,
        spec: JobSpec,
        user: users.User,
        status: JobState,
        ending: Ending,
        kept_whole: list[str],
    ) -> Message:
        job = self.job
        earlier = await self._parts.store.attempts(job.number) if job.attempt > 1 else []
        document = output.build(
            job,
            spec,
            status,
            ending,
            started_at=self._running.at if self._running else self.started_at,
            earlier=[one for one in earlier if one.attempt < job.attempt],
            environment_names=launch.environment_names(spec, user),
            cwd=launch.cwd_of(spec, user),
            miner_id=self._parts.machine.miner_id,
            gpu_uuids=job.gpu_uuids,
            kept_whole=kept_whole,
        )
        return launch.seal_order(
            job, spec, user, document, log_limit=self._parts.settings.jobs.log_limit
        )

    async def _record_sealed(self, status: JobState, ending: Ending) -> None:
        """Commit what a package says that was sealed by an earlier daemon.

        It lies with its user, who can have changed it; at least it ended, and not in the future.
        """
        self.free()
        until = at = min(ending.finished_at, now_us())
        if ending.reason is Reason.LOST:
            until = reported.last_sign(self._folder(is_sealed=True)) or at
        charge_micro = self._charge_micro(self._used_us(until))
        gpu_use = await self._parts.sampling.finish(self.job, self._gpu_share)
        ending = replace(ending, finished_at=at, charge_micro=charge_micro, gpu_use=gpu_use)
        await self._record(status, ending)

    def _folder(self, *, is_sealed: bool) -> str:
        return f"{self._parts.results}/{package_name(self.job.job_id, is_sealed=is_sealed)}"

    async def _record(self, status: JobState, ending: Ending) -> None:
        """Commit the final status of a sealed attempt; then its run folder goes."""
        await self._settled()
        self.is_over = True
        moves = self._unsaid()
        current = self._status()
        if current is JobState.ASSIGNED and status is JobState.COMPLETED:
            moves = [self._next(Trigger.RUN, at=ending.finished_at)]
            current = JobState.RUNNING
        elif current is not JobState.CANCELING and status is JobState.CANCELED:
            # Sealed as canceled, so its owner's wish was committed; it cannot be otherwise.
            raise AitbcError(f"job {self.job.job_id} was sealed as canceled but is {current}")
        elif current is JobState.CANCELING and ending.reason is not Reason.CANCELLATION_FAILED:
            # Sealed before its owner's wish came; then the wish counts.
            status, ending = JobState.CANCELED, replace(ending, reason=Reason.CANCELED)
        trigger = _FINAL_TRIGGERS[status]
        await self._finish(trigger, ending, *moves, expected=current)
        await self._dismiss()

    async def _record_unrun(self) -> None:
        await self._settled()
        message = f"{await self._canceled()} before it started"
        ending = Ending(now_us(), Reason.CANCELED, message=message)
        self.is_over = True
        await self._finish(Trigger.CANCELED, ending)
        await self._dismiss()

    async def _fail_unrun(self, message: str) -> None:
        ending = Ending(now_us(), Reason.CANNOT_START, message=message)
        await self._settled()
        self.is_over = True
        await self._finish(Trigger.FAIL, ending)

    async def _finish(
        self,
        trigger: Trigger,
        ending: Ending,
        *before: Move,
        expected: JobState | None = None,
    ) -> None:
        """Commit a final status, with what is to be committed ``before`` it."""
        expires_at = await self._parts.terms.expires_at(self.job, ending.finished_at)
        last = self._next(trigger, expected=expected, ending=ending, expires_at=expires_at)
        await self._commit(*before, last)
        self._parts.on_ended(self.job, ending, expires_at)

    async def _dismiss(self) -> None:
        """Let the run folder go: its end is in the store."""
        if self._handle and self._handle.is_there:
            self._handle.done()
        else:
            await clear(self._parts.runs, self.job.job_id, self.job.attempt)

    # -- commits ------------------------------------------------------------------------------

    def _status(self) -> JobState:
        """Return the status once what its supervisor said of its start is committed too."""
        return JobState.RUNNING if self._unsaid() else self.status

    def _unsaid(self) -> list[Move]:
        is_unsaid = self._running and self.status is JobState.ASSIGNED
        return [self._running] if self._running and is_unsaid else []

    def _next(
        self,
        trigger: Trigger,
        *,
        expected: JobState | None = None,
        at: int | None = None,
        handle: str | None = None,
        ending: Ending | None = None,
        expires_at: int | None = None,
    ) -> Move:
        job = self.job
        return Move(
            job.number,
            job.attempt,
            expected or (self.status if trigger is Trigger.RUN else self._status()),
            trigger,
            at or (ending.finished_at if ending else now_us()),
            handle=handle,
            ending=ending,
            expires_at=expires_at,
        )

    def _move(self, *moves: Move, can_wait: bool = False) -> asyncio.Future[list[Event]]:
        """Ask for changes of a job's status; when they are committed, ``job`` and readers know."""
        future = self._parts.store.move(*moves, can_wait=can_wait)
        self._moving = future
        future.add_done_callback(lambda done: self._on_moved(moves, done))
        return future

    def _on_moved(self, moves: tuple[Move, ...], done: asyncio.Future[list[Event]]) -> None:
        if self._moving is done:
            self._moving = None
        if done.cancelled() or done.exception():
            return
        for move in moves:
            self.status = after(move.expected, move.trigger)
            if move.trigger is Trigger.RUN:
                self.started_at = move.at
        self._parts.feed.publish(done.result())

    async def _settled(self) -> None:
        """Wait until no change of this job's status is under way."""
        # Until ``_on_moved`` has taken note, that is: done, it may still be on its way there.
        while self._moving:
            await asyncio.wait([self._moving])

    async def _commit(self, *moves: Move) -> None:
        """Commit what has happened and cannot be taken back, however long the disk is full."""
        pause_s = AGAIN_FIRST_S
        while True:
            try:
                await self._move(*moves, can_wait=True)
                break
            except (StorageFull, Unavailable) as error:
                self._parts.reserve.release()
                _log.error("job=%s: %s; trying again", self.job.job_id, error.detail)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, AGAIN_MOST_S)
        self._parts.reserve.hold()


async def clear(runs: Runs, job_id: str, attempt: int) -> None:
    """Remove the run folder of an attempt whose end is recorded, or dismiss its supervisor."""
    for _ in range(_CLEAR_TRIES):
        try:
            while not await runs.remove(job_id, attempt):
                handle = await runs.adopt(job_id, attempt)
                if handle:
                    handle.done()
                    return
        except LauncherGone:
            # The next question waits for another one.
            continue
        return
    # The next start of the daemon sees it again.
    _log.warning("a run folder was left: job=%s attempt=%d", job_id, attempt)


_FINAL_TRIGGERS = {
    JobState.COMPLETED: Trigger.COMPLETE,
    JobState.FAILED: Trigger.FAIL,
    JobState.CANCELED: Trigger.CANCELED,
}


def _was_put_back(attempt: model.Attempt) -> bool:
    return attempt.ending is not None and attempt.ending.reason is Reason.STORAGE


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
