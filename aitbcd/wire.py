"""JSON <-> values: job descriptions in, statuses and problem documents out. Pure.

Three forms are fixed, because programs outside rely on them: a job as JSON (the same in ``POST
/v1/jobs``, in a line of a batch and in a job file), its status, and errors as problem documents
(RFC 9457). Text that is no UTF-8 travels as ``{"b64": "..."}``. Times are RFC 3339 in UTC with a
``Z``: whole seconds in a status, microseconds in events and attempts.

A description is read key by key through one table, so that a wrong value is refused by its name
with what is allowed, and a small job costs what its few keys cost.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import msgspec

from aitbcd.errors import AitbcError, BadRequest, InvalidJob, InvalidValue
from aitbcd.model import (
    Attempt,
    Event,
    GpuUse,
    Job,
    JobSpec,
    JobState,
    Priority,
    ResultsState,
    SeenProcess,
    Snapshot,
)
from aitbcd.units import (
    DURATION_MAX_S,
    DURATION_PATTERN,
    SIZE_MAX,
    SIZE_PATTERN,
    parse_duration,
    parse_size,
)

#: A JSON value as Python has it.
Json = Any
#: A JSON schema (2020-12).
Schema = dict[str, Any]
#: The fields of a ``JobSpec`` that a description sets.
Given = dict[str, Any]

NAME_LENGTH_MAX = 255
RETRIES_MAX = 1000
CPUS_MAX = 65536
GPUS_MAX = 1024

#: What a terminal would not show as a character in its line: controls, and what turns or joins
#: the text around it.
_UNSEEN = (
    r"\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\ufeff\ufff0-\uffff"
)
_NAME_PATTERN = rf"^[^{_UNSEEN}]+$"
#: A UUID of NVML, of a MIG device too, or an index.
_GPU_PATTERN = r"^[A-Za-z0-9/-]{1,80}$"
_is_gpu = re.compile(r"[A-Za-z0-9/-]{1,80}").fullmatch
_is_name = re.compile(rf"[^{_UNSEEN}]+").fullmatch

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


# --- a job description ----------------------------------------------------------------------


def job_spec(description: Json, defaults: Given | None = None) -> JobSpec:
    """Return what a description asks for.

    Args:
        defaults: what another description gives (see ``given``), where this one is silent.

    Raises:
        InvalidJob: with the field ``field`` where one is to blame.
    """
    fields = given(description)
    if defaults:
        fields = defaults | fields
        _check_share(fields)
    if "argv" not in fields:
        raise InvalidJob(
            "the job has no command",
            hint='give "argv": ["program", "argument", ...] or "command": "a shell line"',
            field="argv",
        )
    return JobSpec(**fields)


def given(description: Json) -> Given:
    """Return the fields of ``JobSpec`` that a description gives.

    Raises:
        InvalidJob: with the field ``field`` where one is to blame.
    """
    if not isinstance(description, dict):
        raise InvalidJob(
            f"a job is a JSON object, not {_kind(description)}",
            hint='for example {"argv": ["python", "train.py"]}',
        )
    fields: Given = {}
    for key, value in description.items():
        reader = _READERS.get(key)
        if reader is None:
            raise _unknown(key[:80], "the job", _READERS)
        if value is not None:
            reader(key, value, fields)
    if "gpus" in fields or _WISH in fields:
        _settle_gpus(fields)
    return fields


def _wrong(key: str, value: Json, allowed: str) -> InvalidJob:
    shown = value if isinstance(value, str) else encode(value).decode()
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    quoted = f'"{shown}"' if isinstance(value, str) else shown
    return InvalidJob(f"{key} is {quoted}: expected {allowed}", field=key)


def _unknown(field: str, where: str, known: Iterable[str]) -> InvalidJob:
    hint = "known fields: " + ", ".join(known)
    return InvalidJob(f"unknown field '{field}' in {where}", hint=hint, field=field)


def _kind(value: Json) -> str:
    kinds = {str: "a string", list: "an array", dict: "an object", bool: "true or false"}
    return kinds.get(type(value), "null" if value is None else "a number")


def _bytes(key: str, value: Json) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
    elif isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str):
        try:
            raw = base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise _wrong(key, value, "base64 in b64") from None
    else:
        raise _wrong(key, value, 'a string, or {"b64": "..."} for one that is no UTF-8')
    if b"\0" in raw:
        raise _wrong(key, value, "text without NUL characters")
    return raw


def _array(key: str, value: Json) -> tuple[bytes, ...]:
    if not isinstance(value, list):
        raise _wrong(key, value, f"an array of strings, not {_kind(value)}")
    return tuple([_bytes(key, item) for item in value])


def _path(key: str, value: Json) -> bytes:
    path = _bytes(key, value)
    if not path.startswith(b"/"):
        raise _wrong(key, value, "an absolute path")
    return path


def _variables(key: str, value: Json) -> tuple[bytes, ...]:
    if isinstance(value, dict):
        entries = tuple(_entry(key, name, text) for name, text in value.items())
    elif isinstance(value, list):
        entries = tuple([_bytes(key, item) for item in value])
    else:
        raise _wrong(key, value, 'an object of names and values, or an array of "NAME=value"')
    for entry in entries:
        if entry.find(b"=") < 1:
            raise _wrong(key, entry.decode(errors="replace"), '"NAME=value", with a name')
    return entries


def _entry(key: str, name: str, value: Json) -> bytes:
    if "=" in name or "\0" in name or not name:
        raise _wrong(key, name, 'names of variables without "=", not empty')
    return b"%s=%s" % (name.encode(), _bytes(f"{key}.{name}", value))


def _whole(key: str, value: Json, least: int, most: int) -> int:
    count = whole(value)
    if type(count) is not int or not least <= count <= most:
        raise _wrong(key, value, f"a whole number from {least} to {most}")
    return count


def whole(value: Json) -> Json:
    """Return 4 for 4.0: what writes JSON need not know two kinds of numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_argv(key: str, value: Json, fields: Given) -> None:
    argv = _array(key, value)
    if not argv or not argv[0]:
        raise _wrong(key, value, "a program and its arguments, the program not empty")
    _set_command(key, fields, argv, is_shell=False)


