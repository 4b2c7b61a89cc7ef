"""The API keys: read once, then kept here beside the store. A secret is known to its holder alone.

A key is found by the sha256 of its secret. The secret has 160 random bits, so that nothing slow
has to stand between it and its hash.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aitbcd.errors import NoSuchKey, Unauthorized, WrongState
from aitbcd.model import Key, Owner
from aitbcd.store import Store

_log = logging.getLogger(__name__)

PREFIX = "aitbc_"
MAKE_ANOTHER = "make another one with: aitbcctl key create --name NAME"
_SECRET_BYTES = 20
#: Live keys that one user may have.
KEYS_MAX = 100
#: Microseconds in which a key that is in use is written down once.
_NOTED_EVERY_US = 60_000_000
#: Bytes of a digest that find a key; the rest is compared in constant time.
_INDEXED = 4


class Keyring:
    """All keys that are not revoked. Make one with ``load``."""

    def __init__(self, store: Store, keys: dict[bytes, Key]) -> None:
        self._store = store
        self._keys: dict[bytes, dict[bytes, Key]] = {}
        for digest, key in keys.items():
            self._keep(digest, key)
        #: What ends the connections that are in use with a key now.
        self._open: dict[str, list[Callable[[], None]]] = {}
        self._noted: dict[str, int] = {}

    @classmethod
    async def load(cls, store: Store) -> Keyring:
        return cls(store, await store.keys())

    def find(self, secret: bytes) -> Key | None:
        """Return the key of a secret, also one whose time is over."""
        digest = hashlib.sha256(secret).digest()
        found = None
        for stored, key in self._keys.get(digest[:_INDEXED], {}).items():
            if hmac.compare_digest(stored, digest):
                found = key
        return found

    def use(self, key: Key, now: int) -> None:
        """Note that a key is used.

        Raises:
            Unauthorized: its time is over.
        """
        if _is_over(key, now):
            raise Unauthorized(f"the API key '{key.name}' has expired", hint=MAKE_ANOTHER)
        last = self.last_used_at(key)
        if last is None or not 0 <= now - last < _NOTED_EVERY_US:
            self._noted[key.id] = now
            self._store.used_key(key.id, now).add_done_callback(_on_noted)

    def of(self, uid: int | None) -> list[Key]:
        """Return the keys of a user, or all, in the order of their making."""
        found = [key for keys in self._keys.values() for key in keys.values()]
        return sorted(
            (key for key in found if uid in (None, key.owner.uid)),
            key=lambda key: (key.created_at, key.id),
        )

    def last_used_at(self, key: Key) -> int | None:
        return self._noted.get(key.id, key.last_used_at)

    async def create(
        self, owner: Owner, name: str, *, plan: str | None, is_read_only: bool,
        expires_at: int | None, now: int,
    ) -> tuple[Key, str]:  # fmt: skip
        """Store a new key; return it with its secret, which nobody can tell again.

        Raises:
            WrongState: he has one of this name that counts, or too many.
        """
        for key in self.of(owner.uid):
            if key.name == name and _is_over(key, now):
                await self.revoke(key.id, owner, now)
        if len(self.of(owner.uid)) >= KEYS_MAX:
            raise WrongState(
                f"{owner.name} has {KEYS_MAX} keys, and no more are allowed",
                hint="revoke some: aitbcctl key revoke NAME",
            )
        random = base64.b32encode(os.urandom(_SECRET_BYTES))
        secret = PREFIX + random.decode().lower()
        digest = hashlib.sha256(secret.encode()).digest()
        key = await self._store.add_key(
            owner, name, digest, plan=plan, is_read_only=is_read_only, expires_at=expires_at, at=now
        )
        self._keep(digest, key)
        return key, secret

    async def revoke(
        self, ref: str, owner: Owner, now: int, *, but: Callable[[], None] | None = None
    ) -> Key:
        """Let a key, by its id or name, count no more; what it has open is ended, except ``but``.

        Raises:
            NoSuchKey: this user has none; of others' keys administrators know the ids.
        """
        found = [key for key in self.of(owner.uid) if ref in (key.id, key.name)]
        if owner.is_admin:
            found += [key for key in self.of(None) if key.id == ref]
        if not found:
            detail = f"there is no key '{ref[:80]}'"
            raise NoSuchKey(detail, hint="they are listed by: aitbcctl key list")
        key = found[0]
        await self._store.revoke_key(key.id, key.owner.uid, now)
        for kept in self._keys.values():
            for digest in [digest for digest, each in kept.items() if each.id == key.id]:
                del kept[digest]
        for end in list(self._open.get(key.id, ())):
            if end != but:
                end()
        return key

    @contextmanager
    def using(self, key: Key, end: Callable[[], None], now: int) -> Iterator[None]:
        """Call ``end`` when the key is revoked or expires before the block is over."""
        self._open.setdefault(key.id, []).append(end)
        timer = None
        if key.expires_at is not None:
            left_s = (key.expires_at - now) / 1e6
            timer = asyncio.get_running_loop().call_later(left_s, end)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            self._open[key.id].remove(end)
            if not self._open[key.id]:
                del self._open[key.id]

    def _keep(self, digest: bytes, key: Key) -> None:
        self._keys.setdefault(digest[:_INDEXED], {})[digest] = key


def _is_over(key: Key, now: int) -> bool:
    return key.expires_at is not None and key.expires_at <= now


def _on_noted(noted: asyncio.Future[None]) -> None:
    if not noted.cancelled() and (problem := noted.exception()):
        _log.warning("the use of a key could not be written down: %s", problem)
