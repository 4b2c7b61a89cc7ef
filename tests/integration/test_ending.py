"""How a job ends: by itself, canceled, out of time, with its supervisor; and all that it started.

Each process of these tests sleeps a number of seconds that is this test's own, by which it is
found whatever it did to its session, environment or parent.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service import PLAIN_CONFIG, wait_for
from tests.system.test_recovery import Box, command, is_gone, pids, stat_fields, stop

pytestmark = pytest.mark.system

Json = dict[str, Any]
_numbers = itertools.count(1)


class Ending(Box):
    """A box whose processes can be told from all others."""

    def __init__(self, folder: Path, grace: str) -> None:
        super().__init__(folder)
        config = PLAIN_CONFIG + f'[slots]\ncpus = 2\n[jobs]\ncancel_grace = "{grace}"\n'
        self.service.config.write_text(config)
        self.mark = f"98{os.getpid()}{next(_numbers):03}"

    def processes(self) -> list[int]:
        mark = self.mark.encode()
        return [pid for pid in pids() if mark in command(pid) and not is_gone(pid)]

    def python(self, program: str, **more: object) -> str:
        """Submit a program for which MARK is how long to sleep."""
        text = PRELUDE.replace("MARK", self.mark) + program
        return self.submit(sys.executable, "-I", "-S", "-c", text, **more)

    def run_until(self, count: int, program: str, **more: object) -> str:
        """Submit a program and return when it has written this many lines."""
        job = self.python(program, **more)
        self.wait_started(count)
        self.wait(job, "running")
        return job

    def ended(self, job: str) -> Json:
        """Wait for the end; nothing of the job is left then."""
        ended = self.wait_end(job)
        assert self.processes() == []
        self.verify(job)
        return ended

    def output(self, job: str) -> Json:
        text = (self.service.state / "results" / job / "output.json").read_bytes()
        found: Json = json.loads(text)
        return found


PRELUDE = """
import os, resource, signal, sys, time
mark = "MARK"
out = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
def say(text):
    os.write(out, (text + "\\n").encode())
def on_term(*_):
    say("term " + name)
    os._exit(0)
name = "main"
def child(what, *, ignores=False, detached=False):
    global name
    if os.fork():
        return
    name = what
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores else on_term)
    if detached:
        os.setsid()
        if os.fork():
            os._exit(0)
    say("up " + what)
    while True:
        time.sleep(1000)
"""
WAIT = """
while True:
    time.sleep(1000)
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Ending]:
    """With a grace that no test waits for."""
    yield from _box(tmp_path, "1h")


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Ending]:
    yield from _box(tmp_path, "200ms")


def _box(folder: Path, grace: str) -> Iterator[Ending]:
    box = Ending(folder, grace)
    with box.service:
        box.connect()
        yield box
        box.http.close()


# -- canceled -------------------------------------------------------------------------------------


def test_the_whole_tree_is_asked_to_end_at_once(box: Ending) -> None:
    program = """
child("plain")
child("detached", detached=True)
signal.signal(signal.SIGTERM, on_term)
say("up main")
"""
    job = box.run_until(3, program + WAIT)
    assert box.cancel(job)["status"] == "canceling"
    ended = box.ended(job)
    assert (ended["status"], ended["reason"]) == ("canceled", "canceled")
    # With an hour of grace: each heard of it, and nobody was killed.
    heard = [line for line in box.lines() if line.startswith("term")]
    assert sorted(heard) == ["term detached", "term main", "term plain"]
    assert (ended["exit_code"], ended["signal"]) == (0, None)


def test_a_job_may_use_its_grace_to_end_well(box: Ending) -> None:
    program = """
def save(*_):
    while not os.path.exists("go"):
        time.sleep(0.01)
    open(os.environ["AITBC_ARTIFACTS_DIR"] + "/checkpoint", "w").write("saved")
    print("saved", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, save)
print("partial", flush=True)
say("up main")
"""
    job = box.run_until(1, program + WAIT)
    box.cancel(job)
    assert box.status(job)["status"] == "canceling"
    box.release()
    ended = box.ended(job)
    assert (ended["status"], ended["exit_code"]) == ("canceled", 7)
    package = box.service.state / "results" / job
    assert (package / "artifacts/checkpoint").read_text() == "saved"
    assert (package / "result.txt").read_text() == "partial\nsaved\n"
    assert box.output(job)["status"] == "canceled"


DEAF = """
child("plain", ignores=True)
child("detached", ignores=True, detached=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("partial", flush=True)
say("up main")
"""


def test_who_does_not_hear_is_killed_after_the_grace(hasty: Ending) -> None:
    job = hasty.run_until(3, DEAF + WAIT)
    assert len(hasty.processes()) == 3
    hasty.cancel(job)
    ended = hasty.ended(job)
    assert (ended["status"], ended["signal"]) == ("canceled", signal.SIGKILL)
    assert (hasty.service.state / "results" / job / "result.txt").read_text() == "partial\n"