def _read_command(key: str, value: Json, fields: Given) -> None:
    line = _bytes(key, value)
    if not line.strip():
        raise _wrong(key, value, "a shell line that is not empty")
    _set_command(key, fields, (b"/bin/sh", b"-c", line), is_shell=True)


def _set_command(key: str, fields: Given, argv: tuple[bytes, ...], *, is_shell: bool) -> None:
    if "argv" in fields:
        raise InvalidJob("argv and command are both given", hint="give one of them", field=key)
    fields["argv"] = argv
    fields["is_shell"] = is_shell


def _read_name(key: str, value: Json, fields: Given) -> None:
    if not isinstance(value, str) or len(value) > NAME_LENGTH_MAX or not _is_name(value):
        raise _wrong(key, value, f"1 to {NAME_LENGTH_MAX} printable characters")
    fields["name"] = value


def _read_timeout(key: str, value: Json, fields: Given) -> None:
    try:
        seconds = parse_duration(value)
    except ValueError as problem:
        raise InvalidJob(f"{key}: {problem}", field=key) from None
    if seconds <= 0:
        raise _wrong(key, value, "more than 0; leave it out for no limit")
    if fields.setdefault("timeout_s", seconds) != seconds:
        detail = "timeout and timeout_seconds differ"
        raise InvalidJob(detail, hint="give one of them", field=key)


def _read_memory(key: str, value: Json, fields: Given) -> None:
    try:
        fields["memory"] = parse_size(whole(value))
    except ValueError as problem:
        raise InvalidJob(f"{key}: {problem}", field=key) from None


def _read_priority(key: str, value: Json, fields: Given) -> None:
    if not isinstance(value, str) or value.upper() not in Priority.__members__:
        raise _wrong(key, value, "low, normal or high")
    fields["priority"] = Priority[value.upper()]


def _read_umask(key: str, value: Json, fields: Given) -> None:
    is_octal = isinstance(value, str) and 1 <= len(value) <= 5 and not value.strip("01234567")
    if not is_octal or int(value, 8) > 0o777:
        raise _wrong(key, value, 'a string of octal digits, for example "0022"')
    fields["umask"] = int(value, 8)


def _read_artifacts(key: str, value: Json, fields: Given) -> None:
    fields["artifacts"] = globs = _array(key, value)
    if not all(globs):
        raise _wrong(key, value, "patterns that are not empty")


