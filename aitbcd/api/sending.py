"""Sends what lies on the disk: it is read in threads, piece by piece, as fast as it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from functools import partial

from aitbcd.api.context import Api
from aitbcd.api.messages import StreamBroken
from aitbcd.results import beneath
from aitbcd.results.archive import Changed

_PIECE = 256 * 1024


async def file_pieces(
    api: Api, file: beneath.OpenFile, start: int, end: int
) -> AsyncGenerator[bytes]:
    """Yield what is between two places in a file."""
    while start < end:
        piece = await api.in_thread(partial(file.pread, min(_PIECE, end - start), start))
        if not piece:
            raise StreamBroken("the file became shorter while it was sent")
        start += len(piece)
        yield piece


async def iterated(api: Api, pieces: Generator[bytes]) -> AsyncGenerator[bytes]:
    """Yield what a generator reads, and close it; where a piece is empty, others have a turn."""
    reading: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            reading = asyncio.ensure_future(api.in_thread(lambda: next(pieces, None)))
            piece = await asyncio.shield(reading)
            if piece is None:
                return
            if piece:
                yield piece
    except (Changed, OSError, beneath.NotThere) as problem:
        raise StreamBroken(f"the package changed while it was sent: {problem}") from None
    finally:
        # Where it was left, folders are open: they are not for the garbage collector to close,
        # which may come hours later. A generator that a thread is in cannot be closed.
        if reading is not None:
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()
        pieces.close()
