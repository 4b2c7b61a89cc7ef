"""Live through some attempts of nothing before the first supervisor is forked.

CPython (3.11 and later) rewrites the bytecode of what it runs, and fills caches. Done here once,
those pages are shared by all supervisors; done in each, they cost each of them half a megabyte.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from aitbcd.launcher import folder, package, processes, protocol
from aitbcd.launcher.protocol import Message
from aitbcd.launcher.supervisor import Supervisor

_STAGE = folder.TEMPORARY + "rehearsal"
_TIMES = 8


def rehearse(run_fd: int, groups: str | None) -> None:
    """Make a folder in ``run/``, let attempts run and be sealed in it, and remove it.

    A crash leaves what ``folder.clear_temporary`` removes with all that is in it.
    """
    if processes.own_children():
        # Of whoever became us. A supervisor ends all that is below it.
        return
    try:
        os.mkdir(_STAGE, 0o700, dir_fd=run_fd)
        stage = os.open(_STAGE, package.DIRECTORY, dir_fd=run_fd)
    except OSError:
        return
    try:
        _Rehearsal(stage, groups).run()
    except (OSError, _Broken):
        # A full disk, say: supervisors then warm up on their own.
        pass
    finally:
        folder.discard(run_fd, _STAGE)
        os.close(stage)


class _Broken(Exception):
    """The supervisor of the rehearsal gave up, as on a full disk."""


class _Rehearsal:
    """A supervisor, and its launcher and daemon, who answer it between its turns.

    It is no subclass: what is cached is cached for the class whose code it is.
    """

    def __init__(self, stage: int, groups: str | None) -> None:
        self._stage = stage
        self._left = _TIMES
        self._launcher, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._daemon, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._launcher.setblocking(False)
        self._daemon.setblocking(False)
        self._supervisor = Supervisor(control, stage, stage, os.getuid(), groups)
        made = folder.build(stage, self._spare)
        self._hand_over([*made, channel.detach()])

    @property
    def _spare(self) -> str:
        return folder.spare_name(os.getpid())

    def run(self) -> None:
        self._supervisor.open()
        try:
            while self._supervisor.has_work():
                self._supervisor.turn()
                self._answer()
        finally:
            self._launcher.close()
            self._daemon.close()
            self._supervisor.close()

    def _answer(self) -> None:
        job = _spec(self._left)
        for message in _all_from(self._daemon):
            match message["op"]:
                case "running":
                    # A job that is over so soon never comes to it.
                    self._supervisor.look()
                case "exited":
                    protocol.send(self._daemon, {"op": "seal", **job})
                case "sealed" | "seal_failed":
                    protocol.send(self._daemon, {"op": "done", **job})
        if _all_from(self._launcher):
            self._left -= 1
            if self._left:
                self._hand_over([])
            else:
                self._launcher.close()

    def _hand_over(self, fds: list[int]) -> None:
        spec = _spec(self._left)
        name = protocol.folder_name(spec["job"], spec["attempt"])
        folder.publish(self._stage, self._spare, name)
        protocol.send(self._launcher, spec, fds)
        protocol.close_all(fds)


def _all_from(sock: socket.socket) -> list[Message]:
    """Return what is there to be read."""
    found: list[Message] = []
    while sock.fileno() >= 0:
        try:
            received = protocol.receive(sock)
        except BlockingIOError:
            break
        if received is None:
            raise _Broken
        found.append(received[0])
    return found


def _spec(number: int) -> dict[str, Any]:
    return {
        "job": f"job_{number}",
        "attempt": 1,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "user": "",
        # One that is long enough to be told of, and shorter ones.
        "argv": ["sleep", "0.012"] if number > _TIMES - 2 else ["true"],
        "env": {"PATH": "/usr/bin:/bin"},
        "cwd": "/",
        "umask": 0o022,
        "stdin": None,
        "timeout_s": 5.0,
        "grace_s": 0.0,
        "log_limit": 1 << 20,
        "artifacts": [],
        "output": {},
    }
