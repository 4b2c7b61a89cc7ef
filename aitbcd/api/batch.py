"""/v1/jobs:batch: many jobs at once, all or none.

The body is read to its end first (in memory while it is small, else in an unlinked file) and then
decoded in pieces by the store's thread, in its transaction: memory does not follow the body.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import BinaryIO

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aitbcd import description, wire
from aitbcd.api.context import Api, caller
from aitbcd.api.jobs import JOB_BYTES_MAX
from aitbcd.api.messages import stream
from aitbcd.api.operations import Asked, Operation
from aitbcd.api.schemas import INTEGER, STRING, array, json, record, ref
from aitbcd.errors import AitbcError, BadRequest, InvalidJob, NotSatisfiable, OverLimit, TooLarge
from aitbcd.model import JobSpec

LINES_BYTES_MAX = 64 << 20
OBJECT_BYTES_MAX = 16 << 20
#: Nobody else's change is stored meanwhile: so many take a few seconds.
JOBS_MAX = 200_000
#: Jobs in one piece for the store.
_PIECE = 512
_LINES = frozenset({"application/x-ndjson", "application/jsonl", "application/x-jsonlines"})


_Check = Callable[[JobSpec], JobSpec]


class _Object(msgspec.Struct, forbid_unknown_fields=True):
    jobs: list[msgspec.Raw]
    defaults: wire.Json = None


_decode_object = msgspec.json.Decoder(_Object).decode


def operations(api: Api) -> list[Operation]:
    one = record(job_id=STRING, number=INTEGER)
    answer = json("All were submitted", record(jobs=array(one), count=INTEGER), 201)
    return [
        Operation(
            "POST", "/v1/jobs:batch", _Batch(api).submit, "Submit many jobs, all or none",
            (answer,), body={"application/json": ref("Batch"), "application/x-ndjson": STRING},
            errors=(InvalidJob, NotSatisfiable, OverLimit),
        )
    ]  # fmt: skip


class _Batch:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def submit(self, request: Request, asked: Asked) -> Response:
        who = caller(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        limit = OBJECT_BYTES_MAX if kind == "application/json" else LINES_BYTES_MAX
        async with self._api.spool.body(request, limit, who.owner.uid) as body:
            is_object = kind == "application/json" or (kind not in _LINES and _is_object(body))
            read = _jobs_of_object if is_object else _jobs_of_lines
            # The engine checks too, but cannot say where in the batch it was.
            check = await self._api.engine.admission(who.owner)
            # A large one keeps all others from storing for seconds.
            whose = ("batch", who.owner.uid)
            self._api.turns.check(whose)
            async with self._api.turns.of(whose):
                batch = await self._api.engine.submit_batch(
                    who.owner, lambda: _pieces(read(body, check)), plan=who.plan
                )
        return stream(request, _answer(batch.ids), "application/json", status=201)


async def _answer(ids: Sequence[tuple[int, str]]) -> AsyncGenerator[bytes]:
    """Yield the answer in pieces: as one document of many objects it takes tens of megabytes."""
    yield b'{"jobs":['
    for start in range(0, len(ids), _PIECE):
        jobs = [
            {"job_id": job_id, "number": number} for number, job_id in ids[start : start + _PIECE]
        ]
        yield (b"," if start else b"") + wire.encode(jobs)[1:-1]
    yield b'],"count":%d}\n' % len(ids)


def _is_object(body: BinaryIO) -> bool:
    """Tell the object form from lines where the request does not say which it is."""
    start = body.read(OBJECT_BYTES_MAX + 1)
    body.seek(0)
    if len(start) > OBJECT_BYTES_MAX:
        return False
    try:
        whole = wire.decode(start)
    except BadRequest:
        return False
    return isinstance(whole, dict) and "jobs" in whole


def _pieces(specs: Iterator[JobSpec]) -> Iterator[Sequence[JobSpec]]:
    piece: list[JobSpec] = []
    count = 0
    for spec in specs:
        count += 1
        if count > JOBS_MAX:
            detail = f"the batch has more than {JOBS_MAX} jobs; none was submitted"
            raise TooLarge(detail, hint="send it in parts")
        piece.append(spec)
        if len(piece) == _PIECE:
            yield piece
            piece = []
    if piece:
        yield piece
    if not count:
        raise InvalidJob("the batch has no jobs", hint="send one job a line")


def _jobs_of_lines(body: BinaryIO, check: _Check) -> Iterator[JobSpec]:
    # From the start each time: the store may ask twice.
    body.seek(0)
    number = 0
    while line := body.readline(JOB_BYTES_MAX + 1):
        number += 1
        try:
            if len(line) > JOB_BYTES_MAX:
                raise TooLarge(f"the job is larger than {JOB_BYTES_MAX} bytes")
            if not line.isspace():
                yield check(description.job_spec(wire.decode(line)))
        except AitbcError as error:
            raise _located(error, f"line {number}", "line", number) from None


def _jobs_of_object(body: BinaryIO, check: _Check) -> Iterator[JobSpec]:
    body.seek(0)
    try:
        batch = _decode_object(body.read())
    except UnicodeDecodeError as problem:
        raise BadRequest(f"the JSON is not UTF-8: {problem.reason}") from None
    except msgspec.ValidationError as problem:
        hint = '{"defaults": {...}, "jobs": [{...}, ...]}, or one job a line'
        raise InvalidJob(f"the batch is not as expected: {problem}", hint=hint) from None
    except msgspec.DecodeError as problem:
        raise BadRequest(f"not valid JSON: {problem}", hint="correct the request") from None
    except RecursionError:
        raise BadRequest("the JSON is nested too deeply") from None
    try:
        defaults = description.given(batch.defaults) if batch.defaults is not None else None
    except AitbcError as error:
        raise _located(error, "defaults", "index", None) from None
    for index, raw in enumerate(batch.jobs):
        try:
            yield check(description.job_spec(wire.decode(memoryview(raw)), defaults))
        except AitbcError as error:
            raise _located(error, f"jobs[{index}]", "index", index) from None


def _located(error: AitbcError, where: str, name: str, place: int | None) -> AitbcError:
    """Return the same error, saying where in the batch it is."""
    fields = {**error.fields, name: place}
    return type(error)(f"{where}: {error.detail}", hint=error.hint, **fields)