def _read_gpus(key: str, value: Json, fields: Given) -> None:
    count = _whole(key, value, 0, GPUS_MAX)
    if fields.setdefault("gpus", count) != count:
        detail = "gpus and requirements.gpu_count differ"
        raise InvalidJob(detail, hint="give one of them", field=key)


def _read_requirements(key: str, value: Json, fields: Given) -> None:
    if not isinstance(value, dict):
        raise _wrong(key, value, "an object with gpu_type, gpu_count, min_vram_gb")
    for name, wish in value.items():
        known = _REQUIREMENTS.get(name)
        if known is None:
            raise _unknown(f"{key}.{name[:80]}", key, _REQUIREMENTS)
        if wish is not None:
            known[0](f"{key}.{name}", wish, fields)


def _read_gpu_type(key: str, value: Json, fields: Given) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(key, value, 'the name of a GPU model, for example "h200"')
    _wish_for(key, "gpu_type", value.strip(), fields)


def _read_min_vram(key: str, value: Json, fields: Given) -> None:
    _wish_for(key, "min_vram", _size(key, value), fields)


def _read_min_vram_gb(key: str, value: Json, fields: Given) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= SIZE_MAX / 1e9:
        raise _wrong(key, value, "a number of gigabytes")
    _wish_for(key, "min_vram", round(value * 1e9), fields)


def _read_gpu(key: str, value: Json, fields: Given) -> None:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not 1 <= len(names) <= GPUS_MAX:
        raise _wrong(key, value, "the UUID or index of a GPU, or an array of them")
    for name in names:
        if not isinstance(name, str) or not _is_gpu(name):
            raise _wrong(key, name, 'the UUID of a GPU or its index, for example "0"')
    if len(set(names)) < len(names):
        raise _wrong(key, value, "each GPU once")
    _wish_for(key, "gpu", tuple(names), fields)


def _read_vram(key: str, value: Json, fields: Given) -> None:
    size = _size(key, value)
    if not size:
        raise _wrong(key, value, "more than 0; leave it out for a whole GPU")
    _wish_for(key, "vram", size, fields)


def _size(key: str, value: Json) -> int:
    try:
        return parse_size(whole(value))
    except ValueError as problem:
        raise InvalidJob(f"{key}: {problem}", field=key) from None


#: Which key said something of the kind of GPU.
_WISH = "_gpu_wish"
_WISHES = ("gpu_type", "min_vram", "gpu", "vram")


def _wish_for(key: str, field: str, value: object, fields: Given) -> None:
    if fields.setdefault(field, value) != value:
        detail = f"{field} and {key} differ" if field != key else f"{key} is given twice"
        raise InvalidJob(detail, hint="give one of them", field=key)
    fields[_WISH] = key


def _settle_gpus(fields: Given) -> None:
    """Make a wish about the kind of GPU ask for one; without GPUs it is a contradiction."""
    wish = fields.pop(_WISH, None)
    count = fields.get("gpus")
    if count is not None:
        # A number takes the place of what defaults say of GPUs.
        for name in _WISHES if count == 0 else ("gpu", "vram"):
            fields.setdefault(name, () if name == "gpu" else None)
    if wish is not None and count == 0:
        detail = f"{wish} is given, but the job asks for no GPU"
        raise InvalidJob(detail, hint='leave it out, or ask for "gpus": 1', field=wish)
    if fields.get("gpu"):
        if count is not None:
            detail = "gpu and the number of GPUs are both given"
            raise InvalidJob(detail, hint="leave out the number", field="gpu")
        fields["gpus"] = len(fields["gpu"])
    fields.setdefault("gpus", 1)
    _check_share(fields)


def _check_share(fields: Given) -> None:
    if fields.get("vram") and fields.get("gpus") != 1:
        detail = f"vram is a share of one GPU, and the job asks for {fields.get('gpus')}"
        raise InvalidJob(detail, hint="leave out vram for whole GPUs", field="vram")


def _reader(field: str, read: Callable[[str, Json], Any]) -> _Read:
    def store(key: str, value: Json, fields: Given) -> None:
        fields[field] = read(key, value)

    return store


def _number(field: str, least: int, most: int) -> tuple[_Read, Schema]:
    read = _reader(field, lambda key, value: _whole(key, value, least, most))
    return read, {"type": "integer", "minimum": least, "maximum": most}


