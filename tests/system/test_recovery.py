"""Nothing is lost and nothing runs twice, whoever is killed, and wherever.

Each job of these tests appends a line to a file when it runs, which shows how often it ran.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import PLAIN_CONFIG, Service, wait_for

CONFIG = PLAIN_CONFIG + '[slots]\ncpus = 2\n[jobs]\ncancel_grace = "1s"\n'
#: Appends to "ran", then waits for the file "go", then ends with the status in it.
JOB = """
echo "$AITBC_JOB_ID $AITBC_ATTEMPT" >> ran
until test -s go; do sleep 0.02; done
exit $(cat go)
"""

Json = dict[str, Any]


class Box:
    """A daemon that is killed and started again, and the jobs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.service = Service(folder, CONFIG)
        self.ran = folder / "ran"
        self.go = folder / "go"

        self.http = httpx.Client()

    def start(self) -> None:
        self.service.start()
        self.connect()

    def connect(self) -> None:
        self.http.close()
        transport = httpx.HTTPTransport(uds=str(self.service.socket))
        self.http = httpx.Client(transport=transport, base_url="http://localhost", timeout=60)

    def kill(self, *, launcher_too: bool = False, supervisors_too: bool = False) -> None:
        """Kill the daemon with SIGKILL, and perhaps the others in the order of the family."""
        others = [self.launcher()] if launcher_too else []
        if supervisors_too:
            others += self.supervisors()
        assert self.service.process is not None
        self.service.process.kill()
        self.service.process.wait()
        for pid in others:
            kill(pid)

    def restart(self) -> None:
        self.kill()
        self.start()

    def submit(self, *argv: str, **more: object) -> str:
        body = {"argv": list(argv), "cwd": str(self.folder), **more}
        answer = self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 201, answer.text
        job_id: str = answer.json()["job_id"]
        return job_id

    def submit_waiting(self, **more: object) -> str:
        """Submit a job that waits for ``release``."""
        return self.submit("sh", "-c", JOB, **more)

    def lose_a_start(self) -> str:
        """Kill the daemon and the launcher while a job's start is between them; return the job."""
        stop(self.launcher())
        job = self.submit_waiting()
        self.wait(job, "assigned")
        self.kill(launcher_too=True)
        return job

    def release(self, status: int = 0) -> None:
        self.go.with_suffix(".new").write_text(f"{status}\n")
        self.go.with_suffix(".new").rename(self.go)

    def status(self, job_id: str) -> Json:
        answer = self.http.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: Json = answer.json()
        return job

    def wait(self, job_id: str, *statuses: str) -> Json:
        def reached() -> Json | None:
            job = self.status(job_id)
            return job if job["status"] in statuses else None

        return wait_for(f"{job_id} is {' or '.join(statuses)}", reached, log=self.service.log)

    def wait_end(self, job_id: str) -> Json:
        return self.wait(job_id, "completed", "failed", "canceled")

    def wait_started(self, count: int = 1) -> list[str]:
        """Wait until so many jobs have run, and return who ran."""
        return wait_for(
            f"{count} started", lambda: lines if len(lines := self.lines()) >= count else None
        )

    def has_lines(self, count: int) -> bool:
        return len(self.lines()) >= count

    def lines(self) -> list[str]:
        return self.ran.read_text().splitlines() if self.ran.exists() else []

    def cancel(self, job_id: str, **body: object) -> Json:
        answer = self.http.post(f"/v1/jobs/{job_id}/cancel", json=body)
        assert answer.status_code == 200, answer.text
        job: Json = answer.json()
        return job

    def launcher(self) -> int:
        """Return the launcher's pid: the one of its kind whose parent is none of its kind."""
        found = self._launchers()
        return next(pid for pid in found if parent(pid) not in found)

    def supervisors(self) -> list[int]:
        found = self._launchers()
        return [pid for pid in found if parent(pid) in found]

    def _launchers(self) -> list[int]:
        state = os.fsencode(self.service.state)
        return [pid for pid in pids() if b"launcher" in command(pid) and state in command(pid)]

    def supervisor_of(self, job_id: str) -> int:
        return parent(self.main_process(job_id))

    def main_process(self, job_id: str) -> int:
        answer = self.http.get(f"/v1/jobs/{job_id}", params={"detail": "true"})
        return int(answer.json()["attempts"][-1]["handle"])

    def folder_of(self, job_id: str, attempt: int = 1) -> Path:
        return self.service.state / "run" / f"{job_id}.{attempt}"

    def verify(self, job_id: str) -> None:
        answer = self.http.post(f"/v1/jobs/{job_id}/verify").json()
        assert answer["ok"], answer
        folder = self.service.state / "results" / job_id
        subprocess.run(["sha256sum", "-c", "--quiet", "output.sha256"], cwd=folder, check=True)

    def database(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self.service.state / "queue.db", isolation_level=None))


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def stat_fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def parent(pid: int) -> int:
    return int(stat_fields(pid)[1])


