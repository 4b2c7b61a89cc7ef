"""Staying with a job until it ends: its changes, its logs, its exit code.

A daemon may be restarted meanwhile, and the job does not notice; neither do we: the stream is
opened again from the last thing seen. Only when no daemon comes back for ten minutes is that an
error, and the job still goes on.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from aitbcctl import terminal
from aitbcctl.client import Client, Json, Response, job_path
from aitbcctl.render import LogCleaner, change_line, ending, plain
from aitbcctl.terminal import say
from aitbcd.errors import AmbiguousJob, NoSuchJob, Unavailable, Unreachable
from aitbcd.model import FINAL

#: How long a daemon may be away before a follower gives up.
RETURN_S = 600.0
#: What a waiting job waits for changes without an event of its own.
TICK_S = 5.0
_FINAL = frozenset(state.value for state in FINAL)


class Patience:
    """Waits for a daemon that went away; says so once, and once that it is back."""

    def __init__(self, comfort: str = "the job is not affected") -> None:
        self._comfort = comfort
        self._lost_at: float | None = None
        self._open_at = 0.0
        self._delay_s = 0.05
        self._has_told = False

    def found(self) -> None:
        """Note that a stream is open."""
        if self._has_told:
            say("the daemon is back")
        self._has_told = False
        self._lost_at = None
        self._open_at = time.monotonic()

    def lost(self, error: Unreachable | Unavailable) -> None:
        """Wait a little before the next try.

        Raises:
            Unreachable: ``error`` itself, when the daemon stayed away too long.
        """
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            # A stream that ends at once, again and again, is not asked for at full speed.
            if now - self._open_at > 1.0:
                self._delay_s = 0.05
        if now - self._lost_at > RETURN_S:
            raise error
        if now - self._lost_at > 1.0 and not self._has_told:
            self._has_told = True
            say(f"the daemon is away; {self._comfort}; waiting for it to come back")
        time.sleep(self._delay_s)
        self._delay_s = min(1.0, self._delay_s * 1.5)


def job(client: Client, ref: str) -> Json:
    """Return a job's status; its ``job_id`` goes on meaning this job, unlike ``@`` or a prefix."""
    return client.get(job_path(ref))


def jobs(client: Client, refs: Sequence[str]) -> list[Json]:
    """Return the statuses of jobs, each once, however often and in which way it is named.

    Raises:
        NoSuchJob: one of them; that nothing was done to the others is said.
    """
    try:
        found = {status["job_id"]: status for status in (job(client, ref) for ref in refs)}
    except (NoSuchJob, AmbiguousJob) as error:
        if len(refs) == 1:
            raise
        detail = f"{error.detail}; so nothing was done to any of them"
        raise type(error)(detail, hint=error.hint, **error.fields) from None
    return list(found.values())


def job_patiently(client: Client, job_id: str) -> Json:
    """Return a job's status, also when the daemon is just being restarted."""
    patience = Patience()
    while True:
        try:
            return job(client, job_id)
        except (Unreachable, Unavailable) as error:
            patience.lost(error)


def changes(
    client: Client, job_id: str, since: int = 0, *, tick_s: float | None = None
) -> Iterator[Json]:
    """Yield each event after ``since`` and each step of progress, until the final event.

    Args:
        tick_s: yield an empty object after so long a silence, for who has something to redraw.
    """
    patience = Patience()
    while True:
        try:
            with client.stream(job_path(job_id, "events"), follow=True, since=since) as stream:
                patience.found()
                for line in _lines(stream, tick_s):
                    change = json.loads(line) if line else {}
                    since = change.get("seq", since)
                    yield change
                    if change.get("status") in _FINAL:
                        return
            raise Unavailable("the daemon ended the stream of events before the job's end")
        except (Unreachable, Unavailable) as error:
            patience.lost(error)


def _lines(stream: Response, tick_s: float | None) -> Iterator[bytes]:
    """Yield whole lines as they come, and an empty one after each silence of ``tick_s``."""
    rest = b""
    with woken_by_signals() as signals:
        poller = select.poll()
        poller.register(stream.fileno(), select.POLLIN)
        poller.register(signals, select.POLLIN)
        while not stream.is_done:
            if not stream.has_pending:
                ready = dict(poller.poll(tick_s and tick_s * 1000))
                if signals in ready:
                    # Its handler has run; a ^C has left by now.
                    os.read(signals, 4096)
                if stream.fileno() not in ready:
                    if not ready:
                        yield b""
                    continue
            *whole, rest = (rest + stream.read_available()).split(b"\n")
            yield from filter(None, whole)


