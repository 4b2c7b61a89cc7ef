"""Who is killed, and what becomes of what he had started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aitbcd.launcher import protocol
from tests.launcher import Daemon, Stage, Who, is_alive, myself, proc_status, wait_gone
from tests.service import children, environ_of, wait_for

#: Leaves three children of every kind, says their pids and its own, and waits.
FAMILY = """
sleep 1000 & echo $!
setsid sleep 1000 & echo $!
env -i setsid sh -c 'sleep 1000 & echo $! > lonely' > /dev/null 2>&1 < /dev/null
cat lonely; echo $$; echo
exec sleep 1000
"""
#: What is left of a family whose supervisor and launcher are gone is known by its environment, or
#: by its session.
MARKED = """
sleep 1000 & echo $!
setsid sleep 1000 & echo $!
env -i sleep 1000 & echo $!
echo $$; echo
exec sleep 1000
"""


def family(stage: Stage, line: str, **more: object) -> dict[str, object]:
    """Return the spec of a job that starts such a family below the state's folder."""
    home = stage.folder / "home"
    if not home.exists():
        home.mkdir()
        home.chmod(0o777)
    return stage.shell(line, cwd=str(home), **more)


def pids_of(stage: Stage, spec: dict[str, object]) -> list[int]:
    """Return the family once it is complete; each of it is there."""
    path = stage.building(str(spec["job"])) / "logs" / "stdout.log"
    said = wait_for(
        "the family is complete",
        lambda: text if path.exists() and "\n\n" in (text := path.read_text()) else None,
        log=stage.log,
    )
    pids = [int(word) for word in said.split()]
    assert len(pids) == 4
    for pid in pids:
        assert is_alive(pid)
    return pids


def test_a_killed_launcher_leaves_jobs_alone_and_another_serves(
    stage: Stage, daemon: Daemon
) -> None:
    spec = stage.shell("read _ < gate; exit 4", cwd=str(stage.folder))
    os.mkfifo(stage.folder / "gate")
    attempt = daemon.start(spec)
    pid = attempt.running()["pid"]
    idle = daemon.start(stage.spec("true"))
    idle.exited()
    idle.finish()
    stage.kill()
    assert stage.launch(), stage.said()
    following = stage.connect()
    following.hello()
    # The channel to the supervisor is the daemon's, and goes on.
    assert is_alive(pid)
    assert following.run(stage.spec("true")).facts["exit_code"] == 0
    (stage.folder / "gate").write_text("\n")
    assert attempt.exited()["exit_code"] == 4
    attempt.finish()
    # It has no launcher that could give it another attempt.
    wait_for("it ends", lambda: attempt.channel.next() is None)


def test_idle_supervisors_end_with_their_launcher(stage: Stage, daemon: Daemon) -> None:
    attempts = [daemon.start(stage.spec("true")) for _ in range(3)]
    for attempt in attempts:
        attempt.exited()
        attempt.finish()
    pids = stage.supervisors()
    # One of them never had one.
    assert set(pids) > {attempt.supervisor for attempt in attempts}
    stage.kill()
    for pid in pids:
        wait_gone(pid)
    assert [name for name in os.listdir(stage.run) if name.startswith(".")] == []
    assert "Traceback" not in stage.said()


@pytest.mark.parametrize("when", ["between two jobs", "with a job on its way"])
def test_a_killed_idle_supervisor_costs_nothing(stage: Stage, daemon: Daemon, when: str) -> None:
    daemon.run(stage.spec("true"))
    idle = set(stage.supervisors())
    spec = stage.spec("true")
    if when == "with a job on its way":
        for pid in idle:
            os.kill(pid, signal.SIGSTOP)
        attempt = daemon.start(spec)
        assert stage.is_locked(spec)
        os.kill(attempt.supervisor, signal.SIGKILL)
        attempt.wait_lost()
        daemon.forget(attempt)
        assert not (stage.run_folder(spec) / protocol.STARTED).exists()
        for pid in idle - {attempt.supervisor}:
            os.kill(pid, signal.SIGCONT)
    else:
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
        wait_for("their deaths are dealt with", lambda: not children(stage.pid))
    done = daemon.run(spec)
    assert done.facts["exit_code"] == 0
    assert daemon.hello()["pid"] == stage.pid
    assert "Traceback" not in stage.said()


