"""The room for results: on the disk for all, and in each user's quota."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from aitbcd import space
from aitbcd.errors import StorageFull
from aitbcd.settings import Storage
from aitbcd.store import Store


class Disk:
    """The file system that results are on."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder

    def lack(self) -> str | None:
        """Return what jobs wait for while there is too little room; None where there is enough."""
        try:
            free, reserve = self._look()
        except OSError as error:
            return f"waits for the disk: {self._folder}: {error.strerror}"
        return space.short_of_space(free, reserve, self._folder)

    def check(self) -> None:
        """Refuse another job where there is hardly room for those that run.

        Raises:
            StorageFull: with the numbers.
        """
        try:
            free, reserve = self._look()
        except OSError:
            return  # The store says what is wrong.
        if closed := space.closed_to_jobs(free, reserve, self._folder):
            raise StorageFull(closed, hint="make room: delete results, or ask who fills the disk")

    def _look(self) -> tuple[int, int]:
        """Return the bytes that are free, and those that are to be kept free."""
        about = os.statvfs(self._folder)
        reserve = space.reserve_of(self._storage, about.f_blocks * about.f_frsize)
        return about.f_bavail * about.f_frsize, reserve


class Quota:
    """Who keeps more results than he may. His jobs wait; nobody else's do."""

    def __init__(
        self,
        storage: Storage,
        store: Store,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_change: Callable[[int, bool], None],
    ) -> None:
        self._storage = storage
        self._store = store
        self._spawn = spawn
        #: Told a uid, and whether its jobs have to wait from now on.
        self._on_change = on_change
        self._used: dict[int, int] = {}
        self._outdated: set[int] = set()
        self._is_looking = False

    def lack(self, uid: int) -> str | None:
        """Return what jobs of a user wait for; None where they need not."""
        return space.over_quota(self._used.get(uid, 0), self._storage.quota)

    def blocked(self) -> list[int]:
        """Return the users whose jobs wait."""
        return [uid for uid in self._used if self.lack(uid)]

    def forget(self) -> None:
        """Ask anew what users keep: the configuration has changed."""
        self._used.clear()

    async def learn(self, uids: Iterable[int]) -> bool:
        """Get to know users; tell whether one of them has to wait."""
        if self._storage.quota is None:
            return False
        unknown = set(uids) - self._used.keys()
        for uid in unknown:
            self._used[uid] = await self._store.usage(uid)
        return any(self.lack(uid) for uid in unknown)

    def look(self, uid: int) -> None:
        """Look again what a user keeps, soon."""
        if self._storage.quota is None:
            return
        self._outdated.add(uid)
        if not self._is_looking:
            self._is_looking = True
            self._spawn(self._look_at_outdated())

    async def _look_at_outdated(self) -> None:
        try:
            while self._outdated:
                uid = self._outdated.pop()
                used = await self._store.usage(uid)
                had_to_wait = self.lack(uid) is not None
                self._used[uid] = used
                has_to_wait = self.lack(uid) is not None
                if has_to_wait != had_to_wait:
                    self._on_change(uid, has_to_wait)
        finally:
            self._is_looking = False
