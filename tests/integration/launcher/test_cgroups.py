"""What a job's own cgroup does without any controller: nothing gets out of it alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aitbcd.launcher import protocol
from aitbcd.launcher.cgroups import HOLDER, own_folders
from tests.launcher import Daemon, Stage, Who, is_alive, wait_gone
from tests.service import wait_for

#: Starts a program with a cgroup of its own.
WITHIN = 'echo $$ > "$0/cgroup.procs"; exec "$@"'


class Group:
    """A cgroup with a launcher in it, which is told that it may have cgroups below."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def jobs(self) -> list[str]:
        return sorted(each.name for each in self.folder.iterdir() if each.is_dir())

    def launch(self, stage: Stage, prelude: str | None = None) -> Daemon:
        before = ("/bin/sh", "-c", WITHIN, str(self.folder))
        assert stage.launch(before=before, prelude=prelude), stage.said()
        daemon = stage.connect()
        assert daemon.hello()["cgroups"]["folder"] == str(self.folder)
        return daemon


@pytest.fixture
def group() -> Iterator[Group]:
    """A cgroup as systemd delegates it."""
    own = own_folders().get("")
    if own is None or not os.access(f"{own}/cgroup.procs", os.W_OK):
        pytest.skip("no cgroup v2 here, or none that is ours")
    folder = Path(own, f"aitbcd-test-{os.getpid()}")
    folder.mkdir()
    os.setxattr(folder, "user.delegate", b"1")
    made = Group(folder)
    try:
        yield made
    finally:
        for name in made.jobs:
            (folder / name).rmdir()
        wait_for("it is empty", lambda: "populated 0" in (folder / "cgroup.events").read_text())
        folder.rmdir()


@pytest.fixture
def stage(group: Group) -> Iterator[Stage]:
    """Goes before the cgroup does."""
    with Stage() as made:
        yield made


