"""What a job's supervisor does when the machine has no more of something."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aitbcd.launcher import package, protocol
from aitbcd.launcher.identity import Identity, do_as
from tests.launcher import MIB, Daemon, Stage, Who, proc_status, wait_gone
from tests.service import DEADLINE_S, children, wait_for

# linux/ptrace.h, asm-generic/unistd.h
PTRACE_SEIZE, PIDFD_GETFD = 0x4206, 438
#: Takes all inotify instances that this user may have.
NO_INOTIFY = """
os.environ
while linux._libc.inotify_init1(os.O_CLOEXEC) >= 0: pass
"""
#: Writes more than its log may hold, then waits until room was given back.
TALK = """
exec 3>&1
head -c 8000000 /dev/zero | tr "\\\\0" x
until test "$(stat -L -c %b /proc/self/fd/3)" -lt 8192; do sleep 0.05; done
echo; echo end
"""


def test_without_inotify_logs_are_looked_at_by_the_clock(stage: Stage, other: Who) -> None:
    daemon = stage.launch_as(other, NO_INOTIFY)
    spec = stage.shell(TALK, who=other, log_limit=MIB)
    attempt = daemon.start(spec)
    assert attempt.exited()["exit_code"] == 0
    assert attempt.seal()["op"] == "sealed"
    log = (stage.sealed(spec) / "logs/stdout.log").read_bytes()
    assert len(log) < 2 * MIB
    assert log.endswith(b"\nend\n")


def test_a_log_that_its_owner_may_not_read_any_more_does_no_harm(stage: Stage, other: Who) -> None:
    daemon = stage.launch_as(other)
    line = 'chmod 0 "${AITBC_RESULT%/*}"/logs/*' + TALK
    attempt = daemon.start(stage.shell(line, who=other, log_limit=MIB))
    assert attempt.exited()["exit_code"] == 0
    assert attempt.seal()["op"] == "sealed"


@contextmanager
def mounted(stage: Stage, kind: str, options: str) -> Iterator[None]:
    """Mount a file system of this kind where the state is, with its folders."""
    if os.getuid() != 0:
        pytest.skip("only root can mount")
    done = subprocess.run(
        ["mount", "-t", kind, "-o", options, "none", stage.state], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no {kind} can be mounted here: {done.stderr.strip()}")
    try:
        stage.state.chmod(0o711)
        for folder in (stage.run, stage.results):
            folder.mkdir()
        yield
    finally:
        subprocess.run(["umount", "--lazy", stage.state], check=True)


def use_up_inodes(folder: Path) -> None:
    for number in range(100):
        try:
            (folder / str(number)).touch()
        except OSError:
            return


def give_back_inodes(folder: Path) -> None:
    for each in folder.glob("[0-9]*"):
        each.unlink()


def test_the_end_of_a_job_is_recorded_on_a_full_disk(stage: Stage) -> None:
    with mounted(stage, "tmpfs", "size=8m"):
        assert stage.launch(), stage.said()
        daemon = stage.connect()
        # Twice, because the room is to be there for the next attempt too.
        for code in (5, 6):
            spec = stage.shell(f'cat /dev/zero > "$AITBC_ARTIFACTS_DIR/big"; exit {code}')
            attempt = daemon.start(spec)
            assert attempt.exited()["exit_code"] == code
            assert stage.facts_on_disk(spec)["exit_code"] == code
            big = stage.building(spec["job"]) / "artifacts/big"
            assert b"No space left on device" in stage.log_of(spec, "stderr") or big.stat().st_size
            failed = attempt.seal()
            assert (failed["op"], failed["errno"]) == ("seal_failed", errno.ENOSPC)
            assert not stage.sealed(spec).exists()
            os.truncate(big, 0)
            assert attempt.seal()["op"] == "sealed"
            attempt.done()


def test_what_the_disk_kept_from_starting_is_not_blamed_on_the_job(stage: Stage) -> None:
    with mounted(stage, "tmpfs", "size=8m,nr_inodes=90"):
        assert stage.launch(), stage.said()
        daemon = stage.connect()
        daemon.run(stage.spec("true"))
        use_up_inodes(stage.results)
        spec = stage.spec("true")
        attempt = daemon.start(spec)
        facts = attempt.exited()
        assert facts["storage"]
        assert facts["started_at"] is None
        assert os.strerror(errno.ENOSPC) in str(facts["cannot_start"])
        give_back_inodes(stage.results)
        attempt.done()
        # Its supervisor takes another, though not at once the next: there are some that wait.
        next_ones = [daemon.start(stage.spec("true")) for _ in range(4)]
        assert attempt.supervisor in [each.supervisor for each in next_ones]
        assert [each.exited()["exit_code"] for each in next_ones] == [0] * 4


def test_a_package_that_could_not_be_made_keeps_no_file_open(stage: Stage) -> None:
    with mounted(stage, "tmpfs", "size=8m,nr_inodes=30"):
        results = os.open(stage.results, os.O_RDONLY)
        before = os.listdir("/proc/self/fd")
        try:
            # Of the five that it needs, the last one.
            while os.statvfs(stage.state).f_ffree > 4:
                (stage.results / str(os.statvfs(stage.state).f_ffree)).touch()
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                package.create(results, "job_1", None)
            assert os.listdir("/proc/self/fd") == before
            assert (stage.building("job_1") / "logs/stdout.log").exists()
        finally:
            os.close(results)


def test_a_package_that_cannot_be_given_away_keeps_no_file_open(stage: Stage, other: Who) -> None:
    stage.results.chmod(0o777)
    results = os.open(stage.results, os.O_RDONLY)

    def leaked() -> dict[str, int]:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(PermissionError):
            package.create(results, "job_1", Identity(other.uid + 1, other.gid, "nobody"))
        return {"files": len(os.listdir("/proc/self/fd")) - len(before)}

    try:
        assert do_as(Identity(*other), leaked, DEADLINE_S) == {"files": 0}
    finally:
        os.close(results)


@pytest.mark.parametrize("line", ["exit 5", "read _ < gate; exit 5"])
def test_the_next_daemon_finds_what_could_not_listen_on_a_full_disk(
    stage: Stage, line: str
) -> None:
    with mounted(stage, "tmpfs", "size=8m,nr_inodes=60"):
        assert stage.launch(), stage.said()
        daemon = stage.connect()
        os.mkfifo(stage.folder / "gate")
        spec = stage.shell(line, cwd=str(stage.folder))
        attempt = daemon.start(spec)
        if "gate" in line:
            attempt.running()
        else:
            attempt.exited()
        use_up_inodes(stage.results)
        its_own = Path(f"/proc/{attempt.supervisor}/fd")
        before = len(os.listdir(its_own))
        daemon.hang_up()
        wait_for("it sees that", lambda: len(os.listdir(its_own)) < before)
        give_back_inodes(stage.results)
        found = stage.connect().adopt(spec)
        if "gate" in line:
            (stage.folder / "gate").write_text("\n")
        assert found.exited()["exit_code"] == 5
        assert found.finish()["op"] == "sealed"


def test_no_run_folder_can_be_made(stage: Stage) -> None:
    with mounted(stage, "tmpfs", "size=8m,nr_inodes=40"):
        assert stage.launch(), stage.said()
        daemon = stage.connect()
        # What it tries itself out with is gone then.
        daemon.hello()
        use_up_inodes(stage.results)
        spec = stage.spec("true")
        answer = daemon.ask("start", **spec)
        assert (answer["op"], answer["why"]) == ("refused", "storage")
        assert not daemon.ask("tombstone", job=spec["job"], attempt=1)["done"]
        assert sorted(os.listdir(stage.run)) == ["launcher.lock", "launcher.log", "launcher.sock"]
        for each in stage.results.iterdir():
            each.unlink()
        assert daemon.run(spec).facts["exit_code"] == 0


def test_where_nothing_can_be_punched_logs_are_kept_whole(stage: Stage) -> None:
    with mounted(stage, "ramfs", "rw"):
        assert stage.launch(), stage.said()
        daemon = stage.connect()
        spec = stage.shell("head -c 3000000 /dev/zero; sleep 0.2", log_limit=MIB)
        attempt = daemon.start(spec)
        assert attempt.exited()["kept_whole"] == ["stdout.log"]
        assert attempt.seal()["op"] == "sealed"
        assert (stage.sealed(spec) / "logs/stdout.log").read_bytes() == bytes(3_000_000)


def test_no_further_process(stage: Stage, other: Who) -> None:
    """For the launcher, whose user has as many as he may."""
    limit = "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))"
    daemon = stage.launch_as(other, limit)
    spec = stage.spec("true", who=other)
    answer = daemon.ask("start", **spec)
    assert (answer["op"], answer["why"]) == ("refused", "storage")
    assert os.strerror(errno.EAGAIN) in answer["error"]
    assert daemon.hello()["pid"] == stage.pid


#: Lets its user have one more process, and what is forked as many as he likes.
ONE_MORE = """
most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
resource.setrlimit(resource.RLIMIT_NPROC, (2, most))
allow = lambda: resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
os.register_at_fork(after_in_child=allow)
"""


def test_one_further_process_where_several_are_made_at_a_time(stage: Stage, other: Who) -> None:
    daemon = stage.launch_as(other, ONE_MORE)
    attempt = daemon.start(stage.spec("sleep", "1000", who=other))
    attempt.running()
    assert stage.supervisors() == [attempt.supervisor]
    spec = stage.spec("true", who=other)
    open_before = os.listdir(f"/proc/{stage.pid}/fd")
    answer = daemon.ask("start", **spec)
    assert (answer["op"], answer["why"]) == ("refused", "storage")
    assert os.strerror(errno.EAGAIN) in answer["error"]
    assert os.listdir(f"/proc/{stage.pid}/fd") == open_before
    attempt.cancel(0)
    attempt.exited()
    attempt.finish()
    for _ in range(2):
        assert daemon.run(spec | {"job": f"{spec['job']}x"}).worker == attempt.worker


#: Tries to be allowed more, and starts what it may.
MANY = """
ulimit -p; ulimit -H -p
(ulimit -p 100) && echo raised
count=0
while test $count -lt 60; do sleep 1000 & count=$((count + 1)); echo $count; done
"""
LOOK = "ulimit -p; ulimit -H -p"


def test_without_a_cgroup_its_user_has_no_more_processes_than_one_job_may(
    stage: Stage, daemon: Daemon, other: Who
) -> None:
    done = daemon.run(stage.shell(MANY, who=other, limits={"processes": 40}))
    # It is one of them itself.
    assert done.stdout.split() == [b"40", b"40", *(b"%d" % each for each in range(1, 40))]


def test_the_limit_of_one_job_is_not_that_of_its_supervisor_s_next(
    stage: Stage, other: Who
) -> None:
    daemon = stage.launch_as(other)
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    first, second = (
        daemon.run(stage.shell(LOOK, who=other, limits={"processes": each}))
        for each in (1000, None)
    )
    assert first.stdout.split() == [b"1000", b"%d" % hard]
    assert second.stdout.split() == [b"%d" % soft, b"%d" % hard]
    assert first.worker == second.worker


def test_words_of_any_length_fit_into_the_room_of_the_facts(stage: Stage, daemon: Daemon) -> None:
    name = "/" + "\U0001f600" * 60 + "/" + "\x01" * 250
    for program in (name, name * 10, "x" * 100_000):
        attempt = daemon.start(spec := stage.spec(program))
        facts = attempt.exited()
        assert str(facts["cannot_start"]).endswith(
            (os.strerror(errno.ENOENT), os.strerror(errno.ENAMETOOLONG), "in PATH)")
        )
        assert (stage.run_folder(spec) / protocol.EXIT).stat().st_size == protocol.EXIT_ROOM
        # All of it is in the job's own log.
        assert program.encode() in stage.log_of(spec, "stderr")
        attempt.finish()


def test_a_user_who_stops_his_sealing_stops_it_only_so_long(stage: Stage, other: Who) -> None:
    assert stage.launch(prelude="seal.DEADLINE_S = 1.0"), stage.said()
    daemon = stage.connect()
    # Hashing it takes minutes.
    spec = stage.shell('truncate -s 100G "$AITBC_ARTIFACTS_DIR/big"', who=other)
    attempt = daemon.start(spec)
    attempt.exited()
    attempt.tell("seal", **stage.order(spec))
    sealer = wait_for("it seals in turn", lambda: sealer_below(attempt.supervisor))
    stop_as(other, sealer)
    failed = attempt.channel.word(attempt.key, "sealed", "seal_failed")
    assert (failed["op"], failed["errno"]) == ("seal_failed", errno.ETIMEDOUT)
    wait_gone(sealer)
    (stage.building(spec["job"]) / "artifacts/big").unlink()
    assert attempt.seal()["op"] == "sealed"
    attempt.done()
    assert daemon.run(stage.spec("true", who=other)).facts["exit_code"] == 0


def sealer_below(supervisor: int) -> int | None:
    """Return what seals as the user: the child of a supervisor's child."""
    return next((pid for child in children(supervisor) for pid in children(child)), None)


