"""The README's examples, run as they stand there: what it promises on its first page works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT, blocks, run_shell
from tests.service import PROGRAMS, Service, wait_for

pytestmark = pytest.mark.system

#: Made by the tests and the checks, not part of a checkout.
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__")
NO_NETWORK = re.compile(r"Temporary failure in name resolution|Failed to establish|No route")


@dataclass(frozen=True)
class Person:
    """Who tries the program out, with a home of their own; never root."""

    uid: int
    home: Path

    def processes(self) -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if entry.stat().st_uid == self.uid:
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (FileNotFoundError, ProcessLookupError):
                continue
        return [command for command in found if "aitbc" in command]


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    """Yield another user than root: a new one where we are root, else ourselves."""
    if os.getuid() != 0:
        yield Person(os.getuid(), tmp_path)
        return
    name = f"aitbcd{os.getpid()}"
    # Not below tmp_path: pytest makes that for us alone.
    home = Path("/home") / name
    subprocess.run(["useradd", "--create-home", "--home-dir", str(home), name], check=True)
    try:
        yield Person(home.stat().st_uid, home)
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


def test_quick_start_runs_the_demo_and_leaves_results_but_no_process(person: Person) -> None:
    checkout = person.home / "aitbcd"
    shutil.copytree(ROOT, checkout, ignore=NOT_COPIED)
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, person.uid, person.uid)
    environ = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k == "LANG"}
    environ |= {"HOME": str(person.home), "PATH": f"{Path(sys.base_prefix) / 'bin'}:{os.defpath}"}
    # Where the machine has a daemon of its own, this one is meant all the same.
    environ["AITBCD_RUNTIME_DIR"] = str(person.home / "runtime")
    (script,) = blocks("README.md", "Try it")
    uid = person.uid if os.getuid() == 0 else None
    done = run_shell(script, checkout, environ, uid)
    if done.returncode != 0 and NO_NETWORK.search(done.stdout):
        pytest.skip("pip reaches no package index from here")
    assert done.returncode == 0, done.stdout
    said = re.search(r"accuracy (0\.\d+)", done.stdout)
    assert said, done.stdout
    assert float(said[1]) > 0.9
    assert wait_for("nothing of it runs", lambda: not person.processes())
    results = person.home / ".local/state/aitbcd/results"
    (package,) = results.glob("job_*")
    names = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert {"artifacts/model.bin", "artifacts/metrics.json", "artifacts/confusion.png"} <= names
    assert (
        subprocess.run(["sha256sum", "-c", "--quiet", "output.sha256"], cwd=package).returncode == 0
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder that has what the examples speak of."""
    folder = tmp_path / "project"
    (folder / "ckpt").mkdir(parents=True)
    (folder / "train.py").write_text("import sys; print('training with', *sys.argv[1:])\n")
    (folder / "Makefile").write_text("test:\n\techo all well\n")
    for name in ("train.sh", "prepare"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} was here; echo 1 > ckpt/{name}.pt\n")
        (folder / name).chmod(0o755)
    (folder / "night.toml").write_text('command = "./train.sh"\nname = "night"\n')
    lines = [{"argv": ["echo", str(number)]} for number in range(3)]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def environ_of(daemon: Service) -> dict[str, str]:
    return os.environ | daemon.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"}


def test_everyday_examples_and_the_check_of_a_copy_work(project: Path, tmp_path: Path) -> None:
    with Service(tmp_path / "service", '[server]\ntcp = "127.0.0.1:0"\n') as daemon:
        for block in (*blocks("README.md", "Every day"), *blocks("README.md", "The result folder")):
            done = run_shell(block, project, environ_of(daemon))
            assert done.returncode == 0, done.stdout
            assert "Traceback" not in done.stdout
            if "--follow" in block:
                assert "\ntrain.sh was here\n" in done.stdout
        jobs = json.loads(daemon.run("aitbcctl", "list", "--json").stdout)["jobs"]
        ended = {job["name"] or job["number"]: job["status"] for job in jobs}
        assert ended.pop(max(n for n in ended if isinstance(n, int))) == "canceled"
        assert set(ended.values()) == {"completed"}


def test_http_examples_work(project: Path, tmp_path: Path) -> None:
    with Service(tmp_path / "service", '[server]\ntcp = "127.0.0.1:0"\n') as daemon:
        address = wait_for(
            "the daemon says its address",
            lambda: re.search(r"127\.0\.0\.1:\d+", daemon.log.read_text()),
            log=daemon.log,
        )
        (block,) = blocks("README.md", "HTTP")
        script = block.replace("127.0.0.1:8000", address[0]).replace("curl ", "curl -fsS ")
        done = run_shell(script, project, environ_of(daemon))
        assert done.returncode == 0, done.stdout
        assert "\n42\n" in done.stdout
        assert (project / "answer.zip").read_bytes()[:2] == b"PK"


def test_of_50_acknowledged_jobs_none_is_lost_by_a_kill(project: Path, tmp_path: Path) -> None:
    with Service(tmp_path / "service") as daemon:
        lines = project / "fifty.jsonl"
        lines.write_text('{"command": "sleep 0.05; echo done"}\n' * 50)
        acknowledged = daemon.run("aitbcctl", "submit", "--batch", str(lines)).stdout.split()
        assert len(acknowledged) == 50
        daemon.kill()
        daemon.start()

        def over() -> list[dict[str, Any]] | None:
            jobs = json.loads(daemon.run("aitbcctl", "list", "--json").stdout)["jobs"]
            return jobs if all(job["status"] == "completed" for job in jobs) else None

        jobs = wait_for("all are over", over, log=daemon.log)
        assert sorted(job["job_id"] for job in jobs) == sorted(acknowledged)
        assert {job["attempt"] for job in jobs} == {1}
