"""Durations and sizes as people write them: ``2h``, ``1h30m``, ``16G``, ``40GiB``. Pure.

Durations are seconds (float), sizes bytes (int). Sizes are binary: ``G``, ``GB`` and ``GiB`` are
all 2**30, as in systemd and Slurm, because memory is what they measure here.
"""

from __future__ import annotations

import math
import re

_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_NAMES = {
    "sec": "s", "secs": "s", "second": "s", "seconds": "s",
    "min": "m", "mins": "m", "minute": "m", "minutes": "m",
    "hour": "h", "hours": "h", "hr": "h", "hrs": "h",
    "day": "d", "days": "d", "week": "w", "weeks": "w",
}  # fmt: skip
_PART = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.ASCII)
_SIZE = re.compile(r"\s*(\d{1,40}(?:\.\d*)?|\.\d+)\s*([kmgtp]?)(?:i?b)?\s*", re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

#: Longer than any job, and far inside what a 64-bit count of microseconds holds.
DURATION_MAX_S = 100 * 365 * 86400.0
SIZE_MAX = 2**62


def _positive(digits: int) -> str:
    return rf"(?:[1-9][0-9]{{0,{digits - 1}}}(?:\.[0-9]{{0,9}})?|0?\.[0-9]{{0,8}}[1-9])"


#: Regular expressions for JSON schemas (ECMA-262) of what is surely in range: the larger a unit,
#: the fewer digits. A duration is more than nothing.
DURATION_PATTERN = (
    rf"^ *{_positive(9)} *$|^(?: *(?:{_positive(9)} *[mM]?[sS]"
    rf"|{_positive(6)} *[mM]|{_positive(4)} *[hHdD]|{_positive(3)} *[wW])){{1,3}} *$"
)
#: What is surely meant as an amount of memory: 16G, or a million bytes and more; not 16.
MEMORY_LEAST = 10**6
MEMORY_PATTERN = (
    rf"^ *(?:[1-9][0-9]{{6,17}}|{_positive(12)} *[mM]|{_positive(9)} *[gG]"
    rf"|{_positive(6)} *[tT]|{_positive(3)} *[pP])(?:[iI]?[bB])? *$"
)

_DURATION_FORMS = "seconds, or a number with ms, s, m, h, d or w, for example 90, 2h or 1h30m"
_SIZE_FORMS = "bytes, or a number with K, M, G or T, for example 500M, 16G or 40GiB"


def parse_duration(value: str | int | float) -> float:
    """Return seconds.

    Raises:
        ValueError: ``value`` is not a duration; the text says what is one.
    """
    seconds = _parts(value) if isinstance(value, str) else _number(value)
    if seconds is None:
        raise ValueError(f"{_shown(value)} is not a duration: expected {_DURATION_FORMS}")
    if not 0 <= seconds <= DURATION_MAX_S:
        raise ValueError(f"{_shown(value)} is out of range: a duration is between 0 and 100 years")
    return seconds


def parse_size(value: str | int) -> int:
    """Return bytes.

    Raises:
        ValueError: ``value`` is not a size; the text says what is one.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{_shown(value)} is not a size: expected {_SIZE_FORMS}")
    size = value if isinstance(value, int) else _size(value)
    if size is None:
        raise ValueError(f"{_shown(value)} is not a size: expected {_SIZE_FORMS}")
    if not 0 <= size <= SIZE_MAX:
        raise ValueError(f"{_shown(value)} is out of range: a size is between 0 and 4 EiB")
    return size


def format_size(size: int) -> str:
    """Return a size with one decimal where it has one: ``512 B``, ``1.5 GiB``."""
    value, unit = float(size), "B"
    for name in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, name
    text = f"{value:.1f}".removesuffix(".0")
    return f"{text} {unit}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return math.inf
    return None if math.isnan(seconds) else seconds


def _parts(text: str) -> float | None:
    total, at, seen = 0.0, 0, 0
    lowered = text.lower()
    while at < len(lowered):
        found = _PART.match(lowered, at)
        if found is None:
            return None
        unit = _NAMES.get(found[2], found[2])
        # "90" alone is seconds; in "1h30" nobody can tell what the 30 are.
        if unit not in _SECONDS or (unit == "" and (seen or found.end() < len(lowered))):
            return None
        total += float(found[1]) * _SECONDS[unit]
        at, seen = found.end(), seen + 1
    return total if seen else None


def _size(text: str) -> int | None:
    found = _SIZE.fullmatch(text.lower())
    if found is None:
        return None
    if found[1].isdigit():
        return int(found[1]) << (10 * _POWERS[found[2]])
    size = float(found[1]) * 1024 ** _POWERS[found[2]]
    return int(size) if size <= SIZE_MAX else SIZE_MAX + 1
