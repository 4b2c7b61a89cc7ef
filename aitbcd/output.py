"""output.json: the daemon's part of it, written and read back.

What a sealed package says is the record of how its attempt ended, should the daemon die before
it has committed that. Names of environment variables, never values. What comes later (expiry,
shares) is not in it. The sealer adds ``files``, ``logs_dropped`` and ``left_out``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from aitbcd import manifest
from aitbcd.model import Attempt, Ending, Job, JobSpec, JobState, Reason, ResultsState
from aitbcd.wire import attempt as attempt_json
from aitbcd.wire import rfc3339_exact, text

FILE_NAME = "output.json"
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
        "cause": ending.cause,
        "message": ending.message,
        "command": [text(argument) for argument in spec.argv],
        "shell": spec.is_shell,
        "cwd": text(os.fsencode(cwd)),
        "environment_names": environment_names,
        "requested": {
            "cpus": spec.cpus,
            "memory": spec.memory,
            "gpus": spec.gpus,
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
            "max_rss": ending.max_rss,
        },
        "miner_id": miner_id,
        "gpu_uuids": list(gpu_uuids),
        "attempt": job.attempt,
        "earlier_attempts": [attempt_json(one) for one in earlier],
        "logs_kept_whole": kept_whole,
    }


def read_sealed(package: Path, attempt: int) -> tuple[JobState, Ending, int | None] | None:
    """Return how a sealed package says that this attempt ended, and when it had started.

    None if there is no package of it.
    """
    try:
        output = json.loads((package / FILE_NAME).read_bytes())
        text_of_manifest = (package / manifest.FILE_NAME).read_bytes()
    except FileNotFoundError:
        return None
    if output["attempt"] != attempt:
        return None
    digest = sha256(text_of_manifest).hexdigest()
    sizes = [entry["size"] for entry in output["files"]]
    started = output["started_at"]
    started_at = _microseconds(started) if started else None
    return JobState(output["status"]), _ending(output, digest, sizes), started_at


def _ending(output: dict[str, Any], digest: str, sizes: list[int]) -> Ending:
    reason = output["reason"]
    used = output["resources"]
    return Ending(
        finished_at=_microseconds(output["finished_at"]),
        reason=Reason(reason) if reason else None,
        cause=output["cause"],
        message=output["message"],
        exit_code=output["exit_code"],
        signal=output["signal"],
        user_us=round(used["user_s"] * 1e6),
        system_us=round(used["system_s"] * 1e6),
        max_rss=used["max_rss"],
        results=ResultsState.KEPT,
        digest=digest,
        result_bytes=sum(sizes),
        result_files=len(sizes),
        progress=output["progress"],
    )


def _microseconds(time: str) -> int:
    return (datetime.fromisoformat(time) - _EPOCH) // timedelta(microseconds=1)
