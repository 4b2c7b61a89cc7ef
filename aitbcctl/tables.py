"""Rows -> a table that fits the terminal. Pure.

What gives way on a narrow terminal is the longest text, and never what a line is found by.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime

from aitbcctl.render import (
    Json,
    aligned,
    duration,
    elapsed,
    energy,
    how,
    moment,
    money,
    plain,
    share_of,
    size,
    stands,
    when,
    when_short,
)

#: A column that gives way keeps so much.
_LEAST = 8
#: Of a note that stands in its line, as "until 17:37:49".
_SHORT_NOTE = 14


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
        giving: the columns that are cut when the lines are too long, the widest one first.
    """
    lines = [list(row) for row in rows]
    kept = [i for i in range(len(header)) if not lines or any(line[i] for line in lines)]
    names = [header[i] for i in kept]
    cells = [names, *([line[i] for i in kept] for line in lines)]
    widths = [max(columns(row[i]) for row in cells) for i in range(len(names))]
    if width is not None:
        may_give = [names.index(name) for name in giving if name in names]
        _narrow(widths, may_give, sum(widths) + 2 * (len(widths) - 1) - width)
    sides = [name in right for name in names]
    return "\n".join(_line(row, widths, sides, width) for row in cells)


def _narrow(widths: list[int], may_give: Sequence[int], excess: int) -> None:
    while excess > 0 and may_give:
        widest = max(may_give, key=lambda i: widths[i])
        if widths[widest] <= _LEAST:
            return
        widths[widest] -= 1
        excess -= 1


def _line(
    row: Sequence[str], widths: Sequence[int], sides: Sequence[bool], width: int | None
) -> str:
    line = "  ".join(cell(text, widths[i], right=sides[i]) for i, text in enumerate(row)).rstrip()
    return line if width is None else cell(line, max(width, 1)).rstrip()


def cell(text: str, width: int, *, right: bool = False) -> str:
    """Return ``text`` in exactly ``width`` columns, cut where it is longer."""
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
    return table(header, rows, width, right=("NO",), giving=("NAME", "NOTE", "USER"))


def _row(job: Json, now: datetime, *, has_users: bool) -> list[str]:
    ran = elapsed(job, now)
    return [
        str(job["job_id"]),
        str(job["number"]),
        plain(job["user"]) if has_users else "",
        stands(job),
        plain(job.get("name") or job.get("command_line") or "-"),
        when_short(job["created_at"], now),
        "-" if ran is None else duration(int(ran)),
        _note(job),
    ]


def _note(job: Json) -> str:
    if job["status"] == "failed":
        why = how(job) if job.get("reason") in ("exit", "signal") else plain(_why(job))
        return f"{plain(job['cause'])}, {why}" if job.get("cause") else why
    return plain(job.get("waiting") or "")


def _why(job: Json) -> str:
    return str(job.get("message") or job.get("reason") or "")


# --- the queue ------------------------------------------------------------------------------


def queue_table(jobs: Sequence[Json], width: int | None, now: datetime) -> str:
    """Return everybody's jobs that run or wait, in order.

    On a narrow terminal a note that is too long for its line stands below it: what a job waits for
    is what people look for here.
    """
    header = ("", "JOB", "USER", "STATUS", "NAME", "CPUS", "GPUS", "SINCE", "NOTE")
    right = ("CPUS", "GPUS")
    rows = [_queued(job, now) for job in jobs]
    whole = table(header, rows, None, right=right)
    if width is None or max(map(columns, whole.splitlines())) <= width:
        return whole
    rest = [row[:-1] for row in rows]
    least = [[mine, job, _cut(user), state, _cut(name), *more]
             for mine, job, user, state, name, *more in rest]  # fmt: skip
    taken = max(map(columns, table(header[:-1], least, None).splitlines()))
    room = min(width, max(taken, width - _SHORT_NOTE - 2))
    lines = table(header[:-1], rest, room, right=right, giving=("NAME", "USER")).splitlines()
    at = max(map(columns, lines)) + 2
    head = cell(lines[0], at) + header[-1] if at + len(header[-1]) <= width else lines[0]
    below = [
        _with_note(line, row[-1], at, width) for line, row in zip(lines[1:], rows, strict=True)
    ]
    return "\n".join([head, *below])


def _cut(text: str) -> str:
    return cell(text, min(columns(text), _LEAST))


def _with_note(line: str, note: str, at: int, width: int) -> str:
    if at + columns(note) <= width:
        return (cell(line, at) + note).rstrip()
    indent = "   "
    wrapped = textwrap.wrap(note, max(width, 8), initial_indent=indent, subsequent_indent=indent)
    return "\n".join([line, *wrapped])