def _coded(pattern: str = "", more: str = "*") -> Schema:
    """Return the schema of bytes in base64, without a NUL among them."""
    group = r"(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=$|[A-Za-z0-9+/]{2}==$)"
    no_nul = r"(?!A[A-P]|.[AQgw][A-D]|..[AEIMQUYcgkosw048]A)"
    coded = {"type": "string", "pattern": f"^{pattern}(?:{no_nul}{group}){more}$"}
    return {
        "type": "object",
        "properties": {"b64": coded},
        "required": ["b64"],
        "additionalProperties": False,
    }


def _bytes_schema(pattern: str, coded: Schema) -> Schema:
    return {"anyOf": [{"type": "string", "pattern": pattern}, coded]}


_TEXT_SCHEMA = _bytes_schema(r"^[^\x00]*$", _coded())
_FULL_SCHEMA = _bytes_schema(r"^[^\x00]+$", _coded(more="+"))
#: In base64 what begins with "/" begins with L and one of these.
_PATH_SCHEMA = _bytes_schema(r"^/[^\x00]*$", _coded("(?=L[w-z0-9+/])", "+"))
#: In base64 one that begins with no blank: what has nothing else is refused.
_LINE_SCHEMA = _bytes_schema(
    r"^[^\x00]*[^\x00\t-\r ][^\x00]*$", _coded("(?!C[Q-Za-z0-9+/]|D[A-Za-f]|I[A-P])", "+")
)
_VARIABLES_SCHEMA: Schema = {
    "description": 'In an array, what is no UTF-8 may be {"b64": ...} of NAME=value',
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"pattern": r"^[^=\x00]+$"},
            "additionalProperties": _TEXT_SCHEMA,
        },
        {"type": "array", "items": {"type": "string", "pattern": r"^[^=\x00]+=[^\x00]*$"}},
    ],
}
_SECONDS_SCHEMA: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": DURATION_MAX_S}
DURATION_SCHEMA: Schema = {"type": "string", "pattern": DURATION_PATTERN}
_SIZE_SCHEMA: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": SIZE_MAX},
        {"type": "string", "pattern": SIZE_PATTERN},
    ]
}
_MODEL_SCHEMA: Schema = {"type": "string", "pattern": r"\S"}
_ONE_GPU_SCHEMA: Schema = {"type": "string", "pattern": _GPU_PATTERN}
_GPU_SCHEMA: Schema = {
    "anyOf": [
        _ONE_GPU_SCHEMA,
        {
            "type": "array",
            "items": _ONE_GPU_SCHEMA,
            "minItems": 1,
            "maxItems": GPUS_MAX,
            "uniqueItems": True,
        },
    ]
}
_SHARE_SCHEMA: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": SIZE_MAX},
        {"type": "string", "pattern": SIZE_PATTERN, "not": {"pattern": r"^ *0(?:[iI]?[bB])? *$"}},
    ]
}