def test_force_gives_no_grace(box: Ending) -> None:
    job = box.run_until(3, DEAF + WAIT)
    box.cancel(job, force=True)
    ended = box.ended(job)
    assert (ended["status"], ended["signal"]) == ("canceled", signal.SIGKILL)


def test_force_ends_a_grace_that_is_under_way(box: Ending) -> None:
    job = box.run_until(3, DEAF + WAIT)
    box.cancel(job)
    assert box.cancel(job)["status"] == "canceling"
    assert len(box.processes()) == 3
    box.cancel(job, force=True)
    ended = box.ended(job)
    assert (ended["status"], ended["signal"]) == ("canceled", signal.SIGKILL)


def test_force_twice_and_a_cancel_of_what_is_over(box: Ending) -> None:
    job = box.run_until(3, DEAF + WAIT)
    for _ in range(2):
        box.cancel(job, force=True)
    assert box.ended(job)["status"] == "canceled"
    answer = box.http.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (409, "canceled")


def test_a_stopped_job_hears_of_it(box: Ending) -> None:
    program = """
child("plain")
signal.signal(signal.SIGTERM, on_term)
say("up main")
"""
    job = box.run_until(2, program + WAIT)
    for pid in box.processes():
        stop(pid)
    box.cancel(job)
    assert box.ended(job)["status"] == "canceled"
    heard = [line for line in box.lines() if line.startswith("term")]
    assert sorted(heard) == ["term main", "term plain"]


def test_what_goes_from_process_to_process_is_ended(box: Ending) -> None:
    """A chain in which no process lives for long: what was seen is gone when it is signaled."""
    program = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    say("up chain")
    while True:
        if os.fork():
            os._exit(0)
        os.setsid()
"""
    job = box.run_until(1, program + WAIT)
    box.cancel(job, force=True)
    ended = box.ended(job)
    assert (ended["status"], ended["reason"]) == ("canceled", "canceled")


def test_a_job_that_waits_is_canceled_at_once_and_never_runs(box: Ending) -> None:
    first = box.run_until(1, "say('up main')" + WAIT, cpus=2)
    second = box.python("say('ran')", cpus=2)
    assert box.cancel(second)["status"] == "canceled"
    box.cancel(first, force=True)
    box.ended(first)
    assert box.status(second)["status"] == "canceled"
    assert box.lines() == ["up main"]


# -- by itself ------------------------------------------------------------------------------------

LEAVES = """
child("plain")
child("detached", detached=True)
while sum(1 for _ in open("ran")) < 2:
    time.sleep(0.01)
print("done", flush=True)
"""


@pytest.mark.parametrize("status", [0, 9])
def test_what_is_left_is_ended_and_the_status_is_the_main_process_s(
    box: Ending, status: int
) -> None:
    job = box.python(LEAVES + f"os._exit({status})")
    ended = box.ended(job)
    expected = ("failed", status) if status else ("completed", 0)
    assert (ended["status"], ended["exit_code"]) == expected
    heard = [line for line in box.lines() if line.startswith("term")]
    assert sorted(heard) == ["term detached", "term plain"]


def test_what_is_left_and_does_not_hear_is_killed_after_the_grace(hasty: Ending) -> None:
    job = hasty.python(DEAF + "os._exit(3)")
    ended = hasty.ended(job)
    assert (ended["status"], ended["reason"], ended["exit_code"]) == ("failed", "exit", 3)


def test_what_is_left_can_be_ended_by_force(box: Ending) -> None:
    deaf = DEAF + 'while sum(1 for _ in open("ran")) < 3:\n    time.sleep(0.01)\nos._exit(3)'
    job = box.run_until(3, deaf)
    main = box.main_process(job)
    wait_for("its main process has ended", lambda: not Path(f"/proc/{main}").exists())
    box.cancel(job, force=True)
    ended = box.ended(job)
    # Canceled while it was not over; how its main process ended is told.
    assert (ended["status"], ended["exit_code"]) == ("canceled", 3)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGRTMIN + 1])
def test_a_signal_is_told(box: Ending, number: int) -> None:
    job = box.python(
        f"signal.signal({number}, 0) if {number} != 9 else 0\nos.kill(os.getpid(), {number})"
    )
    ended = box.ended(job)
    assert (ended["status"], ended["reason"]) == ("failed", "signal")
    assert (ended["signal"], ended["exit_code"]) == (number, None)
    name = "SIG" if number in (9, 11) else f"signal {number}"
    assert name in ended["message"]


def test_what_children_used_counts(box: Ending) -> None:
    program = """
def burn(seconds, megabytes):
    if os.fork() == 0:
        kept = b"x" * (megabytes << 20)
        while time.process_time() < seconds:
            pass
        os._exit(0)
