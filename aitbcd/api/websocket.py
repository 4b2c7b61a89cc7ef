"""A connection that became a WebSocket (RFC 6455), on uvicorn's protocol class.

Added to it: bounds for what a client may make us keep, and hanging up on one that does not read,
with a close code that says so, for when it reads on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState

#: Close code: the client does not read, or does not answer; it may come back and resume.
SLOW = 4408
SLOW_REASON = "you did not read: connect again with since=SEQ, the last seq that you got"
#: Seconds between two pings, and those in which one must be answered.
PING_S = 20.0
PONG_S = 60.0
#: Clients say nothing that matters.
MESSAGE_BYTES_MAX = 64 * 1024
#: Bytes that wait for a client before its sender does.
_WAITING_BYTES = 16 * 1024
#: With what is sent without waiting (answers to pings) there are never more than that.
_WAITING_BYTES_MAX = 256 * 1024
#: Seconds that a client has for what waits for it and the close code behind it.
_LINGER_S = 60.0


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection, from the handshake on."""

    def __init__(
        self,
        config: Config,
        state: ServerState,
        app_state: dict[str, Any],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(config, state, {**app_state, "hang_up": self.hang_up})
        self._on_lost = on_lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=_WAITING_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_write_buffer_size() > _WAITING_BYTES_MAX:
            self.transport.abort()

    async def send(self, message: Any) -> None:
        # It would take an accept for sent that goes nowhere, and wonder at the next message.
        if self.transport.is_closing():
            raise ClientDisconnected
        await super().send(message)

    def keepalive_timeout(self) -> None:
        self.pong_timer = None
        self.pending_ping_payload = None
        self.hang_up(SLOW, SLOW_REASON)

    def hang_up(self, code: int, reason: str) -> None:
        """Close, also where a client does not read: what it has not read goes ahead."""
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        try:
            self.conn.send_close(code, reason)
        except InvalidState:
            self.transport.close()
            return
        self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except InvalidState:
            # The client is about to close it itself.
            self.transport.close()
