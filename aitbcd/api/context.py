"""What every resource needs: the parts of the daemon, and who is asking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import HTTPConnection, Request

from aitbcd.api.peer import Peer, owner_of
from aitbcd.engine import Engine
from aitbcd.errors import Forbidden, NoSuchJob
from aitbcd.feed import Feed
from aitbcd.gpus import Gpus
from aitbcd.model import Job, Machine, Owner
from aitbcd.paths import Paths
from aitbcd.results.watches import Watches
from aitbcd.settings import Settings
from aitbcd.store import Store

if TYPE_CHECKING:
    from aitbcd.api.following import Following

T = TypeVar("T")
#: Reads of large files that may wait for the disk at the same time.
_READERS = 4
#: Longer than any id or number; int() refuses thousands of digits with an error of its own.
_REF_LENGTH_MAX = 64


@dataclass(slots=True, eq=False)
class Api:
    """The parts of one daemon, as the resources see them."""

    engine: Engine
    store: Store
    feed: Feed
    settings: Settings
    paths: Paths
    machine: Machine
    watches: Watches
    gpus: Gpus
    #: Set when the daemon is about to stop.
    is_stopping: asyncio.Event = field(default_factory=asyncio.Event)
    followings: set[Following] = field(default_factory=set)
    _readers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_READERS, thread_name_prefix="reader")
    )

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what waits for the disk beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def job(self, request: Request) -> Job:
        """Return the job that a request's path names.

        Raises:
            NoSuchJob, AmbiguousJob: as the caller sees it; others' jobs do not exist for him.
        """
        return await self.find(caller(request).owner, request.path_params["job"])

    async def find(self, owner: Owner, ref: str) -> Job:
        """Return the job that ``ref`` names, as this user sees it.

        Raises:
            NoSuchJob, AmbiguousJob: others' jobs do not exist for him.
        """
        if len(ref) > _REF_LENGTH_MAX:
            raise NoSuchJob(f"there is no job {ref[:_REF_LENGTH_MAX]}...", ref=ref)
        # Root sees everybody's jobs; its latest is still its own.
        uid = None if owner.uid == 0 and ref != "@" else owner.uid
        return await self.store.resolve(ref, uid)

    def stop(self) -> None:
        """Break off what would never end by itself."""
        self.is_stopping.set()
        for following in list(self.followings):
            following.break_off()

    def close(self) -> None:
        self.watches.close()
        self._readers.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what his API key settles, where he has one."""

    owner: Owner
    #: The plan that the key has; None: that of its user.
    plan: str | None = None
    is_read_only: bool = False


def caller(request: HTTPConnection) -> Caller:
    """Return who asks.

    Raises:
        Unauthorized, Forbidden: see ``peer.owner_of``.
    """
    peer: Peer = request.state.peer
    return Caller(owner_of(peer))


def sees_all(owner: Owner) -> None:
    """Refuse anybody but root."""
    if owner.uid != 0:
        raise Forbidden("only root sees everybody's jobs", hint="leave out all=true")
