"""Gives up what has expired, when it has: one timer for the next one, no polling.

Nothing expires by a clock that is not to be believed (``retention``): the sweep stops, says why,
and stays stopped, over restarts too, until somebody says that the clock is right (``resume``).
"""

from __future__ import annotations

import asyncio
import json
import logging

from aitbcd import retention
from aitbcd.clock import Alarm, Clock
from aitbcd.engine.removals import Removals
from aitbcd.engine.room import Quota
from aitbcd.engine.terms import Terms
from aitbcd.errors import AitbcError, StorageFull, Unavailable
from aitbcd.model import Job, Owner
from aitbcd.retention import Anchor, Stop
from aitbcd.store import JobPage, Store

_log = logging.getLogger(__name__)

_ANCHOR, _STOP = "retention_anchor", "retention_stop"
#: How many are given up in one transaction.
_AT_ONCE = 200
#: Later than anything expires.
_ALL = 1 << 62
#: Pause before a failed sweep is tried again: first, and at most.
_AGAIN_FIRST_S, _AGAIN_MOST_S = 1.0, 30.0


class Sweeper:
    """``open`` before ``run``."""

    def __init__(
        self,
        store: Store,
        removals: Removals,
        terms: Terms,
        quota: Quota,
        clock: Clock,
        *,
        boot_id: str,
    ) -> None:
        self._store = store
        self._removals = removals
        self._terms = terms
        self._quota = quota
        self._clock = clock
        self._boot_id = boot_id
        self._stop: Stop | None = None
        self._anchor = self._new_anchor()
        #: The first expiry that was noted since the store was asked for the next one.
        self._noted: int | None = None
        self._wakeup = asyncio.Event()
        self._alarm = Alarm(self._wakeup.set)

    def _new_anchor(self, excused: int | None = None) -> Anchor:
        return Anchor(self._boot_id, self._clock.now(), self._clock.steady(), excused)

    async def open(self) -> None:
        """Take up what an earlier daemon knew of the clock."""
        self._terms.known_at = await self._store.newest_event_at() or 0
        if stop := await self._store.meta(_STOP):
            self._stop = retention.stop_of(json.loads(stop))
            self._say(self._stop)
        kept = await self._store.meta(_ANCHOR)
        anchor = retention.anchor_of(json.loads(kept)) if kept else None
        if anchor and anchor.boot_id == self._boot_id:
            self._anchor = anchor
        else:
            await self._keep(_ANCHOR, self._anchor)

    def close(self) -> None:
        self._alarm.close()

    # -- what people ask ----------------------------------------------------------------------

    def status(self) -> Stop | None:
        """Return why nothing expires; None where all goes as it should."""
        return self._stop

    async def preview(
        self, uid: int | None, *, after: str | None = None, limit: int = 50
    ) -> JobPage:
        """Return whose results expire next, and when; of one user, or of all for None."""
        return await self._store.expiring(uid, _ALL, after=after, limit=limit)

    async def resume(self, by: Owner) -> None:
        """Believe the clock from now on, as it is."""
        newest = await self._store.newest_event_at()
        self._anchor = self._new_anchor(newest)
        await self._store.set_meta(_ANCHOR, json.dumps(retention.to_json(self._anchor)))
        await self._store.set_meta(_STOP, None)
        self._terms.known_at = self._anchor.now
        if self._stop:
            _log.warning("results expire again: %s said that the clock is right", by.name)
        self._stop = None
        self.wake()

    # -- the sweep ----------------------------------------------------------------------------

    def note(self, expires_at: int) -> None:
        """Take note of results that expire then."""
        if self._noted is None or expires_at < self._noted:
            self._noted = expires_at
        if self._stop is None and (self._alarm.at is None or expires_at < self._alarm.at):
            self._alarm.set(expires_at)

    def wake(self) -> None:
        """Look now."""
        self._wakeup.set()

    async def run(self) -> None:
        """Sweep whenever something is due, for ever."""
        pause_s = _AGAIN_FIRST_S
        while True:
            self._wakeup.clear()
            try:
                await self._sweep()
            except Exception as error:
                said = error.detail if isinstance(error, AitbcError) else repr(error)
                _log.error("what has expired is not given up: %s; trying again", said)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _AGAIN_MOST_S)
                continue
            pause_s = _AGAIN_FIRST_S
            await self._wakeup.wait()

    async def _sweep(self) -> None:
        """Give up all that has expired, and set the alarm for what comes next."""
        while self._stop is None:
            now = self._clock.now()
            newest = await self._store.newest_event_at()
            if reason := retention.distrust(self._anchor, now, self._clock.steady(), newest):
                await self._halt(Stop(reason, now))
                break
            due = await self._store.expired(now, _AT_ONCE)
            if not due:
                break
            await self._give_up(due, now)
        await self._set_alarm()

    async def _set_alarm(self) -> None:
        if self._stop:
            self._alarm.set(None)
            return
        self._noted = None
        upcoming = await self._store.next_expiry()
        known = [at for at in (upcoming and upcoming[1], self._noted) if at is not None]
        self._alarm.set(min(known, default=None))

    async def _give_up(self, due: list[Job], now: int) -> None:
        await self._store.expire([job.number for job in due], at=now)
        self._removals.look()
        for uid in {job.owner.uid for job in due}:
            self._quota.look(uid)

    async def _halt(self, stop: Stop) -> None:
        self._stop = stop
        self._say(stop)
        await self._keep(_STOP, stop)

    def _say(self, stop: Stop) -> None:
        _log.warning(
            "no results expire: %s. When the clock is right: aitbcctl retention resume", stop.reason
        )

    async def _keep(self, key: str, value: Anchor | Stop) -> None:
        try:
            await self._store.set_meta(key, json.dumps(retention.to_json(value)))
        except (StorageFull, Unavailable) as error:
            # Known for as long as this daemon lives, which is what matters now.
            _log.error("the state of the clock is not kept: %s", error.detail)