def is_gone(pid: int) -> bool:
    return stat_fields(pid)[0] in "XZ"


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(f"{pid} is gone", lambda: is_gone(pid))


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_for(f"{pid} is stopped", lambda: stat_fields(pid)[0] == "T")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    with box.service:
        box.connect()
        yield box
        box.http.close()


# -- the daemon is killed -----------------------------------------------------------------------


def test_a_running_job_is_adopted_and_ends_with_its_true_exit_code(box: Box) -> None:
    job = box.submit_waiting()
    box.wait_started()
    box.wait(job, "running")
    before = box.status(job)
    box.restart()
    after = box.status(job)
    assert (after["status"], after["started_at"]) == ("running", before["started_at"])
    box.release(7)
    ended = box.wait_end(job)
    assert (ended["status"], ended["reason"], ended["exit_code"]) == ("failed", "exit", 7)
    assert box.lines() == [f"{job} 1"]
    box.verify(job)


def test_a_job_that_ended_without_a_daemon_has_its_true_end(box: Box) -> None:
    job = box.submit_waiting()
    box.wait_started()
    box.kill()
    box.release(5)
    exit_file = box.folder_of(job) / "exit.json"
    wait_for("the supervisor writes the end", exit_file.exists)
    ended_by = time.time()
    box.start()
    ended = box.wait_end(job)
    assert (ended["status"], ended["exit_code"], ended["attempt"]) == ("failed", 5, 1)
    attempt = box.http.get(f"/v1/jobs/{job}", params={"detail": "true"}).json()["attempts"][0]
    assert attempt["user_s"] + attempt["system_s"] > 0
    assert ended["finished_at"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ended_by))
    box.verify(job)


def test_queued_jobs_keep_their_order(box: Box) -> None:
    first = box.submit_waiting(cpus=2)
    box.wait_started()
    queued = [box.submit_waiting(cpus=2) for _ in range(5)]
    urgent = box.submit_waiting(cpus=2, priority="high")
    box.restart()
    assert {box.status(job)["status"] for job in [*queued, urgent]} == {"pending"}
    box.release()
    for job in (first, urgent, *queued):
        assert box.wait_end(job)["status"] == "completed"
    assert box.lines() == [f"{job} 1" for job in (first, urgent, *queued)]


def test_a_start_that_is_in_the_launchers_queue_happens_once(box: Box) -> None:
    stop(launcher := box.launcher())
    job = box.submit_waiting()
    box.wait(job, "assigned")
    box.kill()
    # The new daemon's hello must wait for the old one's request: only then may it look.
    starting = subprocess.Popen(
        [sys.executable, "-m", "aitbcd"],
        env=os.environ | box.service.environ,
        stderr=subprocess.DEVNULL,
    )
    box.service.process = starting
    os.kill(launcher, signal.SIGCONT)
    box.wait_started()
    wait_for("the new daemon answers", box.service._answers)
    box.connect()
    box.release()
    ended = box.wait_end(job)
    assert (ended["status"], ended["attempt"]) == ("completed", 1)
    assert box.lines() == [f"{job} 1"]


def test_an_assigned_job_whose_start_was_lost_is_started_once(box: Box) -> None:
    job = box.lose_a_start()
    box.release()
    box.start()
    assert box.wait_end(job)["status"] == "completed"
    assert box.lines() == [f"{job} 1"]


def test_canceling_goes_on_after_a_restart(box: Box) -> None:
    job = box.submit(
        "sh", "-c", "trap '' TERM; echo $AITBC_JOB_ID >> ran; while :; do sleep 1; done"
    )
    box.wait_started()
    box.wait(job, "running")
    assert box.cancel(job)["status"] == "canceling"
    box.restart()
    ended = box.wait_end(job)
    assert (ended["status"], ended["reason"]) == ("canceled", "canceled")
    box.verify(job)


def test_a_job_canceled_before_its_start_never_runs(box: Box) -> None:
    stop(launcher := box.launcher())
    job = box.submit_waiting()
    box.wait(job, "assigned")
    assert box.cancel(job)["status"] == "canceling"
    box.kill(launcher_too=True)
    assert is_gone(launcher)
    box.start()
    ended = box.wait_end(job)
    assert (ended["status"], ended["results"]) == ("canceled", "none")
    assert box.lines() == []


def test_a_tombstone_is_believed(box: Box) -> None:
    job = box.lose_a_start()
    folder = box.folder_of(job)
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "canceled").touch()
    box.start()
    assert box.wait_end(job)["status"] == "canceled"
    assert box.lines() == []
    wait_for("the folder goes", lambda: not folder.exists())


