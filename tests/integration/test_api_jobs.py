"""Every route of the API against a real daemon: what is asked, and what is answered."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from aitbcd.api.ticking import PAUSE_S
from tests.integration.conftest import CONFIG, WAIT, Box, Json, User, problem, serving, tcp_of
from tests.service import wait_for

WHOLE_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
MICROSECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
#: The specification's example, and what we add to it.
ALWAYS = [
    "job_id", "status", "progress", "miner_id", "created_at", "started_at", "estimated_completion",
    "number", "name", "user", "attempt", "waiting", "gpu_uuids", "retry_of", "charge", "currency",
]  # fmt: skip
WHEN_OVER = [
    "finished_at", "exit_code", "signal", "reason", "cause", "advice", "message", "expires_at",
    "result_path", "results",
]  # fmt: skip


def b64(raw: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(raw).decode()}


def ndjson(*jobs: object) -> bytes:
    return b"".join(json.dumps(job).encode() + b"\n" for job in jobs)


def send_lines(box: Box, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/x-ndjson"}
    return box.http.post("/v1/jobs:batch", content=body, headers=headers)


# -- submit and status --------------------------------------------------------------------------


def test_the_status_has_the_fields_and_formats_of_the_specification(
    box: Box, tmp_path: Path
) -> None:
    line = f'echo 45 > "$AITBC_PROGRESS"; {WAIT}'
    answer = box.http.post(
        "/v1/jobs", json={"argv": ["sh", "-c", line, "sh", str(tmp_path / "go")], "name": "resnet"}
    )
    assert answer.status_code == 201
    created = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{created['job_id']}"
    assert answer.headers["content-type"] == "application/json"
    assert list(created) == ALWAYS
    assert created["status"] in ("pending", "assigned")
    assert (created["progress"], created["started_at"]) == (0, None)

    def reported() -> Json | None:
        job = box.status(created["job_id"])
        return job if job["progress"] else None

    job = wait_for("progress is reported", reported)
    assert list(job) == ALWAYS
    assert re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{8}", job["job_id"])
    assert re.fullmatch(r"miner_[0-9a-hjkmnp-tv-z]{8}", job["miner_id"])
    assert (job["status"], job["progress"], job["attempt"]) == ("running", 45, 1)
    assert type(job["progress"]) is int
    for name in ("created_at", "started_at", "estimated_completion"):
        assert WHOLE_SECONDS.fullmatch(job[name]), name
    assert (job["name"], job["waiting"], job["gpu_uuids"]) == ("resnet", None, [])

    (tmp_path / "go").touch()
    over = box.ended(job["job_id"])
    assert list(over) == ALWAYS + WHEN_OVER
    assert (over["status"], over["progress"], over["exit_code"]) == ("completed", 100, 0)
    assert (over["signal"], over["reason"], over["results"]) == (None, None, "kept")
    assert WHOLE_SECONDS.fullmatch(over["finished_at"])
    assert Path(over["result_path"]).is_dir()


def test_a_job_is_found_by_id_number_prefix_and_as_the_latest(box: Box) -> None:
    job = box.run("true")
    letters = job["job_id"].removeprefix("job_")
    for ref in (job["job_id"], letters, str(job["number"]), letters[:7], job["job_id"][:11], "@"):
        assert box.status(ref)["job_id"] == job["job_id"], ref


def test_detail_adds_the_command_the_attempts_and_the_events(box: Box, tmp_path: Path) -> None:
    job = box.run(
        "printf", b64(b"\xff"), cwd=str(tmp_path), env={"SECRET": "hunter2"}, cpus=2,
        memory="64M", timeout="1h", priority="high", artifacts=["*.bin"], umask="0027",
    )  # fmt: skip
    text = box.http.get(f"/v1/jobs/{job['job_id']}?detail=true").text
    detail = json.loads(text)
    assert "hunter2" not in text
    assert detail["command"] == ["printf", b64(b"\xff")]
    assert (detail["shell"], detail["cwd"], detail["umask"]) == (False, str(tmp_path), "0027")
    assert detail["env_names"] == ["SECRET"]
    assert detail["requested"] == {
        "cpus": 2, "memory": 64 << 20, "gpus": 0, "timeout_s": 3600.0, "priority": "high",
        "retries": 0, "artifacts": ["*.bin"], "gpu_type": None, "min_vram": None, "gpu": [],
        "vram": None,
    }  # fmt: skip
    (attempt,) = detail["attempts"]
    assert attempt["attempt"] == 1
    assert attempt["exit_code"] == 0
    assert attempt["user_s"] + attempt["system_s"] > 0
    assert [event["status"] for event in detail["events"]] == [
        "pending", "assigned", "running", "completed",
    ]  # fmt: skip
    times = [attempt[name] for name in ("assigned_at", "started_at", "finished_at")]
    assert all(MICROSECONDS.fullmatch(time) for time in times)
    assert times == sorted(times)
    sealed = box.package(job["job_id"]) / "output.sha256"
    found = subprocess.run(["sha256sum", sealed], capture_output=True, text=True, check=True)
    assert found.stdout.split()[0] == detail["manifest_sha256"]
    assert detail["result_files"] > 0
    assert detail["result_bytes"] > 0


def test_argv_runs_as_it_is_and_command_in_a_shell(box: Box) -> None:
    raw = bytes(range(1, 256))
    argv = box.run("printf", "%s|", "a b", "$HOME", "*", "ä", b64(raw))
    assert box.log(argv["job_id"]) == "a b|$HOME|*|ä|".encode() + raw + b"|"
    job = box.submit(command="echo $((6 * 7)) | cat; exit 3")
    over = box.ended(job["job_id"])
    assert (over["status"], over["exit_code"], over["reason"]) == ("failed", 3, "exit")
    assert box.log(job["job_id"]) == b"42\n"
    assert box.status(job["job_id"], detail=True)["shell"] is True


def test_env_adds_to_the_plain_base_and_environment_takes_its_place(box: Box) -> None:
    plain = box.run("/usr/bin/env", env=["A=1", b64(b"B=\xff"), "A=2"])
    lines = box.log(plain["job_id"]).splitlines()
    assert {b"A=2", b"B=\xff"} <= set(lines)
    names = {line.partition(b"=")[0] for line in lines}
    assert {b"HOME", b"USER", b"LOGNAME", b"SHELL", b"LANG", b"PATH"} <= names
    assert b"AITBC_JOB_ID=" + plain["job_id"].encode() in lines

    whole = box.run("/usr/bin/env", environment={"X": "1", "Y": b64(b"\xfe")}, env={"X": "2"})
    lines = box.log(whole["job_id"]).splitlines()
    ours = (b"AITBC_", b"CUDA_")
    assert {line for line in lines if not line.startswith(ours)} == {b"X=2", b"Y=\xfe"}


def test_cwd_umask_and_stdin_are_the_job_s(box: Box, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/w\xff"))
    folder.mkdir()
    (folder / "in").write_bytes(b"\x00\xffinput")
    job = box.shell(
        "pwd; umask; cat; touch made", cwd=b64(os.fsencode(folder)), umask="0077",
        stdin=b64(os.fsencode(folder / "in")),
    )  # fmt: skip
    assert box.log(job["job_id"]) == os.fsencode(folder) + b"\n0077\n\x00\xffinput"
    assert (folder / "made").stat().st_mode & 0o777 == 0o600
    empty = box.shell("umask; cat; echo end")
    assert box.log(empty["job_id"]) == b"0022\nend\n"


def test_artifacts_are_collected_from_the_working_directory(box: Box, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    job = box.shell(
        "echo m > model.bin; echo x > deep/x.json; echo no > other",
        cwd=str(tmp_path), artifacts=["*.bin", "deep/*.json", "none*"],
    )  # fmt: skip
    assert job["status"] == "completed"
    folder = box.package(job["job_id"]) / "artifacts"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"model.bin", "deep/x.json"}


def test_a_higher_priority_starts_first_and_equals_in_their_order(box: Box, tmp_path: Path) -> None:
    first = box.submit_waiting(tmp_path / "go", cpus=4)
    asked = ["low", "normal", "high", "normal", "high"]
    jobs = [box.submit("true", cpus=4, priority=priority)["job_id"] for priority in asked]
    waiting = box.status(jobs[0])
    assert waiting["status"] == "pending"
    assert waiting["waiting"]
    (tmp_path / "go").touch()
    for job in (first, *jobs):
        assert box.ended(job)["status"] == "completed"
    details = [box.status(job, detail=True) for job in jobs]
    started = sorted(details, key=lambda job: job["attempts"][0]["assigned_at"])
    assert [jobs.index(job["job_id"]) for job in started] == [2, 4, 1, 3, 0]


def test_memory_is_shared_like_cores(box: Box, tmp_path: Path) -> None:
    first = box.submit_waiting(tmp_path / "go", memory="5G")
    second = box.submit("true", memory="5G")["job_id"]
    assert "memory" in box.status(second)["waiting"]
    (tmp_path / "go").touch()
    assert box.ended(first)["status"] == box.ended(second)["status"] == "completed"
    answer = box.http.post("/v1/jobs", json={"argv": ["true"], "memory": "9G"})
    assert problem(answer, 409, "not-satisfiable")["field"] == "memory"


def test_a_failed_attempt_is_repeated_as_often_as_asked(box: Box, tmp_path: Path) -> None:
    line = "echo $AITBC_ATTEMPT >> tries; test $AITBC_ATTEMPT = 3"
    job = box.shell(line, cwd=str(tmp_path), retries=5)
    assert (job["status"], job["attempt"]) == ("completed", 3)
    assert (tmp_path / "tries").read_text() == "1\n2\n3\n"
    detail = box.status(job["job_id"], detail=True)
    assert [attempt["exit_code"] for attempt in detail["attempts"]] == [1, 1, 0]
    assert box.shell("exit 7", retries=1)["attempt"] == 2


def test_a_job_past_its_time_is_ended(box: Box) -> None:
    job = box.run("sleep", "1000", timeout="300ms")
    assert (job["status"], job["reason"]) == ("failed", "timeout")


def test_a_command_that_cannot_start_says_so_in_the_system_s_words(box: Box) -> None:
    job = box.run("/no/such/program")
    assert (job["status"], job["reason"]) == ("failed", "cannot_start")
    assert "No such file or directory" in job["message"]
    assert b"No such file or directory" in box.log(job["job_id"], "stderr")


WRONG: list[tuple[Json, str]] = [
    ({}, "argv"),
    ({"argv": []}, "argv"),
    ({"argv": [""]}, "argv"),
    ({"argv": "ls"}, "argv"),
    ({"argv": ["a\0b"]}, "argv"),
    ({"argv": [1]}, "argv"),
    ({"argv": [{"b64": "?"}]}, "argv"),
    ({"argv": ["a"], "command": "b"}, "command"),
    ({"command": " "}, "command"),
    ({"argv": ["a"], "cwd": "here"}, "cwd"),
    ({"argv": ["a"], "stdin": "in"}, "stdin"),
    ({"argv": ["a"], "env": ["X"]}, "env"),
    ({"argv": ["a"], "env": {"X=": "1"}}, "env"),
    ({"argv": ["a"], "env": {"X": 1}}, "env.X"),
    ({"argv": ["a"], "environment": "X=1"}, "environment"),
    ({"argv": ["a"], "cpus": 0}, "cpus"),
    ({"argv": ["a"], "cpus": "2"}, "cpus"),
    ({"argv": ["a"], "cpus": True}, "cpus"),
    ({"argv": ["a"], "memory": "much"}, "memory"),
    ({"argv": ["a"], "timeout": 0}, "timeout"),
    ({"argv": ["a"], "timeout": "1h", "timeout_seconds": 60}, "timeout_seconds"),
    ({"argv": ["a"], "priority": "urgent"}, "priority"),
    ({"argv": ["a"], "retries": -1}, "retries"),
    ({"argv": ["a"], "umask": 18}, "umask"),
    ({"argv": ["a"], "umask": "0888"}, "umask"),
    ({"argv": ["a"], "artifacts": "*"}, "artifacts"),
    ({"argv": ["a"], "name": ""}, "name"),
    ({"argv": ["a"], "name": "two\nlines"}, "name"),
    ({"argv": ["a"], "gpus": 0, "gpu_type": "h200"}, "gpu_type"),
    ({"argv": ["a"], "gpus": 0, "min_vram": "40G"}, "min_vram"),
    ({"argv": ["a"], "requirements": {"gpu": 1}}, "requirements.gpu"),
    ({"argv": ["a"], "colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("job", "field"), WRONG, ids=[json.dumps(job) for job, _ in WRONG])
def test_a_wrong_description_is_refused_with_the_field(box: Box, job: Json, field: str) -> None:
    document = problem(box.http.post("/v1/jobs", json=job), 422, "invalid-job")
    assert document["field"] == field
    assert field.rpartition(".")[2] in document["detail"] or field == "argv"


@pytest.mark.parametrize(
    "wish",
    [
        {"gpus": 1},
        {"gpu_type": "h200"},
        {"min_vram": "40G"},
        {"requirements": {"gpu_count": 2, "min_vram_gb": 40}},
        {"cpus": 5},
    ],
)
def test_what_this_machine_can_never_do_is_refused(box: Box, wish: Json) -> None:
    answer = box.http.post("/v1/jobs", json={"argv": ["true"], **wish})
    document = problem(answer, 409, "not-satisfiable")
    assert (
        "this machine has no GPUs" in document["detail"]
        or "jobs share 4 here" in document["detail"]
    )


# -- batches ------------------------------------------------------------------------------------


def test_a_batch_of_lines_is_submitted_in_its_order(box: Box) -> None:
    jobs = [{"argv": ["echo", str(number)]} for number in range(20)]
    answer = send_lines(box, ndjson(*jobs[:10]) + b"\n" + ndjson(*jobs[10:]).rstrip())
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["count"] == 20
    numbers = [job["number"] for job in made["jobs"]]
    assert numbers == list(range(numbers[0], numbers[0] + 20))
    for number, job in enumerate(made["jobs"]):
        assert box.ended(job["job_id"])["number"] == job["number"]
        assert box.log(job["job_id"]) == b"%d\n" % number


def test_the_object_form_has_defaults(box: Box, tmp_path: Path) -> None:
    body = {
        "defaults": {"cwd": str(tmp_path), "env": {"A": "1"}, "priority": "high"},
        "jobs": [{"command": "pwd; echo $A"}, {"command": "pwd", "cwd": "/", "priority": "low"}],
    }
    answer = box.http.post("/v1/jobs:batch", json=body)
    assert answer.status_code == 201, answer.text
    first, second = (job["job_id"] for job in answer.json()["jobs"])
    assert box.ended(first)["status"] == box.ended(second)["status"] == "completed"
    assert box.log(first) == f"{tmp_path}\n1\n".encode()
    assert box.log(second) == b"/\n"
    assert box.status(second, detail=True)["requested"]["priority"] == "low"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (ndjson({"argv": ["true"]}, {"argv": ["true"]}), ""),
        (b'{"jobs": [{"argv": ["true"]},\n {"argv": ["true"]}]}', ""),
        (ndjson({"argv": ["true"]}, {"argv": ["true"]}), "application/jsonl; charset=utf-8"),
    ],
)
def test_the_form_is_found_out_where_the_type_does_not_say(
    box: Box, body: bytes, kind: str
) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = box.http.post("/v1/jobs:batch", content=body, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.json()["count"] == 2


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        (b'{"argv": []}', 422, "invalid-job"),
        (b'{"argv": ["a"', 400, "bad-request"),
        (b'{"argv": ["\xff"]}', 400, "bad-request"),
        (b'{"argv": ["a"], "cpus": 99}', 409, "not-satisfiable"),
        (b"[1]", 422, "invalid-job"),
    ],
)
def test_one_wrong_line_refuses_all_and_is_named(
    box: Box, line: bytes, status: int, code: str
) -> None:
    before = box.run("true")["number"]
    # Enough before it that some pieces have been stored by then.
    body = ndjson(*[{"argv": ["true"]}] * 1999) + line + b"\n" + ndjson({"argv": ["true"]})
    document = problem(send_lines(box, body), status, code)
    assert document["line"] == 2000
    assert "line 2000" in document["detail"]
    assert box.submit("true")["number"] == before + 1


def test_one_wrong_job_of_the_object_form_is_named(box: Box) -> None:
    before = box.run("true")["number"]
    jobs: list[Json] = [{"argv": ["true"]}, {"argv": ["true"]}, {"argv": ["x"], "colour": 1}]
    document = problem(box.http.post("/v1/jobs:batch", json={"jobs": jobs}), 422, "invalid-job")
    assert (document["index"], document["field"]) == (2, "colour")
    assert document["detail"].startswith("jobs[2]: ")
    good = jobs[:1]
    wrong: list[Json] = [
        {"jobs": 1}, {"jobs": good, "more": 1}, {"defaults": {"colour": 1}, "jobs": good},
    ]  # fmt: skip
    for body in wrong:
        problem(box.http.post("/v1/jobs:batch", json=body), 422, "invalid-job")
    for empty in (send_lines(box, b""), send_lines(box, b"\n\n")):
        problem(empty, 422, "invalid-job")
    problem(box.http.post("/v1/jobs:batch", json={"jobs": []}), 422, "invalid-job")
    assert box.submit("true")["number"] == before + 1


# -- cancel -------------------------------------------------------------------------------------


def cancel(box: Box, job: str, **body: object) -> httpx.Response:
    return box.http.post(f"/v1/jobs/{job}/cancel", json=body or None)


def test_a_pending_job_is_canceled_at_once(box: Box, tmp_path: Path) -> None:
    first = box.submit_waiting(tmp_path / "go", cpus=4)
    waiting = box.submit("true", cpus=4)["job_id"]
    canceled = cancel(box, waiting).json()
    assert (canceled["status"], canceled["reason"], canceled["results"]) == (
        "canceled", "canceled", "none",
    )  # fmt: skip
    assert canceled["result_path"] is None
    problem(box.http.get(f"/v1/jobs/{waiting}/download"), 409, "no-results")
    problem(box.http.get(f"/v1/jobs/{waiting}/logs/stdout"), 404, "no-such-file")
    (tmp_path / "go").touch()
    box.ended(first)


def test_a_running_job_gets_sigterm_and_may_end_by_itself(box: Box) -> None:
    line = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.02; done"
    job = box.submit("sh", "-c", line)["job_id"]
    wait_for("it is ready", lambda: box.log(job))
    answer = cancel(box, job)
    assert answer.status_code == 200
    assert answer.json()["status"] in ("canceling", "canceled")
    over = box.ended(job)
    assert (over["status"], over["exit_code"], over["results"]) == ("canceled", 5, "kept")
    assert box.log(job) == b"ready\nbye\n"
    document = problem(cancel(box, job), 409, "wrong-state")
    assert document["state"] == "canceled"


def test_force_gives_no_grace(tmp_path: Path) -> None:
    config = CONFIG.replace('"1s"', '"1000d"')
    with serving(tmp_path, config) as box:
        job = box.submit("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.02; done")
        wait_for("it is ready", lambda: box.log(job["job_id"]))
        assert cancel(box, job["job_id"]).json()["status"] == "canceling"
        assert cancel(box, job["job_id"], force=True).status_code == 200
        over = box.ended(job["job_id"])
        assert (over["status"], over["signal"]) == ("canceled", 9)


def test_a_wrong_cancel_is_refused(box: Box) -> None:
    job = box.run("true")["job_id"]
    assert problem(cancel(box, job, force=True), 409, "wrong-state")["state"] == "completed"
    assert problem(cancel(box, job, forse=True), 422, "invalid-value")["field"] == "forse"
    problem(box.http.post(f"/v1/jobs/{job}/cancel", json=[]), 400, "bad-request")
    assert problem(cancel(box, job, force="yes"), 422, "invalid-value")["field"] == "force"
    problem(box.http.post(f"/v1/jobs/{job}/cancel", content=b"{"), 400, "bad-request")


# -- events -------------------------------------------------------------------------------------


def test_events_tell_each_step_once(box: Box) -> None:
    job = box.run("false")["job_id"]
    found = box.http.get(f"/v1/jobs/{job}/events").json()
    assert found["next"] is None
    events = found["events"]
    assert [event["status"] for event in events] == ["pending", "assigned", "running", "failed"]
    seqs = [event["seq"] for event in events]
    assert seqs == sorted(set(seqs))
    assert all(MICROSECONDS.fullmatch(event["time"]) for event in events)
    assert (events[-1]["reason"], events[-1]["attempt"]) == ("exit", 1)
    assert {event["job_id"] for event in events} == {job}
    later = box.http.get(f"/v1/jobs/{job}/events", params={"since": seqs[1]}).json()["events"]
    assert later == events[2:]


def _has_passed(moment: float) -> bool:
    return time.time() > moment


def test_progress_after_a_pause_is_not_kept_back(box: Box, tmp_path: Path) -> None:
    line = (
        'for n in 1 2 3 4; do until test -e "$1.$n"; do sleep 0.01; done; '
        'echo "${n}0" >"$AITBC_PROGRESS"; touch "$1.at.$n"; done; '
        'until test -e "$1.5"; do sleep 0.01; done'
    )
    gate = tmp_path / "go"
    job = box.submit("/bin/sh", "-c", line, "sh", str(gate))["job_id"]
    delays = []
    events = f"/v1/jobs/{job}/events?follow=true"
    with box.http.stream("GET", events) as answer:
        Path(f"{gate}.1").touch()
        for seen in map(json.loads, answer.iter_lines()):
            if "progress" not in seen:
                continue
            number, now = seen["progress"] // 10, time.time()
            wrote = Path(f"{gate}.at.{number}")
            wait_for("it says when it wrote", wrote.exists)
            delays.append(now - wrote.stat().st_mtime)
            # As slow as a job of which each step takes longer than the time between two messages.
            wait_for("the pause is over", partial(_has_passed, now + PAUSE_S))
            Path(f"{gate}.{number + 1}").touch()
            if number == 4:
                break
    assert min(delays[1:]) < PAUSE_S
    box.ended(job)


def test_following_events_gives_the_old_the_new_and_the_progress(box: Box, tmp_path: Path) -> None:
    second = WAIT.replace("$1", "$2")
    line = f'echo 10 > "$AITBC_PROGRESS"; {WAIT}; echo 60 >> "$AITBC_PROGRESS"; {second}'
    gates = [tmp_path / "one", tmp_path / "two"]
    job = box.submit("sh", "-c", line, "sh", *map(str, gates))["job_id"]
    seen: list[Json] = []
    url = f"/v1/jobs/{job}/events?follow=true"
    with box.http.stream("GET", url) as answer:
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        for text in answer.iter_lines():
            seen.append(json.loads(text))
            if seen[-1].get("progress") in (10, 60):
                gates.pop(0).touch()
    assert [line["status"] for line in seen if "status" in line] == [
        "pending", "assigned", "running", "completed",
    ]  # fmt: skip
    progress = [line for line in seen if "progress" in line]
    assert [line["progress"] for line in progress] == [10, 60]
    assert all("seq" not in line and line["job_id"] == job for line in progress)
    assert seen[-1]["status"] == "completed"


# -- logs ---------------------------------------------------------------------------------------


def test_a_log_is_given_whole_in_ranges_and_by_its_tail(box: Box) -> None:
    job = box.shell("seq 1 1000; echo wrong >&2")["job_id"]
    whole = b"".join(b"%d\n" % number for number in range(1, 1001))
    url = f"/v1/jobs/{job}/logs/stdout"
    answer = box.http.get(url)
    assert answer.content == whole
    assert answer.headers["content-length"] == str(len(whole))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert box.log(job, "stderr") == b"wrong\n"
    for spec, part in (
        ("bytes=0-4", whole[:5]), ("bytes=10-", whole[10:]), ("bytes=-7", whole[-7:]),
        ("bytes=3-999999", whole[3:]),
    ):  # fmt: skip
        answer = box.http.get(url, headers={"range": spec})
        assert (answer.status_code, answer.content) == (206, part), spec
        assert answer.headers["content-range"].endswith(f"/{len(whole)}")
    for ignored in ("bytes=1-2,4-5", "lines=1-2", "bytes=5-2", "bytes=x-"):
        answer = box.http.get(url, headers={"range": ignored})
        assert (answer.status_code, answer.content) == (200, whole), ignored
    beyond = box.http.get(url, headers={"range": "bytes=999999-"})
    problem(beyond, 416, "bad-range")
    assert beyond.headers["content-range"] == f"bytes */{len(whole)}"
    assert box.http.get(url, params={"tail": 2}).content == b"999\n1000\n"
    assert box.http.get(url, params={"tail": 0}).content == b""
    assert box.http.get(url, params={"tail": 5000}).content == whole
    assert box.http.get(url, params={"offset": len(whole) - 5}).content == whole[-5:]
    assert box.http.get(url, params={"offset": 10**9}).content == b""
    last = {"tail": 2, "offset": len(whole) - 3}
    assert box.http.get(url, params=last).content == whole[-3:]
    assert box.http.get(url, params={"tail": 1, "offset": 1}).content == b"1000\n"
    problem(box.http.get(f"/v1/jobs/{job}/logs/stdin"), 404, "no-such-file")
    head = box.http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole))


def test_following_a_log_begins_while_the_job_is_pending(box: Box, tmp_path: Path) -> None:
    first = box.submit_waiting(tmp_path / "go", cpus=4)
    line = 'for i in 1 2 3; do printf "$i "; until test -e "$1$i"; do sleep 0.02; done; done'
    job = box.submit("sh", "-c", line, "sh", str(tmp_path / "gate"), cpus=4)["job_id"]
    assert box.log(job) == b""
    got = b""
    with box.http.stream("GET", f"/v1/jobs/{job}/logs/stdout?follow=true") as answer:
        assert box.status(job)["status"] == "pending"
        (tmp_path / "go").touch()
        for piece in answer.iter_raw():
            got += piece
            # Each is sent while the job waits for its having been sent.
            (tmp_path / f"gate{len(got) // 2}").touch()
    assert got == b"1 2 3 "
    assert box.ended(first)["status"] == "completed"


def test_following_starts_at_an_offset_or_a_tail(box: Box, tmp_path: Path) -> None:
    line = f"seq 1 5; {WAIT}; echo end"
    job = box.submit("sh", "-c", line, "sh", str(tmp_path / "go"))["job_id"]
    wait_for("it wrote", lambda: box.log(job) == b"1\n2\n3\n4\n5\n")
    got: dict[str, bytes] = {}

    def follow(query: str) -> None:
        url = f"/v1/jobs/{job}/logs/stdout?follow=true&{query}"
        with box.http.stream("GET", url) as answer:
            for piece in answer.iter_raw():
                got[query] = got.get(query, b"") + piece

    wanted = {"offset=8": b"5\nend\n", "tail=2": b"4\n5\nend\n"}
    threads = [Thread(target=follow, args=(query,)) for query in wanted]
    for thread in threads:
        thread.start()
    wait_for("they follow", lambda: len(got) == 2)
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join()
    assert got == wanted


def test_followers_of_a_repeated_job_see_all_its_attempts(box: Box, tmp_path: Path) -> None:
    line = f"echo try $AITBC_ATTEMPT; test $AITBC_ATTEMPT = 2 || {{ {WAIT}; exit 1; }}"
    job = box.submit("sh", "-c", line, "sh", str(tmp_path / "go"), retries=1)["job_id"]
    with box.http.stream("GET", f"/v1/jobs/{job}/logs/stdout?follow=true") as answer:
        got = b""
        for piece in answer.iter_raw():
            got += piece
            (tmp_path / "go").touch()
    assert got == b"try 1\ntry 2\n"


def test_a_log_past_its_limit_keeps_its_ends_for_all_who_read_it(tmp_path: Path) -> None:
    config = CONFIG + 'log_limit = "64K"\n'
    with serving(tmp_path / "daemon", config) as box:
        line = f"seq -f 'line %07g' 1 100000; {WAIT}; echo last"
        job = box.submit("sh", "-c", line, "sh", str(tmp_path / "go"))["job_id"]
        url = f"/v1/jobs/{job}/logs/stdout"

        def is_cut() -> bool:
            text = box.log(job)
            return text.endswith(b"line 0100000\n") and len(text) < 100 * 1024

        wait_for("it wrote all, and the middle is given back", is_cut)
        running = box.log(job)
        with box.http.stream("GET", f"{url}?follow=true") as answer:
            (tmp_path / "go").touch()
            followed = answer.read()
        box.ended(job)
        sealed = box.log(job)
        for got in (running + b"last\n", followed, sealed):
            assert got.startswith(b"line 0000001\n")
            assert got.endswith(b"line 0100000\nlast\n")
            assert b"\0" not in got
            assert len(got) < 100 * 1024
            assert len(re.findall(rb"\[aitbcd: \d+ bytes dropped here", got)) == 1, got[:100]
        output = box.http.get(f"/v1/jobs/{job}/result").json()
        assert "dropped" in json.dumps(output)


def frames(answer: httpx.Response) -> Iterator[tuple[Json, bytes]]:
    """Yield the pieces of a framed log."""
    rest = b""
    for some in answer.iter_raw():
        rest += some
        while b"\n" in rest:
            line, _, behind = rest.partition(b"\n")
            head = json.loads(line)
            if len(behind) < head["length"]:
                break
            rest = behind[head["length"] :]
            yield head, behind[: head["length"]]
    assert rest == b""


def test_who_follows_in_frames_comes_back_to_the_byte(tmp_path: Path) -> None:
    config = CONFIG + 'log_limit = "64K"\n'
    with serving(tmp_path / "daemon", config) as box:
        line = f"seq -f 'line %07g' 1 100000; {WAIT}; seq 1 5000; echo last"
        job = box.submit("sh", "-c", line, "sh", str(tmp_path / "go"))["job_id"]
        wait_for("it wrote all", lambda: box.log(job).endswith(b"line 0100000\n"))
        url = f"/v1/jobs/{job}/logs/stdout"
        seen, got = [], b""
        with box.http.stream("GET", url, params={"framed": True}) as answer:
            for head, data in frames(answer):
                seen.append(head)
                got += data
                if data.endswith(b"line 0100000\n"):
                    break
        here = seen[-1]
        assert here["next"] == 13 * 100_000
        (tmp_path / "go").touch()
        box.ended(job)
        # Its log is another file now, without the hole.
        back = {"follow": True, "offset": here["next"], "attempt": here["attempt"]}
        rest = box.http.get(url, params=back).content
        assert rest == b"".join(b"%d\n" % number for number in range(1, 5001)) + b"last\n"
        assert box.http.get(url, params={"offset": here["next"]}).content == rest
        assert box.http.get(url, params={"offset": here["next"] + 10**6}).content == b""


def test_who_comes_back_to_another_attempt_is_sent_all_of_it(box: Box, tmp_path: Path) -> None:
    line = f"echo try $AITBC_ATTEMPT; test $AITBC_ATTEMPT = 2 || {{ {WAIT}; exit 1; }}"
    job = box.submit("sh", "-c", line, "sh", str(tmp_path / "go"), retries=1)["job_id"]
    url = f"/v1/jobs/{job}/logs/stdout"
    with box.http.stream("GET", url, params={"framed": True}) as answer:
        got = []
        for head, data in frames(answer):
            got.append((head["attempt"], head["next"], data))
            (tmp_path / "go").touch()
    assert got == [(1, 6, b"try 1\n"), (2, 6, b"try 2\n")]
    back = {"follow": True, "offset": 6}
    assert box.http.get(url, params={**back, "attempt": 1}).content == b"try 2\n"
    assert box.http.get(url, params={**back, "attempt": 2}).content == b""
    assert box.http.get(url, params={"offset": 4, "attempt": 1}).content == b"try 2\n"
    assert box.http.get(url, params={"offset": 4, "attempt": 2}).content == b"2\n"
    problem(box.http.get(url, params={"attempt": 0}), 422, "invalid-value")


# -- results ------------------------------------------------------------------------------------

ODD = [
    b"plain", b"a b", b"two\nlines", b'quo"te', b"back\\slash", b"\xff\xfe", "ä€".encode(), b"-x",
    b"%2e%2e", b"#?&",
]  # fmt: skip


@pytest.fixture(scope="module")
def odd(box: Box, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job with artifacts of odd names."""
    folder = tmp_path_factory.mktemp("odd")
    for name in ODD:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"<" + name + b">")
    job: str = box.run("true", cwd=str(folder), artifacts=["*"])["job_id"]
    assert box.status(job)["status"] == "completed"
    return job


