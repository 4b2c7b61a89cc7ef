"""What the daemon, the launcher and the supervisors say to each other, and the names on disk.

One JSON object a packet on SOCK_SEQPACKET sockets (unix(7)): packets keep their borders, and what
was queued is delivered before end-of-file. A message too large for a packet travels as a sealed
memfd (memfd_create(2)) whose descriptor is the last one of the packet. Bytes that are no UTF-8
are carried as lone surrogates (PEP 383), which JSON escapes.

Requests to the launcher carry ``rid`` and are answered with the same, in order of arrival except
``seal``, ``sweep``, ``containers`` and ``remove_package``, which a process of their own does:

    hello      {}                  -> {pid, version, release, cgroups: {folder, controllers}}
                                               ``version`` is the protocol's;
                                               the old daemon's requests are dealt with
    start      {job, attempt, ...} -> placed {worker, pid} (+ a channel, if the daemon has none)
                                    | refused {why: busy|started|canceled|storage|forbidden,
                                               error}
    tombstone  {job, attempt}      -> {done}   false: it is placed, ask its supervisor
    seal       {...order}          -> sealed | seal_failed | busy
                                      the order may come with a sealed memfd: ``logs/gpu.csv``
    stop_seal  {job, attempt}      -> {done}   what seals it is killed, and its request has failed
    sweep      {job, attempt, uid} -> {left: ["pid command", ...]}
    containers {pids}              -> {jobs: {pid: job}}  whose containers they are in
    remove     {job, attempt}      -> {done}   false: it is locked
    remove_package {job, uid, gid, user}
                                   -> removed {left}
                                    | refused {why: busy|others|storage|forbidden, error}

A supervisor and the daemon, on the channel that came with ``placed`` or, for an adopted attempt,
on the socket ``SOCKET`` in the run folder:

    <- running      {at, pid}                  unless it is over a moment later
    <- exited       {facts}                    nothing of the job runs any more (or see ``undead``)
    -> cancel       {grace_s}
    -> seal         {...order}     <- sealed {digest, files, bytes} | seal_failed {errno, error}
                                      with ``logs/gpu.csv``, as to the launcher
    -> stop_seal                   <- seal_failed; nothing where it is sealed, or was so quickly
    -> done                        the run folder goes; the supervisor is free

``facts`` are what ``exit.json`` holds, see ``Facts``.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, TypedDict

VERSION = 1

#: Files of a run folder ``run/job_<ID>.<attempt>``. A root supervisor's ``started`` is its user's,
#: and holds what is to be collected, if anything is.
LOCK, STARTED, EXIT, CANCELED, SOCKET = "lock", "started", "exit.json", "canceled", "sock"
#: Room for ``exit.json``, and the file that becomes ``started``, made before the disk can be full.
EXIT_RESERVED, STARTED_RESERVED = "exit.new", "started.new"
EXIT_ROOM = 4096
#: What sealing has left out so far; there is none as long as it has left out nothing.
LEFT_OUT = "left_out"
#: In ``run/`` itself.
LAUNCHER_SOCKET, LAUNCHER_LOCK = "launcher.sock", "launcher.lock"

#: A larger message goes as a memfd. Linux takes packets up to the send buffer, 208 KiB by default.
PACKET_BYTES = 64 * 1024
#: Of a memfd. The largest job, which came in 16 MiB of JSON, has less; one without a bound would
#: take the memory of whoever reads it.
_MEMFD_BYTES = 256 << 20
MAX_FDS = 4

# As plain integers: the enum's operators cost more than the system call.
_NO_SIGNAL, _CLOEXEC = int(socket.MSG_NOSIGNAL), int(socket.MSG_CMSG_CLOEXEC)
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * 4)
_decoder = json.JSONDecoder()
_encoder = json.JSONEncoder(separators=(",", ":"))

#: ``flock64``: type, whence, start, length, pid; pid must be 0 for OFD locks (fcntl(2)).
_FLOCK = struct.Struct("@hhqqi0q")

Message = dict[str, Any]


class Usage(TypedDict, total=False):
    """What an attempt took. Times: microseconds; sizes: bytes.

    Where it had a cgroup this counts all that was in it, else what was waited for. From
    ``memory_peak`` on, what no controller counts is not there.
    """

    user_us: int
    system_us: int
    #: The most memory that all of it had at one time, with what it had the kernel cache of files.
    memory_peak: int
    #: The most processes and threads at one time.
    processes_peak: int
    #: Processes that the kernel killed for want of memory, its own limit's or the machine's.
    oom_kills: int
    #: How often it could not have another process for the limit of them.
    refused_forks: int


class Facts(Usage, total=False):
    """How an attempt ended, as its supervisor saw it. Times: microseconds; sizes: bytes."""

    format: int
    #: When its exec had succeeded, and as what; None: it was not started.
    started_at: int | None
    pid: int | None
    finished_at: int
    exit_code: int | None
    signal: int | None
    #: ``cancel``, ``timeout``, ``shutdown``: who ended it; None: itself.
    ended_by: str | None
    #: A sentence: why the program could not be started.
    cannot_start: str | None
    #: ... because of the disk: the job is not to blame.
    storage: bool
    #: The most memory of its largest process. 0: no more than a supervisor has, which the kernel
    #: does not tell apart.
    max_rss: int
    #: How often the kernel's OOM killer struck anywhere on the machine while it ran; None: nobody
    #: looked, as it ran for a moment only.
    machine_oom_kills: int | None
    #: ``pid command`` of what SIGKILL did not end.
    undead: list[str]
    #: Containers run that were started meanwhile, by whomever: those of its own are to be ended.
    containers: bool
    #: Log name -> True where the file system could not give room back.
    kept_whole: list[str]


def check_key(job_id: object, attempt: object) -> None:
    """Refuse what would lead out of our folders.

    Raises:
        ValueError: it is no job's id, or no attempt's number.
    """
    letters = job_id[4:] if isinstance(job_id, str) and job_id.startswith("job_") else ""
    # True is 1, but not in a name.
    is_number = type(attempt) is int and attempt >= 0
    if not (letters.isascii() and letters.isalnum() and is_number):
        raise ValueError(f"no job and attempt: {job_id!r}, {attempt!r}")


def folder_name(job_id: str, attempt: int) -> str:
    return f"{job_id}.{attempt}"


def package_name(job_id: str, *, is_sealed: bool) -> str:
    return job_id if is_sealed else f".{job_id}"


def gone_name(job_id: str) -> str:
    """Return what a sealed package is called while it is removed."""
    return f".gone_{job_id}"


def left_name(job_id: str) -> str:
    """Return where what another user made in a package is set apart; it goes with the package."""
    return f".left_{job_id}"


def try_lock(fd: int) -> bool:
    """Take the write lock of an open ``lock`` file; False when another holds it.

    The lock belongs to the open file description (F_OFD_SETLK): children inherit it, and closing
    another descriptor of the same file does not drop it.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_locked(fd: int) -> bool:
    """Tell whether somebody else holds a write lock. A read lock does not count."""
    asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    found = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    return bool(found[0] == fcntl.F_WRLCK)


