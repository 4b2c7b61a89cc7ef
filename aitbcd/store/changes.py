"""What a transaction does: submit, submit many, move. It runs in the writer's thread.

Each public function is one change for ``writer.Writer``, which makes it all or nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from msgspec import Struct

from aitbcd import lifecycle
from aitbcd.errors import IllegalTransition, NoSuchJob, OverLimit, WrongState
from aitbcd.model import (
    WHOLE,
    Cause,
    Ending,
    Event,
    EventKind,
    Job,
    JobSpec,
    JobState,
    Owner,
    ResultsState,
    Value,
)
from aitbcd.store import lanes, totals
from aitbcd.store.ids import JobIds, Named
from aitbcd.store.rows import LISTED_AS, STATES, pack, pack_use, snapshot_text
from aitbcd.store.sql import QUERIES, with_rows
from aitbcd.store.writer import Transaction

Pieces = Callable[[], Iterable[Sequence[JobSpec]]]

#: Shorter runs are not remembered: nobody waits for them, and they come by the thousand.
WORTH_KNOWING_US = 100_000

_INSERT_JOB = QUERIES["insert_job"]
_INSERT_SPEC = QUERIES["insert_spec"]
#: Rows in one statement; SQLite before 3.32 takes 999 values in all.
_ROWS = 50
_INSERT_JOBS = with_rows(_INSERT_JOB, _ROWS)
_INSERT_SPECS = with_rows(_INSERT_SPEC, _ROWS)
_INSERT_EVENT = QUERIES["insert_event"]
_INSERT_NOTE = QUERIES["insert_note"]
_COUNT_NOTES = QUERIES["count_notes"]
_INSERT_FIRST_EVENTS = QUERIES["insert_first_events"]
_INSERT_ATTEMPT = QUERIES["insert_attempt"]
_START_ATTEMPT = QUERIES["start_attempt"]
_FINISH_ATTEMPT = QUERIES["finish_attempt"]
_JOB_TO_MOVE = QUERIES["job_to_move"]
_ASSIGN_JOB = QUERIES["assign_job"]
_ADVANCE_JOB = QUERIES["advance_job"]
_REQUEUE_JOB = QUERIES["requeue_job"]
_FINISH_JOB = QUERIES["finish_job"]
_INSERT_REMOVAL = QUERIES["insert_removal"]
_COUNT_PENDING = QUERIES["count_pending_of_owner"]
_FIRST_START = QUERIES["first_start"]
_ADD_USAGE = QUERIES["add_usage"]
_ENVIRONMENTS_KEPT_IN_MIND = 256
#: Of one attempt and kind: what somebody else does must not fill our disk.
NOTES_MAX = 20


class Move(Value, frozen=True):
    """One change of a job's status, asked for on the ground of what is expected of it."""

    number: int
    #: The attempt it belongs to; for ASSIGN the new one, for a job in the queue the last one.
    attempt: int
    expected: JobState
    trigger: lifecycle.Trigger
    at: int
    #: ASSIGN: the boot in which the attempt is going to run.
    boot_id: str | None = None
    #: RUN: the word by which its supervisor knows it.
    handle: str | None = None
    #: COMPLETE, FAIL, CANCELED: how it ended. REQUEUE: how the attempt ended, if it had begun.
    #: The attempt costs its ``charge_micro``.
    ending: Ending | None = None
    #: CANCEL: who wished it.
    message: str | None = None
    #: COMPLETE, FAIL, CANCELED: when its results go.
    expires_at: int | None = None
    #: ASSIGN: the GPUs that it is given, and what they are.
    gpu_uuids: tuple[str, ...] = ()
    gpu_models: tuple[str, ...] = ()
    #: ASSIGN: how many millionths of each GPU it has.
    gpu_share: int = WHOLE


class Note(Struct, frozen=True):
    """Something that happened to a job which changes no status."""

    number: int
    #: The attempt that it happened to; of a job in the queue the last one.
    attempt: int
    kind: EventKind
    at: int
    #: What it is about: there is one of each.
    mark: str
    message: str
    facts: dict[str, Any]


