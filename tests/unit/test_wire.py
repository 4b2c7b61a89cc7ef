from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd import errors, wire
from aitbcd.errors import AitbcError, BadRequest, InvalidJob, InvalidValue, NoSuchJob
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


def spec(**description: Any) -> JobSpec:
    return wire.job_spec(wire.decode(json.dumps(description).encode()))


def refusal(**description: Any) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        spec(**{"argv": ["x"], **description})
    return caught.value


def b64(raw: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(raw).decode()}


# --- descriptions


def test_a_program_alone_is_a_job_with_defaults() -> None:
    assert spec(argv=["/bin/true"]) == JobSpec(argv=(b"/bin/true",))


def test_every_field_is_read() -> None:
    assert spec(
        argv=["python", "train.py"], name="resnet", cwd="/home/a/x", env={"K": "V"},
        environment=["A=1", "B=2=3"], cpus=4, memory="16G", gpus=1, timeout="2h", priority="high",
        artifacts=["ckpt/*.pt"], retries=2, umask="0027", stdin="/home/a/in",
    ) == JobSpec(
        argv=(b"python", b"train.py"), name="resnet", cwd=b"/home/a/x", env=(b"K=V",),
        environment=(b"A=1", b"B=2=3"), cpus=4, memory=16 * 2**30, gpus=1, timeout_s=7200,
        priority=Priority.HIGH, artifacts=(b"ckpt/*.pt",), retries=2, umask=0o027,
        stdin=b"/home/a/in",
    )  # fmt: skip


def test_a_shell_line_runs_in_the_shell() -> None:
    shell = spec(command="a | b")
    assert (shell.argv, shell.is_shell) == ((b"/bin/sh", b"-c", b"a | b"), True)


def test_the_names_of_the_product_family_are_understood() -> None:
    job = spec(
        argv=["x"],
        timeout_seconds=90,
        requirements={"gpu_type": "h200", "gpu_count": 2, "min_vram_gb": 40},
    )
    assert (job.timeout_s, job.gpus) == (90, 2)
    assert (job.gpu_type, job.min_vram) == ("h200", 40 * 10**9)


def test_a_kind_of_gpu_asks_for_one() -> None:
    assert spec(argv=["x"], gpu_type="h200").gpus == 1
    assert spec(argv=["x"], min_vram="40G").gpus == 1
    assert spec(argv=["x"], requirements={"min_vram_gb": 1.5}).gpus == 1
    assert spec(argv=["x"], vram="10G") == JobSpec((b"x",), gpus=1, vram=10 * 2**30)


def test_gpus_that_are_named_are_as_many_as_are_asked_for() -> None:
    job = spec(argv=["x"], gpu=["0", "GPU-1a"])
    assert (job.gpu, job.gpus) == (("0", "GPU-1a"), 2)
    assert spec(argv=["x"], gpu="1").gpu == ("1",)


def test_a_number_of_gpus_takes_the_place_of_what_defaults_say_of_them() -> None:
    def with_defaults(defaults: dict[str, Any], **fields: Any) -> JobSpec:
        return wire.job_spec({"argv": ["x"], **fields}, wire.given(defaults))

    assert with_defaults({"gpu": ["0"], "gpu_type": "h100"}, gpus=2) == JobSpec(
        (b"x",), gpus=2, gpu_type="h100"
    )
    assert with_defaults({"vram": "1G", "gpu_type": "h100"}, gpus=0) == JobSpec((b"x",))
    assert with_defaults({"gpus": 4}, gpu=["0"]).gpus == 1
    with pytest.raises(InvalidJob, match="share of one GPU"):
        with_defaults({"vram": "1G"}, gpu=["0", "1"])


def test_null_is_the_default() -> None:
    assert spec(argv=["x"], memory=None, gpus=None, requirements=None) == spec(argv=["x"])


