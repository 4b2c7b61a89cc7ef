"""Values as JSON: what a job is, its events and attempts, and what went wrong. Pure.

Two forms are fixed, because programs outside rely on them: the status of a job, and errors as
problem documents (RFC 9457). Text that is no UTF-8 is ``{"b64": "..."}``. Times are RFC 3339 in UTC
with a ``Z``: whole seconds in a status, microseconds in events and attempts.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any

import msgspec

from aitbcd.errors import AitbcError, BadRequest, InvalidValue
from aitbcd.model import (
    Attempt,
    Event,
    GpuUse,
    Job,
    JobSpec,
    JobState,
    ResultsState,
    SeenProcess,
    Snapshot,
)

#: A JSON value as Python has it.
Json = Any
#: A JSON schema (2020-12).
Schema = dict[str, Any]
_decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


def decode(body: bytes | memoryview) -> Json:
    """Return the JSON value in ``body``.

    Raises:
        BadRequest: it is no JSON, or no UTF-8.
    """
    if not body:
        raise BadRequest("there is no JSON: the text is empty", hint="correct the request")
    try:
        return _decode(body)
    except UnicodeDecodeError as problem:
        detail = f"the JSON is not UTF-8: {problem.reason}"
        hint = 'send text that is no UTF-8 as {"b64": "..."}'
        raise BadRequest(detail, hint=hint) from None
    except msgspec.DecodeError as problem:
        raise BadRequest(f"not valid JSON: {problem}", hint="correct the request") from None
    except RecursionError:
        raise BadRequest("the JSON is nested too deeply", hint="correct the request") from None


def whole(value: Json) -> Json:
    """Return 4 for 4.0: what writes JSON need not know two kinds of numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def text(value: bytes) -> Json:
    """Return bytes as JSON: a string where they are UTF-8, else ``{"b64": ...}``."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


# --- times ----------------------------------------------------------------------------------


def rfc3339(at: int | None) -> str | None:
    """Return microseconds since the epoch as ``2026-02-13T10:00:00Z``."""
    return None if at is None else _rfc3339_of(at // 1_000_000)


@lru_cache(maxsize=1024)
def _rfc3339_of(second: int) -> str:
    # The times of one job, and of those before and after it in a list, are close together.
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


def rfc3339_exact(at: int | None) -> str | None:
    """Return microseconds since the epoch as ``2026-02-13T10:00:00.123456Z``."""
    whole = rfc3339(at)
    if at is None or whole is None:
        return None
    return f"{whole[:-1]}.{at % 1_000_000:06d}Z"


#: In JSON schema's words what ``parse_time`` takes.
TIME_SCHEMA: Schema = {
    "anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]
}


def parse_time(key: str, value: str, *, is_end: bool = False, zone: tzinfo = UTC) -> int:
    """Return microseconds since the epoch of a date or an RFC 3339 time.

    Args:
        is_end: a date alone means the end of that day, so that ``to=2026-01-31`` includes it.
        zone: of what names no zone itself.

    Raises:
        InvalidValue: with the field ``field``.
    """
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        detail = f"{key} is '{value[:80]}': expected a date or a time with its zone"
        hint = "for example 2026-01-31 or 2026-01-31T10:00:00Z"
        raise InvalidValue(detail, hint=hint, field=key) from None
    behind = timedelta()
    if is_end and len(value) <= len("2026-01-31"):
        try:
            # By the calendar: a day can have 23 hours.
            moment += timedelta(days=1)
        except OverflowError:
            behind = timedelta(days=1)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return (moment - datetime.fromtimestamp(0, UTC) + behind) // timedelta(microseconds=1)


# --- a job as it is -------------------------------------------------------------------------


def status(
    job: Job,
    *,
    miner_id: str,
    progress: int,
    waiting: str | None = None,
    estimated_completion: int | None = None,
    result_path: str | None = None,
    currency: str = "",
    advice: str | None = None,
    contact: str = "",
) -> dict[str, Json]:
    """Return the status of a job; everything that ``job`` does not know is an argument.

    Args:
        advice: what to do about the cause of its failure.
        contact: whom to ask when it failed.
    """
    shown: dict[str, Json] = {
        "job_id": job.job_id,
        "status": job.status.value,
        "progress": progress,
        "miner_id": miner_id if job.attempt and job.status is not JobState.PENDING else None,
        "created_at": rfc3339(job.created_at),
        "started_at": rfc3339(job.started_at),
        "estimated_completion": rfc3339(estimated_completion),
        "number": job.number,
        "name": job.name,
        "user": job.owner.name,
        "attempt": job.attempt,
        "waiting": waiting,
        "gpu_uuids": list(job.gpu_uuids) if job.status is not JobState.PENDING else [],
        "retry_of": job.retry_of,
        "charge": money(job.charge_micro),
        "currency": currency or None,
    }
    if job.ending is not None:
        ending = job.ending
        shown |= {
            "finished_at": rfc3339(ending.finished_at),
            "exit_code": ending.exit_code,
            "signal": ending.signal,
            "reason": ending.reason.value if ending.reason else None,
            "cause": ending.cause.value if ending.cause else None,
            "advice": advice,
            "message": ending.message,
            "expires_at": rfc3339(job.expires_at),
            "result_path": result_path if ending.results is ResultsState.KEPT else None,
            "results": ending.results.value,
        }
    if contact and job.status is JobState.FAILED:
        shown["contact"] = contact
    return shown


def money(micro: int) -> float:
    """Return millionths of a currency as units of it."""
    return micro / 1e6


def queued(
    job: Job, *, is_mine: bool, progress: int, waiting: str | None, estimate: int | None
) -> dict[str, Json]:
    """Return what everybody may know of a job that runs or waits."""
    limit = None
    if job.started_at is not None and job.timeout_s is not None:
        limit = job.started_at + round(job.timeout_s * 1e6)
    is_pending = job.status is JobState.PENDING
    since = job.created_at if is_pending else job.started_at or job.assigned_at
    return {
        "job_id": job.job_id,
        "number": job.number,
        "user": job.owner.name,
        "name": job.name,
        "status": job.status.value,
        "priority": job.priority.name.lower(),
        "cpus": job.cpus,
        "gpus": job.gpus,
        "memory": job.memory,
        "gpu_uuids": list(job.gpu_uuids),
        "attempt": job.attempt,
        "created_at": rfc3339(job.created_at),
        "started_at": rfc3339(job.started_at),
        "since": rfc3339(since),
        "until": rfc3339(estimate or limit),
        "estimated_completion": rfc3339(estimate),
        "waiting": waiting,
        "progress": progress,
        "is_mine": is_mine,
    }


def details(
    job: Job,
    spec: JobSpec,
    attempts: Iterable[Attempt],
    events: Iterable[Event],
    *,
    files: Iterable[tuple[bytes, int | None, str]] = (),
    files_total: int = 0,
    shares: int = 0,
) -> dict[str, Json]:
    """Return what ``?detail=true`` adds to a status. Names of variables, never values.

    Args:
        files: path, size (None where it is missing) and sha256 of the first files of its results.
        files_total: how many there are.
        shares: how many people or links may read its results.
    """
    ending = job.ending
    return {
        "command": [text(argument) for argument in spec.argv],
        "shell": spec.is_shell,
        "cwd": text(spec.cwd) if spec.cwd is not None else None,
        "stdin": text(spec.stdin) if spec.stdin is not None else None,
        "umask": f"{spec.umask:04o}" if spec.umask is not None else None,
        "env_names": _names((*(spec.environment or ()), *spec.env)),
        "requested": {
            "cpus": spec.cpus,
            "memory": spec.memory,
            "gpus": spec.gpus,
            "gpu_type": spec.gpu_type,
            "min_vram": spec.min_vram,
            "gpu": list(spec.gpu),
            "vram": spec.vram,
            "timeout_s": spec.timeout_s,
            "priority": spec.priority.name.lower(),
            "retries": spec.retries,
            "artifacts": [text(glob) for glob in spec.artifacts],
        },
        "attempts": [attempt(one) for one in attempts],
        "events": [event(one) for one in events],
        "manifest_sha256": ending.digest if ending else None,
        "result_bytes": ending.result_bytes if ending else None,
        "result_files": ending.result_files if ending else None,
        "files": [
            {"path": text(path), "size": size, "sha256": digest} for path, size, digest in files
        ],
        "files_total": files_total,
        "shares": shares,
    }


def _names(entries: Iterable[bytes]) -> list[Json]:
    return [text(name) for name in sorted({entry.partition(b"=")[0] for entry in entries})]


def attempt(one: Attempt) -> dict[str, Json]:
    """Return one run of a job."""
    ending = one.ending
    return {
        "attempt": one.attempt,
        "handle": one.handle,
        "gpu_uuids": list(one.gpu_uuids),
        "assigned_at": rfc3339_exact(one.assigned_at),
        "started_at": rfc3339_exact(one.started_at),
        "finished_at": rfc3339_exact(ending.finished_at) if ending else None,
        "exit_code": ending.exit_code if ending else None,
        "signal": ending.signal if ending else None,
        "reason": ending.reason.value if ending and ending.reason else None,
        "cause": ending.cause.value if ending and ending.cause else None,
        "message": ending.message if ending else None,
        "user_s": ending.user_us / 1e6 if ending else None,
        "system_s": ending.system_us / 1e6 if ending else None,
        "max_rss": (ending.max_rss or None) if ending else None,
        "memory_peak": ending.memory_peak if ending else None,
        "charge": money(ending.charge_micro) if ending else None,
        "snapshot": snapshot(ending.snapshot) if ending and ending.snapshot else None,
        "gpu_use": gpu_use(ending.gpu_use if ending else one.gpu_use),
    }


def snapshot(seen: Snapshot) -> dict[str, Json]:
    """Return what shows why an attempt failed."""
    return {
        "seen_at": rfc3339_exact(seen.seen_at),
        "gpus": [
            {
                "uuid": gpu.uuid,
                "index": gpu.index,
                "name": gpu.name,
                "memory_total": gpu.memory_total,
                "memory_used": gpu.memory_used,
                "processes": [seen_process(one) for one in gpu.processes],
            }
            for gpu in seen.gpus
        ],
        "foreign": [seen_process(one) for one in seen.foreign],
        "xids": [
            {"uuid": one.uuid, "time": rfc3339_exact(one.at), "xid": one.xid} for one in seen.xids
        ],
        "oom_kills": seen.oom_kills,
        "evidence": seen.evidence,
        "stderr": list(seen.stderr),
    }


def seen_process(one: SeenProcess) -> dict[str, Json]:
    """Return a process as it was seen on a GPU."""
    return {
        "pid": one.pid,
        "user": one.user,
        "command": one.command,
        "memory": one.memory,
        "since": rfc3339_exact(one.since),
        "job_id": one.job_id,
    }


def gpu_use(use: GpuUse | None) -> dict[str, Json] | None:
    """Return what an attempt made of its GPUs."""
    if use is None:
        return None
    return {
        "interval_s": use.interval_s,
        "rows": use.rows,
        "sampled_s": use.sampled_s,
        "utilization_mean": use.utilization_mean,
        "utilization_peak": use.utilization_peak,
        "memory_peak": use.memory_peak,
        "job_memory_peak": use.job_memory_peak,
        "energy_j": use.energy_j,
        "idle_s": use.idle_s,
    }


def event(one: Event) -> dict[str, Json]:
    """Return one change of a job's status."""
    return {
        "seq": one.seq,
        "time": rfc3339_exact(one.at),
        "job_id": one.job_id,
        "number": one.number,
        "status": one.status.value,
        "attempt": one.attempt,
        "reason": one.reason.value if one.reason else None,
        "cause": one.cause.value if one.cause else None,
        "message": one.message,
        "kind": one.kind.value,
        "facts": one.facts,
    }


# --- errors ---------------------------------------------------------------------------------


def problem(error: AitbcError) -> dict[str, Json]:
    """Return the problem document of an error."""
    document: dict[str, Json] = {
        "type": f"urn:aitbc:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "hint": error.hint,
    }
    fields = {name: value for name, value in error.fields.items() if name not in document}
    return document | fields
