"""A connection that only reads, in a thread of its own. It knows no job.

What it runs is one function with all that it has to read: one hop to the thread and back.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from aitbcd.errors import Unavailable
from aitbcd.store.migrate import BUSY_MS, register

P = ParamSpec("P")
T = TypeVar("T")
Row = tuple[Any, ...]


class Reader:
    """Make one with ``open``."""

    def __init__(self, thread: ThreadPoolExecutor, connection: sqlite3.Connection) -> None:
        self._thread = thread
        self._connection = connection
        self._is_closed = False

    @classmethod
    async def open(cls, path: Path) -> Self:
        thread = ThreadPoolExecutor(1, thread_name_prefix="reader")
        connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        return cls(thread, connection)

    async def run(
        self,
        read: Callable[Concatenate[sqlite3.Connection, P], T],
        *arguments: P.args,
        **named: P.kwargs,
    ) -> T:
        """Return what a function reads; it sees one state of the file, however much it reads."""

        def work() -> T:
            self._connection.execute("BEGIN")
            try:
                return read(self._connection, *arguments, **named)
            finally:
                self._connection.execute("COMMIT")

        return await self._in_thread(work)

    async def fetch(self, statement: str, /, **values: Any) -> list[Row]:
        """Return the rows of one statement."""
        return await self._in_thread(lambda: self._connection.execute(statement, values).fetchall())

    async def close(self) -> None:
        """Finish what is read, then close."""
        if not self._is_closed:
            closing = self._in_thread(self._connection.close)
            self._is_closed = True
            await closing
            self._thread.shutdown()

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        if self._is_closed:
            raise Unavailable("the store is closed", hint="start aitbcd again")
        return asyncio.get_running_loop().run_in_executor(self._thread, work)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000
    )
    connection.execute("PRAGMA query_only = ON")
    register(connection)
    return connection
