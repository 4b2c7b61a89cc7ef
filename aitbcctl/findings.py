"""What a check of ``aitbcctl doctor`` finds."""

from __future__ import annotations

from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "fail"


class Finding(NamedTuple):
    #: What was looked at.
    about: str
    state: str
    detail: str
    #: What to do, where something is to be done.
    hint: str | None = None