class Submission(Struct, frozen=True):
    """Who submits jobs, and when."""

    owner: Owner
    at: int
    #: The plan of the API key that was used.
    plan: str | None = None
    #: The number of the job that is tried again.
    retry_of: int | None = None
    #: How many of his jobs may wait, these included.
    pending_max: int | None = None


class Batch(Struct, frozen=True):
    """What ``submit_many`` made: (number, job_id) in order, and the seqs of their events.

    However many jobs it had, it is small: the daemon's memory does not follow the queue.
    """

    ids: Sequence[tuple[int, str]]
    events: range


def typical_key(name: str | None, command_digest: bytes) -> bytes:
    """Return what names the same work: a job's name, or its command where it has none."""
    if name is None:
        return command_digest[:16]
    return hashlib.sha256(b"name\0" + name.encode("utf-8", "surrogatepass")).digest()[:16]


def digest_of_command(argv: Iterable[bytes]) -> bytes:
    """Return the sha256 of a command, as ``Store.typical_us`` takes it."""
    return hashlib.sha256(pack(argv)).digest()


class Changes:
    """The changes of one store; what they keep in mind belongs to the writer's thread."""

    def __init__(self, ids: JobIds) -> None:
        self._ids = ids
        self._job_id = ids.of

    # Submitting

    def submit(
        self, transaction: Transaction, work: tuple[Submission, JobSpec]
    ) -> tuple[Job, Event]:
        """Store one job in the queue."""
        submission, spec = work
        owner, at, retry_of = submission.owner, submission.at, submission.retry_of
        _name(transaction, owner)
        _check_pending(transaction, submission, 1)
        environment = self._environment(transaction, spec.environment)
        transaction.number = number = transaction.number + 1
        job_id = self._job_id(number)
        transaction.execute(_INSERT_JOB, _job_row(number, submission, spec))
        transaction.execute(_INSERT_SPEC, _spec_row(number, spec, environment))
        job = Job(
            number, job_id, owner, JobState.PENDING, spec.name, spec.cpus, spec.memory, spec.gpus,
            spec.timeout_s, spec.priority, spec.retries, 0, at, plan=submission.plan,
            retry_of=None if retry_of is None else self._job_id(retry_of),
            gpu_type=spec.gpu_type, min_vram=spec.min_vram, gpu=spec.gpu, vram=spec.vram,
        )  # fmt: skip
        transaction.pending += 1
        counted = totals.Submitted(owner.uid, at)
        counted.add(transaction, [spec.name])
        counted.note(transaction)
        return job, self._event(transaction, (number, owner.uid, at, JobState.PENDING, 0, None))

    def submit_many(self, transaction: Transaction, work: tuple[Submission, Pieces]) -> Batch:
        """Store jobs piece by piece."""
        submission, pieces = work
        _name(transaction, submission.owner)
        counted = totals.Submitted(submission.owner.uid, submission.at)
        first, seq = transaction.number + 1, transaction.seq + 1
        for piece in pieces():
            self._submit_piece(transaction, submission, piece, counted)
        counted.note(transaction)
        numbers = range(first, transaction.number + 1)
        _check_pending(transaction, submission, 0)
        transaction.execute(_INSERT_FIRST_EVENTS, (seq - first, first, transaction.number))
        transaction.seq += len(numbers)
        transaction.pending += len(numbers)
        return Batch(Named(numbers, self._ids), range(seq, seq + len(numbers)))

    def _submit_piece(
        self,
        transaction: Transaction,
        submission: Submission,
        piece: Sequence[JobSpec],
        counted: totals.Submitted,
    ) -> None:
        begin = transaction.number + 1
        jobs = [_job_row(number, submission, spec) for number, spec in enumerate(piece, begin)]
        _insert(transaction, _INSERT_JOB, _INSERT_JOBS, jobs)
        environment: tuple[bytes, ...] | None = None
        environment_id: int | None = None
        specs = []
        for number, spec in enumerate(piece, begin):
            if spec.environment is not environment:
                environment = spec.environment
                environment_id = self._environment(transaction, environment)
            specs.append(_spec_row(number, spec, environment_id))
        _insert(transaction, _INSERT_SPEC, _INSERT_SPECS, specs)
        transaction.number += len(piece)
        counted.add(transaction, [spec.name for spec in piece])

    def _environment(
        self, transaction: Transaction, environment: tuple[bytes, ...] | None
    ) -> int | None:
        """Return the id of a base environment, stored now if it is new."""
        if environment is None:
            return None
        known = transaction.environments
        if environment in known:
            return known[environment]
        entries = pack(environment)
        digest = hashlib.sha256(entries).digest()
        row = transaction.execute(QUERIES["environment_by_digest"], (digest,)).fetchone()
        if row is None:
            stored = transaction.execute(QUERIES["insert_environment"], (digest, entries)).lastrowid
            assert stored is not None
        else:
            stored = row[0]
        if len(known) >= _ENVIRONMENTS_KEPT_IN_MIND:
            known.clear()
        known[environment] = stored
        return stored

    # Moving

    def move(self, transaction: Transaction, moves: tuple[Move, ...]) -> list[Event]:
        """Change statuses."""
        return [self._move(transaction, move) for move in moves]

    def _move(self, transaction: Transaction, move: Move) -> Event:
        target = lifecycle.after(move.expected, move.trigger, job=move.number)
        _require_parts(move, target)
        row = transaction.execute(_JOB_TO_MOVE, (move.number,)).fetchone()
        if row is None:
            raise NoSuchJob(f"there is no job {move.number}", job=move.number)
        held = _Held(*row)
        is_assigned = move.trigger is lifecycle.Trigger.ASSIGN
        attempt = move.attempt - 1 if is_assigned else move.attempt
        if held.status != move.expected.value or held.attempt != attempt:
            raise _wrong_state(move, held.status, held.attempt)
        run_us = _run_us(held, move.ending)
        self._write(transaction, move, target, held, run_us)
        if move.ending is not None:
            self._account(transaction, move, target, held, run_us)
        if move.expected is JobState.PENDING:
            transaction.pending -= 1
        elif target is JobState.PENDING:
            transaction.pending += 1
        change = (move.number, held.uid, move.at, target, move.attempt, move.ending)
        return self._event(transaction, change, move.message)

    def _write(
        self,
        transaction: Transaction,
        move: Move,
        target: JobState,
        held: _Held,
        run_us: int | None,
    ) -> None:
        """Write the job's row, compared with what is expected, and its attempt's."""
        execute, ending, key = transaction.execute, move.ending, (move.number, move.attempt)
        expected = (move.number, held.status, held.attempt)
        charge = 0 if ending is None else ending.charge_micro
        if target.is_final and ending is not None:
            end = (*_package(ending), move.expires_at, run_us, charge, LISTED_AS[target])
            changed = execute(_FINISH_JOB, (target.value, *end, *expected))
        elif target is JobState.PENDING:
            changed = execute(_REQUEUE_JOB, (target.value, charge, *expected))
        elif target is JobState.ASSIGNED:
            changed = execute(_ASSIGN_JOB, (target.value, move.attempt, move.attempt, *expected))
        else:
            changed = execute(_ADVANCE_JOB, (target.value, *expected))
        if changed.rowcount != 1:
            raise WrongState(f"job {move.number} changed while it was moved", job=move.number)
        if target is JobState.ASSIGNED:
            gpus = (" ".join(move.gpu_uuids), "\n".join(move.gpu_models), move.gpu_share)
            execute(_INSERT_ATTEMPT, (*key, move.boot_id, move.at, *gpus))
        elif target is JobState.RUNNING:
            execute(_START_ATTEMPT, (move.at, move.handle, *key))
        elif ending is not None and move.expected is not JobState.PENDING:
            execute(_FINISH_ATTEMPT, (*_facts(ending), *key))
        if target.is_final and move.attempt and ending and ending.results is ResultsState.NONE:
            # What an attempt has left unsealed: nobody comes back to it.
            execute(_INSERT_REMOVAL, (move.number,))

    def _account(
        self,
        transaction: Transaction,
        move: Move,
        target: JobState,
        held: _Held,
        run_us: int | None,
    ) -> None:
        """Take an attempt, and a job that is over with it, into what is kept of many jobs."""
        ending = move.ending
        assert ending is not None
        if ending.results is ResultsState.KEPT:
            transaction.execute(_ADD_USAGE, (ending.result_bytes, held.uid))
        if target is JobState.COMPLETED and run_us is not None and run_us >= WORTH_KNOWING_US:
            self._learn(transaction, move, held.uid, run_us)
        used_us, wait_us = run_us or 0, None
        if target.is_final and held.attempt:
            first = held.started_at
            if held.attempt > 1:
                first = transaction.execute(_FIRST_START, (move.number,)).fetchone()[0]
            wait_us = None if first is None else max(0, first - held.created_at)
        is_completed = target is JobState.COMPLETED
        gpu_us = used_us * held.gpus * (WHOLE if held.gpu_share is None else held.gpu_share)
        energy_j = ending.gpu_use.energy_j if ending.gpu_use else None
        figures = (
            0, int(is_completed), int(target is JobState.FAILED), int(target is JobState.CANCELED),
            used_us if is_completed else 0, used_us * held.cpus, gpu_us // WHOLE,
            ending.charge_micro, round((energy_j or 0) * 1000), wait_us or 0,
            0 if wait_us is None else lanes.one(wait_us),
        )  # fmt: skip
        totals.note(transaction, held.uid, held.name, ending.finished_at, figures)
        if target is JobState.FAILED and ending.cause is not None:
            at, cause = ending.finished_at, ending.cause
            totals.count_failure(transaction, held.uid, held.name, at, cause)

    def _learn(self, transaction: Transaction, move: Move, uid: int, took: int) -> None:
        """Remember how long this work took."""
        name, argv = transaction.execute(QUERIES["command_of_job"], (move.number,)).fetchone()
        if name is not None or argv is not None:
            key = typical_key(name, hashlib.sha256(argv or b"").digest())
            transaction.execute(QUERIES["learn_typical"], (uid, key, took, move.at))

    def _event(
        self,
        transaction: Transaction,
        change: tuple[int, int, int, JobState, int, Ending | None],
        said: str | None = None,
    ) -> Event:
        number, uid, at, status, attempt, ending = change
        reason, message = (ending.reason, ending.message) if ending else (None, said)
        cause: Cause | None = ending.cause if ending else None
        transaction.seq = seq = transaction.seq + 1
        transaction.execute(
            _INSERT_EVENT,
            (
                seq, number, uid, at, status.value, attempt, reason and reason.value, message,
                cause and cause.value,
            ),
        )  # fmt: skip
        return Event(
            seq, number, self._job_id(number), uid, at, status, attempt, reason, message, cause
        )

    def note(self, transaction: Transaction, note: Note) -> list[Event]:
        """Add an event that changes no status; none to a job that is over, or full of them."""
        row = transaction.execute(_JOB_TO_MOVE, (note.number,)).fetchone()
        if row is None:
            return []
        held = _Held(*row)
        status = STATES[held.status]
        if status.is_final or held.attempt != note.attempt:
            return []
        key = (note.mark, note.number, note.attempt, note.kind.value)
        count, is_there = transaction.execute(_COUNT_NOTES, key).fetchone()
        if count >= NOTES_MAX or is_there:
            return []
        transaction.seq = seq = transaction.seq + 1
        words = (note.message, note.kind.value, note.mark, json.dumps(note.facts))
        about = (seq, note.number, held.uid, note.at, status.value, note.attempt)
        transaction.execute(_INSERT_NOTE, (*about, *words))
        return [
            Event(
                seq, note.number, self._job_id(note.number), held.uid, note.at, status,
                note.attempt, None, note.message, None, note.kind, note.facts,
            )
        ]  # fmt: skip