def test_a_download_is_a_zip_of_the_package(box: Box, odd: str, tmp_path: Path) -> None:
    answer = box.http.get(f"/v1/jobs/{odd}/download")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-disposition"] == f'attachment; filename="{odd}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert all(name.startswith(f"{odd}/") for name in names)
        assert {f"{odd}/{name}" for name in ("output.json", "output.sha256", "result.txt")} <= set(
            names
        )
        contents = {archive.read(name) for name in names if "/artifacts/" in name}
    assert contents == {b"<" + name + b">" for name in ODD}
    package = box.package(odd)
    sealed = [path for path in package.rglob("*") if path.is_file()]
    assert len([name for name in names if not name.endswith("/")]) == len(sealed)


def test_the_manifest_is_one_that_sha256sum_accepts(box: Box, odd: str) -> None:
    command = ["sha256sum", "-c", "--strict", "--quiet", "output.sha256"]
    subprocess.run(command, cwd=box.package(odd), check=True)


def test_each_file_is_given_by_its_path(box: Box, odd: str) -> None:
    for name in ODD:
        url = f"/v1/jobs/{odd}/files/artifacts/{quote(name, safe='')}"
        answer = box.http.get(url)
        assert answer.status_code == 200, name
        assert answer.content == b"<" + name + b">"
    answer = box.http.get(f"/v1/jobs/{odd}/files/output.json", headers={"range": "bytes=0-0"})
    assert (answer.status_code, answer.content) == (206, b"{")
    result = box.http.get(f"/v1/jobs/{odd}/result")
    assert result.headers["content-type"] == "application/json"
    assert result.json()["job_id"] == odd


