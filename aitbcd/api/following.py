"""One follower of one job: its events as they are committed, and one flag that wakes it.

Whoever follows subscribes first and looks at the store after, so that nothing falls between the
two. It ends with the job, or when the daemon stops: then ``StreamBroken`` tells the client that it
has not seen the end, and where it left off it can come back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

from aitbcd.api.context import Api
from aitbcd.api.messages import StreamBroken
from aitbcd.feed import Overrun
from aitbcd.model import Event, Job


class Following:
    """Use it as an asynchronous context manager.

    ``woken`` is set when an event has come; writes to the job's files can set it too (``Watches``).
    Clear it, look at everything, and only then ``wait``.
    """

    def __init__(self, api: Api, job: Job) -> None:
        self._api = api
        self._number = job.number
        #: As far as events have told.
        self.status = job.status
        self.attempt = job.attempt
        #: Events that nobody has taken yet.
        self.events: deque[Event] = deque()
        self.woken = asyncio.Event()
        self._is_broken = False

    async def __aenter__(self) -> Self:
        self._subscription = self._api.feed.subscribe(number=self._number)
        self._pump = asyncio.create_task(self._take_events())
        self._api.followings.add(self)
        try:
            job = await self._api.store.job(self._number)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        if job is not None and not self.events:
            self.status, self.attempt = job.status, job.attempt
        if self._api.is_stopping.is_set():
            self.break_off()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._api.followings.discard(self)
        self._subscription.close()
        self._pump.cancel()

    @property
    def is_over(self) -> bool:
        return self.status.is_final

    async def wait(self) -> None:
        """Return once something happened.

        Raises:
            StreamBroken: nothing more will be told.
        """
        if self._is_broken:
            raise StreamBroken
        await self.woken.wait()
        if self._is_broken:
            raise StreamBroken

    def break_off(self) -> None:
        self._is_broken = True
        self.woken.set()

    async def _take_events(self) -> None:
        try:
            async for event in self._subscription:
                self.events.append(event)
                self.status, self.attempt = event.status, event.attempt
                self.woken.set()
        except Overrun:
            pass
        self.break_off()
