"""``aitbcctl submit``: what the job is, is what was written."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable

import pytest

from tests.service import DEADLINE_S, PROGRAMS, wait_for
from tests.system.conftest import Cli, Gate, Screen

pytestmark = pytest.mark.system

#: Prints its arguments, each as a line of its bytes in hexadecimal.
SHOW_ARGV = "import os, sys; [print(os.fsencode(word).hex()) for word in sys.argv[1:]]"
ID = re.compile(r"job_[0-9a-hjkmnp-tv-z]{8}\n")


def stdout_of(cli: Cli, job: str) -> bytes:
    assert cli.ended(job)["status"] == "completed", cli("logs", job).stderr
    return cli("logs", "--stream", "stdout", job).stdout


def test_a_submit_prints_the_id_alone(cli: Cli) -> None:
    done = cli("submit", "--", "true")
    assert ID.fullmatch(done.stdout.decode())
    assert done.stderr == b""


def test_with_json_it_prints_the_whole_job(cli: Cli) -> None:
    job = cli.json("submit", "--name", "night run", "-c", "true")
    assert job["name"] == "night run"
    assert ID.fullmatch(job["job_id"] + "\n")
    assert cli.status(str(job["number"]))["job_id"] == job["job_id"]


@pytest.mark.parametrize("program", ["aitbcctl", "aitbc"])
def test_both_spellings_are_the_same_program(cli: Cli, program: str) -> None:
    before = ["client"] if program == "aitbc" else []
    done = cli(*before, "submit", "--", "true", program=program)
    job = done.stdout.decode().strip()
    named = cli(*before, "status", "--job-id", job, program=program)
    assert job in named.stdout.decode()


def test_arguments_arrive_byte_for_byte(cli: Cli) -> None:
    words = [b"", b" ", b"a b", b"'\"\\", b"line\nbreak", b"$HOME `x` *", b"\xff\xfe", b"--", b"-x",
             "ä€🙂".encode(), b"\x01\x1b[31m"]  # fmt: skip
    job = cli.submit("--", sys.executable, "-c", SHOW_ARGV, *words)
    assert stdout_of(cli, job).decode().split("\n")[:-1] == [word.hex() for word in words]


def test_a_command_as_long_as_the_system_allows_arrives(cli: Cli) -> None:
    word = "x" * (127 * 1024)
    line = "import sys; print(sum(map(len, sys.argv[1:])))"
    job = cli.submit("--", sys.executable, "-c", line, *[word] * 4)
    assert stdout_of(cli, job) == b"%d\n" % (4 * len(word))


def test_a_line_is_run_by_a_shell(cli: Cli) -> None:
    assert stdout_of(cli, cli.submit("-c", "printf 'a\\nb\\n' | tail -n 1")) == b"b\n"


def test_the_callers_environment_goes_along_without_its_terminal(cli: Cli) -> None:
    environ = {"TOKEN": "s3cret", "DISPLAY": ":0", "SSH_TTY": "/dev/pts/0", "TMUX": "x"}
    done = cli("submit", "--env", "ADDED=1", "--env", "TOKEN=other", "--", "env", "-0",
               environ=environ | {"KEPT": "a=b\nc"})  # fmt: skip
    given = stdout_of(cli, done.stdout.decode().strip()).split(b"\0")
    assert b"KEPT=a=b\nc" in given
    assert b"ADDED=1" in given
    assert b"TOKEN=other" in given
    assert not [entry for entry in given if entry.startswith((b"DISPLAY", b"SSH_", b"TMUX"))]


def test_a_line_given_as_one_word_is_noted(cli: Cli) -> None:
    done = cli("submit", "--", "echo a | cat")
    assert b"takes -c" in done.stderr
    assert cli.ended(done.stdout.decode().strip())["reason"] == "cannot_start"
    (cli.folder / "my program").write_text("#!/bin/sh\n")
    assert cli("submit", "--", "my program").stderr == b""


def test_a_clean_environment_has_nothing_of_the_caller(cli: Cli) -> None:
    done = cli("submit", "--clean-env", "--env", "ADDED=1", "--", "env", environ={"TOKEN": "x"})
    given = stdout_of(cli, done.stdout.decode().strip()).splitlines()
    names = {entry.partition(b"=")[0] for entry in given}
    assert b"TOKEN" not in names
    assert {b"HOME", b"USER", b"PATH", b"ADDED", b"AITBC_JOB_ID"} <= names


def test_the_callers_directory_and_umask_go_along(cli: Cli) -> None:
    before = os.umask(0o027)
    try:
        job = cli.submit("-c", "pwd; umask; touch made")
    finally:
        os.umask(before)
    assert stdout_of(cli, job).decode() == f"{cli.folder}\n0027\n"
    assert stat.S_IMODE((cli.folder / "made").stat().st_mode) == 0o640


def test_another_directory_and_input_can_be_given_relative_to_the_callers(cli: Cli) -> None:
    (cli.folder / "sub").mkdir()
    (cli.folder / "input").write_bytes(b"\x00\xff")
    job = cli.submit("--cwd", "sub", "--stdin", "input", "-c", "pwd; cat")
    assert stdout_of(cli, job) == f"{cli.folder}/sub\n".encode() + b"\x00\xff"


class TestJobFile:
    def test_a_toml_and_a_json_file_are_the_same_job(self, cli: Cli) -> None:
        (cli.folder / "sub").mkdir()
        (cli.folder / "sub" / "job.toml").write_text(
            'command = "pwd; echo $A$B$C; cat"\nname = "from file"\ncwd = "."\n'
            'stdin = "in"\ncpus = 1\ntimeout = "1h"\nartifacts = ["x/*"]\n'
            'env = {A = "a", B = "b"}\n'
        )
        (cli.folder / "sub" / "in").write_text("input\n")
        description = tomllib.loads((cli.folder / "sub" / "job.toml").read_text())
        (cli.folder / "sub" / "job.json").write_text(json.dumps(description))
        for file in ("sub/job.toml", "sub/job.json"):
            job = cli.submit("--job-file", file)
            assert stdout_of(cli, job) == f"{cli.folder}/sub\nab\ninput\n".encode()
            assert cli.status(job)["name"] == "from file"
            assert cli.json("get", job)["requested"]["timeout_s"] == 3600

    def test_options_beat_it_and_add_to_it(self, cli: Cli) -> None:
        (cli.folder / "job.toml").write_text(
            'name = "file"\ntimeout_seconds = 5\nartifacts = ["a"]\n[env]\nA = "a"\nB = "b"\n'
        )
        options = ["--name", "mine", "--timeout", "1h", "--artifact", "b", "--env", "B=2"]
        job = cli.shell("echo $A$B", "--job-file", "job.toml", *options)
        assert stdout_of(cli, job) == b"a2\n"
        details = cli.json("get", job)
        assert details["name"] == "mine"
        assert details["requested"]["timeout_s"] == 3600
        assert details["requested"]["artifacts"] == ["a", "b"]

    def test_it_can_come_from_a_pipe(self, cli: Cli) -> None:
        done = cli("submit", "--job-file", "-", stdin=b'{"argv": ["echo", "x"]}')
        assert stdout_of(cli, done.stdout.decode().strip()) == b"x\n"

    @pytest.mark.parametrize(
        ("text", "args", "words"),
        [
            ("argv = [", [], "is no TOML"),
            ("{", [], "is no JSON"),
            ("\0\xff", [], "is no TOML"),
            (
                "comand = 'x'\nmodel = 'x'",
                [],
                "does not say what to run: it needs argv or command, and has comand, model",
            ),
            ("command = 'true'", ["--", "true"], "says what to run already"),
            ("command = 'true'\nwhen = 2026-01-01", [], "when is a date"),
            ("command = 'true'\nnmae = 'x'", [], "nmae"),
            ("command = 'true'\ncwd = 'none'", [], "cannot be used"),
        ],
    )
    def test_what_is_wrong_with_it_is_said(
        self, cli: Cli, text: str, args: list[str], words: str
    ) -> None:
        (cli.folder / "job").write_text(text)
        assert words in cli("submit", "--job-file", "job", *args, code=2).stderr.decode()

    def test_one_that_is_not_there_is_said(self, cli: Cli) -> None:
        assert b"cannot read none.toml" in cli("submit", "--job-file", "none.toml", code=1).stderr


def test_an_input_that_is_not_there_yet_is_said_and_submitted_all_the_same(cli: Cli) -> None:
    done = cli("submit", "--stdin", "later.txt", "--", "cat")
    assert b"later.txt is not readable now" in done.stderr
    status = cli.ended(done.stdout.decode().strip())
    assert status["reason"] == "cannot_start"


def test_what_is_asked_for_reaches_the_job(cli: Cli) -> None:
    job = cli.submit("--timeout", "2h", "--cpus", "1", "--gpus", "0", "--memory", "10M",
                     "--priority", "low", "--retries", "3", "--artifact", "*.pt",
                     "--artifact", "b/*", "--", "true")  # fmt: skip
    assert cli.json("get", job)["requested"] == {
        "cpus": 1,
        "memory": 10 << 20,
        "gpus": 0,
        "timeout_s": 7200.0,
        "priority": "low",
        "retries": 3,
        "artifacts": ["*.pt", "b/*"],
        "gpu_type": None,
        "min_vram": None,
        "gpu": [],
        "vram": None,
    }


def test_a_script_runs_as_it_is_at_its_start(own_cli: Cli, gate: Gate) -> None:
    cpus = str(os.sysconf("SC_NPROCESSORS_ONLN"))
    own_cli.shell(gate.wait, "--cpus", cpus)
    script = own_cli.folder / "job.sh"
    script.write_text("#!/bin/sh\necho old\n")
    script.chmod(0o755)
    job = own_cli.submit("--", "./job.sh")
    assert own_cli.status(job)["status"] == "pending"
    script.write_text("#!/bin/sh\necho new\n")
    gate.open()
    assert stdout_of(own_cli, job) == b"new\n"
    assert "read when the job starts" in " ".join(own_cli("submit", "-h").stdout.decode().split())


@pytest.mark.parametrize(
    ("line", "code"),
    [("true", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_waiting_ends_with_the_jobs_own_code(cli: Cli, line: str, code: int) -> None:
    done = cli("submit", "--wait", "-c", line, code=code)
    assert ID.fullmatch(done.stdout.decode())
    if code:
        assert done.stdout.strip() + b" failed" in done.stderr


def test_waiting_never_ends_with_0_for_a_job_that_did_not_complete(cli: Cli) -> None:
    done = cli("submit", "--wait", "--timeout", "1", "-c", "trap 'exit 0' TERM; sleep 99 & wait",
               code=1)  # fmt: skip
    assert cli.status(done.stdout.decode().strip())["reason"] == "timeout"
    cli("submit", "--wait", "--", "./no such program", code=1)


def test_waiting_with_json_prints_the_job_at_its_end(cli: Cli) -> None:
    done = cli("submit", "--wait", "--json", "-c", "exit 7", code=7)
    assert json.loads(done.stdout)["exit_code"] == 7


def test_following_passes_both_streams_on_unchanged(cli: Cli) -> None:
    line = "printf 'out\\0\\377'; printf 'err\\n' >&2; printf ' more'; exit 4"
    done = cli("submit", "--follow", "-c", line, code=4)
    assert done.stdout == b"out\0\xff more"
    assert b"\nerr\n" in b"\n" + done.stderr
    assert b"exited with status 4" in done.stderr


def test_following_shows_output_as_it_comes(cli: Cli, gate: Gate) -> None:
    following = cli.start("submit", "--follow", "-c", f"echo first; {gate.wait}; echo second")
    assert following.stdout is not None
    assert following.stdout.readline() == b"first\n"
    gate.open()
    assert following.communicate(timeout=DEADLINE_S)[0] == b"second\n"
    assert following.returncode == 0


@pytest.mark.parametrize("line", ["printf nonl; exit 3", "printf nonl >&2; exit 3"])
def test_our_own_words_begin_a_line_after_what_the_job_wrote(
    cli: Cli, screen: Callable[..., Screen], line: str
) -> None:
    shown = screen(cli, "submit", "--follow", "-c", line)
    assert shown.end() == 3
    assert re.search(r"nonl\r\njob_\w+ failed after", shown.text)
    shown = screen(cli, "submit", "--follow", "-c", "echo whole; exit 3")
    assert shown.end() == 3
    assert re.search(r"whole\r\njob_\w+ failed after", shown.text)


def test_following_megabytes_loses_nothing(cli: Cli) -> None:
    done = cli("submit", "--follow", "-c", "seq 1 400000")
    assert done.stdout == b"".join(b"%d\n" % number for number in range(1, 400001))


@pytest.mark.parametrize("how", ["--wait -c", "--follow -c", "--follow --cpus +1 -c"])
def test_an_interrupt_detaches_and_says_how_to_come_back(cli: Cli, gate: Gate, how: str) -> None:
    before = set(cli.job_ids())
    waiting = cli.start("submit", *how.split(), f"echo begun; {gate.wait}")
    job = wait_for("the job is there", lambda: set(cli.job_ids()) - before).pop()
    cli.until(job, "running")
    if "--follow" in how:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"begun\n"
    else:
        assert waiting.stdout is not None
        assert waiting.stdout.readline().decode().strip() == job
    waiting.send_signal(signal.SIGINT)
    said = waiting.communicate(timeout=DEADLINE_S)[1].decode()
    assert waiting.returncode == 130
    assert f"aitbcctl watch {job}" in said
    assert said.endswith(f"aitbcctl logs -f {job}\n")
    assert cli.status(job)["status"] == "running"
    gate.open()
    assert cli.ended(job)["status"] == "completed"


def test_waiting_survives_a_restart_of_the_daemon(own_cli: Cli, gate: Gate) -> None:
    following = own_cli.start("submit", "--follow", "-c", f"echo a; {gate.wait}; echo b; exit 5")
    assert following.stdout is not None
    assert following.stdout.readline() == b"a\n"
    assert own_cli.daemon.process is not None
    own_cli.daemon.process.kill()
    own_cli.daemon.process.wait()
    gate.open()
    own_cli.daemon.start()
    assert following.communicate(timeout=DEADLINE_S)[0] == b"b\n"
    assert following.returncode == 5


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "say what to run"),
        (["--batch", "x", "--job-file", "y"], "give one of them"),
        (["--cwd", "/nonexistent", "--", "true"], "the working directory /nonexistent cannot"),
        (["--cwd", "/etc/passwd", "--", "true"], "/etc/passwd is no directory"),
        (["-c", "true", "--", "true"], "say once what to run"),
        (["--batch", "x", "--", "true"], "say once what to run"),
        (["--wait"], "say what to run"),
        (["true", "--wait"], "Whose option is '--wait'?"),
        (["python", "x.py", "--lr", "1"], "Whose option is '--lr'?"),
        (["--nmae", "x", "--", "true"], "No such option"),
        (["--cpus", "many", "--", "true"], "not a valid integer"),
        (["--priority", "urgent", "--", "true"], "'low', 'normal', 'high'"),
        (["--env", "K", "--", "true"], "expected NAME=VALUE"),
        (["--env", "=V", "--", "true"], "expected NAME=VALUE"),
        (["--stdin", "-", "--", "true"], "--stdin takes a file"),
        (["--follow", "--json", "--", "true"], "--json cannot"),
        (["--follow", "--batch", "x"], "wait for a batch with --wait"),
        (["--wait", "--timeout", "soon", "--", "true"], "timeout"),
        (["--memory", "lots", "--", "true"], "memory"),
        (["--cpus", "0", "--", "true"], "cpus"),
        (["--name", "a\x1b[31mb", "--", "true"], "name"),
        (["--", ""], "argv"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_a_usage_error_and_submits_nothing(
    cli: Cli, args: list[str], words: str
) -> None:
    before = cli.job_ids()
    done = cli("submit", *args, code=2)
    assert words in " ".join(done.stderr.decode().split())
    assert done.stdout == b""
    assert "\x1b" not in done.stderr.decode()
    assert cli.job_ids() == before


@pytest.mark.parametrize("word", ["sumbit", "lsit", "statsu", "train.py", "./train.sh", "python"])
def test_a_typo_of_a_verb_is_never_submitted(cli: Cli, word: str) -> None:
    before = cli.job_ids()
    done = cli(word, "--", "true", code=2)
    assert f"There is no verb '{word}'" in done.stderr.decode()
    assert cli.job_ids() == before


def test_more_than_the_machine_has_is_refused_with_what_it_has(cli: Cli) -> None:
    before = cli.job_ids()
    assert b"GPU" in cli("submit", "--gpus", "1", "--", "true", code=4).stderr
    assert b"5000" in cli("submit", "--cpus", "5000", "--", "true", code=4).stderr
    # With --wait that is not the job's answer, because there is no job.
    cli("submit", "--wait", "--gpus", "1", "--", "true", code=125)
    assert cli.job_ids() == before


def test_a_directory_that_was_removed_is_said(cli: Cli) -> None:
    (cli.folder / "gone").mkdir()
    line = f"cd gone && rmdir ../gone && exec '{PROGRAMS}/aitbcctl' submit -- true"
    done = subprocess.run(["sh", "-c", line], cwd=cli.folder, env=cli.environ, capture_output=True)
    assert done.returncode == 2
    assert b"was removed" in done.stderr


class TestBatch:
    def test_each_line_becomes_a_job_in_this_order(self, cli: Cli) -> None:
        lines = [{"argv": ["sh", "-c", f"echo {n} $K; pwd"], "name": f"n{n}"} for n in range(3)]
        text = "\n\n".join(map(json.dumps, lines))
        (cli.folder / "jobs.jsonl").write_text(text)
        done = cli("submit", "--batch", "jobs.jsonl", "--env", "K=v", "--priority", "low")
        jobs = done.stdout.decode().split()
        for number, job in enumerate(jobs):
            assert stdout_of(cli, job).decode() == f"{number} v\n{cli.folder}\n"
            assert cli.status(job)["name"] == f"n{number}"
        numbers = [cli.status(job)["number"] for job in jobs]
        assert numbers == list(range(numbers[0], numbers[0] + 3))

    def test_it_can_come_by_stdin(self, cli: Cli) -> None:
        done = cli("submit", "--batch", "-", "--json", stdin=b'{"command": "true"}\n')
        assert json.loads(done.stdout)["count"] == 1

    def test_waiting_for_it_tells_whether_all_completed(self, cli: Cli) -> None:
        good, bad = b'{"command": "true"}\n', b'{"command": "exit 9"}\n'
        assert len(cli("submit", "--wait", "--batch", "-", stdin=good * 3).stdout.split()) == 3
        done = cli("submit", "--wait", "--batch", "-", stdin=good + bad, code=1)
        assert b"exited with status 9" in done.stderr

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (
                b'{"command": "true"}\n{"command": \n',
                "line 2: is not JSON: Expecting value, at char",
            ),
            (b'{"command": "true"}\n\n[1]\n', "line 3"),
            (b'{"command": "true"}\n"\xff"\n', "line 2: is not UTF-8, at byte 2"),
            (b'{"command": "true"}\n{"a":' + b"[" * 100_000, "line 2: is nested too deeply"),
            (b'{"command": "true"}\n{"cpus": NaN}\n', "line 2: has a number that is not finite"),
            (b'{"command": "true"}\n{"name": "\\ud800"}\n', r"line 2: has a \u that is no"),
            (b'{"command": "true"}\n\n{"comand": "x"}\n', "-, line 3: unknown field"),
            (b"{}\n", "argv"),
        ],
    )
    def test_one_wrong_line_is_named_and_nothing_is_submitted(
        self, cli: Cli, text: bytes, words: str
    ) -> None:
        before = cli.job_ids()
        done = cli("submit", "--batch", "-", stdin=text, code=2)
        assert words in done.stderr.decode()
        assert cli.job_ids() == before

    def test_a_file_that_is_not_there_is_said(self, cli: Cli) -> None:
        assert b"cannot read none.jsonl" in cli("submit", "--batch", "none.jsonl", code=1).stderr

    def test_one_that_is_too_large_is_refused_unread(self, cli: Cli) -> None:
        with (cli.folder / "big").open("wb") as big:
            big.truncate(1 << 40)
        assert b"16 MiB" in cli("submit", "--batch", "big", code=4).stderr