def test_a_killed_supervisor_takes_all_that_it_had_started_along(
    stage: Stage, daemon: Daemon
) -> None:
    spec, further = family(stage, FAMILY), family(stage, FAMILY)
    attempt = daemon.start(spec)
    pids = pids_of(stage, spec)
    spared = daemon.start(further)
    theirs = pids_of(stage, further)
    # A process of the same user that a job has not started.
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stranger:
        others = set(stage.supervisors()) - {attempt.supervisor}
        os.kill(attempt.supervisor, signal.SIGKILL)
        attempt.wait_lost()
        for pid in pids:
            wait_gone(pid)
        assert stranger.poll() is None
        stranger.kill()
    for pid in theirs:
        assert is_alive(pid)
    assert not stage.is_locked(spec)
    assert (stage.run_folder(spec) / protocol.STARTED).exists()
    assert not (stage.run_folder(spec) / protocol.EXIT).exists()
    wait_for("no zombie is left", lambda: set(children(stage.pid)) == others)
    assert daemon.ask("sweep", **about(spec))["left"] == []
    spared.cancel(0)
    spared.exited()
    spared.finish()


#: Becomes root's as with sudo(8), makes a child whenever it is told to, and has one of its user's,
#: who may end that one alone.
LIKE_SUDO = """
./become --reuid=0 --regid=0 --clear-groups sh -c '
    ./become --reuid={uid} --regid={gid} --clear-groups sleep 1000 & echo $!
    exec 3<> gate
    echo $$
    while read _ <&3; do sleep 1000 & done
' &
wait
"""
#: The voluntary context switches that all rounds for a child that cannot be killed take at least.
ALL_ROUNDS = 40


@pytest.fixture
def home(other: Who) -> Iterator[Path]:
    """A folder of the other user's alone, with a program that makes root of him."""
    with tempfile.TemporaryDirectory(prefix="aitbcd-home-", dir="/var/tmp") as name:
        made = Path(name)
        os.chown(made, other.uid, other.gid)
        if os.statvfs(made).f_flag & os.ST_NOSUID:
            pytest.skip(f"no program makes root of anybody in {made}")
        setpriv = shutil.which("setpriv")
        assert setpriv
        shutil.copy(setpriv, made / "become")
        (made / "become").chmod(0o4755)
        os.mkfifo(made / "gate")
        yield made


def test_who_cannot_be_killed_is_waited_for_only_once(stage: Stage, other: Who, home: Path) -> None:
    daemon = stage.launch_as(other)
    line = LIKE_SUDO.format(uid=other.uid, gid=other.gid)
    spec = stage.shell(line, who=other, cwd=str(home))
    attempt = daemon.start(spec)
    said = wait_for("both are there", lambda: two_of(stage, spec), log=stage.log)
    his, survivor = map(int, said)
    others = set(stage.supervisors()) - {attempt.supervisor}
    os.kill(attempt.supervisor, signal.SIGKILL)
    attempt.wait_lost()
    assert daemon.ask("sweep", **about(spec))["left"] == []
    assert set(children(stage.pid)) == {survivor} | others
    wait_gone(his)

    waits = waits_of(stage.pid)
    for made in range(1, 4):
        (home / "gate").write_text("\n")
        wait_for("it has a further child", lambda: below(survivor) == made)  # noqa: B023
        assert daemon.ask("sweep", **about(spec))["left"] == []
    assert waits_of(stage.pid) - waits < ALL_ROUNDS

    # It spares nobody else.
    further = family(stage, FAMILY, who=other)
    attempt = daemon.start(further)
    pids = pids_of(stage, further)
    os.kill(attempt.supervisor, signal.SIGKILL)
    attempt.wait_lost()
    assert daemon.ask("sweep", **about(further))["left"] == []
    assert not [pid for pid in pids if is_alive(pid)]
    assert is_alive(survivor)

    os.kill(survivor, signal.SIGKILL)
    wait_gone(survivor)
    daemon.ask("sweep", **about(spec))
    assert survivor not in children(stage.pid)


def two_of(stage: Stage, spec: dict[str, object]) -> list[str] | None:
    path = stage.building(str(spec["job"])) / "logs" / "stdout.log"
    words = path.read_text().split() if path.exists() else []
    return words if len(words) == 2 else None


def below(pid: int) -> int:
    """Return how many children of a process run."""
    return sum(is_alive(child) for child in children(pid))


def waits_of(pid: int) -> int:
    """Return how often a process has given the processor away of itself (proc(5))."""
    return int(proc_status(Path(f"/proc/{pid}/status").read_text())["voluntary_ctxt_switches"])