class _Held(NamedTuple):
    """What a move has to know of a job: ``started_at`` is of the attempt in progress."""

    status: str
    attempt: int
    uid: int
    started_at: int | None
    name: str | None
    cpus: int
    gpus: int
    created_at: int
    gpu_share: int | None


def _run_us(held: _Held, ending: Ending | None) -> int | None:
    """Return how long an attempt ran that ended; a clock that was set back makes none negative."""
    if ending is None or held.started_at is None:
        return None
    return max(0, ending.finished_at - held.started_at)


def _require_parts(move: Move, target: JobState) -> None:
    """Refuse a move without what its target needs: a mistake of ours, found before it is stored."""
    if target is JobState.ASSIGNED and move.boot_id is None:
        raise IllegalTransition(f"job {move.number}: an attempt needs the id of its boot")
    if target.is_final:
        if move.ending is None:
            raise IllegalTransition(f"job {move.number}: {target.value} needs an ending")
        if (move.ending.reason is None) != (target is JobState.COMPLETED):
            raise IllegalTransition(
                f"job {move.number}: {target.value} with reason {move.ending.reason}"
            )


def _wrong_state(move: Move, status: str, attempt: int) -> WrongState:
    if status != move.expected.value:
        detail = f"job {move.number} is {status}, not {move.expected.value}"
    else:
        detail = f"job {move.number} is at attempt {attempt}; this came from {move.attempt}"
    return WrongState(detail, job=move.number, state=status, attempt=attempt)


