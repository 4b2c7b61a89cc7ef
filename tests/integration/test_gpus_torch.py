"""``aitbcctl gpus test`` with a real torch, its CPU build, and the scripted driver's GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aitbcctl.selftest import devices
from tests.driver import Driver, gpu, uuid_of
from tests.integration.conftest import Box, User, as_user
from tests.integration.test_gpus_api import daemon_with, reached, seen
from tests.service import PROGRAMS, wait_for
from tests.torch import NO_DEVICE, STUCK_BIT, TORN_COPY, WRONG_PRODUCT, python_with_torch

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return python_with_torch(tmp_path_factory.mktemp("torch") / "venv")


@pytest.fixture(scope="module")
def gpu_box(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A daemon with two GPUs, for others than root too."""
    driver = Driver(nvml_library, tmp_path_factory.mktemp("script") / "nvml")
    driver.write(gpu(0), gpu(1, "4090"))
    with tempfile.TemporaryDirectory(prefix="aitbcd-gpus-") as folder:
        Path(folder).chmod(0o755)
        with daemon_with(driver, Path(folder) / "daemon") as box:
            yield box


def gpus_test(box: Box, *words: str, code: int = 0) -> Done:
    done = box.service.run("aitbcctl", "gpus", "test", *words)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def jobs_of(box: Box) -> list[Any]:
    return list(box.http.get("/v1/jobs?limit=200").json()["jobs"])


def test_without_gpus_the_processor_is_tested(box: Box, python: str) -> None:
    done = gpus_test(box, "--python", python)
    assert "the processor is tested" in done.stderr
    assert done.stdout.rstrip().endswith("good: all checks passed")
    for check in ("matmul fp32", "matmul bf16", "memory march", "memory copy"):
        assert check in done.stdout
    job = jobs_of(box)[0]
    assert (job["name"], job["status"], job["progress"]) == ("gpus-test", "completed", 100)
    files = f"/v1/jobs/{job['job_id']}/files"
    assert box.http.get(f"{files}/result.txt").text == done.stdout
    report = box.http.get(f"{files}/artifacts/gpus-test.json").json()
    assert (report["format"], report["verdict"]) == (1, "good")
    assert all(check["is_right"] and check["value"] > 0 for check in report["checks"])


@pytest.mark.parametrize(
    ("fault", "check", "words"),
    [
        (WRONG_PRODUCT, "matmul fp32", "1 elements of a product are wrong"),
        (STUCK_BIT, "memory march", "words read back wrong, the first 8000 bytes from the start"),
    ],
)
def test_what_computes_or_keeps_wrong_fails(
    box: Box, tmp_path: Path, fault: str, check: str, words: str
) -> None:
    faulty = python_with_torch(tmp_path / "venv", fault=fault)
    done = gpus_test(box, "--python", faulty, "--json", code=1)
    [test] = json.loads(done.stdout)["tests"]
    assert test["verdict"] == "failed"
    assert words in test["message"]
    found = {each["name"]: each["is_right"] for each in test["report"]["checks"]}
    assert found.pop(check) is False
    # The rest was tried all the same.
    assert found["memory copy"] is True
    assert box.http.get(f"/v1/jobs/{test['job_id']}").json()["exit_code"] == 1


