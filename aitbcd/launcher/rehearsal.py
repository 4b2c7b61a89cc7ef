"""Live through some attempts of nothing before the first supervisor is forked.

CPython (3.11 and later) rewrites the bytecode of what it runs, and fills caches. Done here once,
those pages are shared by all supervisors; done in each, they cost each of them half a megabyte.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any

from aitbcd.launcher import folder, logs, package, protocol
from aitbcd.launcher.protocol import Message
from aitbcd.launcher.supervisor import Supervisor

_STAGE = folder.TEMPORARY + "rehearsal"
_TIMES = 8


def rehearse(run_fd: int, groups: str | None) -> None:
    """Make a folder in ``run/``, let attempts run and be sealed in it, and remove it.

    A crash leaves what ``folder.clear_temporary`` removes with all that is in it.
    """
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


class _Broken(BaseException):
    """What a supervisor would outlive for the sake of its job."""


class _Rehearsal(Supervisor):
    """A supervisor whose launcher and daemon are played by itself."""

    def __init__(self, stage: int, groups: str | None) -> None:
        self._launcher_end, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._daemon_end, self._channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(control, stage, stage, os.getuid(), groups)
        self._stage = stage
        self._left = _TIMES
        self._hand_over([*self._build(), self._channel.detach()])

    def _build(self) -> list[int]:
        made = folder.build(self._stage, self._spare)
        return list(made)

    def _hand_over(self, fds: list[int]) -> None:
        spec = _spec(self._left)
        name = protocol.folder_name(spec["job"], spec["attempt"])
        folder.publish(self._stage, self._spare, name)
        protocol.send(self._launcher_end, spec, fds)
        protocol.close_all(fds)

    def _obey(self, message: Message, samples: int | None) -> None:
        try:
            super()._obey(message, samples)
        except OSError as error:
            raise _Broken from error

    def _tell(self, message: Message) -> None:
        super()._tell(message)
        if self._attempt and self._attempt.logs:
            # A job that is over so soon never comes to it.
            self._attempt.logs.look(time.monotonic())
        job = _spec(self._left)
        match message["op"]:
            case "exited":
                protocol.send(self._daemon_end, {"op": "seal", **job})
            case "sealed" | "seal_failed":
                protocol.send(self._daemon_end, {"op": "done", **job})

    def _become_free(self) -> None:
        super()._become_free()
        protocol.receive(self._launcher_end)
        self._left -= 1
        if self._left:
            self._hand_over([])
        else:
            self._launcher_end.close()

    def _on_shutdown(self, *_: object) -> None:
        os._exit(0)

    def run(self) -> None:
        super().run()
        self._daemon_end.close()
        self._drop_daemon()
        logs.forget_watch()
        signal.set_wakeup_fd(-1)
        protocol.close_all(list(self._wakeup))


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
