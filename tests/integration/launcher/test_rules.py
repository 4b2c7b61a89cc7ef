"""A root launcher for a daemon of another user, who may have been taken over: what he can ask for.

The test speaks in that daemon's place.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aitbcd.launcher import package, protocol
from aitbcd.launcher.identity import Identity
from aitbcd.launcher.protocol import Message
from tests.launcher import Daemon, Stage, Who, myself, proc_status
from tests.service import wait_for

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can have others' jobs run")


@pytest.fixture(scope="module")
def service() -> Iterator[Who]:
    """The user of the daemon: one of the system's."""
    name = f"aitbcd-s{os.getpid()}"
    subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", name], check=True)
    entry = pwd.getpwnam(name)
    yield Who(entry.pw_uid, entry.pw_gid, name)
    subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.fixture
def config(stage: Stage, other: Who) -> Path:
    """A table that allows ``other``, by his further group."""
    file = stage.folder / "aitbcd.toml"
    file.write_text(f'[launcher]\ngroups = ["{other.name}-x"]\n')
    return file


#: Has a signal caught while the main thread neither runs nor has its wait ended by it, as when it
#: comes just before the wait begins.
CAUGHT_ELSEWHERE = """
import signal, threading, time
from aitbcd.launcher import signals
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
listen = signals.listen
def listen_elsewhere():
    listen()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
signals.listen = listen_elsewhere
"""


def launch(stage: Stage, service: Who, config: Path, prelude: str | None = None) -> bool:
    os.chown(stage.state, service.uid, service.gid)
    listens = stage.launch("--lasting", "--config", config, prelude=prelude)
    if not listens:
        stage.wait()
    return listens


@pytest.fixture
def separate(stage: Stage, service: Who, config: Path) -> Daemon:
    assert launch(stage, service, config), stage.said()
    daemon = stage.connect()
    daemon.hello()
    return daemon


def test_a_member_s_job_runs_as_him_and_the_daemon_can_read_its_package(
    stage: Stage, separate: Daemon, other: Who, service: Who
) -> None:
    spec = stage.shell("id -u; id -Gn", who=other)
    done = separate.run(spec)
    uid, groups = done.stdout.decode().splitlines()
    assert int(uid) == other.uid
    assert set(groups.split()) == {other.name, f"{other.name}-x"}
    sealed = stage.sealed(spec).stat()
    assert (sealed.st_uid, sealed.st_gid) == (other.uid, service.gid)
    assert (stage.run.stat().st_uid, stage.run.stat().st_gid) == (0, service.gid)


def refused(stage: Stage, daemon: Daemon, who: Who) -> str:
    spec = stage.spec("/bin/touch", str(stage.folder / "ran"), who=who)
    answer = daemon.ask("start", **spec)
    assert (answer["op"], answer["why"]) == ("refused", "forbidden")
    assert not stage.run_folder(spec).exists()
    assert not stage.building(spec["job"]).exists()
    said: str = answer["error"]
    return said


def test_nobody_else_s_job_starts(stage: Stage, separate: Daemon, other: Who, service: Who) -> None:
    assert "[launcher] root = true" in refused(stage, separate, myself())
    assert "is no person's" in refused(stage, separate, service)
    assert "is no person's" in refused(stage, separate, Who(1, 1, "daemon"))
    assert "is no person's" in refused(stage, separate, Who(65534, 65534, "nobody"))
    # The right uid with rights that are another's.
    for claimed in (
        other._replace(gid=0),
        other._replace(name="root"),
        Who(other.uid, 65534, f"#{other.uid}"),
        Who(0, other.gid, other.name),
    ):
        refused(stage, separate, claimed)
    assert not (stage.folder / "ran").exists()


def test_who_is_in_none_of_the_groups_is_told_which_they_are(
    stage: Stage, service: Who, other: Who
) -> None:
    config = stage.folder / "aitbcd.toml"
    assert launch(stage, service, config), stage.said()
    daemon = stage.connect()
    daemon.hello()
    assert "none of the groups aitbc, aitbc-admin" in refused(stage, daemon, other)


