"""The application: all routes, and every error as a problem document."""

from __future__ import annotations

import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from aitbcd import users
from aitbcd.api import (
    batch,
    events,
    gpus,
    health,
    jobs,
    logs,
    openapi,
    operations,
    results,
    updates,
)
from aitbcd.api.context import Api
from aitbcd.api.messages import StreamBroken, problem_response
from aitbcd.api.peer import Peer, check_origin
from aitbcd.errors import AitbcError, BadRequest, NoSuchFile

_log = logging.getLogger(__name__)


class MethodNotAllowed(BadRequest):
    code, title, status = "method-not-allowed", "Method not allowed", 405


def build(api: Api) -> ASGIApp:
    """Return the ASGI application of a daemon."""
    resources = (health, batch, jobs, events, logs, results, gpus)
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
    return _Gate(app)


class _Gate:
    """Keeps foreign pages out, and hangs up where an answer cannot be finished."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        peer: Peer = state["peer"]
        try:
            if peer.is_tcp:
                check_origin(scope["headers"])
            if peer.uid is not None:
                # Asked here, where it can be waited for; who he is is looked up again and again.
                await users.find(peer.uid)
        except AitbcError as error:
            await problem_response(error)(scope, receive, send)
            return
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
                _log.exception("answering %s %s failed", scope["method"], scope["path"])
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
            _log.exception("serving the WebSocket %s failed", scope["path"])
            scope["state"]["abort"]()


def _is_broken_off(problem: BaseException) -> bool:
    """Tell whether it is all ``StreamBroken``: streams run in a group of tasks."""
    if isinstance(problem, BaseExceptionGroup):
        return all(_is_broken_off(each) for each in problem.exceptions)
    return isinstance(problem, StreamBroken)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AitbcError)
    if error.status >= 500:
        _log.error("%s: %s", request.url.path, error.detail)
    return problem_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return problem_response(
            NoSuchFile(f"there is nothing at {path}", hint="the interface is under /v1/jobs")
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
