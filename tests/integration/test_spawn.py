"""What a job is started with, whatever the daemon was started with and the job before it did.

Jobs look at themselves with proc(5). As a second user they are plain shell: he may not be able to
read the interpreter of the tests.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.service import PROGRAMS, wait_for
from tests.system.test_recovery import Box

pytestmark = pytest.mark.system

Json = dict[str, Any]
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: only it can be somebody else")

#: Prints all that a process has from who started it.
LOOK = """
import json, os, resource, stat
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
mine = os.listdir("/proc/self/fd")
print(json.dumps({
    "fds": {fd: [os.readlink("/proc/self/fd/" + fd),
                 open("/proc/self/fdinfo/" + fd).read().split()[1:4:2]]
            for fd in sorted(mine) if os.path.exists("/proc/self/fd/" + fd)},
    "signals": [status[name] for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")],
    "ids": [status[name].split() for name in ("Uid", "Gid", "Groups")],
    "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")],
    "flags": [status[name] for name in ("NoNewPrivs", "Seccomp", "TracerPid", "Cpus_allowed")],
    "umask": status["Umask"],
    "modes": [oct(os.fstat(fd).st_mode) for fd in (1, 2)],
    "cwd": os.getcwd(),
    "env": dict(os.environ),
    "limits": [resource.getrlimit(number) for number in range(16)],
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "scheduling": [os.sched_getscheduler(pid) for pid in (0, os.getppid())],
    "leads": [os.getpid() == int(fields[2]), os.getpid() == int(fields[3])],
    "terminal": fields[4],
    "pid": os.getpid(),
    "parent": os.getppid(),
    "siblings": open(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read().split(),
}))
"""
#: As an interpreter that changes no signal and reads no site packages. -c is what it looks at.
PYTHON = (sys.executable, "-I", "-S", "-c")

#: What Python ignores for itself, and two signals of the C library's own (nptl(7)), which its
#: posix_spawn(3) leaves ignored and no program can set.
NOT_OURS = {signal.SIGPIPE, signal.SIGXFSZ, 32, 33}


def signals(mask: str) -> set[int]:
    bits = int(mask, 16)
    return {number for number in range(1, 65) if bits & 1 << (number - 1)}


def log(box: Box, job: str, name: str) -> bytes:
    return (box.service.state / "results" / job / "logs" / name).read_bytes()


def output(box: Box, job: str) -> Json:
    found: Json = json.loads((box.service.state / "results" / job / "output.json").read_bytes())
    return found


def look(box: Box, **more: object) -> Json:
    job = box.submit(*PYTHON, LOOK, **more)
    ended = box.wait_end(job)
    assert ended["status"] == "completed", log(box, job, "stderr.log")
    found: Json = json.loads(log(box, job, "stdout.log"))
    found["job"] = job
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can reach."""
    made = Path(tempfile.mkdtemp(prefix="aitbcd-spawn-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def box(folder: Path) -> Iterator[Box]:
    box = Box(folder / "box")
    box.service.socket.parent.chmod(0o755)
    with box.service:
        box.connect()
        yield box
        box.http.close()


# -- what cannot be started -----------------------------------------------------------------------


def put(path: Path, content: str, mode: int = 0o755) -> None:
    path.write_text(content)
    path.chmod(mode)


Refusal = tuple[Json, str]


def refusals() -> dict[str, Refusal]:
    """What is submitted, and the words of the refusal. {} is the job's folder."""
    huge = "x" * (1 << 17)
    return {
        "no such file": ({"argv": ["./nothing"]}, "./nothing: No such file or directory"),
        "nothing in PATH": (
            {"argv": ["nothing-of-this-name"]},
            "nothing-of-this-name: No such file or directory (looked for in PATH)",
        ),
        "not executable": (
            {"argv": ["./plain"]},
            "./plain: Permission denied (is it executable? chmod +x)",
        ),
        "not executable in PATH": (
            {"argv": ["plain"], "env": {"PATH": "{}"}},
            "plain: Permission denied",
        ),
        "a folder": ({"argv": ["{}"]}, "{}: Permission denied"),
        "below a file": ({"argv": ["./plain/x"]}, "./plain/x: Not a directory"),
        "a loop": ({"argv": ["./loop"]}, "./loop: Too many levels of symbolic links"),
        "no such directory": (
            {"argv": ["true"], "cwd": "{}/gone"},
            ": the working directory {}/gone does not exist",
        ),
        "no directory": (
            {"argv": ["true"], "cwd": "{}/plain"},
            ": the working directory {}/plain is not a directory, or below something that is none",
        ),
        "missing interpreter": (
            {"argv": ["./no-interpreter"]},
            "./no-interpreter: No such file or directory"
            " (its interpreter, named in its first line, is missing)",
        ),
        "no shebang": (
            {"argv": ["./no-shebang"]},
            "./no-shebang: Exec format error (a script needs a first line such as #!/bin/sh)",
        ),
        "too long": ({"argv": ["/bin/true", huge]}, "/bin/true: Argument list too long"),
        "too long an environment": (
            {"argv": ["/bin/true"], "env": {"V": huge}},
            "/bin/true: Argument list too long",
        ),
        "no such stdin": (
            {"argv": ["cat"], "stdin": "{}/gone"},
            ": the file for standard input {}/gone does not exist",
        ),
        "a directory as stdin": (
            {"argv": ["cat"], "stdin": "{}"},
            ": the file for standard input {} is a directory",
        ),
        "a name that is no text": (
            {"argv": [{"b64": "Li//"}]},
            "./\N{REPLACEMENT CHARACTER}: No such file or directory",
        ),
    }


@pytest.mark.parametrize("what", list(refusals()))
def test_what_cannot_start_is_told_in_the_systems_words(box: Box, what: str) -> None:
    put(box.folder / "plain", "#!/bin/sh\n", 0o644)
    put(box.folder / "no-interpreter", "#!/no/such/interpreter\n")
    put(box.folder / "no-shebang", "echo ran\n")
    (box.folder / "loop").symlink_to("loop")
    body, words = refusals()[what]
    words = f"cannot start{words}" if words.startswith(":") else f"cannot start {words}"
    text = json.dumps({"cwd": "{}", **body}).replace("{}", str(box.folder))
    words = words.replace("{}", str(box.folder))
    answer = box.http.post("/v1/jobs", content=text)
    assert answer.status_code == 201, answer.text
    job = answer.json()["job_id"]
    ended = box.wait_end(job)
    assert (ended["status"], ended["reason"]) == ("failed", "cannot_start")
    assert (ended["exit_code"], ended["signal"], ended["started_at"]) == (None, None, None)
    assert ended["message"] == words
    told = output(box, job)
    assert (told["status"], told["reason"]) == ("failed", "cannot_start")
    assert told["message"] == words
    assert log(box, job, "stderr.log").decode() == f"aitbcd: {words}\n"
    box.verify(job)
    # The supervisor that was refused takes the next job.
    assert box.wait_end(box.submit("true"))["status"] == "completed"


def test_the_program_is_found_in_the_path_of_the_job(box: Box) -> None:
    for name in ("a", "b"):
        (box.folder / name).mkdir()
    put(box.folder / "a/tool", "#!/bin/sh\necho a\n", 0o644)
    put(box.folder / "b/tool", "#!/bin/sh\necho b\n")
    job = box.submit("tool", env={"PATH": f"{box.folder}/a:{box.folder}/b"})
    assert box.wait_end(job)["status"] == "completed"
    assert log(box, job, "stdout.log") == b"b\n"
    # Relative to the job's directory, and an empty element is that directory.
    assert box.wait_end(box.submit("tool", env={"PATH": "b"}))["status"] == "completed"
    (box.folder / "b/tool").rename(box.folder / "tool")
    assert box.wait_end(box.submit("tool", env={"PATH": ":/bin"}))["status"] == "completed"


def test_a_script_runs_as_it_is_at_its_start(box: Box) -> None:
    put(box.folder / "script", "#!/bin/sh -e\necho $0 $1\n")
    job = box.submit("./script", "a b")
    box.wait_end(job)
    assert log(box, job, "stdout.log") == b"./script a b\n"


# -- standard input --------------------------------------------------------------------------------


def test_a_fifo_without_a_writer_is_an_empty_input(box: Box) -> None:
    os.mkfifo(box.folder / "fifo")
    job = box.submit("cat", stdin=str(box.folder / "fifo"))
    assert box.wait_end(job)["status"] == "completed"
    assert log(box, job, "stdout.log") == b""


def test_a_fifo_with_a_writer_is_read_to_its_end(box: Box) -> None:
    fifo = box.folder / "fifo"
    os.mkfifo(fifo)
    both = os.open(fifo, os.O_RDWR)
    job = box.submit("sh", "-c", "echo >> ran; exec cat", stdin=str(fifo))
    box.wait_started()
    with open(fifo, "wb") as writer:
        os.close(both)
        writer.write(b"x" * 300_000)
    assert box.wait_end(job)["status"] == "completed"
    assert log(box, job, "stdout.log") == b"x" * 300_000


def test_a_file_is_read_from_its_start_by_each_job(box: Box) -> None:
    (box.folder / "in").write_text("input\n")
    for _ in range(2):
        job = box.submit("cat", stdin=str(box.folder / "in"))
        box.wait_end(job)
        assert log(box, job, "stdout.log") == b"input\n"


# -- what a job inherits ---------------------------------------------------------------------------


def check_plain(box: Box, found: Json) -> None:
    """Assert what holds for every job."""
    building = f"{box.service.state}/results/.{found['job']}"
    fds = found["fds"]
    assert list(fds) == ["0", "1", "2"]
    assert fds["0"] == ["/dev/null", ["0", "0100000"]]
    for fd, name in (("1", "stdout.log"), ("2", "stderr.log")):
        assert fds[fd][0] == f"{building}/logs/{name}"
        assert int(fds[fd][1][1], 8) & os.O_APPEND
    pending, also_pending, blocked, ignored, _ = map(signals, found["signals"])
    assert pending == also_pending == blocked == set()
    assert ignored <= NOT_OURS
    assert found["leads"] == [True, True]
    assert found["terminal"] == "0"
    assert found["siblings"] == [str(found["pid"])]
    env = found["env"]
    assert env["AITBC_JOB_ID"] == found["job"]
    assert env["AITBC_ATTEMPT"] == "1"
    assert env["AITBC_RESULT"] == f"{building}/result.txt"
    assert env["AITBC_ARTIFACTS_DIR"] == f"{building}/artifacts"
    assert env["AITBC_PROGRESS"] == f"{building}/progress"
    assert env["AITBC_GPUS"] == env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


OURS = {
    *("AITBC_JOB_ID", "AITBC_ATTEMPT", "AITBC_RESULT", "AITBC_ARTIFACTS_DIR", "AITBC_PROGRESS"),
    *("AITBC_GPUS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
}


def test_a_job_has_what_it_asked_for_and_nothing_else(box: Box) -> None:
    (box.folder / "there").mkdir()
    environment = {"A": "1", "B": "with = and\nnewline", "AITBC_JOB_ID": "mine"}
    found = look(
        box,
        cwd=f"{box.folder}/there",
        umask="0137",
        environment=environment,
        env={"C": "3", "CUDA_VISIBLE_DEVICES": "0", "A": "2"},
    )
    check_plain(box, found)
    assert found["umask"] == "0137"
    # Its supervisor waits for its turn, and the job does not.
    assert found["scheduling"] == [os.SCHED_OTHER, os.SCHED_BATCH]
    assert found["cwd"] == f"{box.folder}/there"
    rest = {name: value for name, value in found["env"].items() if name not in OURS}
    # LC_CTYPE is Python's own, where there is no locale (PEP 538).
    rest.pop("LC_CTYPE", None)
    assert rest == {"A": "2", "B": "with = and\nnewline", "C": "3"}


def test_the_environment_of_a_job_that_asks_for_none(box: Box) -> None:
    os.environ["OF_THE_DAEMON"] = "x"
    try:
        box.restart()
    finally:
        del os.environ["OF_THE_DAEMON"]
    found = look(box)
    check_plain(box, found)
    me = pwd.getpwuid(os.getuid())
    rest = {name: value for name, value in found["env"].items() if name not in OURS}
    rest.pop("LC_CTYPE", None)
    assert set(rest) == {"HOME", "USER", "LOGNAME", "SHELL", "LANG", "PATH"}
    assert (rest["HOME"], rest["USER"], rest["LOGNAME"]) == (me.pw_dir, me.pw_name, me.pw_name)
    assert found["umask"] == "0022"


def start_oddly(box: Box, before: Callable[[], None]) -> None:
    """Start the daemon in a process that has done something first."""
    box.http.close()
    kept = os.open(box.folder / "kept", os.O_RDWR | os.O_CREAT)
    high = os.dup2(kept, 200, inheritable=True)
    with box.service.log.open("ab") as said:
        box.service.process = subprocess.Popen(
            [PROGRAMS / "aitbcd"],
            env=os.environ | box.service.environ,
            stdin=kept,
            stdout=said,
            stderr=said,
            preexec_fn=before,
            restore_signals=False,
            pass_fds=(high,),
        )
    os.close(kept)
    os.close(high)
    wait_for("the daemon answers", box.service._answers, log=box.service.log)
    box.connect()


IGNORED = (signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGUSR1, signal.SIGTTOU)
BLOCKED = (signal.SIGCHLD, signal.SIGUSR2, signal.SIGALRM, signal.SIGHUP)


def test_nothing_of_how_the_daemon_was_started_reaches_a_job(box: Box) -> None:
    def before() -> None:
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGRTMIN + 3, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [*BLOCKED, signal.SIGRTMIN + 4])
        os.umask(0o077)
        os.chdir("/tmp")

    few = (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])

    def with_few_descriptors() -> None:
        before()
        resource.setrlimit(resource.RLIMIT_NOFILE, few)

    box.service.stop()
    wait_for("the launcher ends", lambda: not box._launchers())
    start_oddly(box, with_few_descriptors)
    # The next one is started by a daemon that has long changed what it needs otherwise.
    for pid in box._launchers():
        os.kill(pid, signal.SIGKILL)
    found = look(box)
    check_plain(box, found)
    # The daemon takes more for itself, with which select(2) of old programs cannot deal.
    assert found["limits"][resource.RLIMIT_NOFILE] == list(few)
    assert found["umask"] == "0022"
    # They hear of the ends of their children.
    job = box.submit("sleep", "1000")
    box.wait(job, "running")
    assert box.cancel(job, force=True)["status"] == "canceling"
    assert box.wait_end(job)["status"] == "canceled"


def test_a_job_is_scheduled_as_the_daemon_is_where_that_was_chosen(box: Box) -> None:
    box.service.stop()
    wait_for("the launcher ends", lambda: not box._launchers())
    start_oddly(box, lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)))
    assert look(box)["scheduling"] == [os.SCHED_IDLE, os.SCHED_IDLE]


