"""Rows of SQLite <-> values of ``model``. Pure; the orders of columns are those of queries.sql."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec.structs import replace

from aitbcd.model import (
    Attempt,
    Cause,
    Ending,
    Event,
    EventKind,
    GpuUse,
    Job,
    JobSpec,
    JobState,
    Key,
    Owner,
    Priority,
    Reason,
    ResultsState,
    Share,
    Snapshot,
)
from aitbcd.store.ids import JobIds

Row = Sequence[Any]

#: Characters of a command in a list.
_LINE_MAX = 200

# A dictionary look-up costs a third of a call of the Enum class.
STATES = {state.value: state for state in JobState}
#: How a final state is written where lists are read from.
LISTED_AS = {JobState.COMPLETED: 1, JobState.FAILED: 2, JobState.CANCELED: 3}
_REASONS: dict[str | None, Reason | None] = {None: None, **{r.value: r for r in Reason}}
_CAUSES: dict[str | None, Cause | None] = {None: None, **{c.value: c for c in Cause}}
_decode_use = msgspec.json.Decoder(GpuUse).decode
_PRIORITIES = {int(priority): priority for priority in Priority}


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(text.split()) if text else ()


def pack(items: Iterable[bytes]) -> bytes:
    """Return byte strings without NUL as one, each ended by NUL."""
    return b"".join([item + b"\0" for item in items])


def unpack(blob: bytes) -> tuple[bytes, ...]:
    return tuple(blob.split(b"\0")[:-1])


def pack_use(use: GpuUse | None) -> str | None:
    return None if use is None else msgspec.json.encode(use).decode()


def job(row: Row, ids: JobIds) -> Job:
    """Return the Job of a row of ``select_job``."""
    (number, uid, user, status, name, cpus, memory, gpus, timeout_s) = row[:9]
    (priority, retries, attempt, created_at, assigned_at, started_at, finished_at) = row[9:16]
    return Job(
        number,
        ids.of(number),
        Owner(uid, user),
        STATES[status],
        name,
        cpus,
        memory,
        gpus,
        timeout_s,
        _PRIORITIES[priority],
        retries,
        attempt,
        created_at,
        assigned_at,
        started_at,
        None if finished_at is None else _ending(row[15:24], row[24:30]),
        row[30],
        None if row[31] is None else ids.of(row[31]),
        row[32],
        row[33],
        row[34],
        row[35],
        _words(row[36]),
        row[37],
        _words(row[38]),
    )


def _ending(facts: Row, package: Row, snapshot: str | None = None) -> Ending:
    finished_at, reason, cause, message, exit_code, signal, user_us, system_us, max_rss = facts
    results, digest, result_bytes, result_files, progress, charge_micro = package
    return Ending(
        finished_at,
        _REASONS[reason],
        _CAUSES[cause],
        message,
        exit_code,
        signal,
        user_us or 0,
        system_us or 0,
        max_rss or 0,
        ResultsState(results or "none"),
        digest and digest.hex(),
        result_bytes or 0,
        result_files or 0,
        progress,
        charge_micro or 0,
        msgspec.json.decode(snapshot, type=Snapshot) if snapshot else None,
    )


def snapshot_text(snapshot: Snapshot | None) -> str | None:
    """Return what stands in the store for a snapshot."""
    return msgspec.json.encode(snapshot).decode() if snapshot else None


@lru_cache(maxsize=32)
def _environment(entries: bytes) -> tuple[bytes, ...]:
    """Return a base environment: one object for all jobs that have it."""
    return unpack(entries)


def spec(row: Row) -> JobSpec:
    """Return the JobSpec of a row of ``spec``."""
    (argv, is_shell, name, cwd, has_base, base, env, cpus) = row[:8]
    (memory, gpus, timeout_s, priority, artifacts, retries, umask, stdin) = row[8:16]
    (gpu_type, min_vram, gpu, vram) = row[16:]
    return JobSpec(
        argv=unpack(argv),
        is_shell=bool(is_shell),
        name=name,
        cwd=cwd,
        environment=_environment(base) if has_base else None,
        env=unpack(env),
        cpus=cpus,
        memory=memory,
        gpus=gpus,
        gpu_type=gpu_type,
        min_vram=min_vram,
        gpu=_words(gpu),
        vram=vram,
        timeout_s=timeout_s,
        priority=_PRIORITIES[priority],
        artifacts=unpack(artifacts),
        retries=retries,
        umask=umask,
        stdin=stdin,
    )


def command_line(argv: bytes, is_shell: bool) -> str:
    """Return a command, of which there may be the beginning only, as a line for people."""
    words = [word.decode(errors="replace") for word in argv.removesuffix(b"\0").split(b"\0")]
    line = " ".join(words[2:]) if is_shell else shlex.join(words)
    line = " ".join(line.split())
    return line if len(line) <= _LINE_MAX else f"{line[: _LINE_MAX - 1]}…"


def attempt(row: Row) -> Attempt:
    """Return the Attempt of a row of ``attempts``."""
    number, boot_id, assigned_at, started_at, handle, gpu_uuids, finished_at = row[:7]
    return Attempt(
        number,
        boot_id,
        assigned_at,
        started_at,
        handle,
        _words(gpu_uuids),
        None
        if finished_at is None
        else replace(
            _ending(row[6:15], row[15:21], row[21]), gpu_use=_use(row[22]), memory_peak=row[23]
        ),
    )


def _use(text: str | None) -> GpuUse | None:
    return None if text is None else _decode_use(text)


def event(row: Row, ids: JobIds) -> Event:
    """Return the Event of a row of ``select_event``."""
    seq, number, uid, at, status, attempt_number, reason, message, cause, kind, facts = row
    return Event(
        seq, number, ids.of(number), uid, at, STATES[status], attempt_number,
        _REASONS[reason], message, _CAUSES[cause], EventKind(kind or EventKind.STATUS),
        json.loads(facts) if facts else None,
    )  # fmt: skip


def key(row: Row, ids: JobIds) -> Key:
    """Return the Key of a row of ``keys``."""
    number, uid, user, name, plan, is_read_only, *times = row[:10]
    return Key(
        f"key_{ids.letters(number)}", Owner(uid, user), name, plan, bool(is_read_only), *times
    )


def share(row: Row, ids: JobIds) -> Share:
    """Return the Share of a row of ``select_share``."""
    own, number, uid, user, reader, *rest = row
    letters = ids.letters(own)
    return Share(f"share_{letters}", number, ids.of(number), Owner(uid, user), reader, *rest)