def where(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def test_each_attempt_has_one_until_its_end(stage: Stage, group: Group) -> None:
    daemon = group.launch(stage)
    spec = stage.shell("cat /proc/self/cgroup; echo; read _ < gate", cwd=str(stage.folder))
    os.mkfifo(stage.folder / "gate")
    attempt = daemon.start(spec)
    name = f"{spec['job']}.1"
    running = attempt.running()
    assert group.jobs == [name]
    assert Path(where(running["pid"])).name == name
    for supervisor in stage.supervisors():
        assert where(supervisor) == where(stage.pid)
    (stage.folder / "gate").write_text("\n")
    facts = attempt.exited()
    assert group.jobs == []
    assert facts["exit_code"] == 0
    # What no controller counts is not there.
    assert facts.get("oom_kills", 0) == facts.get("refused_forks", 0) == 0
    attempt.finish()


#: Says how long its child computed. That ends without being waited for, so that no parent is told.
UNTOLD = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    sum(range(10_000_000))
    os.write(1, str(time.process_time_ns() // 1000).encode())
    os._exit(0)
try:
    os.wait()
except ChildProcessError:
    pass
"""


def test_its_time_is_that_of_all_that_ran_in_it(stage: Stage, group: Group) -> None:
    daemon = group.launch(stage)
    done = daemon.run(stage.spec(sys.executable, "-I", "-S", "-c", UNTOLD))
    assert done.facts["user_us"] + done.facts["system_us"] >= int(done.stdout)


LEFT = """
setsid sh -c 'sleep 1000 & echo $! > detached'
env -i setsid sh -c 'setsid sleep 1000 & echo $! > lonely' > /dev/null 2>&1 < /dev/null
sh -c 'kill -STOP $$' & echo $! > stopped
cat detached lonely stopped
"""


def test_what_is_left_ends_with_the_main_process(stage: Stage, group: Group) -> None:
    daemon = group.launch(stage)
    done = daemon.run(stage.shell(LEFT, cwd=str(stage.folder), grace_s=0.2))
    assert done.facts["exit_code"] == 0
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 3
    assert not any(is_alive(pid) for pid in pids)
    assert group.jobs == []


def test_who_was_put_into_it_from_outside_ends_too(stage: Stage, group: Group) -> None:
    daemon = group.launch(stage)
    attempt = daemon.start(stage.shell("read _ < gate", cwd=str(stage.folder), grace_s=0.2))
    os.mkfifo(stage.folder / "gate")
    attempt.running()
    stranger = os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", "trap '' TERM; sleep 1000 & wait")
    wait_for("it has come up", lambda: Path(f"/proc/{stranger}/cmdline").read_bytes()[:2] == b"sh")
    (group.folder / group.jobs[0] / "cgroup.procs").write_text(str(stranger))
    (stage.folder / "gate").write_text("\n")
    assert attempt.exited()["exit_code"] == 0
    wait_gone(stranger)
    assert os.waitstatus_to_exitcode(os.waitpid(stranger, 0)[1]) == -signal.SIGKILL
    assert group.jobs == []


@pytest.mark.parametrize("is_held", [True, False])
def test_a_job_that_is_killed_with_the_whole_unit_is_ended_by_that(
    stage: Stage, group: Group, is_held: bool
) -> None:
    """As systemd does: whether the job's end is seen before its supervisor is killed is chance."""
    daemon = group.launch(stage)
    holder = subprocess.Popen(["sleep", "1000"])
    (group.folder / HOLDER).mkdir()
    (group.folder / HOLDER / "cgroup.procs").write_text(str(holder.pid))
    attempt = daemon.start(stage.shell("exec sleep 1000"))
    pid = attempt.running()["pid"]
    if not is_held:
        holder.kill()
        holder.wait()
    os.kill(pid, signal.SIGKILL)
    facts = attempt.exited()
    assert facts["signal"] == signal.SIGKILL
    assert facts["ended_by"] == (None if is_held else "shutdown")
    holder.kill()
    holder.wait()


def test_another_user_s_job_cannot_leave_it(stage: Stage, group: Group, other: Who) -> None:
    daemon = group.launch(stage)
    line = f"""
    grep ^0:: /proc/self/cgroup
    for folder in {group.folder} {group.folder}/job_*; do
        echo $$ > $folder/cgroup.procs && echo left
        mkdir $folder/below && echo made
        echo 1 > $folder/cgroup.kill && echo killed
    done
    grep ^0:: /proc/self/cgroup
    """
    done = daemon.run(stage.shell(line, who=other))
    assert done.facts["exit_code"] == 0
    before, after = done.stdout.splitlines()
    assert before == after


def test_what_a_killed_supervisor_left_is_ended(stage: Stage, group: Group) -> None:
    daemon = group.launch(stage)
    attempt = daemon.start(stage.shell("env -i setsid sleep 1000 & sleep 1000"))
    pid = attempt.running()["pid"]
    os.kill(attempt.supervisor, signal.SIGKILL)
    attempt.wait_lost()
    wait_gone(pid)
    wait_for("its cgroup is gone", lambda: not group.jobs)


def test_what_nobody_looks_after_is_found_by_its_cgroup(stage: Stage, group: Group) -> None:
    daemon = group.launch(stage)
    line = "env -i setsid sh -c 'sleep 1000 & echo $!'; exec sleep 1000"
    attempt = daemon.start(stage.shell(line))
    main = attempt.running()["pid"]
    lonely = int(stage.line_of(attempt.spec))
    supervisors = stage.supervisors()
    stage.kill()
    for pid in supervisors:
        os.kill(pid, signal.SIGKILL)
    daemon.hang_up()
    following = group.launch(stage)
    # It still runs: that is for the daemon to decide.
    assert is_alive(main)
    assert is_alive(lonely)
    assert group.jobs == [f"{attempt.spec['job']}.1"]
    who = {name: attempt.spec[name] for name in ("uid", "gid", "user")}
    assert following.ask("sweep", job=attempt.spec["job"], attempt=1, **who)["left"] == []
    wait_gone(main)
    wait_gone(lonely)
    assert group.jobs == []


def test_a_new_launcher_removes_those_of_attempts_that_are_over(stage: Stage, group: Group) -> None:
    daemon = group.launch(stage)
    attempt = daemon.start(stage.shell("sleep 1000"))
    attempt.running()
    stage.kill()
    (group.folder / "job_00000000.1").mkdir()
    (group.folder / "somebody-else-s").mkdir()
    # One whose supervisor is about to start its program.
    held = "job_11111111.1"
    (group.folder / held).mkdir()
    (stage.run / held).mkdir()
    with (stage.run / held / protocol.LOCK).open("wb") as lock:
        assert protocol.try_lock(lock.fileno())
        group.launch(stage)
        assert group.jobs == sorted([f"{attempt.spec['job']}.1", held, "somebody-else-s"])


#: As a container that does not let clone3(2) through: a filter of system calls (seccomp(2)).
NO_CLONE3 = """
import ctypes, struct
program = [(0x20, 0, 0, 0), (0x15, 0, 1, 435), (6, 0, 0, 0x50000 | 38), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
filter = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter) == 0
"""


def test_it_is_entered_also_where_no_process_can_be_born_into_it(
    stage: Stage, group: Group
) -> None:
    daemon = group.launch(stage, prelude=NO_CLONE3)
    spec = stage.shell("cat /proc/self/cgroup")
    assert f"/{spec['job']}.1\n" in daemon.run(spec).stdout.decode()
