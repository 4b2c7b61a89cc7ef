"""What becomes of a job that is over: run again, kept longer, expired, deleted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.conftest import CONFIG, Box, Json, User, problem, serving
from tests.service import wait_for

DAY_S = 86400


def until(job: Json) -> float:
    """Return how many days after its end a job's results go."""
    span = datetime.fromisoformat(job["expires_at"]) - datetime.fromisoformat(job["finished_at"])
    return span.total_seconds() / DAY_S


# -- run again ----------------------------------------------------------------------------------


def test_a_job_runs_again_as_a_new_one(box: Box, tmp_path: Path) -> None:
    line = 'echo "$A $PWD"; cat; exit 3'
    (tmp_path / "in").write_text("input\n")
    first = box.shell(
        line, cwd=str(tmp_path), env={"A": "value"}, name="again", stdin=str(tmp_path / "in")
    )
    answer = box.http.post(f"/v1/jobs/{first['job_id']}/retry")
    assert answer.status_code == 201
    second = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{second['job_id']}"
    assert second["job_id"] != first["job_id"]
    assert (second["retry_of"], second["name"]) == (first["job_id"], "again")
    assert box.ended(second["job_id"])["exit_code"] == 3
    assert (
        box.log(second["job_id"])
        == box.log(first["job_id"])
        == f"value {tmp_path}\ninput\n".encode()
    )
    assert box.status(first["job_id"])["retry_of"] is None


def test_a_job_that_is_not_over_is_not_run_again(box: Box, tmp_path: Path) -> None:
    job = box.submit_waiting(tmp_path / "go")
    before = box.status("@")["number"]
    document = problem(box.http.post(f"/v1/jobs/{job}/retry"), 409, "wrong-state")
    assert document["state"] == "running"
    assert box.status("@")["number"] == before
    (tmp_path / "go").touch()
    box.ended(job)


# -- delete -------------------------------------------------------------------------------------


