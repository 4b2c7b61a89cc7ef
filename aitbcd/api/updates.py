"""/v1/jobs/ws: a WebSocket with every change of every job that the caller may see.

One reader for all clients takes events from the store, in the order of their ``seq``, whenever
something was committed. A client that resumes, or falls behind, reads the store itself until it
has caught up, so that what waits for one is bounded, and none sees a gap or a repeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from aitbcd import wire
from aitbcd.api import view
from aitbcd.api.context import Api, caller
from aitbcd.api.ticking import percentages
from aitbcd.api.websocket import SLOW, SLOW_REASON
from aitbcd.clock import now_us
from aitbcd.errors import BadRequest, InvalidValue
from aitbcd.model import Event, Job, JobState, Owner

_log = logging.getLogger(__name__)

#: Close codes.
TOO_OLD = 4409
_FAULT = 1011
#: Events that wait for one client; behind more it reads the store.
_WAITING_MAX = 256
#: Events that are read at once: for all clients, and for one that catches up.
_PAGE = 1000
_PAGE_OF_ONE = 100
#: Events that are looked at in one go.
_STRIDE = 20_000
#: Seconds in which what is committed is read together.
_GATHER_S = 0.01
#: Seconds that a message may wait for its client.
_SLOW_S = 10.0
#: A ``seq`` has at most 19 digits.
_DIGITS_MAX = 19
#: These end with the progress that they had come to.
_STOPPED = frozenset({JobState.CANCELING, JobState.FAILED, JobState.CANCELED})


def routes(api: Api) -> list[BaseRoute]:
    updates = _Updates(api)
    return [
        WebSocketRoute("/v1/jobs/ws", updates.follow),
        Route("/v1/jobs/ws", _refuse_plain),
    ]


async def _refuse_plain(_: Request) -> Response:
    raise BadRequest(
        "this is a WebSocket", hint="connect with a WebSocket client to ws://.../v1/jobs/ws"
    )


class _Client:
    """What waits for one client."""

    def __init__(self, owner: Owner, number: int | None) -> None:
        #: Whose turn it is when it reads the store.
        self.whose = ("updates", owner.uid)
        self._uid = None if owner.is_admin else owner.uid
        self._number = number
        self.events: deque[tuple[int, str]] = deque()
        #: By job: only the latest counts.
        self.progress: dict[int, str] = {}
        #: It has to read the store.
        self.is_behind = False
        self.is_broken = False
        self.woken = asyncio.Event()

    def sees(self, uid: int, number: int) -> bool:
        return self._uid in (None, uid) and self._number in (None, number)

    async def pages(self, api: Api, since: int) -> AsyncGenerator[list[Event]]:
        """Yield the events that this client sees, as far as the store has them now."""
        _, newest = await api.store.event_span()
        # Not all at once: of many events a few may be his, and others read meanwhile.
        stride = _STRIDE if self._number is None else newest
        while since < newest:
            until = min(newest, since + stride)
            async with api.turns.of(self.whose):
                events = await api.store.events(
                    number=self._number, uid=self._uid, since=since, until=until, limit=_PAGE_OF_ONE
                )
            yield events
            since = events[-1].seq if len(events) == _PAGE_OF_ONE else until

    def offer(self, seq: int, text: str) -> None:
        if len(self.events) >= _WAITING_MAX:
            self.is_behind = True
        if self.is_behind:
            self.events.clear()
        else:
            self.events.append((seq, text))
        self.woken.set()

    def offer_progress(self, number: int, text: str) -> None:
        self.progress[number] = text
        self.woken.set()

    def break_off(self) -> None:
        self.is_broken = True
        self.woken.set()


class _Updates:
    def __init__(self, api: Api) -> None:
        self._api = api
        self._clients: set[_Client] = set()
        self._reader: asyncio.Task[None] | None = None
        self._last = 0
        self._tickers: dict[int, _Ticker] = {}

    async def follow(self, socket: WebSocket) -> None:
        owner = caller(socket).owner
        _refuse_unknown(socket)
        since = _since(socket)
        ref = socket.query_params.get("job_id")
        job = None if ref is None else await self._api.find(owner, ref)
        oldest, newest = await self._api.store.event_span()
        client = _Client(owner, job.number if job else None)
        try:
            await socket.accept()
            if since is not None and (why := _not_kept(since, oldest, newest)):
                await socket.close(TOO_OLD, why)
                return
            try:
                await self._join(client, newest)
                await self._serve(socket, client, newest if since is None else since)
            finally:
                self._leave(client)
        except WebSocketDisconnect:
            pass

    async def _serve(self, socket: WebSocket, client: _Client, since: int) -> None:
        sending = asyncio.create_task(_Sender(self._api, socket, client, since).run())
        try:
            # Nothing that a client says matters but that it goes.
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            if not sending.cancelled() and (problem := sending.exception()):
                _log.error("a follower of all jobs was lost", exc_info=problem)

    async def _join(self, client: _Client, newest: int) -> None:
        self._clients.add(client)
        if self._reader is None or self._reader.done():
            self._last = newest
            self._reader = asyncio.create_task(self._read())
        # What was committed since ``newest`` was looked up may have been handed out already.
        client.is_behind = True
        client.woken.set()
        async with self._api.turns.of(client.whose):
            active = await self._api.store.active()
        for job in active:
            if job.status is JobState.RUNNING and client.sees(job.owner.uid, job.number):
                self._tick(job.owner.uid, job.number, job.job_id)

    def _leave(self, client: _Client) -> None:
        self._clients.discard(client)
        for number, ticker in list(self._tickers.items()):
            if not any(each.sees(ticker.uid, number) for each in self._clients):
                self._untick(number)
        if not self._clients and self._reader is not None:
            self._reader.cancel()
            self._reader = None

    # -- events ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            woken = asyncio.Event()
            with self._api.feed.waking(woken):
                while True:
                    woken.clear()
                    events = await self._api.store.events(since=self._last, limit=_PAGE)
                    for event in events:
                        await self._hand_out(event)
                    if len(events) < _PAGE:
                        await woken.wait()
                        await asyncio.sleep(_GATHER_S)
        except Exception:
            _log.exception("reading the events for followers failed")
            for client in self._clients:
                client.break_off()

    async def _hand_out(self, event: Event) -> None:
        self._last = event.seq
        if any(client.sees(event.uid, event.number) for client in self._clients):
            text = await _message(self._api, event)
            for client in self._clients:
                if client.sees(event.uid, event.number):
                    client.offer(event.seq, text)
            if event.status is JobState.RUNNING:
                self._tick(event.uid, event.number, event.job_id)
        if event.status is not JobState.RUNNING:
            self._untick(event.number)

    # -- progress -------------------------------------------------------------------------------

    def _tick(self, uid: int, number: int, job_id: str) -> None:
        ticker = self._tickers.get(number)
        if ticker is None or ticker.is_over:
            self._tickers[number] = _Ticker(self._api, uid, number, job_id, self._clients)

    def _untick(self, number: int) -> None:
        if ticker := self._tickers.pop(number, None):
            ticker.stop()


class _Ticker:
    """Tells clients of the progress of one running job."""

    def __init__(
        self, api: Api, uid: int, number: int, job_id: str, clients: Iterable[_Client]
    ) -> None:
        self.uid = uid
        self._number = number
        self._job_id = job_id
        self._clients = clients
        self._task = asyncio.create_task(self._run(api))

    @property
    def is_over(self) -> bool:
        return self._task.done()

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self, api: Api) -> None:
        async with aclosing(percentages(api, self._job_id)) as found:
            async for percent in found:
                text = self._message(percent)
                for client in self._clients:
                    if client.sees(self.uid, self._number):
                        client.offer_progress(self._number, text)

    def _message(self, percent: int) -> str:
        return wire.encode(
            {
                "job_id": self._job_id,
                "number": self._number,
                "status": JobState.RUNNING.value,
                "progress": percent,
                "time": wire.rfc3339_exact(now_us()),
            }
        ).decode()


class _Sender:
    """Sends one client what waits for it."""

    def __init__(self, api: Api, socket: WebSocket, client: _Client, since: int) -> None:
        self._api = api
        self._socket = socket
        self._client = client
        #: The seq of the last event that was sent.
        self._last = since

    async def run(self) -> None:
        hang_up = self._socket.scope["state"]["hang_up"]
        try:
            await self._send_all()
        except TimeoutError:
            hang_up(SLOW, SLOW_REASON)
        except WebSocketDisconnect:
            return
        except Exception:
            hang_up(_FAULT, "the daemon failed: connect again with since=SEQ")
            raise

    async def _send_all(self) -> None:
        client = self._client
        while True:
            client.woken.clear()
            if client.is_broken:
                raise RuntimeError("the events cannot be read")
            if client.is_behind:
                # First: what is handed out from now on is kept, what was before is in the store.
                client.is_behind = False
                client.events.clear()
                async with aclosing(self._missed()) as missed:
                    async for seq, text in missed:
                        await self._send_event(seq, text)
            while client.events and not client.is_behind:
                await self._send_event(*client.events.popleft())
            while client.progress and not client.is_behind:
                _, text = client.progress.popitem()
                await self._send(text)
            await client.woken.wait()

    async def _missed(self) -> AsyncGenerator[tuple[int, str]]:
        """Yield the events after the last one that was sent, as far as there are now."""
        async with aclosing(self._client.pages(self._api, self._last)) as pages:
            async for events in pages:
                for event in events:
                    yield event.seq, await _message(self._api, event)

    async def _send_event(self, seq: int, text: str) -> None:
        if seq > self._last:
            await self._send(text)
            self._last = seq

    async def _send(self, text: str) -> None:
        async with asyncio.timeout(_SLOW_S):
            await self._socket.send_text(text)


async def _message(api: Api, event: Event) -> str:
    document = wire.event(event)
    progress = 100 if event.status is JobState.COMPLETED else 0
    if event.status in _STOPPED and event.attempt:
        job: Job | None = await api.store.job(event.number)
        progress = view.progress_of(api, job) if job else 0
    return wire.encode(document | {"progress": progress}).decode()


def _refuse_unknown(socket: WebSocket) -> None:
    for name in socket.query_params:
        if name not in ("job_id", "since"):
            detail = f"unknown parameter '{name}'; known here: job_id, since"
            raise InvalidValue(detail, field=name)


def _since(socket: WebSocket) -> int | None:
    value = socket.query_params.get("since")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > _DIGITS_MAX:
        hint = "give the last seq that you got, or 0 for all that is kept"
        raise InvalidValue(f"since is '{value}': expected a seq", hint=hint, field="since")
    return int(value)


def _not_kept(since: int, oldest: int, newest: int) -> str | None:
    """Return why nobody can go on from there, in the few bytes of a close frame."""
    if 0 < since < oldest - 1:
        return f"since={since} is too old: events are kept from seq {oldest} on; since=0 has them"
    if since > newest:
        return f"since={since} is none of this queue's: the newest seq is {newest}; since=0 has all"
    return None
