"""Who sends a request: the holder of an API key, else whom the kernel says (``peer``).

A key counts on TCP, and where there is one nothing else does: a wrong one is nobody's. What came
through a proxy has the proxy's uid, which is nobody's either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace

from aitbcd import users
from aitbcd.api.context import ADMIN_GROUP, Api, Caller
from aitbcd.api.keyring import MAKE_ANOTHER
from aitbcd.api.limits import Limit
from aitbcd.api.peer import Peer, is_forwarded, owner_of
from aitbcd.clock import now_us
from aitbcd.errors import AitbcError, Forbidden, RateLimited, Unauthorized, Unavailable
from aitbcd.model import Owner

_HEADER = b"x-api-key"
#: Wrong keys that one peer may try, and how many a minute after that.
_WRONG_KEYS = 10


class Identity:
    """Knows who asks, and how often he did."""

    def __init__(self, api: Api) -> None:
        self._keyring = api.keyring
        self._site = api.site
        self._api = api
        self._rate = 0
        self._requests: Limit | None = None
        self._wrong_keys = Limit(_WRONG_KEYS / 60, _WRONG_KEYS)

    async def of(self, peer: Peer, headers: Iterable[tuple[bytes, bytes]]) -> Caller | AitbcError:
        """Return who it is, or why that is nobody: some may be asked for by anybody."""
        try:
            return await self._find(peer, list(headers))
        except AitbcError as error:
            return error

    def count(self, peer: Peer, found: Caller | AitbcError) -> None:
        """Count a request.

        Raises:
            RateLimited: he asks too often.
        """
        rate = self._api.settings.server.request_rate
        if rate != self._rate:
            self._rate, self._requests = rate, Limit(rate, rate) if rate else None
        if self._requests is None:
            return
        # Keys do not multiply what a user may ask.
        who = found.owner.uid if isinstance(found, Caller) else ("nobody", peer.counted_as)
        if wait_s := self._requests.take(who, time.monotonic()):
            raise _limited(f"more than {self._rate} requests a second", wait_s, "ask less often")

    async def _find(self, peer: Peer, headers: list[tuple[bytes, bytes]]) -> Caller:
        if peer.is_tcp:
            if secrets := [value for name, value in headers if name == _HEADER]:
                return await self._by_key(peer, secrets)
            if is_forwarded(headers, self._site):
                raise Unauthorized(
                    "a request that comes through a proxy is nobody's without an API key",
                    hint="send X-Api-Key: make one with aitbcctl key create --name NAME",
                )
        if peer.uid is not None:
            # Asked here, where it can be waited for; who he is is looked up again and again.
            await users.find(peer.uid)
        owner = owner_of(peer, is_shared=self._api.members is not None)
        return Caller(await self._member(owner))

    async def _member(self, owner: Owner) -> Owner:
        """Return the same user with the rights of his groups, where others than ours are served.

        Raises:
            Forbidden: he is in none of the groups.
            Unavailable: the user database does not say.
        """
        if not self._api.is_shared or owner.uid in (0, os.getuid()):
            return owner
        groups = await users.groups_of(owner.uid)
        is_admin = ADMIN_GROUP in (groups or ())
        if self._api.members is None:
            return replace(owner, is_admin=is_admin)
        if groups is None:
            raise Unavailable(
                f"the user database of this machine does not say which groups {owner.name} is in",
                hint=f"see whether it answers: id {owner.name}",
            )
        if not set(self._api.members) & set(groups):
            raise Forbidden(
                f"this daemon serves members of {' and '.join(self._api.members)} only,"
                f" and {owner.name} is none",
                hint=f"an administrator adds you: usermod --append --groups {self._api.members[0]}"
                f" {owner.name}; it counts within a minute",
            )
        return replace(owner, is_admin=is_admin)

    async def _by_key(self, peer: Peer, secrets: list[bytes]) -> Caller:
        if len(secrets) > 1:
            raise Unauthorized("the request has several API keys", hint="send one X-Api-Key")
        key = self._keyring.find(secrets[0])
        if key is None:
            if wait_s := self._wrong_keys.take(peer.counted_as, time.monotonic()):
                what = f"more than {_WRONG_KEYS} wrong API keys a minute"
                raise _limited(what, wait_s, "use the right key")
            raise Unauthorized(
                "the API key is not known here: it is wrong, or was revoked", hint=MAKE_ANOTHER
            )
        self._keyring.use(key, now_us())
        await users.find(key.owner.uid)
        owner = owner_of(Peer(key.owner.uid, is_tcp=True), is_shared=self._api.members is not None)
        if owner.name != key.owner.name:
            # The uid was given to somebody else since.
            raise Unauthorized(
                f"the API key was made for {key.owner.name}, who is {owner.name} now",
                hint=MAKE_ANOTHER,
            )
        owner = await self._member(owner)
        return Caller(owner, key.plan, key.is_read_only, key)


def _limited(what: str, wait_s: float, hint: str) -> RateLimited:
    retry_after_s = max(1, -int(-wait_s // 1))
    return RateLimited(
        f"{what}: try again in {retry_after_s} s", hint=hint, retry_after_s=retry_after_s
    )
