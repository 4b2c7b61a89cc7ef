"""Removes the packages that were given up, a few at a time, and each one until it is gone.

Which those are is committed in the store's ``removals`` with what gave them up, so that a crash
costs no more than reading on there. A package that somebody reads is left to him and tried again;
one that cannot be removed is told of once, and tried again at the next start.

It is emptied as its owner, who can stop that, or go on filling it, for hours. So one user's take
no more than some of those that go at the same time, and users have turns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from aitbcd import launch, users
from aitbcd.errors import AitbcError
from aitbcd.runs import LauncherGone, Refused, Runs
from aitbcd.store import Store

_log = logging.getLogger(__name__)

#: Packages that are removed at the same time, and of one user: a large one must not hold up others.
_AT_ONCE, _AT_ONCE_OF_ONE = 8, 2
#: How many are read at once of those that the store knows. Of a user with as many in memory no more
#: are read: they may be hundreds of thousands.
_PAGE = 200
#: Pause before a package is tried again: at first, at most while it is read (which its owner can
#: do for ever with all of his), at most otherwise.
_AGAIN_FIRST_S, _BUSY_MOST_S, _AGAIN_MOST_S = 0.5, 60.0, 300.0
#: The same while there is no launcher.
_GONE_MOST_S = 5.0


@dataclass(slots=True, eq=False)
class Removal:
    """A package on its way out."""

    number: int
    job_id: str
    uid: int
    #: Set when it is gone, or is known not to go.
    is_over: asyncio.Event
    is_gone: bool = False
    pause_s: float = _AGAIN_FIRST_S
    #: Why it does not go, as it was said.
    told: str = ""


class Removals:
    def __init__(
        self,
        store: Store,
        runs: Runs,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        on_space: Callable[[], None],
    ) -> None:
        self._store = store
        self._runs = runs
        self._spawn = spawn
        #: Told when there is more room on the disk.
        self._on_space = on_space
        #: By user; whose turn it is comes first.
        self._due: dict[int, deque[Removal]] = {}
        #: How many of each user go just now.
        self._at_work: Counter[int] = Counter()
        #: Those in ``_due``, at work, paused, and those that will not go.
        self._known: dict[int, Removal] = {}
        self._paused: set[asyncio.TimerHandle] = set()
        self._workers = 0
        self._reading = asyncio.Lock()
        #: The store may have some that are not known here; read up to this number.
        self._is_unread = False
        self._read_to = 0
        self._has_new = False
        #: Users of whom the store has more than is known here.
        self._crowded: set[int] = set()

    def close(self) -> None:
        for timer in self._paused:
            timer.cancel()

    def look(self) -> None:
        """Remove what the store says is to be removed, soon."""
        self._is_unread = self._has_new = True
        self._work()

    def add(self, number: int, job_id: str, uid: int) -> Removal:
        """Remove a package that the store knows as one to be removed; before all others."""
        if number in self._known:
            # Whoever works off the store's list was faster.
            return self._known[number]
        removal = self._know(number, job_id, uid)
        self._due.setdefault(uid, deque()).appendleft(removal)
        self._work()
        return removal

    def _know(self, number: int, job_id: str, uid: int) -> Removal:
        removal = Removal(number, job_id, uid, asyncio.Event())
        self._known[number] = removal
        return removal

    def _put(self, removal: Removal) -> None:
        self._due.setdefault(removal.uid, deque()).append(removal)

    def _work(self) -> None:
        if self._workers < _AT_ONCE and (self._is_unread or self._first() is not None):
            self._workers += 1
            self._spawn(self._work_off())

    async def _work_off(self) -> None:
        try:
            while removal := await self._next():
                # There are more: somebody else may begin with them.
                self._work()
                try:
                    await self._remove(removal)
                finally:
                    self._at_work[removal.uid] -= 1
        finally:
            self._workers -= 1

    async def _next(self) -> Removal | None:
        async with self._reading:
            while (uid := self._first()) is None and self._is_unread:
                await self._read_page()
        if uid is None:
            return None
        theirs = self._due.pop(uid)
        removal = theirs.popleft()
        self._at_work[uid] += 1
        if theirs:
            # At the end: the others are next.
            self._due[uid] = theirs
        elif uid in self._crowded:
            self._crowded.discard(uid)
            self._is_unread, self._read_to = True, 0
        return removal

    def _first(self) -> int | None:
        """Return whose turn it is; None where nobody has something to remove who may."""
        return next((uid for uid in self._due if self._at_work[uid] < _AT_ONCE_OF_ONE), None)

    async def _read_page(self) -> None:
        if self._read_to == 0:
            self._has_new = False
        self._crowded |= {uid for uid, theirs in self._due.items() if len(theirs) >= _PAGE}
        page = await self._store.removals(self._read_to, _PAGE, without=self._crowded)
        for row in page:
            if row[0] not in self._known:
                self._put(self._know(*row))
        if len(page) == _PAGE:
            self._read_to = page[-1][0]
        else:
            self._read_to = 0
            self._is_unread = self._has_new

    async def _remove(self, removal: Removal) -> None:
        # Its owner is asked for no more than his uid: he may be gone from this machine.
        who = launch.identity(users.stranger(removal.uid))
        try:
            await self._runs.remove_package(removal.job_id, who)
            await self._store.removed(removal.number)
        except LauncherGone:
            self._try_again(removal, _GONE_MOST_S)
        except Refused as refusal:
            self._on_refusal(removal, refusal)
        except AitbcError as error:
            _log.error("job=%s: %s; trying again", removal.job_id, error.detail)
            self._try_again(removal, _AGAIN_MOST_S)
        else:
            del self._known[removal.number]
            removal.is_gone = True
            removal.is_over.set()
            self._on_space()

    def _on_refusal(self, removal: Removal, refusal: Refused) -> None:
        if refusal.why == "busy":
            self._try_again(removal, _BUSY_MOST_S)
            return
        if removal.told != str(refusal):
            removal.told = str(refusal)
            _log.error("job=%s: its results are not removed: %s", removal.job_id, refusal)
        if refusal.why == "others":
            removal.is_over.set()
        else:
            self._try_again(removal, _AGAIN_MOST_S)

    def _try_again(self, removal: Removal, most_s: float) -> None:
        def put_back() -> None:
            self._paused.discard(timer)
            self._put(removal)
            self._work()

        timer = asyncio.get_running_loop().call_later(removal.pause_s, put_back)
        self._paused.add(timer)
        removal.pause_s = min(2 * removal.pause_s, most_s)