@pytest.mark.parametrize(
    "path", ["none", "artifacts", "../../queue.db", "%2e%2e/%2e%2e/queue.db", "/etc/passwd", "",
             "logs//stdout.log", "./output.json", "a%00b", "artifacts/" + "x" * 300],
)  # fmt: skip
def test_what_is_no_file_of_the_package_is_not_there(box: Box, odd: str, path: str) -> None:
    # As it is: a client would tidy it up.
    with box.connect() as sock:
        sock.sendall(
            f"GET /v1/jobs/{odd}/files/{path} HTTP/1.1\r\nHost: x\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.split(b" ")[1] == b"404", answer


def test_results_are_not_there_before_the_end(box: Box, tmp_path: Path) -> None:
    job = box.submit_waiting(tmp_path / "go")
    for route in ("download", "result", "files/output.json"):
        document = problem(box.http.get(f"/v1/jobs/{job}/{route}"), 409, "no-results")
        assert document["state"] == "running"
    problem(box.http.post(f"/v1/jobs/{job}/verify"), 409, "no-results")
    (tmp_path / "go").touch()
    box.ended(job)


def verdict(box: Box, job: str) -> tuple[bool, list[tuple[str, str]]]:
    answer = box.http.post(f"/v1/jobs/{job}/verify")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found["ok"], [(each["kind"], each["path"]) for each in found["differences"]]


def test_verify_names_what_differs(box: Box, tmp_path: Path) -> None:
    job = box.shell("echo a > a; echo b > b", cwd=str(tmp_path), artifacts=["a", "b"])["job_id"]
    package = box.package(job)
    assert verdict(box, job) == (True, [])
    answer = box.http.post(f"/v1/jobs/{job}/verify").json()
    files = [path for path in package.rglob("*") if path.is_file()]
    assert answer["files"] == len(files)
    # result.txt is another name of stdout.log.
    once = [path.stat().st_size for path in files if path.name != "result.txt"]
    assert answer["bytes"] == sum(once)
    detail = box.status(job, detail=True)
    assert (detail["result_files"], detail["result_bytes"]) == (answer["files"], answer["bytes"])
    subprocess.run(["chmod", "-R", "u+w", package], check=True)
    (package / "artifacts/a").write_text("changed")
    (package / "artifacts/b").unlink()
    (package / "new").write_text("extra")
    (package / "link").symlink_to("/etc/passwd")
    assert verdict(box, job) == (
        False,
        [
            ("changed", "artifacts/a"),
            ("missing", "artifacts/b"),
            ("extra", "link"),
            ("extra", "new"),
        ],
    )
    manifest = package / "output.sha256"
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[1:]))
    assert ("manifest", "output.sha256") in verdict(box, job)[1]
    manifest.write_text("nonsense\n")
    assert verdict(box, job) == (False, [("manifest", "output.sha256")])
    manifest.unlink()
    assert verdict(box, job) == (False, [("missing", "output.sha256")])


