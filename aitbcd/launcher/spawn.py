"""Start a job's program: as whom, where, with which environment and standard streams.

For the supervisor's own user with posix_spawn(3), which costs half of a fork from Python; for
another user, a job with a cgroup, or one that may get no new privileges, with a fork that sees to
it. Either way the program gets a session of its own, default signals, none blocked, and no
descriptor but 0, 1 and 2.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import select
import signal
import stat
from typing import Any

from aitbcd.launcher.cgroups import enter
from aitbcd.launcher.identity import Identity
from aitbcd.launcher.jobgroup import JobGroup, near_cores
from aitbcd.launcher.linux import (
    forbid_new_privileges,
    fork_into,
    leave_session_keyring,
    log_in,
    prefer_memory_of,
    scheduling_of_jobs,
    use_scheduling_of_jobs,
)

#: Seconds for a user's own file systems to answer before the program runs.
_START_S = 60.0
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
_OUR_UMASK = 0o027
_THE_CWD = "cannot start: the working directory"
_THE_STDIN = "cannot start: the file for standard input"


class CannotStart(Exception):
    """The program could not be started; the text says so, with the system's own words."""


def start(
    spec: dict[str, Any],
    stdout: int,
    stderr: int,
    who: Identity | None,
    group: JobGroup | None = None,
) -> int:
    """Start the program and return its pid, once its exec has succeeded.

    Args:
        group: the cgroup that it is to be in.

    Raises:
        CannotStart: with what was wrong; nothing runs.
    """
    is_plain = who is None and not _has_other_group(spec)
    if is_plain and group is None and not spec.get("no_new_privs"):
        return _spawn(spec, stdout, stderr)
    return _fork(spec, (stdout, stderr), who, group)


def _spawn(spec: dict[str, Any], stdout: int, stderr: int) -> int:
    stdin, cores = -1, _bind(spec)
    processes = resource.getrlimit(resource.RLIMIT_NPROC)
    try:
        # What is lowered for good here could not be given back.
        _limit_processes(spec, most=processes[1])
        _enter(spec)
        streams: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        ]
        if spec["stdin"] is None:
            # Not ours, which is /dev/null too: its flags would be shared with the next job.
            streams.append((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0))
        else:
            stdin = _open_stdin(spec)
            streams.append((os.POSIX_SPAWN_DUP2, stdin, 0))
        environment, scheduling = spec["env"], scheduling_of_jobs()
        for program in _programs(spec):
            try:
                return os.posix_spawn(
                    program,
                    spec["argv"],
                    environment,
                    file_actions=streams,
                    setsid=True,
                    setsigmask=(),
                    **scheduling,
                )
            except OSError as error:
                _explain(program, error)
            except ValueError as error:
                # A NUL, or a name without letters: what exec cannot be told.
                raise CannotStart(f"cannot start {_shown(program)}: {error}") from None
        raise AssertionError("unreachable: _programs yields at least one, or _explain raises")
    finally:
        if stdin >= 0:
            os.close(stdin)
        if cores:
            os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_NPROC, processes)
        os.chdir("/")
        os.umask(_OUR_UMASK)


def _fork(
    spec: dict[str, Any], streams: tuple[int, int], who: Identity | None, group: JobGroup | None
) -> int:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid, is_inside = _fork_into(group) if group else (os.fork(), False)
    if pid == 0:
        _become_program(spec, streams, who, writing, group, is_inside=is_inside)
    os.close(writing)
    try:
        poller = select.poll()
        poller.register(reading, select.POLLIN)
        if not poller.poll(_START_S * 1000):
            os.kill(pid, signal.SIGKILL)
            raise CannotStart(f"{_THE_CWD} {_shown(spec['cwd'])} does not answer")
        words = os.read(reading, 65536)
    finally:
        os.close(reading)
    if words:
        # Its user may have stopped it meanwhile.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise CannotStart(json.loads(words))
    return pid


def _fork_into(group: JobGroup) -> tuple[int, bool]:
    """Fork, and return the child and whether it is in the cgroup."""
    fd = os.open(group.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return fork_into(fd), True
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    finally:
        os.close(fd)
    return os.fork(), False


def _bind(spec: dict[str, Any]) -> set[int] | None:
    """Run near to the job's GPUs from now on; return the cores before, None where they stay."""
    cores = near_cores(spec.get("limits", {}))
    if not cores:
        return None
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    return before


def _limit_processes(spec: dict[str, Any], *, most: int | None = None) -> None:
    """Let this user have no more processes, all that he has counted, where no cgroup counts.

    Args:
        most: what the job may raise that to; None for no more.
    """
    limit = spec.get("limits", {}).get("processes")
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit is None or (soft != resource.RLIM_INFINITY and soft <= limit):
        return
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit if most is None else most))


