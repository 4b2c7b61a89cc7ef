"""While results are stored others go on, their owner can give up, and a kill costs nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aitbcd.launcher import protocol
from tests.service import children, wait_for
from tests.system.test_recovery import Box, is_gone, kill, stop

pytestmark = pytest.mark.system

Json = dict[str, Any]
#: Nothing on the disk, and minutes to read.
ENDLESS = 'echo said; cd "$AITBC_ARTIFACTS_DIR" && truncate -s 300G big; echo x > x'


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    with box.service:
        box.connect()
        yield box
        box.http.close()


def storing(box: Box, line: str = ENDLESS) -> str:
    """Return a job whose results are being stored."""
    job = box.submit("sh", "-c", line)
    wait_for("it is stored", lambda: box.status(job)["waiting"] == "stores its results")
    return job


def sealers(box: Box) -> list[int]:
    """Return what seals: a child of a supervisor, or of the launcher where that has died."""
    found = box.supervisors()
    return [pid for pid in found if pid not in children(box.launcher())] or [
        pid for pid in found if is_sealer(pid)
    ]


def is_sealer(pid: int) -> bool:
    try:
        names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any("/run/turn." in name for name in names)


def output(box: Box, job: str) -> Json:
    text = (box.service.state / "results" / job / "output.json").read_bytes()
    found: Json = json.loads(text)
    return found


def lose_supervisor(box: Box) -> None:
    for pid in box.supervisors():
        kill(pid)
    wait_for("the launcher seals", lambda: [p for p in children(box.launcher()) if is_sealer(p)])


def nothing(box: Box) -> None:
    wait_for("a child seals", lambda: sealers(box))


@pytest.mark.parametrize("before", [nothing, lose_supervisor])
def test_storing_can_be_given_up(box: Box, before: Callable[[Box], None]) -> None:
    job = storing(box)
    before(box)
    refusal = box.http.post(f"/v1/jobs/{job}/cancel")
    assert refusal.status_code == 409
    assert "--force" in refusal.json()["hint"]
    # Others are not kept waiting.
    assert box.wait_end(box.submit("sh", "-c", "exit 3"))["exit_code"] == 3
    assert box.cancel(job, force=True)["job_id"] == job
    ended = box.wait_end(job)
    assert (ended["status"], ended["results"]) == ("completed", "kept")
    left = output(box, job)["left_out"]
    why = "given up by its owner while its results were stored"
    assert left == [{"path": "artifacts", "why": why}]
    package = box.service.state / "results" / job
    assert (package / "logs/stdout.log").read_text() == "said\n"
    assert os.listdir(package / "artifacts") == []
    box.verify(job)
    run = box.service.state / "run"
    wait_for("its run folder goes", lambda: not list(run.glob(f"{job}.*")))


def test_a_sealing_that_is_killed_costs_nothing(box: Box) -> None:
    job = storing(box, ENDLESS.replace("300G", "1G"))
    for pid in wait_for("a child seals", lambda: sealers(box)):
        os.kill(pid, signal.SIGKILL)
    ended = box.wait_end(job)
    assert (ended["status"], ended["reason"]) == ("completed", None)
    assert output(box, job)["left_out"] == []
    assert sorted(os.listdir(box.service.state / "results" / job / "artifacts")) == ["big", "x"]
    box.verify(job)


def test_a_sealing_that_is_killed_again_and_again_keeps_the_logs(box: Box) -> None:
    job = storing(box)

    def is_over() -> bool:
        for pid in sealers(box):
            kill(pid)
        return box.status(job)["status"] not in ("assigned", "running")

    wait_for("it is over", is_over)
    ended = box.status(job)
    assert (ended["status"], ended["reason"], ended["results"]) == ("failed", "storage", "kept")
    assert "ended from outside" in ended["message"]
    assert [entry["path"] for entry in output(box, job)["left_out"]] == ["artifacts"]
    assert (box.service.state / "results" / job / "logs/stdout.log").read_text() == "said\n"


def take_connection(box: Box, job: str) -> socket.socket:
    """Connect to a supervisor in its daemon's place, as it has one connection at a time."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(box.folder_of(job), os.O_RDONLY)
    try:
        sock.connect(protocol.address(folder, protocol.SOCKET))
    finally:
        os.close(folder)
    # It has accepted it, and let go of the other.
    assert protocol.receive(sock) is not None
    return sock


@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_supervisor_that_loses_its_connection_while_it_stores_is_found_again(
    box: Box, is_given_up: bool
) -> None:
    job = storing(box, ENDLESS.replace("300G", "1G"))
    at_it = wait_for("a child seals", lambda: sealers(box))
    for pid in at_it:
        stop(pid)
    # It listens only once it has been left by a daemon.
    box.restart()
    wait_for("it is found", lambda: box.status(job)["waiting"] == "stores its results")
    with take_connection(box, job):
        if is_given_up:
            box.cancel(job, force=True)
    for pid in at_it:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    ended = box.wait_end(job)
    assert (ended["status"], ended["results"]) == ("completed", "kept")
    assert [entry["path"] for entry in output(box, job)["left_out"]] == ["artifacts"] * is_given_up
    box.verify(job)
    wait_for("its run folder goes", lambda: not box.folder_of(job).exists())
    assert box.wait_end(box.submit("true"))["status"] == "completed"


def wait_told(box: Box, job: str, *words: str) -> None:
    """Wait until one of these is said of it."""
    wait_for("it is told", lambda: box.status(job)["waiting"] in words, log=box.service.log)


def test_a_supervisor_or_launcher_that_is_stopped_is_told(box: Box) -> None:
    box.wait_end(box.submit("true"))
    # Any of those that are idle may be given it.
    for pids, who in ((box.supervisors(), "supervisor"), ([box.launcher()], "launcher")):
        for pid in pids:
            stop(pid)
        job = box.submit("true")
        why = "does not answer: it is stopped or the machine is overloaded"
        wait_told(box, job, *(f"its {who} (pid {pid}) {why}" for pid in pids))
        assert box.status(job)["status"] == "assigned"
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        ended = box.wait_end(job)
        assert (ended["status"], ended["waiting"]) == ("completed", None)


def test_a_stopped_supervisor_of_an_earlier_daemon_is_told(box: Box) -> None:
    job = box.submit_waiting()
    box.wait(job, "running")
    supervisor = box.supervisor_of(job)
    stop(supervisor)
    box.restart()
    words = "its supervisor does not answer: it is stopped or the machine is overloaded"
    wait_told(box, job, words)
    os.kill(supervisor, signal.SIGCONT)
    box.release()
    assert box.wait_end(job)["status"] == "completed"
    assert not is_gone(box.launcher())