def test_jobs_start_when_somebody_has_changed_how_their_supervisor_is_scheduled(box: Box) -> None:
    """Who has no rights cannot leave SCHED_IDLE, so it is not tried."""
    changes = "import os; os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))"
    assert box.wait_end(box.submit(*PYTHON, changes))["status"] == "completed"
    wait_free(box)
    assert look(box)["scheduling"] == [os.SCHED_IDLE, os.SCHED_IDLE]


# -- the next job of the same supervisor -----------------------------------------------------------

#: Does to itself and to what it shares with its supervisor what it can, and leaves children.
WORST = """
import fcntl, os, resource, signal, sys, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
        os._exit(0)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
os.umask(0)
os.chdir("/")
os.nice(5)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for fd in (0, 1, 2):
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    fcntl.flock(fd, fcntl.LOCK_SH)
os.truncate(1, 0)
os.truncate(2, 1 << 20)
os.environ["LEFT"] = "x"
for name in ("stdout.log", "stderr.log"):
    os.unlink(os.path.join(os.path.dirname(os.environ["AITBC_RESULT"]), "logs", name))
os.chmod(os.environ["AITBC_ARTIFACTS_DIR"], 0)
os.chmod(os.path.dirname(os.environ["AITBC_RESULT"]), 0)
os.closerange(0, 64)
os.kill(os.getpid(), signal.SIGKILL)
"""