def test_an_order_to_seal_as_somebody_else_is_carried_out_as_the_job_s_user(
    stage: Stage, separate: Daemon, other: Who
) -> None:
    spec = stage.spec("/bin/true", who=other)
    attempt = separate.start(spec)
    attempt.exited()
    secret = stage.folder / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    sealed = attempt.seal(uid=0, gid=0, user="root", artifacts=["secret"], cwd=str(stage.folder))
    assert sealed["op"] == "sealed"
    assert stage.sealed(spec).stat().st_uid == other.uid
    assert not (stage.sealed(spec) / "artifacts" / "secret").exists()
    refusal = separate.ask("seal", **stage.order(stage.spec("x", who=myself())))
    assert refusal["op"] == "seal_failed"


#: A uid that the user database does not know, as of somebody who was removed.
GONE = 2**31 - 7
#: What is no uid, or none to a kernel that leaves all as it is for -1 (setresuid(2)).
NO_IDS = [2**32 - 1, 2**32, -1, True, 1000.5, "1001", None, 65534]


def stranger(uid: int) -> Who:
    """Return how a daemon names somebody whom the user database does not know."""
    return Who(uid, 65534, f"#{uid}")


def ordered(
    stage: Stage, daemon: Daemon, op: str, job: str, uid: object, gid: object, user: object
) -> Message:
    """Order something to be done with a job's package as somebody; return the answer."""
    spec = stage.spec("x", job=job, attempt=2)
    order = stage.order(spec, artifacts=["secret*"], cwd=str(stage.folder))
    return daemon.ask(op, **order | {"uid": uid, "gid": gid, "user": user})


@pytest.mark.parametrize("op", ["seal", "sweep", "remove_package"])
def test_orders_of_whom_nobody_is_are_not_carried_out(
    stage: Stage, separate: Daemon, other: Who, op: str
) -> None:
    spec = stage.spec("/bin/true", who=other)
    separate.run(spec)
    (stage.folder / "secret").touch(0o600)
    left = subprocess.Popen(
        ["/bin/sleep", "60"], env={"AITBC_JOB_ID": spec["job"], "AITBC_ATTEMPT": "2"}
    )
    claims: list[tuple[object, object, object]] = [
        *((uid, 65534, f"#{uid}") for uid in NO_IDS),
        *((uid, other.gid, other.name) for uid in NO_IDS),
        *((other.uid, gid, other.name) for gid in (*NO_IDS, 0, other.gid + 1)),
        *((other.uid, gid, f"#{other.uid}") for gid in (*NO_IDS[:-1], 0, other.gid)),
        (other.uid, other.gid, "root"),
        # Nobody has this uid, and it comes with rights that are somebody's.
        (GONE, 0, f"#{GONE}"),
        (GONE, 65534, "root"),
        (GONE, 65534, ""),
    ]
    before = sorted(stage.state.rglob("*"))
    wanted = {
        "seal": ("op", "seal_failed"),
        "sweep": ("left", []),
        "remove_package": ("why", "forbidden"),
    }
    key, value = wanted[op]
    try:
        for claim in claims:
            answer = ordered(stage, separate, op, spec["job"], *claim)
            assert answer[key] == value, (claim, answer)
        assert sorted(stage.state.rglob("*")) == before
        assert left.poll() is None
    finally:
        left.kill()
        left.wait()


def test_a_removed_user_s_name_is_not_for_one_who_is_there(
    stage: Stage, separate: Daemon, other: Who
) -> None:
    answer = separate.ask("seal", **stage.order(stage.spec("x", who=stranger(other.uid))))
    assert answer["op"] == "seal_failed"
    assert "is not the user" in answer["error"]
    # What takes no more than a uid is done without a look at the user database.
    spec = stage.spec("/bin/true", who=other)
    separate.run(spec)
    assert separate.ask("sweep", **stage.order(spec, user=f"#{other.uid}", gid=65534))["left"] == []
    removed = ordered(stage, separate, "remove_package", spec["job"], *stranger(other.uid))
    assert removed["op"] == "removed"


def test_a_package_is_removed_as_its_owner_or_not_at_all(
    stage: Stage, separate: Daemon, other: Who
) -> None:
    spec = stage.spec("/bin/true", who=other)
    separate.run(spec)
    answer = ordered(stage, separate, "remove_package", spec["job"], *stranger(GONE))
    assert (answer["op"], answer["why"]) == ("refused", "forbidden")
    assert (stage.sealed(spec) / "result.txt").exists()


