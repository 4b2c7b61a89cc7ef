"""What is answered, as JSON schemas: the words to write them with, and those with a name."""

from __future__ import annotations

from typing import Any

from aitbcd import description
from aitbcd.api.operations import Answer, Schema
from aitbcd.lifecycle import TRANSITIONS
from aitbcd.model import Cause, EventKind, JobState, Reason, ResultsState

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "format": "date-time"}


def optional(schema: Schema) -> Schema:
    """Return the schema of a value that can be null."""
    # An enum would go on to refuse null.
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def record(**fields: Schema) -> Schema:
    """Return the schema of an object that has all of these fields."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def ref(name: str) -> Schema:
    """Return what stands for one of ``components``."""
    return {"$ref": f"#/components/schemas/{name}"}


def page(name: str, of: Schema) -> Schema:
    """Return the schema of one page of a list; ``next`` leads to the page after."""
    return record(**{name: array(of), "next": optional(STRING)})


def json(about: str, schema: Schema, status: int = 200) -> Answer:
    return Answer(about, schema, status)


def raw(about: str, media_type: str, status: int = 200) -> Answer:
    """Return an answer of bytes."""
    return Answer(about, None, status, media_type)


def components() -> dict[str, Any]:
    """Return the schemas that have a name in the document."""
    return {**description.job_schemas(), "Problem": _PROBLEM, "Text": _TEXT, "Event": _EVENT,
            "Attempt": _ATTEMPT, "Status": _status(), "Details": _details(),
            "Listed": {"allOf": [ref("Status"), record(command_line=optional(STRING))]},
            "Queued": _QUEUED}  # fmt: skip


_TEXT: Schema = {
    "description": "A string; what is no UTF-8 in base64",
    "anyOf": [STRING, record(b64=STRING)],
}
_PROBLEM: Schema = {
    **record(
        type=STRING, title=STRING, status=INTEGER, detail=STRING, code=STRING, hint=optional(STRING)
    ),
    "description": "RFC 9457; further fields carry what a program may need",
}
_STATES = one_of(*(state.value for state in JobState))
_REASON = optional({"enum": [reason.value for reason in Reason]})
_CAUSE = optional({"enum": [cause.value for cause in Cause]})
_EVENT = record(
    seq=INTEGER, time=MOMENT, job_id=STRING, number=INTEGER, status=_STATES, attempt=INTEGER,
    reason=_REASON, cause=_CAUSE, message=optional(STRING),
    kind=one_of(*(kind.value for kind in EventKind)), facts=optional({"type": "object"}),
)  # fmt: skip
_SEEN_PROCESS = record(
    pid=INTEGER, user=optional(STRING), command=optional(STRING), memory=optional(INTEGER),
    since=optional(MOMENT), job_id=optional(STRING),
)  # fmt: skip
_SNAPSHOT = record(
    seen_at=optional(MOMENT),
    gpus=array(
        record(uuid=STRING, index=INTEGER, name=STRING, memory_total=INTEGER, memory_used=INTEGER,
               processes=array(_SEEN_PROCESS))
    ),
    foreign=array(_SEEN_PROCESS), xids=array(record(uuid=STRING, time=MOMENT, xid=INTEGER)),
    oom_kills=optional(INTEGER), evidence=optional(STRING), stderr=array(STRING),
)  # fmt: skip
_ATTEMPT = record(
    attempt=INTEGER, handle=optional(STRING), gpu_uuids=array(STRING), assigned_at=MOMENT,
    started_at=optional(MOMENT), finished_at=optional(MOMENT), exit_code=optional(INTEGER),
    signal=optional(INTEGER), reason=_REASON, cause=_CAUSE, message=optional(STRING),
    snapshot=optional(_SNAPSHOT), user_s=optional(NUMBER), system_s=optional(NUMBER),
    max_rss=optional(INTEGER), memory_peak=optional(INTEGER), charge=optional(NUMBER),
    gpu_use=optional(record(
        interval_s=NUMBER, rows=INTEGER, sampled_s=NUMBER, utilization_mean=optional(NUMBER),
        utilization_peak=optional(INTEGER), memory_peak=optional(INTEGER),
        job_memory_peak=optional(INTEGER), energy_j=optional(NUMBER), idle_s=optional(NUMBER),
    )),
)  # fmt: skip
_QUEUED = record(
    job_id=STRING, number=INTEGER, user=STRING, name=optional(STRING), status=_STATES,
    priority=STRING, cpus=INTEGER, gpus=INTEGER, memory=optional(INTEGER), gpu_uuids=array(STRING),
    attempt=INTEGER, created_at=MOMENT, started_at=optional(MOMENT), since=MOMENT,
    until=optional(MOMENT), estimated_completion=optional(MOMENT), waiting=optional(STRING),
    progress=INTEGER, is_mine=BOOLEAN,
)  # fmt: skip


def _status() -> Schema:
    always = record(
        job_id=STRING, status=_STATES, progress={"type": "integer", "minimum": 0, "maximum": 100},
        miner_id=optional(STRING), created_at=MOMENT, started_at=optional(MOMENT),
        estimated_completion=optional(MOMENT), number=INTEGER, name=optional(STRING), user=STRING,
        attempt=INTEGER, waiting=optional(STRING), gpu_uuids=array(STRING),
        retry_of=optional(STRING), charge=NUMBER, currency=optional(STRING),
    )  # fmt: skip
    when_over = record(
        finished_at=MOMENT, exit_code=optional(INTEGER), signal=optional(INTEGER), reason=_REASON,
        cause=_CAUSE, advice=optional(STRING), message=optional(STRING),
        expires_at=optional(MOMENT), result_path=optional(STRING),
        results=one_of(*(kept.value for kept in ResultsState)),
    )  # fmt: skip
    final = [state.value for state in TRANSITIONS if state.is_final]
    return {
        **always,
        "properties": {**always["properties"], **when_over["properties"], "contact": STRING},
        "if": {"properties": {"status": {"enum": final}}},
        "then": {"required": when_over["required"]},
    }


def _details() -> Schema:
    text = ref("Text")
    requested = record(
        cpus=INTEGER, memory=optional(INTEGER), gpus=INTEGER, gpu_type=optional(STRING),
        min_vram=optional(INTEGER), gpu=array(STRING), vram=optional(INTEGER),
        timeout_s=optional(NUMBER), priority=STRING, retries=INTEGER, artifacts=array(text),
    )  # fmt: skip
    more = record(
        command=array(text), shell=BOOLEAN, cwd=optional(text), stdin=optional(text),
        umask=optional(STRING), env_names=array(text), requested=requested,
        attempts=array(ref("Attempt")), events=array(ref("Event")),
        manifest_sha256=optional(STRING), result_bytes=optional(INTEGER),
        result_files=optional(INTEGER),
        files=array(record(path=text, size=optional(INTEGER), sha256=STRING)),
        files_total=INTEGER, shares=INTEGER,
    )  # fmt: skip
    return {"allOf": [ref("Status"), more]}