@pytest.mark.parametrize("fault", ["", TORN_COPY])
def test_a_copy_to_another_device_arrives_or_fails(tmp_path: Path, fault: str) -> None:
    # There is one device here, the processor: it stands for two GPUs, and for the host.
    faulty = python_with_torch(tmp_path / "venv", fault=fault)
    script = """\
import torch, devices
one = devices.Device(torch, "cpu")
found = [*devices.copy_between(one, one), *devices.copy_to_and_from(one)]
print(*((check.is_right, check.failure is None, check.value > 0) for check in found), sep="\\n")
"""
    done = subprocess.run(
        [faulty, "-W", "ignore", "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(devices.__file__).parent)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [str((not fault, not fault, True))] * 3, done.stderr


def test_a_gpu_that_torch_does_not_see_is_drained(gpu_box: Box, tmp_path: Path) -> None:
    blind = python_with_torch(tmp_path / "venv", fault=NO_DEVICE)
    done = gpus_test(gpu_box, "--python", blind, "1", code=1)
    assert done.stdout.startswith(f"{uuid_of(1)}  torch 2.")
    assert f"torch sees none of the job's devices ({uuid_of(1)})" in done.stdout
    assert f"GPU 1 ({uuid_of(1)}) is drained" in done.stderr
    reason = reached(gpu_box, ["free", "drained"])["gpus"][1]["reason"]
    assert jobs_of(gpu_box)[0]["job_id"] in reason
    assert "torch sees none" in reason
    # It takes no job, and so no test, until it is taken back.
    before = len(jobs_of(gpu_box))
    refused = gpus_test(gpu_box, "--python", blind, uuid_of(1), code=4)
    assert f"aitbcctl gpus resume {uuid_of(1)}" in refused.stderr
    assert len(jobs_of(gpu_box)) == before
    others = gpus_test(gpu_box, "--python", blind, "--no-wait")
    assert "not tested: GPU 1" in others.stderr
    assert len(others.stdout.split()) == 1
    assert gpu_box.service.run("aitbcctl", "gpus", "resume", "1").returncode == 0
    wait_for("it is over", lambda: jobs_of(gpu_box)[0]["status"] == "failed")
    gpus_test(gpu_box, "--python", blind, "--no-drain", "1", code=1)
    reached(gpu_box, ["free", "free"])


def test_a_torch_without_cuda_says_nothing_of_a_gpu(gpu_box: Box, python: str) -> None:
    done = gpus_test(gpu_box, "--python", python, "0", code=4)
    assert "is built without CUDA" in done.stderr
    assert "untested" in done.stdout
    assert [one["state"] for one in seen(gpu_box)["gpus"]] != ["drained", "free"]


#: Stands for one that runs the test of a GPU that fails.
_FAILING = """\
#!/bin/sh
[ "$1" = -c ] && exit 0
echo '{"verdict": "failed", "message": "it burns"}' >"$AITBC_ARTIFACTS_DIR/gpus-test.json"
exit 1
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="runs as other users")
def test_an_interpreter_is_looked_for_on_the_path(gpu_box: Box, python: str) -> None:
    folder, _, name = python.rpartition("/")
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = gpu_box.service.run("aitbcctl", "gpus", "test", "0", "--python", name, environ=path)
    assert done.returncode == 4, done.stderr
    assert f"{python} is built without CUDA" in done.stderr


def test_who_may_not_drain_is_told_whom_to_ask(gpu_box: Box, bob: User, tmp_path: Path) -> None:
    failing = bob.home / "python"
    failing.write_text(_FAILING)
    failing.chmod(0o755)
    done = subprocess.run(
        [*as_user(bob), str(PROGRAMS / "aitbcctl"), "gpus", "test", "0", "--python", str(failing)],
        env=os.environ | gpu_box.service.environ,
        cwd=bob.home, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "only an administrator drains" in done.stderr
    assert f"aitbcctl gpus drain {uuid_of(0)} --reason 'gpus test (job_" in done.stderr
    assert "it burns" in done.stderr
    assert [one["state"] for one in seen(gpu_box)["gpus"]] != ["drained", "free"]


def test_what_cannot_be_tested_is_refused_and_submits_nothing(gpu_box: Box, tmp_path: Path) -> None:
    before = len(jobs_of(gpu_box))
    venv.create(tmp_path / "bare", symlinks=True)
    bare = str(tmp_path / "bare/bin/python")
    refused = gpus_test(gpu_box, "--python", bare, code=4)
    assert f"{bare} -m pip install torch" in refused.stderr
    refused = gpus_test(gpu_box, "--python", sys.executable, "GPU-unknown", code=3)
    assert "there is no GPU GPU-unknown" in refused.stderr
    refused = gpus_test(gpu_box, "--python", "/nowhere/python", code=2)
    assert "--python /nowhere/python cannot be run" in refused.stderr
    assert len(jobs_of(gpu_box)) == before


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("gpus", "test", uuid_of(1)[:12]), f"{uuid_of(1)}\t1, GeForce RTX 4090, "),
        (("submit", "--gpu", uuid_of(1)[:12]), f"{uuid_of(1)}\t1, GeForce RTX 4090, "),
        (("submit", "--gpu-type", "h1"), "H100-80GB-HBM3\tH100 80GB HBM3"),
    ],
)
def test_gpus_are_offered_to_the_shell(
    gpu_box: Box, words: tuple[str, str, str], offered: str
) -> None:
    asked = {
        "_AITBCCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(("aitbcctl", *words)),
        "COMP_CWORD": "3",
    }
    (line,) = gpu_box.service.run("aitbcctl", environ=asked).stdout.splitlines()
    assert line.startswith(f"plain\t{offered}")


def test_a_model_as_it_is_offered_is_what_a_job_can_ask_for(gpu_box: Box) -> None:
    body = {"argv": ["true"], "gpus": 1, "gpu_type": "H100-80GB-HBM3"}
    answer = gpu_box.http.post("/v1/jobs", json=body)
    assert answer.status_code == 201, answer.text
