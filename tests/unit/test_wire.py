from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aitbcd import errors, wire
from aitbcd.errors import AitbcError, BadRequest, InvalidValue, NoSuchJob
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

FIRST_STATUS_KEYS = [
    "job_id", "status", "progress", "miner_id", "created_at", "started_at", "estimated_completion",
]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{} x", b"\xff", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"NaN", b"[" * 100000,
     b"\xef\xbb\xbf{}", b'{"a": 1e999}'],
)  # fmt: skip
def test_what_is_no_json_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        wire.decode(body)


# --- times


def test_times_in_a_status_are_whole_seconds_in_utc() -> None:
    assert wire.rfc3339(1770976800_999999) == "2026-02-13T10:00:00Z"
    assert wire.rfc3339(None) is None


def test_exact_times_have_microseconds() -> None:
    assert wire.rfc3339_exact(1770976800_000123) == "2026-02-13T10:00:00.000123Z"
    assert wire.rfc3339_exact(None) is None


@given(st.integers(0, 4_000_000_000_000_000))
def test_an_exact_time_reads_back(at: int) -> None:
    shown = wire.rfc3339_exact(at)
    assert shown is not None
    assert wire.parse_time("from", shown) == at


def test_a_date_as_an_end_includes_its_day() -> None:
    day = 86400 * 10**6
    start = wire.parse_time("from", "2026-01-31")
    assert wire.parse_time("to", "2026-01-31", is_end=True) == start + day
    assert wire.parse_time("to", "2026-01-31T10:00:00Z", is_end=True) == start + 10 * 3600 * 10**6
    assert wire.parse_time("to", "2026-01-31T10:00:00+02:00") == start + 8 * 3600 * 10**6


@pytest.mark.parametrize("value", ["", "yesterday", "2026-13-01", "2026-02-30", "1", "9999-12-32"])
def test_what_is_no_time_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(InvalidValue, match="expected a date") as caught:
        wire.parse_time("from", value)
    assert caught.value.fields["field"] == "from"


# --- statuses


def job(status: JobState, ending: Ending | None = None, attempt: int = 1) -> Job:
    started = 1770976860_000000 if attempt else None
    return Job(
        number=42, job_id="job_7k3m9q2x", owner=Owner(1000, "ada"), status=status, name=None,
        cpus=1, memory=None, gpus=0, timeout_s=None, priority=Priority.NORMAL, retries=0,
        attempt=attempt, created_at=1770976800_000000, started_at=started, ending=ending,
    )  # fmt: skip


def test_a_status_has_the_specifications_fields_first_and_in_its_formats() -> None:
    shown = wire.status(
        job(JobState.RUNNING),
        miner_id="miner_xyz78900",
        progress=45,
        estimated_completion=1770978600_000000,
    )
    assert list(shown)[: len(FIRST_STATUS_KEYS)] == FIRST_STATUS_KEYS
    assert {key: shown[key] for key in FIRST_STATUS_KEYS} == {
        "job_id": "job_7k3m9q2x",
        "status": "running",
        "progress": 45,
        "miner_id": "miner_xyz78900",
        "created_at": "2026-02-13T10:00:00Z",
        "started_at": "2026-02-13T10:01:00Z",
        "estimated_completion": "2026-02-13T10:30:00Z",
    }
    assert "finished_at" not in shown
    assert (shown["number"], shown["user"], shown["gpu_uuids"]) == (42, "ada", [])


def test_a_pending_job_has_no_machine() -> None:
    shown = wire.status(
        job(JobState.PENDING, attempt=0), miner_id="miner_x", progress=0, waiting="for a core"
    )
    assert (shown["miner_id"], shown["started_at"], shown["waiting"]) == (None, None, "for a core")


def test_a_job_that_is_over_says_how_it_ended() -> None:
    ending = Ending(
        1770976870_500000, Reason.EXIT, None, "exit code 3", 3, results=ResultsState.KEPT
    )
    shown = wire.status(
        job(JobState.FAILED, ending), miner_id="miner_x", progress=10, result_path="/r/job_7k3m9q2x"
    )
    assert shown["finished_at"] == "2026-02-13T10:01:10Z"
    assert (shown["reason"], shown["exit_code"], shown["signal"]) == ("exit", 3, None)
    assert (shown["results"], shown["result_path"]) == ("kept", "/r/job_7k3m9q2x")
    assert (shown["charge"], shown["currency"], shown["retry_of"]) == (0, None, None)
    assert "contact" not in shown


