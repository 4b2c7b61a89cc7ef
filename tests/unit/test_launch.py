"""What the launcher is told of a job: whole, exact, and nothing that the owner did not choose."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd import launch
from aitbcd.devices import Near
from aitbcd.launcher import protocol
from aitbcd.model import Job, JobSpec, JobState, Owner, Priority
from aitbcd.users import User, base_environment

USER = User(1000, 100, "ada", "/home/ada", "/bin/zsh")
JOB = Job(
    number=7,
    job_id="job_7k3m9q2x",
    owner=Owner(1000, "ada"),
    status=JobState.ASSIGNED,
    name=None,
    cpus=1,
    memory=None,
    gpus=0,
    timeout_s=None,
    priority=Priority.NORMAL,
    retries=0,
    attempt=3,
    created_at=0,
)
OURS = {
    "AITBC_JOB_ID": "job_7k3m9q2x",
    "AITBC_ATTEMPT": "3",
    "AITBC_RESULT": "/state/results/.job_7k3m9q2x/result.txt",
    "AITBC_ARTIFACTS_DIR": "/state/results/.job_7k3m9q2x/artifacts",
    "AITBC_PROGRESS": "/state/results/.job_7k3m9q2x/progress",
    "AITBC_GPUS": "",
    "CUDA_VISIBLE_DEVICES": "",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}

no_nul = st.binary(max_size=30).filter(lambda value: b"\0" not in value)
names = no_nul.filter(lambda name: name and b"=" not in name)
entries = st.builds(lambda name, value: b"%s=%s" % (name, value), names, no_nul)


def message(spec: JobSpec, **more: object) -> protocol.Message:
    return launch.start_message(
        JOB,
        spec,
        USER,
        results="/state/results",
        grace_s=10.0,
        log_limit=1 << 30,
        **more,  # type: ignore[arg-type]
    )


def test_a_plain_job() -> None:
    assert message(JobSpec((b"true",))) == {
        "job": "job_7k3m9q2x",
        "attempt": 3,
        "uid": 1000,
        "gid": 100,
        "user": "ada",
        "argv": ["true"],
        "env": base_environment(USER) | OURS,
        "cwd": "/home/ada",
        "umask": 0o022,
        "stdin": None,
        "timeout_s": None,
        "grace_s": 10.0,
        "log_limit": 1 << 30,
        "no_new_privs": False,
        "artifacts": [],
        "limits": {
            "cpus": 1,
            "memory": None,
            "shared": None,
            "processes": None,
            "near": [],
            "near_nodes": [],
        },
    }


def test_a_job_that_asks_for_all() -> None:
    spec = JobSpec(
        (b"/bin/sh", b"-c", b"\xff"),
        cwd=b"/tmp/\xfe",
        environment=(b"A=1", b"PATH=/x"),
        env=(b"B=2=3",),
        umask=0,
        stdin=b"/in\xff",
        timeout_s=1.5,
    )
    told = message(spec)
    assert told["argv"] == ["/bin/sh", "-c", "\udcff"]
    assert told["cwd"] == "/tmp/\udcfe"
    assert told["env"] == {"A": "1", "PATH": "/x", "B": "2=3"} | OURS
    assert (told["umask"], told["stdin"], told["timeout_s"]) == (0, "/in\udcff", 1.5)


def test_a_job_s_limits_are_what_it_asked_for_and_what_is_configured() -> None:
    near = Near((4, 5, 6, 7), (1,))
    spec = JobSpec((b"true",), cpus=4, memory=1 << 30)
    told = message(spec, processes=100, shared=1 << 34, near=near)
    assert told["limits"] == {
        "cpus": 4,
        "memory": 1 << 30,
        "shared": 1 << 34,
        "processes": 100,
        "near": [4, 5, 6, 7],
        "near_nodes": [1],
    }


def test_additions_win_over_the_base_and_ours_over_both() -> None:
    spec = JobSpec(
        (b"true",),
        environment=(b"X=base", b"Y=base", b"AITBC_RESULT=/etc/passwd"),
        env=(b"X=added", b"AITBC_JOB_ID=job_00000000", b"CUDA_VISIBLE_DEVICES=0,1"),
    )
    assert message(spec)["env"] == {"X": "added", "Y": "base"} | OURS


def test_additions_win_over_the_plain_base() -> None:
    env = message(JobSpec((b"true",), env=(b"PATH=/mine", b"HOME=/elsewhere")))["env"]
    assert env == base_environment(USER) | {"PATH": "/mine", "HOME": "/elsewhere"} | OURS


def test_the_callers_own_directory_is_not_handed_on_as_the_jobs() -> None:
    spec = JobSpec((b"true",), environment=(b"PWD=/callers",), cwd=b"/jobs")
    assert message(spec)["env"]["PWD"] == "/jobs"
    spec = JobSpec((b"true",), environment=(), cwd=b"/jobs")
    assert "PWD" not in message(spec)["env"]
    spec = JobSpec((b"true",), environment=(b"PWD=/callers",), env=(b"PWD=/wish",), cwd=b"/jobs")
    assert message(spec)["env"]["PWD"] == "/wish"


def test_gpus_are_named_by_uuid() -> None:
    env = message(JobSpec((b"true",)), gpu_uuids=("GPU-a", "GPU-b"))["env"]
    assert env["AITBC_GPUS"] == env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


@given(st.lists(no_nul, min_size=1, max_size=4), st.none() | st.lists(entries, max_size=4), no_nul)
def test_every_byte_arrives(
    argv: list[bytes], environment: list[bytes] | None, path: bytes
) -> None:
    spec = JobSpec(
        tuple(argv),
        environment=None if environment is None else tuple(environment),
        cwd=b"/" + path,
    )
    told = json.loads(protocol.encode(message(spec)))
    assert [word.encode("utf-8", "surrogateescape") for word in told["argv"]] == argv
    assert told["cwd"].encode("utf-8", "surrogateescape") == b"/" + path
    came = {
        name.encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
        for name, value in told["env"].items()
    }
    expected = dict(entry.split(b"=", 1) for entry in environment or [])
    for name, value in expected.items():
        if name not in (b"PWD", *(ours.encode() for ours in OURS)):
            assert came[name] == value


def test_the_order_to_seal_has_no_environment() -> None:
    spec = JobSpec(
        (b"true",), environment=(b"SECRET=1",), env=(b"TOKEN=2",), artifacts=(b"*.pt", b"\xff*")
    )
    order = launch.seal_order(JOB, spec, USER, {"attempt": 3}, log_limit=5)
    assert order == {
        "job": "job_7k3m9q2x",
        "attempt": 3,
        "uid": 1000,
        "gid": 100,
        "user": "ada",
        "cwd": "/home/ada",
        "artifacts": ["*.pt", "\udcff*"],
        "log_limit": 5,
        "output": {"attempt": 3},
    }


@pytest.mark.parametrize("environment", [None, (b"B=secret", b"A=secret")])
def test_names_of_variables_are_told_without_their_values(
    environment: tuple[bytes, ...] | None,
) -> None:
    spec = JobSpec((b"true",), environment=environment, env=(b"Z=secret", b"\xff=secret"))
    told = launch.environment_names(spec, USER)
    base = base_environment(USER) if environment is None else {"A": "", "B": ""}
    assert told == sorted([*base, "Z", "\ufffd"])
    assert "secret" not in json.dumps(told)