def _name(transaction: Transaction, owner: Owner) -> None:
    """Note a user of whom nothing is known yet, or under another name."""
    if transaction.owners.get(owner.uid) != owner.name:
        transaction.execute(QUERIES["name_owner"], (owner.uid, owner.name))
        transaction.owners[owner.uid] = owner.name


def _check_pending(transaction: Transaction, submission: Submission, more: int) -> None:
    """Refuse what makes more jobs wait than this user may have waiting."""
    most = submission.pending_max
    if most is None:
        return
    values = (submission.owner.uid, most + 1)
    if transaction.execute(_COUNT_PENDING, values).fetchone()[0] + more > most:
        count = "1 job" if most == 1 else f"{most} jobs"
        raise OverLimit(
            f"{submission.owner.name} may have {count} waiting at a time",
            hint="wait until some have started, or cancel some; the limit is [limits] pending",
            limit="pending",
            most=most,
        )


def _job_row(number: int, submission: Submission, spec: JobSpec) -> tuple[Any, ...]:
    owner = submission.owner
    return (
        number, owner.uid, owner.name, spec.name, spec.cpus, spec.memory, spec.gpus,
        spec.timeout_s, int(spec.priority), spec.retries, submission.at, submission.plan,
        submission.retry_of, spec.gpu_type, spec.min_vram, " ".join(spec.gpu) or None, spec.vram,
    )  # fmt: skip