def test_a_folder_without_started_never_ran(box: Box) -> None:
    job = box.lose_a_start()
    folder = box.folder_of(job)
    folder.mkdir()
    (folder / "lock").touch()
    box.release()
    box.start()
    assert box.wait_end(job)["status"] == "completed"
    assert box.lines() == [f"{job} 1"]


def test_a_started_attempt_without_an_end_is_lost(box: Box) -> None:
    job = box.lose_a_start()
    folder = box.folder_of(job)
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "started").touch()
    box.start()
    ended = box.wait_end(job)
    assert (ended["status"], ended["reason"]) == ("failed", "lost")
    assert box.lines() == []


def test_after_a_reboot_what_ran_is_lost_and_what_waited_runs(box: Box) -> None:
    running = box.submit_waiting(cpus=2)
    box.wait_started()
    retried = box.submit_waiting(cpus=2, retries=1)
    box.wait(running, "running")
    box.kill(launcher_too=True, supervisors_too=True)
    with box.database() as database:
        database.execute("UPDATE attempts SET boot_id = 'another'")
    # Whatever is on disk: an end that was written and not synced is not believed.
    (box.folder_of(running) / "exit.json").write_text('{"exit_code": 0}')
    box.release()
    box.start()
    ended = box.wait_end(running)
    assert (ended["status"], ended["reason"]) == ("failed", "lost")
    assert box.wait_end(retried)["status"] == "completed"


@pytest.mark.parametrize("supervisor_too", [False, True])
def test_a_seal_that_was_ordered_is_finished(box: Box, *, supervisor_too: bool) -> None:
    """Killed while it hashes: a sparse file takes long to read and no room on the disk."""
    job = box.submit("sh", "-c", 'truncate -s 400M "$AITBC_ARTIFACTS_DIR/big"; echo $$ >> ran')
    exit_file = box.folder_of(job) / "exit.json"
    wait_for("it is over", exit_file.exists)
    assert box.status(job)["status"] in ("assigned", "running")
    box.kill(supervisors_too=supervisor_too)
    box.start()
    ended = box.wait_end(job)
    assert (ended["status"], ended["exit_code"]) == ("completed", 0)
    assert len(box.lines()) == 1
    box.verify(job)


def test_what_was_sealed_but_not_recorded_is_recorded(box: Box) -> None:
    job = box.submit_waiting()
    box.wait_started()
    box.wait(job, "running")
    # Another program holds the database, so that the last commit cannot happen.
    with box.database() as database:
        database.execute("BEGIN IMMEDIATE")
        box.release(3)
        sealed = box.service.state / "results" / job
        wait_for("it is sealed", sealed.exists)
        box.kill(launcher_too=True, supervisors_too=True)
        database.execute("ROLLBACK")
    before = (sealed / "output.sha256").read_bytes()
    box.start()
    ended = box.wait_end(job)
    assert (ended["status"], ended["exit_code"], ended["reason"]) == ("failed", 3, "exit")
    assert (sealed / "output.sha256").read_bytes() == before
    box.verify(job)
    wait_for("the run folder goes", lambda: not box.folder_of(job).exists())


@pytest.mark.parametrize("manner", ["fifo", "link", "nonsense"])
def test_what_was_sealed_and_then_changed_is_not_believed(box: Box, manner: str) -> None:
    job = box.submit_waiting()
    box.wait_started()
    box.wait(job, "running")
    sealed = box.service.state / "results" / job
    with box.database() as database:
        database.execute("BEGIN IMMEDIATE")
        box.release()
        wait_for("it is sealed", sealed.exists)
        box.kill(launcher_too=True, supervisors_too=True)
        database.execute("ROLLBACK")
    output = sealed / "output.json"
    honest = output.read_text()
    output.unlink()
    if manner == "fifo":
        os.mkfifo(output)
    elif manner == "link":
        output.symlink_to("/dev/zero")
    else:
        output.write_text(honest.replace('"exit_code": 0', '"exit_code": "abc"'))
    box.start()
    ended = box.wait_end(job)
    assert (ended["status"], ended["reason"], ended["exit_code"]) == ("failed", "lost", None)


