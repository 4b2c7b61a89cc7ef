"""The user's guide, typed as it stands there, on a machine with two GPUs.

What the machine lacks (torchrun, uv, conda, podman, docker, apptainer, jupyter) is a program that
notes how it was called and runs the rest of its line: that our half of the recipe is right.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.documents import blocks, headings, run_shell
from tests.driver import Driver, build, gpu, uuid_of
from tests.service import PROGRAMS, Service, wait_for

pytestmark = pytest.mark.system

GUIDE = "docs/guide.md"
CONTAINERS = "docs/containers.md"
TRAIN = """
import json, os, pathlib
seen = pathlib.Path(os.environ["AITBC_ARTIFACTS_DIR"], "seen.json")
seen.write_text(json.dumps(dict(os.environ)))
pathlib.Path("ckpt").mkdir(exist_ok=True)
pathlib.Path("ckpt/last.pt").write_text("weights")
"""
#: Notes its arguments, and runs from the first one on that is a program of the recipes.
TOOL = """#!/bin/bash
printf '%s\\n' "$(basename "$0")" "$@" > "$AITBC_ARTIFACTS_DIR/called"
while (($#)) && [[ $1 != python && $1 != train.py ]]; do shift; done
[[ ${1-} == train.py ]] && set -- python "$@"
exec "$@"
"""
TOOLS = ("torchrun", "uv", "conda", "podman", "docker", "apptainer", "jupyter")


@dataclass
class Desk:
    """A user's project folder, and the daemon beside it."""

    service: Service
    project: Path
    environ: dict[str, str]

    def type(self, script: str) -> str:
        done = run_shell(script, self.project, self.environ)
        assert done.returncode == 0, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout

    def jobs(self) -> list[dict[str, Any]]:
        done = self.service.run("aitbcctl", "list", "--json")
        jobs: list[dict[str, Any]] = json.loads(done.stdout)["jobs"]
        return jobs

    def done(self) -> list[dict[str, Any]]:
        """Return all jobs when they are over, the newest first."""

        def over() -> list[dict[str, Any]] | None:
            jobs = self.jobs()
            return jobs if all(job["status"] == "completed" for job in jobs) else None

        return wait_for("all jobs have completed", over, log=self.service.log)

    def artifact(self, job: dict[str, Any], name: str) -> str:
        return Path(job["result_path"], "artifacts", name).read_text()

    def seen(self, job: dict[str, Any]) -> dict[str, str]:
        """Return the environment that the training saw."""
        seen: dict[str, str] = json.loads(self.artifact(job, "seen.json"))
        return seen


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    driver = Driver(build(tmp_path), tmp_path / "nvml.script")
    driver.write(gpu(0), gpu(1))
    for name, value in driver.environ.items():
        monkeypatch.setenv(name, value)
    project = tmp_path / "project"
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for name in ("prepare.py", "train.py", "infer.py"):
        (project / name).write_text(TRAIN)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).write_text(TOOL)
        (tools / name).chmod(0o755)
    with Service(tmp_path / "service", '[server]\ntcp = "127.0.0.1:0"\n[slots]\ncpus = 4\n') as it:
        path = f"{tools}:{PROGRAMS}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        yield Desk(it, project, os.environ | it.environ | {"PATH": path})


def test_every_section_has_been_thought_of() -> None:
    assert set(headings(GUIDE)) == {
        "What goes along with a job", "Job files", "GPUs", "Several GPUs: torch DDP on one machine",
        "Environments: venv, uv, conda", "Notebooks beside the queue", "Containers", "Sweeps",
        "Long jobs", "Results", "From a program", "When a job failed",
    }  # fmt: skip


def test_what_goes_along(desk: Desk) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(desk.project)]
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    first, copied, line = blocks(GUIDE, "What goes along with a job")
    desk.type(first)
    clean, seeded, plain = desk.done()
    assert desk.seen(plain)["WANDB_MODE"] == desk.seen(seeded)["WANDB_MODE"] == "offline"
    assert "SEED" not in desk.seen(plain)
    assert desk.seen(seeded)["SEED"] == "7"
    said = Path(clean["result_path"], "result.txt").read_text().splitlines()
    assert "SEED=7" in said
    assert not [entry for entry in said if entry.startswith(("WANDB_MODE=", "AITBCD_"))]
    desk.type(copied)
    (job, *_) = desk.done()
    assert desk.seen(job)["PWD"] == str(desk.project / "runs" / "first")
    desk.type(line)
    (job, *_) = desk.done()
    assert desk.artifact(job, "log.txt") == ""


def test_job_files(desk: Desk) -> None:
    (example,) = blocks(GUIDE, "Job files", "toml")
    (desk.project / "night.toml").write_text(example)
    desk.type(blocks(GUIDE, "Job files")[0])
    short, night = desk.done()
    assert (short["name"], night["name"]) == ("short", "night")
    for job, timeout_s in ((short, 1800), (night, 36_000)):
        asked = json.loads(desk.service.run("aitbcctl", "get", "--json", job["job_id"]).stdout)
        assert asked["requested"]["timeout_s"] == timeout_s
        assert asked["requested"]["min_vram"] == 40 << 30
        assert desk.seen(job)["WANDB_MODE"] == "offline"
        assert desk.artifact(job, "ckpt/last.pt") == "weights"


def test_gpus(desk: Desk) -> None:
    (block,) = blocks(GUIDE, "GPUs")
    desk.type(block)
    jobs = desk.done()
    assert len(jobs) == 4
    for job in jobs:
        seen = desk.seen(job)
        assert seen["CUDA_VISIBLE_DEVICES"] in {uuid_of(0), uuid_of(1)}


