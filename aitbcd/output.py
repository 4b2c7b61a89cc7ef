"""output.json: the daemon's part of it, written and read back.

What a sealed package says is the record of how its attempt ended, should the daemon die before
it has committed that. Names of environment variables, never values. What comes later (expiry,
shares) is not in it. The sealer adds ``files``, ``logs_dropped`` and ``left_out``.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from aitbcd import manifest
from aitbcd.model import (
    Attempt,
    Cause,
    Ending,
    Job,
    JobSpec,
    JobState,
    Reason,
    ResultsState,
    SeenGpu,
    SeenProcess,
    SeenXid,
    Snapshot,
)
from aitbcd.wire import attempt as attempt_json
from aitbcd.wire import gpu_use, rfc3339_exact, text
from aitbcd.wire import snapshot as snapshot_json

FILE_NAME = "output.json"
#: Of output.json and the manifest: a million files have fewer.
_BYTES_MAX = 256 << 20
_WORDS_MAX = 4000
#: Of what a snapshot lists.
_FEW = 64
#: Microseconds: the year 2200.
_LATEST = 7_258_118_400_000_000
_EPOCH = datetime.fromtimestamp(0, UTC)


def build(
    job: Job,
    spec: JobSpec,
    status: JobState,
    ending: Ending,
    *,
    started_at: int | None,
    earlier: Iterable[Attempt],
    environment_names: list[str],
    cwd: str,
    miner_id: str,
    gpu_uuids: tuple[str, ...],
    kept_whole: list[str],
) -> dict[str, Any]:
    """Return the daemon's part of output.json for an attempt that ends this way."""
    return {
        "format": 1,
        "job_id": job.job_id,
        "number": job.number,
        "name": job.name,
        "user": job.owner.name,
        "status": status.value,
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "reason": ending.reason.value if ending.reason else None,
        "cause": ending.cause.value if ending.cause else None,
        "message": ending.message,
        "snapshot": _shareable(job, ending),
        "command": [text(argument) for argument in spec.argv],
        "shell": spec.is_shell,
        "cwd": text(os.fsencode(cwd)),
        "environment_names": environment_names,
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
            "artifacts": [text(glob) for glob in spec.artifacts],
            "retries": spec.retries,
        },
        "created_at": rfc3339_exact(job.created_at),
        "started_at": rfc3339_exact(started_at),
        "finished_at": rfc3339_exact(ending.finished_at),
        "progress": ending.progress,
        "resources": {
            "user_s": ending.user_us / 1e6,
            "system_s": ending.system_us / 1e6,
            "max_rss": ending.max_rss or None,
            "memory_peak": ending.memory_peak,
        },
        "miner_id": miner_id,
        "gpu_uuids": list(gpu_uuids),
        "gpu_use": gpu_use(ending.gpu_use),
        "attempt": job.attempt,
        "earlier_attempts": [
            attempt_json(one) | {"snapshot": _shareable(job, one.ending)} for one in earlier
        ],
        "logs_kept_whole": kept_whole,
    }


def _shareable(job: Job, ending: Ending | None) -> dict[str, Any] | None:
    """Return what shows the cause, for whoever may read the results, on other machines too.

    What others of this machine have on their command lines is not for them.
    """
    if ending is None or ending.snapshot is None:
        return None

    def without_commands(processes: Iterable[SeenProcess]) -> tuple[SeenProcess, ...]:
        return tuple(
            one if one.job_id == job.job_id else replace(one, command=None) for one in processes
        )

    seen = ending.snapshot
    return snapshot_json(
        replace(
            seen,
            gpus=tuple(replace(g, processes=without_commands(g.processes)) for g in seen.gpus),
            foreign=without_commands(seen.foreign),
        )
    )