def test_a_failed_job_says_whom_to_ask_and_every_job_what_it_cost() -> None:
    ending = Ending(1770976870_500000, Reason.EXIT, charge_micro=20_000)
    over = replace(
        job(JobState.FAILED, ending), charge_micro=50_000, expires_at=1771581670_500000,
        retry_of="job_00000001",
    )  # fmt: skip
    shown = wire.status(over, miner_id="m", progress=0, currency="EUR", contact="ops@x.org")
    assert (shown["charge"], shown["currency"], shown["contact"]) == (0.05, "EUR", "ops@x.org")
    assert (shown["expires_at"], shown["retry_of"]) == ("2026-02-20T10:01:10Z", "job_00000001")
    attempt = wire.attempt(Attempt(1, "boot", 1770976860_000001, ending=ending))
    assert attempt["charge"] == 0.02
    done = replace(over, status=JobState.COMPLETED)
    assert "contact" not in wire.status(done, miner_id="m", progress=0, contact="ops@x.org")


def test_the_queue_shows_no_more_than_everybody_may_know() -> None:
    running = replace(job(JobState.RUNNING), timeout_s=600.0, name="resnet")
    shown = wire.queued(running, is_mine=False, progress=5, waiting=None, estimate=None)
    assert shown["since"] == "2026-02-13T10:01:00Z"
    assert shown["until"] == "2026-02-13T10:11:00Z"
    assert shown.keys().isdisjoint({"command", "cwd", "env_names", "result_path", "charge"})
    waits = job(JobState.PENDING, attempt=0)
    shown = wire.queued(waits, is_mine=True, progress=0, waiting="for a core", estimate=None)
    assert (shown["since"], shown["until"]) == ("2026-02-13T10:00:00Z", None)


def test_no_path_is_given_where_there_are_no_results() -> None:
    ending = Ending(1770976870_500000, Reason.CANCELED)
    shown = wire.status(
        job(JobState.CANCELED, ending, attempt=0), miner_id="m", progress=0, result_path="/r/x"
    )
    assert (shown["results"], shown["result_path"], shown["miner_id"]) == ("none", None, None)


def test_details_name_variables_and_show_no_value() -> None:
    secret = JobSpec(argv=(b"x", b"\xff"), environment=(b"TOKEN=hunter2",), env=(b"A=hunter2",))
    attempts = [Attempt(1, "boot", 1770976860_000001)]
    events = [Event(7, 42, "job_7k3m9q2x", 1000, 1770976860_000001, JobState.ASSIGNED, 1)]
    shown = wire.details(job(JobState.ASSIGNED), secret, attempts, events)
    assert shown["env_names"] == ["A", "TOKEN"]
    assert shown["command"] == ["x", {"b64": "/w=="}]
    assert shown["events"][0]["time"] == "2026-02-13T10:01:00.000001Z"
    assert b"hunter2" not in wire.encode(shown)


# --- problem documents


def test_a_problem_document_has_the_standard_members_and_the_fields() -> None:
    error = NoSuchJob("there is no job 7", hint="list them", ref="7")
    assert wire.problem(error) == {
        "type": "urn:aitbc:problem:no-such-job",
        "title": "No such job",
        "status": 404,
        "detail": "there is no job 7",
        "code": "no-such-job",
        "hint": "list them",
        "ref": "7",
    }


def every_error(base: type[AitbcError] = AitbcError) -> list[type[AitbcError]]:
    found = [base]
    for kind in base.__subclasses__():
        if kind.__module__ == "aitbcd.errors":
            found += every_error(kind)
    return found


@pytest.mark.parametrize("kind", every_error())
def test_an_error_survives_its_problem_document(kind: type[AitbcError]) -> None:
    error = kind("what happened", hint="do this", field="x")
    back = errors.from_problem(wire.decode(wire.encode(wire.problem(error))))
    assert type(back) is kind
    assert (back.detail, back.hint, back.fields) == ("what happened", "do this", {"field": "x"})


def test_an_unknown_problem_is_an_error_all_the_same() -> None:
    assert errors.from_problem({"code": "new", "title": "New"}).detail == "New"
