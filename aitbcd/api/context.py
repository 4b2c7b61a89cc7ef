"""What every resource needs: the parts of the daemon, and who is asking."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct
from starlette.requests import HTTPConnection, Request

from aitbcd.api.keyring import Keyring
from aitbcd.api.peer import Site
from aitbcd.api.spool import Spool
from aitbcd.api.turns import Turns
from aitbcd.certificate import Certificate
from aitbcd.clock import now_us
from aitbcd.engine import Engine
from aitbcd.errors import AitbcError, AmbiguousJob, Forbidden, NoSuchJob
from aitbcd.feed import Feed
from aitbcd.gpus import Gpus
from aitbcd.model import Job, Key, Machine, Owner, Share
from aitbcd.paths import Paths
from aitbcd.results.watches import Watches
from aitbcd.settings import Settings
from aitbcd.store import Store

if TYPE_CHECKING:
    from aitbcd.api.following import Following

_log = logging.getLogger(__name__)

#: Its members see, cancel and delete everybody's jobs, and drain GPUs.
ADMIN_GROUP = "aitbc-admin"

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
    keyring: Keyring
    #: Large requests while they arrive.
    spool: Spool = field(init=False)
    #: Whose work is done now.
    turns: Turns = field(default_factory=Turns)
    #: The launcher is a service of root's, and members of its groups are served.
    is_separate: bool = False
    #: Where HTTP is served over TCP, as others write it; None where it is not, or cannot be said.
    url: str | None = None
    #: What TCP is encrypted with; a renewed one takes its place.
    certificate: Certificate | None = None
    #: Set when the daemon is about to stop.
    is_stopping: asyncio.Event = field(default_factory=asyncio.Event)
    followings: set[Following] = field(default_factory=set)
    #: Who looks through a package, by its owner: one at a time, so that however many files one user
    #: puts into his, readers are left for those of all others.
    looking_through: defaultdict[int, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )
    _readers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_READERS, thread_name_prefix="reader")
    )

    def __post_init__(self) -> None:
        self.spool = Spool(self.paths.state)

    @property
    def members(self) -> tuple[str, ...] | None:
        """Return whose members are served; None: everybody, or only the daemon's own user."""
        return self.settings.launcher.groups if self.is_separate else None

    @property
    def is_shared(self) -> bool:
        """Tell whether others than the daemon's own user are served."""
        return self.members is not None or os.getuid() == 0

    @property
    def site(self) -> Site:
        return Site(self.settings.server.public_url, self._is_certified)

    def _is_certified(self, name: str) -> bool:
        return self.certificate is not None and self.certificate.is_for(name)

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
        # An administrator sees everybody's jobs; his latest is still his own.
        uid = None if owner.is_admin and ref != "@" else owner.uid
        return await self.store.resolve(ref, uid)

    async def readable_job(self, request: Request, *, is_use: bool = True) -> Job:
        """Return the job that a request's path names and whose results the caller may read.

        Args:
            is_use: it counts as a use of the share by which he may.

        Raises:
            NoSuchJob, AmbiguousJob: neither his, nor shared with him.
        """
        try:
            return await self.job(request)
        except NoSuchJob:
            share = await self._shared(request)
            if share is None:
                raise
        if is_use:
            self.count_use(share)
        job = await self.store.job(share.number)
        if job is None:
            raise NoSuchJob(f"job {share.job_id} is deleted", ref=share.job_id)
        return job

    async def _shared(self, request: Request) -> Share | None:
        """Return by what a job is shared with the caller; he has to give its whole id or number."""
        ref: str = request.path_params["job"]
        try:
            job = await self.store.resolve(ref[:_REF_LENGTH_MAX], None)
        except (NoSuchJob, AmbiguousJob):
            return None
        if ref.removeprefix("job_") not in (job.job_id.removeprefix("job_"), str(job.number)):
            return None
        now = now_us()
        return await self.store.share_with(caller(request).owner.name, job.number, now)

    def count_use(self, share: Share) -> None:
        """Count a use of a share, without waiting for that."""
        used = self.store.used_share(share.id, now_us())
        used.add_done_callback(_on_counted)

    def stop(self) -> None:
        """Break off what would never end by itself."""
        self.is_stopping.set()
        for following in list(self.followings):
            following.break_off()

    def close(self) -> None:
        self.watches.close()
        self._readers.shutdown(wait=False, cancel_futures=True)


class Caller(Struct, frozen=True):
    """Who asks, and what his API key settles, where he has one."""

    owner: Owner
    #: The plan that the key has; None: that of its user.
    plan: str | None = None
    is_read_only: bool = False
    key: Key | None = None


def caller(request: HTTPConnection) -> Caller:
    """Return who asks.

    Raises:
        Unauthorized, Forbidden, RateLimited: nobody whom this daemon serves; see ``identity``.
    """
    found: Caller | AitbcError = request.state.caller
    if isinstance(found, AitbcError):
        raise found
    return found


def _on_counted(used: asyncio.Future[None]) -> None:
    if not used.cancelled() and (problem := used.exception()):
        _log.warning("the use of a share could not be counted: %s", problem)


def sees_all(owner: Owner) -> None:
    """Refuse anybody but root."""
    if not owner.is_admin:
        raise Forbidden(
            "only administrators see everybody's jobs", hint="leave out --all (over HTTP: all=true)"
        )
