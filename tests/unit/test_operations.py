from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api import openapi, schemas
from aitbcd.api.operations import (
    Answer,
    Asked,
    Operation,
    Parameter,
    choice,
    choices,
    duration,
    flag,
    moment,
    number,
    required,
    routes,
    text,
)
from aitbcd.errors import AitbcError, BadRequest, InvalidValue
from aitbcd.model import (
    Attempt,
    Ending,
    Event,
    Job,
    JobSpec,
    JobState,
    Owner,
    Priority,
    Reason,
    ResultsState,
)

FLAG = flag("all", "")
LIMIT = number("limit", "", 1, 200, default=50)
TAIL = number("tail", "", 0, 10, default=None)
STATES = choices("status", "", ["running", "failed"])
SORT = choice("sort", "", ["name", "created"], "created")
NAME = required(text("name", "", longest=5))
SINCE = moment("from", "")
EXPIRES = duration("expires", "")


def asked_with(*parameters: Parameter[Any], query: str = "", body: bytes | None = None) -> Asked:
    """Return what a handler gets of a request with these parameters."""
    got: list[Asked] = []

    async def handle(request: Request, asked: Asked) -> Response:
        got.append(asked)
        return Response()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body or b""}

    answers = (Answer("", None),)
    if body is None:
        operation = Operation("GET", "/x", handle, "", answers, parameters, is_public=True)
    else:
        operation = Operation("POST", "/x", handle, "", answers, fields=parameters, is_public=True)
    (route,) = routes([operation])
    scope = {
        "type": "http", "method": operation.method, "path": "/x", "headers": [],
        "query_string": query.encode(),
    }  # fmt: skip
    asyncio.run(route.endpoint(Request(scope, receive)))
    return got[0]


def refusal(*parameters: Parameter[Any], query: str = "", body: bytes | None = None) -> AitbcError:
    with pytest.raises(AitbcError) as caught:
        asked_with(*parameters, query=query, body=body)
    return caught.value


def test_what_is_not_given_has_its_default() -> None:
    asked = asked_with(FLAG, LIMIT, TAIL, STATES, SORT, SINCE, EXPIRES)
    assert (asked[FLAG], asked[LIMIT], asked[TAIL], asked[SORT]) == (False, 50, None, "created")
    assert (asked[STATES], asked[SINCE], asked[EXPIRES]) == (frozenset(), None, None)


@pytest.mark.parametrize(
    ("parameter", "query", "value"),
    [
        (FLAG, "all=true", True), (FLAG, "all=false", False),
        (LIMIT, "limit=200", 200), (TAIL, "tail=0", 0), (SORT, "sort=name", "name"),
        (STATES, "status=running,failed", {"running", "failed"}),
        (STATES, "status=running&status=failed", {"running", "failed"}),
        (NAME, "name=%C3%A4", "\u00e4"), (SINCE, "from=1970-01-01T00:00:01Z", 1_000_000),
        (EXPIRES, "expires=7d", 604800.0),
    ],
)  # fmt: skip
def test_a_query_is_read(parameter: Parameter[Any], query: str, value: object) -> None:
    assert asked_with(parameter, query=query)[parameter] == value


@pytest.mark.parametrize(
    ("parameter", "query", "words"),
    [
        (FLAG, "all=yes", "true or false"), (FLAG, "all=1", "true or false"),
        (FLAG, "all", "true or false"), (LIMIT, "limit=0", "from 1 to 200"),
        (LIMIT, "limit=201", "from 1 to 200"), (LIMIT, "limit=%C2%B2", "whole number"),
        (LIMIT, f"limit={'9' * 5000}", "whole number"), (LIMIT, "limit=1&limit=2", "2 times"),
        (STATES, "status=running,", "running, failed"), (STATES, "status=", "running, failed"),
        (SORT, "sort=size", "name, created"), (NAME, "", "missing"), (NAME, "name=", "1 to 5"),
        (NAME, "name=abcdef", "1 to 5"), (SINCE, "from=2026-02-30", "2026-01-31"),
        (EXPIRES, "expires=soon", "2h"),
    ],
)  # fmt: skip
def test_a_wrong_query_is_refused_by_name(
    parameter: Parameter[Any], query: str, words: str
) -> None:
    error = refusal(parameter, query=query)
    assert isinstance(error, InvalidValue)
    assert error.fields["field"] == parameter.name
    assert words in f"{error.detail} {error.hint}"
    assert len(error.detail) < 300