@contextmanager
def woken_by_signals() -> Iterator[int]:
    """Give a descriptor that is readable once a signal came.

    Python looks for signals between its own steps: a ^C just before a wait would go unnoticed
    until the wait's end, which here can be a week away.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def ended(client: Client, job_id: str) -> Json:
    """Wait for a job's end, silently, and return its final status."""
    for _ in changes(client, job_id):
        pass
    return job_patiently(client, job_id)


def to_its_end(client: Client, submitted: Json, *, with_logs: bool) -> Json:
    """Stay with a job that was just submitted and return its final status.

    On a terminal its changes are told, and how it ended; elsewhere only an ending that is not
    ``completed``. ^C detaches: the job goes on.
    """
    job_id = submitted["job_id"]
    is_seen = terminal.is_shown(2)
    try:
        if with_logs:
            say(_introduction(submitted))
            is_whole = stream_logs(client, job_id, {"stdout": 1, "stderr": 2})
            if is_seen and not is_whole:
                say("")
            final = ended(client, job_id)
        else:
            final = _told(client, job_id) if is_seen else ended(client, job_id)
    except KeyboardInterrupt:
        detached(job_id)
    if final["status"] != "completed" or is_seen:
        say(f"{job_id} {ending(final)}")
    return final


def _told(client: Client, job_id: str) -> Json:
    """Wait for a job's end as ``ended``, telling each change, progress, and what it waits for."""
    status, told = "", None
    for change in changes(client, job_id, tick_s=TICK_S):
        if "seq" in change:
            terminal.draw("")
            status = change["status"]
            if status not in _FINAL:
                say(change_line(change))
        elif change:
            terminal.draw(change_line(change))
        if status == "pending":
            waiting = job_patiently(client, job_id).get("waiting")
            if waiting and waiting != told:
                say(f"  {plain(waiting)}")
            told = waiting
    return job_patiently(client, job_id)


def all_to_their_end(client: Client, job_ids: Sequence[str]) -> list[Json]:
    """Wait for the end of several jobs and return their final statuses."""
    finals = []
    try:
        for job_id in job_ids:
            final = ended(client, job_id)
            finals.append(final)
            if final["status"] != "completed" or terminal.is_shown(2):
                say(f"{job_id} {ending(final)}")
    except KeyboardInterrupt:
        terminal.leave("detached; the jobs go on: aitbcctl list")
    return finals


def exit_code(final: Json) -> int:
    """Return the exit code that stands for how a job ended: its own where it has one."""
    if final["status"] == "completed":
        return 0
    if final.get("signal") is not None:
        return 128 + int(final["signal"])
    # A job that timed out, or whose results could not be stored, can have exited with 0.
    return int(final.get("exit_code") or 1)


def detached(job_id: str) -> NoReturn:
    """Say how to come back to a job that goes on, and go."""
    terminal.leave(
        f"detached; {job_id} goes on. To come back: aitbcctl watch {job_id}\n"
        f"or, with what it prints: aitbcctl logs -f {job_id}"
    )


def _introduction(submitted: Json) -> str:
    waiting = submitted.get("waiting")
    return f"{submitted['job_id']} {submitted['status']}" + (
        f": {plain(waiting)}" if waiting and terminal.is_shown(2) else ""
    )


#: Takes a piece of a log: the stream's name, the bytes.
Sink = Callable[[str, bytes], None]