def about(spec: dict[str, object]) -> dict[str, object]:
    return {name: spec[name] for name in ("job", "attempt", "uid", "gid", "user")}


def test_a_sweep_deals_with_a_death_that_nobody_has_noticed(stage: Stage, daemon: Daemon) -> None:
    """The request may come in the same turn as the death, and before it."""
    spec = family(stage, FAMILY)
    attempt = daemon.start(spec)
    pids = pids_of(stage, spec)
    os.kill(stage.pid, signal.SIGSTOP)
    rid = daemon.tell("sweep", **about(spec))
    os.kill(attempt.supervisor, signal.SIGKILL)
    attempt.wait_lost()
    os.kill(stage.pid, signal.SIGCONT)
    assert daemon.answer(rid)["left"] == []
    assert not [pid for pid in pids if is_alive(pid)]


@pytest.mark.parametrize("whose", ["mine", "another user's"])
def test_what_a_killed_supervisor_and_launcher_left_is_swept(
    stage: Stage, daemon: Daemon, whose: str, request: pytest.FixtureRequest
) -> None:
    who: Who = myself() if whose == "mine" else request.getfixturevalue("other")
    spec, further = family(stage, MARKED, who=who), family(stage, MARKED, who=who)
    daemon.start(spec)
    daemon.start(further)
    pids, theirs = pids_of(stage, spec), pids_of(stage, further)
    supervisors = stage.supervisors()
    stage.kill()
    for pid in supervisors:
        os.kill(pid, signal.SIGKILL)
    for pid in supervisors:
        wait_gone(pid)
    assert stage.launch(), stage.said()
    following = stage.connect()
    assert following.ask("sweep", **about(spec))["left"] == []
    for pid in pids:
        wait_gone(pid)
    for pid in theirs:
        assert is_alive(pid)


def test_a_sweep_spares_other_attempts_of_the_job(stage: Stage, daemon: Daemon) -> None:
    spec = family(stage, MARKED)
    attempt = daemon.start(spec)
    pids = pids_of(stage, spec)
    assert daemon.ask("sweep", **about(spec | {"attempt": 2}))["left"] == []
    assert [pid for pid in pids if is_alive(pid)] == pids
    attempt.cancel(0)
    attempt.exited()


