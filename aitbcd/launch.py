"""What the launcher is told: the start of an attempt and the order to seal it. Pure.

A spec is self-contained: absolute paths, the whole environment, the ids to run under.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from aitbcd.devices import ANYWHERE, Near
from aitbcd.model import Job, JobSpec
from aitbcd.users import User, base_environment

_DEFAULT_UMASK = 0o022


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


@lru_cache(maxsize=16)
def _variables(entries: tuple[bytes, ...]) -> dict[str, str]:
    # Jobs of one user mostly share one environment.
    pairs = (_text(entry).partition("=") for entry in entries)
    return {name: value for name, _, value in pairs}


def environment(
    job: Job, spec: JobSpec, user: User, building: str, gpu_uuids: tuple[str, ...]
) -> dict[str, str]:
    """Return the job's whole environment; the AITBC_ and CUDA_ names are always ours."""
    base = base_environment(user) if spec.environment is None else _variables(spec.environment)
    gpus = ",".join(gpu_uuids)
    # What a shell said of its own directory is not true of the job's.
    here = {"PWD": cwd_of(spec, user)} if "PWD" in base else {}
    return {
        **base,
        **here,
        **_variables(spec.env),
        "AITBC_JOB_ID": job.job_id,
        "AITBC_ATTEMPT": str(job.attempt),
        "AITBC_RESULT": f"{building}/result.txt",
        "AITBC_ARTIFACTS_DIR": f"{building}/artifacts",
        "AITBC_PROGRESS": f"{building}/progress",
        "AITBC_GPUS": gpus,
        "CUDA_VISIBLE_DEVICES": gpus,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def cwd_of(spec: JobSpec, user: User) -> str:
    return _text(spec.cwd) if spec.cwd is not None else user.home


def identity(user: User) -> dict[str, Any]:
    return {"uid": user.uid, "gid": user.gid, "user": user.name}


def start_message(
    job: Job,
    spec: JobSpec,
    user: User,
    *,
    results: str,
    grace_s: float,
    log_limit: int,
    no_new_privs: bool = False,
    processes: int = 0,
    shared: int | None = None,
    gpu_uuids: tuple[str, ...] = (),
    near: Near = ANYWHERE,
) -> dict[str, Any]:
    """Return the request to start an attempt.

    Args:
        processes: how many it may have; 0 for no limit.
        shared: bytes of memory that jobs share, where that is configured.
        near: where it is to run.
    """
    building = os.path.join(results, f".{job.job_id}")
    return {
        "job": job.job_id,
        "attempt": job.attempt,
        **identity(user),
        "argv": [_text(argument) for argument in spec.argv],
        "env": environment(job, spec, user, building, gpu_uuids),
        "cwd": cwd_of(spec, user),
        "umask": _DEFAULT_UMASK if spec.umask is None else spec.umask,
        "stdin": None if spec.stdin is None else _text(spec.stdin),
        "timeout_s": spec.timeout_s,
        "grace_s": grace_s,
        "log_limit": log_limit,
        "no_new_privs": no_new_privs,
        "artifacts": [_text(glob) for glob in spec.artifacts],
        "limits": {
            "cpus": spec.cpus,
            "memory": spec.memory,
            "shared": shared,
            "processes": processes or None,
            "near": list(near.cores),
            "near_nodes": list(near.nodes),
        },
    }


def seal_order(
    job: Job, spec: JobSpec, user: User, output: dict[str, Any], *, log_limit: int
) -> dict[str, Any]:
    """Return the order to seal an attempt's package; ``output`` is our part of output.json."""
    return {
        "job": job.job_id,
        "attempt": job.attempt,
        **identity(user),
        "cwd": cwd_of(spec, user),
        "artifacts": [_text(glob) for glob in spec.artifacts],
        "log_limit": log_limit,
        "output": output,
    }


def environment_names(spec: JobSpec, user: User) -> list[str]:
    return list(_names(spec.environment, spec.env, user))


@lru_cache(maxsize=16)
def _names(
    environment: tuple[bytes, ...] | None, env: tuple[bytes, ...], user: User
) -> tuple[str, ...]:
    base = base_environment(user) if environment is None else _variables(environment)
    names = base.keys() | _variables(env).keys()
    shown = (name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names)
    return tuple(sorted(shown))
