"""The README's examples, run as they stand there: what it promises on its first page works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT, blocks, run_shell, typed
from tests.driver import Driver, build, gpu
from tests.service import DEADLINE_S, PROGRAMS, Service, end_ours, wait_for
from tests.system.conftest import Cli, Screen

pytestmark = pytest.mark.system

#: Made by the tests and the checks, not part of a checkout.
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__")
#: What is in a result folder of every kind, and seen by the sampling of its GPUs.
TRAINS = """
import os, pathlib, time
pathlib.Path(os.environ["AITBC_ARTIFACTS_DIR"], "model.bin").write_text("weights")
time.sleep(0.5)
"""
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


#: Stands before what would use the network or install something, and says how it was called.
NOTES = """#!/bin/sh
echo "$(basename "$0") $*" >>"$NOTED"
"""
#: The interpreter that the environment of the tests is made with.
PYTHON = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
for each; do folder=$each; done
mkdir -p $folder/bin
cp {notes} $folder/bin/pip
cp {notes} $folder/bin/python
"""


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


def test_the_daemon_is_started_and_ended_as_it_says(tmp_path: Path) -> None:
    start, _ = blocks("README.md", "Every day", "console")
    (tmp_path / ".venv").symlink_to(PROGRAMS.parent)
    daemon = Service(tmp_path / "service")
    with daemon.log.open("wb") as log:
        running = subprocess.Popen(
            ["bash", "-euc", "\n".join(typed(start))],
            cwd=tmp_path,
            env=os.environ | daemon.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def said() -> str | None:
        assert running.poll() is None, daemon.log.read_text()
        text = daemon.log.read_text()
        return text if re.search(rf"{daemon.socket}[\s\S]*\bcores?\b", text) else None

    try:
        text = wait_for("it says where its socket is, and what it has to share", said)
        assert "Traceback" not in text
        # As the terminal does it.
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(DEADLINE_S) == 0
    finally:
        running.kill()
        end_ours(str(daemon.state))


def test_examples_with_gpus_work(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screen: Callable[..., Screen]
) -> None:
    driver = Driver(build(tmp_path), tmp_path / "nvml.script")
    driver.write(*map(gpu, range(4)))
    for name, value in driver.environ.items():
        monkeypatch.setenv(name, value)
    for name in ("train.py", "small.py"):
        (project / name).write_text(TRAINS)
    _, block = blocks("README.md", "Every day", "console")
    watch, *others = typed(block)
    config = '[server]\ntcp = ""\n[gpus]\nsample = "0.1s"\n'
    with Service(tmp_path / "service", config) as daemon, closing(Cli(daemon, project)) as cli:
        live = screen(cli, *shlex.split(watch)[1:], columns=120)
        live.expect("4 free")
        live.type("q")
        assert live.end() == 0
        environ = environ_of(daemon)
        environ["PATH"] += f":{Path(sys.executable).parent}"
        for line in others:
            done = run_shell(line, project, environ)
            assert "Traceback" not in done.stdout
            if line == "aitbcctl gpus test":  # the tests that have torch try it out
                assert done.returncode == 4, done.stdout
                assert "torch" in done.stdout
                continue
            assert done.returncode == 0, done.stdout
            if " submit " in line:
                cli.ended("@")
        small, train = cli.json("list")["jobs"]
        assert [len(job["gpu_uuids"]) for job in (train, small)] == [2, 1]
        drained = cli.json("gpus")["gpus"][3]
        assert drained["state"] == "drained"
        assert drained["reason"].startswith("new fan ")
        (tree,) = blocks("README.md", "The result folder", "")
        folder = Path(train["result_path"])
        shown = set(re.findall(r"[─] ([\w.]+)", tree))
        assert shown == {path.name for path in folder.rglob("*")}


def test_tests_are_run_in_an_environment_of_their_own(tmp_path: Path) -> None:
    ((line,),) = map(typed, blocks("README.md", "Tests", "console"))
    tools, noted = tmp_path / "tools", tmp_path / "noted"
    tools.mkdir()
    for name in ("apt-get", "notes"):
        (tools / name).write_text(NOTES)
        (tools / name).chmod(0o755)
    (tools / "python3").write_text(PYTHON.format(python=sys.executable, notes=tools / "notes"))
    (tools / "python3").chmod(0o755)
    checkout = tmp_path / "checkout"
    for name in ("tests/run", "tests/environment", "requirements"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    environ = {
        "PATH": f"{tools}:{os.environ['PATH']}", "NOTED": str(noted), "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }  # fmt: skip
    done = run_shell(line, checkout, environ)
    assert done.returncode == 0, done.stdout
    calls = [call for call in noted.read_text().splitlines() if not call.startswith("apt-get ")]
    locked, own, beside, alone = calls
    assert locked.startswith("pip install ")
    assert locked.endswith(" --require-hashes -r requirements/dev.txt")
    assert own.endswith(" --no-deps --no-build-isolation .")
    assert beside.startswith("python -m pytest ")
    assert beside.endswith(" -m not alone")
    assert alone.startswith("python -m pytest ")
    assert alone.endswith(" -m alone")


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