def test_a_sweep_ends_nothing_of_a_session_that_the_job_did_not_make(
    stage: Stage, daemon: Daemon, other: Who
) -> None:
    """A user looks at a job from his login, whose session is led by a process of root's."""
    spec = stage.spec("true", who=other)
    marks = [f"AITBC_JOB_ID={spec['job']}", "AITBC_ATTEMPT=1"]
    change = ["setpriv", f"--reuid={other.uid}", f"--regid={other.gid}", "--clear-groups"]
    line = '"$@" sleep 1000 & "$@" env $marks sleep 1000 & echo started; wait'
    login = subprocess.Popen(
        ["sh", "-c", line, "sh", *change],
        env={"PATH": os.environ["PATH"], "marks": " ".join(marks)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with login:
        assert login.stdout
        login.stdout.readline()
        wait_for("both sleep", lambda: sum(is_asleep(pid) for pid in children(login.pid)) == 2)
        plain, marked = sorted(children(login.pid), key=is_marked)
        assert daemon.ask("sweep", **about(spec))["left"] == []
        assert not is_alive(marked)
        assert is_alive(plain)
        os.kill(plain, signal.SIGKILL)


def is_asleep(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_marked(pid: int) -> bool:
    return b"AITBC_JOB_ID" in environ_of(pid)


def test_what_another_user_may_start_is_not_swept(stage: Stage, daemon: Daemon, other: Who) -> None:
    spec = stage.spec("true")
    marks = {"AITBC_JOB_ID": str(spec["job"]), "AITBC_ATTEMPT": "1"}
    change = ["setpriv", f"--reuid={other.uid}", f"--regid={other.gid}", "--clear-groups"]
    forger = subprocess.Popen(
        [*change, "sleep", "1000"], env={"PATH": os.environ["PATH"]} | marks, cwd="/"
    )
    with forger:
        wait_for("it sleeps", lambda: is_asleep(forger.pid))
        assert daemon.ask("sweep", **about(spec))["left"] == []
        assert forger.poll() is None
        forger.kill()


def test_an_order_to_end_leaves_busy_supervisors_alone(stage: Stage, daemon: Daemon) -> None:
    # So that the busy one is the first that was forked, which could hold on to all others.
    # The busy one is the first that was forked, so it could hold on to all the others.
    over = [daemon.start(stage.spec("true")) for _ in range(3)]
    attempt = daemon.start(stage.spec("sleep", "1000"))
    pid = attempt.running()["pid"]
    for each in over:
        each.exited()
        each.finish()
    idle = set(stage.supervisors()) - {attempt.supervisor}
    assert idle
    os.kill(stage.pid, signal.SIGTERM)
    assert stage.wait() == 0
    for supervisor in idle:
        wait_gone(supervisor)
    assert is_alive(pid)
    attempt.cancel(0)
    assert attempt.exited()["ended_by"] == "cancel"
    attempt.finish()
    wait_gone(pid)


#: Blocks and ignores what can be, and becomes the launcher.
STUBBORN = """
import os, signal, sys
for number in signal.valid_signals():
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("whose", ["mine", "mine, with a fork", "another user's"])
def test_a_launcher_that_was_started_with_all_signals_ignored_and_blocked(
    stage: Stage, whose: str, request: pytest.FixtureRequest
) -> None:
    who: Who = request.getfixturevalue("other") if whose == "another user's" else myself()
    assert stage.launch(before=(sys.executable, "-I", "-S", "-c", STUBBORN)), stage.said()
    daemon = stage.connect()
    is_forked = whose != "mine"
    spec = stage.spec("cat", "/proc/self/status", who=who, no_new_privs=is_forked)
    fields = proc_status(daemon.run(spec).stdout.decode())
    # glibc's posix_spawn(3) ignores the two signals that are its own, 32 and 33.
    its_own = 0 if is_forked else 3 << 31
    assert int(fields["SigBlk"], 16) == int(fields["SigIgn"], 16) & ~its_own == 0
    # It reaps its supervisors: it sees one that is killed, and ends with its daemon.
    supervisor = stage.supervisors()[0]
    os.kill(supervisor, signal.SIGKILL)
    wait_for("it is reaped", lambda: supervisor not in children(stage.pid))
    daemon.hang_up()
    assert stage.wait() == 0


#: Takes its user a while to find: a program is looked for between fork and exec.
FAR = ":".join(["/nowhere"] * 2_000_000)


def test_who_is_asked_to_end_before_it_has_become_a_program_ends(
    stage: Stage, daemon: Daemon
) -> None:
    attempt = daemon.start(stage.spec("nothing", env={"PATH": FAR}, no_new_privs=True))
    [child] = wait_for("it is forked", lambda: children(attempt.supervisor))
    # What comes earlier Python forgets in a fork.
    wait_for("it leads its session", lambda: os.getsid(child) == child)
    os.kill(child, signal.SIGTERM)
    facts = attempt.exited()
    assert (facts["signal"], facts["ended_by"]) == (signal.SIGTERM, None)
    # Its supervisor was not asked.
    attempt.finish()
    assert daemon.run(stage.spec("true")).worker == attempt.worker


#: Takes long enough to be seen.
LONG_REHEARSAL = "from aitbcd.launcher import rehearsal; rehearsal._TIMES = 100"


def test_a_launcher_that_is_asked_to_end_while_it_tries_itself_out_leaves_nothing(
    stage: Stage,
) -> None:
    assert stage.launch(prelude=LONG_REHEARSAL), stage.said()
    wait_for("it tries itself out", (stage.run / ".new.rehearsal").exists)
    os.kill(stage.pid, signal.SIGTERM)
    assert stage.wait() == 0
    assert sorted(os.listdir(stage.run)) == ["launcher.lock", "launcher.log", "launcher.sock"]
    assert os.listdir(stage.results) == []
    assert stage.said() == ""


#: Starts a program, and becomes the launcher.
PARENT = """
import os, subprocess, sys
subprocess.Popen(["sleep", "1000"])
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_launcher_that_has_children_before_it_begins_leaves_them_alone(stage: Stage) -> None:
    assert stage.launch(before=(sys.executable, "-I", "-S", "-c", PARENT)), stage.said()
    daemon = stage.connect()
    daemon.hello()
    [child] = children(stage.pid)
    assert daemon.run(stage.spec("true")).facts["exit_code"] == 0
    assert is_alive(child)


def test_a_launcher_that_no_daemon_ever_finds_ends(stage: Stage) -> None:
    assert stage.launch(prelude="launcher._PATIENCE_S = 0.01"), stage.said()
    assert stage.wait() == 0
