"""What ``os`` does not have: kernel calls over the C library, and a word to systemd."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import stat
import struct
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

# linux/prctl.h, linux/falloc.h, sys/inotify.h
_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 15, 36, 38
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
# linux/ioprio.h: this process, and the class that gets the disk when nobody else wants it.
_IOPRIO_WHO_PROCESS, _IOPRIO_IDLE = 1, 3 << 13
#: The C library has no function for it: asm/unistd.h.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
# linux/keyctl.h
_KEYCTL_JOIN_SESSION_KEYRING = 1
_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_IN_MODIFY, _IN_ONESHOT = 0x2, 0x80000000
# linux/mempolicy.h; as for ioprio_set, there is no function for it.
_MPOL_PREFERRED, _MPOL_PREFERRED_MANY = 1, 5
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "riscv64": 237, "ppc64le": 261, "s390x": 270}
_OOM_KILLS = b"\noom_kill "
#: No kernel has more nodes (CONFIG_NODES_SHIFT is 10 at most).
_NODES = 1024

# linux/sched.h, and the one number that all machines share (asm-generic/unistd.h).
_CLONE3, _CLONE_INTO_CGROUP = 435, 0x200000000
#: ``clone_args``: flags, three addresses, the signal of its end, five more, the cgroup.
_CLONE_ARGS = struct.Struct("11Q")
#: Keeps Python's lock over the call: who comes out of it twice must have it both times.
_locked_libc = ctypes.PyDLL(None, use_errno=True)

_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2

_NO_PRIORITY = os.sched_param(0)
#: It is we who have chosen that.
_is_batch = False


def hold(name: str | bytes, folder: int) -> int:
    """Return a descriptor that stands for what has this name, whatever it is, and opens nothing."""
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


def set_mode_of(held: int, mode: int) -> None:
    """Change the mode of what ``hold`` stands for.

    By its name a link would be followed, and who owns the folder can put one there at any moment.
    """
    if stat.S_ISLNK(os.fstat(held).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    os.chmod(f"/proc/self/fd/{held}", mode)


def set_mode(name: str | bytes, mode: int, folder: int) -> None:
    """Change the mode of what has this name, and of nothing that it leads to."""
    held = hold(name, folder)
    try:
        set_mode_of(held, mode)
    finally:
        os.close(held)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def notify(state: str) -> None:
    """Tell systemd how the service does, where it has started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), f"\0{address[1:]}" if address[0] == "@" else address)
    except OSError:
        # The manager is being replaced.
        pass


def machine_oom_kills() -> int | None:
    """Return how many processes the kernel's OOM killer has ended since the machine started.

    None before Linux 4.13, which does not count them (/proc/vmstat). Read without a file object,
    for which a supervisor would copy several pages that it shares.
    """
    try:
        fd = os.open("/proc/vmstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    text = b""
    try:
        # The kernel hands out a page at a time.
        while piece := os.read(fd, 4096):
            text += piece
    finally:
        os.close(fd)
    at = text.find(_OOM_KILLS)
    return int(text[at + len(_OOM_KILLS) : text.index(b"\n", at + 1)]) if at >= 0 else None


def be_called(name: bytes) -> None:
    """Let top, ps and the kernel's log call us so, as far as 15 bytes go, instead of python3."""
    _check(_libc.prctl(_PR_SET_NAME, name, 0, 0, 0))


def become_subreaper() -> None:
    """Let orphaned descendants become our children (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def forbid_new_privileges() -> None:
    """Let no program that this process executes get more rights: no set-id bits count any more."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def leave_session_keyring() -> None:
    """Let this process and its children have keys of their own (session-keyring(7)).

    A kernel without keys, or a container that may not use them, has none to keep apart.
    """
    number = _KEYCTL.get(os.uname().machine)
    if number is not None:
        _libc.syscall(ctypes.c_long(number), _KEYCTL_JOIN_SESSION_KEYRING, None)


def fork_into(cgroup: int) -> int:
    """Fork, with the child in this cgroup from its first instruction (clone3(2)).

    Moving a process afterwards makes the kernel wait for all others to stand still for a moment.
    For a process of one thread.

    Raises:
        OSError: ENOSYS for a kernel before 5.7, or a container that may not.
    """
    arguments = _CLONE_ARGS.pack(
        _CLONE_INTO_CGROUP, 0, 0, 0, int(signal.SIGCHLD), 0, 0, 0, 0, 0, cgroup
    )
    size = ctypes.c_size_t(len(arguments))
    return _check(_locked_libc.syscall(ctypes.c_long(_CLONE3), arguments, size))


def log_in(uid: int) -> None:
    """Have the audit log name this user for all that follows, as pam_loginuid(8) does for cron's.

    A kernel that audits nothing, or a container that may not say so, has no such log.
    """
    try:
        with open("/proc/self/loginuid", "wb", buffering=0) as file:
            file.write(str(uid).encode())
    except OSError:
        pass


def highest_descriptor() -> int:
    """Return the highest that is open: what a fork has to close, which would copy pages to ask."""
    return max(int(name) for name in os.listdir("/proc/self/fd"))


def close_all_but(highest: int, *kept: int) -> None:
    """Close all descriptors up to the highest but these and the standard streams."""
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, highest + 1)


