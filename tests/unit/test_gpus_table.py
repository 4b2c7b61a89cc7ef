"""What ``aitbcctl gpus`` prints."""

from __future__ import annotations

from typing import Any

import pytest

from aitbcctl.devices import gpu_table, named_gpu, named_uuid
from aitbcd.errors import AmbiguousJob, NoSuchFile

GIB = 1 << 30


def gpu(index: int, **more: object) -> dict[str, Any]:
    return {
        "index": index,
        "uuid": f"GPU-{index}aaa",
        "name": "NVIDIA H100 80GB HBM3",
        "memory_total": 80 * GIB,
        "memory_used": 79 * GIB,
        "utilization": 100,
        "state": "busy",
        "reason": None,
        "jobs": ["job_7k3m9q2x"],
        "processes": [],
        "power": 699.6,
        "power_limit": 700.0,
        "temperature": 81,
        "mig": None,
    } | more


def test_a_table_of_busy_gpus_fits_eighty_columns() -> None:
    lines = gpu_table([gpu(n) for n in range(16)], 80).splitlines()
    assert len(lines) == 17
    assert max(map(len, lines)) <= 80
    assert all(line.endswith("job_7k3m9q2x") for line in lines[1:])
    assert lines[1].split()[:2] == ["0", "H100"]


def test_what_stands_in_the_way_is_said_below() -> None:
    notebook = {
        "pid": 4711,
        "user": "bob",
        "command": "jupyter\x1b[2J",
        "memory": 5 * GIB,
        "job_id": None,
        "since": None,
    }
    foreign = gpu(1, state="foreign", jobs=[], reason="bob's\x07", processes=[notebook])
    said = gpu_table([gpu(0), foreign], None)
    assert "GPU 1 is foreign: bob's\\x07" in said
    assert "GPU 1: bob, pid 4711, 5.0 GiB: jupyter\\x1b[2J" in said
    assert "\x1b" not in said


def test_what_is_said_of_the_driver_is_not_said_of_each_gpu() -> None:
    lost = [gpu(n, state="lost", jobs=[], reason="reboot needed") for n in range(2)]
    assert "reboot needed" in gpu_table(lost, None)
    assert "reboot needed" not in gpu_table(lost, None, "reboot needed")
    assert "GPU 1 is lost: fell" in gpu_table([lost[0], lost[1] | {"reason": "fell"}], None, "r")


def test_what_the_driver_does_not_say_is_a_dash() -> None:
    line = gpu_table([gpu(0, utilization=None, power=None, temperature=None)], None).split("\n")[1]
    assert line.count("  -  ") == 3


MIG = {"parent": "GPU-x", "gpu_instance": 3, "compute_instance": 0}


def test_a_gpu_is_named_by_uuid_beginning_or_number() -> None:
    gpus = [
        gpu(0),
        gpu(1),
        gpu(2, uuid="MIG-1", mig=MIG),
        gpu(2, uuid="MIG-2", mig=MIG | {"gpu_instance": 4}),
    ]
    for word in ("GPU-1aaa", "GPU-1", "1"):
        assert named_gpu(gpus, word)["index"] == 1
    assert named_gpu(gpus, "2:4")["uuid"] == "MIG-2"
    assert [named_uuid(gpus, word) for word in ("2", "GPU-x", "2:4", "1")] == [
        *("GPU-x", "GPU-x", "MIG-2", "GPU-1aaa")
    ]


@pytest.mark.parametrize(
    ("word", "refusal"),
    [("GPU-", AmbiguousJob), ("7", NoSuchFile), ("", NoSuchFile), ("2", NoSuchFile)],
)
def test_another_name_is_refused_with_those_that_there_are(
    word: str, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal) as refused:
        named_gpu([gpu(0), gpu(1), gpu(2, mig=MIG, uuid="MIG-1")], word)
    assert "GPU-0aaa" in str(getattr(refused.value, "hint", ""))