_Read = Callable[[str, Json, Given], None]
#: By key: what reads its value, and the JSON schema of what that takes (beside null).
_REQUIREMENTS: dict[str, tuple[_Read, Schema]] = {
    "gpu_type": (_read_gpu_type, _MODEL_SCHEMA),
    "gpu_count": (_read_gpus, {"type": "integer", "minimum": 0, "maximum": GPUS_MAX}),
    "min_vram_gb": (
        _read_min_vram_gb,
        {"type": "number", "minimum": 0, "maximum": SIZE_MAX // 10**9},
    ),
}
_FIELDS: dict[str, tuple[_Read, Schema]] = {
    "argv": (
        _read_argv,
        {"type": "array", "prefixItems": [_FULL_SCHEMA], "items": _TEXT_SCHEMA, "minItems": 1},
    ),
    "command": (_read_command, _LINE_SCHEMA),
    "name": (
        _read_name,
        {"type": "string", "maxLength": NAME_LENGTH_MAX, "pattern": _NAME_PATTERN},
    ),
    "cwd": (_reader("cwd", _path), _PATH_SCHEMA),
    "env": (_reader("env", _variables), _VARIABLES_SCHEMA),
    "environment": (_reader("environment", _variables), _VARIABLES_SCHEMA),
    "gpus": (_read_gpus, {"type": "integer", "minimum": 0, "maximum": GPUS_MAX}),
    "gpu_type": (_read_gpu_type, _MODEL_SCHEMA),
    "min_vram": (_read_min_vram, _SIZE_SCHEMA),
    "gpu": (_read_gpu, _GPU_SCHEMA),
    "vram": (_read_vram, _SHARE_SCHEMA),
    "cpus": _number("cpus", 1, CPUS_MAX),
    "memory": (_read_memory, _SIZE_SCHEMA),
    "timeout": (_read_timeout, {"anyOf": [_SECONDS_SCHEMA, DURATION_SCHEMA]}),
    "timeout_seconds": (_read_timeout, {"anyOf": [_SECONDS_SCHEMA, DURATION_SCHEMA]}),
    "priority": (
        _read_priority,
        {"type": "string", "enum": [priority.name.lower() for priority in Priority]},
    ),
    "artifacts": (_read_artifacts, {"type": "array", "items": _FULL_SCHEMA}),
    "retries": _number("retries", 0, RETRIES_MAX),
    "umask": (_read_umask, {"type": "string", "pattern": "^0{0,2}[0-7]{1,3}$"}),
    "stdin": (_reader("stdin", _path), _PATH_SCHEMA),
    "requirements": (_read_requirements, {}),
}
_READERS = {key: read for key, (read, _) in _FIELDS.items()}


def job_schemas() -> dict[str, Schema]:
    """Return the schemas of a job description, of a part of one, and of a batch."""
    parts = {key: _or_null(schema) for key, (_, schema) in _FIELDS.items()}
    parts["requirements"] = _or_null(
        _closed({key: _or_null(schema) for key, (_, schema) in _REQUIREMENTS.items()})
    )
    part = {**_closed(parts), "not": {"anyOf": _contradictions()}}
    job, some = {"$ref": "#/components/schemas/Job"}, {"$ref": "#/components/schemas/JobPart"}
    batch = _closed({"jobs": {"type": "array", "minItems": 1}, "defaults": {}})
    return {
        "JobPart": part,
        "Job": {**part, "anyOf": [_with("argv"), _with("command")]},
        "Batch": {
            **batch,
            "required": ["jobs"],
            "anyOf": [
                {"properties": {"jobs": {"items": job}, "defaults": _or_null(some)}},
                {
                    "properties": {"jobs": {"items": some}, "defaults": job},
                    "required": ["defaults"],
                },
            ],
        },
    }


def _contradictions() -> list[Schema]:
    """Return schemas of what the readers refuse together."""
    none: Schema = {"const": 0}
    no_gpu = [_with("gpus", none), _with("requirements", _with("gpu_count", none))]
    counts = [_with("gpus"), _with("requirements", _with("gpu_count"))]
    several: Schema = {"type": "integer", "minimum": 2}
    many = [_with("gpus", several), _with("requirements", _with("gpu_count", several))]
    many += [_with("gpu", {"type": "array", "minItems": 2})]
    wishes = [_with("gpu_type"), _with("min_vram"), _with("gpu"), _with("vram")]
    wishes += [_with("requirements", _with(key)) for key in ("gpu_type", "min_vram_gb")]
    return [
        {"allOf": [_with("argv"), _with("command")]},
        {"allOf": [_with("timeout"), _with("timeout_seconds")]},
        {"allOf": [_with("gpus"), _with("requirements", _with("gpu_count"))]},
        {"allOf": [{"anyOf": no_gpu}, {"anyOf": wishes}]},
        {"allOf": [_with("gpu"), {"anyOf": counts}]},
        {"allOf": [_with("vram"), {"anyOf": many}]},
        {"allOf": [_with("gpu_type"), _with("requirements", _with("gpu_type"))]},
        {"allOf": [_with("min_vram"), _with("requirements", _with("min_vram_gb"))]},
    ]


def _with(key: str, value: Schema | None = None) -> Schema:
    """Return the schema of an object in which something is given."""
    given = {"not": {"type": "null"}} if value is None else value
    return {"type": "object", "properties": {key: given}, "required": [key]}


def _closed(fields: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": fields, "additionalProperties": False}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def text(value: bytes) -> Json:
    """Return bytes as JSON: a string where they are UTF-8, else ``{"b64": ...}``."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


# --- times ----------------------------------------------------------------------------------


def rfc3339(at: int | None) -> str | None:
    """Return microseconds since the epoch as ``2026-02-13T10:00:00Z``."""
    if at is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at // 1_000_000))


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
