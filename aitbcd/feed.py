"""Hands the events that were just committed to those who wait for them. Keeps no history.

A reader that falls behind is told so (``Overrun``) and reads on from the store: its memory is
bounded, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from aitbcd.model import Event


class Overrun(Exception):
    """The reader was too slow; events after the last one it got are in the store."""


class Subscription:
    """An asynchronous iterator of events, ended by ``close`` or with the feed."""

    def __init__(self, feed: Feed, number: int | None, uid: int | None, limit: int) -> None:
        self._feed = feed
        self._number = number
        self._uid = uid
        self._limit = limit
        self._waiting: deque[Event] = deque()
        self._wakeup = asyncio.Event()
        self._is_closed = False
        self._is_overrun = False

    def offer(self, event: Event) -> None:
        if self._number not in (None, event.number) or self._uid not in (None, event.uid):
            return
        if len(self._waiting) >= self._limit:
            self._is_overrun = True
            self._waiting.clear()
        elif not self._is_overrun:
            self._waiting.append(event)
        self._wakeup.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        """Return the next event.

        Raises:
            Overrun: see there; the subscription is of no more use.
        """
        while not self._waiting:
            if self._is_overrun:
                raise Overrun
            if self._is_closed:
                raise StopAsyncIteration
            self._wakeup.clear()
            await self._wakeup.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        self._feed.forget(self)
        self._is_closed = True
        self._wakeup.set()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Feed:
    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._wakers: set[asyncio.Event] = set()

    def publish(self, events: Iterable[Event]) -> None:
        """Hand out events that were committed; none where there were too many to hand out."""
        for woken in self._wakers:
            woken.set()
        if not self._subscriptions:
            return
        for event in events:
            for subscription in self._subscriptions:
                subscription.offer(event)

    def subscribe(
        self, *, number: int | None = None, uid: int | None = None, limit: int = 1000
    ) -> Subscription:
        """Return the events from now on: of one job, of one user's jobs, or all."""
        subscription = Subscription(self, number, uid, limit)
        self._subscriptions.add(subscription)
        return subscription

    @contextmanager
    def waking(self, woken: asyncio.Event) -> Iterator[None]:
        """Set ``woken`` at every change, for whoever reads what it was from the store."""
        self._wakers.add(woken)
        try:
            yield
        finally:
            self._wakers.discard(woken)

    def forget(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()