def test_a_job_of_root_s_has_his_groups_and_its_results_go_when_he_may_have_no_more(
    stage: Stage, service: Who, other: Who, config: Path
) -> None:
    right = config.read_text()
    config.write_text(right + "root = true\n")
    assert launch(stage, service, config), stage.said()
    daemon = stage.connect()
    daemon.hello()
    spec = stage.shell("id -g; id -G", who=myself())
    gid, groups = daemon.run(spec).stdout.decode().splitlines()
    assert gid == "0"
    assert str(service.gid) not in groups.split()
    assert ordered(stage, daemon, "sweep", spec["job"], *stranger(0))["left"] == []
    config.write_text(right)
    theirs = stage.spec("/bin/true", who=other)
    daemon.run(theirs)
    left = stage.results / f".left_{theirs['job']}"
    left.mkdir()
    (left / "his").touch()
    os.chown(left, other.uid, other.gid)
    answer = ordered(stage, daemon, "remove_package", theirs["job"], *stranger(0))
    assert (answer["op"], answer["why"]) == ("refused", "forbidden")
    stage.sealed(theirs).rename(stage.results / "away")
    ordered(stage, daemon, "remove_package", theirs["job"], *stranger(0))
    assert (left / "his").exists()
    answer = ordered(stage, daemon, "remove_package", spec["job"], *stranger(0))
    assert answer["op"] == "removed"
    assert not stage.sealed(spec).exists()


def test_what_a_job_asked_for_is_collected_by_its_own_run_folder_only(
    stage: Stage, separate: Daemon, other: Who
) -> None:
    home = stage.folder / "home"
    home.mkdir()
    (home / "secret").write_text("his")
    (home / "secret").chmod(0o600)
    for path in (home / "secret", home):
        os.chown(path, other.uid, other.gid)

    def seal(spec: Message) -> tuple[set[str], dict[str, str]]:
        """Have the launcher seal it; return what it collected, and what it says it has not."""
        order = stage.order(spec, artifacts=["secret"], cwd=str(home))
        answer = separate.ask("seal", **order)
        assert answer["op"] == "sealed", answer
        sealed = stage.sealed(spec)
        left_out = json.loads((sealed / "output.json").read_text())["left_out"]
        found = {path.name for path in (sealed / "artifacts").iterdir()}
        return found, {each["path"]: each["why"] for each in left_out}

    told = {"secret": "not collected: nothing is left that shows who asked for it"}
    # It never ran.
    assert seal(stage.spec("x", who=other)) == (set(), told)
    # The same, once a sealing of nothing was killed.
    spec = stage.spec("x", who=other)
    results = os.open(stage.results, os.O_RDONLY)
    package.create(results, spec["job"], Identity(*other)).close()
    os.close(results)
    assert seal(spec) == (set(), told)
    separate.ask("tombstone", job=spec["job"], attempt=2)
    spec["attempt"] = 2
    stage.sealed(spec).rename(stage.results / "away")
    assert seal(spec) == (set(), told)

    ran = [
        stage.shell('touch "$AITBC_ARTIFACTS_DIR/mine"', who=other, cwd=str(home), artifacts=globs)
        for globs in (["secret"], ["secret"], [])
    ]
    attempts = [separate.start(each) for each in ran]
    for attempt in attempts:
        attempt.exited()
    for pid in stage.supervisors():
        os.kill(pid, signal.SIGKILL)
    for attempt in attempts:
        attempt.wait_lost()
    assert seal(ran[0]) == ({"mine", "secret"}, {})
    # As a power cut leaves it.
    shutil.rmtree(stage.run_folder(ran[1]))
    assert seal(ran[1]) == ({"mine"}, told)
    # It asked for nothing.
    assert seal(ran[2]) == ({"mine"}, told)


def test_what_is_collected_is_what_the_job_asked_for_when_it_started(
    stage: Stage, separate: Daemon, other: Who
) -> None:
    home = stage.folder / "home"
    home.mkdir()
    for name in ("asked", "secret"):
        (home / name).write_text(name)
    for path in (*home.iterdir(), home):
        path.chmod(0o700)
        os.chown(path, other.uid, other.gid)
    others = {"artifacts": ["*", "asked", "home/*"], "cwd": str(stage.folder)}

    def collected(spec: Message) -> set[str]:
        return {path.name for path in (stage.sealed(spec) / "artifacts").iterdir()}

    asking: dict[str, Any] = {"who": other, "cwd": str(home), "artifacts": ["asked"]}
    spec = stage.spec("/bin/true", **asking)
    attempt = separate.start(spec)
    attempt.exited()
    assert attempt.seal(**others)["op"] == "sealed"
    assert collected(spec) == {"asked"}
    attempt.done()
    # The next ones are in the same run folder.
    lost = [
        stage.spec("/bin/true", who=other, cwd=str(home)),
        *(stage.spec("/bin/true", **asking) for _ in range(2)),
    ]
    attempts = [separate.start(each) for each in lost]
    for each in attempts:
        each.exited()
    for pid in stage.supervisors():
        os.kill(pid, signal.SIGKILL)
    for each in attempts:
        each.wait_lost()
    # Less, as where there is no room for it, is up to the daemon.
    spec = stage.spec("/bin/true", **asking)
    attempt = separate.start(spec)
    attempt.exited()
    assert attempt.seal(artifacts=[])["op"] == "sealed"
    assert collected(spec) == set()
    # As a power cut leaves it.
    (stage.run_folder(lost[2]) / protocol.STARTED).write_bytes(bytes(100))
    for spec, wanted in zip(lost, ([], ["asked"], []), strict=True):
        assert separate.ask("seal", **stage.order(spec, **others))["op"] == "sealed"
        assert sorted(collected(spec)) == wanted


def test_a_package_is_sealed_as_its_owner_or_not_at_all(
    stage: Stage, separate: Daemon, other: Who
) -> None:
    # Which lets everybody in.
    spec = stage.shell('chmod 777 "$AITBC_ARTIFACTS_DIR/.."', who=other)
    attempt = separate.start(spec)
    attempt.exited()
    for pid in stage.supervisors():
        os.kill(pid, signal.SIGKILL)
    attempt.wait_lost()
    order = stage.order(spec | {"uid": GONE, "gid": 65534, "user": f"#{GONE}"})
    answer = separate.ask("seal", **order)
    assert (answer["op"], answer["errno"]) == ("seal_failed", errno.EPERM)
    assert stage.building(spec["job"]).stat().st_uid == other.uid
    assert separate.ask("seal", **stage.order(spec))["op"] == "sealed"


def test_a_run_folder_says_as_whom_each_attempt_ran(
    stage: Stage, service: Who, other: Who, config: Path
) -> None:
    config.write_text(config.read_text() + "root = true\n")
    assert launch(stage, service, config), stage.said()
    daemon = stage.connect()
    daemon.hello()
    workers = set()
    for who in (myself(), other, myself()):
        spec = stage.spec("/bin/true", who=who)
        attempt = daemon.start(spec)
        attempt.exited()
        assert (stage.run_folder(spec) / protocol.STARTED).stat().st_uid == who.uid
        workers.add(attempt.worker)
        attempt.finish()
    assert len(workers) == 1


@pytest.mark.parametrize("attempt", [True, 1.0, None, "1", -1])
def test_an_attempt_that_is_no_number_is_not_obeyed(
    stage: Stage, separate: Daemon, attempt: object
) -> None:
    before = sorted(stage.folder.rglob("*"))
    separate.tell("tombstone", job="job_x", attempt=attempt)
    assert separate.sock.recv(1) == b""
    assert sorted(stage.folder.rglob("*")) == before


def test_a_process_that_is_no_number_is_not_looked_at(separate: Daemon) -> None:
    assert separate.ask("containers", pids=[os.getpid()])["jobs"] == {}
    assert separate.ask("containers", pids=["../etc"])["op"] == "failed"


@pytest.mark.parametrize("job", ["../../job_x", "job_../x", "job_x/../..", "", "job_", 7])
def test_a_name_that_leads_out_of_the_folders_is_not_obeyed(
    stage: Stage, separate: Daemon, job: object
) -> None:
    before = sorted(stage.folder.rglob("*"))
    separate.tell("tombstone", job=job, attempt=1)
    assert separate.sock.recv(1) == b""
    assert sorted(stage.folder.rglob("*")) == before
    again = stage.connect()
    assert again.hello()["pid"] == stage.pid


@pytest.mark.parametrize("name", ["run", "results"])
def test_a_folder_that_the_daemon_has_put_there_is_not_used(
    stage: Stage, service: Who, config: Path, name: str
) -> None:
    (stage.state / name).rename(stage.state / "away")
    (stage.state / name).symlink_to("/etc")
    stage.log = stage.folder / "log"
    assert not launch(stage, service, config)
    assert name in stage.said()
    (stage.state / name).unlink()
    (stage.state / name).mkdir()
    os.chown(stage.state / name, service.uid, service.gid)
    assert not launch(stage, service, config)
    assert "belongs to another user" in stage.said()


def test_a_table_that_others_can_write_is_not_believed(
    stage: Stage, service: Who, config: Path
) -> None:
    os.chown(config, service.uid, 0)
    assert not launch(stage, service, config)
    assert stage.wait() == 2
    said = stage.said()
    assert f"{config}: others than root can write it" in said
    assert f"chown root {config} && chmod go-w {config}" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[launcher", "Expected ']'"),
        ("[launcher]\ngroups = 'all'\n", "expected a list of names"),
        ("[launcher]\nroot = 1\n", "expected true or false"),
        ("[launcher]\nno_new_privs = 'no'\n", "no_new_privs in [launcher] is 'no': expected true"),
        ("[launcher]\nuser = 'x'\n", "unknown key in [launcher]: user"),
        ("launcher = 3\n", "launcher is 3: expected a table"),
        ("[[launcher]]\nroot = true\n", "expected a table [launcher]"),
    ],
)
def test_a_wrong_table_starts_nothing_and_changes_nothing_later(
    stage: Stage, service: Who, config: Path, other: Who, text: str, words: str
) -> None:
    right = config.read_text()
    config.write_text(text)
    assert not launch(stage, service, config)
    assert stage.wait() == 2
    assert f"{config}: " in stage.said()
    assert words in stage.said()
    config.write_text(right)
    assert launch(stage, service, config)
    daemon = stage.connect()
    daemon.hello()
    before = len(stage.said())
    config.write_text(text)
    assert stage.process is not None
    stage.process.send_signal(signal.SIGHUP)
    wait_for("it is said", lambda: words in stage.said()[before:], log=stage.log)
    assert daemon.run(stage.spec("/bin/true", who=other)).facts["exit_code"] == 0


def test_a_signal_is_heard_that_comes_just_before_it_waits(
    stage: Stage, service: Who, config: Path
) -> None:
    assert launch(stage, service, config, CAUGHT_ELSEWHERE), stage.said()
    stage.connect().hello()
    config.write_text("launcher = 3\n")
    status = Path(f"/proc/{stage.pid}/status")
    wait_for("it waits", lambda: proc_status(status.read_text())["State"].startswith("S"))
    os.kill(stage.pid, signal.SIGHUP)
    wait_for("it is said", lambda: "launcher is 3" in stage.said(), log=stage.log)


def test_new_privileges_are_forbidden_by_its_own_table(
    stage: Stage, service: Who, other: Who, config: Path
) -> None:
    config.write_text(config.read_text() + "no_new_privs = true\n")
    assert launch(stage, service, config), stage.said()
    daemon = stage.connect()
    daemon.hello()
    spec = stage.shell("grep NoNewPrivs /proc/self/status", who=other, no_new_privs=False)
    assert daemon.run(spec).stdout == b"NoNewPrivs:\t1\n"


def test_the_table_is_read_again_on_sighup(stage: Stage, separate: Daemon, config: Path) -> None:
    refused(stage, separate, myself())
    config.write_text("[launcher]\nroot = true\n")
    assert stage.process is not None
    stage.process.send_signal(signal.SIGHUP)

    def is_allowed() -> bool:
        answer = separate.ask("start", **stage.spec("/bin/true"))
        return bool(answer["op"] == "placed")

    wait_for("root may have jobs", is_allowed, log=stage.log)


def test_a_table_that_was_saved_counts_for_the_next_job(
    stage: Stage, separate: Daemon, config: Path, other: Who
) -> None:
    def is_allowed() -> bool:
        return bool(separate.ask("start", **stage.spec("/bin/true", who=other))["op"] == "placed")

    right = config.read_text()
    config.write_text("[launcher]\ngroups = []\n")
    assert not is_allowed()
    # As an editor saves.
    new = config.with_name("new")
    new.write_text(right)
    new.rename(config)
    assert is_allowed()
    for spoil in (
        lambda: config.write_text("[launcher]\ngroups = x\n"),
        lambda: config.chmod(0o666),
        config.unlink,
    ):
        spoil()
        assert is_allowed()
    assert is_allowed()
    said = stage.said()
    assert said.count("the table as it was stays") == 2
    assert f"{config}: Invalid value (at line" in said
    assert f"{config}: others than root can write it" in said