def test_what_is_unknown_is_refused_with_what_is_known() -> None:
    error = refusal(LIMIT, FLAG, query="limits=5")
    assert error.fields["field"] == "limits"
    assert "limit, all" in error.detail
    assert "'nam'" in refusal(NAME, body=b'{"nam": "x"}').detail


def test_the_fields_of_a_body_are_read() -> None:
    body = b'{"name": "abc", "all": true, "limit": 7.0, "expires": "1h", "tail": null}'
    asked = asked_with(NAME, FLAG, LIMIT, EXPIRES, TAIL, body=body)
    found = (asked[NAME], asked[FLAG], asked[LIMIT], asked[EXPIRES], asked[TAIL])
    assert found == ("abc", True, 7, 3600.0, None)
    assert asked_with(FLAG, body=b" ")[FLAG] is False


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        (FLAG, "true", "true or false"), (FLAG, 1, "true or false"), (LIMIT, "7", "whole number"),
        (LIMIT, True, "whole number"), (LIMIT, 1.5, "whole number"), (NAME, 5, "a string"),
        (NAME, None, "missing"), (NAME, ["x"], "a string"), (SINCE, 0, "a string"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(
    parameter: Parameter[Any], value: object, words: str
) -> None:
    error = refusal(parameter, body=json.dumps({parameter.name: value}).encode())
    assert error.fields["field"] == parameter.name
    assert words in error.detail


@pytest.mark.parametrize("body", [b"[]", b"5", b'"x"', b"{", b"\xff"])
def test_a_body_that_is_no_object_is_a_bad_request(body: bytes) -> None:
    assert isinstance(refusal(FLAG, body=body), BadRequest)


# -- the document -------------------------------------------------------------------------------


def test_the_document_has_each_operation_with_what_it_may_answer() -> None:
    async def handle(request: Request, asked: Asked) -> Response:
        return Response()

    answers = (schemas.json("Well", schemas.ref("Status")), schemas.raw("Lines", "text/plain"))
    operations = [
        Operation("GET", "/v1/jobs/{job}", handle, "Look", answers, (LIMIT,)),
        Operation("POST", "/v1/jobs/{job}", handle, "Do", answers, fields=(NAME, FLAG)),
    ]
    paths = openapi.document(operations)["paths"]
    look, do = paths["/v1/jobs/{job}"]["get"], paths["/v1/jobs/{job}"]["post"]
    assert [parameter["name"] for parameter in look["parameters"]] == ["job", "limit"]
    assert look["responses"]["200"]["content"].keys() == {"application/json", "text/plain"}
    assert {"401", "403", "404", "409", "422"} <= look["responses"].keys()
    assert "requestBody" not in look
    assert do["requestBody"]["required"]
    schema = do["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["name"]
    assert schema["properties"]["all"]["type"] == ["boolean", "null"]


def test_what_is_answered_of_a_job_is_what_the_document_says() -> None:
    ending = Ending(1, Reason.EXIT, exit_code=1, results=ResultsState.KEPT)
    job = Job(1, "job_x", Owner(1, "a"), JobState.FAILED, None, 1, None, 0, None, Priority.NORMAL,
              0, 1, 0, ending=ending)  # fmt: skip
    attempt = Attempt(1, "boot", 0, ending=ending)
    event = Event(1, 1, "job_x", 1, 0, JobState.FAILED, 1)
    status = wire.status(job, miner_id="miner_x", progress=0, contact="ops")
    details = wire.details(job, JobSpec((b"x",)), [attempt], [event])
    known = schemas.components()
    assert status.keys() == known["Status"]["properties"].keys()
    assert details.keys() == known["Details"]["allOf"][1]["properties"].keys()
    assert details["attempts"][0].keys() == known["Attempt"]["properties"].keys()
    assert details["events"][0].keys() == known["Event"]["properties"].keys()
    queued = wire.queued(job, is_mine=True, progress=0, waiting=None, estimate=None)
    assert queued.keys() == known["Queued"]["properties"].keys()
    problem = wire.problem(InvalidValue("x"))
    assert problem.keys() == known["Problem"]["properties"].keys()