def test_several_gpus(desk: Desk) -> None:
    desk.type(blocks(GUIDE, "Several GPUs: torch DDP on one machine")[0])
    (job,) = desk.done()
    assert set(desk.seen(job)["CUDA_VISIBLE_DEVICES"].split(",")) == {uuid_of(0), uuid_of(1)}
    called = desk.artifact(job, "called").split()
    assert called == ["torchrun", "--standalone", "--nproc-per-node=gpu", "train.py"]


def test_environments(desk: Desk) -> None:
    desk.type(blocks(GUIDE, "Environments: venv, uv, conda")[0])
    conda, uv, _ = desk.done()
    assert desk.artifact(uv, "called").split() == ["uv", "run", "train.py"]
    assert desk.artifact(conda, "called").split()[:3] == ["conda", "run", "--no-capture-output"]


def test_notebooks(desk: Desk) -> None:
    desk.type(blocks(GUIDE, "Notebooks beside the queue")[0])
    (job,) = desk.done()
    assert desk.artifact(job, "called").split()[:2] == ["jupyter", "lab"]


def assert_is_told_its_gpus(called: list[str], seen: dict[str, str]) -> None:
    gpus = seen["AITBC_GPUS"].split(",")
    assert len(gpus) == 2
    if called[0] == "docker":
        # A comma outside of these quotes would begin another key.
        assert called[called.index("--gpus") + 1] == f'"device={",".join(gpus)}"'
    else:
        given = [called[at + 1] for at, word in enumerate(called) if word == "--device"]
        assert given == [f"nvidia.com/gpu={uuid}" for uuid in gpus]


def test_containers_are_told_what_they_have(desk: Desk) -> None:
    desk.type(blocks(GUIDE, "Containers")[0])
    jobs = {desk.artifact(job, "called").split()[0]: job for job in desk.done()}
    assert jobs.keys() == {"docker", "apptainer"}
    called, seen = desk.artifact(jobs["docker"], "called").splitlines(), desk.seen(jobs["docker"])
    assert_is_told_its_gpus(called, seen)
    assert "AITBC_JOB_ID" in called
    assert f"{seen['AITBC_ARTIFACTS_DIR']}:/out" in called


def test_containers_of_the_document_about_them(desk: Desk) -> None:
    for tool in ("podman", "docker"):
        for block in blocks(CONTAINERS, tool):
            desk.type(block)
    labelled, told, podman = desk.done()
    for job in (labelled, told, podman):
        assert_is_told_its_gpus(desk.artifact(job, "called").splitlines(), desk.seen(job))
    for job in (told, podman):
        folder = desk.seen(job)["AITBC_ARTIFACTS_DIR"]
        assert f"{folder}:/out" in desk.artifact(job, "called").splitlines()
    assert {"AITBC_JOB_ID", "AITBC_ATTEMPT"} <= {*desk.artifact(told, "called").splitlines()}
    label = f"aitbc.job={labelled['job_id']}"
    assert label in desk.artifact(labelled, "called").splitlines()


def test_sweeps(desk: Desk) -> None:
    said = desk.type(blocks(GUIDE, "Sweeps")[0])
    jobs = desk.done()
    assert [job["name"] for job in jobs] == ["lr-0.001", "lr-0.01", "lr-0.1"]
    assert all(job["job_id"] in said for job in jobs)


def test_what_waits_or_failed_of_a_sweep(desk: Desk) -> None:
    gate = desk.project / "gate"
    desk.type(f"""
        aitbcctl submit --wait --name lr-1 -c 'test -e {gate}' || touch {gate}
        aitbcctl submit --cpus 4 --name holds -- sleep 1000
        aitbcctl submit --name lr-2 -- true; aitbcctl submit --name lr-3 -- true
    """)
    again = desk.type(blocks(GUIDE, "Sweeps")[1]).split()[-1]
    ended = [(job["name"], job["status"]) for job in reversed(desk.jobs())]
    assert ended[:1] + ended[2:4] == [
        ("lr-1", "failed"),
        ("lr-2", "canceled"),
        ("lr-3", "canceled"),
    ]
    desk.type("aitbcctl cancel --force $(aitbcctl list --name holds --format ids)")
    desk.type(f"aitbcctl watch {again}")


def test_long_jobs_and_their_results(desk: Desk) -> None:
    desk.type(blocks(GUIDE, "Long jobs")[0])
    (job,) = desk.done()
    assert desk.artifact(job, "ckpt/last.pt") == "weights"
    (block,) = blocks(GUIDE, "Results")
    assert "whoever has this link can read" in desk.type(block)
    assert (desk.project / "results" / job["job_id"] / "artifacts" / "seen.json").exists()


def test_one_after_another(desk: Desk) -> None:
    said = desk.type(blocks(GUIDE, "Long jobs")[1])
    train, prepare = desk.done()
    assert prepare["finished_at"] <= train["created_at"]
    assert said.endswith("it is done\n")


def test_from_a_program(desk: Desk) -> None:
    address = wait_for(
        "the daemon says its address",
        lambda: re.search(r"127\.0\.0\.1:\d+", desk.service.log.read_text()),
        log=desk.service.log,
    )
    (program,) = blocks(GUIDE, "From a program", "python")
    done = subprocess.run(
        [sys.executable, "-c", program.replace("127.0.0.1:8000", address[0])],
        cwd=desk.project,
        env=desk.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("completed ")