def compared(found: Json) -> Json:
    """Return what must be the same for two jobs in a row."""
    same: Json = json.loads(json.dumps(found).replace(found["job"], "JOB"))
    del same["pid"], same["siblings"]
    return same


def wait_free(box: Box) -> None:
    """Wait until the last job's supervisor takes the next one, which another might be given."""
    run = box.service.state / "run"
    wait_for("its folder is for another", lambda: not list(run.glob("job_*")))


def test_the_next_job_of_a_supervisor_is_given_nothing_of_the_last(box: Box) -> None:
    first = look(box)
    wait_free(box)
    worst = box.submit(*PYTHON, WORST)
    ended = box.wait_end(worst)
    assert (ended["status"], ended["signal"]) == ("failed", 9)
    box.verify(worst)
    wait_free(box)
    # With what only this one asks for, it is the supervisor that must forget.
    special = {"umask": "0077", "env": {"X": "1"}, "stdin": "/dev/zero", "cwd": "/"}
    assert box.wait_end(box.submit("true", **special))["status"] == "completed"
    wait_free(box)
    refused = box.submit("./nothing", umask="0777", cwd="/usr")
    assert box.wait_end(refused)["reason"] == "cannot_start"
    wait_free(box)
    second = look(box)
    assert second["parent"] == first["parent"], "not the same supervisor"
    check_plain(box, second)
    assert compared(second) == compared(first)