def test_a_package_that_is_gone_is_said_so(box: Box) -> None:
    job = box.run("true")["job_id"]
    package = box.package(job)
    package.rename(package.with_name("elsewhere"))
    try:
        problem(box.http.get(f"/v1/jobs/{job}/download"), 409, "no-results")
        problem(box.http.get(f"/v1/jobs/{job}/result"), 409, "no-results")
        assert verdict(box, job) == (False, [("missing", "output.sha256")])
    finally:
        package.with_name("elsewhere").rename(package)


# -- the rest -----------------------------------------------------------------------------------


def test_health_names_the_daemon(box: Box) -> None:
    health = box.http.get("/healthz").json()
    assert (health["status"], health["pid"]) == ("ok", box.service.pid)
    assert health["state_dir"] == str(box.service.state)


def test_unknown_routes_and_methods_are_problems(box: Box) -> None:
    problem(box.http.get("/v1/nothing"), 404, "no-such-file")
    problem(box.http.get("/v1/jobs/"), 404, "no-such-file")
    answer = box.http.delete("/v1/jobs")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"]


# -- users --------------------------------------------------------------------------------------

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


@only_root
def test_a_job_runs_as_its_submitter_and_only_he_and_root_see_it(
    shared: Box, ada: User, bob: User
) -> None:
    where = shared.service.socket
    line = "id -u; id -g; id -G; pwd; echo $HOME $USER; touch mine"
    made = ada.ask(where, "POST", "/v1/jobs", {"command": line})
    assert made.status == 201, made.body
    job = made.json["job_id"]
    assert shared.ended(job)["status"] == "completed", shared.log(job, "stderr")
    lines = ada.ask(where, "GET", f"/v1/jobs/{job}/logs/stdout").body.decode().splitlines()
    assert lines == [
        str(ada.uid), str(ada.gid), str(ada.gid), str(ada.home), f"{ada.home} {ada.name}",
    ]  # fmt: skip
    assert (ada.home / "mine").stat().st_uid == ada.uid
    assert shared.status(job)["user"] == ada.name

    number = made.json["number"]
    for ref in (job, str(number), job[:10]):
        for method, path in (
            ("GET", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/logs/stdout"),
            ("GET", "/download"), ("GET", "/result"), ("GET", "/files/output.json"),
            ("POST", "/verify"),
        ):  # fmt: skip
            answer = bob.ask(where, method, f"/v1/jobs/{ref}{path}")
            assert (answer.status, answer.json["code"]) == (404, "no-such-job"), (ref, path)
    assert bob.ask(where, "GET", "/v1/jobs").json["jobs"] == []
    assert bob.ask(where, "GET", "/v1/jobs/@").status == 404
    assert ada.ask(where, "GET", "/v1/jobs/@").json["job_id"] == job
    assert bob.ask(where, "GET", "/v1/jobs?all=true").json["code"] == "forbidden"
    assert job in shared.http.get("/v1/jobs?all=true").text
    assert job not in shared.http.get("/v1/jobs").text
    package = shared.package(job)
    assert package.stat().st_uid == ada.uid
    assert package.stat().st_mode & 0o007 == 0


@only_root
def test_root_cancels_another_user_s_job(shared: Box, ada: User) -> None:
    made = ada.ask(shared.service.socket, "POST", "/v1/jobs", {"argv": ["sleep", "1000"]})
    job = made.json["job_id"]
    shared.reached(job, "running")
    assert cancel(shared, job, force=True).status_code == 200
    assert shared.ended(job)["status"] == "canceled"


@only_root
def test_tcp_tells_users_apart_too(shared: Box, ada: User, bob: User) -> None:
    where = tcp_of(shared)
    made = ada.ask(where, "POST", "/v1/jobs", {"argv": ["id", "-u"]})
    assert made.status == 201, made.body
    job = made.json["job_id"]
    shared.ended(job)
    assert ada.ask(where, "GET", f"/v1/jobs/{job}/logs/stdout").body == b"%d\n" % ada.uid
    assert bob.ask(where, "GET", f"/v1/jobs/{job}").status == 404
    assert shared.status(job)["user"] == ada.name


@only_root
def test_who_is_not_in_the_user_database_is_refused(shared: Box) -> None:
    nobody_known = User("?", 54321, 54321, Path("/"))
    answer = nobody_known.ask(shared.service.socket, "GET", "/v1/jobs")
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    health: dict[str, Any] = nobody_known.ask(shared.service.socket, "GET", "/healthz").json
    assert health.keys() == {"status", "version"}
