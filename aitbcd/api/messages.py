"""Requests and responses: bodies within bounds, JSON, problem documents, streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from aitbcd import wire
from aitbcd.errors import (
    AitbcError,
    BadRange,
    BadRequest,
    RateLimited,
    TooLarge,
    Unauthorized,
)

#: Seconds that a body may pause.
BODY_PAUSE_S = 30.0
#: More than any number of ours has, and few enough for int() (it refuses thousands).
_DIGITS_MAX = 40


class SlowBody(BadRequest):
    code, title, status = "request-timeout", "Request timeout", 408


class StreamBroken(Exception):
    """The answer cannot be finished: hang up, so that the client knows that it is not whole."""


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content: wire.Json) -> bytes:
        return wire.encode(content) + b"\n"


def problem_response(error: AitbcError) -> Response:
    headers = {}
    if isinstance(error, BadRange):
        headers["content-range"] = f"bytes */{error.fields['size']}"
    elif isinstance(error, RateLimited):
        headers["retry-after"] = str(error.fields["retry_after_s"])
    elif isinstance(error, Unauthorized):
        headers["www-authenticate"] = "X-Api-Key"
    return JsonResponse(
        wire.problem(error), error.status, headers, media_type="application/problem+json"
    )


# --- bodies ---------------------------------------------------------------------------------


async def body_of(request: Request, limit: int) -> bytes:
    """Return the whole body.

    Raises:
        TooLarge: more than ``limit`` bytes; said at once where Content-Length says it.
        SlowBody: it did not come.
    """
    return b"".join([piece async for piece in pieces_of(request, limit)])


async def pieces_of(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body as it comes; raises as ``body_of``."""
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > limit:
        raise _too_large(limit)
    size = 0
    more = True
    while more:
        try:
            async with asyncio.timeout(BODY_PAUSE_S):
                message = await request.receive()
        except TimeoutError:
            detail = f"the body did not go on for {BODY_PAUSE_S:.0f} seconds"
            raise SlowBody(detail) from None
        if message["type"] == "http.disconnect":
            raise BadRequest("the request ended before its body")
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        yield piece


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the body is larger than {limit} bytes",
        hint="submit in several requests",
        limit=limit,
    )


# --- streams --------------------------------------------------------------------------------


class _Stream(StreamingResponse):
    """Cleans up at its end, however it ends: what it leaves to the garbage collector lives long."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes],
        status: int,
        headers: Mapping[str, str],
        media_type: str,
        release: Callable[[], None] | None,
    ) -> None:
        super().__init__(pieces, status, headers, media_type)
        self._pieces = pieces
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A generator that was not begun does not run its own.
            if self._release is not None:
                self._release()
            await self._pieces.aclose()


def stream(
    request: Request,
    pieces: AsyncGenerator[bytes],
    media_type: str,
    headers: Mapping[str, str] | None = None,
    status: int = 200,
    release: Callable[[], None] | None = None,
) -> Response:
    """Return an answer that is sent piece by piece; of one to HEAD the head only.

    Args:
        release: called at the end, also when no piece was asked for.
    """
    kept = {"x-content-type-options": "nosniff", **(headers or {})}
    if request.method != "HEAD":
        return _Stream(pieces, status, kept, media_type, release)
    if release is not None:
        release()
    response = Response(status_code=status, headers=kept, media_type=media_type)
    if "content-length" not in kept:
        del response.headers["content-length"]
    return response


def range_of(request: Request, size: int, tag: str | None = None) -> tuple[int, int] | None:
    """Return start and end (exclusive) of the one range asked for, None for the whole.

    RFC 9110, 14: what is not understood, several ranges too, is answered with the whole; so is a
    range that is wanted of another version (If-Range) than the one with this ``tag``.

    Raises:
        BadRange: the range begins behind the end; its field ``size`` says where that is.
    """
    value = request.headers.get("range", "")
    if request.headers.get("if-range", f'"{tag}"') != f'"{tag}"':
        return None
    unit, _, spec = value.partition("=")
    first, dash, last = spec.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not _are_digits(first, last):
        return None
    if not first:
        if not last:
            return None
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise BadRange(f"the range {spec.strip()} is outside of {size} bytes", size=size)
    return start, end


def _are_digits(*texts: str) -> bool:
    return all(
        not text or (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX)
        for text in texts
    )


def range_headers(
    span: tuple[int, int] | None, size: int, tag: str | None = None
) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of an answer with this part of ``size`` bytes."""
    start, end = span or (0, size)
    headers = {"accept-ranges": "bytes", "content-length": str(end - start)}
    if tag is not None:
        headers["etag"] = f'"{tag}"'
    if span is None:
        return 200, headers
    return 206, {**headers, "content-range": f"bytes {start}-{end - 1}/{size}"}
