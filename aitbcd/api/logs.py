"""/v1/jobs/{job}/logs/{stdout|stderr}: what a job wrote, while it writes and after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api.context import Api
from aitbcd.api.following import Following
from aitbcd.api.messages import range_headers, range_of, stream
from aitbcd.api.operations import Asked, Operation, flag, number
from aitbcd.api.results import gone, refuse_without_results
from aitbcd.api.schemas import raw
from aitbcd.api.sending import file_pieces
from aitbcd.errors import BadRange, NoResults, NoSuchFile
from aitbcd.model import Job, JobState, ResultsState
from aitbcd.results import beneath, logs

#: Bytes, whatever they are: a browser must not guess.
MEDIA_TYPE = "application/octet-stream"
_NAMES = {"stdout": b"logs/stdout.log", "stderr": b"logs/stderr.log"}
_OFFSET_MAX = 2**62
#: Until an attempt runs, the package may be that of the one before.
_NOT_STARTED = frozenset({JobState.PENDING, JobState.ASSIGNED})
#: What is worth a hop to a thread.
_MUCH = 64 * 1024
#: Lines that a tail may be asked for.
_TAIL_MAX = 10_000_000
#: Seconds in which what a busy job writes is sent together.
_GATHER_S = 0.01
#: Where the system has no watch left: seconds between two looks.
_LOOK_S = 1.0


_TAIL = number("tail", "Only so many lines from the end", 0, _TAIL_MAX, default=None)
_OFFSET = number("offset", "Only what is behind so many bytes", 0, _OFFSET_MAX, default=0)
_FOLLOW = flag("follow", "Go on until the job is over and all is sent")
_ATTEMPT = number(
    "attempt", "The attempt that offset is of; of another one, all is sent", 1, 2**31, default=None
)
_FRAMED = flag(
    "framed",
    "With follow: a line of JSON before each piece: its attempt, its length, the next offset",
)


def operations(api: Api) -> list[Operation]:
    answers = (raw("Its bytes", MEDIA_TYPE), raw("The Range of it", MEDIA_TYPE, 206))
    return [
        Operation(
            "GET", "/v1/jobs/{job}/logs/{stream}", _Logs(api).get, "What a job wrote",
            answers, query=(_TAIL, _OFFSET, _FOLLOW, _ATTEMPT, _FRAMED),
            errors=(NoSuchFile, NoResults, BadRange),
        )
    ]  # fmt: skip


class _Logs:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def get(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        name = _NAMES.get(request.path_params["stream"])
        if name is None:
            raise NoSuchFile("a job has two logs: stdout and stderr")
        if job.ending is not None and job.ending.results is ResultsState.EXPIRED:
            refuse_without_results(job)
        offset, tail = asked[_OFFSET], asked[_TAIL]
        if asked[_FOLLOW] or asked[_FRAMED]:
            log = _Followed(self._api, job, name, offset, tail, asked[_ATTEMPT])
            return stream(request, _follow(self._api, job, log, asked[_FRAMED]), MEDIA_TYPE)
        if asked[_ATTEMPT] not in (None, job.attempt):
            offset = 0
        return await self._as_it_is(request, job, name, offset, tail)

    async def _as_it_is(
        self, request: Request, job: Job, name: bytes, offset: int, tail: int | None
    ) -> Response:
        file = _open(self._api, job, name)
        if file is None:
            if job.ending is None:
                return Response(b"", media_type=MEDIA_TYPE)
            if job.ending.results is ResultsState.KEPT:
                raise gone(job)
            raise NoSuchFile(f"job {job.job_id} has no log: it never started")
        try:
            return await self._answer(request, job, file, offset, tail)
        except BaseException:
            file.close()
            raise

    async def _answer(
        self, request: Request, job: Job, file: beneath.OpenFile, offset: int, tail: int | None
    ) -> Response:
        limit = self._api.settings.jobs.log_limit
        log = logs.Log(file, limit)
        size = file.size
        start = min(log.place_of(offset), size)
        if tail is not None:
            last = await self._api.in_thread(partial(logs.place_of_tail, file, tail))
            start = max(start, last)
        if not job.status.is_final and size > limit // 2:
            # It may lose its middle while it is sent, so that its length is not known.
            pieces = _pieces(self._api, log, log.offset_of(start), log.end)
            return stream(request, pieces, MEDIA_TYPE, release=file.close)
        span = range_of(request, size - start)
        status, headers = range_headers(span, size - start)
        first, end = (start + span[0], start + span[1]) if span else (start, size)
        pieces = file_pieces(self._api, file, first, end)
        return stream(request, pieces, MEDIA_TYPE, headers, status, release=file.close)


def _open(api: Api, job: Job, name: bytes) -> beneath.OpenFile | None:
    """Return the log of the sealed package, else of the one being built, else None."""
    for package in (api.paths.package(job.job_id), api.paths.building(job.job_id)):
        try:
            return beneath.open_in(package, name)
        except (beneath.NotThere, PermissionError):
            continue
    return None


async def _pieces(api: Api, log: logs.Log, start: int, end: int) -> AsyncGenerator[bytes]:
    """Yield what is between two offsets."""
    while start < end:
        length = min(end - start, logs.PIECE_BYTES)
        piece = await api.in_thread(partial(log.read, start, length))
        if not piece.data:
            return
        start = piece.next_offset
        yield piece.data


async def _follow(api: Api, job: Job, log: _Followed, is_framed: bool) -> AsyncGenerator[bytes]:
    """Yield what is there from the offset or the tail on, then what comes, to the job's end."""
    async with Following(api, job) as following:
        with closing(log):
            while True:
                following.woken.clear()
                following.events.clear()
                # Taken before the log is read: what was written before the end is sent.
                is_over = following.is_over
                while piece := await log.read():
                    yield log.head_of(piece) + piece.data if is_framed else piece.data
                if await log.turn_to(following):
                    continue
                if is_over:
                    return
                with log.watch(following.woken):
                    if not log.has_more():
                        await following.wait()
                if not following.is_over:
                    await asyncio.sleep(_GATHER_S)