burn(0.3, 96)
os.wait()
if os.fork() == 0:
    os.setsid()
    burn(0.3, 1)
    os.wait()
    say("burnt")
    os._exit(0)
while not os.path.getsize("ran"):
    time.sleep(0.01)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""
    job = box.python(program)
    assert box.ended(job)["status"] == "completed"
    used = box.output(job)["resources"]
    assert used["user_s"] + used["system_s"] >= 0.6
    assert used["max_rss"] >= 96 << 20
    detail = box.http.get(f"/v1/jobs/{job}", params={"detail": "true"}).json()
    assert detail["attempts"][0]["max_rss"] == used["max_rss"]


def test_memory_that_was_its_supervisors_is_not_told_as_its_own(box: Ending) -> None:
    # Of these the kernel says what a supervisor has.
    small = [box.submit("true"), box.submit("sh", "-c", "true; true")]
    large = box.python("kept = b'x' * (48 << 20)")
    for job in small:
        box.wait_end(job)
        assert box.output(job)["resources"]["max_rss"] is None
    box.wait_end(large)
    assert 48 << 20 <= box.output(large)["resources"]["max_rss"] < 80 << 20


def test_what_orphans_used_counts(box: Ending) -> None:
    program = """
if os.fork() == 0:
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while time.process_time() < 0.3:
            pass
        say("burnt")
    os._exit(0)
os.wait()
while not os.path.getsize("ran"):
    time.sleep(0.01)
"""
    job = box.python(program)
    assert box.ended(job)["status"] == "completed"
    used = box.output(job)["resources"]
    assert used["user_s"] + used["system_s"] >= 0.3


# -- out of time ----------------------------------------------------------------------------------


def test_a_time_limit_ends_the_whole_tree(box: Ending) -> None:
    program = """
child("plain")
child("detached", detached=True)
signal.signal(signal.SIGTERM, on_term)
print("partial", flush=True)
while sum(1 for _ in open("ran")) < 2:
    time.sleep(0.01)
say("up main")
"""
    job = box.python(program + WAIT, timeout="1s")
    ended = box.ended(job)
    assert (ended["status"], ended["reason"]) == ("failed", "timeout")
    assert box.output(job)["reason"] == "timeout"
    if "up main" in box.lines():
        heard = [line for line in box.lines() if line.startswith("term")]
        assert sorted(heard) == ["term detached", "term main", "term plain"]


def test_a_time_limit_kills_who_does_not_hear(hasty: Ending) -> None:
    started = time.monotonic()
    job = hasty.python(DEAF + WAIT, timeout="0.5s")
    ended = hasty.ended(job)
    assert (ended["status"], ended["reason"]) == ("failed", "timeout")
    assert ended["signal"] == signal.SIGKILL
    assert time.monotonic() - started >= 0.5


def test_a_job_within_its_time_limit_completes(box: Ending) -> None:
    assert box.ended(box.python("", timeout="1h"))["status"] == "completed"


def test_a_limit_ends_a_stopped_job(hasty: Ending) -> None:
    job = hasty.python("os.kill(os.getpid(), signal.SIGSTOP)" + WAIT, timeout="0.5s")
    assert hasty.ended(job)["reason"] == "timeout"


# -- with its supervisor ---------------------------------------------------------------------------


def test_a_supervisor_that_is_asked_to_end_ends_its_job_first(box: Ending) -> None:
    program = """
child("plain")
child("detached", detached=True)
signal.signal(signal.SIGTERM, on_term)
print("partial", flush=True)
say("up main")
"""
    job = box.run_until(3, program + WAIT)
    os.kill(box.supervisor_of(job), signal.SIGTERM)
    ended = box.ended(job)
    assert (ended["status"], ended["reason"]) == ("failed", "lost")
    assert (box.service.state / "results" / job / "result.txt").read_text() == "partial\n"
    heard = [line for line in box.lines() if line.startswith("term")]
    assert sorted(heard) == ["term detached", "term main", "term plain"]
    # The queue goes on.
    assert box.ended(box.python(""))["status"] == "completed"


def test_an_idle_supervisor_that_is_asked_to_end_does_no_harm(box: Ending) -> None:
    box.ended(box.python(""))
    for supervisor in wait_for("a supervisor is idle", box.supervisors):
        os.kill(supervisor, signal.SIGTERM)
    assert box.ended(box.python(""))["status"] == "completed"


def test_a_cancel_reaches_a_job_whose_supervisor_was_stopped(box: Ending) -> None:
    job = box.run_until(1, "say('up main')" + WAIT)
    supervisor = box.supervisor_of(job)
    stop(supervisor)
    assert box.cancel(job)["status"] == "canceling"
    assert stat_fields(supervisor)[0] == "T"
    os.kill(supervisor, signal.SIGCONT)
    assert box.ended(job)["status"] == "canceled"