def read_sealed(package: Path, attempt: int) -> tuple[JobState, Ending, int | None] | None:
    """Return how a sealed package says that this attempt ended, and when it had started.

    None if there is no package of it. The package is its user's, who can have changed it since:
    what makes no sense is not believed, and then nobody knows how the attempt ended.
    """
    try:
        top = os.open(package, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        sealed_at = int(os.fstat(top).st_mtime * 1e6)
        described = _read(top, FILE_NAME)
        output = json.loads(described)
        if output["attempt"] != attempt:
            return None
        lines = _read(top, manifest.FILE_NAME)
        started = output["started_at"]
        started_at = _microseconds(started) if started is not None else None
        status, ending = _end(output)
        ending = replace(
            ending,
            digest=sha256(lines).hexdigest(),
            # As the sealer counts: all files, and once what result.txt shares with stdout.log.
            result_bytes=ending.result_bytes + len(described) + len(lines) - _shared(top),
            result_files=ending.result_files + 2,
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        message = "its results were changed before its end was recorded"
        lost = Ending(sealed_at, Reason.LOST, message=message, results=ResultsState.KEPT)
        return JobState.FAILED, lost, None
    finally:
        os.close(top)
    return status, ending, started_at


def _read(folder: int, name: str) -> bytes:
    """Return a regular file: no link is followed, and nothing that could block is waited for."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > _BYTES_MAX:
            raise ValueError(f"{name} is not what was sealed")
        return file.read()


def _shared(folder: int) -> int:
    """Return the size of result.txt where it is another name of stdout.log."""
    try:
        result, stdout = (
            os.stat(path, dir_fd=folder, follow_symlinks=False)
            for path in ("result.txt", "logs/stdout.log")
        )
    except FileNotFoundError:
        # Its user took it away; that is for verify to tell.
        return 0
    return result.st_size if os.path.samestat(result, stdout) else 0


def _end(output: dict[str, Any]) -> tuple[JobState, Ending]:
    status = JobState(output["status"])
    reason = Reason(output["reason"]) if output["reason"] is not None else None
    if not status.is_final or (reason is None) != (status is JobState.COMPLETED):
        raise ValueError("no end of an attempt")
    used = output["resources"]
    sizes = [_whole(entry["size"]) for entry in output["files"]]
    return status, Ending(
        finished_at=_microseconds(output["finished_at"]),
        reason=reason,
        cause=Cause(output["cause"]) if output["cause"] is not None else None,
        message=_words(output["message"]),
        exit_code=_maybe(output["exit_code"], 255),
        signal=_maybe(output["signal"], 127),
        user_us=_whole(round(used["user_s"] * 1e6)),
        system_us=_whole(round(used["system_s"] * 1e6)),
        max_rss=_whole(used["max_rss"] or 0),
        memory_peak=_maybe(used.get("memory_peak"), 1 << 60),
        results=ResultsState.KEPT,
        result_bytes=_whole(sum(sizes)),
        result_files=len(sizes),
        progress=_maybe(output["progress"], 100),
        snapshot=_snapshot(output.get("snapshot")),
    )


def _snapshot(seen: dict[str, Any] | None) -> Snapshot | None:
    if seen is None:
        return None
    return Snapshot(
        seen_at=_moment(seen["seen_at"]),
        gpus=tuple(_gpu(one) for one in _few(seen["gpus"])),
        foreign=tuple(_process(one) for one in _few(seen["foreign"])),
        xids=tuple(
            SeenXid(_named(one["uuid"]), _microseconds(one["time"]), _whole(one["xid"]))
            for one in _few(seen["xids"])
        ),
        oom_kills=_maybe(seen["oom_kills"], 1 << 60),
        evidence=_words(seen["evidence"]),
        stderr=tuple(_named(line) for line in _few(seen["stderr"])),
    )


def _gpu(one: dict[str, Any]) -> SeenGpu:
    return SeenGpu(
        _named(one["uuid"]),
        _whole(one["index"]),
        _named(one["name"]),
        _whole(one["memory_total"]),
        _whole(one["memory_used"]),
        tuple(_process(each) for each in _few(one["processes"])),
    )


def _process(one: dict[str, Any]) -> SeenProcess:
    return SeenProcess(
        _whole(one["pid"]),
        _words(one["user"]),
        _words(one["command"]),
        _maybe(one["memory"], 1 << 60),
        _moment(one["since"]),
        _words(one["job_id"]),
    )


def _few(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _FEW:
        raise ValueError("no list of ours")
    return value


def _named(value: Any) -> str:
    if (words := _words(value)) is None:
        raise ValueError("no words of ours")
    return words


def _moment(time: str | None) -> int | None:
    return None if time is None else _microseconds(time)


def _whole(value: Any, most: int = 1 << 60) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no such number")
    return value


def _maybe(value: Any, most: int) -> int | None:
    return None if value is None else _whole(value, most)


def _words(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and len(value) <= _WORDS_MAX):
        raise ValueError("no words of ours")
    return value


def _microseconds(time: str) -> int:
    return _whole((datetime.fromisoformat(time) - _EPOCH) // timedelta(microseconds=1), _LATEST)
