"""A supervisor: owns one attempt at a time, outlives the daemon and the launcher.

Its sockets: ``control`` to the launcher that forked it, which hands it attempts; and a connection
to the daemon, which came with an attempt. When the daemon goes, the supervisor listens in its
run folder, where the next daemon finds it. When the launcher goes, it ends after its attempt.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from aitbcd.launcher import errand, logs, processes, protocol, seal, signals
from aitbcd.launcher import folder as run_folder
from aitbcd.launcher.attempt import Attempt
from aitbcd.launcher.errand import Errand
from aitbcd.launcher.linux import become_subreaper
from aitbcd.launcher.protocol import SOCKET, Message

#: A job that is over sooner is reported once, with its end.
_ANNOUNCE_S = 0.01
#: poll(2) takes no more than 24 days; a job may.
_LONGEST_WAIT_S = 24 * 3600.0
#: Pause before one that could not listen for the next daemon tries again.
_LISTEN_AGAIN_S = 1.0
#: How often a sealer is killed that is to end, and the pause between: it may hang in the kernel.
_STOP_TRIES, _STOP_PAUSE_S = 40, 0.05


class Supervisor:
    """``run`` is the whole life of the process; the rehearsal takes the turns itself."""

    def __init__(
        self,
        control: socket.socket,
        run_fd: int,
        results_fd: int,
        daemon_uid: int,
        groups: str | None,
    ) -> None:
        """Take over what a child of the launcher keeps; ``groups`` as for ``Attempt``."""
        self._spare = run_folder.spare_name(os.getpid())
        self._wakeup: tuple[int, int] = (-1, -1)
        #: Kept from one attempt to the next; its name is the attempt's, or the spare one.
        self._folder: run_folder.Folder | None = None
        self._control: socket.socket | None = control
        self._run_fd = run_fd
        self._results_fd = results_fd
        self._daemon_uid = daemon_uid
        self._groups = groups
        self._daemon: socket.socket | None = None
        self._is_adopted = False
        self._listener: socket.socket | None = None
        self._attempt: Attempt | None = None
        self._log_fd: int | None = None
        #: Seals what is large.
        self._sealer: Errand | None = None
        #: When to say that the program runs; None: it is said, or there is nothing to say.
        self._announce_at: float | None = None
        #: When to try again to listen; None: it does, or need not.
        self._listen_at: float | None = None
        self._was_reported = False
        self._poller = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def run(self) -> None:
        self.open()
        while self.has_work():
            self.turn()
        self._leave()

    def open(self) -> None:
        become_subreaper()
        self._listen_to_signals()
        if self._control:
            self._add(self._control.fileno(), self._on_control)

    def turn(self) -> None:
        for fd, _ in self._poller.poll(self._timeout_ms()):
            # An earlier handler of this turn may have closed it.
            if handler := self._handlers.get(fd):
                handler()
        self._look_after_attempt()

    def look(self) -> None:
        """Do now what is done when a program has run for a moment."""
        if self._attempt:
            self._attempt.look(time.monotonic())

    def close(self) -> None:
        """Let go of all that is kept, in a process that goes on."""
        self._leave()
        self._leave_launcher()
        self._drop_daemon()
        self._stop_listening()
        logs.forget_watch()
        signal.set_wakeup_fd(-1)
        protocol.close_all(list(self._wakeup))

    def _leave(self) -> None:
        """Remove the folder that was kept for a next attempt."""
        if self._folder:
            try:
                run_folder.remove(self._run_fd, self._folder, self._spare)
            except OSError:
                # The next launcher clears what is left.
                pass
            self._folder = None

    def has_work(self) -> bool:
        return self._control is not None or self._attempt is not None

    def _listen_to_signals(self) -> None:
        self._wakeup = signals.open_wakeups()
        signals.at_stop(self._on_shutdown)
        reading = self._wakeup[0]
        self._add(reading, lambda: self._on_wakeup(reading))

    def _on_wakeup(self, fd: int) -> None:
        signals.take(fd)
        if self._attempt:
            self._attempt.reap()

    def _on_shutdown(self) -> None:
        """The machine or the whole service stops in order: what ends now is not the job's fault."""
        if self._attempt:
            self._attempt.end("shutdown", self._attempt.spec["grace_s"])

    def _timeout_ms(self) -> int | None:
        if self._attempt is None:
            return None
        times = [self._listen_at]
        if self._attempt.facts is None:
            times += [self._attempt.wake_at, self._announce_at]
        wake_at = min((when for when in times if when is not None), default=None)
        if wake_at is None:
            return None
        wait_s = min(wake_at - time.monotonic(), _LONGEST_WAIT_S)
        return max(0, int(wait_s * 1000) + 1)

    def _look_after_attempt(self) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        attempt.tick()
        if self._listen_at is not None and time.monotonic() >= self._listen_at:
            self._listen()
        if self._announce_at is not None and time.monotonic() >= self._announce_at:
            self._tell_running(attempt)
        self._follow_log_watch(attempt)
        if attempt.facts is not None and not self._was_reported:
            self._was_reported = True
            self._tell_exited(attempt)

    def _follow_log_watch(self, attempt: Attempt) -> None:
        fd = attempt.logs.fd if attempt.logs else None
        if fd == self._log_fd:
            return
        if self._log_fd is not None:
            self._forget(self._log_fd)
        self._log_fd = fd
        if fd is not None:
            self._add(fd, self._on_log)

    def _on_log(self) -> None:
        if self._attempt and self._attempt.logs:
            self._attempt.logs.on_write(time.monotonic())

    # -- the launcher -----------------------------------------------------------------------

    def _on_control(self) -> None:
        assert self._control is not None
        received = protocol.receive(self._control)
        if received is None:
            self._leave_launcher()
            return
        spec, fds = received
        if self._folder is None:
            self._folder = run_folder.Folder(fds[0], fds[1])
            fds = fds[2:]
        if fds:
            self._use_daemon(socket.socket(fileno=fds[0]))
        self._begin(Attempt(spec, self._folder, self._groups))

    def _leave_launcher(self) -> None:
        """Take no further attempt."""
        if self._control:
            self._forget(self._control.fileno())
            self._control.close()
            self._control = None

    def _begin(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._was_reported = False
        if self._daemon is None:
            self._listen()
        attempt.begin(self._results_fd)
        if attempt.started_at is not None:
            self._announce_at = time.monotonic() + _ANNOUNCE_S
            # Its SIGCHLD may have come before its pid was known.
            attempt.reap()

    # -- the daemon -------------------------------------------------------------------------

    def _use_daemon(self, connection: socket.socket) -> None:
        self._drop_daemon()
        self._daemon = connection
        self._add(connection.fileno(), self._on_daemon)

    def _drop_daemon(self) -> None:
        if self._daemon:
            self._forget(self._daemon.fileno())
            self._daemon.close()
            self._daemon = None
            self._is_adopted = False

    def _on_daemon(self) -> None:
        assert self._daemon is not None
        try:
            received = protocol.receive(self._daemon)
        except (ValueError, OSError):
            received = None
        if received is None:
            self._hang_up()
            return
        message, fds = received
        try:
            self._obey(message, fds[0] if fds else None)
        except Exception:
            # No request, or a bug of ours: that is no reason to leave a job alone.
            sys.excepthook(*sys.exc_info())
            self._hang_up()
        finally:
            protocol.close_all(fds)

    def _hang_up(self) -> None:
        self._drop_daemon()
        if self._attempt:
            self._listen()

    def _obey(self, message: Message, samples: int | None) -> None:
        attempt = self._attempt
        if attempt is None or (message["job"], message["attempt"]) != (
            attempt.spec["job"],
            attempt.spec["attempt"],
        ):
            return
        match message["op"]:
            case "cancel":
                attempt.end("cancel", message["grace_s"])
            case "stop_seal" if self._sealer:
                self._stop_sealer(self._sealer)
            case "seal" if attempt.facts and not self._sealer:
                self._seal(attempt, _kept_to(attempt.spec, message), samples)
            case "done" if attempt.facts:
                self._done(attempt)

    def _seal(self, attempt: Attempt, order: Message, samples: int | None) -> None:
        """Seal a small package at once; what takes long is done by a child, so that we hear."""
        try:
            self._tell(seal.report(self._results_fd, order, attempt.folder.fd, samples))
        except seal.Heavy:
            self._send_sealer(attempt, order, samples)

    def _send_sealer(self, attempt: Attempt, order: Message, samples: int | None) -> None:
        """Seal while the lock of the folder says that somebody is at it."""
        folder, run_fd, results_fd = attempt.folder, self._run_fd, self._results_fd
        kept = [run_fd, results_fd, *folder, *([] if samples is None else [samples])]

        def action() -> Message:
            return seal.report(results_fd, order, folder.fd, samples, turns_fd=run_fd)

        try:
            self._sealer = errand.send(action, *kept)
        except OSError as error:
            self._tell(seal.failure(error))
            return
        self._add(self._sealer.pidfd, self._on_sealed)

    def _on_sealed(self) -> None:
        """Pass on what the sealer said before it ended."""
        assert self._sealer is not None
        sealer, self._sealer = self._sealer, None
        self._forget(sealer.pidfd)
        killed = OSError(errno.EOWNERDEAD, "its process was ended from outside")
        self._tell(sealer.end() or seal.failure(killed))

    def _stop_sealer(self, sealer: Errand) -> None:
        """End it with the child that it may have; its end is then told as that of any other."""
        signal.pidfd_send_signal(sealer.pidfd, signal.SIGKILL)
        for _ in range(_STOP_TRIES):
            if not processes.end_all(_reap_some):
                break
            select.select([], [], [], _STOP_PAUSE_S)

    def _done(self, attempt: Attempt) -> None:
        """The end is recorded: be free for the next attempt, if nothing is left of this one."""
        self._stop_listening()
        self._attempt = None
        if self._is_adopted:
            # The launcher gives the next attempt a channel of its own.
            self._drop_daemon()
        name = protocol.folder_name(attempt.spec["job"], attempt.spec["attempt"])
        if not _is_alone():
            # What would not die is the launcher's to reap.
            self._leave_launcher()
        if self._control is None:
            self._folder = None
            run_folder.remove(self._run_fd, attempt.folder, name)
            return
        run_folder.recycle(self._run_fd, attempt.folder, name, self._spare)
        self._become_free()

    def _become_free(self) -> None:
        assert self._control is not None
        try:
            self._control.send(b'{"op":"idle"}', socket.MSG_NOSIGNAL)
        except OSError:
            # The launcher is gone: its end-of-file comes next.
            pass

    def _tell_running(self, attempt: Attempt) -> None:
        self._announce_at = None
        self._tell({"op": "running", "at": attempt.started_at, "pid": attempt.pid})

    def _tell_exited(self, attempt: Attempt) -> None:
        self._announce_at = None
        self._tell({"op": "exited", "facts": attempt.facts})

    def _tell(self, message: Message) -> None:
        """Say it if somebody listens; if not, the next daemon asks, or reads the files."""
        attempt = self._attempt
        if self._daemon is None or attempt is None:
            return
        about: dict[str, Any] = {"job": attempt.spec["job"], "attempt": attempt.spec["attempt"]}
        try:
            protocol.send(self._daemon, message | about)
        except OSError:
            # Gone, or it cannot be told: its end-of-file comes next, and a daemon looks again.
            self._daemon.shutdown(socket.SHUT_RDWR)

    # -- the next daemon ----------------------------------------------------------------------

    def _listen(self) -> None:
        """Be found: a socket in the run folder, for the daemon's user alone."""
        assert self._attempt is not None
        self._listen_at = None
        if self._listener:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # It may be there from a try that got no further.
            run_folder.unlink(self._attempt.folder.fd, SOCKET)
            listener.bind(protocol.address(self._attempt.folder.fd, SOCKET))
            os.chmod(SOCKET, 0o660, dir_fd=self._attempt.folder.fd)
            listener.listen(4)
        except OSError:
            # A full disk. While we have the folder nobody else can see to the attempt.
            listener.close()
            self._listen_at = time.monotonic() + _LISTEN_AGAIN_S
            return
        self._listener = listener
        self._add(listener.fileno(), self._on_connect)

    def _stop_listening(self) -> None:
        self._listen_at = None
        if self._listener:
            self._forget(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _on_connect(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        attempt = self._attempt
        if attempt is None or protocol.peer_uid(connection) not in (self._daemon_uid, 0):
            connection.close()
            return
        self._use_daemon(connection)
        self._is_adopted = True
        if attempt.started_at is not None:
            self._tell_running(attempt)
        if attempt.facts is not None:
            self._tell_exited(attempt)

    # -- the loop -----------------------------------------------------------------------------

    def _add(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poller.register(fd, select.POLLIN)

    def _forget(self, fd: int) -> None:
        del self._handlers[fd]
        self._poller.unregister(fd)


def _kept_to(spec: Message, order: Message) -> Message:
    """Return the order for whom the launcher has allowed; a daemon that was taken over may lie."""
    order = order | {key: spec[key] for key in ("uid", "gid", "user")}
    # One before an upgrade does not say at the start what is to be collected.
    return seal.collecting_of(order, spec) if "artifacts" in spec else order


def _reap_some() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def _is_alone() -> bool:
    """Tell whether no child is left: of the job, or one that a deadline gave up."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return True
    return False
