"""Lists, the queue and the export of a real daemon."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.integration.conftest import Box, Json, User, problem, proc_numbers, serving

MIB = 1 << 20
LONG = 100_000


def listed(box: Box, **params: object) -> Json:
    answer = box.http.get("/v1/jobs", params={key: str(value) for key, value in params.items()})
    assert answer.status_code == 200, answer.text
    page: Json = answer.json()
    return page


def numbers(page: Json) -> list[int]:
    return [job["number"] for job in page["jobs"]]


# -- lists --------------------------------------------------------------------------------------


def test_pages_follow_each_other_newest_first(box: Box) -> None:
    made = [box.submit("true")["number"] for _ in range(7)]
    found: list[int] = []
    page = listed(box, limit=3)
    for _ in range(2):
        assert len(page["jobs"]) == 3
        found += numbers(page)
        # What comes between two pages shifts nothing.
        box.submit("true")
        page = listed(box, limit=3, after=page["next"])
    found += numbers(page)[:1]
    assert found == made[::-1]
    while page["next"]:
        page = listed(box, limit=200, after=page["next"])
    assert 0 < len(page["jobs"]) <= 200


def test_a_list_says_what_each_job_runs(box: Box) -> None:
    long = "é" * 800
    made = [
        box.submit("echo", "two words")["job_id"],
        box.http.post("/v1/jobs", json={"command": "echo a |\n  cat"}).json()["job_id"],
        box.submit("echo", long)["job_id"],
    ]
    lines = {job["job_id"]: job["command_line"] for job in listed(box)["jobs"]}
    shown = [lines[job] for job in made]
    assert shown == ["echo 'two words'", "echo a | cat", f"echo '{long}"[:199] + "…"]
    assert all("command_line" not in job for job in box.http.get("/v1/queue").json()["jobs"])


def test_a_list_is_filtered_by_status_and_time(box: Box) -> None:
    failed = box.run("false")
    done = box.run("true")
    assert listed(box, status="failed", limit=1)["jobs"][0]["job_id"] == failed["job_id"]
    both = [job["job_id"] for job in listed(box, status="failed,completed", limit=2)["jobs"]]
    assert both == [done["job_id"], failed["job_id"]]
    answer = box.http.get("/v1/jobs?status=failed&status=completed&limit=2")
    assert [job["job_id"] for job in answer.json()["jobs"]] == both
    assert listed(box, to="2020-01-01")["jobs"] == []
    assert listed(box, **{"from": "2099-01-01T00:00:00Z"})["jobs"] == []
    since = listed(box, **{"from": failed["created_at"], "limit": 200})["jobs"]
    assert {failed["job_id"], done["job_id"]} <= {job["job_id"] for job in since}
    day = done["created_at"][:10]
    assert done["job_id"] in [job["job_id"] for job in listed(box, to=day, limit=200)["jobs"]]
    assert done["job_id"] in [job["job_id"] for job in listed(box, days=1, limit=200)["jobs"]]
    assert listed(box, days=1, **{"from": "2099-01-01"})["jobs"] == []


def test_a_list_is_filtered_by_name_and_in_any_order(box: Box) -> None:
    slow = box.run("sleep", "0.3", name="order-b")
    quick = box.run("true", name="order-a")
    other = box.run("true", name="[order]")
    assert numbers(listed(box, name="order-a")) == [quick["number"]]
    assert numbers(listed(box, name="order-?")) == [quick["number"], slow["number"]]
    assert numbers(listed(box, name="[order]*")) == [other["number"]]
    assert numbers(listed(box, name="order")) == []
    wanted = {
        "name": [quick, slow], "-name": [slow, quick], "duration": [slow, quick],
        "-duration": [quick, slow], "created": [quick, slow], "-created": [slow, quick],
        "finished": [quick, slow], "-finished": [slow, quick],
    }  # fmt: skip
    for sort, jobs in wanted.items():
        found = listed(box, name="order-*", sort=sort)
        assert numbers(found) == [job["number"] for job in jobs], sort
        first = listed(box, name="order-*", sort=sort, limit=1)
        second = listed(box, name="order-*", sort=sort, limit=1, after=first["next"])
        assert numbers(first) + numbers(second) == numbers(found), sort
        assert second["next"] is None


@pytest.mark.parametrize("route", ["jobs", "export"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=new", "status"), ("status=failed,", "status"), ("from=monday", "from"),
        ("to=2026-13-01", "to"), ("from=2026-02-30", "from"), ("from=2026-02-29", "from"),
        ("to=2026-01-01T25:00:00Z", "to"), ("from=-1", "from"), ("from=", "from"),
        ("days=0", "days"), ("days=-1", "days"), ("days=1.5", "days"), ("days=99999999", "days"),
        ("days=" + "9" * 5000, "days"), ("colour=red", "colour"), ("all=perhaps", "all"),
        ("sort=size", "sort"), ("sort=--name", "sort"), ("sort=name&sort=name", "sort"),
        ("name=", "name"), ("name=" + "x" * 256, "name"), ("user=", "user"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named(box: Box, route: str, query: str, field: str) -> None:
    assert problem(box.http.get(f"/v1/{route}?{query}"), 422, "invalid-value")["field"] == field


@pytest.mark.parametrize("route", ["jobs", "queue", "shares", "keys", "retention"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit"), ("limit=", "limit"),
        ("limit=" + "9" * 5000, "limit"), ("after=x", "after"), ("after=", "after"),
        ("after=" + "9" * 30, "after"), ("after=cd.1.-1", "after"), ("after=cd.1.%00", "after"),
        ("after=cd.1.1%0a", "after"), ("after=" + "c" * 5000, "after"),
    ],
)  # fmt: skip
def test_a_wrong_page_is_named(box: Box, route: str, query: str, field: str) -> None:
    refused = problem(box.http.get(f"/v1/{route}?{query}"), 422, "invalid-value")
    assert refused["field"] == field
    expected = {"after": "expected the next of a page", "limit": "expected a whole number"}
    assert expected[field] in refused["detail"]


@pytest.mark.parametrize(
    "after",
    ["zz.1.1", "nd.sYQ.1", "cd.n.1", "cd.sYQ.1", "cd.1.01", "cd.s_.1", "ca.1.1", "qw.1.1"],
)
def test_a_cursor_of_another_list_is_refused(box: Box, after: str) -> None:
    answer = box.http.get("/v1/jobs", params={"after": after})
    assert problem(answer, 409, "wrong-cursor")["field"] == "after"


def test_any_name_may_be_asked_for(box: Box) -> None:
    for name in ("'; DROP TABLE jobs; --", "%", "_", "[", "[a-", "*" * 200, "\x00", "ä€", "a\nb"):
        assert isinstance(listed(box, name=name)["jobs"], list), name


def test_others_jobs_are_root_s_to_list(shared: Box, ada: User) -> None:
    box, where = shared, shared.service.socket
    mine = ada.ask(where, "POST", "/v1/jobs", {"argv": ["true"], "name": "adas"}).json["job_id"]
    for route in ("/v1/jobs", "/v1/export"):
        for query in ("all=true", "user=root", "user=nobody"):
            assert ada.ask(where, "GET", f"{route}?{query}").status == 403, (route, query)
        assert b"adas" in ada.ask(where, "GET", f"{route}?user={ada.name}").body
        assert ada.ask(where, "GET", f"{route}?status=failed").status == 200
    assert mine not in json.dumps(listed(box, limit=200))
    assert [job["job_id"] for job in listed(box, user=ada.name)["jobs"]] == [mine]
    assert mine in json.dumps(listed(box, all="true", limit=200))
    assert listed(box, user="nobody-of-this-name")["jobs"] == []
    box.ended(mine)


# -- the queue ----------------------------------------------------------------------------------


def test_who_canceled_a_job_is_said(shared: Box, ada: User) -> None:
    box, where = shared, shared.service.socket
    for by in ("root", "its owner"):
        sleeping = {"argv": ["sleep", "100"], "cpus": 4}
        running, waiting = (
            ada.ask(where, "POST", "/v1/jobs", sleeping).json["job_id"] for _ in range(2)
        )
        box.reached(running, "running")
        for job in (waiting, running):
            path = f"/v1/jobs/{job}/cancel"
            if by == "root":
                box.http.post(path, json={"force": True})
            else:
                ada.ask(where, "POST", path, {"force": True})
        assert box.ended(waiting)["message"] == f"canceled by {by} before it started"
        assert box.ended(running)["message"] == f"canceled by {by}"
        events = box.status(running, detail=True)["events"]
        assert (events[-2]["status"], events[-2]["message"]) == ("canceling", f"by {by}")


def test_the_queue_is_everybodys_in_its_order(shared: Box, ada: User, tmp_path: Path) -> None:
    box = shared
    running = box.submit_waiting(tmp_path / "go", cpus=4, timeout="1h", name="first")
    ada.ask(box.service.socket, "POST", "/v1/jobs", {"argv": ["secret"], "cpus": 4, "name": "adas"})
    last = box.submit("true", cpus=4, priority="low")["job_id"]
    soon = box.submit("true", cpus=4, priority="high")["job_id"]
    answer = ada.ask(box.service.socket, "GET", "/v1/queue")
    queue = answer.json["jobs"]
    assert [job["job_id"] for job in queue[:2]] == [running, soon]
    assert queue[3]["job_id"] == last
    assert [job["is_mine"] for job in queue] == [False, False, True, False]
    assert [job["name"] for job in queue] == ["first", None, "adas", None]
    assert queue[0]["status"] == "running"
    assert queue[0]["since"] == queue[0]["started_at"]
    began = datetime.fromisoformat(queue[0]["started_at"])
    assert (datetime.fromisoformat(queue[0]["until"]) - began).total_seconds() == 3600
    assert all(job["waiting"] for job in queue[1:])
    assert b"secret" not in answer.body
    page = box.http.get("/v1/queue", params={"limit": 1}).json()
    pages = page["jobs"]
    while page["next"] is not None:
        page = box.http.get("/v1/queue", params={"limit": 1, "after": page["next"]}).json()
        pages += page["jobs"]
        assert len(pages) <= len(queue)
    assert [job["job_id"] for job in pages] == [job["job_id"] for job in queue]
    (tmp_path / "go").touch()
    for job in queue:
        box.ended(job["job_id"])
    assert box.http.get("/v1/queue").json() == {"jobs": [], "next": None}


# -- the export ---------------------------------------------------------------------------------


def exported(box: Box, **params: object) -> bytes:
    answer = box.http.get("/v1/export", params={key: str(value) for key, value in params.items()})
    assert answer.status_code == 200, answer.text
    return answer.content


def test_an_export_has_what_a_list_has(box: Box) -> None:
    job = box.run("true", name="exported")
    (one,) = json.loads(exported(box, name="exported"))
    assert one == job | {"command_line": "true"}
    (row,) = csv.DictReader(io.StringIO(exported(box, name="exported", format="csv").decode()))
    assert next(iter(row)) == "job_id"
    assert (row["job_id"], row["status"]) == (job["job_id"], "completed")
    assert row["finished_at"] == job["finished_at"]
    assert float(row["duration_s"]) >= 0
    assert row["signal"] == ""
    assert json.loads(exported(box, name="none of this name")) == []
    assert exported(box, name="none of this name", format="csv").count(b"\r\n") == 1
    answer = box.http.get("/v1/export?format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="jobs.csv"'
    assert problem(box.http.get("/v1/export?format=xls"), 422, "invalid-value")["field"] == "format"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", '=cmd|"/c calc"!A0', 'a,b"c'])
def test_a_name_runs_nothing_in_a_spreadsheet(box: Box, name: str) -> None:
    number = box.run("true", name=name)["number"]
    rows = list(csv.DictReader(io.StringIO(exported(box, format="csv", days=1).decode())))
    (cell,) = [row["name"] for row in rows if row["number"] == str(number)]
    assert cell == (name if name[0] == "a" else f"'{name}")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A daemon with a long history: jobs that were canceled while they waited."""
    with serving(tmp_path_factory.mktemp("long")) as box:
        gate = tmp_path_factory.mktemp("gate") / "go"
        box.submit_waiting(gate, cpus=4)
        body = b'{"argv": ["true"], "cpus": 4, "name": "one of very many jobs"}\n' * LONG
        answer = box.http.post(
            "/v1/jobs:batch", content=body, headers={"content-type": "application/x-ndjson"}
        )
        assert answer.json()["count"] == LONG
        yield box


@pytest.mark.parametrize("form", ["json", "csv"])
def test_memory_is_flat_while_much_is_exported(long: Box, form: str) -> None:
    exported(long, format=form, status="running")
    before = proc_numbers(long.service.pid, "smaps_rollup")["Pss"]
    count, rest = 0, b""
    with long.http.stream("GET", f"/v1/export?format={form}") as answer:
        for piece in answer.iter_raw():
            # A name can lie over the seam of two pieces.
            count += (rest + piece).count(b"very many")
            rest = (rest + piece)[-len(b"very man") :]
    assert count == LONG
    assert proc_numbers(long.service.pid, "smaps_rollup")["Pss"] - before < 16 * MIB


def test_who_does_not_read_his_export_costs_nothing_and_nobody(long: Box) -> None:
    before = proc_numbers(long.service.pid, "smaps_rollup")["Pss"]
    connections = [long.connect() for _ in range(10)]
    for sock in connections:
        sock.sendall(b"GET /v1/export HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    assert long.submit("true", cpus=4)["status"] == "pending"
    assert proc_numbers(long.service.pid, "smaps_rollup")["Pss"] - before < 32 * MIB
    for sock in connections:
        sock.close()
    assert long.http.get("/v1/jobs?limit=1").status_code == 200
