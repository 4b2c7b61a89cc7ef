"""/openapi.json: the OpenAPI 3.1 document, made of what requests are checked by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import __version__, wire
from aitbcd.api import schemas
from aitbcd.api.messages import SlowBody
from aitbcd.api.operations import Answer, Asked, Operation, Parameter, Schema
from aitbcd.errors import (
    AitbcError,
    AmbiguousJob,
    BadRequest,
    Forbidden,
    InvalidValue,
    NoSuchJob,
    RateLimited,
    StorageFull,
    TooLarge,
    Unauthorized,
    Unavailable,
)

_STRING = schemas.STRING
#: What stands in braces in a path.
PATHS: dict[str, dict[str, Any]] = {
    "job": {
        "description": "Its id, its number, a unique beginning of its id, or @ for one's latest",
        "schema": _STRING,
        "example": "@",
    },
    "name": {"description": "Its name or its id", "schema": _STRING},
    "path": {"description": "Of a file", "schema": _STRING, "example": "result.txt"},
    "stream": {"schema": schemas.one_of("stdout", "stderr")},
    "token": {"description": "The end of a link's address", "schema": _STRING},
    "uuid": {
        "description": "Of a GPU or a MIG device",
        "schema": _STRING,
        "example": "GPU-5a1c0d5e-0b7a-4f3e-9d64-6f1f3f4d2a10",
    },
}
_IN_BRACES = re.compile(r"{(\w+)(?::\w+)?}")


def operation(others: Iterable[Operation]) -> Operation:
    """Return the operation that answers with the document of all others and of itself."""

    async def openapi(request: Request, asked: Asked) -> Response:
        return Response(whole, media_type="application/json")

    answer = schemas.json("This document", {"type": "object"})
    itself = Operation(
        "GET", "/openapi.json", openapi, "Describe the API", (answer,), is_public=True
    )
    whole = wire.encode(document([*others, itself])) + b"\n"
    return itself


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the OpenAPI document of these operations."""
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        path = _IN_BRACES.sub(r"{\1}", each.path)
        paths.setdefault(path, {})[each.method.lower()] = _described(each)
    return {
        "openapi": "3.1.0",
        "info": {"title": "aitbcd", "version": __version__},
        "paths": paths,
        # On the Unix socket, and without a key on loopback, the kernel says who asks.
        "security": [{}, {"key": []}],
        "components": {
            "schemas": schemas.components(),
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"}},
        },
    }


def _described(each: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{each.handle.__module__.rpartition('.')[2]}.{each.handle.__name__}",
        "summary": each.about,
        "parameters": [
            *({"name": name, "in": "path", "required": True, **PATHS[name]}
              for name in _IN_BRACES.findall(each.path)),
            *(_of_query(parameter) for parameter in each.query),
        ],
        "responses": _responses(each),
    }  # fmt: skip
    body = {"application/json": _object(each.fields)} if each.fields else each.body
    if body:
        described["requestBody"] = {
            "required": not each.fields or any(field.is_required for field in each.fields),
            "content": {media_type: {"schema": schema} for media_type, schema in body.items()},
        }
    return described


def _of_query(parameter: Parameter[Any]) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": "query",
        "description": parameter.about,
        "required": parameter.is_required,
        "schema": parameter.schema,
    }


def _object(fields: Iterable[Parameter[Any]]) -> Schema:
    return {
        "type": "object",
        "properties": {
            each.name: {
                **(each.schema if each.is_required else schemas.optional(each.schema)),
                "description": each.about,
            }
            for each in fields
        },
        "required": [each.name for each in fields if each.is_required],
        "additionalProperties": False,
    }


def _responses(each: Operation) -> dict[str, Any]:
    responses = _problems(each)
    for status, answer in _answers(each.answers).items():
        # A page may take the place of a problem document.
        content = responses.get(status, {}).get("content", {})
        responses[status] = {**answer, "content": {**content, **answer["content"]}}
    return dict(sorted(responses.items()))


def _answers(answers: Iterable[Answer]) -> dict[str, Any]:
    by_status: dict[str, Any] = {}
    for answer in answers:
        shown = by_status.setdefault(
            str(answer.status), {"description": answer.about, "content": {}}
        )
        shown["content"][answer.media_type] = {"schema": answer.schema} if answer.schema else {}
    return by_status


def _problems(each: Operation) -> dict[str, Any]:
    kinds: list[type[AitbcError]] = [*each.errors, InvalidValue, Unavailable, AitbcError]
    if not each.is_public:
        kinds += [Unauthorized, Forbidden, RateLimited]
    if "{job}" in each.path:
        kinds += [NoSuchJob, AmbiguousJob]
    if each.fields or each.body:
        kinds += [BadRequest, SlowBody, TooLarge]
    if each.method != "GET" and not each.is_reading:
        kinds += [StorageFull]
    by_status: dict[int, dict[str, str]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, {})[kind.code] = kind.title
    content = {"application/problem+json": {"schema": schemas.ref("Problem")}}
    return {
        str(status): {
            "description": "; ".join(f"{code}: {title}" for code, title in codes.items()),
            "content": content,
        }
        for status, codes in sorted(by_status.items())
    }