def test_a_deleted_job_leaves_every_list_and_the_disk(box: Box) -> None:
    job = box.shell("head -c 1000000 /dev/zero; echo secret", name="to-delete")
    job_id, package = job["job_id"], box.package(job["job_id"])
    counted = box.http.get("/v1/stats").json()["total"]
    answer = box.http.delete(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    gone = answer.json()
    assert (gone["job_id"], gone["deleted"]) == (job_id, True)
    assert gone["freed_bytes"] >= 1_000_000
    assert gone["remaining_bytes"] == 0
    assert not package.exists()
    for ref in (job_id, str(job["number"])):
        for path in ("", "?detail=true", "/events", "/logs/stdout", "/download", "/checksums"):
            problem(box.http.get(f"/v1/jobs/{ref}{path}"), 404, "no-such-job")
        for path in ("/retry", "/keep", "/cancel", "/verify"):
            problem(box.http.post(f"/v1/jobs/{ref}{path}"), 404, "no-such-job")
        problem(box.http.delete(f"/v1/jobs/{ref}"), 404, "no-such-job")
    for path in ("/v1/jobs?limit=200", "/v1/export", "/v1/queue", "/v1/retention?limit=200"):
        assert job_id not in box.http.get(path).text, path
    assert box.http.get("/v1/jobs?name=to-delete").json()["jobs"] == []
    assert box.http.get("/v1/stats").json()["total"] == counted


def test_a_job_that_is_not_over_is_not_deleted(box: Box, tmp_path: Path) -> None:
    running = box.submit_waiting(tmp_path / "go", cpus=4)
    pending = box.submit("true", cpus=4)["job_id"]
    for job, state in ((running, "running"), (pending, "pending")):
        document = problem(box.http.delete(f"/v1/jobs/{job}"), 409, "wrong-state")
        assert document["state"] == state
        assert "aitbcctl cancel" in document["hint"]
        assert box.status(job)["status"] == state
    (tmp_path / "go").touch()
    box.ended(running)
    box.ended(pending)


def test_what_is_downloaded_outlives_its_deletion(box: Box, tmp_path: Path) -> None:
    line = "head -c 30000000 /dev/urandom > big"
    job = box.shell(line, cwd=str(tmp_path), artifacts=["big"])["job_id"]
    package = box.package(job)
    with box.http.stream("GET", f"/v1/jobs/{job}/download") as answer:
        pieces = answer.iter_raw(1 << 20)
        got = len(next(pieces))
        deleted = box.http.delete(f"/v1/jobs/{job}").json()
        assert (deleted["deleted"], deleted["freed_bytes"]) == (True, 0)
        assert deleted["remaining_bytes"] > 30_000_000
        problem(box.http.get(f"/v1/jobs/{job}"), 404, "no-such-job")
        got += sum(len(piece) for piece in pieces)
        assert got == int(answer.headers["content-length"])
    wait_for("it is removed", lambda: not package.exists(), log=box.service.log)


def test_only_its_owner_and_root_end_a_job_s_life(shared: Box, ada: User, bob: User) -> None:
    where = shared.service.socket
    job = ada.ask(where, "POST", "/v1/jobs", {"argv": ["true"]}).json["job_id"]
    shared.ended(job)
    for method, path in (("DELETE", ""), ("POST", "/retry"), ("POST", "/keep")):
        assert bob.ask(where, method, f"/v1/jobs/{job}{path}").status == 404
    again = shared.http.post(f"/v1/jobs/{job}/retry").json()
    assert again["user"] == ada.name
    shared.ended(again["job_id"])
    assert shared.http.delete(f"/v1/jobs/{job}").status_code == 200
    assert ada.ask(where, "DELETE", f"/v1/jobs/{again['job_id']}").status == 200


# -- keep and expire ----------------------------------------------------------------------------


def keep(box: Box, job: str, when: object = None) -> Json:
    answer = box.http.post(f"/v1/jobs/{job}/keep", json={"until": when})
    assert answer.status_code == 200, answer.text
    kept: Json = answer.json()
    return kept


def test_results_are_kept_as_long_as_the_plan_allows(box: Box) -> None:
    job = box.run("true")
    assert until(job) == pytest.approx(7, abs=0.01)
    assert keep(box, job["job_id"])["expires_at"] >= job["expires_at"]
    later = datetime.now(UTC) + timedelta(days=9)
    for when in (later.isoformat(), f"{later:%Y-%m-%d}", "2099-01-01", "9999-12-31"):
        answer = box.http.post(f"/v1/jobs/{job['job_id']}/keep", json={"until": when})
        assert "free" in problem(answer, 403, "forbidden")["detail"], when
    for when in ("2000-01-01", "0001-01-01T00:00:00Z"):
        answer = box.http.post(f"/v1/jobs/{job['job_id']}/keep", json={"until": when})
        assert "already" in problem(answer, 409, "wrong-state")["detail"], when
    canceled = box.submit("sleep", "100", cpus=4)["job_id"]
    box.http.post(f"/v1/jobs/{canceled}/cancel", json={"force": True})
    assert until(box.ended(canceled)) == pytest.approx(7, abs=0.01)


@pytest.mark.parametrize(
    "when", ["2026-02-30", "tomorrow", "", "2026-01-01T25:00:00Z", 7, True, "9" * 5000]
)
def test_a_wrong_time_to_keep_is_named(box: Box, when: object) -> None:
    job = box.run("true")
    answer = box.http.post(f"/v1/jobs/{job['job_id']}/keep", json={"until": when})
    assert problem(answer, 422, "invalid-value")["field"] == "until"
    assert box.status(job["job_id"])["expires_at"] == job["expires_at"]


def test_what_expired_says_so(tmp_path: Path) -> None:
    config = CONFIG + '[plans.free]\nretention = "2s"\nkeep = "1d"\n'
    with serving(tmp_path / "daemon", config) as box:
        kept = box.run("echo", "kept")["job_id"]
        expires_at = keep(box, kept)["expires_at"]
        left = datetime.fromisoformat(expires_at) - datetime.now(UTC)
        assert left.total_seconds() == pytest.approx(DAY_S, abs=120)
        job = box.run("true")
        package = Path(job["result_path"])

        def expired() -> bool:
            return bool(box.status(job["job_id"])["results"] == "expired")

        wait_for("it expires", expired, log=box.service.log)
        wait_for("it is removed", lambda: not package.exists(), log=box.service.log)
        assert box.status(job["job_id"])["result_path"] is None
        for path in (
            *("download", "checksums", "result", "files/result.txt"),
            *("logs/stdout", "logs/stderr?follow=true"),
        ):
            answer = box.http.get(f"/v1/jobs/{job['job_id']}/{path}")
            document = problem(answer, 409, "no-results")
            assert f"expired at {job['expires_at']}" in document["detail"]
        problem(box.http.post(f"/v1/jobs/{job['job_id']}/verify"), 409, "no-results")
        problem(box.http.post(f"/v1/jobs/{job['job_id']}/keep"), 409, "wrong-state")
        upcoming = box.http.get("/v1/retention").json()
        assert upcoming["stopped"] is None
        assert [each["job_id"] for each in upcoming["jobs"]] == [kept]
        assert upcoming["jobs"][0]["expires_at"] == expires_at
        assert upcoming["jobs"][0]["result_bytes"] > 0


def test_what_expires_next_is_paged_and_one_s_own(shared: Box, ada: User) -> None:
    where = shared.service.socket
    mine = [shared.run("true")["job_id"] for _ in range(3)]
    hers = ada.ask(where, "POST", "/v1/jobs", {"argv": ["true"]}).json["job_id"]
    shared.ended(hers)
    found, after = [], None
    while True:
        query = {"limit": 1} | ({"after": after} if after else {})
        page = shared.http.get("/v1/retention", params=query).json()
        found += [job["job_id"] for job in page["jobs"]]
        after = page["next"]
        if after is None:
            break
        assert len(found) < 100
    assert found[-3:] == mine
    assert [job["job_id"] for job in ada.ask(where, "GET", "/v1/retention").json["jobs"]] == [hers]
    assert hers in shared.http.get("/v1/retention?all=true&limit=200").text
    assert ada.ask(where, "GET", "/v1/retention?all=true").status == 403
    assert ada.ask(where, "POST", "/v1/retention/resume").status == 403
    assert shared.http.post("/v1/retention/resume").json() == {"stopped": None}
    problem(shared.http.get("/v1/retention?after=cd.1.1"), 409, "wrong-cursor")
    problem(shared.http.get("/v1/retention?after=x"), 422, "invalid-value")
