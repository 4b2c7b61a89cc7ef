"""How far a job is, as it says itself. Pure: takes bytes, returns a percentage.

Two sources: what the job wrote to $AITBC_PROGRESS (a number from 0 to 100, or ``done/total``,
rewritten or appended; the last line that is one counts), and a tqdm bar at the end of its stderr.
"""

from __future__ import annotations

import math
import re

#: How much of the end of a file is worth reading for it.
TAIL_BYTES = 4096

_NUMBER = rb"\d{1,18}(?:\.\d*)?|\.\d{1,18}"
_PERCENT = re.compile(rb"\s*(%s)\s*%%?\s*" % _NUMBER)
_RATIO = re.compile(rb"\s*(%s)\s*/\s*(%s)\s*" % (_NUMBER, _NUMBER))
#: `` 45%|####      | 45/100 [00:01<00:01, 30it/s]``, with a description before it or none.
_TQDM = re.compile(rb"(?<!\d)(\d{1,3})%\|[^|\r\n]*\|")


def from_file(tail: bytes) -> int | None:
    """Return the percentage in the end of a progress file, None when there is none yet."""
    for line in reversed(tail.splitlines()):
        if (percent := _of_line(line)) is not None:
            return percent
    return None


def from_stderr(tail: bytes) -> int | None:
    """Return the percentage of the last tqdm bar in the end of a log, None without one."""
    bars = _TQDM.findall(tail)
    return _clamp(int(bars[-1])) if bars else None


def _of_line(line: bytes) -> int | None:
    if found := _RATIO.fullmatch(line):
        done, total = float(found[1]), float(found[2])
        return _clamp(100 * done / total) if total else None
    found = _PERCENT.fullmatch(line)
    return _clamp(float(found[1])) if found else None


def _clamp(percent: float) -> int:
    # Rounded down: 100 is said when all is done, not when it is near.
    return max(0, min(100, math.floor(percent)))
