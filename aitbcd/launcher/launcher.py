"""The launcher: makes run folders, forks supervisors, hands them attempts. It obeys one daemon.

It knows nothing of HTTP, SQL or scheduling, and decides nothing. A new daemon is heard only when
all that the old one asked has been dealt with: its packets come before its end-of-file (unix(7)),
and only then is the next connection accepted. So after the answer to ``hello`` no launch is in
flight, and a scan of ``run/`` is the whole truth.

It is the subreaper of what its supervisors leave: when one is killed, what it had started becomes
our child, whatever it did to its session or environment, and is ended here.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from aitbcd import __version__
from aitbcd.launcher import cgroups, containers, errand, package, processes, protocol, seal, signals
from aitbcd.launcher import folder as run_folder
from aitbcd.launcher.errand import Errand
from aitbcd.launcher.folder import Folder, Taken
from aitbcd.launcher.identity import do_as, of_spec
from aitbcd.launcher.jobgroup import JobGroup
from aitbcd.launcher.linux import (
    be_called,
    become_subreaper,
    close_all_but,
    highest_descriptor,
    use_batch_scheduling,
)
from aitbcd.launcher.protocol import CANCELED, LAUNCHER_LOCK, LAUNCHER_SOCKET, Message
from aitbcd.launcher.rehearsal import rehearse
from aitbcd.launcher.removal import remove_package
from aitbcd.launcher.rules import Refusal, Rules
from aitbcd.launcher.supervisor import Supervisor

#: Idle supervisors that are kept, each has two megabytes of its own, half of one before its first
#: attempt; and at most, as long as they are needed every so many seconds.
_KEEP_IDLE, _KEEP_IDLE_MOST, _IDLE_S = 8, 64, 2.0
#: Supervisors that are forked at a time.
_AT_ONCE = 4
#: How long the first daemon may take to connect; it may have been killed meanwhile.
_PATIENCE_S = 60.0
_IN_A_USERS_NAME = frozenset({"start", "seal", "sweep", "remove_package"})
#: Why nothing of what a job asked for is collected.
_UNPROVEN = "not collected: nothing is left that shows who asked for it"
#: How often a leftover is killed before it is reported as unkillable, and the pause between.
_SWEEPS, _SWEEP_PAUSE_S = 40, 0.05


class Worker:
    """A supervisor as its launcher sees it."""

    def __init__(self, number: int, pid: int, pidfd: int, control: socket.socket) -> None:
        self.number = number
        self.pid = pid
        self.pidfd = pidfd
        self.control = control
        #: The run folder of the attempt that it was given last.
        self.attempt = ""
        #: It has a run folder, which it keeps.
        self.has_folder = False
        #: The daemon connection that holds the other end of its channel; 0: none yet.
        self.generation = 0
        #: It was idle, so nothing is left of its attempts, and is to end.
        self.is_dismissed = False


class Task(NamedTuple):
    """A child that seals, sweeps or removes, and what its answer belongs to."""

    errand: Errand
    rid: int
    generation: int
    #: The job, "" for none, and the attempt.
    key: tuple[str, int | None]


class Launcher:
    """``run`` is the whole life of the process."""

    def __init__(
        self, state_fd: int, *, is_lasting: bool, daemon_uid: int, rules: Rules | None = None
    ) -> None:
        """Open the folders; ``rules`` where the daemon is another user, who must not have them."""
        self._rules = rules
        if rules is not None:
            run_folder.make_apart(state_fd)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._run_fd = os.open("run", flags, dir_fd=state_fd)
        self._results_fd = os.open("results", flags, dir_fd=state_fd)
        self._cgroups = cgroups.find()
        #: False: end when there is no daemon and no attempt.
        self._is_lasting = is_lasting
        self._daemon_uid = daemon_uid
        self._listener: socket.socket | None = None
        self._daemon: socket.socket | None = None
        self._generation = 0
        self._workers: dict[int, Worker] = {}
        self._tasks: dict[int, Task] = {}
        #: Children of ours that have outlived all that was done to end them, and what descended
        #: from them then: what root has made of itself, or what hangs in the kernel.
        self._survivors: frozenset[tuple[int, int]] = frozenset()
        #: The one that was given an attempt last is last.
        self._idle: list[Worker] = []
        #: The fewest that were idle since it was last looked whether there are too many, and when
        #: that is next (monotonic); None: there are not.
        self._unused = 0
        self._look_at: float | None = None
        self._count = 0
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}

    # -- life -------------------------------------------------------------------------------

    def open(self) -> None:
        """Become the one launcher of this state directory and listen.

        Raises:
            BlockingIOError: there is one already.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(LAUNCHER_LOCK, flags, 0o640, dir_fd=self._run_fd)
        if not protocol.try_lock(self._lock):
            raise BlockingIOError(errno.EAGAIN, "another launcher serves this state directory")
        become_subreaper()
        run_folder.clear_temporary(self._run_fd)
        if run_folder.has(self._run_fd, LAUNCHER_SOCKET):
            os.unlink(LAUNCHER_SOCKET, dir_fd=self._run_fd)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(protocol.address(self._run_fd, LAUNCHER_SOCKET))
        os.chmod(LAUNCHER_SOCKET, 0o660, dir_fd=self._run_fd)
        self._listener.listen(16)
        self._clear_groups()
        self._add(self._listener.fileno(), self._on_connect)
        signals.listen()
        signals.at_stop(self._stop)
        if self._rules:
            signals.at_reload(self._rules.reload)

    def run(self) -> None:
        be_called(b"aitbcd-launcher")
        use_batch_scheduling()
        with signals.held():
            rehearse(self._run_fd, self._cgroups.jobs)
        wakeups, _ = signals.open_wakeups()
        self._add(wakeups, lambda: signals.take(wakeups))
        # What is there now is shared with every supervisor; a collection would copy it.
        gc.collect()
        gc.disable()
        gc.freeze()
        while not self._is_done():
            # One at a time: what one handler closes, another may open again under its number.
            found = self._poll.poll(self._timeout_s(), 1)
            if found:
                self._handlers[found[0][0]]()
            elif self._look_at is None:
                return
            if self._look_at is not None and time.monotonic() >= self._look_at:
                self._dismiss_unused()

    def _timeout_s(self) -> float | None:
        if self._look_at is not None:
            return max(0.0, self._look_at - time.monotonic())
        return _PATIENCE_S if self._generation == 0 and not self._is_lasting else None

    def _stop(self) -> None:
        """Supervisors go on; a new launcher does without the ones that are busy."""
        os._exit(0)

    def _is_done(self) -> bool:
        if self._is_lasting or self._daemon or self._generation == 0:
            return False
        if len(self._idle) < len(self._workers) or self._tasks:
            return False
        # The next daemon may be waiting already.
        return not self._poll.poll(0, 1)

    # -- the daemon -------------------------------------------------------------------------

    def _on_connect(self) -> None:
        """Serve the next daemon. Called only while there is none: see the head of this file."""
        assert self._listener is not None
        connection, _ = self._listener.accept()
        if protocol.peer_uid(connection) not in (self._daemon_uid, 0):
            connection.close()
            return
        self._forget(self._listener.fileno())
        self._generation += 1
        self._daemon = connection
        self._add(connection.fileno(), self._on_daemon)

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
            if self._is_allowed(message):
                self._obey(message, fds[0] if fds else None)
        except Exception:
            # No request, or a bug of ours: the daemon connects anew, and looks at the files.
            _report_crash()
            self._hang_up()
        finally:
            protocol.close_all(fds)

    def _hang_up(self) -> None:
        assert self._daemon is not None
        assert self._listener is not None
        self._forget(self._daemon.fileno())
        self._daemon.close()
        self._daemon = None
        self._add(self._listener.fileno(), self._on_connect)

    def _obey(self, message: Message, samples: int | None) -> None:
        match message["op"]:
            case "hello":
                place = {
                    "folder": self._cgroups.jobs,
                    "controllers": self._cgroups.controllers,
                }
                answer = {
                    "pid": os.getpid(),
                    "version": protocol.VERSION,
                    "release": __version__,
                    "cgroups": place,
                }
                self._reply(message, answer)
            case "start":
                self._start(message)
            case "tombstone":
                self._reply(message, {"done": self._tombstone(message)})
            case "remove":
                self._reply(message, {"done": self._remove(message)})
            case "seal":
                self._fork_task(message, lambda: self._seal(message, samples), samples)
            case "sweep":
                self._bury()
                group = self._group(protocol.folder_name(message["job"], message["attempt"]))
                self._fork_task(message, lambda: self._sweep(message, group))
            case "containers":
                self._fork_task(message, lambda: self._containers(message))
            case "stop_seal":
                self._reply(message, {"done": self._stop_seal(message)})
            case "remove_package":
                self._fork_task(message, lambda: self._remove_package(message))
            case unknown:
                self._reply(message, {"error": f"unknown request {unknown}"})

    def _is_allowed(self, message: Message) -> bool:
        """Refuse what a daemon that was taken over might ask: it has to do with files of others."""
        if "job" in message:
            protocol.check_key(message["job"], message.get("attempt", 0))
        if self._rules is None or message["op"] not in _IN_A_USERS_NAME:
            return True
        try:
            self._rules.check(message)
        except Refusal as refusal:
            why = str(refusal)
            answers: dict[str, Message] = {
                "seal": seal.failure(PermissionError(errno.EPERM, why)),
                "sweep": {"left": []},
            }
            refused = {"op": "refused", "why": "forbidden", "error": why}
            self._reply(message, answers.get(message["op"], refused))
            return False
        return True

    def _reply(self, request: Message, answer: Message, fds: list[int] | None = None) -> None:
        self._answer(request["rid"], self._generation, answer, fds)

    def _answer(
        self, rid: int, generation: int, answer: Message, fds: list[int] | None = None
    ) -> None:
        if self._daemon is None or generation != self._generation:
            return
        try:
            protocol.send(self._daemon, answer | {"rid": rid}, fds)
        except OSError:
            # Gone, or it cannot be told: its end-of-file comes next, and a new one scans.
            self._daemon.shutdown(socket.SHUT_RDWR)

    # -- attempts ---------------------------------------------------------------------------

    def _start(self, spec: Message) -> None:
        if self._rules:
            self._rules.restrict(spec)
        name = protocol.folder_name(spec["job"], spec["attempt"])
        worker = self._idle.pop() if self._idle else None
        self._unused = min(self._unused, len(self._idle))
        try:
            if worker is None:
                self._fork_workers()
                worker = self._idle.pop()
            self._place(worker, spec, name)
        except Taken as taken:
            self._reply(spec, {"op": "refused", "why": taken.why, "error": str(taken)})
        except OSError as error:
            why = f"no run folder or supervisor: {error.strerror}"
            self._reply(spec, {"op": "refused", "why": "storage", "error": why})
        else:
            return
        if worker:
            self._idle.append(worker)

    def _place(self, worker: Worker, spec: Message, name: str) -> None:
        """Give a supervisor a locked folder of this name, and the attempt that goes with it."""
        spare = run_folder.spare_name(worker.pid)
        folder: Folder | None = None
        channel: tuple[socket.socket, ...] = ()
        try:
            if worker.generation != self._generation:
                channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if not worker.has_folder:
                folder = run_folder.build(self._run_fd, spare)
            run_folder.publish(self._run_fd, spare, name)
            worker.attempt = name
            self._hand_over(worker, spec, folder, channel)
        except BaseException:
            if folder:
                run_folder.discard(self._run_fd, spare)
            raise
        finally:
            if folder:
                folder.close()
            for each in channel:
                each.close()

    def _hand_over(
        self,
        worker: Worker,
        spec: Message,
        folder: Folder | None,
        channel: tuple[socket.socket, ...],
    ) -> None:
        # Both descriptors carry the lock until we have let go of ours.
        fds = [folder.fd, folder.lock] if folder else []
        worker.has_folder = True
        worker.generation = self._generation
        theirs, ours = channel[:1], channel[1:]
        # The answer goes first: should the supervisor die at once, the daemon knows with what.
        answer = {"op": "placed", "worker": worker.number, "pid": worker.pid}
        self._reply(spec, answer, [each.fileno() for each in ours])
        try:
            protocol.send(worker.control, spec, [*fds, *(each.fileno() for each in theirs)])
        except OSError:
            # Killed while it was idle, or it cannot be told. The end of its channel tells the
            # daemon to look again.
            signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    def _fork_workers(self) -> None:
        """Fork some, as many as can be.

        One right after the other, and more than are asked for: a page that we write on between two
        forks is shared no more. Forked one by one each would cost a tenth more.

        Raises:
            OSError: there can be no further process.
        """
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(_AT_ONCE)]
        highest = highest_descriptor()
        pids: list[int] = []
        try:
            for _, theirs in pairs:
                pids.append(os.fork() or self._be_supervisor(theirs, highest))
        except OSError:
            if not pids:
                raise
        finally:
            for _, theirs in pairs:
                theirs.close()
            for ours, _ in pairs[len(pids) :]:
                ours.close()
        for pid, (ours, _) in zip(pids, pairs, strict=False):
            self._take_on(pid, ours)

    def _take_on(self, pid: int, control: socket.socket) -> None:
        self._count += 1
        worker = Worker(self._count, pid, os.pidfd_open(pid), control)
        self._workers[pid] = worker
        self._add(worker.pidfd, lambda: self._on_death(worker))
        self._add(control.fileno(), lambda: self._on_word(worker))
        self._idle.append(worker)

    def _be_supervisor(self, control: socket.socket, highest: int) -> NoReturn:
        """Let go of all that is the launcher's, then live as a supervisor."""
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            be_called(b"aitbcd-supervisor")
            cgroups.enter(*self._cgroups.supervisors)
            # Our lock, and the other ends of others' sockets. Their objects live on in our
            # caller's frames, which a child never returns to.
            close_all_but(highest, control.fileno(), self._run_fd, self._results_fd)
            Supervisor(
                control, self._run_fd, self._results_fd, self._daemon_uid, self._cgroups.jobs
            ).run()
            code = 0
        except BaseException:
            _report_crash()
        os._exit(code)

    def _on_word(self, worker: Worker) -> None:
        received = protocol.receive(worker.control)
        if received is None:
            # Its death is told by its pidfd, after its descriptors are gone.
            self._forget(worker.control.fileno())
            return
        self._idle.append(worker)
        if len(self._idle) > _KEEP_IDLE_MOST:
            self._dismiss(self._idle.pop(0))
        elif len(self._idle) > _KEEP_IDLE and self._look_at is None:
            self._unused = len(self._idle)
            self._look_at = time.monotonic() + _IDLE_S

    def _dismiss_unused(self) -> None:
        """Let those go that nobody needed for a while, but a few."""
        for _ in range(min(self._unused, len(self._idle)) - _KEEP_IDLE):
            self._dismiss(self._idle.pop(0))
        self._unused = len(self._idle)
        has_many = len(self._idle) > _KEEP_IDLE
        self._look_at = time.monotonic() + _IDLE_S if has_many else None

    def _dismiss(self, worker: Worker) -> None:
        """Let an idle supervisor go: it ends when nobody can give it an attempt any more."""
        worker.is_dismissed = True
        self._forget(worker.control.fileno())
        worker.control.close()

    def _on_death(self, worker: Worker) -> None:
        """Reap a supervisor, and end what it left: all our children but the ones we forked."""
        self._forget(worker.pidfd)
        os.close(worker.pidfd)
        os.waitpid(worker.pid, 0)
        del self._workers[worker.pid]
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.control.fileno() >= 0:
            self._handlers.pop(worker.control.fileno(), None)
            worker.control.close()
        run_folder.discard(self._run_fd, run_folder.spare_name(worker.pid))
        if worker.is_dismissed:
            return
        group = self._group(worker.attempt) if worker.attempt else None
        if group:
            group.kill()
        self._end_orphans()
        if group:
            group.remove()

    def _group(self, name: str) -> JobGroup | None:
        return JobGroup(f"{self._cgroups.jobs}/{name}") if self._cgroups.jobs else None

    def _clear_groups(self) -> None:
        """Remove the cgroups of attempts that are over; what still runs in one is swept."""
        if self._cgroups.jobs is None:
            return
        for name in os.listdir(self._cgroups.jobs):
            is_over = name.startswith("job_") and not run_folder.is_held(self._run_fd, name)
            if is_over and (group := self._group(name)):
                group.remove()

    def _bury(self) -> None:
        """Deal with supervisors that are dead but whose death has not been read yet."""
        for worker in list(self._workers.values()):
            if processes.is_zombie(worker.pid):
                self._on_death(worker)

    def _end_orphans(self) -> None:
        """End all our children but the ones we forked.

        Who has outlived it once is killed again each time, or reaped, but waited for no more:
        nothing is started meanwhile.
        """
        known = frozenset(self._workers) | frozenset(self._tasks)
        left: list[processes.Process] = []
        for _ in range(_SWEEPS):
            left = processes.end_all(lambda: _reap_all_but(known), but=known)
            if not processes.without(left, self._survivors):
                break
            select.select([], [], [], _SWEEP_PAUSE_S)
        self._survivors = frozenset(each.identity for each in left)

    def _tombstone(self, message: Message) -> bool:
        """Mark an attempt that is not placed as canceled, so that it never starts."""
        name = protocol.folder_name(message["job"], message["attempt"])
        temporary = run_folder.TEMPORARY + name
        try:
            folder = run_folder.build(self._run_fd, temporary)
            run_folder.mark(folder.fd, CANCELED)
            folder.close()
            run_folder.publish(self._run_fd, temporary, name)
        except Taken as taken:
            run_folder.discard(self._run_fd, temporary)
            return taken.why == "canceled"
        except OSError:
            # A full disk: without the mark its task sees that it is canceled all the same.
            return False
        return True

    def _remove(self, message: Message) -> bool:
        name = protocol.folder_name(message["job"], message["attempt"])
        try:
            folder = run_folder.take(self._run_fd, name)
            if folder:
                run_folder.remove(self._run_fd, folder, name)
        except FileNotFoundError:
            # Perhaps by its supervisor, just now.
            return True
        return folder is not None

    # -- children that answer once ------------------------------------------------------------

    def _seal(self, order: Message, samples: int | None) -> Message:
        """Seal without a supervisor, as the owner of the folder's lock."""
        name = protocol.folder_name(order["job"], order["attempt"])
        try:
            folder = run_folder.take(self._run_fd, name)
        except FileNotFoundError:
            # After a power cut the folder can be gone; then nobody else can seal either.
            folder = None
        else:
            if folder is None:
                return {"op": "busy"}
        try:
            folder_fd = folder.fd if folder else None
            if self._rules:
                order = self._proven(order, folder_fd)
            return seal.report(self._results_fd, order, folder_fd, samples, turns_fd=self._run_fd)
        except OSError as error:
            return seal.failure(error)

    def _proven(self, order: Message, folder_fd: int | None) -> Message:
        """Return of an order what a daemon that was taken over may have done in this user's name.

        He may be in none of the groups any more, so what counts is what root has written: as whom
        the attempt was started and what it asked for, and whose the package is. After a power cut
        the first can be gone: then what is in the package is sealed, and no other file of his is
        touched.

        Raises:
            OSError: EPERM: the package is another user's.
        """
        name = protocol.package_name(order["job"], is_sealed=False)
        owner = package.owner(self._results_fd, name)
        if owner not in (None, order["uid"]):
            raise PermissionError(errno.EPERM, f"{name} belongs to uid {owner}")
        ran_as = None if folder_fd is None else run_folder.started_as(folder_fd)
        asked = None
        if folder_fd is not None and ran_as == order["uid"]:
            asked = run_folder.asked_for(folder_fd, order)
        if asked is None:
            return order | {"uncollected": _UNPROVEN}
        return seal.collecting_of(order, asked)

    def _stop_seal(self, message: Message) -> bool:
        """End what seals an attempt, or sweeps it; its request is answered as failed."""
        key = message["job"], message["attempt"]
        found = [task for task in self._tasks.values() if task.key == key]
        for task in found:
            signal.pidfd_send_signal(task.errand.pidfd, signal.SIGKILL)
            self._on_task(task)
        return bool(found)

    def _remove_package(self, message: Message) -> Message:
        return remove_package(self._results_fd, message["job"], of_spec(message))

    def _containers(self, message: Message) -> Message:
        return {"jobs": containers.jobs_of(message["pids"], self._results_fd)}

    def _sweep(self, message: Message, group: JobGroup | None) -> Message:
        """End what an attempt has left, in its name, and its containers, as who we are."""
        answer = _sweep(message, group)
        left = containers.end(message["job"], message["attempt"], self._results_fd)
        return {"left": [*answer["left"], *left]}

    def _fork_task(
        self, request: Message, action: Callable[[], Message], kept: int | None = None
    ) -> None:
        """Do it in a child, which keeps this descriptor too."""
        rid, key = request["rid"], (request.get("job", ""), request.get("attempt"))
        also = [] if kept is None else [kept]
        made = errand.send(action, self._run_fd, self._results_fd, *also)
        task = self._tasks[made.pid] = Task(made, rid, self._generation, key)
        self._add(made.pidfd, lambda: self._on_task(task))

    def _on_task(self, task: Task) -> None:
        """Reap a task and pass its answer on."""
        self._forget(task.errand.pidfd)
        os.waitpid(task.errand.pid, 0)
        del self._tasks[task.errand.pid]
        said = task.errand.end()
        self._end_orphans()
        answer = said or {"op": "failed", "error": "it was killed"}
        self._answer(task.rid, task.generation, answer)

    # -- the loop -----------------------------------------------------------------------------

    def _add(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        del self._handlers[fd]
        self._poll.unregister(fd)


def _reap_all_but(known: frozenset[int]) -> None:
    for pid in processes.own_children():
        if pid not in known:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def _sweep(message: Message, group: JobGroup | None) -> Message:
    """End what an attempt left behind when its supervisor and its launcher were both killed."""
    if group:
        group.end(_SWEEPS * _SWEEP_PAUSE_S)

    def action() -> Message:
        left: list[processes.Process] = []
        for _ in range(_SWEEPS):
            left = [
                each
                for each in processes.inherited(message["job"], message["attempt"], message["uid"])
                if not processes.is_zombie(each.pid) and each.pid != os.getpid()
            ]
            if not left:
                break
            processes.kill(left)
            select.select([], [], [], _SWEEP_PAUSE_S)
        return {"left": [processes.describe(each) for each in left]}

    return do_as(of_spec(message), action, 60.0)


def _report_crash() -> None:
    """Say on standard error what was wrong with a child of ours; it is a bug."""
    sys.excepthook(*sys.exc_info())
