"""Rows -> a table that fits the terminal. Pure.

What gives way on a narrow terminal is the longest text, and never what a line is found by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from aitbcctl.render import Json, duration, elapsed, how, plain, stands, when_short

#: A column that gives way keeps so much.
_LEAST = 8


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int | None,
    *,
    right: Iterable[str] = (),
    giving: Sequence[str] = (),
) -> str:
    """Return lines in columns; those that are empty in every row are left out.

    Args:
        width: of the terminal; None cuts nothing.
        right: the columns that are set to the right.
        giving: the columns that are cut when the lines are too long, the first one first.
    """
    lines = [list(row) for row in rows]
    kept = [i for i in range(len(header)) if not lines or any(line[i] for line in lines)]
    names = [header[i] for i in kept]
    cells = [names, *([line[i] for i in kept] for line in lines)]
    widths = [max(columns(row[i]) for row in cells) for i in range(len(names))]
    if width is not None:
        for i in [names.index(name) for name in giving if name in names]:
            excess = sum(widths) + 2 * (len(widths) - 1) - width
            if excess > 0:
                widths[i] = max(widths[i] - excess, min(widths[i], _LEAST))
    sides = [name in right for name in names]
    return "\n".join(_line(row, widths, sides, width) for row in cells)


def _line(
    row: Sequence[str], widths: Sequence[int], sides: Sequence[bool], width: int | None
) -> str:
    line = "  ".join(_cell(text, widths[i], right=sides[i]) for i, text in enumerate(row)).rstrip()
    return line if width is None else _cell(line, max(width, 1)).rstrip()


def _cell(text: str, width: int, *, right: bool = False) -> str:
    if columns(text) > width:
        while columns(text) > width - 1:
            text = text[:-1]
        text += "…"
    padding = " " * (width - columns(text))
    return padding + text if right else text + padding


def columns(text: str) -> int:
    """Return how many cells of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text
    )


# --- jobs -----------------------------------------------------------------------------------


def job_table(jobs: Sequence[Json], width: int | None, now: datetime) -> str:
    """Return one's jobs, a line each; with their users where there are several."""
    has_users = len({job["user"] for job in jobs}) > 1
    header = ("JOB", "NO", "USER", "STATUS", "NAME", "SUBMITTED", "TIME", "NOTE")
    rows = [_row(job, now, has_users=has_users) for job in jobs]
    return table(header, rows, width, right=("NO",), giving=("NOTE", "NAME", "USER"))


def _row(job: Json, now: datetime, *, has_users: bool) -> list[str]:
    ran = elapsed(job, now)
    return [
        str(job["job_id"]),
        str(job["number"]),
        plain(job["user"]) if has_users else "",
        stands(job),
        plain(job.get("name") or "-"),
        when_short(job["created_at"], now),
        "-" if ran is None else duration(int(ran)),
        _note(job),
    ]


def _note(job: Json) -> str:
    if job["status"] == "failed":
        return how(job) if job.get("reason") in ("exit", "signal") else plain(_why(job))
    return plain(job.get("waiting") or "")


def _why(job: Json) -> str:
    return str(job.get("message") or job.get("reason") or "")
