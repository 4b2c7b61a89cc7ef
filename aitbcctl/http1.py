"""Bytes of an HTTP/1.1 response -> status, headers, body. Pure: it is fed, it reads nothing.

Follows RFC 9112: bodies with Content-Length, chunked, or ended by the close of the connection.
``http.client`` does the same, but its import (email, ssl, urllib) costs as much as the whole rest
of a submit.
"""

from __future__ import annotations

#: More than any of our heads has; a peer that sends more is no daemon of ours.
_HEAD_MAX = 65536
#: Of a number; int() takes signs too, and refuses thousands of digits with an error of its own.
_DIGITS_MAX = 18
_HEX_DIGITS = b"0123456789abcdefABCDEF"


class NotHttp(ValueError):
    """What came is no HTTP/1.1 response."""


class Truncated(ValueError):
    """The connection ended before the response did."""


class ResponseParser:
    """Takes what a socket gives, piece by piece, and returns the body's bytes as they come."""

    __slots__ = (
        "_buffer",
        "_is_chunk_open",
        "_is_chunked",
        "_is_trailer",
        "_left",
        "headers",
        "is_done",
        "status",
    )

    def __init__(self) -> None:
        #: 0 until the head is complete.
        self.status = 0
        #: Lower-case names; of a repeated one the last value.
        self.headers: dict[str, str] = {}
        self.is_done = False
        self._buffer = bytearray()
        #: Bytes that this body, or this chunk, still has; None: until the connection ends.
        self._left: int | None = 0
        self._is_chunked = False
        self._is_chunk_open = False
        self._is_trailer = False

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the body that ``data`` completes, which can be none.

        Raises:
            NotHttp: whoever answers speaks something else.
        """
        if self.status and not self._is_chunked and not self.is_done:
            return self._plain(data)
        self._buffer += data
        while not self.status:
            if not self._take_head():
                return b""
        if self.is_done:
            return b""
        if self._is_chunked:
            return self._chunks()
        rest = bytes(self._buffer)
        self._buffer.clear()
        return self._plain(rest)

    def end(self) -> None:
        """Take the end of the connection.

        Raises:
            Truncated: something is missing.
        """
        if self.is_done:
            return
        if not self.status or self._is_chunked or self._left is not None:
            raise Truncated("the connection ended within the answer")
        self.is_done = True

    def _take_head(self) -> bool:
        head, blank, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not blank:
            if len(head) > _HEAD_MAX or head[:7] != b"HTTP/1."[: len(head)]:
                raise NotHttp("no HTTP response")
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, status = first.partition(" ")
        if not version.startswith("HTTP/1.") or not _is_number(status[:3]):
            raise NotHttp("no HTTP response")
        self._buffer = bytearray(rest)
        if status.startswith("1"):
            return True  # an interim response, 100 Continue for one: the true one follows
        self.status = int(status[:3])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._measure()
        return True

    def _measure(self) -> None:
        if self.status in (204, 304):
            self.is_done = True
        elif self.headers.get("transfer-encoding", "").lower() == "chunked":
            self._is_chunked = True
        elif (length := self.headers.get("content-length")) is not None:
            if not _is_number(length):
                raise NotHttp("a Content-Length that is no number")
            self._left = int(length)
            self.is_done = self._left == 0
        else:
            self._left = None

    def _plain(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        if len(data) > self._left:
            data = data[: self._left]
        self._left -= len(data)
        self.is_done = self._left == 0
        return data

    def _chunks(self) -> bytes:
        body = bytearray()
        while not self.is_done:
            if self._left:
                piece = self._buffer[: self._left]
                if not piece:
                    break
                del self._buffer[: len(piece)]
                self._left -= len(piece)
                body += piece
                continue
            line, newline, _ = self._buffer.partition(b"\r\n")
            if not newline:
                if len(line) > _HEAD_MAX:
                    raise NotHttp("a chunk without a size")
                break
            del self._buffer[: len(line) + 2]
            self._take_line(bytes(line))
        return bytes(body)

    def _take_line(self, line: bytes) -> None:
        if self._is_trailer:
            self.is_done = not line
        elif self._is_chunk_open:  # the line end after a chunk's bytes
            if line:
                raise NotHttp("a chunk longer than it says")
            self._is_chunk_open = False
        else:
            size = line.partition(b";")[0].strip()
            if not size or len(size) > _DIGITS_MAX or size.strip(_HEX_DIGITS):
                raise NotHttp("a chunk without a size")
            self._left = int(size, 16)
            self._is_chunk_open = self._left > 0
            self._is_trailer = self._left == 0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
