"""Which job a process on a GPU belongs to, as far as its files bear it out."""

from __future__ import annotations

import os

from aitbcd.gpus.facts import ProcessFacts
from aitbcd.paths import Paths


class Claims:
    """Believes a process that names a job whose package is being built by that very user.

    A process (or one that it descends from) says in its environment which job it is of, and anybody
    can put it there; the package of a job that runs belongs to its user, and nobody else can make
    one.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def job_of(self, process: ProcessFacts) -> str | None:
        if process.claim is None:
            return None
        try:
            owner = os.lstat(self._paths.building(process.claim)).st_uid
        except OSError:
            return None
        return process.claim if owner == process.uid else None
