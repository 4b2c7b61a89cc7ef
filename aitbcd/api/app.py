"""The application: all routes, and every error as a problem document."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from aitbcd.api import (
    batch,
    events,
    gpus,
    health,
    history,
    jobs,
    keys,
    logs,
    openapi,
    operations,
    queue,
    results,
    retention,
    samples,
    shares,
    stats,
    updates,
)
from aitbcd.api.context import Api, Caller
from aitbcd.api.identity import Identity
from aitbcd.api.messages import StreamBroken, problem_response
from aitbcd.api.peer import Peer, check_origin
from aitbcd.clock import now_us
from aitbcd.errors import AitbcError, BadRequest, NoSuchFile, RateLimited
from aitbcd.model import Key

_log = logging.getLogger(__name__)

#: Below this lies what is open to whoever has its address.
LINKS = "/s/"
#: What watches the daemon must not be told to ask less often.
_UNCOUNTED = frozenset({"/healthz", "/metrics", "/openapi.json"})


_READING = frozenset({"GET", "HEAD"})
#: What is not worked on in turns: it is little, or it waits for the driver of the GPUs.
_WITHOUT_TURN = _UNCOUNTED | {"/v1/gpus"}


class MethodNotAllowed(BadRequest):
    code, title, status = "method-not-allowed", "Method not allowed", 405


def build(api: Api) -> ASGIApp:
    """Return the ASGI application of a daemon."""
    resources = (
        health, batch, jobs, events, samples, logs, results, queue, history, stats, keys, shares,
        gpus, retention,
    )  # fmt: skip
    known = [operation for resource in resources for operation in resource.operations(api)]
    app = Starlette(
        routes=[*updates.routes(api), *operations.routes([*known, openapi.operation(known)])],
        exception_handlers={
            AitbcError: _on_error,
            HTTPException: _on_http_error,
            Exception: _on_bug,
        },
    )
    app.router.redirect_slashes = False
    return _Gate(api, app)


class _Gate:
    """Keeps foreign pages out, knows who asks, and hangs up where an answer stays unfinished."""

    def __init__(self, api: Api, app: ASGIApp) -> None:
        self._app = app
        self._keyring = api.keyring
        self._site = api.site
        self._identity = Identity(api)
        self._turns = api.turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            key = await self._admit(scope)
        except AitbcError as error:
            await problem_response(error)(scope, receive, send)
            return
        if key is None:
            await self._pass_in_turn(scope, receive, send)
            return
        with self._keyring.using(key, scope["state"]["abort"], now_us()):
            await self._pass_in_turn(scope, receive, send)

    async def _pass_in_turn(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what reads in its user's turn: what is only changed takes no time of the loop."""
        if scope.get("method") not in _READING or scope["path"] in _WITHOUT_TURN:
            await self._pass(scope, receive, send)
            return
        whose = _whose(scope["state"])
        turn = self._turns.of(whose)

        async def send_on(message: Message) -> None:
            # From here on it is the client that is waited for, or what is followed.
            turn.end()
            await send(message)

        try:
            self._turns.check(whose)
        except RateLimited as error:
            await problem_response(error)(scope, receive, send)
            return
        async with turn:
            await self._pass(scope, receive, send_on)

    async def _admit(self, scope: Scope) -> Key | None:
        """Return the API key that a request is made with, if it is.

        Raises:
            AitbcError: it goes no further.
        """
        state, path = scope["state"], scope["path"]
        peer: Peer = state["peer"]
        if peer.is_tcp:
            check_origin(
                scope["headers"],
                self._site,
                is_link=path.startswith(LINKS),
                is_tls=scope["scheme"] in ("https", "wss"),
                reached=peer.reached,
            )
        found = state["caller"] = await self._identity.of(peer, scope["headers"])
        if path not in _UNCOUNTED:
            self._identity.count(peer, found)
        return found.key if isinstance(found, Caller) else None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        if scope["type"] == "websocket":
            await self._follow(scope, receive, send)
            return
        sent: list[Message] = []

        async def watched_send(message: Message) -> None:
            sent[:] = [message]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception as problem:
            if not _is_broken_off(problem):
                _log.exception("answering %s %r failed", scope["method"], scope["path"])
            if not sent:
                await problem_response(_bug(scope["method"], scope["path"], problem))(
                    scope, receive, send
                )
            elif sent[0]["type"] != "http.response.body" or sent[0].get("more_body"):
                state["abort"]()

    async def _follow(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientDisconnected:
            pass
        except Exception:
            _log.exception("serving the WebSocket %r failed", scope["path"])
            scope["state"]["abort"]()


def _whose(state: Mapping[str, Any]) -> Hashable:
    found, peer = state["caller"], state["peer"]
    return found.owner.uid if isinstance(found, Caller) else ("nobody", peer.counted_as)


def _is_broken_off(problem: BaseException) -> bool:
    """Tell whether it is all ``StreamBroken``: streams run in a group of tasks."""
    if isinstance(problem, BaseExceptionGroup):
        return all(_is_broken_off(each) for each in problem.exceptions)
    return isinstance(problem, StreamBroken)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AitbcError)
    if error.status >= 500:
        _log.error("%r: %s", request.url.path, error.detail)
    return problem_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return problem_response(
            NoSuchFile(
                f"there is nothing at {path}", hint="the interface is described by /openapi.json"
            )
        )
    if error.status_code == 405:
        response = problem_response(
            MethodNotAllowed(f"{request.method} is not possible for {path}")
        )
        response.headers.update(error.headers or {})
        return response
    return problem_response(BadRequest(f"{error.status_code}: {error.detail}"))


async def _on_bug(request: Request, error: Exception) -> Response:
    return problem_response(_bug(request.method, request.url.path, error))


def _bug(method: str, path: str, error: Exception) -> AitbcError:
    return AitbcError(
        f"the daemon failed at {method} {path}: {type(error).__name__}",
        hint="that is a fault of aitbcd; its log says more",
    )
