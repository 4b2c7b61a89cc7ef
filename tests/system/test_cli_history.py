"""What was and what is: ``export``, ``stats`` and ``queue``."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from tests.service import DEADLINE_S
from tests.system.conftest import Cli, Gate, Screen

pytestmark = pytest.mark.system


def ended(cli: Cli, line: str, *options: str) -> str:
    job = cli.shell(line, *options)
    cli.ended(job)
    return job


class TestQueue:
    def test_it_shows_what_runs_and_what_waits_for_what(self, own_cli: Cli, gate: Gate) -> None:
        cores = str(os.sysconf("SC_NPROCESSORS_ONLN"))
        running = own_cli.shell(gate.wait, "--cpus", cores, "--name", "busy", "--timeout", "2h")
        own_cli.until(running, "running")
        first = own_cli.shell("true", "--cpus", cores)
        second = own_cli.shell("true", "--priority", "high")
        lines = own_cli("queue").stdout.decode().splitlines()[1:]
        assert [line.split()[1] for line in lines] == [running, second, first]
        assert all(line.startswith("*") for line in lines)
        assert "until " in lines[0]
        assert "waits for 1 CPU core" in lines[1]
        # The first of its priority, with its own obstacle.
        assert f"waits for {cores} CPU core" in lines[2]
        page = own_cli.json("queue", "--limit", "2")
        rest = own_cli.json("queue", "--limit", "2", "--after", page["next"])
        assert [job["job_id"] for job in page["jobs"] + rest["jobs"]] == [running, second, first]
        assert rest["next"] is None

    def test_an_empty_one_says_so(self, own_cli: Cli) -> None:
        assert own_cli("queue").stderr == b"nothing runs, and nothing waits\n"
        assert own_cli.json("queue") == {"jobs": [], "next": None}


class TestExport:
    def test_json_is_one_array_of_what_list_shows(self, own_cli: Cli) -> None:
        jobs = [ended(own_cli, line) for line in ("true", "exit 1", "true")]
        assert (
            own_cli("export", "--format", "json", "--output", "jobs.json").stdout == b"jobs.json\n"
        )
        held = json.loads((own_cli.folder / "jobs.json").read_text())
        assert held == own_cli.json("list")["jobs"]
        failed = json.loads(own_cli("export", "--status", "failed").stdout)
        assert [job["job_id"] for job in failed] == [jobs[1]]

    def test_csv_has_the_id_first_and_runs_no_formula(self, own_cli: Cli) -> None:
        job = ended(own_cli, "true", "--name", '=cmd|"/c calc"!A1, x')
        own_cli("export", "--output", "jobs.csv")
        rows = list(csv.reader(io.StringIO((own_cli.folder / "jobs.csv").read_text())))
        assert rows[0][0] == "job_id"
        assert rows[1][0] == job
        assert rows[1][rows[0].index("name")].startswith("'=")

    @pytest.mark.parametrize("line", ["export", "export --format csv", "list --format csv"])
    def test_a_terminal_is_not_commanded_by_a_history(
        self, cli: Cli, screen: Callable[..., Screen], line: str
    ) -> None:
        evil = "\u202e\x1b]0;evil\x07\x9b2J"
        cli.ended(cli.submit("--name", "odd", "true", evil))
        verb = [*line.split(), "--name", "odd"]
        shown = screen(cli, *verb)
        assert shown.end() == 0
        assert "evil" in shown.text
        assert "".join(shown.text.split("\r\n")).isprintable()
        assert "\u202e" in cli(*verb).stdout.decode()

    def test_an_old_file_is_replaced_whole_or_not_at_all(self, cli: Cli) -> None:
        ended(cli, "true")
        (cli.folder / "jobs.json").write_text("old")
        nowhere = {"AITBC_SOCKET": str(cli.folder / "none")}
        cli("export", "--output", "jobs.json", code=5, environ=nowhere)
        assert (cli.folder / "jobs.json").read_text() == "old"
        cli("export", "--output", "jobs.json")
        assert json.loads((cli.folder / "jobs.json").read_text())[0]["job_id"]
        assert [name for name in os.listdir(cli.folder) if name.startswith(".")] == []

    def test_half_a_history_is_no_file(self, cli: Cli) -> None:
        (cli.folder / "jobs.json").write_text("old")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(cli.folder / "s"))
            listener.listen()
            export = cli.start(
                "export", "--output", "jobs.json", environ={"AITBC_SOCKET": str(cli.folder / "s")}
            )
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                peer.sendall(head + b"4\r\n[{},\r\n")
            said = export.communicate(timeout=DEADLINE_S)[1]
        assert export.returncode == 5
        assert b"went away before its answer was whole" in said
        assert (cli.folder / "jobs.json").read_text() == "old"
        assert sorted(os.listdir(cli.folder)) == ["jobs.json", "s"]

    @pytest.mark.parametrize("output", ["none/jobs.json", ".", "/proc/jobs.json"])
    def test_where_it_cannot_be_written_is_said(self, cli: Cli, output: str) -> None:
        assert f"cannot write {output}" in cli("export", "--output", output, code=1).stderr.decode()

    def test_the_period_is_one(self, cli: Cli) -> None:
        for verb in ("list", "export", "stats"):
            done = cli(verb, "--from", "2026-02-01", "--to", "2026-01-31", code=2)
            assert b"--from '2026-02-01' is not before --to '2026-01-31'" in done.stderr
            cli(verb, "--from", "2026-02-01", "--to", "9999-12-31")

    def test_a_full_disk_is_said(self, cli: Cli) -> None:
        ended(cli, "true")
        done = cli("export", "--output", "/dev/full", code=1)
        assert b"cannot write /dev/full: No space left on device" in done.stderr


class TestStats:
    def test_it_shows_what_the_document_promises(self, own_cli: Cli) -> None:
        for line in ("true", "true", "exit 1"):
            ended(own_cli, line)
        text = own_cli("stats").stdout.decode()
        lines = dict(line.split("  ", 1) for line in text.splitlines())
        assert lines["Total jobs submitted"].strip() == "3"
        assert lines["Success rate"].strip() == "66.7 %"
        assert lines["Average completion time"].strip().endswith("s")
        assert lines["Total spent"].strip().startswith("0.00")

    @pytest.mark.parametrize("zone", ["Nonsense/Zone", "../../etc/passwd", "Asia/Kathmandu", "X-1"])
    def test_days_are_of_whatever_zone_the_caller_has(self, cli: Cli, zone: str) -> None:
        ended(cli, "true")
        assert cli("stats", "--by", "day", environ={"TZ": zone}).stdout.count(b"\n") > 10

    def test_groups_have_a_line_each(self, own_cli: Cli) -> None:
        for name in ("a", "a", "b"):
            ended(own_cli, "true", "--name", name)
        for by, keys in (("name", {"a": 2, "b": 1}), ("day", None), ("user", None)):
            groups = own_cli.json("stats", "--by", by)["groups"]
            assert sum(group["submitted"] for group in groups) == 3
            if keys:
                assert {group["key"]: group["submitted"] for group in groups} == keys
        assert "FAILED BY" not in own_cli("stats", "--by", "name").stdout.decode()
        today = datetime.now().astimezone().date()
        assert f"\n{today}" in own_cli("stats", "--by", "day", "--days", "2").stdout.decode()
        tomorrow = str(today + timedelta(days=2))
        assert own_cli.json("stats", "--from", tomorrow)["total"]["submitted"] == 0

    def test_what_jobs_failed_by_is_counted_in_every_group(self, own_cli: Cli) -> None:
        out_of_memory = "echo CUDA out of memory >&2; exit 1"
        for name, line in (("a", out_of_memory), ("a", out_of_memory), ("b", "exit 1")):
            ended(own_cli, line, "--name", name)
        shown = own_cli("stats", "--by", "name").stdout.decode().splitlines()
        assert "Failed                   3 (2 cuda_oom)" in shown
        rows = {line.split()[0]: line for line in shown if line[:1] in ("a", "b")}
        assert rows["a"].endswith("  2 cuda_oom")
        assert "cuda_oom" not in rows["b"]
        for by in ("user", "day"):
            lines = own_cli("stats", "--by", by).stdout.decode().splitlines()
            assert lines[-1].endswith("  2 cuda_oom")
