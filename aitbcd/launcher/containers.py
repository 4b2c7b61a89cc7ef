"""Containers that jobs have started: which job one is of, and its end with that job.

A container of podman descends from the supervisor, as its conmon does. One of docker is a child of
docker's own daemon: its cgroup says that it is a container, and whoever started it says of which
job, in its environment (``docker run -e AITBC_JOB_ID``) or by the label ``aitbc.job``. That is
believed of what root's docker or podman runs, since who may tell these what to do is root's equal;
and of what runs below a user's own slice for a job of that user.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from aitbcd.launcher import cgroups, processes
from aitbcd.launcher.identity import Identity, do_as
from aitbcd.launcher.protocol import package_name

#: Where root's docker listens, and where users' own (rootless) have the folder that theirs is in.
DOCKER = "/run/docker.sock"
RUNTIMES = "/run/user"
LABEL = "aitbc.job"
#: The seconds that one docker has for all its answers, and the bytes of one.
_ANSWERS_S, _ANSWER_BYTES = 2.0, 1 << 20
#: What is left of them, by whose docker it is. Whoever asks is a process of its own, so that one
#: that was silent is asked again the next time.
_patience_s: dict[int | None, float] = {}
#: Of no group: a socket is its user's own.
_NO_GROUP = 65534
_ENVIRONMENT_BYTES = 1 << 20
#: Rounds of killing what is in a container, and the pause between.
_ROUNDS, _PAUSE_S = 20, 0.05
#: The cgroups that docker (28.2), with either of its drivers, and podman (4.3) make for root.
_OF_ROOT = re.compile(
    r"^/(?:system\.slice/docker-|docker/|machine\.slice/libpod-|libpod_parent/libpod-)"
    r"([0-9a-f]{64})(?:\.scope)?(?:/|$)"
)
#: The same below a user's slice, which nobody else can put something into.
_OF_USER = re.compile(
    r"^/user\.slice/user-(\d+)\.slice/(?:.*/)?(?:docker|libpod)-([0-9a-f]{64})\.scope(?:/|$)"
)
#: Where those cgroups are, of root's and of a user's own, and what they are called.
_PARENTS = (
    "system.slice",
    "docker",
    "machine.slice",
    "libpod_parent",
    "user.slice/user-{uid}.slice/user@{uid}.service/user.slice",
)
_NAME = re.compile(r"(?:(?:docker|libpod)-)?[0-9a-f]{64}(?:\.scope)?\Z")
_JOB = re.compile(r"job_[0-9a-z]{1,32}\Z")


class Container(NamedTuple):
    id: str
    #: Whose slice it is in; None: root's docker or podman runs it.
    uid: int | None


def container_of(pid: int) -> Container | None:
    """Return the container that a process is in."""
    for line in _read(f"/proc/{pid}/cgroup", 1 << 16).decode(errors="replace").splitlines():
        path = line.split(":", 2)[-1]
        if found := _OF_ROOT.match(path):
            return Container(found[1], None)
        if found := _OF_USER.match(path):
            return Container(found[2], int(found[1]))
    return None


def jobs_of(pids: Iterable[int], results_fd: int) -> dict[str, str]:
    """Return by pid, as text, the jobs whose containers processes are in."""
    everything = _containers()
    found: dict[str, str] = {}
    for pid in map(int, pids):
        container = container_of(pid)
        job = _job_of(container, everything.get(container, [])) if container else None
        if container and job and may_be_of(container, job, results_fd):
            found[str(pid)] = job
    return found


def may_be_of(container: Container, job: str, results_fd: int) -> bool:
    """Tell whether what a container says of its job can be believed."""
    if container.uid is None:
        return True
    for is_sealed in (False, True):
        try:
            name = package_name(job, is_sealed=is_sealed)
            status = os.stat(name, dir_fd=results_fd, follow_symlinks=False)
        except OSError:
            continue
        return status.st_uid == container.uid
    return False


def is_any_since(start: int, uid: int) -> bool:
    """Tell whether a container runs, of root's or of this user's, that is not older than this.

    Asked at each attempt's end, so it costs a look into some folders where there are no containers,
    and for each that there is one process.

    Args:
        start: as in ``processes.Process``.
    """
    for root in cgroups.hierarchies().values():
        for parent in _PARENTS:
            folder = f"{root}/{parent.format(uid=uid)}"
            # Mostly it is not there, and an exception takes three times as long.
            if not os.access(folder, os.F_OK):
                continue
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            if any(_NAME.match(n) and _is_since(start, f"{folder}/{n}") for n in names):
                return True
    return False


def _is_since(start: int, folder: str) -> bool:
    """Judge by any one of its processes: none is older than its container."""
    for below, _, _ in os.walk(folder):
        for pid in cgroups.members(below):
            if found := processes.of_pids([pid]):
                return found[0].start >= start
    return False


def end(job: str, attempt: int, results_fd: int) -> list[str]:
    """Kill what is in the containers of an attempt; return ``pid command`` of what would not end.

    One that does not say of which attempt it is counts as of this one.
    """
    left: list[processes.Process] = []
    for _ in range(_ROUNDS):
        left = [
            process
            for container, found in _containers().items()
            if may_be_of(container, job, results_fd) and _job_of(container, found, attempt) == job
            for process in found
        ]
        if not left:
            break
        processes.kill(left)
        select.select([], [], [], _PAUSE_S)
    return [processes.describe(each) for each in left]


def _containers() -> dict[Container, list[processes.Process]]:
    """Return all containers with what runs in them."""
    found: dict[Container, list[processes.Process]] = {}
    for process in processes.all_processes():
        container = container_of(process.pid)
        if container and not processes.is_zombie(process.pid):
            found.setdefault(container, []).append(process)
    return found


def _job_of(
    container: Container, found: list[processes.Process], attempt: int | None = None
) -> str | None:
    """Return the job that a container names; None where it names another attempt of it."""
    names = list(_named_by(found))
    if not names and (label := _label(container)):
        names = [(label, None)]
    for job, its_attempt in names:
        if _JOB.match(job):
            return job if None in (attempt, its_attempt) or attempt == its_attempt else None
    return None


def _named_by(found: list[processes.Process]) -> Iterator[tuple[str, int | None]]:
    """Yield what the environments in a container say; a title can be written over one."""
    for process in found:
        entries = _read(f"/proc/{process.pid}/environ", _ENVIRONMENT_BYTES).split(b"\0")
        said = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
        if job := said.get(b"AITBC_JOB_ID"):
            attempt = said.get(b"AITBC_ATTEMPT", b"")
            yield job.decode(errors="replace"), int(attempt) if attempt.isdigit() else None


def _label(container: Container) -> str | None:
    """Return what its docker says of its label, as long as that has time left."""
    left_s = _patience_s.get(container.uid, _ANSWERS_S)
    if left_s <= 0:
        return None
    since = time.monotonic()
    try:
        label = _as_its_user(container, lambda: _inspect(container, since + left_s), left_s)
        return str(label["label"])
    except OSError:
        return None
    finally:
        _patience_s[container.uid] = left_s - (time.monotonic() - since)


def _as_its_user(
    container: Container, action: Callable[[], dict[str, Any]], within_s: float
) -> dict[str, Any]:
    """Do it as whoever's docker it is: behind the name of a user's socket may be another's."""
    who = None
    if container.uid is not None and container.uid != os.getuid():
        who = Identity(container.uid, _NO_GROUP, f"#{container.uid}")
    return do_as(who, action, within_s)


def _address(uid: int | None) -> str:
    """Return where the docker of root, or of this user, listens."""
    if uid is None:
        return DOCKER
    own = os.environ.get("XDG_RUNTIME_DIR") if uid == os.getuid() else None
    return f"{own or f'{RUNTIMES}/{uid}'}/docker.sock"


def _inspect(container: Container, until: float) -> dict[str, Any]:
    """Ask docker for the label of a container (its HTTP API, in use since 1.12)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_left(until))
        sock.connect(_address(container.uid))
        # 1.0: an answer in one piece, up to its end.
        sock.sendall(f"GET /containers/{container.id}/json HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while piece := sock.recv(1 << 16):
            # Not for each piece: one that comes drop by drop would have no end.
            sock.settimeout(_left(until))
            answer += piece
            if len(answer) > _ANSWER_BYTES:
                raise ValueError("an answer without end")
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ValueError("no such container")
    return {"label": json.loads(body)["Config"]["Labels"][LABEL]}


def _left(until: float) -> float:
    if (left_s := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left_s


def _read(path: str, most: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(most) or b""
    except OSError:
        return b""
