"""The parser of HTTP/1.1 responses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcctl.http1 import NotHttp, ResponseParser, Truncated


def fed(data: bytes, cuts: list[int], *, ended: bool = False) -> tuple[ResponseParser, bytes]:
    """Feed ``data`` in pieces that end at ``cuts``."""
    parser, body, at = ResponseParser(), b"", 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        if data[at:cut]:
            body += parser.feed(data[at:cut])
        at = cut
    if ended:
        parser.end()
    return parser, body


def chunked(body: bytes, sizes: list[int]) -> bytes:
    out, at = b"", 0
    for size in sizes:
        if piece := body[at : at + size]:
            out += b"%x;ext=1\r\n%s\r\n" % (len(piece), piece)
        at += size
    if rest := body[at:]:
        out += b"%X\r\n%s\r\n" % (len(rest), rest)
    return out + b"0\r\nTrailer: x\r\n\r\n"


cuts = st.lists(st.integers(0, 5000), max_size=12)


@given(st.binary(max_size=300), cuts)
def test_a_body_of_known_length_arrives_whole_however_it_is_cut(body: bytes, at: list[int]) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-One:  a b \r\n\r\n" % len(body)
    parser, got = fed(head + body + b"beyond the body", at)
    assert (parser.status, got, parser.is_done) == (200, body, True)
    assert parser.headers["x-one"] == "a b"


@given(st.binary(max_size=300), st.lists(st.integers(1, 80), max_size=8), cuts)
def test_a_chunked_body_arrives_whole_however_it_is_cut(
    body: bytes, sizes: list[int], at: list[int]
) -> None:
    head = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
    parser, got = fed(head + chunked(body, sizes), at)
    assert (parser.status, got, parser.is_done) == (201, body, True)
    parser.end()


@given(st.binary(max_size=300), cuts)
def test_without_a_length_the_body_ends_with_the_connection(body: bytes, at: list[int]) -> None:
    parser, got = fed(b"HTTP/1.0 200\r\n\r\n" + body, at)
    assert (got, parser.is_done) == (body, False)
    parser.end()
    assert parser.is_done


def test_an_interim_response_is_passed_over() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
    parser, body = fed(data, [3, 30])
    assert (parser.status, body, parser.is_done) == (204, b"", True)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n1234",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n",
        b"",
    ],
)
def test_an_answer_that_breaks_off_is_told_from_a_whole_one(data: bytes) -> None:
    with pytest.raises(Truncated):
        fed(data, [], ended=True)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 \xb200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabcde",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nabcde",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000,
    ],
)
def test_another_protocol_is_recognized(data: bytes) -> None:
    with pytest.raises(NotHttp):
        fed(data, [])
