"""The API does what its OpenAPI document says: schemathesis makes the requests, and judges."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import User, as_user, new_user
from tests.service import Service, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can make a user and be him"),
]

Json = dict[str, Any]

#: Nothing of what it makes up is worth waiting for, and nothing is too often.
CONFIG = """
[server]
tcp = "127.0.0.1:0"
request_rate = 0
[slots]
cpus = 4
memory = "8G"
[jobs]
cancel_grace = "1s"
log_limit = "64K"
"""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stranger() -> Iterator[User]:
    """A user without privileges: jobs are made up, and run as him."""
    with new_user("o") as user:
        yield user


def closed(schema: Json) -> Json:
    """Return a schema that nothing fits which has a field that it does not name."""
    if "properties" in schema or "$ref" in schema or "anyOf" in schema:
        inner = {name: closed(value) for name, value in schema.get("properties", {}).items()}
        inside = {**schema, "properties": inner} if inner else schema
        return {"allOf": [inside], "unevaluatedProperties": False}
    if "items" in schema:
        return {**schema, "items": closed(schema["items"])}
    return schema


def strict(document: Json) -> Json:
    """Return the document with all that is answered when all goes well closed."""
    for path in document["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                content = answer["content"].get("application/json")
                if status < "300" and content:
                    content["schema"] = closed(content["schema"])
    return document


def test_every_request_is_answered_as_the_document_says(stranger: User) -> None:
    before = as_user(stranger)
    with tempfile.TemporaryDirectory(prefix="aitbcd-openapi-") as folder:
        Path(folder).chmod(0o755)
        service = Service(Path(folder) / "daemon", CONFIG, before=before)
        service.give_to(stranger.uid, stranger.gid)
        with service:
            said = wait_for(
                "the daemon says its address",
                lambda: re.search(r"http://127\.0\.0\.1:\d+", service.log.read_text()),
                log=service.log,
            )
            # Further fields are allowed to later releases; those of this one are all described.
            document = Path(folder) / "openapi.json"
            document.write_text(json.dumps(strict(httpx.get(f"{said[0]}/openapi.json").json())))
            run = [
                *before, sys.executable, "-m", "schemathesis.cli", "run", str(document),
                f"--url={said[0]}",
                "--checks=all", "--max-examples=10", "--seed=1", "--no-color", "--no-shrink",
                "--suppress-health-check=all", "--request-timeout=60",
            ]  # fmt: skip
            environ = {
                **os.environ, "HOME": str(stranger.home), "PYTHONPATH": str(ROOT),
                "SCHEMATHESIS_HOOKS": "tests.system.any_requests",
            }  # fmt: skip
            done = subprocess.run(
                run, cwd=stranger.home, env=environ, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{done.stdout}\n{service.log.read_text()[-2000:]}"
            counted = re.search(r"(\d+) generated", done.stdout)
            assert counted, done.stdout
            assert int(counted[1]) > 500, done.stdout
        log = service.log.read_text()
        assert "Traceback" not in log, log
