"""Heavy sealings wait for each other, and a killed one keeps nobody waiting."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from aitbcd.launcher import turns
from aitbcd.launcher.turns import Turns
from tests.service import wait_for


def take_in_a_child(run_fd: int, note: Path, uid: int = 1000) -> int:
    """Fork a child that takes a turn, makes a file when it has it, and keeps it."""
    pid = os.fork()
    if pid == 0:
        try:
            Turns(run_fd, uid).take()
            note.touch()
            while True:
                signal.pause()
        finally:
            os._exit(1)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def is_waiting(pid: int) -> bool:
    """Tell whether a process waits for a lock of flock(2)."""
    return any(f" {pid} " in line for line in waiters())


def waiters() -> list[str]:
    return [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line]


def test_so_many_work_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_COUNT", 2)
    run_fd = os.open(tmp_path, os.O_RDONLY)
    notes = [tmp_path / f"note{number}" for number in range(3)]
    first, second = (take_in_a_child(run_fd, note) for note in notes[:2])
    wait_for("two have a turn", lambda: all(note.exists() for note in notes[:2]))
    third = take_in_a_child(run_fd, notes[2])
    wait_for("the third waits", lambda: is_waiting(third))
    assert not notes[2].exists()
    other = take_in_a_child(run_fd, tmp_path / "other", uid=1001)
    wait_for("another user does not wait", (tmp_path / "other").exists)
    end(other)
    assert not notes[2].exists()
    end(first)
    end(second)
    wait_for("it has its turn", notes[2].exists)
    end(third)
    os.close(run_fd)


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_COUNT", 1)
    monkeypatch.setattr(turns, "_LONGEST_S", 0.05)
    run_fd = os.open(tmp_path, os.O_RDONLY)
    first = take_in_a_child(run_fd, tmp_path / "first")
    wait_for("it has its turn", (tmp_path / "first").exists)
    second = take_in_a_child(run_fd, tmp_path / "second")
    wait_for("it goes on without", (tmp_path / "second").exists)
    for pid in (first, second):
        end(pid)
    os.close(run_fd)
