"""The caller's time zone as the API takes it: by its name, else its distance from UTC now."""

from __future__ import annotations

import os
import re
from datetime import datetime

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*")
_FOLDER = "/zoneinfo/"


def local_zone() -> str:
    """Return the zone's name in the tz database, or ``+01:00``."""
    said = os.environ.get("TZ", "").removeprefix(":")
    found = said or os.path.realpath("/etc/localtime")
    name = found.partition(_FOLDER)[2] if _FOLDER in found else said
    if _NAME.fullmatch(name) and _is_known(name):
        return name
    offset = datetime.now().astimezone().strftime("%z")
    return f"{offset[:3]}:{offset[3:5]}"


def _is_known(name: str) -> bool:
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return False
    return True
