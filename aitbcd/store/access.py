"""What a transaction does with API keys and shares. It knows no secret, only their digests."""

from __future__ import annotations

from msgspec import Struct

from aitbcd.errors import NoSuchJob, WrongState
from aitbcd.model import Key, Owner, Share
from aitbcd.store import rows
from aitbcd.store.expiry import find
from aitbcd.store.ids import JobIds
from aitbcd.store.sql import QUERIES
from aitbcd.store.writer import Transaction


class NewKey(Struct, frozen=True):
    owner: Owner
    name: str
    #: sha256 of the secret.
    digest: bytes
    plan: str | None
    is_read_only: bool
    expires_at: int | None
    at: int


class NewShare(Struct, frozen=True):
    number: int
    owner: Owner
    #: sha256 of a link's secret, or None.
    digest: bytes | None
    #: Whom it is for, or None.
    user: str | None
    expires_at: int
    at: int


class Access:
    """The changes; ids are those of the store."""

    def __init__(self, ids: JobIds) -> None:
        self._ids = ids

    def add_key(self, transaction: Transaction, new: NewKey) -> Key:
        execute, owner = transaction.execute, new.owner
        if execute(QUERIES["live_key"], (owner.uid, new.name)).fetchone() is not None:
            raise WrongState(
                f"{owner.name} has a key named {new.name} already",
                hint=f"give another name, or first: aitbcctl key revoke {new.name}",
                field="name",
            )
        values = (
            owner.uid, owner.name, new.name, new.digest, new.plan, int(new.is_read_only), new.at,
            new.expires_at,
        )  # fmt: skip
        number = execute(QUERIES["insert_key"], values).lastrowid
        return rows.key(execute(QUERIES["key"], (number,)).fetchone(), self._ids)

    def revoke_key(self, transaction: Transaction, work: tuple[str, int | None, int]) -> Key | None:
        """Revoke a key; None where this user has none of this id."""
        key_id, uid, at = work
        number = self._ids.number_of(key_id, "key_")
        row = transaction.execute(QUERIES["key"], (number,)).fetchone()
        if row is None or uid not in (None, row[1]) or row[8] is not None:
            return None
        transaction.execute(QUERIES["revoke_key"], (at, number))
        return rows.key(transaction.execute(QUERIES["key"], (number,)).fetchone(), self._ids)

    def used_key(self, transaction: Transaction, work: tuple[str, int]) -> None:
        key_id, at = work
        transaction.execute(QUERIES["use_key"], (at, self._ids.number_of(key_id, "key_")))

    def add_share(self, transaction: Transaction, new: NewShare) -> Share:
        execute = transaction.execute
        held = find(transaction, new.number)
        if held is None:
            raise NoSuchJob(f"there is no job {self._ids.of(new.number)}", job=new.number)
        if held.results != "kept":
            raise WrongState(
                f"job {self._ids.of(new.number)} is {held.status} and has no results to share",
                hint="results can be shared once there are any, and until they expire",
                state=held.status,
            )
        # A share does not outlive the results.
        until = min(new.expires_at, held.expires_at or new.expires_at)
        values = (new.number, new.owner.uid, new.digest, new.user, new.at, until)
        share = execute(QUERIES["insert_share"], values).lastrowid
        return self._share(transaction, share)

    def revoke_shares(self, transaction: Transaction, work: tuple[int, int]) -> int:
        """Revoke all shares of a job; returns how many there were."""
        number, at = work
        return transaction.execute(QUERIES["revoke_shares"], (at, number)).rowcount

    def used_share(self, transaction: Transaction, work: tuple[str, int]) -> None:
        share_id, at = work
        transaction.execute(QUERIES["use_share"], (at, self._ids.number_of(share_id, "share_")))

    def _share(self, transaction: Transaction, number: int | None) -> Share:
        statement = f"{QUERIES['select_share']} {QUERIES['share_by_id']}"
        return rows.share(transaction.execute(statement, {"id": number}).fetchone(), self._ids)
