"""What ``gpus --watch`` shows: GPUs, who uses them, and what waits -> lines of a screen. Pure.

A line is made of pieces, text with a style, that keep their places and widths (each character of a
bar is one): so that whoever paints needs to send only those that are others than before.

What does not fit gives way in this order: empty lines, what there is to say beyond the first
things of a GPU, at last beyond the very first, all lines below GPUs (their users move into the
GPU's own line), and GPUs themselves, which are summed up.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from aitbcctl import glyphs
from aitbcctl.client import Json
from aitbcctl.devices import GIB, driver_line, label, model
from aitbcctl.history import History
from aitbcctl.render import duration, elapsed, moment, plain, size, stands, when_short
from aitbcctl.tables import cell, columns

#: Text and its style.
Piece = tuple[str, str]
Line = tuple[Piece, ...]

_STATE_STYLES = {
    "free": "green",
    "busy": "cyan",
    "foreign": "yellow",
    "drained": "yellow",
    "quarantined": "red",
    "lost": "red",
}
_DIM = "bright_black"
_USED, _HELD = "green", "blue"
_SPARK_STYLES = {" ": "", glyphs.LEVELS[0]: _DIM}
#: Lines for a sentence about the driver.
_NOTE_LINES = 3
#: And for why a GPU is in its state.
_REASON_LINES = 2
#: Of a user, in the line of his GPU.
_USER_MOST = 10


@dataclass(frozen=True, slots=True)
class Seen:
    """What the daemon last said, and how long that is ago."""

    inventory: Json
    #: Those that have GPUs, and the first that waits for some.
    jobs: Sequence[Json]
    #: How many wait for GPUs.
    pending: int
    #: Why nothing has come since, as a sentence; None when all is well.
    trouble: str | None = None


def draw(seen: Seen, history: History, width: int, height: int, now: datetime) -> list[Line]:
    """Return the lines of a screen of this size, ``height`` at most."""
    gpus = seen.inventory["gpus"]
    top = [_header(gpus, seen.inventory, width, now)] if height > 3 else []
    bottom = _footer(seen, width, height)
    top += _notes(seen.inventory["problem"], width, height - len(top) - len(bottom))
    room = height - len(top) - len(bottom)
    body = _Body(seen, history, width, now).lines(room)
    if seen.trouble is not None:
        body = [tuple((text, _DIM) for text, _ in line) for line in body]
    lines = [*top, *body, *[()] * (room - len(body)), *bottom]
    return [_fitted(line, width) for line in lines]


# --- above and below ------------------------------------------------------------------------


def _header(gpus: Sequence[Json], inventory: Json, width: int, now: datetime) -> Line:
    states = Counter(str(gpu["state"]) for gpu in gpus)
    left: list[Piece] = [(_all_of(gpus), "bold")]
    for state, style in _STATE_STYLES.items():
        if states[state]:
            left.append((f"  {states[state]} {state}", style))
    clock = now.astimezone().strftime("%H:%M:%S")
    versions = driver_line(inventory)
    for right in (f"{versions}  " if versions else "", ""):
        gap = width - sum(columns(text) for text, _ in left) - len(right) - len(clock)
        if gap >= 2:
            return (*left, (" " * gap, ""), (right, _DIM), (clock, _DIM))
    return tuple(left)


def _all_of(gpus: Sequence[Json]) -> str:
    models = {model(gpu) for gpu in gpus}
    if len(models) == 1:
        return f"{len(gpus)} × {models.pop()}" if len(gpus) > 1 else models.pop()
    return f"{len(gpus)} GPUs" if gpus else "no GPUs"


def _notes(problem: str | None, width: int, room: int) -> list[Line]:
    if not problem:
        return []
    lines = textwrap.wrap(plain(problem), max(width, 8))
    return [((line, "yellow"),) for line in lines[: min(_NOTE_LINES, room)]]


def _footer(seen: Seen, width: int, height: int) -> list[Line]:
    if seen.trouble is not None:
        return [((cell(plain(seen.trouble), width), "black on yellow"),)] if height > 1 else []
    if height < 6:
        return []
    keys = "  q quits"
    room = width - len(keys)
    if room < 20:
        return [((keys.strip()[:width], _DIM),)]
    *above, last = textwrap.wrap(
        _waiting(seen), room, break_on_hyphens=False, max_lines=1 + (height > 15), placeholder=" …"
    )
    return [*(((line, ""),) for line in above), ((cell(last, room), ""), (keys, _DIM))]


def _waiting(seen: Seen) -> str:
    if not seen.pending:
        return "no job waits for GPUs"
    text = f"{seen.pending} job{'s wait' if seen.pending > 1 else ' waits'} for GPUs"
    first = next((job for job in seen.jobs if job["status"] == "pending"), None)
    if first is None:
        return text
    why = plain(first.get("waiting") or "")
    which = "first " if seen.pending > 1 else ""
    return f"{text}; {which}{first['job_id']} of {plain(first['user'])}" + (f": {why}" * bool(why))


def _fitted(pieces: Line, width: int) -> Line:
    """Return what of the pieces fits."""
    fitted: list[Piece] = []
    for text, style in pieces:
        wide = columns(text)
        if wide > width:
            return (*fitted, (cell(text, width), style)) if width else tuple(fitted)
        fitted.append((text, style))
        width -= wide
    return tuple(fitted)


# --- the GPUs -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Layout:
    """How wide what is: 0 for what is left out."""

    state: int = 0
    name: int = 0
    users: int = 0
    meter: int = 0
    spark: int = 0
    memory: int = 0
    held: int = 0
    temperature: int = 0
    power: int = 0
    limit: int = 0


@dataclass(slots=True)
class _Block:
    """GPUs that the same jobs have, one below the other, and the lines below them."""

    gpus: list[Json]
    below: list[Line] = field(default_factory=list)

    def height(self, most: int) -> int:
        return len(self.gpus) + min(len(self.below), most)


class _Body:
    def __init__(self, seen: Seen, history: History, width: int, now: datetime) -> None:
        self._gpus: list[Json] = seen.inventory["gpus"]
        self._jobs = {job["job_id"]: job for job in seen.jobs}
        self._history = history
        self._width = width
        self._now = now
        self._number = max(2, max((len(label(gpu)) for gpu in self._gpus), default=0))

    def lines(self, room: int) -> list[Line]:
        """Return as much as fits."""
        if not self._gpus:
            return []
        blocks = self._blocks()
        most = max(len(block.below) for block in blocks)
        for below in range(most, min(most, 1) - 1, -1):
            height = sum(block.height(below) for block in blocks)
            if height <= room:
                has_gaps = height + 1 + len(blocks) <= room
                return list(
                    self._full(blocks, below, has_gaps=has_gaps, has_head=has_gaps or height < room)
                )
        return self._alone(room)

    def _full(
        self, blocks: Sequence[_Block], most: int, *, has_gaps: bool, has_head: bool
    ) -> Iterator[Line]:
        layout = self._layout(has_users=False)
        if has_gaps:
            yield ()
        if has_head:
            yield self._head(layout)
        for at, block in enumerate(blocks):
            if has_gaps and at:
                yield ()
            for place, gpu in enumerate(block.gpus):
                yield self._row(gpu, layout, _bracket(place, len(block.gpus)))
            if len(block.below) <= most:
                yield from block.below
            elif most == 1:
                yield self._with_rest(block.below[0], len(block.below) - 1)
            else:
                yield from block.below[: most - 1]
                yield ((f"{self._indent}… {len(block.below) - most + 1} more", _DIM),)

    def _with_rest(self, line: Line, count: int) -> Line:
        """Return a line that says how many more there would be, whatever of it that costs."""
        rest = f"  +{count}"
        return (*_fitted(line, max(0, self._width - len(rest))), (rest, _DIM))

    def _alone(self, room: int) -> list[Line]:
        """Return a line a GPU, with its users in it, and one for those that do not fit."""
        layout = self._layout(has_users=True)
        shown = self._gpus if len(self._gpus) <= room else self._gpus[: max(0, room - 1)]
        lines = [self._row(gpu, layout, " ") for gpu in shown]
        if rest := self._gpus[len(shown) :]:
            lines.append(((_summed_up(rest), _DIM),))
        elif len(lines) < room:
            lines.insert(0, self._head(layout))
        return lines[:room]

    @property
    def _indent(self) -> str:
        return " " * (1 + self._number + 2)

    # -- a GPU's line --

    def _layout(self, *, has_users: bool) -> _Layout:
        """Give room to what matters most first, then let grow what can."""
        layout = _Layout()
        left = self._width - 1 - self._number - 2 - len("100%")
        states = max(len(str(gpu["state"])) for gpu in self._gpus)
        names = max(columns(_short(gpu)) for gpu in self._gpus)
        is_mixed = len({model(gpu) for gpu in self._gpus}) > 1
        least = [
            ("state", states, 2),
            ("users", 14 * has_users, 2),
            ("name", min(10, names) * is_mixed, 2),
            ("spark", 11, 2),
            ("memory", len(self._memory(self._gpus[0])), 2),
            ("meter", 6, 1),
            ("temperature", 4, 2),
            ("power", 5, 2),
            ("held", 6, 1),
            ("limit", 4 * (not has_users), 0),
        ]
        for name, width, gap in least:
            if width and left >= width + gap:
                setattr(layout, name, width)
                left -= width + gap
        for name, most in (
            ("users", 24), ("spark", 15), ("name", names), ("meter", 10), ("held", 10),
            ("spark", 30), ("meter", 20), ("held", 20), ("users", 44), ("spark", 60),
        ):  # fmt: skip
            if has := getattr(layout, name):
                grown = min(most, has + left)
                if grown > has:
                    setattr(layout, name, grown)
                    left -= grown - has
        return layout

    def _head(self, layout: _Layout) -> Line:
        text = " " + cell("GPU", self._number + 2 + layout.state)
        if layout.name:
            text += "  " + cell("MODEL", layout.name)
        text += "  " + cell("UTIL", 4 + (layout.meter and layout.meter + 1))
        if layout.spark:
            text += "  " + cell("LAST MINUTE", layout.spark)
        if layout.memory:
            text += "  " + cell("MEMORY", layout.memory + (layout.held and layout.held + 1))
        if layout.power:
            text += "  " + cell("POWER", layout.power + layout.limit)
        if layout.temperature:
            text += "  " + cell("TEMP", layout.temperature)
        if layout.users:
            text += "  USED BY"
        return ((text.rstrip(), _DIM),)

    def _row(self, gpu: Json, layout: _Layout, bracket: str) -> Line:
        state = str(gpu["state"])
        used = gpu.get("utilization")
        pieces: list[Piece] = [
            (bracket, _DIM),
            (label(gpu).rjust(self._number), "bold"),
        ]
        if layout.state:
            pieces.append(("  " + cell(state, layout.state), _STATE_STYLES.get(state, "")))
        if layout.name:
            pieces.append(("  " + cell(_short(gpu), layout.name), ""))
        pieces.append(("  " + ("-" if used is None else f"{used}%").rjust(4), ""))
        if layout.meter:
            pieces += _bar((used or 0) / 100, layout.meter, _USED)
        if layout.spark:
            line = glyphs.sparkline(self._history.columns(gpu["uuid"], layout.spark))
            pieces.append(("  ", ""))
            pieces += [(char, _SPARK_STYLES.get(char, _USED)) for char in line]
        if layout.held:
            share = gpu["memory_used"] / gpu["memory_total"] if gpu["memory_total"] else 0
            pieces += [(" ", ""), *_bar(share, layout.held, _HELD)]
        if layout.memory:
            gap = " " if layout.held else "  "
            pieces.append((gap + self._memory(gpu).rjust(layout.memory), ""))
        if layout.power:
            pieces.append(("  " + _power(gpu, layout), _DIM))
        if layout.temperature:
            heat = gpu.get("temperature")
            text = "-" if heat is None else f"{heat}°C"
            pieces.append(("  " + text.rjust(layout.temperature), _DIM))
        if layout.users:
            pieces.append(("  " + cell(self._users(gpu, layout.users), layout.users), ""))
        return tuple(pieces)

    def _memory(self, gpu: Json) -> str:
        total = f"{gpu['memory_total'] / GIB:.0f}"
        return f"{gpu['memory_used'] / GIB:.1f}".rjust(len(total) + 2) + f"/{total} GiB"

    def _users(self, gpu: Json, width: int) -> str:
        """Return who has a GPU, in the GPU's own line, with how many there are more."""
        jobs = [self._jobs.get(job_id, {"job_id": job_id}) for job_id in gpu["jobs"]]
        words = [
            (
                f"{_cut(plain(job.get('user', '')), _USER_MOST)}"
                f" {plain(job.get('name') or job['job_id'])}".strip(),
                _percent(job),
            )
            for job in jobs
        ]
        words += [(plain(one["user"] or "?"), f" (pid {one['pid']})") for one in _foreign(gpu)]
        if not words:
            return plain(gpu.get("reason") or "")
        who, rest = words[0]
        rest += f" +{len(words) - 1}" if len(words) > 1 else ""
        return _cut(who, max(_USER_MOST, width - len(rest))) + rest

    # -- below a GPU --

    def _blocks(self) -> list[_Block]:
        blocks: list[_Block] = []
        told: dict[str, Json] = {}
        widths = self._job_widths()
        for _, group in groupby(enumerate(self._gpus), key=_together):
            block = _Block([gpu for _, gpu in group])
            gpu = block.gpus[0]
            for job_id in gpu["jobs"]:
                first = told.setdefault(job_id, gpu)
                where = None if first is gpu else f"as on GPU {label(first)}"
                block.below.append(self._job(job_id, widths, where, block))
            block.below += [self._process(one) for one in _foreign(gpu)]
            if not (gpu["state"] == "foreign" and _foreign(gpu)):
                block.below += self._sentence(gpu.get("reason") or "")
            blocks.append(block)
        return blocks

    def _job_widths(self) -> tuple[int, int, int]:
        """Return how wide users, names, and progress bars are."""
        shown = [job for job in self._jobs.values() if job["status"] != "pending"]
        users = min(12, max((columns(plain(job["user"])) for job in shown), default=0))
        names = min(40, max((columns(plain(job.get("name") or "-")) for job in shown), default=0))
        times = min(32, max((len(self._times(job)) for job in shown), default=0))
        left = self._width - len(self._indent) - len("job_7k3m9q2x") - users - times - 4 - 8
        if any(len(gpu["jobs"]) > 1 for gpu in self._gpus):
            left -= len("  +99")  # see _with_rest
        # A name that is cut tells less than a bar beside its percentage.
        bar = 10 if left >= names + 11 else 0
        return users, max(0, min(names, left)), bar

    def _job(
        self, job_id: str, widths: tuple[int, int, int], where: str | None, block: _Block
    ) -> Line:
        job = self._jobs.get(job_id)
        begin: list[Piece] = [(self._indent, "")]
        if job is None:
            return (*begin, (plain(job_id), ""))
        users, names, bar = widths
        begin.append((job_id, "bold" if job.get("is_mine") else ""))
        begin.append(("  " + cell(plain(job["user"]), users), "magenta"))
        if names >= 4:
            begin.append(("  " + cell(plain(job.get("name") or "-"), names), ""))
        if where is not None:
            return (*begin, ("  " + where, _DIM))
        begin.append(("  " + _percent(job).strip().rjust(4), ""))
        if bar:
            begin += _bar(job["progress"] / 100, bar, "cyan")
        begin.append(("  " + self._times(job), _DIM))
        elsewhere = len(job["gpu_uuids"]) - len(block.gpus)
        if elsewhere > 0:
            begin.append((f", and on {elsewhere} more GPU{'s' * (elsewhere > 1)}", _DIM))
        return tuple(begin)

    def _times(self, job: Json) -> str:
        """Return how long a job has run, and how long it will; else where it stands."""
        ran = elapsed(job, self._now)
        if job["status"] != "running" or ran is None:
            return stands(job) + (f": {plain(job['waiting'])}" if job.get("waiting") else "")
        text = _roughly(ran)
        if (left := self._left(job.get("estimated_completion"))) is not None:
            return f"{text}, {left} left"
        if (left := self._left(job.get("until"))) is not None:
            return f"{text}, {left} at most"
        return text

    def _left(self, until: str | None) -> str | None:
        end = moment(until)
        seconds = (end - self._now).total_seconds() if end is not None else 0
        return _roughly(seconds) if seconds >= 1 else None

    def _sentence(self, text: str) -> Iterator[Line]:
        width = max(self._width - len(self._indent), 8)
        for line in textwrap.wrap(plain(text), width)[:_REASON_LINES]:
            yield (self._indent, ""), (line, "yellow")

    def _process(self, one: Json) -> Line:
        memory = "?" if one["memory"] is None else size(one["memory"])
        since = f"  since {when_short(one['since'], self._now)}" if one.get("since") else ""
        return (
            (self._indent, ""),
            (plain(one["user"] or "?"), "yellow"),
            (f"  pid {one['pid']}  {memory}{since}  {plain(one['command'] or '?')}", ""),
        )


