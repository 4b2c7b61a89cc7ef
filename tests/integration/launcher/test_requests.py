"""The launcher as its daemon sees it: one a state directory, one daemon at a time, in order."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import shutil
import signal
import socket
from pathlib import Path

import pytest

from aitbcd.launcher import protocol
from tests.integration.conftest import proc_numbers
from tests.launcher import MIB, Daemon, Stage, is_alive, wait_gone
from tests.service import children, wait_for


def temporary(stage: Stage) -> list[str]:
    return [name for name in os.listdir(stage.run) if name.startswith(".")]


def test_an_attempt_from_its_start_to_the_end_of_its_folder(stage: Stage, daemon: Daemon) -> None:
    spec = stage.shell("echo out; echo err >&2; read _ < /dev/null; sleep 0.05; exit 3")
    attempt = daemon.start(spec)
    folder = stage.run_folder(spec)
    assert stage.is_locked(spec)
    running = attempt.running()
    assert (folder / protocol.STARTED).exists()
    assert not (folder / protocol.EXIT).exists()
    facts = attempt.exited()
    assert facts == stage.facts_on_disk(spec)
    assert (facts["exit_code"], facts["signal"], facts["ended_by"]) == (3, None, None)
    assert facts["pid"] == running["pid"]
    assert facts["started_at"] == running["at"] < facts["finished_at"]
    assert stage.is_locked(spec)
    sealed = attempt.seal()
    assert sealed["op"] == "sealed"
    assert stage.is_locked(spec)
    assert (stage.sealed(spec) / "logs/stdout.log").read_bytes() == b"out\n"
    assert (stage.sealed(spec) / "logs/stderr.log").read_bytes() == b"err\n"
    attempt.done()
    assert not stage.building(spec["job"]).exists()


def test_an_attempt_that_is_over_at_once_is_reported_once(stage: Stage, daemon: Daemon) -> None:
    attempt = daemon.start(stage.spec("true"))
    first = attempt.channel.next()
    assert first is not None
    assert first["op"] == "exited"


def test_who_looks_at_processes_sees_which_are_ours(stage: Stage, daemon: Daemon) -> None:
    spec = stage.spec("/bin/cat", "/proc/self/comm")
    daemon.run(spec)
    assert (stage.sealed(spec) / "logs/stdout.log").read_text() == "cat\n"
    assert called(stage.pid) == "aitbcd-launcher"
    # The kernel keeps 15 bytes.
    wait_for(
        "all supervisors are called so",
        lambda: {called(pid) for pid in stage.supervisors()} == {"aitbcd-supervis"},
    )


def called(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_supervisors_of_many_short_jobs_are_kept_as_long_as_they_are_needed(
    stage: Stage, daemon: Daemon
) -> None:
    def burst() -> set[int]:
        attempts = [daemon.start(stage.spec("true")) for _ in range(12)]
        pids = set(stage.supervisors())
        for attempt in attempts:
            attempt.exited()
            attempt.finish()
        return pids

    # Another job may have come before one was heard to be free; none has ended meanwhile.
    assert burst() <= burst()
    # Nobody needs them any more: a few are kept, as that is what one job after the other needs.
    wait_for("the others end", lambda: len(stage.supervisors()) == 8)
    assert daemon.run(stage.spec("true")).facts["exit_code"] == 0


def test_a_second_launcher_leaves_the_first_alone(stage: Stage, daemon: Daemon) -> None:
    first = stage.process
    assert not stage.launch()
    assert stage.wait() == 1
    assert "another launcher serves this state directory" in stage.said()
    stage.process = first
    assert daemon.hello()["pid"] == stage.pid


def test_requests_of_a_daemon_that_is_gone_are_dealt_with_before_the_next_is_heard(
    stage: Stage, daemon: Daemon
) -> None:
    os.kill(stage.pid, signal.SIGSTOP)
    specs = [stage.spec("true") for _ in range(20)]
    for spec in specs[:-1]:
        daemon.tell("start", **spec)
    daemon.tell("tombstone", job=specs[-1]["job"], attempt=1)
    daemon.hang_up()
    following = stage.connect()
    rid = following.tell("hello")
    os.kill(stage.pid, signal.SIGCONT)
    following.answer(rid)
    assert [stage.run_folder(spec).exists() for spec in specs] == [True] * 20
    assert (stage.run_folder(specs[-1]) / protocol.CANCELED).exists()


def test_requests_are_dealt_with_also_when_their_answers_were_never_read(
    stage: Stage, daemon: Daemon
) -> None:
    """The kernel then says that the connection was reset, before it hands out the rest."""
    daemon.tell("hello")
    assert select.select([daemon.sock], [], [])[0]
    os.kill(stage.pid, signal.SIGSTOP)
    spec = stage.spec("true")
    daemon.tell("start", **spec)
    daemon.hang_up()
    following = stage.connect()
    rid = following.tell("hello")
    os.kill(stage.pid, signal.SIGCONT)
    following.answer(rid)
    assert stage.run_folder(spec).exists()


def test_a_second_daemon_waits_until_the_first_is_gone(stage: Stage, daemon: Daemon) -> None:
    following = stage.connect()
    rid = following.tell("hello")
    daemon.hello()
    following.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        protocol.receive(following.sock)
    following.sock.setblocking(True)
    daemon.hang_up()
    assert following.answer(rid)["pid"] == stage.pid


def test_an_attempt_that_is_placed_is_not_placed_again(stage: Stage, daemon: Daemon) -> None:
    spec = stage.spec("sleep", "1000")
    attempt = daemon.start(spec)
    answer = daemon.ask("start", **spec)
    assert (answer["op"], answer["why"]) == ("refused", "busy")
    assert not daemon.ask("remove", job=spec["job"], attempt=1)["done"]
    assert not daemon.ask("tombstone", job=spec["job"], attempt=1)["done"]
    assert daemon.ask("seal", **stage.order(spec))["op"] == "busy"
    assert stage.is_locked(spec)
    attempt.cancel(0)
    assert attempt.exited()["signal"] == signal.SIGKILL
    # The supervisors that were forked for nothing are free, and have nothing half-done about them.
    assert temporary(stage) == []


def test_an_attempt_that_may_have_run_is_not_run_again(stage: Stage, daemon: Daemon) -> None:
    spec = stage.shell("echo once >> ran", cwd=str(stage.folder))
    attempt = daemon.start(spec)
    attempt.exited()
    for pid in stage.supervisors():
        os.kill(pid, signal.SIGKILL)
    attempt.wait_lost()
    answer = daemon.ask("start", **spec)
    assert (answer["op"], answer["why"]) == ("refused", "started")
    assert (stage.folder / "ran").read_text() == "once\n"
    # The facts of its end are still there.
    assert stage.facts_on_disk(spec)["exit_code"] == 0


def test_a_folder_that_never_started_makes_way(stage: Stage, daemon: Daemon) -> None:
    spec = stage.spec("true")
    stage.run_folder(spec).mkdir()
    (stage.run_folder(spec) / protocol.LOCK).touch()
    assert daemon.run(spec).facts["exit_code"] == 0


def test_a_tombstone_keeps_an_attempt_from_starting(stage: Stage, daemon: Daemon) -> None:
    spec = stage.shell("echo once >> ran", cwd=str(stage.folder))
    about = {"job": spec["job"], "attempt": 1}
    assert daemon.ask("tombstone", **about)["done"]
    assert daemon.ask("tombstone", **about)["done"]
    answer = daemon.ask("start", **spec)
    assert (answer["op"], answer["why"]) == ("refused", "canceled")
    assert daemon.ask("remove", **about)["done"]
    assert not stage.run_folder(spec).exists()
    assert not (stage.folder / "ran").exists()
    # Nothing remembers it: the next attempt of this number runs.
    assert daemon.run(spec).facts["exit_code"] == 0


def test_what_is_not_there_is_removed(daemon: Daemon) -> None:
    assert daemon.ask("remove", job="job_00000000", attempt=1)["done"]


def test_an_unknown_request_is_refused_by_name(daemon: Daemon) -> None:
    assert daemon.ask("dance")["error"] == "unknown request dance"
    daemon.hello()


GARBAGE = {
    "no UTF-8": b"\xff\xfe",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"17",
    "no memfd": b'{"memfd":1}',
    "no number": b'{"op":"hello"}',
    "no request": b"{}",
    "two": b'{"op":"hello","rid":1}{"op":"hello","rid":2}',
    "space behind": b'{"op":"hello","rid":1} ',
    "space before": b' {"op":"hello","rid":1}',
    "deep": b"[" * 60_000,
}


@pytest.mark.parametrize("packet", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_ends_the_connection_and_not_the_launcher(
    stage: Stage, daemon: Daemon, packet: bytes
) -> None:
    spec = stage.spec("sleep", "1000")
    attempt = daemon.start(spec)
    daemon.sock.send(packet)
    assert protocol.receive(daemon.sock) is None
    attempt.cancel(0)
    attempt.exited()
    daemon.hang_up()
    following = stage.connect()
    assert following.hello()["pid"] == stage.pid


@pytest.mark.parametrize("packet", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_ends_the_connection_and_not_the_attempt(
    stage: Stage, daemon: Daemon, packet: bytes
) -> None:
    spec = stage.spec("sleep", "1000")
    attempt = daemon.start(spec)
    attempt.running()
    attempt.channel.sock.send(packet)
    assert attempt.channel.next() is None
    attempt = daemon.adopt(spec)
    attempt.running()
    # One of this attempt that cannot be carried out.
    attempt.tell("cancel", grace_s="soon")
    assert attempt.channel.next() is None
    attempt = daemon.adopt(spec)
    attempt.running()
    attempt.cancel(0)
    assert attempt.exited()["signal"] == signal.SIGKILL


@pytest.mark.parametrize("size", [1 << 30, 1 << 40, 1 << 62])
@pytest.mark.parametrize("to", ["launcher", "supervisor"])
def test_a_message_without_end_takes_nobodys_memory(
    stage: Stage, daemon: Daemon, size: int, to: str
) -> None:
    attempt = daemon.start(stage.spec("sleep", "1000"))
    attempt.running()
    # It takes no memory of who sends it.
    memory = os.memfd_create("endless", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
    pid, sock = stage.pid, daemon.sock
    if to == "supervisor":
        pid, sock = attempt.supervisor, attempt.channel.sock
    before = proc_numbers(pid, "status")["VmHWM"]
    socket.send_fds(sock, [b'{"memfd":1}'], [memory])
    os.close(memory)
    assert protocol.receive(sock) is None
    assert proc_numbers(pid, "status")["VmHWM"] < before + 64 * MIB
    assert is_alive(pid)


def test_a_start_larger_than_a_packet(stage: Stage, daemon: Daemon) -> None:
    big = "x" * 100_000
    spec = stage.spec("/bin/sh", "-c", 'printf %s "$big$1"', "sh", big, env={"big": big})
    done = daemon.run(spec)
    assert done.facts["exit_code"] == 0
    assert len(done.stdout) == 200_000


def test_bytes_that_are_no_text_reach_the_program(stage: Stage, daemon: Daemon) -> None:
    odd = b"\xff\xfe \n'\"\\".decode("utf-8", "surrogateescape")
    spec = stage.spec("/bin/sh", "-c", 'printf "%s|%s" "$odd" "$1"', "sh", odd, env={"odd": odd})
    assert daemon.run(spec).stdout == b"\xff\xfe \n'\"\\|\xff\xfe \n'\"\\"


def test_it_ends_when_there_is_no_daemon_and_no_attempt(stage: Stage, daemon: Daemon) -> None:
    attempt = daemon.start(stage.spec("true"))
    attempt.exited()
    attempt.finish()
    supervisors = stage.supervisors()
    # Some of them never had one.
    assert set(supervisors) > {attempt.supervisor}
    daemon.hang_up()
    assert stage.wait() == 0
    for pid in supervisors:
        wait_gone(pid)


def test_it_stays_for_an_attempt_without_a_daemon(stage: Stage, daemon: Daemon) -> None:
    spec = stage.spec("sleep", "1000")
    daemon.start(spec).running()
    daemon.hang_up()
    following = stage.connect()
    assert following.hello()["pid"] == stage.pid
    attempt = following.adopt(spec)
    attempt.running()
    attempt.cancel(0)
    attempt.exited()
    attempt.finish()
    following.hang_up()
    assert stage.wait() == 0


def test_an_attempt_that_ends_without_a_daemon_waits_for_the_next(
    stage: Stage, daemon: Daemon
) -> None:
    spec = stage.shell("read _ < gate; exit 7", cwd=str(stage.folder))
    os.mkfifo(stage.folder / "gate")
    daemon.start(spec).running()
    daemon.hang_up()
    (stage.folder / "gate").write_text("\n")
    wait_for("it is over", (stage.run_folder(spec) / protocol.EXIT).exists)
    following = stage.connect()
    attempt = following.adopt(spec)
    assert attempt.exited()["exit_code"] == 7
    attempt.finish()
    # Its supervisor has a channel of its own to the launcher's next daemon.
    assert following.run(stage.spec("true")).facts["exit_code"] == 0


def test_an_adopted_attempt_can_change_hands_again(stage: Stage, daemon: Daemon) -> None:
    spec = stage.spec("sleep", "1000")
    daemon.start(spec).running()
    for _ in range(3):
        daemon.hang_up()
        daemon = stage.connect()
        daemon.hello()
        attempt = daemon.adopt(spec)
        attempt.running()
    attempt.cancel(0)
    attempt.exited()
    attempt.finish()


def test_another_users_connection_is_refused(stage: Stage, daemon: Daemon, other: object) -> None:
    uid: int = other.uid  # type: ignore[attr-defined]
    spec = stage.spec("sleep", "1000")
    attempt = daemon.start(spec)
    attempt.running()
    daemon.hang_up()
    addresses = [stage.run / "launcher.sock", stage.run_folder(spec) / protocol.SOCKET]
    wait_for("it listens", addresses[1].exists)
    for path, mode in (
        (stage.run, 0o755),
        (stage.run_folder(spec), 0o755),
        *((address, 0o666) for address in addresses),
    ):
        path.chmod(mode)
    for address in addresses:
        assert ask_as(uid, address) == b""
    # Our own still goes through.
    following = stage.connect()
    assert following.hello()["pid"] == stage.pid
    following.adopt(spec).running()


def ask_as(uid: int, address: Path) -> bytes:
    """Say hello as another user; return what comes back, nothing at end-of-file."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(str(address))
                try:
                    sock.send(b'{"op":"hello","rid":1}')
                    answer = sock.recv(4096)
                except (BrokenPipeError, ConnectionResetError):
                    answer = b""
            os.write(writing, answer)
        except BaseException as error:
            os.write(writing, repr(error).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def test_sealing_without_a_supervisor(stage: Stage, daemon: Daemon) -> None:
    spec = stage.shell("echo out")
    attempt = daemon.start(spec)
    attempt.exited()
    for pid in stage.supervisors():
        os.kill(pid, signal.SIGKILL)
    attempt.wait_lost()
    answer = daemon.ask("seal", **stage.order(spec))
    assert answer["op"] == "sealed"
    assert (stage.sealed(spec) / "result.txt").read_bytes() == b"out\n"
    # It is safe to ask again, and tells the same.
    again = daemon.ask("seal", **stage.order(spec))
    assert {**again, "rid": 0} == {**answer, "rid": 0}
    assert daemon.ask("remove", job=spec["job"], attempt=1)["done"]


def test_a_sealing_that_is_killed_is_told_and_can_be_repeated(stage: Stage, daemon: Daemon) -> None:
    spec = stage.shell('head -c 300000000 /dev/zero > "$AITBC_ARTIFACTS_DIR/big"')
    attempt = daemon.start(spec)
    attempt.exited()
    supervisors = stage.supervisors()
    for pid in supervisors:
        os.kill(pid, signal.SIGKILL)
    attempt.wait_lost()
    wait_for("all supervisors are gone", lambda: not children(stage.pid))
    rid = daemon.tell("seal", **stage.order(spec))
    task = wait_for("it seals", lambda: children(stage.pid))[0]
    os.kill(task, signal.SIGKILL)
    assert daemon.answer(rid)["op"] == "failed"
    assert daemon.ask("seal", **stage.order(spec))["op"] == "sealed"


def test_too_few_descriptors_refuse_a_start_and_do_no_harm(stage: Stage) -> None:
    before = ("sh", "-c", 'ulimit -n 26; exec "$@"', "sh")
    assert stage.launch(before=before), stage.said()
    daemon = stage.connect()
    attempts = []
    while True:
        spec = stage.spec("sleep", "1000")
        answer = daemon.ask("start", **spec)
        if answer["op"] != "placed":
            break
        attempts.append(daemon.placed(spec, answer))
    assert attempts
    assert (answer["op"], answer["why"]) == ("refused", "storage")
    assert os.strerror(errno.EMFILE) in answer["error"]
    assert not stage.is_locked(spec)
    for attempt in attempts:
        attempt.cancel(0)
        attempt.exited()
        attempt.finish()
    spec["argv"] = ["true"]
    assert daemon.run(spec).facts["exit_code"] == 0


@pytest.mark.parametrize("gone", ["state", "results"])
def test_a_state_directory_that_is_gone_is_said(stage: Stage, gone: str) -> None:
    if gone == "state":
        stage.state.rename(stage.folder / "elsewhere")
        stage.log = stage.folder / "launcher.log"
    else:
        shutil.rmtree(stage.results)
    assert not stage.launch()
    assert stage.wait() == 1
    words = "No such file or directory" + (": results" if gone == "results" else "")
    what = f"cannot serve {stage.state}: {words}; name the state directory of a daemon"
    assert stage.said() == f"aitbcd launcher: {what}\n"
