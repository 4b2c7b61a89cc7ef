"""Processes are found whatever their names are, and only the one that was seen is signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aitbcd.launcher import processes
from aitbcd.launcher.processes import Process
from tests.launcher import is_alive, wait_gone
from tests.service import become_subreaper, children, wait_for

#: Makes a child and a grandchild, says their pids, and waits.
TREE = "sh -c 'sleep 1000 & echo $! $$; wait' & wait"
#: Gives itself a name, says so, and waits for the end of its input.
NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, NAME)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tree() -> Iterator[list[int]]:
    """A process, its child and its grandchild."""
    with subprocess.Popen(["sh", "-c", TREE], stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout
        inner, middle = map(int, top.stdout.readline().split())
        yield [top.pid, middle, inner]
        for pid in (inner, middle, top.pid):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def seen(pid: int) -> Process:
    return next(process for process in processes.all_processes() if process.pid == pid)


def found(root: int, *but: int) -> list[int]:
    return sorted(each.pid for each in processes.descendants(root, but=frozenset(but)))


def test_descendants_are_found_without_those_of_others(tree: list[int]) -> None:
    top, middle, inner = tree
    assert found(top) == sorted([middle, inner])
    assert found(middle) == [inner]
    assert found(inner) == []
    # Who is left out takes his own along.
    assert found(top, middle) == []
    assert found(top, inner) == [middle]
    assert not set(tree) & set(found(os.getpid(), top))


@pytest.mark.parametrize("name", [b")", b") Z 1 (", b"a b", b"\n", b"\xff\xfe", b"(((", b""])
def test_a_name_cannot_lie_about_a_process(name: bytes) -> None:
    command = [sys.executable, "-I", "-S", "-c", NAMED.replace("NAME", repr(name))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        assert Path(f"/proc/{child.pid}/comm").read_bytes() == name + b"\n"
        process = seen(child.pid)
        assert (process.ppid, process.session) == (os.getpid(), os.getsid(0))
        assert not processes.is_zombie(child.pid)
        shown = name.strip().decode(errors="replace")
        assert processes.describe(process) == f"{child.pid} {shown}"
        child.communicate(b"")


def test_a_zombie_is_known_and_has_a_name() -> None:
    child = subprocess.Popen(["true"])
    wait_for("it ends", lambda: processes.is_zombie(child.pid))
    assert child.pid in found(os.getpid())
    processes.kill([seen(child.pid)])
    assert processes.describe(seen(child.pid)) == f"{child.pid} true"
    assert child.wait() == 0
    assert processes.is_zombie(child.pid)
    assert child.pid not in found(os.getpid())


def test_what_has_the_pid_of_one_that_was_seen_is_not_signalled() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    process = seen(child.pid)
    processes.kill([process._replace(start=process.start - 1)])
    processes.terminate([process])
    assert child.wait() == -signal.SIGTERM


def test_what_is_gone_is_passed_over(tree: list[int]) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    process = seen(child.pid)
    child.kill()
    child.wait()
    processes.kill([process, seen(tree[2])])
    wait_gone(tree[2])
    assert processes.describe(process) == f"{child.pid} ?"


def test_a_stopped_process_hears_that_it_is_to_end(tree: list[int]) -> None:
    os.kill(tree[2], signal.SIGSTOP)
    wait_for("it is stopped", lambda: state(tree[2]) == "T")
    processes.terminate([seen(tree[2])])
    wait_gone(tree[2])


def state(pid: int) -> str:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


#: A job's main process, and three that it leaves in its session or with its environment.
FOUR = """
sleep 1000 & echo $!
env -i sleep 1000 & echo $!
setsid sleep 1000 & echo $!
echo $$
exec sleep 1000
"""


def marked(job: str, attempt: int) -> subprocess.Popen[str]:
    """Start such a family as the attempt of a job."""
    marks = {"AITBC_JOB_ID": job, "AITBC_ATTEMPT": str(attempt)}
    return subprocess.Popen(
        ["sh", "-c", FOUR],
        env={"PATH": os.environ["PATH"]} | marks,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def inherited(job: str, attempt: int) -> set[int]:
    return {each.pid for each in processes.inherited(job, attempt, os.getuid())}


def pids(job: subprocess.Popen[str]) -> set[int]:
    """Return the four, once each of them is what it is to become."""
    assert job.stdout
    said = {int(job.stdout.readline()) for _ in range(4)}
    wait_for("all sleep", lambda: {name(pid) for pid in said} == {"sleep"})
    return said


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_what_an_attempt_left_is_found_by_its_environment_and_its_session() -> None:
    with marked("job_00000001", 1) as job, marked("job_00000001", 11) as following:
        try:
            mine, others = pids(job), pids(following)
            assert inherited("job_00000001", 1) == mine
            assert inherited("job_00000001", 11) == others
            assert inherited("job_0000000", 1) == set()
            assert processes.inherited("job_00000001", 1, os.getuid() + 1) == []
            # Its leader gone, a session is still known by who is marked in it.
            job.kill()
            job.wait()
            assert inherited("job_00000001", 1) == mine - {job.pid}
        finally:
            for pid in inherited("job_00000001", 1) | inherited("job_00000001", 11):
                os.kill(pid, signal.SIGKILL)


def test_a_subreaper_gets_what_lost_its_parent() -> None:
    line = "import os; os.fork() or (os.setsid(), os.execvp('sleep', ['sleep', '1000']))"
    become_subreaper()
    before = set(children(os.getpid()))
    subprocess.run([sys.executable, "-I", "-S", "-c", line], check=True)
    [orphan] = set(children(os.getpid())) - before
    assert orphan in found(os.getpid())
    os.kill(orphan, signal.SIGKILL)
    os.waitpid(orphan, 0)
