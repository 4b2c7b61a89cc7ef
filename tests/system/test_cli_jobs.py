"""``status``, ``get``, ``list``, ``watch``, ``logs``, ``cancel``."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from aitbcctl.verbs import VERBS
from tests.service import DEADLINE_S, Service
from tests.system.conftest import CONFIG, Cli, Gate, Screen

pytestmark = pytest.mark.system

OF_A_JOB = "status watch logs get cancel download verify delete rm retry keep share".split()


@pytest.mark.parametrize("verb", OF_A_JOB)
def test_a_job_is_named_once(cli: Cli, verb: str) -> None:
    assert b"name the job: its id, number" in cli(verb, code=2).stderr
    assert b"name the job once" in cli(verb, "1", "--job-id", "1", code=2).stderr
    assert b"name the job" in cli(verb, "", code=2).stderr


@pytest.mark.parametrize("verb", OF_A_JOB)
@pytest.mark.parametrize("ref", ["job_zzzzzzzz", "999999", "no/such?job", "é"])
def test_an_unknown_job_is_an_exit_code_of_its_own(cli: Cli, verb: str, ref: str) -> None:
    done = cli(verb, ref, code=3)
    assert done.stdout == b""
    assert done.stderr.startswith(b"aitbcctl: ")


def test_who_gives_a_name_is_told_how_to_find_it(cli: Cli) -> None:
    job = cli.submit("--name", "not an id", "--", "true")
    said = cli("status", "not an id", code=3).stderr.decode()
    options = re.search(r"by: (aitbcctl list) \(by name: (.*)\)$", said)
    assert options
    words = shlex.split(" ".join(options.groups()))
    assert cli(*words[1:], "--format", "ids").stdout.decode().split() == [job]
    assert "--name" not in cli("status", "job_zzzzzzzz", code=3).stderr.decode()


def test_a_job_is_found_by_id_number_prefix_and_as_the_latest(cli: Cli) -> None:
    job = cli.submit("--", "true")
    number = str(cli.status(job)["number"])
    for ref in (job, job[4:], job[:-1], job[4:-1], number, "@"):
        assert cli.json("status", ref)["job_id"] == job
        assert cli.json("status", "--job-id", ref)["job_id"] == job


def test_of_results_that_are_gone_it_is_not_said_that_nothing_was_written(cli: Cli) -> None:
    job = cli.shell("echo wrong >&2; exit 1")
    results = Path(cli.ended(job)["result_path"])
    assert b"  wrong\n" in cli("status", job).stdout
    results.rename(results.with_name("elsewhere"))
    said = cli("status", job).stdout
    assert b"it wrote nothing" not in said
    assert b"cannot be shown: the results of job" in said


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_an_example(cli: Cli, verb: str) -> None:
    text = cli(verb, "--help").stdout.decode()
    assert text.startswith(f"Usage: aitbcctl {verb}")
    assert verb == "demo" or f"aitbcctl {verb}" in text.partition("Example")[2]
    assert max(map(len, text.splitlines())) <= 82


def test_status_shows_a_job_in_each_state(cli: Cli, gate: Gate) -> None:
    job = cli.shell(gate.wait, "--name", "the one")
    cli.until(job, "running")
    text = cli("status", job).stdout.decode()
    assert "the one" in text
    assert "running" in text
    gate.open()
    cli.ended(job)
    text = cli("status", job).stdout.decode()
    assert "completed after" in text
    assert str(cli.status(job)["result_path"]) in text


def test_a_failed_job_says_why(cli: Cli) -> None:
    job = cli.shell("exit 3")
    cli.ended(job)
    assert "exited with status 3" in cli("status", job).stdout.decode()
    assert "it wrote nothing" in cli("status", job).stdout.decode()
    assert "exit code 3" in cli("list", "--limit", "1").stdout.decode()


def test_a_failed_job_shows_the_end_of_what_it_wrote(cli: Cli) -> None:
    job = cli.shell("echo out; seq 100 >&2; printf '\\033]0;evil\\007' >&2; exit 1")
    cli.ended(job)
    text = cli("status", job).stdout.decode()
    assert f"aitbcctl logs --stream stderr {job}" in text
    assert [line.strip() for line in text.splitlines()[-5:]] == [
        "97", "98", "99", "100", "\\x1b]0;evil\\x07"
    ]  # fmt: skip
    job = cli.shell("echo only out; exit 1")
    cli.ended(job)
    assert "only out" in cli("status", job).stdout.decode()


def test_get_shows_what_was_kept_and_what_was_left_out(cli: Cli) -> None:
    job = cli.shell("echo x >kept.pt", "--artifact", "*.pt", "--artifact", "none*")
    cli.ended(job)
    lines = [line.strip() for line in cli("get", job).stdout.decode().splitlines()]
    assert "2 bytes  artifacts/kept.pt" in lines
    assert "left out  none*: matched nothing" in lines


def test_get_shows_how_much_of_a_log_was_dropped(tmp_path: Path) -> None:
    service = Service(tmp_path / "service", CONFIG + 'log_limit = "64K"\n')
    with service, closing(Cli(service, tmp_path)) as cli:
        job = cli.shell("head -c 1048576 /dev/zero")
        cli.ended(job)
        shown = cli("get", job).stdout.decode()
        assert re.search(r"left out  logs/stdout\.log: \d+\.\d KiB of its middle\n", shown)


def test_get_shows_everything_but_values_of_variables(cli: Cli) -> None:
    done = cli("submit", "--env", "PASSWORD=s3cret", "--timeout", "1h", "-c", "echo 'a  b' | cat")
    job = done.stdout.decode().strip()
    cli.ended(job)
    text = cli("get", job).stdout.decode()
    for words in ("echo 'a  b' | cat", str(cli.folder), "PASSWORD", "at most 1 h", "attempt 1",
                  "completed", "sha256"):  # fmt: skip
        assert words in text
    assert "s3cret" not in text + cli("get", job, "--json").stdout.decode()


class TestList:
    def test_the_newest_come_first_page_by_page(self, cli: Cli) -> None:
        lines = b'{"command": "true"}\n' * 450
        jobs = cli("submit", "--wait", "--batch", "-", stdin=lines).stdout.decode().split()
        page = cli.json("list", "--limit", "430")
        assert [job["job_id"] for job in page["jobs"]] == jobs[::-1][:430]
        rest = cli.json("list", "--limit", "20", "--after", page["next"])
        assert [job["job_id"] for job in rest["jobs"]] == jobs[::-1][430:]

    def test_where_the_list_goes_on_is_said_beside_it(self, cli: Cli) -> None:
        cli.submit("--", "true")
        cli.submit("--", "true")
        done = cli("list", "--limit", "1")
        assert len(done.stdout.splitlines()) == 2
        words = done.stderr.decode().split()
        assert words[:5] == ["more:", "aitbcctl", "list", "--limit", "1"]
        assert len(cli(*words[2:]).stdout.splitlines()) == 2

    def test_one_state_can_be_wanted(self, cli: Cli) -> None:
        job = cli.shell("exit 1")
        cli.ended(job)
        jobs = cli.json("list", "--status", "failed")["jobs"]
        assert jobs[0]["job_id"] == job
        assert {job["status"] for job in jobs} == {"failed"}
        assert b"'running'" in cli("list", "--status", "run", code=2).stderr
        assert cli.json("list", "--status", "failed,canceled", "--status", "running")["jobs"]

    def test_days_and_dates_are_the_callers(self, cli: Cli) -> None:
        job = cli.submit("--", "true")
        today = datetime.now().astimezone().date()
        for options in (["--days", "1"], ["--from", str(today), "--to", str(today)]):
            assert job in [one["job_id"] for one in cli.json("list", *options)["jobs"]]
        # In the zone that is a day ahead or behind, the same instant is of another date.
        tomorrow = str(today + timedelta(days=2))
        for options in (["--from", tomorrow], ["--to", "2020-01-01"]):
            assert cli("list", *options).stderr == b"no such jobs\n"

    def test_it_can_be_chosen_by_name_and_sorted(self, cli: Cli) -> None:
        jobs = [cli.submit("--name", f"sort-{name}", "--", "true") for name in ("b", "a", "c")]
        found = cli.json("list", "--name", "sort-*", "--sort", "name")["jobs"]
        assert [job["name"] for job in found] == ["sort-a", "sort-b", "sort-c"]
        found = cli.json("list", "--name", "sort-b")["jobs"]
        assert [job["job_id"] for job in found] == jobs[:1]
        assert b"--sort" in cli("list", "--sort", "colour", code=2).stderr

    def test_it_can_be_a_table_for_spreadsheets(self, cli: Cli) -> None:
        job = cli.submit("--name", "=1+1", "--", "true")
        text = cli("list", "--limit", "1", "--format", "csv").stdout.decode()
        rows = list(csv.reader(text.splitlines()))
        assert rows[0][:2] == ["job_id", "number"]
        assert rows[1][0] == job
        assert rows[1][3] == "'=1+1"
        assert b"two things" in cli("list", "--json", "--format", "csv", code=2).stderr

    def test_it_can_be_ids_for_other_verbs(self, cli: Cli) -> None:
        jobs = [cli.submit("--name", "ids-of-these", "--", "true") for _ in range(2)]
        asked = ("list", "--format", "ids", "--name")
        assert cli(*asked, "ids-of-these").stdout.decode().split("\n") == [*jobs[::-1], ""]
        assert cli(*asked, "ids-of-none").stdout == b""

    def test_a_day_that_never_was_is_refused(self, cli: Cli) -> None:
        assert b"--from '2026-02-30'" in cli("list", "--from", "2026-02-30", code=2).stderr
        assert b"not both" in cli("list", "--days", "1", "--from", "2026-01-01", code=2).stderr
        assert b"no such time" in cli("list", "--days", "99999999", code=2).stderr

    def test_what_goes_on_asks_for_the_same(self, cli: Cli) -> None:
        for _ in range(2):
            cli.submit("--", "true")
        said = cli("list", "--limit", "1", "--days", "1", "--status", "pending,running,completed,"
                   "assigned").stderr.decode()  # fmt: skip
        assert "--days=1" in said
        assert cli(*shlex.split(said)[2:]).stdout

    def test_no_jobs_are_an_empty_table(self, own_cli: Cli) -> None:
        done = own_cli("list")
        assert (done.stdout, done.stderr) == (b"", b"no jobs\n")
        assert own_cli.json("list") == {"jobs": [], "next": None}

    def test_it_fits_the_terminal(self, cli: Cli, screen: Callable[..., Screen]) -> None:
        cli.ended(cli.submit("--name", "n" * 200, "--", "true"))
        shown = screen(cli, "list", "--limit", "3", columns=72)
        assert shown.end() == 0
        lines = shown.text.splitlines()
        assert lines[0].startswith("JOB ")
        table = [line for line in lines if not line.startswith("more: ")]
        assert max(map(len, table)) <= 72

    def test_how_to_go_on_is_the_last_line_also_where_all_goes_to_one_place(self, cli: Cli) -> None:
        for _ in range(2):
            cli.ended(cli.submit("--", "true"))
        said = cli.folder / "said"
        # Else each line goes out at once, which is not how people have it.
        environ = {k: v for k, v in cli.environ.items() if k != "PYTHONUNBUFFERED"}
        for shape in ("table", "ids"):
            with said.open("wb") as file:
                command = cli.command("list", "--limit", "1", "--format", shape)
                subprocess.run(command, env=environ, stdout=file, stderr=file, check=True)
            assert said.read_text().splitlines()[-1].startswith("more: aitbcctl list")

    def test_a_wrong_limit_or_cursor_is_a_usage_error(self, cli: Cli) -> None:
        cli("list", "--limit", "0", code=2)
        cli("list", "--after", "nonsense", code=2)


class TestWatch:
    def test_in_a_pipe_each_change_is_a_line(self, cli: Cli) -> None:
        job = cli.shell("echo 30 >$AITBC_PROGRESS")
        lines = cli("watch", job).stdout.decode().splitlines()
        assert all(line.startswith(job) for line in lines)
        states = [line.split()[3] for line in lines if "%" not in line]
        assert states == ["pending", "assigned", "running", "completed"]

    def test_it_tells_how_the_job_ended(self, cli: Cli) -> None:
        assert b"failed" in cli("watch", cli.shell("exit 2"), code=1).stdout
        job = cli.shell("sleep 100")
        cli.until(job, "running")
        cli("cancel", job, "--force")
        assert b"canceled" in cli("watch", job, code=1).stdout

    def test_with_json_each_change_is_an_object(self, cli: Cli) -> None:
        lines = cli("watch", "--json", cli.submit("--", "true")).stdout.splitlines()
        changes = [json.loads(line) for line in lines]
        assert [c["status"] for c in changes if "seq" in c][-1] == "completed"

    def test_progress_is_shown_live_on_a_terminal(
        self, cli: Cli, gate: Gate, screen: Callable[..., Screen]
    ) -> None:
        line = f"echo 37 >>$AITBC_PROGRESS; {gate.wait}; echo 81 >>$AITBC_PROGRESS; {gate.wait}"
        job = cli.shell(line, "--name", "bar")
        shown = screen(cli, "watch", job)
        shown.expect("37%")
        assert "bar running" in shown.text
        gate.open()
        shown.expect("81%")
        gate.open()
        shown.expect(f"{job} completed after")
        assert shown.end() == 0

    def test_what_a_job_waits_for_is_seen_to_be_cut(
        self, own_cli: Cli, gate: Gate, screen: Callable[..., Screen]
    ) -> None:
        own_cli.shell(gate.wait, "--cpus", str(os.sysconf("SC_NPROCESSORS_ONLN")))
        job = own_cli.submit("--", "true")
        whole = own_cli.status(job)["waiting"]
        shown = screen(own_cli, "watch", job, columns=100)
        shown.expect(f"{job} {whole[:39]}…")
        gate.open()
        shown.expect(f"{job} completed")
        assert shown.end() == 0

    def test_it_survives_a_kill_of_the_daemon(self, own_cli: Cli, gate: Gate) -> None:
        job = own_cli.shell(f"{gate.wait}; exit 6")
        own_cli.until(job, "running")
        watching = own_cli.start("watch", "--json", job)
        assert watching.stdout is not None
        first = [json.loads(watching.stdout.readline()) for _ in range(3)]
        assert own_cli.daemon.process is not None
        own_cli.daemon.process.kill()
        own_cli.daemon.process.wait()
        gate.open()
        own_cli.daemon.start()
        rest = watching.communicate(timeout=DEADLINE_S)[0].splitlines()
        seqs = [c["seq"] for c in first + [json.loads(line) for line in rest] if "seq" in c]
        assert seqs == sorted(set(seqs)), "no change is told twice"
        assert json.loads(rest[-1])["status"] == "failed"
        assert watching.returncode == 1

    def test_an_interrupt_leaves_the_job_alone(self, cli: Cli, gate: Gate) -> None:
        job = cli.shell(gate.wait)
        cli.until(job, "running")
        watching = cli.start("watch", job)
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        said = watching.communicate(timeout=DEADLINE_S)[1]
        assert watching.returncode == 130
        # Below the ^C that a terminal shows, and with nothing below it.
        assert said.startswith(b"\n")
        assert said.endswith(f"aitbcctl watch {job}\n".encode())
        assert cli.status(job)["status"] == "running"


class TestLogs:
    def test_each_stream_goes_to_ours_of_the_same_name(self, cli: Cli) -> None:
        job = cli.shell("printf 'o\\0\\377\\033[2J'; printf 'e\\r\\n' >&2")
        cli.ended(job)
        done = cli("logs", job)
        assert (done.stdout, done.stderr) == (b"o\0\xff\x1b[2J", b"e\r\n")
        done = cli("logs", "--stream", "stderr", job)
        assert (done.stdout, done.stderr) == (b"e\r\n", b"")

    def test_the_last_lines_can_be_wanted(self, cli: Cli) -> None:
        job = cli.shell("seq 1000")
        cli.ended(job)
        assert cli("logs", "--tail", "2", job).stdout == b"999\n1000\n"
        assert cli("logs", "--tail", "0", job).stdout == b""

    def test_of_a_job_that_waits_it_is_said(self, tmp_path: Path) -> None:
        service = Service(tmp_path / "service", CONFIG + "[slots]\ncpus = 1\n")
        with service, closing(Cli(service, tmp_path)) as cli:
            cli.submit("--", "sleep", "1000")
            waits = cli.submit("--", "true")
            done = cli("logs", waits)
            assert done.stdout == b""
            assert f"aitbcctl logs -f {waits}" in done.stderr.decode()
            cli("cancel", "--force", "1")
            cli.ended(waits)
            assert cli("logs", waits).stderr == b""

    def test_an_interrupt_of_who_follows_says_how_to_come_back(self, cli: Cli, gate: Gate) -> None:
        job = cli.shell(f"echo a; {gate.wait}")
        following = cli.start("logs", "-f", job)
        assert following.stdout is not None
        assert following.stdout.readline() == b"a\n"
        following.send_signal(signal.SIGINT)
        said = following.communicate(timeout=DEADLINE_S)[1].decode()
        assert following.returncode == 130
        assert said.endswith(f"aitbcctl logs -f {job}\n")
        gate.open()
        cli.ended(job)

    def test_following_goes_on_to_the_end(self, cli: Cli, gate: Gate) -> None:
        job = cli.shell(f"echo a; {gate.wait}; echo b")
        following = cli.start("logs", "-f", job)
        assert following.stdout is not None
        assert following.stdout.readline() == b"a\n"
        gate.open()
        assert following.communicate(timeout=DEADLINE_S)[0] == b"b\n"
        assert following.returncode == 0

    def test_following_a_tail_goes_on_after_a_restart_without_repeating(
        self, own_cli: Cli, gate: Gate
    ) -> None:
        job = own_cli.shell(f"seq 100; {gate.wait}; echo end")
        own_cli.until(job, "running")
        following = own_cli.start("logs", "-f", "--tail", "1", job)
        assert following.stdout is not None
        assert following.stdout.readline() == b"100\n"
        assert own_cli.daemon.process is not None
        own_cli.daemon.process.kill()
        own_cli.daemon.process.wait()
        gate.open()
        own_cli.daemon.start()
        assert following.communicate(timeout=DEADLINE_S)[0] == b"end\n"

    def test_with_json_each_line_says_its_stream(self, cli: Cli) -> None:
        job = cli.shell("printf 'a\\nb'; printf '\\377\\n' >&2")
        cli.ended(job)
        lines = [json.loads(line) for line in cli("logs", "--json", job).stdout.splitlines()]
        assert [line for line in lines if line["stream"] == "stdout"] == [
            {"stream": "stdout", "text": "a"},
            {"stream": "stdout", "text": "b"},
        ]
        assert {"stream": "stderr", "b64": "/w=="} in lines

    def test_a_terminal_is_not_commanded_by_a_log(
        self, cli: Cli, screen: Callable[..., Screen]
    ) -> None:
        job = cli.shell("printf '\\033]0;evil\\007\\033[31mred\\033[0m\\n'")
        cli.ended(job)
        shown = screen(cli, "logs", job)
        assert shown.end() == 0
        assert "^[]0;evil^G\x1b[31mred\x1b[0m" in shown.text


class TestCancel:
    def test_several_are_canceled_and_what_is_over_is_said(self, cli: Cli, gate: Gate) -> None:
        over = cli.shell("true")
        cli.ended(over)
        jobs = [cli.shell(gate.wait) for _ in range(2)]
        done = cli("cancel", "--force", *jobs, over, jobs[0], code=4)
        assert f"{over} is over (completed)" in done.stderr.decode()
        assert [line.split()[0] for line in done.stdout.decode().splitlines()] == jobs
        assert [cli.status(job)["status"] for job in jobs] == ["canceled"] * 2
        jobs = [cli.shell(gate.wait) for _ in range(2)]
        canceled = cli.json("cancel", *jobs)["jobs"]
        assert [job["job_id"] for job in canceled] == jobs
        last = cli.shell(gate.wait)
        done = cli("cancel", last, "job_zzzzzzzz", code=3)
        assert b"no job job_zzzzzzzz; so nothing was done to any of them" in done.stderr
        assert not cli.status(last).get("finished_at")
        cli("cancel", "--force", last)

    def test_a_waiting_job_is_canceled_at_once(self, own_cli: Cli, gate: Gate) -> None:
        own_cli.shell(gate.wait, "--cpus", str(os.sysconf("SC_NPROCESSORS_ONLN")))
        job = own_cli.submit("--", "true")
        assert own_cli("cancel", job).stdout == f"{job} canceled before it started\n".encode()
        assert own_cli.status(job)["status"] == "canceled"

    def test_a_running_job_is_waited_for(self, cli: Cli) -> None:
        job = cli.shell(
            "trap 'echo partial; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
        )
        cli.until(job, "running")
        following = cli.start("logs", "-f", job)
        assert following.stdout is not None
        assert following.stdout.readline() == b"ready\n"
        done = cli("cancel", job)
        assert done.stdout == f"{job} canceled\n".encode()
        assert b"waiting until nothing of it runs" in done.stderr
        assert following.communicate(timeout=DEADLINE_S)[0] == b"partial\n"

    def test_force_gives_no_grace(self, cli: Cli) -> None:
        job = cli.shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")
        following = cli.start("logs", "-f", job)
        assert following.stdout is not None
        assert following.stdout.readline() == b"ready\n"
        assert cli.json("cancel", "--force", job)["signal"] == signal.SIGKILL
        following.communicate(timeout=DEADLINE_S)

    def test_a_job_that_is_over_is_refused_with_its_state(self, cli: Cli) -> None:
        job = cli.submit("--", "true")
        cli.ended(job)
        assert b"completed" in cli("cancel", job, code=4).stderr

    def test_a_terminal_is_asked_first(
        self, cli: Cli, gate: Gate, screen: Callable[..., Screen]
    ) -> None:
        job = cli.shell(gate.wait)
        cli.until(job, "running")
        for answer, code in (("\n", 1), ("n\n", 1), ("\x04", 1), ("y\n", 0)):
            shown = screen(cli, "cancel", job)
            shown.expect(f"Cancel {job}, running? [y/N] ")
            shown.type(answer)
            assert shown.end() == code
        assert cli.status(job)["status"] == "canceled"

    @pytest.mark.parametrize("option", ["--force", "--yes"])
    def test_a_terminal_is_not_asked_when_told(
        self, cli: Cli, gate: Gate, screen: Callable[..., Screen], option: str
    ) -> None:
        job = cli.shell(gate.wait)
        cli.until(job, "running")
        shown = screen(cli, "cancel", option, job)
        assert shown.end() == 0
        assert "y/N" not in shown.text


def test_who_waits_at_a_terminal_sees_how_far_it_is(
    cli: Cli, gate: Gate, screen: Callable[..., Screen]
) -> None:
    line = f"echo 37 >>$AITBC_PROGRESS; {gate.wait}"
    shown = screen(cli, "submit", "--wait", "-c", line)
    shown.expect("running 37%")
    gate.open()
    shown.expect("completed after")
    assert shown.end() == 0