class Frames:
    """A followed log as it comes: what the job wrote, and where to come back for the rest."""

    def __init__(self) -> None:
        self._rest = b""
        self._attempt: int | None = None
        self._next = 0
        #: Bytes of the piece that have not come, and what it stands for if it is a note.
        self._left = 0
        self._dropped = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the job wrote; a note of what was dropped comes whole."""
        self._rest += data
        while self._rest:
            if self._left == 0 and not self._begin():
                return
            if self._dropped and len(self._rest) < self._left:
                return
            piece, self._rest = self._rest[: self._left], self._rest[self._left :]
            self._left -= len(piece)
            yield piece

    def _begin(self) -> bool:
        """Take the head of the next piece, if it is there."""
        line, newline, rest = self._rest.partition(b"\n")
        if newline:
            head = json.loads(line)
            self._attempt, self._left, self._next = head["attempt"], head["length"], head["next"]
            self._dropped = head.get("dropped", 0)
            self._rest = rest
        return bool(newline)

    @property
    def place(self) -> Json | None:
        """What to ask for to go on behind all that was yielded; None before the first piece."""
        if self._attempt is None:
            return None
        missing = (self._dropped or self._left) if self._left else 0
        return {"attempt": self._attempt, "offset": self._next - missing}


class _LogStream:
    """One log of a job on its way to a sink; opened again where it broke off."""

    def __init__(
        self, client: Client, job_id: str, name: str, *, follow: bool, tail: int | None, sink: Sink
    ) -> None:
        self._client = client
        self._path = job_path(job_id, "logs", name)
        self._name = name
        #: What the first request asks for; a later one asks for what came after it.
        self._query: Json = {"tail": tail, "framed": True if follow else None}
        self._frames = Frames() if follow else None
        self._sink = sink
        self._patience = Patience()
        self.response: Response | None = None

    def open(self) -> Response:
        while self.response is None:
            try:
                self.response = self._client.stream(self._path, **self._query)
                self._patience.found()
            except (Unreachable, Unavailable) as error:
                if self._frames is None:
                    raise
                self._patience.lost(error)
        return self.response

    def take(self) -> bool:
        """Pass on what is there; return whether the stream goes on (the response may be new)."""
        response = self.open()
        try:
            data = response.read_available()
        except Unreachable as error:
            if self._frames is None:
                raise
            self._break_off(self._frames)
            self._patience.lost(error)
            return True
        for piece in self._frames.feed(data) if self._frames else (data,):
            if piece:
                self._sink(self._name, piece)
        return not response.is_done

    def wait(self) -> None:
        """Wait until there is more."""
        response = self.open()
        if not response.has_pending:
            response.wait()

    def close(self) -> None:
        if self.response is not None:
            self.response.close()
            self.response = None

    def _break_off(self, frames: Frames) -> None:
        if frames.place is not None:
            self._query = {"framed": True, **frames.place}
        self._frames = Frames()
        self.close()


def stream_logs(
    client: Client,
    job_id: str,
    wanted: dict[str, int],
    *,
    follow: bool = True,
    tail: int | None = None,
    sink: Sink | None = None,
) -> bool:
    """Pass logs on until all are whole, followed ones until the job is over.

    Args:
        wanted: the log (``stdout``, ``stderr``) -> our descriptor for it.
        tail: only so many last lines of each, and what comes after them.
        sink: takes the pieces instead of the descriptors.

    Returns:
        Whether the terminal, where they went to one, is at the beginning of a line.
    """
    to_us = _Outputs(wanted)
    logs = [
        _LogStream(client, job_id, name, follow=follow, tail=tail, sink=sink or to_us.put)
        for name in wanted
    ]
    try:
        going = logs if follow else []
        while going:
            ready = [log for log in going if log.open().has_pending] or _readable(going)
            going = [log for log in going if log not in ready or log.take()]
        for log in [] if follow else logs:  # one after the other: stdout before stderr
            while log.take():
                log.wait()
    finally:
        for log in logs:
            log.close()
        to_us.end()
    return to_us.is_at_a_beginning


class _Outputs:
    """Our own descriptors, with what is not for terminals kept from them."""

    def __init__(self, wanted: dict[str, int]) -> None:
        self._fds = wanted
        self._cleaners = {name: LogCleaner() for name, fd in wanted.items() if os.isatty(fd)}
        self.is_at_a_beginning = True

    def put(self, name: str, data: bytes) -> None:
        cleaner = self._cleaners.get(name)
        if cleaner is None:
            terminal.put_bytes(data, self._fds[name])
        else:
            self._show(name, cleaner.feed(data))

    def end(self) -> None:
        for name, cleaner in self._cleaners.items():
            self._show(name, cleaner.end())

    def _show(self, name: str, data: bytes) -> None:
        terminal.put_bytes(data, self._fds[name])
        if data:
            self.is_at_a_beginning = data.endswith(b"\n")


def _readable(logs: list[_LogStream]) -> list[_LogStream]:
    poller = select.poll()
    by_fd = {log.open().fileno(): log for log in logs}
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    return [by_fd[fd] for fd, _ in poller.poll()]