def _together(place: tuple[int, Json]) -> object:
    """Return what GPUs one below the other share when they are shown as one block."""
    at, gpu = place
    is_plain = gpu["jobs"] and not gpu.get("reason") and not _foreign(gpu)
    return tuple(gpu["jobs"]) if is_plain else at


def _short(gpu: Json) -> str:
    """Return a model's name without its brand; of a MIG device its profile, as ``1g.10gb``."""
    name = model(gpu).removeprefix("GeForce ").removeprefix("Tesla ")
    return name.rpartition(" MIG ")[2] if gpu.get("mig") else name


def _bracket(at: int, count: int) -> str:
    if count == 1:
        return " "
    return "┌" if at == 0 else "└" if at == count - 1 else "│"


def _bar(share: float, width: int, style: str) -> list[Piece]:
    filled, rest = glyphs.bar(share, width)
    return [(" ", ""), *((char, style) for char in filled), *((char, _DIM) for char in rest)]


def _cut(text: str, most: int) -> str:
    return cell(text, min(columns(text), most))


def _roughly(seconds: float) -> str:
    """Return a duration that does not change with every refresh for long."""
    return duration(int(seconds)) if not 300 <= seconds < 3600 else f"{seconds / 60:.0f} min"


def _percent(job: Json) -> str:
    return f" {job['progress']}%" if job.get("progress") else ""


def _power(gpu: Json, layout: _Layout) -> str:
    if gpu.get("power") is None:
        return "-".rjust(layout.power + layout.limit)
    limit = gpu.get("power_limit")
    text = f"{gpu['power']:.0f}"
    if layout.limit and limit is not None:
        text += f"/{limit:.0f}"
    return f"{text} W".rjust(layout.power + layout.limit)


def _foreign(gpu: Json) -> list[Json]:
    return [one for one in gpu["processes"] if one.get("foreign")]


def _summed_up(gpus: Sequence[Json]) -> str:
    states = Counter(str(gpu["state"]) for gpu in gpus)
    used = [gpu["utilization"] for gpu in gpus if gpu.get("utilization") is not None]
    text = f" … {len(gpus)} more: " + ", ".join(
        f"{states[state]} {state}" for state in _STATE_STYLES if states[state]
    )
    return text + (f"; {sum(used) // len(used)}% used" if used else "")
