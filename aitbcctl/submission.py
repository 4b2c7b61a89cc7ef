"""What ``submit`` does: a command line, a shell line or a file of jobs -> the queue.

Sends what the caller's shell knows (directory, environment, umask) along; looks at nothing else of
the job: whether its program, directory or input exist is true or not when it starts. Knows nothing
of click: ``OPTIONS`` is read by ``commands.submit`` for click, and by ``quick``, which spares a
plain submit the import of it. Waiting is in ``following``, imported when it is asked for.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from typing import Any

from aitbcctl import environment, files
from aitbcctl.client import Client, Json
from aitbcctl.refusals import Usage
from aitbcctl.terminal import complain, flush, leave, put, put_json, say, tell_of_gone
from aitbcd.errors import AitbcError

#: The daemon's limit for a batch with defaults, which is one JSON document.
BATCH_MAX = 16 * 1024 * 1024
#: With --wait: the client failed, and the job's own code is not known.
CLIENT_FAILED = 125

#: What else of a job file an option takes the place of.
_DOUBLES = {
    "timeout": ("timeout_seconds",),
    "gpus": ("gpu", "vram", "requirements.gpu_count"),
    "gpu": ("gpus", "requirements.gpu_count"),
    "gpu_type": ("requirements.gpu_type",),
    "min_vram": ("requirements.min_vram_gb",),
}
#: Kinds of options: a flag; one text; texts of a repeated option; a whole number; else a choice of
#: words between bars.
FLAG, TEXT, TEXTS, WHOLE = "flag", "text", "texts", "whole"
#: The option, the argument of ``run`` that it becomes, its kind, its value's name, its help.
OPTIONS = (
    ("-c", "line", TEXT, "LINE", "Run LINE with /bin/sh instead of a command."),
    ("--name", "name", TEXT, "NAME", "A name to find the job by; need not be unique."),
    ("--cwd", "cwd", TEXT, "DIR", "Where it runs; default: here."),
    ("--env", "env", TEXTS, "NAME=VALUE", "Add or replace a variable. Repeatable."),
    ("--clean-env", "clean_env", FLAG, None, "Send only --env, not your environment."),
    ("--stdin", "stdin", TEXT, "FILE", "Its standard input; default: nothing."),
    (
        "--artifact",
        "artifacts",
        TEXTS,
        "GLOB",
        "Keep matching files of its directory with the results. Repeatable.",
    ),
    ("--timeout", "timeout", TEXT, "TIME", "End it after this running time: 90, 30m, 2h."),
    ("--cpus", "cpus", WHOLE, "N", "Cores it takes; default: 1."),
    ("--gpus", "gpus", WHOLE, "N", "GPUs it takes; default: 0."),
    (
        "--gpu-type",
        "gpu_type",
        TEXT,
        "MODEL",
        "Of this model, an unambiguous part of its name: h200.",
    ),
    ("--min-vram", "min_vram", TEXT, "SIZE", "Of at least so much memory each: 40G."),
    ("--gpu", "gpu", TEXTS, "UUID|INDEX", "This GPU and no other. Repeatable."),
    ("--vram", "vram", TEXT, "SIZE", "A share of one GPU: so much of its memory."),
    ("--memory", "memory", TEXT, "SIZE", "Memory it takes: 500M, 16G."),
    (
        "--priority",
        "priority",
        "low|normal|high",
        None,
        "Before or after other waiting jobs; default: normal.",
    ),
    ("--retries", "retries", WHOLE, "N", "Try it again, up to N times, when it fails."),
    (
        "--batch",
        "batch",
        TEXT,
        "FILE",
        "Submit each line of a JSON lines file (- is stdin), all or "
        "none; other options are defaults for its lines.",
    ),
    (
        "--job-file",
        "job_file",
        TEXT,
        "FILE",
        "Read the job from a TOML or JSON file (- is stdin); options here beat what it says.",
    ),
    ("--wait", "wait", FLAG, None, "Wait for its end; the exit code is the job's."),
    ("--follow", "follow", FLAG, None, "As --wait, with its stdout and stderr on ours."),
    ("--json", "as_json", FLAG, None, "Print the whole job, with --wait at its end."),
)


def run(
    argv: Sequence[str],
    *,
    batch: str | None = None,
    job_file: str | None = None,
    wait: bool = False,
    follow: bool = False,
    as_json: bool = False,
    **asked: Any,
) -> int:
    """Submit what ``OPTIONS`` say, print the id, and return the exit code."""
    _check_usage(argv, batch, job_file, follow, as_json, asked.get("line"))
    given = None if job_file is None else _given(job_file, argv, asked.get("line"))
    description = describe(argv, given, **asked)
    client = Client(os.environ, tell_of_gone)
    if not (wait or follow):
        if batch is not None:
            return _submit_batch(client, batch, description, as_json)
        job = submit(client, description)
        put_json(job) if as_json else put(job["job_id"])
        return 0
    try:
        if batch is not None:
            return _wait_for_batch(client, batch, description, as_json)
        return _wait_for(client, submit(client, description), follow, as_json)
    except AitbcError as error:
        if error.exit_code == 2:
            raise
        complain(error)
        return CLIENT_FAILED


def submit(client: Client, description: Json) -> Json:
    """Return the status of the new job; ^C until then leaves it open whether there is one."""
    try:
        return client.post("/v1/jobs", json.dumps(description).encode())
    except KeyboardInterrupt:
        leave("interrupted before the daemon answered; whether it took the job: aitbcctl list")


def describe(
    argv: Sequence[str],
    given: Json | None = None,
    *,
    line: str | None = None,
    name: str | None = None,
    cwd: str | None = None,
    env: Sequence[str] = (),
    clean_env: bool = False,
    stdin: str | None = None,
    artifacts: Sequence[str] = (),
    **plain: object,
) -> Json:
    """Return the job's JSON; only what was asked for and what the caller's shell knows is in it.

    Args:
        given: what its job file says.
    """
    job: Json = {key: value for key, value in plain.items() if value not in (None, ())}
    if given is not None:
        job = _without_doubles(given, job) | job
    if argv:
        if len(argv) == 1 and " " in argv[0] and not os.path.exists(argv[0]):
            say(
                f"note: {argv[0]!r} is one word, the name of a program; a line for a shell takes -c"
            )
        job["argv"] = [_text(os.fsencode(word)) for word in argv]
    elif line is not None:
        job["command"] = _text(os.fsencode(line))
    if name is not None:
        job["name"] = _name(name)
    if cwd is None and isinstance(job.get("cwd"), str):
        cwd = job["cwd"]
    folder = _here() if cwd is None else _absolute(cwd)
    if cwd is not None:
        _check_is_folder(cwd, folder)
    if cwd is not None or "cwd" not in job:
        job["cwd"] = _text(folder)
    if stdin is not None:
        job["stdin"] = _text(_input(stdin))
    if not clean_env and "environment" not in job:
        job["environment"] = [_text(entry) for entry in environment.captured(os.environb, folder)]
    if env:
        from_file = _entries(job) if given else []
        job["env"] = from_file + [_text(_assignment(entry)) for entry in env]
    if artifacts:
        from_file = list(job.get("artifacts") or []) if given else []
        job["artifacts"] = from_file + [_text(os.fsencode(glob)) for glob in artifacts]
    job.setdefault("umask", f"{files.umask():04o}")
    return job


def _given(file: str, argv: Sequence[str], line: str | None) -> Json:
    """Return what a job file says, and make sure that one command comes of it."""
    from aitbcctl import jobfile

    job = jobfile.read(file)
    is_said_here = bool(argv) or line is not None
    if jobfile.has_command(job) and is_said_here:
        raise Usage(f"{file} says what to run already: leave out the command here, or there")
    if not (jobfile.has_command(job) or is_said_here):
        has = ", ".join(job) or "nothing"
        raise Usage(f"{file} does not say what to run: it needs argv or command, and has {has}")
    return job


def _without_doubles(given: Json, options: Json) -> Json:
    """Return what a job file says less what an option says under another name."""
    doubles = {name for option in options for name in _DOUBLES.get(option, ())}
    left = {field: value for field, value in given.items() if field not in doubles}
    wishes = left.get("requirements")
    if isinstance(wishes, dict):
        left["requirements"] = {
            name: wish for name, wish in wishes.items() if f"requirements.{name}" not in doubles
        }
    return left


def _entries(job: Json) -> list[Any]:
    from aitbcctl import jobfile

    return jobfile.entries(job)


def _check_is_folder(cwd: str, folder: bytes) -> None:
    """Refuse where the job could not start; with a URL the daemon's machine can be another."""
    if os.environ.get("AITBC_URL") and not os.environ.get("AITBC_SOCKET"):
        return
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise Usage(f"the working directory {cwd} is no directory")
    except OSError as error:
        raise Usage(f"the working directory {cwd} cannot be used: {error.strerror}") from None
    if not os.access(folder, os.X_OK):
        raise Usage(f"the working directory {cwd} cannot be used: Permission denied")


