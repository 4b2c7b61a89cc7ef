"""After the end: ``delete``, ``retry``, ``keep``, ``stats``, ``export``; and ``queue``."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.service import Service, wait_for
from tests.system.conftest import CONFIG, Cli, Gate, Screen

pytestmark = pytest.mark.system


def ended(cli: Cli, line: str, *options: str) -> str:
    job = cli.shell(line, *options)
    cli.ended(job)
    return job


class TestDelete:
    @pytest.mark.parametrize("verb", ["delete", "rm"])
    def test_results_and_job_are_gone(self, cli: Cli, verb: str) -> None:
        job = ended(cli, "head -c 100000 /dev/zero")
        folder = Path(cli.status(job)["result_path"])
        assert f"{job} deleted, " in cli(verb, job).stdout.decode()
        assert not folder.exists()
        cli("status", job, code=3)
        assert job not in cli.job_ids()

    def test_it_says_what_was_freed(self, cli: Cli) -> None:
        answer = cli.json("delete", ended(cli, "head -c 100000 /dev/zero"))
        assert answer["deleted"] is True
        assert answer["freed_bytes"] >= 100_000

    def test_it_says_what_is_freed_later(self, cli: Cli) -> None:
        job = ended(cli, "head -c 100000 /dev/zero")
        folder = os.open(cli.status(job)["result_path"], os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_SH)
            said = cli("delete", job).stdout.decode()
        finally:
            os.close(folder)
        assert said.startswith(f"{job} deleted, ")
        assert "to be freed: somebody reads them" in said

    def test_a_running_job_is_refused_with_what_to_do(self, cli: Cli, gate: Gate) -> None:
        job = cli.shell(gate.wait)
        cli.until(job, "running")
        for options in ([], ["--force"]):
            assert b"aitbcctl cancel " in cli("rm", *options, job, code=4).stderr
        assert cli.status(job)["status"] == "running"

    def test_several_are_deleted_or_none_of_them(self, cli: Cli, gate: Gate) -> None:
        first, second = ended(cli, "true"), ended(cli, "true")
        running = cli.shell(gate.wait)
        for wrong, code in ((running, 4), ("job_zzzzzzzz", 3)):
            cli("delete", first, second, wrong, code=code)
        assert {first, second, running} <= set(cli.job_ids())
        number = str(cli.status(first)["number"])
        text = cli("delete", first, second, number).stdout.decode()
        assert [line.split()[0] for line in text.splitlines()] == [first, second]
        assert not {first, second} & set(cli.job_ids())

    def test_a_terminal_is_asked_first(self, cli: Cli, screen: Callable[..., Screen]) -> None:
        job = ended(cli, "true", "--name", "precious")
        for answer, code in (("\n", 1), ("n\n", 1), ("y\n", 0)):
            cli("status", job)
            shown = screen(cli, "delete", job)
            shown.expect(f"Delete {job} (precious) and its results? [y/N] ")
            shown.type(answer)
            assert shown.end() == code
        cli("status", job, code=3)
        forced = ended(cli, "true")
        shown = screen(cli, "delete", "--force", forced)
        assert shown.end() == 0
        assert "y/N" not in shown.text


class TestRetry:
    def test_it_is_the_same_job_once_more(self, cli: Cli) -> None:
        job = ended(cli, "echo $K; exit 3", "--name", "again", "--env", "K=v", "--timeout", "1h")
        again = cli("retry", job).stdout.decode().strip()
        assert again != job
        assert cli.ended(again)["exit_code"] == 3
        assert cli("logs", again).stdout == b"v\n"
        details = cli.json("get", again)
        assert (details["retry_of"], details["name"]) == (job, "again")
        assert details["requested"]["timeout_s"] == 3600
        assert f"repeats    {job}" in cli("status", again).stdout.decode()

    def test_one_that_runs_is_refused(self, cli: Cli, gate: Gate) -> None:
        job = cli.shell(gate.wait)
        cli.until(job, "running")
        assert b"running" in cli("retry", job, code=4).stderr


@pytest.fixture
def quick_daemon(tmp_path: Path) -> Iterator[Service]:
    """One whose plan keeps results for two seconds, and can keep them longer."""
    config = CONFIG + '[plans.free]\nretention = "2s"\nkeep = "1d"\n'
    with Service(tmp_path / "quick", config) as running:
        yield running


@pytest.fixture
def quick_cli(quick_daemon: Service, tmp_path: Path) -> Iterator[Cli]:
    with closing(Cli(quick_daemon, tmp_path)) as ours:
        yield ours


class TestRetention:
    def test_what_goes_and_when_is_shown(self, cli: Cli) -> None:
        job = ended(cli, "true", "--name", "to go")
        text = cli("retention", "--dry-run").stdout.decode()
        assert "deleted when they expire" in text
        line = next(line for line in text.splitlines() if line.startswith(job))
        assert "to go" in line
        assert " d " in line
        assert job in [one["job_id"] for one in cli.json("retention", "--dry-run")["jobs"]]
        assert "next: job_" in cli("retention").stdout.decode()

    def test_resuming_what_goes_on_is_harmless(self, cli: Cli) -> None:
        assert b"deleted when they expire" in cli("retention", "resume").stdout

    def test_expired_results_are_said_to_be(self, quick_cli: Cli) -> None:
        job = ended(quick_cli, "true")
        wait_for(
            "its results expire",
            lambda: quick_cli.status(job)["results"] == "expired",
            log=quick_cli.daemon.log,
        )
        for verb in ("download", "verify", "logs"):
            assert b"expired" in quick_cli(verb, job, code=4).stderr
        assert re.search(rb"results +expired \d{4}-", quick_cli("status", job).stdout)

    def test_results_can_be_kept_longer(self, cli: Cli) -> None:
        job = ended(cli, "true")
        until = cli.status(job)["expires_at"]
        assert f"{job} is kept until " in cli("keep", job).stdout.decode()
        assert cli.status(job)["expires_at"] >= until
        assert b"--until '2026-02-30'" in cli("keep", job, "--until", "2026-02-30", code=2).stderr
        assert b"plan" in cli("keep", job, "--until", "9000-01-01", code=4).stderr