class _Followed:
    """The log of the attempt that runs, and where its reader is."""

    def __init__(
        self, api: Api, job: Job, name: bytes, offset: int, tail: int | None, attempt: int | None
    ) -> None:
        self._api = api
        self._job = job
        self._name = name
        self._offset = offset
        self._tail = tail
        self._offset_is_of = attempt
        self._log: logs.Log | None = None
        self._attempt = 0

    async def turn_to(self, following: Following) -> bool:
        """Open the log of an attempt that has started; True when there is another one to read.

        An attempt begins in an empty package, so that it has another file. Sealing can give a log
        another file too (without its hole), but no other attempt: then the old one is read on.
        """
        if following.attempt == self._attempt or following.status in _NOT_STARTED:
            return False
        self._attempt = following.attempt
        found = _open(self._api, self._job, self._name)
        if found is None:
            return False
        before, self._log = self._log, logs.Log(found, self._api.settings.jobs.log_limit)
        if before is not None:
            with before.file:
                if before.file.inode != found.inode:
                    self._offset = 0
                    return True
                return False
        if self._offset_is_of not in (None, self._attempt):
            self._offset = 0
        if self._tail is not None:
            last = await self._api.in_thread(partial(logs.place_of_tail, found, self._tail))
            self._offset = max(self._offset, self._log.offset_of(last))
        return True

    def close(self) -> None:
        if self._log is not None:
            self._log.file.close()

    async def read(self) -> logs.Piece | None:
        """Return the next bytes, None at the end."""
        if self._log is None:
            return None
        read = partial(self._log.read, self._offset)
        is_much = self._log.end - self._offset > _MUCH
        piece = await self._api.in_thread(read) if is_much else read()
        self._offset = piece.next_offset
        return piece if piece.data else None

    def head_of(self, piece: logs.Piece) -> bytes:
        """Return the line that tells a client what the next bytes are, and where to come back."""
        head = {"attempt": self._attempt, "length": len(piece.data), "next": piece.next_offset}
        if piece.dropped:
            head["dropped"] = piece.dropped
        return wire.encode(head) + b"\n"

    def has_more(self) -> bool:
        return self._log is not None and self._log.end > self._offset

    @contextmanager
    def watch(self, woken: asyncio.Event) -> Iterator[None]:
        if self._log is None:
            yield
            return
        with ExitStack() as stack:
            try:
                fd = stack.enter_context(self._log.file.held())
                stack.enter_context(self._api.watches.on_write(fd, woken))
            except OSError:
                # The user has no watch left (fs.inotify.max_user_watches).
                timer = asyncio.get_running_loop().call_later(_LOOK_S, woken.set)
                stack.callback(timer.cancel)
            yield