def _check_usage(
    argv: Sequence[str],
    batch: str | None,
    job_file: str | None,
    follow: bool,
    as_json: bool,
    line: str | None,
) -> None:
    said = [
        way
        for way, is_said in (
            ("a command", argv),
            ("a line with -c", line is not None),
            ("a file with --batch", batch is not None),
        )
        if is_said
    ]
    if len(said) > 1:
        raise Usage(f"say once what to run: you gave {' and '.join(said)}")
    if not said and job_file is None:
        raise Usage(
            "say what to run: a command after --, a line with -c, or a file with --job-file "
            "or --batch"
        )
    if batch is not None and job_file is not None:
        raise Usage("--job-file is one job, --batch is many: give one of them")
    if follow and as_json:
        raise Usage("--follow fills stdout with the job's own, so --json cannot")
    if follow and batch is not None:
        raise Usage("--follow is for one job; wait for a batch with --wait")


def _text(raw: bytes) -> str | dict[str, str]:
    """Return bytes as the API takes them: text where they are UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        import binascii

        return {"b64": binascii.b2a_base64(raw, newline=False).decode()}


def _name(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Usage(f"--name {name!r} is not UTF-8") from None
    return name


def _here() -> bytes:
    try:
        return os.getcwdb()
    except FileNotFoundError:
        raise Usage(
            "the directory you are in was removed; cd to another, or use --cwd DIR"
        ) from None


def _absolute(path: str) -> bytes:
    raw = os.fsencode(path)
    return os.path.normpath(raw if raw.startswith(b"/") else os.path.join(_here(), raw))


def _input(file: str) -> bytes:
    if file == "-":
        raise Usage("--stdin takes a file: it may start when this terminal is gone")
    path = _absolute(file)
    if not os.access(path, os.R_OK):
        say(f"note: {file} is not readable now; it must be when the job starts")
    return path


def _assignment(entry: str) -> bytes:
    name, equals, _ = entry.partition("=")
    if not name or not equals:
        raise Usage(f"--env {entry!r}: expected NAME=VALUE")
    return os.fsencode(entry)


def _wait_for(client: Client, job: Json, follow: bool, as_json: bool) -> int:
    from aitbcctl import following

    if not (follow or as_json):
        put(job["job_id"])
        flush()
    ended = following.to_its_end(client, job, with_logs=follow)
    if as_json:
        put_json(ended)
    return following.exit_code(ended)


def _submit_batch(client: Client, file: str, defaults: Json, as_json: bool) -> int:
    answer = _post_batch(client, file, defaults)
    if as_json:
        put_json(answer)
    elif answer["jobs"]:
        put("\n".join(job["job_id"] for job in answer["jobs"]))
    return 0


def _wait_for_batch(client: Client, file: str, defaults: Json, as_json: bool) -> int:
    from aitbcctl import following

    jobs = _post_batch(client, file, defaults)["jobs"]
    if not as_json and jobs:
        put("\n".join(job["job_id"] for job in jobs))
        flush()
    ended = following.all_to_their_end(client, [job["job_id"] for job in jobs])
    if as_json:
        put_json({"jobs": ended})
    return 0 if all(job["status"] == "completed" for job in ended) else 1


def _post_batch(client: Client, file: str, defaults: Json) -> Json:
    batch = files.contents(file, BATCH_MAX, "one batch", hint="split it, by lines, into several")
    lines = batch.split(b"\n")
    # Each line is parsed here, so that one that is no JSON is named by its line in the file.
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    jobs = [_batch_line(file, number, lines[number - 1]) for number in numbers]
    try:
        body = _as_json({"defaults": defaults, "jobs": jobs})
    except (ValueError, RecursionError):
        for number, job in zip(numbers, jobs, strict=True):
            _check_line(file, number, job)
        raise
    try:
        return client.post("/v1/jobs:batch", body)
    except AitbcError as error:
        index = error.fields.get("index")
        if not isinstance(index, int):
            raise
        about = error.detail.removeprefix(f"jobs[{index}]: ")
        detail = f"{file}, line {numbers[index]}: {about}; nothing was submitted"
        raise type(error)(detail, hint=error.hint, **error.fields) from None


def _batch_line(file: str, number: int, line: bytes) -> Json:
    try:
        job = json.loads(line)
    except json.JSONDecodeError as error:
        why = f"is not JSON: {error.msg}, at character {error.pos + 1}"
        raise _wrong_line(file, number, why) from None
    except UnicodeDecodeError as error:
        raise _wrong_line(file, number, f"is not UTF-8, at byte {error.start + 1}") from None
    except RecursionError:
        raise _wrong_line(file, number, "is nested too deeply") from None
    if not isinstance(job, dict):
        raise _wrong_line(file, number, "expected a JSON object")
    return job


def _check_line(file: str, number: int, job: Json) -> None:
    """Refuse what Python reads as JSON, and nobody else does."""
    try:
        _as_json(job)
    except UnicodeEncodeError:
        raise _wrong_line(file, number, "has a \\u that is no character") from None
    except ValueError:
        raise _wrong_line(file, number, "has a number that is not finite") from None
    except RecursionError:
        raise _wrong_line(file, number, "is nested too deeply") from None


def _as_json(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _wrong_line(file: str, number: int, why: str) -> Usage:
    return Usage(f"{file}, line {number}: {why}; nothing was submitted")