def test_bytes_that_are_no_utf8_arrive_unchanged() -> None:
    raw = bytes(range(1, 256))
    job = spec(
        argv=["x", b64(raw)], cwd=b64(b"/" + raw), env=[b64(b"K=" + raw)], stdin=b64(b"/\xff"),
        environment={"N": b64(raw)}, artifacts=[b64(raw)],
    )  # fmt: skip
    assert job.argv == (b"x", raw)
    assert (job.cwd, job.stdin) == (b"/" + raw, b"/\xff")
    assert (job.env, job.environment) == ((b"K=" + raw,), (b"N=" + raw,))
    assert job.artifacts == (raw,)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("argv", [], "program"),
        ("argv", [""], "program"),
        ("argv", "ls -l", "array of strings"),
        ("argv", ["a", 1], "a string"),
        ("argv", ["a\0b"], "NUL"),
        ("argv", [{"b64": "!"}], "base64"),
        ("argv", [{"b64": "AA==", "x": 1}], "a string"),
        ("argv", [b64(b"a\0b")], "NUL"),
        ("cwd", "relative", "absolute"),
        ("cwd", "", "absolute"),
        ("stdin", "in.txt", "absolute"),
        ("env", "A=b", "object"),
        ("env", ["novalue"], "NAME=value"),
        ("env", ["=x"], "NAME=value"),
        ("env", {"": "x"}, "not empty"),
        ("env", {"A=B": "x"}, "not empty"),
        ("environment", ["A=\0"], "NUL"),
        ("name", "", "printable"),
        ("name", "a\nb", "printable"),
        ("name", "x" * 256, "1 to 255"),
        ("name", 5, "printable"),
        ("cpus", 0, "from 1"),
        ("cpus", 1.5, "whole number"),
        ("cpus", True, "whole number"),
        ("cpus", "4", "whole number"),
        ("cpus", 10**30, "whole number"),
        ("gpus", -1, "from 0"),
        ("retries", -1, "from 0"),
        ("memory", "lots", "16G"),
        ("timeout", "soon", "2h"),
        ("timeout", 0, "more than 0"),
        ("timeout_seconds", -1, "between 0"),
        ("priority", "urgent", "low, normal or high"),
        ("priority", 1, "low, normal or high"),
        ("umask", "0888", "octal"),
        ("umask", "1000", "octal"),
        ("umask", 18, "octal"),
        ("artifacts", [""], "not empty"),
        ("artifacts", "*.pt", "array"),
        ("requirements", [], "object"),
        ("gpu_type", "", "GPU model"),
        ("gpu", 0, "UUID or index"),
        ("gpu", [], "UUID or index"),
        ("gpu", ["GPU 0"], "its index"),
        ("gpu", ["0", "0"], "once"),
        ("vram", 0, "more than 0"),
        ("vram", "10 X", "16G"),
        ("min_vram", "big", "40GiB"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name_with_what_is_allowed(
    field: str, value: Any, words: str
) -> None:
    error = refusal(**{field: value})
    assert error.fields["field"] == field
    assert field in error.detail
    assert words in error.detail


def test_an_unknown_field_is_refused_by_its_name() -> None:
    error = refusal(arg=["x"])
    assert error.fields["field"] == "arg"
    assert "'arg'" in error.detail
    assert "argv" in str(error.hint)
    assert refusal(requirements={"gpus": 1}).fields["field"] == "requirements.gpus"


def test_a_job_without_a_command_is_refused() -> None:
    with pytest.raises(InvalidJob, match="no command"):
        spec(name="x")


@pytest.mark.parametrize("body", [[], "x", 5, None, True])
def test_what_is_no_object_is_no_job(body: Any) -> None:
    with pytest.raises(InvalidJob, match="a job is a JSON object"):
        wire.job_spec(body)


def test_contradictions_are_refused() -> None:
    assert "both given" in refusal(command="x").detail
    assert "no GPU" in refusal(gpus=0, gpu_type="h200").detail
    assert "differ" in refusal(gpus=1, requirements={"gpu_count": 2}).detail
    assert "both given" in refusal(gpus=2, gpu=["0"]).detail
    assert "no GPU" in refusal(gpus=0, vram="1G").detail
    assert "share of one GPU" in refusal(gpus=2, vram="1G").detail
    assert "share of one GPU" in refusal(gpu=["0", "1"], vram="1G").detail
    assert "differ" in refusal(gpu_type="h100", requirements={"gpu_type": "a100"}).detail
    assert "differ" in refusal(timeout="1h", timeout_seconds=60).detail
    # The same thing said twice is none.
    assert spec(argv=["x"], timeout="1h", timeout_seconds=3600).timeout_s == 3600


def test_an_environment_in_a_refusal_shows_no_values() -> None:
    error = refusal(env=[b64(b"SECRET\0x")])
    assert "SECRET" not in error.detail


def test_defaults_hold_where_the_job_is_silent() -> None:
    defaults = wire.given({"command": "true", "timeout": "1h", "cpus": 2, "env": {"A": "1"}})
    job = wire.job_spec({"argv": ["x"], "timeout_seconds": 60}, defaults)
    assert job == JobSpec(argv=(b"x",), timeout_s=60, cpus=2, env=(b"A=1",))
    assert wire.job_spec({}, defaults).is_shell


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from(sorted(wire._READERS)),
)
def test_any_value_of_any_field_is_taken_or_refused_by_name(value: Any, field: str) -> None:
    job: JobSpec | None = None
    try:
        job = wire.job_spec({"argv": ["x"], field: value})
    except InvalidJob as error:
        shown = wire.encode(wire.problem(error))
        blamed = error.fields.get("field")
    if job is None:
        assert field in str(blamed)
        assert len(shown) < 2000
    else:
        assert job.argv
        assert job.argv[0]
        assert not any(b"\0" in argument for argument in job.argv)


@given(st.lists(st.binary(min_size=1), min_size=1))
def test_argv_round_trips(arguments: list[bytes]) -> None:
    argv = tuple(argument.replace(b"\0", b"0") for argument in arguments)
    sent = wire.encode({"argv": [wire.text(argument) for argument in argv]})
    assert wire.job_spec(wire.decode(sent)).argv == argv


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
