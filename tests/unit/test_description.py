from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd import description, wire
from aitbcd.errors import InvalidJob
from aitbcd.model import JobSpec, Priority


def spec(**fields: Any) -> JobSpec:
    return description.job_spec(wire.decode(json.dumps(fields).encode()))


def refusal(**fields: Any) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        spec(**{"argv": ["x"], **fields})
    return caught.value


def b64(raw: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(raw).decode()}


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
        return description.job_spec({"argv": ["x"], **fields}, description.given(defaults))

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
        ("artifacts", ["*.pt", "/scratch/*.pt"], "below the working directory"),
        ("artifacts", ["ckpt/../../*.pt"], "below the working directory"),
        ("artifacts", [b64(b"../\xff")], "below the working directory"),
        ("requirements", [], "object"),
        ("gpu_type", "", "GPU model"),
        ("gpu", 0, "UUID or index"),
        ("gpu", [], "UUID or index"),
        ("gpu", ["GPU 0"], "its index"),
        ("gpu", ["0", "0"], "once"),
        ("vram", 0, "more than 0"),
        ("vram", "10 X", "16G"),
        ("vram", "10", "with its unit"),
        ("min_vram", 40, "with its unit"),
        ("memory", "16", "with its unit"),
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
        description.job_spec(body)


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
    defaults = description.given({"command": "true", "timeout": "1h", "cpus": 2, "env": {"A": "1"}})
    job = description.job_spec({"argv": ["x"], "timeout_seconds": 60}, defaults)
    assert job == JobSpec(argv=(b"x",), timeout_s=60, cpus=2, env=(b"A=1",))
    assert description.job_spec({}, defaults).is_shell


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from(sorted(description._READERS)),
)
def test_any_value_of_any_field_is_taken_or_refused_by_name(value: Any, field: str) -> None:
    job: JobSpec | None = None
    try:
        job = description.job_spec({"argv": ["x"], field: value})
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
    assert description.job_spec(wire.decode(sent)).argv == argv
