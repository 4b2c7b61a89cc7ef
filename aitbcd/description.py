"""A job as JSON, read and refused by name: what a description may say, and its schema. Pure.

The form is fixed, because programs outside rely on it: it is the same in ``POST /v1/jobs``, in a
line of a batch and in a job file. Text that is no UTF-8 travels as ``{"b64": "..."}``.

A description is read key by key through one table, so that a wrong value is refused by its name
with what is allowed, and a small job costs what its few keys cost.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import Any

from aitbcd.errors import InvalidJob
from aitbcd.model import JobSpec, Priority
from aitbcd.units import (
    DURATION_MAX_S,
    DURATION_PATTERN,
    MEMORY_LEAST,
    MEMORY_PATTERN,
    SIZE_MAX,
    parse_duration,
    parse_size,
)
from aitbcd.wire import Json, Schema, encode, whole

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
_GPU_PATTERN = r"^[A-Za-z0-9/:-]{1,80}$"
_is_gpu = re.compile(r"[A-Za-z0-9/:-]{1,80}").fullmatch
_is_memory = re.compile(MEMORY_PATTERN).match
_is_name = re.compile(rf"[^{_UNSEEN}]+").fullmatch


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
    fields["memory"] = _memory(key, value)


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
    if any(glob.startswith(b"/") or b".." in glob.split(b"/") for glob in globs):
        # The seal would leave them out, which is said when the training is over.
        raise _wrong(key, value, 'patterns below the working directory, for example "ckpt/*.pt"')


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
    _wish_for(key, "min_vram", _memory(key, value), fields)


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
    size = _memory(key, value)
    if not size:
        raise _wrong(key, value, "more than 0; leave it out for a whole GPU")
    _wish_for(key, "vram", size, fields)


def _memory(key: str, value: Json) -> int:
    """Return bytes; what is so little that a unit was surely forgotten is refused."""
    value = whole(value)
    try:
        size = parse_size(value)
    except ValueError as problem:
        raise InvalidJob(f"{key}: {problem}", field=key) from None
    if not (_is_memory(value) if isinstance(value, str) else size >= MEMORY_LEAST or size == 0):
        raise _wrong(key, value, "a size with its unit, such as 500M or 16G, or a million bytes")
    return size


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
_SHARE_SCHEMA: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": MEMORY_LEAST, "maximum": SIZE_MAX},
        {"type": "string", "pattern": MEMORY_PATTERN},
    ]
}
_SIZE_SCHEMA: Schema = {"anyOf": [{"enum": [0]}, *_SHARE_SCHEMA["anyOf"]]}
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