def test_killed_at_any_moment_every_job_runs_exactly_once(box: Box) -> None:
    """Sixty short jobs, and a daemon that is killed again and again in between."""
    lines = "\n".join(
        f'{{"argv": ["sh", "-c", "echo $AITBC_JOB_ID >> ran"], "cwd": "{box.folder}"}}'
        for _ in range(60)
    )
    answer = box.http.post("/v1/jobs:batch", content=lines)
    assert answer.status_code == 201, answer.text
    jobs = [job["job_id"] for job in answer.json()["jobs"]]
    chance = random.Random(7)
    for _ in range(12):
        goal = len(box.lines()) + chance.randrange(4)
        wait_for("some ran", partial(box.has_lines, min(goal, 60)))
        box.restart()
    assert {box.wait_end(job)["status"] for job in jobs} == {"completed"}
    assert sorted(box.lines()) == sorted(jobs)
    assert [box.status(job)["attempt"] for job in jobs] == [1] * 60


# -- the launcher and supervisors are killed ------------------------------------------------------


def test_a_killed_launcher_is_replaced_without_harm(box: Box) -> None:
    job = box.submit_waiting()
    box.wait_started()
    box.wait(job, "running")
    old = box.launcher()
    kill(old)
    other = box.submit_waiting()
    assert len(box.wait_started(2)) == 2
    assert box.launcher() != old
    box.release(4)
    assert box.wait_end(job)["exit_code"] == 4
    assert box.wait_end(other)["exit_code"] == 4
    assert len(box.lines()) == 2


def test_a_supervisor_killed_before_its_first_word_costs_nothing(box: Box) -> None:
    box.wait_end(box.submit("true"))
    idle = wait_for("a supervisor is idle", box.supervisors)
    for supervisor in idle:
        stop(supervisor)
    job = box.submit_waiting()
    wait_for("it is handed over", box.folder_of(job).exists)
    box.release()
    for supervisor in idle:
        kill(supervisor)
    ended = box.wait_end(job)
    assert (ended["status"], ended["attempt"]) == ("completed", 1)
    assert box.lines() == [f"{job} 1"]


ESCAPE = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", "987654"], {} if "bare" in sys.argv else os.environ)
    os._exit(0)
os.wait()
open("ran", "a").write("x\\n")
time.sleep(987654)
"""


@pytest.mark.parametrize("manner", ["bare", "marked"])
def test_a_killed_supervisor_fails_its_job_and_ends_what_it_started(box: Box, manner: str) -> None:
    bystander = subprocess.Popen(["sleep", "987654"])
    job = box.submit(sys.executable, "-c", ESCAPE, manner)
    box.wait_started()
    box.wait(job, "running")
    children = [pid for pid in pids() if b"987654" in command(pid) and pid != bystander.pid]
    main = box.main_process(job)
    launcher_too = manner == "marked"
    supervisor = box.supervisor_of(job)
    if launcher_too:
        stop(launcher := box.launcher())
        kill(supervisor)
        kill(launcher)
    else:
        kill(supervisor)
    ended = box.wait_end(job)
    assert (ended["status"], ended["reason"]) == ("failed", "lost")
    for pid in [main, *children]:
        wait_for(f"{pid} is gone", partial(is_gone, pid))
    assert len(children) >= 1
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    box.verify(job)


def test_a_lost_job_is_retried_where_it_allows(box: Box) -> None:
    job = box.submit_waiting(retries=1)
    box.wait_started()
    box.wait(job, "running")
    kill(box.supervisor_of(job))
    assert box.wait_started(2) == [f"{job} 1", f"{job} 2"]
    box.release()
    ended = box.wait_end(job)
    assert (ended["status"], ended["attempt"]) == ("completed", 2)


def test_a_second_daemon_is_refused_and_names_the_first(box: Box) -> None:
    second = box.service.run("aitbcd")
    assert second.returncode == 1
    assert str(box.service.pid) in second.stderr
    assert "Traceback" not in second.stderr


def test_an_orderly_stop_leaves_jobs_running(box: Box) -> None:
    job = box.submit_waiting()
    box.wait_started()
    assert box.service.stop() == 0
    assert "1 job" in box.service.log.read_text()
    box.start()
    box.release()
    assert box.wait_end(job)["status"] == "completed"
    assert box.lines() == [f"{job} 1"]


def test_nothing_is_left_when_all_is_over(box: Box) -> None:
    box.wait_end(box.submit("true"))
    assert box.service.stop() == 0
    wait_for("the launcher ends", lambda: not box._launchers())
    wait_for("no run folder is left", lambda: not list(box.service.state.glob("run/job_*")))


def test_the_progress_of_a_failed_job_is_the_last_that_it_said(box: Box) -> None:
    job = box.submit("sh", "-c", "echo 3/4 > $AITBC_PROGRESS; exit 1")
    assert box.wait_end(job)["progress"] == 75
    box.restart()
    assert box.status(job)["progress"] == 75


def test_a_time_limit_may_be_longer_than_the_kernel_waits_at_once(box: Box) -> None:
    job = box.submit_waiting(timeout="60d")
    box.wait_started()
    box.release()
    assert box.wait_end(job)["status"] == "completed"
