"""Large bodies while they arrive: in memory while they are small, else in files without a name.

Who sends many that do not come to their end fills neither the memory nor the disk: of one user no
more than so many bytes are under way.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from starlette.requests import Request

from aitbcd.api.messages import pieces_of
from aitbcd.errors import RateLimited, StorageFull
from aitbcd.units import format_size

#: Larger ones are files: one user may have ten thousand under way.
_IN_MEMORY_MAX = 64 << 10
#: Bytes of one user: some of the largest batches.
UNDER_WAY_MAX = 256 << 20


class Spool:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._under_way: Counter[int] = Counter()

    @asynccontextmanager
    async def body(self, request: Request, limit: int, uid: int) -> AsyncIterator[BinaryIO]:
        """Give the whole body of a user's request, as an open file at its start.

        Raises:
            TooLarge, SlowBody: as ``messages.body_of``.
            RateLimited: too much of his is under way.
            StorageFull: there is no room for it.
        """
        file: BinaryIO = io.BytesIO()
        size = 0
        try:
            async for piece in pieces_of(request, limit):
                self._count(uid, len(piece))
                size += len(piece)
                try:
                    if size > _IN_MEMORY_MAX and isinstance(file, io.BytesIO):
                        file = self._on_disk(file)
                    file.write(piece)
                except OSError as problem:
                    raise StorageFull(
                        f"the request could not be stored: {problem.strerror}",
                        hint="make room and try again",
                    ) from None
            file.seek(0)
            yield file
        finally:
            file.close()
            self._forget(uid, size)

    def _count(self, uid: int, size: int) -> None:
        if self._under_way[uid] + size > UNDER_WAY_MAX:
            raise RateLimited(
                f"requests of yours of more than {format_size(UNDER_WAY_MAX)} are under way",
                hint="let some come to their end",
                retry_after_s=1,
            )
        self._under_way[uid] += size

    def _forget(self, uid: int, size: int) -> None:
        self._under_way[uid] -= size
        if not self._under_way[uid]:
            del self._under_way[uid]

    def _on_disk(self, memory: io.BytesIO) -> BinaryIO:
        from tempfile import TemporaryFile

        file = TemporaryFile(dir=self._folder)  # noqa: SIM115  # closed with the body
        file.write(memory.getvalue())
        return file