# -- another user ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def user() -> Iterator[pwd.struct_passwd]:
    name, group = f"aitbcd-j{os.getpid()}", f"aitbcd-g{os.getpid()}"
    subprocess.run(["groupadd", group], check=True)
    subprocess.run(["useradd", "--create-home", "-G", group, name], check=True)
    yield pwd.getpwnam(name)
    subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)
    subprocess.run(["groupdel", group], check=True)


def submit_as(box: Box, user: pwd.struct_passwd, *argv: str, **more: object) -> str:
    """Submit as this user: the kernel says who connects."""
    box.http.close()
    os.seteuid(user.pw_uid)
    try:
        box.connect()
        return box.submit(*argv, **more)
    finally:
        os.seteuid(0)
        box.http.close()
        box.connect()


def status_of(text: bytes) -> Mapping[str, list[str]]:
    lines = (line.partition(":") for line in text.decode().splitlines())
    return {name: value.split() for name, _, value in lines}


@needs_root
def test_another_users_job_is_his_in_every_respect(box: Box, user: pwd.struct_passwd) -> None:
    look_around = """
        cat /proc/self/status
        echo "Cwd: $(pwd)"
        echo "Home: $HOME $USER $LOGNAME"
        echo "Login: $(cat /proc/self/loginuid)"
        echo "Fds: $(ls /proc/self/fd | tr '\\n' ' ')"
        echo "In: $(readlink /proc/$$/fd/0)"
        echo "Policy: $(cut -d' ' -f41 /proc/$$/stat)"
        echo "Leads: $$ $(cut -d' ' -f5,6 /proc/$$/stat)"
        touch made "$AITBC_ARTIFACTS_DIR/made"
        echo 42 > "$AITBC_RESULT"
        kill -0 $PPID && echo "Kills: its supervisor"
        ls /proc/$PPID/fd
    """
    try_it = ["sh", "-c", "echo 1 >/proc/self/loginuid"]
    is_audited = subprocess.run(try_it, capture_output=True, check=False).returncode == 0
    for _ in range(2):
        job = submit_as(box, user, "sh", "-c", look_around, cwd=user.pw_dir, umask="0027")
        ended = box.wait_end(job)
        found = status_of(log(box, job, "stdout.log"))
        assert ended["user"] == user.pw_name
        assert found["Uid"] == [str(user.pw_uid)] * 4
        assert found["Gid"] == [str(user.pw_gid)] * 4
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
        assert sorted(map(int, found["Groups"])) == sorted(groups)
        assert len(groups) == 2
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(found[kind][0], 16) == 0, kind
        for kind in ("SigBlk", "SigIgn", "SigPnd", "ShdPnd"):
            assert int(found[kind][0], 16) == 0, kind
        assert found["Umask"] == ["0027"]
        assert found["Cwd"] == [user.pw_dir]
        assert found["Home"] == [user.pw_dir, user.pw_name, user.pw_name]
        if is_audited:
            assert found["Login"] == [str(user.pw_uid)]
        # The last one is what ls itself reads.
        assert found["Fds"] == ["0", "1", "2", "3"]
        assert found["In"] == ["/dev/null"]
        assert found["Policy"] == [str(os.SCHED_OTHER)]
        assert len(set(found["Leads"])) == 1
        assert "Kills" not in found
        package = box.service.state / "results" / job
        for path in (package, *package.rglob("*")):
            assert path.stat().st_uid == user.pw_uid, path
            assert not path.stat().st_mode & 0o7, path
        assert (Path(user.pw_dir) / "made").stat().st_uid == user.pw_uid
        assert stat.S_IMODE((Path(user.pw_dir) / "made").stat().st_mode) == 0o640
        assert (package / "result.txt").read_text() == "42\n"
        box.verify(job)


@needs_root
def test_users_have_no_keys_of_the_kernel_s_in_common(box: Box, user: pwd.struct_passwd) -> None:
    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel keeps no keys")
    seen = []
    for _ in range(2):
        job = submit_as(box, user, "cat", "/proc/keys")
        box.wait_end(job)
        keys = [line.split() for line in log(box, job, "stdout.log").decode().splitlines()]
        # It may look at those that it was given, whosoever they are.
        mine = [key[0] for key in keys if key[8].startswith("_ses")]
        assert len(mine) == 1
        seen += mine
    assert len(set(seen)) == 2


@needs_root
def test_set_id_programs_give_no_rights_where_that_is_configured(
    box: Box, user: pwd.struct_passwd
) -> None:
    shutil.copy2("/usr/bin/id", box.folder / "id")
    (box.folder / "id").chmod(0o4755)
    program = ("sh", "-c", "./id -u; grep NoNewPrivs /proc/self/status")
    words = {"cwd": str(box.folder)}

    def said(job: str) -> list[str]:
        assert box.wait_end(job)["status"] == "completed"
        return log(box, job, "stdout.log").decode().split()

    assert said(submit_as(box, user, *program, **words)) == ["0", "NoNewPrivs:", "0"]
    config = box.service.config
    config.write_text(f"{config.read_text()}[launcher]\nno_new_privs = true\n")
    box.restart()
    forbidden = [str(user.pw_uid), "NoNewPrivs:", "1"]
    assert said(submit_as(box, user, *program, **words)) == forbidden
    # Also of the daemon's own user, whose jobs are started by other means.
    found = look(box, stdin="/dev/null")
    check_plain(box, found)
    assert found["flags"][0] == "1"
    refused = box.wait_end(box.submit("./nothing", **words))
    assert refused["message"] == "cannot start ./nothing: No such file or directory"


