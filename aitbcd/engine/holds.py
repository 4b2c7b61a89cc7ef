"""Which jobs have GPUs, and what those held before, over restarts of the daemon: one small file.

It is written whenever a GPU is given or taken back, and never synced: no memory of a GPU outlives
the boot, and what a daemon wrote that was killed is there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

_log = logging.getLogger(__name__)


class Kept(Struct, frozen=True):
    """What an attempt has, or has still to give back."""

    number: int
    job_id: str
    attempt: int
    uuids: tuple[str, ...]
    #: Bytes for which nobody accounted when it was given, by UUID; nothing where that is unknown.
    before: dict[str, int]


class _Record(Struct, frozen=True):
    boot_id: str
    holds: tuple[Kept, ...]


class Holds:
    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id
        #: That it cannot be written is said already.
        self._is_told = False

    def read(self) -> tuple[Kept, ...]:
        """Return what an earlier daemon of this boot wrote last."""
        try:
            record = msgspec.json.decode(self._path.read_bytes(), type=_Record)
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as problem:
            _log.warning("what GPUs held before their jobs is not known: %s", problem)
            return ()
        return record.holds if record.boot_id == self._boot_id else ()

    def write(self, holds: Iterable[Kept]) -> None:
        new = self._path.with_name(self._path.name + ".new")
        record = _Record(self._boot_id, tuple(holds))
        try:
            with open(new, "wb", opener=_private) as file:
                file.write(msgspec.json.encode(record) + b"\n")
            os.replace(new, self._path)
        except OSError as problem:
            # Known for as long as this daemon lives.
            if not self._is_told:
                _log.error("%s could not be written: %s", self._path, problem.strerror)
            self._is_told = True
        else:
            self._is_told = False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
