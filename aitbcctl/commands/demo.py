"""``aitbcctl demo``: a daemon, a real job, its progress, its results, checked.

Each step is the ordinary command that is printed above it, run as a program of its own. The one
thing done otherwise is that the daemon is started in the background, and ended at the end, with
everything that it started: those processes are made our children (PR_SET_CHILD_SUBREAPER of
prctl(2)), so that none can outlive the demo unseen.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

import aitbcctl
from aitbcctl import options, render
from aitbcctl.client import Client, Json, job_path
from aitbcctl.terminal import flush, put, say
from aitbcd import paths
from aitbcd.errors import AitbcError, ClientFailure, Unreachable

EXAMPLE = os.path.join(os.path.dirname(os.path.abspath(aitbcctl.__file__)), "example", "train.py")
#: How long a daemon may take to answer, and what it started to end.
START_S = 60.0
STOP_S = 60.0
_PR_SET_CHILD_SUBREAPER = 36


class StepFailed(ClientFailure):
    """One of the ordinary commands did not do what it should; it has said why."""


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave the daemon running.")
@click.option(
    "--output",
    metavar="DIR",
    help="Where the results are copied to; default: aitbc-demo, here or, where you cannot write, "
    "in a new temporary folder.",
)
def command(keep: bool, output: str | None) -> int:
    """See it all once: starts a daemon where none is reachable, runs a real job, gets its results.

    The job trains a classifier of handwritten digits for a few seconds, on a GPU where one is free
    and torch is installed that uses it. Each step prints the command that does the same. Ends what
    it started, unless --keep is given; the results stay.

    \b
    Example:
      aitbcctl demo --output /tmp/aitbc-demo
    """
    signal.signal(signal.SIGTERM, _interrupt)
    client = options.client()
    folder = output or _folder()
    with _daemon(client, keep):
        _run_job(client, folder)
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _folder() -> str:
    return "aitbc-demo" if os.access(".", os.W_OK) else tempfile.mkdtemp(prefix="aitbc-demo-")


def _run_job(client: Client, folder: str) -> None:
    wishes = ["--gpus", "1"] if _has_gpu(client) else []
    on = " on a GPU" if wishes else ""
    _title(f"A job: train a classifier of handwritten digits{on}")
    job_id = _step("submit", "--name", "digits", *wishes, "--", sys.executable, EXAMPLE)
    try:
        _title("Its progress, live")
        _step("watch", job_id, is_captured=False)
    except BaseException:
        _end_job(client, job_id)
        raise
    _title("Its results, each file checked while it is copied")
    copy = _step("download", job_id, "--output", folder)
    _title("What is stored, checked against its checksums")
    _step("verify", job_id)
    _summary(client.get(job_path(job_id), detail=True), os.path.abspath(copy))


def _has_gpu(client: Client) -> bool:
    """Tell whether the job can have a GPU at once, and can use it: it trains without one too."""
    gpus = client.get("/v1/gpus")["gpus"]
    if not any(gpu["state"] == "free" for gpu in gpus):
        return False
    look = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-P", "-c", look], capture_output=True).returncode == 0


def _end_job(client: Client, job_id: str) -> None:
    """Show why a job failed; end one that still runs, because whoever wanted it is gone."""
    try:
        status = client.get(job_path(job_id))
        if render.is_final(status):
            _step("logs", "--stream", "stderr", "--tail", "20", job_id)
        else:
            client.post(job_path(job_id, "cancel"), b'{"force": true}')
            subprocess.run([*_program("aitbcctl"), "watch", job_id], stdout=subprocess.DEVNULL)
    except AitbcError as error:
        say(render.plain(error.detail))


def _summary(job: Json, copy: str) -> None:
    answer = os.path.join(copy, "result.txt")
    with open(answer, errors="replace") as lines:
        last = lines.read().rstrip().rpartition("\n")[2]
    _title("Where everything lies")
    facts = [
        ("the answer", f"{render.plain(last)}  ({answer})"),
        ("its files", os.path.join(copy, "artifacts")),
        ("checksums", f"(cd {shlex.quote(copy)} && sha256sum -c output.sha256)"),
        ("the original", str(job["result_path"])),
        ("all about it", shlex.join([*_as_typed(), "get", job["job_id"]])),
    ]
    for name, value in facts:
        put(f"   {name:<13}{value}")


# --- steps ----------------------------------------------------------------------------------


def _title(text: str) -> None:
    put(f"\n{text}")


def _show(command: list[str]) -> None:
    put(f"   $ {shlex.join(command)}")
    flush()


def _step(*args: str, is_captured: bool = True) -> str:
    """Show an ordinary command and run it; return the last line that it printed.

    Raises:
        StepFailed: its exit code was not 0.
    """
    _show([*_as_typed(), *args])
    pipe = subprocess.PIPE if is_captured else None
    done = subprocess.run([*_program("aitbcctl"), *args], stdout=pipe, text=True)
    lines = (done.stdout or "").splitlines()
    for line in lines:
        put(f"   {render.plain(line)}")
    flush()
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise StepFailed(
            f"the demo ends here: {args[0]} ended with exit code {done.returncode}",
            hint="what it printed says why",
        )
    return lines[-1] if lines else ""


def _program(name: str) -> list[str]:
    """Return how to run one of our programs: the one of this very installation."""
    script = os.path.join(os.path.dirname(sys.executable), name)
    # -P: the folder we are in may hold other sources of the same name.
    return [script] if os.access(script, os.X_OK) else [sys.executable, "-P", "-m", name]


def _as_typed(name: str = "aitbcctl") -> list[str]:
    """Return how the person at the terminal would write it, from where he is."""
    ours = _program(name)
    found = shutil.which(name)
    if len(ours) == 1 and found is not None and os.path.samefile(found, ours[0]):
        return [name]
    beside = os.path.join(os.path.dirname(sys.argv[0]), name)
    if len(ours) == 1 and os.path.exists(beside) and os.path.samefile(beside, ours[0]):
        return [beside]
    return ours


# --- the daemon -----------------------------------------------------------------------------


@contextmanager
def _daemon(client: Client, keep: bool) -> Iterator[None]:
    """Have a daemon for as long as the block lasts, or longer with ``keep``."""
    _title("A daemon, as yourself and without any configuration")
    _show(_as_typed("aitbcd"))
    try:
        health = client.get("/healthz")
    except Unreachable as error:
        place = _place(error)
    else:
        put(f"   one is running already (pid {health['pid']})")
        yield
        return
    _adopt_orphans()
    log = os.path.join(place.state, "daemon.log")
    process, at = _start(place, log)
    has_served = is_left = False
    try:
        _wait_until_it_answers(client, process, log, at)
        has_served = True
        put(f"   started in the background, pid {process.pid}")
        put(f"   its state    {place.state}")
        put(f"   its log      {log}")
        yield
        is_left = keep
    finally:
        if is_left:
            put(f"\nThe daemon goes on; to end it: kill {process.pid}\n")
        elif has_served or process.poll() is None:
            _stop(process)


def _place(error: Unreachable) -> paths.Paths:
    """Return where a daemon of ours would be, if clients would find it there."""
    place = paths.resolve(environ=os.environ, uid=os.getuid())
    ours = paths.client_sockets(os.environ, os.getuid())
    if os.environ.get("AITBC_URL") and not os.environ.get("AITBC_SOCKET"):
        raise error
    if str(place.socket) not in ours:
        raise error
    return place


def _adopt_orphans() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _start(place: paths.Paths, log: str) -> tuple[subprocess.Popen[bytes], int]:
    """Return the daemon that was started, and where in its log its own words begin."""
    try:
        os.makedirs(place.state, 0o711 if os.getuid() == 0 else 0o700, exist_ok=True)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise ClientFailure(
            f"cannot write {log}: {error.strerror}", hint="set AITBCD_STATE_DIR to another folder"
        ) from None
    with os.fdopen(fd, "wb") as output:
        at = os.fstat(fd).st_size
        process = subprocess.Popen(
            _program("aitbcd"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # ^C here is not for it: it is ended in order, after its job.
            start_new_session=True,
        )
    return process, at


def _wait_until_it_answers(
    client: Client, process: subprocess.Popen[bytes], log: str, at: int
) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            client.get("/healthz")
            return
        except Unreachable as error:
            try:
                # Returns at once when it ended; else it is the pause between two tries.
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                if time.monotonic() < until:
                    continue
            raise _not_started(process, log, at, error) from None


def _not_started(
    process: subprocess.Popen[bytes], log: str, at: int, error: Unreachable
) -> ClientFailure:
    with open(log, "rb") as lines:
        lines.seek(at)
        text = lines.read().decode(errors="replace")
    last = [render.plain(line) for line in text.splitlines()[-5:]]
    code = process.poll()
    what = f"ended with exit code {code}" if code is not None else f"does not answer: {error}"
    return ClientFailure(
        f"the daemon {what}; the end of {log}:", hint="\n  ".join(last) or "(it is empty)"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the daemon, and wait until nothing that it started is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    put("\nEnding what this demo started")
    _show(["kill", str(process.pid)])
    process.terminate()
    until = time.monotonic() + STOP_S
    while _has_children(process):
        left = until - time.monotonic()
        if left <= 0 or signal.sigtimedwait({signal.SIGCHLD}, left) is None:
            say("something of it still runs (jobs that others submitted meanwhile?)")
            return
    put("   nothing of it runs any more; the results stay")
    put(f"\nTo go on, start the daemon in a terminal: {shlex.join(_as_typed('aitbcd'))}\n")


def _has_children(process: subprocess.Popen[bytes]) -> bool:
    """Reap whatever ended; tell whether anything is left."""
    process.poll()
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