@needs_root
@pytest.mark.parametrize("what", ["cwd", "stdin", "program"])
def test_another_users_job_is_refused_what_he_may_not(
    box: Box, user: pwd.struct_passwd, what: str
) -> None:
    closed = box.folder / "closed"
    closed.mkdir(mode=0o700)
    put(closed / "file", "#!/bin/sh\necho secret\n")
    put(box.folder / "file", "#!/bin/sh\necho secret\n", 0o700)
    refused = str(closed) if what == "cwd" else str(box.folder / "file")
    argv = [refused] if what == "program" else ["cat"]
    more = {"cwd": user.pw_dir} | ({} if what == "program" else {what: refused})
    job = submit_as(box, user, *argv, **more)
    ended = box.wait_end(job)
    assert (ended["status"], ended["reason"]) == ("failed", "cannot_start")
    if what == "program":
        assert ended["message"].startswith(f"cannot start {refused}: Permission denied")
    else:
        assert ended["message"].endswith(f" {refused} is closed to the job's user")
    assert log(box, job, "stderr.log").decode() == f"aitbcd: {ended['message']}\n"
    assert log(box, job, "stdout.log") == b""


@needs_root
@pytest.mark.parametrize("what", list(refusals()))
def test_another_users_job_is_refused_in_the_same_words(
    box: Box, user: pwd.struct_passwd, what: str
) -> None:
    put(box.folder / "plain", "#!/bin/sh\n", 0o644)
    put(box.folder / "no-interpreter", "#!/no/such/interpreter\n")
    put(box.folder / "no-shebang", "echo ran\n")
    (box.folder / "loop").symlink_to("loop")
    body, words = refusals()[what]
    words = f"cannot start{words}" if words.startswith(":") else f"cannot start {words}"
    text = json.dumps({"cwd": "{}", **body}).replace("{}", str(box.folder))
    body = json.loads(text)
    job = submit_as(box, user, *body.pop("argv"), **body)
    ended = box.wait_end(job)
    words = words.replace("{}", str(box.folder))
    assert (ended["reason"], ended["message"]) == ("cannot_start", words)
    assert log(box, job, "stderr.log").decode() == f"aitbcd: {words}\n"