def be_idle() -> None:
    """Leave processor and disk to all others from now on (nice(2), ioprio_set(2))."""
    os.nice(19)
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        # A wish: a disk without priorities has none to give.
        _libc.syscall(ctypes.c_long(number), _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)


def use_batch_scheduling() -> None:
    """Take the processor from nobody who runs when we wake up (sched(7), SCHED_BATCH).

    Who wakes us is mostly about to wake the next of us: so many jobs a second cost a fifth fewer
    switches. Whom an administrator has given another policy keeps it.
    """
    global _is_batch
    try:
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, _NO_PRIORITY)
            _is_batch = True
    except OSError:
        # A container may forbid the calls, and musl has none.
        pass


def scheduling_of_jobs() -> dict[str, Any]:
    """Return what to tell ``os.posix_spawn``, so that a program is scheduled as we were once.

    Who was given another policy since passes it on: not everybody may leave each one (SCHED_IDLE).
    """
    if _is_batch and os.sched_getscheduler(0) == os.SCHED_BATCH:
        return {"scheduler": (os.SCHED_OTHER, _NO_PRIORITY)}
    return {}


def use_scheduling_of_jobs() -> None:
    """Be scheduled as a program is to be, for good."""
    for policy in scheduling_of_jobs().values():
        os.sched_setscheduler(0, *policy)


def prefer_memory_of(nodes: list[int]) -> None:
    """Take memory from these NUMA nodes first from now on, and from others when they are full.

    A wish: a kernel or a container without NUMA has no nodes to prefer. Before Linux 5.15 only one
    can be preferred (set_mempolicy(2)).
    """
    number = _SET_MEMPOLICY.get(os.uname().machine)
    known = sorted({node for node in nodes if 0 <= node < _NODES})
    if number is None or not known:
        return
    words = [0] * (_NODES // 64)
    for node in known:
        words[node // 64] |= 1 << node % 64
    mask = struct.pack(f"{len(words)}Q", *words)
    # The kernel takes one off (get_nodes() in its mm/mempolicy.c).
    most = ctypes.c_ulong(_NODES + 1)
    for policy in (_MPOL_PREFERRED_MANY, _MPOL_PREFERRED):
        if _libc.syscall(ctypes.c_long(number), policy, mask, most) == 0:
            return


def punch_hole(fd: int, start: int, length: int) -> None:
    """Give the blocks of a range back; the file keeps its size (fallocate(2)).

    Raises:
        OSError: EOPNOTSUPP where the file system cannot.
    """
    _check(_fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, start, length))


def start_writing(fd: int) -> None:
    """Start to write a file's dirty pages, without waiting (sync_file_range(2)).

    A hint only: what waits for the data is fdatasync(2).
    """
    _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


class ModifyWatch:
    """Wakes on the next write to one of some files, once, until armed again (inotify(7)).

    Kept for a process's life: closing an instance takes the kernel 15 ms.
    """

    def __init__(self) -> None:
        self.fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._armed: dict[int, int] = {}

    def arm(self, fd: int) -> None:
        path = f"/proc/self/fd/{fd}".encode()
        flags = ctypes.c_uint32(_IN_MODIFY | _IN_ONESHOT)
        self._armed[fd] = _check(_libc.inotify_add_watch(self.fd, path, flags))

    def disarm(self) -> None:
        """Forget all files and what was said of them."""
        for watch in self._armed.values():
            # Fails for one that has fired: it is gone already.
            _libc.inotify_rm_watch(self.fd, watch)
        self._armed.clear()
        self.drain()

    def drain(self) -> None:
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass
