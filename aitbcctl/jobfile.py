"""A job file, TOML or JSON: the same fields as ``POST /v1/jobs``, beside which options may stand.

What an option says beats the file. Relative ``cwd`` and ``stdin`` are meant from where the file is.
"""

from __future__ import annotations

import json
import os
import tomllib
from typing import Any

from aitbcctl.client import Json
from aitbcctl.files import contents
from aitbcctl.refusals import Usage

FILE_MAX = 16 * 1024 * 1024


def read(file: str) -> Json:
    """Return the description in a file; ``-`` is stdin.

    Raises:
        Usage: it is no job; the text says where.
        ClientFailure: it cannot be read.
    """
    raw = contents(file, FILE_MAX, "a job")
    is_json = file.endswith(".json") or (
        not file.endswith(".toml") and raw.lstrip().startswith(b"{")
    )
    try:
        job = json.loads(raw) if is_json else tomllib.loads(raw.decode())
    except RecursionError:
        raise Usage(f"{file}: it is nested too deeply") from None
    except ValueError as error:
        raise Usage(f"{file} is no {'JSON' if is_json else 'TOML'}: {error}") from None
    if not isinstance(job, dict):
        raise Usage(f"{file}: expected one object with the job's fields")
    _check_is_json(file, job)
    folder = os.getcwd() if file == "-" else os.path.dirname(os.path.abspath(file))
    for field in ("cwd", "stdin"):
        if isinstance(job.get(field), str):
            job[field] = os.path.normpath(os.path.join(folder, job[field]))
    return job


def has_command(job: Json) -> bool:
    """Tell whether a description says what to run."""
    return any(job.get(field) is not None for field in ("argv", "command"))


def entries(job: Json) -> list[Any]:
    """Return its variables as entries, to which more can be added."""
    env = job.get("env") or []
    if isinstance(env, dict):
        return [f"{name}={value}" for name, value in env.items()]
    return list(env) if isinstance(env, list) else [env]


def _check_is_json(file: str, job: Json) -> None:
    for field, value in job.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise Usage(f"{file}: {field} is a date or no number: write it as text") from None
