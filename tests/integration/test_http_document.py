"""docs/http.md and its reference, compared with what the daemon says of itself and does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from typing import Any

import jsonschema_rs
import pytest

from tests.documents import ROOT, blocks
from tests.integration.conftest import Box

Json = dict[str, Any]

DOCUMENT = "docs/http.md"
REFERENCE = "docs/http-reference.md"
SCRIPT = "packaging/http_reference.py"
#: A body, in the words after the route that takes it.
BODY = re.compile(r"`POST (/v1/\S+?)`[^`]*`(\{\"[^`]*\})`")


@pytest.fixture(scope="module")
def openapi(box: Box) -> Json:
    document: Json = box.http.get("/openapi.json").json()
    return document


def assert_fits(value: object, schema: Json, document: Json) -> None:
    """Fail where a value is not what the schema says, or has a field that it does not name."""
    closed = {"allOf": [schema], "unevaluatedProperties": False}
    jsonschema_rs.validate(closed | {"components": document["components"]}, value)


def answered(document: Json, path: str) -> Json:
    """Return the schema of what a route answers."""
    answer = document["paths"][path]["get"]["responses"]["200"]
    schema: Json = answer["content"]["application/json"]["schema"]
    return schema


def test_the_reference_is_made_of_what_the_daemon_says(openapi: Json) -> None:
    made = subprocess.run(
        [sys.executable, ROOT / SCRIPT],
        input=json.dumps(openapi),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert (ROOT / REFERENCE).read_text() == made, (
        f"make it anew: curl http://127.0.0.1:8000/openapi.json | python {SCRIPT} >{REFERENCE}"
    )


def test_the_status_shown_is_one(openapi: Json) -> None:
    (sample,) = blocks(DOCUMENT, "Its status", "json")
    assert_fits(json.loads(sample), {"$ref": "#/components/schemas/Status"}, openapi)


def test_the_gpus_shown_are_such(openapi: Json) -> None:
    (sample,) = blocks(DOCUMENT, "GPUs", "json")
    shown = json.loads(sample)
    schema = answered(openapi, "/v1/gpus")
    assert_fits(shown, schema, openapi)
    assert_fits(shown["gpus"][0], schema["properties"]["gpus"]["items"], openapi)


def test_the_problem_shown_is_what_is_answered(box: Box) -> None:
    (sample,) = blocks(DOCUMENT, "Errors", "json")
    answer = box.http.get("/v1/jobs/job_zzzzzzzz")
    assert answer.status_code == 404
    assert json.loads(sample) == answer.json()


def test_the_bodies_are_taken(openapi: Json) -> None:
    asked = {path: ways["post"] for path, ways in openapi["paths"].items() if "post" in ways}
    bodies = [
        (path, body)
        for path, body in BODY.findall((ROOT / DOCUMENT).read_text())
        if "requestBody" in asked[path]  # else it is what is answered
    ]
    verbs = {path.rpartition("/")[2] for path, _ in bodies}
    assert verbs == {"keys", "cancel", "keep", "share", "drain"}
    for path, body in bodies:
        content = asked[path]["requestBody"]["content"]
        assert_fits(json.loads(body), content["application/json"]["schema"], openapi)


def test_it_is_asked_with_curl(box: Box) -> None:
    (line,) = re.findall(r"`(curl .*?)`", (ROOT / DOCUMENT).read_text(), re.S)
    words = [str(box.service.socket) if word == "PATH" else word for word in shlex.split(line)]
    done = subprocess.run([*words, "--silent"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["jobs"] == []


def test_every_refusal_of_the_reference_is_explained() -> None:
    codes = re.findall(r"\d{3} `([a-z-]+)`", (ROOT / REFERENCE).read_text())
    text = (ROOT / DOCUMENT).read_text()
    assert {code for code in codes if f"| `{code}` |" not in text} == set()