def _spec_row(number: int, spec: JobSpec, environment: int | None) -> tuple[Any, ...]:
    return (
        number, pack(spec.argv), int(spec.is_shell), spec.cwd, environment,
        pack(spec.env) if spec.env else b"", pack(spec.artifacts) if spec.artifacts else b"",
        spec.umask, spec.stdin,
    )  # fmt: skip


def _insert(transaction: Transaction, one: str, several: str, rows: list[tuple[Any, ...]]) -> None:
    """Insert rows, ``_ROWS`` at a time as far as they go."""
    whole = len(rows) - len(rows) % _ROWS
    for begin in range(0, whole, _ROWS):
        transaction.execute(several, tuple(chain.from_iterable(rows[begin : begin + _ROWS])))
    transaction.executemany(one, rows[whole:])


def _package(ending: Ending) -> tuple[Any, ...]:
    digest = ending.digest
    return (
        ending.finished_at, ending.reason and ending.reason.value,
        ending.cause and ending.cause.value, ending.message,
        ending.results.value, digest and bytes.fromhex(digest), ending.result_bytes,
        ending.result_files, ending.progress,
    )  # fmt: skip


def _facts(ending: Ending) -> tuple[Any, ...]:
    return (
        ending.finished_at, ending.reason and ending.reason.value,
        ending.cause and ending.cause.value, ending.message,
        ending.exit_code, ending.signal, ending.user_us, ending.system_us, ending.max_rss,
        ending.charge_micro, snapshot_text(ending.snapshot), pack_use(ending.gpu_use),
        ending.memory_peak,
    )  # fmt: skip