def _become_program(
    spec: dict[str, Any],
    streams: tuple[int, int],
    who: Identity | None,
    writing: int,
    group: JobGroup | None,
    *,
    is_inside: bool,
) -> None:
    """The child's life between fork and exec."""
    try:
        if group and not is_inside:
            enter(group.folder)
        if not (group and group.is_bound):
            _bind(spec)
        limits = spec.get("limits", {})
        if near_cores(limits):
            # Where those run, unless they are not bound.
            prefer_memory_of(limits.get("near_nodes", []))
        use_scheduling_of_jobs()
        signal.set_wakeup_fd(-1)
        os.setsid()
        if who is not None:
            # As root, so that it is root's: users may have few keys.
            leave_session_keyring()
            log_in(who.uid)
            who.become()
        elif _has_other_group(spec):
            os.initgroups(spec["user"], spec["gid"])
            os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        if not (group and group.is_counting):
            # As the user: what he has too many of when he is become, execve(2) refuses.
            _limit_processes(spec)
        if spec.get("no_new_privs"):
            forbid_new_privileges()
        _enter(spec)
        for to, fd in enumerate((_open_stdin(spec), *streams)):
            os.dup2(fd, to)
        for program in _programs(spec):
            try:
                os.execve(program, spec["argv"], spec["env"])
            except OSError as error:
                _explain(program, error)
    except CannotStart as refusal:
        words = str(refusal)
    except BaseException as error:
        words = f"cannot start: {type(error).__name__}: {error}"
    os.write(writing, json.dumps(words).encode()[:65536])
    os._exit(127)


def _has_other_group(spec: dict[str, Any]) -> bool:
    """Tell whether this is a job of root's, and we have the group of a daemon that is not root."""
    return os.getuid() == 0 and spec["uid"] == 0 and os.getgid() != spec["gid"]


def _enter(spec: dict[str, Any]) -> None:
    try:
        os.chdir(spec["cwd"])
    except OSError as error:
        raise CannotStart(f"{_THE_CWD} {_shown(spec['cwd'])} {_what_of(error)}") from None
    os.umask(spec["umask"])


def _open_stdin(spec: dict[str, Any]) -> int:
    path = spec["stdin"] or "/dev/null"
    try:
        # A FIFO without a writer would block the open, and the job is not there to be canceled.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(path, flags)
    except OSError as error:
        raise CannotStart(f"{_THE_STDIN} {_shown(path)} {_what_of(error)}") from None
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise CannotStart(f"{_THE_STDIN} {_shown(path)} is a directory")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    return fd


def _programs(spec: dict[str, Any]) -> list[str]:
    """Return the file to execute, found as execvp(3) does with the job's own PATH."""
    name: str = spec["argv"][0]
    if "/" in name:
        return [name]
    refused = errno.ENOENT
    for folder in spec["env"].get("PATH", _DEFAULT_PATH).split(":"):
        candidate = f"{folder or '.'}/{name}"
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return [candidate]
        if os.path.isfile(candidate):
            refused = errno.EACCES
    where = "" if refused == errno.EACCES else " (looked for in PATH)"
    raise CannotStart(f"cannot start {_shown(name)}: {os.strerror(refused)}{where}")


def _explain(program: str, error: OSError) -> None:
    """Raise ``CannotStart`` in the system's words, and say what they leave out."""
    more = ""
    if error.errno == errno.ENOENT and os.path.exists(program):
        more = " (its interpreter, named in its first line, is missing)"
    elif error.errno == errno.ENOEXEC:
        more = " (a script needs a first line such as #!/bin/sh)"
    elif error.errno == errno.EACCES and os.path.isfile(program):
        more = " (is it executable? chmod +x)"
    words = os.strerror(error.errno or 0)
    raise CannotStart(f"cannot start {_shown(program)}: {words}{more}") from None


def _what_of(error: OSError) -> str:
    """Return what is wrong with a path, to be said after it."""
    match error.errno:
        case errno.ENOENT:
            return "does not exist"
        case errno.ENOTDIR:
            return "is not a directory, or below something that is none"
        case errno.EACCES:
            return "is closed to the job's user"
    return f"cannot be opened: {os.strerror(error.errno or 0)}"


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