def stop_as(who: Who, pid: int) -> None:
    """Send SIGSTOP as this user, as soon as the process is his."""
    change = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--clear-groups"]
    line = f"until kill -STOP {pid} 2>/dev/null; do :; done"
    subprocess.run([*change, "sh", "-c", line], check=True, cwd="/")


def test_what_seals_is_not_for_its_user_to_look_into(stage: Stage, other: Who) -> None:
    """It is his, but with a group in reserve that reads everybody's results."""
    assert stage.launch(), stage.said()
    daemon = stage.connect()
    spec = stage.shell('truncate -s 100G "$AITBC_ARTIFACTS_DIR/big"', who=other)
    attempt = daemon.start(spec)
    attempt.exited()
    attempt.tell("seal", **stage.order(spec))
    pid = wait_for("it seals in turn", lambda: sealer_below(attempt.supervisor))
    stop_as(other, pid)
    ids = proc_status(Path(f"/proc/{pid}/status").read_text())["Uid"]
    assert ids.split() == [str(other.uid)] * 4
    libc = ctypes.CDLL(None, use_errno=True)
    attacks: dict[str, Callable[[], object]] = {
        **{
            name: Path(f"/proc/{pid}/{name}").read_bytes
            for name in ("environ", "mem", "maps", "io", "syscall", "auxv")
        },
        "fd": lambda: os.listdir(f"/proc/{pid}/fd"),
        "root": lambda: os.listdir(f"/proc/{pid}/root/"),
        "oom_score_adj": lambda: Path(f"/proc/{pid}/oom_score_adj").write_text("1000"),
        "limits": lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0)),
        "ptrace": lambda: checked(libc.ptrace(PTRACE_SEIZE, pid, None, None)),
        "pidfd_getfd": lambda: checked(
            libc.syscall(ctypes.c_long(PIDFD_GETFD), os.pidfd_open(pid), 4, 0)
        ),
    }
    for name, attack in attacks.items():
        assert as_him(other, attack) in (errno.EPERM, errno.EACCES), name
    attempt.tell("stop_seal")
    assert attempt.channel.word(attempt.key, "sealed", "seal_failed")["op"] == "seal_failed"


def checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def as_him(who: Who, action: Callable[[], object]) -> int:
    """Do something as a user in every respect; return its errno, 0 where it worked."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.setgroups([])
            os.setresgid(who.gid, who.gid, who.gid)
            os.setresuid(who.uid, who.uid, who.uid)
            try:
                action()
                code = 0
            except OSError as error:
                code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_sealing_that_its_user_kills_is_told(stage: Stage, other: Who) -> None:
    assert stage.launch(), stage.said()
    daemon = stage.connect()
    spec = stage.shell('truncate -s 300M "$AITBC_ARTIFACTS_DIR/big"', who=other)
    attempt = daemon.start(spec)
    attempt.exited()
    attempt.tell("seal", **stage.order(spec))
    sealer = wait_for("it seals in turn", lambda: sealer_below(attempt.supervisor))
    os.kill(sealer, signal.SIGKILL)
    failed = attempt.channel.word(attempt.key, "sealed", "seal_failed")
    assert (failed["op"], failed["errno"]) == ("seal_failed", errno.EOWNERDEAD)
    assert attempt.seal()["op"] == "sealed"


def test_a_sealing_without_supervisor_that_is_killed_leaves_nobody_at_it(
    stage: Stage, other: Who
) -> None:
    """What the killed process had started as the user is ended too, and lets go of the lock."""
    assert stage.launch(), stage.said()
    daemon = stage.connect()
    spec = stage.shell('truncate -s 300M "$AITBC_ARTIFACTS_DIR/big"', who=other)
    attempt = daemon.start(spec)
    attempt.exited()
    others = set(stage.supervisors()) - {attempt.supervisor}
    os.kill(attempt.supervisor, signal.SIGKILL)
    attempt.wait_lost()
    wait_for("its supervisor is buried", lambda: set(children(stage.pid)) == others)
    rid = daemon.tell("seal", **stage.order(spec))
    [task] = wait_for("it seals", lambda: set(children(stage.pid)) - others)
    [sealer] = wait_for("it seals as the user", lambda: children(task))
    stop_as(other, sealer)
    os.kill(task, signal.SIGKILL)
    assert daemon.answer(rid)["op"] == "failed"
    wait_gone(sealer)
    assert not stage.is_locked(spec)
    assert daemon.ask("seal", **stage.order(spec))["op"] == "sealed"
