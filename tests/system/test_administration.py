"""The administrator's guide: its samples work as they stand there, as does going back to a copy."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from aitbcd import settings
from tests.documents import blocks, run_shell
from tests.service import PROGRAMS, Service, wait_for

pytestmark = pytest.mark.system

GUIDE = "docs/administration.md"
CONFIG = '[server]\ntcp = "127.0.0.1:0"\n[slots]\ncpus = 1\n'


def typed(service: Service, script: str, folder: Path) -> str:
    environ = os.environ | service.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    done = run_shell(script, folder, environ)
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def copied(service: Service, folder: Path) -> Path:
    """Return a copy of the queue, made as the guide says."""
    (command,) = blocks(GUIDE, "Backups")
    typed(service, command.replace("/var/lib/aitbcd", str(service.state)), folder)
    (copy,) = folder.glob("queue-*.db")
    return copy


def put_back(copy: Path, service: Service) -> None:
    service.kill()
    for name in ("queue.db-wal", "queue.db-shm"):
        (service.state / name).unlink(missing_ok=True)
    copy.replace(service.state / "queue.db")
    service.start()


def submit(service: Service, *options: str) -> str:
    return service.run("aitbcctl", "submit", *options).stdout.strip()


def job(service: Service, job_id: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(service.run("aitbcctl", "status", "--json", job_id).stdout)
    return shown


def ended(service: Service, job_id: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        shown = job(service, job_id)
        return shown if shown["status"] in ("completed", "failed", "canceled") else None

    return wait_for(f"{job_id} is over", over, log=service.log)


def test_the_configuration_is_one(tmp_path: Path) -> None:
    (example,) = blocks(GUIDE, "How the machine is shared", "toml")
    loaded = settings.parse(example, tmp_path / "aitbcd.toml")
    assert loaded.limits.gpus == 4


def test_prometheus_is_told_where_the_numbers_are() -> None:
    (example,) = blocks(GUIDE, "What to watch", "yaml")
    (job,) = yaml.safe_load(example)["scrape_configs"]
    assert job.keys() == {"job_name", "static_configs"}  # its path is /metrics where none is said
    assert job["static_configs"] == [{"targets": [settings.Settings().server.tcp]}]


def test_what_is_typed_works(tmp_path: Path) -> None:
    with Service(tmp_path / "service", CONFIG) as service:
        address = wait_for(
            "the daemon says its address",
            lambda: re.search(r"127\.0\.0\.1:\d+", service.log.read_text()),
            log=service.log,
        )[0]
        for block in blocks(GUIDE, "How the machine is shared"):
            typed(service, block, tmp_path)
        (block,) = blocks(GUIDE, "What to watch")
        # It fails where the machine has something to complain of, which is no fault of the guide.
        script = block.replace("127.0.0.1:8000", address).replace("doctor ", "doctor || : ")
        said = typed(service, script, tmp_path)
        assert "aitbcd_jobs_active 0" in said


def test_an_older_copy_loses_no_results_and_runs_no_job_again(tmp_path: Path) -> None:
    with Service(tmp_path / "service", CONFIG) as service:
        gate = tmp_path / "gate"
        first = submit(service, "-c", f"until [ -e {gate} ]; do sleep 0.05; done; echo first")
        waited = submit(service, "-c", f"echo ran >>{tmp_path}/times")
        wait_for("it runs", lambda: job(service, first)["status"] == "running", log=service.log)
        copy = copied(service, tmp_path)
        gate.touch()
        later = submit(service, "--", "echo", "later")
        for each in (first, waited, later):
            ended(service, each)
        kept = {path: (path / "output.sha256").read_bytes() for path in results(service)}
        put_back(copy, service)
        for each in (first, waited):
            assert ended(service, each)["status"] == "completed"
        assert (tmp_path / "times").read_text() == "ran\n"
        new = submit(service, "--", "echo", "new")
        assert new not in (first, waited, later)
        assert ended(service, new)["status"] == "completed"
        assert job(service, new)["number"] == 4
        assert {path: (path / "output.sha256").read_bytes() for path in kept} == kept
        assert f"results up to number 3 lie in {service.state}/results" in service.log.read_text()
        # Over the next start, too.
        service.kill()
        service.start()
        assert job(service, submit(service, "--", "true"))["number"] == 5


def results(service: Service) -> list[Path]:
    return sorted((service.state / "results").glob("job_*"))