def _queued(job: Json, now: datetime) -> list[str]:
    until = f"until {when_short(job['until'], now)}" if job.get("until") else ""
    return [
        "*" if job.get("is_mine") else "",
        str(job["job_id"]),
        plain(job["user"]),
        stands(job),
        plain(job.get("name") or "-"),
        str(job["cpus"]),
        str(job["gpus"] or ""),
        when_short(job["since"], now),
        plain(job.get("waiting") or until),
    ]


# --- statistics -----------------------------------------------------------------------------


def totals(total: Json) -> str:
    """Return what all jobs of a period come to, a line each."""
    causes = _causes(total)
    return aligned([
        ("Total jobs submitted", str(total["submitted"])),
        ("Completed", str(total["completed"])),
        ("Failed", f"{total['failed']}" + f" ({causes})" * bool(causes)),
        ("Canceled", str(total["canceled"])),
        ("Success rate", _rate(total)),
        ("Average completion time", _span(total["average_completion_s"])),
        ("Wait in the queue", _wait(total)),
        ("CPU time", f"{total['cpu_hours']:.2f} h"),
        ("GPU time", f"{total['gpu_hours']:.2f} h"),
        ("GPU energy", energy(total.get("gpu_energy_j") or 0)),
        ("Total spent", money(total["spent"], total["currency"])),
    ])  # fmt: skip


def _causes(total: Json) -> str:
    causes = (total.get("causes") or {}).items()
    found = sorted(causes, key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{jobs} {plain(cause)}" for cause, jobs in found)


def _rate(total: Json) -> str:
    return "-" if total["success_rate"] is None else share_of(total["success_rate"])


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds < 1 else duration(round(seconds, 1))


def _wait(total: Json) -> str:
    if total["wait_median_s"] is None:
        return "-"
    return f"{_span(total['wait_median_s'])} (median), {_span(total['wait_p95_s'])} (95 of 100)"


def _key(group: Json) -> str:
    if group.get("is_rest"):
        return "(all others)"
    return "-" if group["key"] is None else plain(group["key"])


def group_table(by: str, groups: Sequence[Json], width: int | None) -> str:
    """Return a line for each user, name or day."""
    header = (by.upper(), "JOBS", "DONE", "FAILED", "CANCELED", "SUCCESS", "AVERAGE", "CPU-H",
              "GPU-H", "ENERGY", "SPENT", "FAILED BY")  # fmt: skip
    rows = [
        [
            _key(group),
            str(group["submitted"]),
            str(group["completed"]),
            str(group["failed"]),
            str(group["canceled"]),
            _rate(group),
            _span(group["average_completion_s"]),
            f"{group['cpu_hours']:.2f}",
            f"{group['gpu_hours']:.2f}" if group["gpu_hours"] else "",
            energy(group["gpu_energy_j"]) if group.get("gpu_energy_j") else "",
            money(group["spent"], "") if group["spent"] else "",
            _causes(group),
        ]
        for group in groups
    ]
    return table(header, rows, width, right=header[1:-1], giving=(by.upper(), "FAILED BY"))


# --- shares, keys, retention ----------------------------------------------------------------


def share_table(shares: Sequence[Json], width: int | None) -> str:
    header = ("ID", "JOB", "FOR", "UNTIL", "USES")
    rows = [
        [plain(one["id"]), plain(one["job_id"]), plain(one["with"] or "whoever has the link"),
         when(one["expires_at"]), str(one["uses"])]
        for one in shares
    ]  # fmt: skip
    return table(header, rows, width, right=("USES",), giving=("FOR",))


def key_table(keys: Sequence[Json], width: int | None) -> str:
    header = ("NAME", "ID", "USER", "PLAN", "CAN", "CREATED", "UNTIL", "LAST USED")
    has_users = len({key.get("user") for key in keys}) > 1
    rows = [
        [plain(key["name"]), plain(key["id"]), plain(key["user"]) if has_users else "",
         plain(key.get("plan") or ""), "read" if key.get("read_only") else "",
         when(key.get("created_at"))[:10], when(key.get("expires_at"))[:10],
         when(key.get("last_used_at"))[:10]]
        for key in keys
    ]  # fmt: skip
    return table(header, rows, width, giving=("NAME", "USER"))


def expiry_table(jobs: Sequence[Json], width: int | None, now: datetime) -> str:
    header = ("JOB", "NAME", "SIZE", "GOES", "IN")
    rows = [
        [plain(job["job_id"]), plain(job.get("name") or "-"), size(job["result_bytes"]),
         when(job["expires_at"]), _left(job["expires_at"], now)]
        for job in jobs
    ]  # fmt: skip
    return table(header, rows, width, right=("SIZE",), giving=("NAME",))


def _left(text: str, now: datetime) -> str:
    at = moment(text)
    seconds = (at - now).total_seconds() if at is not None else 0
    return duration(int(seconds)) if seconds > 0 else "now"