def encode(message: Message) -> bytes:
    return _encoder.encode(message).encode()


def decode(data: bytes) -> Any:
    """Read JSON without white space around it.

    Raises:
        ValueError: it is none, or something follows.
    """
    text = data.decode()
    # ``loads`` looks for white space with regular expressions, at the cost of half a message.
    value, end = _decoder.raw_decode(text)
    if end != len(text):
        raise ValueError("something follows")
    return value


def send_packet(sock: socket.socket, packet: bytes, fds: list[int] | None = None) -> None:
    """Send an encoded message with descriptors.

    Raises:
        BlockingIOError: a non-blocking socket is full; nothing was sent.
        ConnectionError: the other side is gone.
        OSError: there is no descriptor or memory for it; nothing was sent.
    """
    fds = fds or []
    if len(packet) <= PACKET_BYTES:
        if fds:
            socket.send_fds(sock, [packet], fds, _NO_SIGNAL)
        else:
            sock.send(packet, _NO_SIGNAL)
        return
    memory = sealed_memory(packet)
    try:
        socket.send_fds(sock, [b'{"memfd":1}'], [*fds, memory], _NO_SIGNAL)
    finally:
        os.close(memory)


def send(sock: socket.socket, message: Message, fds: list[int] | None = None) -> None:
    send_packet(sock, encode(message), fds)


def receive(
    sock: socket.socket, decode: Callable[[bytes], Any] = decode
) -> tuple[Message, list[int]] | None:
    """Return the next message and its descriptors (close-on-exec), or None at end-of-file.

    Args:
        decode: reads JSON, and raises ValueError for what is none.

    Raises:
        BlockingIOError: nothing is there on a non-blocking socket.
        ValueError: not a message; its descriptors are closed.
    """
    try:
        received = sock.recvmsg(PACKET_BYTES + 1, _ANCILLARY_BYTES, _CLOEXEC)
    except ConnectionResetError:
        # Said once and first when the other side went without having read all that we had sent;
        # what it had sent itself is still to be read.
        received = sock.recvmsg(PACKET_BYTES + 1, _ANCILLARY_BYTES, _CLOEXEC)
    data, ancillary, flags, _ = received
    fds = _descriptors(ancillary) if ancillary else []
    if not data:
        close_all(fds)
        return None
    try:
        if flags & _CUT:
            raise ValueError("a packet larger than the protocol allows")
        message = decode(data)
        if "memfd" in message:
            message = decode(_read_sealed(fds.pop()))
        if not isinstance(message, dict):
            raise ValueError("a packet that is no object")
    except (ValueError, TypeError, IndexError, RecursionError, MemoryError, OSError) as error:
        close_all(fds)
        raise ValueError(f"not a message: {error}") from None
    return message, fds


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def peer_uid(sock: socket.socket) -> int:
    """Return the uid of who connected, or of who listens (SO_PEERCRED, unix(7))."""
    return _peer(sock)[1]


def peer_pid(sock: socket.socket) -> int:
    """Return the pid of the process that listens at the other end of a connection."""
    return _peer(sock)[0]


def _peer(sock: socket.socket) -> tuple[int, int]:
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid), int(uid)


def address(directory_fd: int, name: str) -> str:
    """Return a socket address for a name in an open directory, however long its real path is."""
    return f"/proc/self/fd/{directory_fd}/{name}"


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def sealed_memory(data: bytes) -> int:
    """Return a memfd with this in it, which nobody can change any more."""
    memory = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(memory, "wb", closefd=False) as file:
        file.write(data)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    return memory


def is_sealed(memory: int) -> bool:
    """Tell whether this is a memfd that its sender can no longer change."""
    try:
        seals = fcntl.fcntl(memory, fcntl.F_GET_SEALS)
    except OSError:
        # No memfd at all.
        return False
    wanted = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK
    return seals & wanted == wanted


def _read_sealed(memory: int) -> bytes:
    """Read and close a memfd; refuse one that its sender could still change."""
    try:
        if not is_sealed(memory):
            raise ValueError("a memfd that is not sealed")
        size = os.fstat(memory).st_size
        if size > _MEMFD_BYTES:
            raise ValueError("a memfd larger than any message")
        return os.pread(memory, size, 0)
    finally:
        os.close(memory)
