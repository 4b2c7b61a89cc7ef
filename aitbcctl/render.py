"""Values of the API -> text for people. Pure: no I/O, no clock; the width and ``now`` come in.

Whatever a user chose (names, messages, paths) passes ``plain``: a job's name cannot move the
cursor or set the title of somebody's terminal. Times are shown in the local zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]

_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
#: Of a job's files, so many are shown.
_FILES_MAX = 20
_JOINERS = "\u200c\u200d"
#: What may pass from a log to a terminal: colours, erasing and moving within what was printed.
_HARMLESS = rb"\x1b\[[0-9;:]{0,32}[mKABCDGJ]|\x1b\[\?25[hl]"
#: The beginning of what might become one of these, or a C1 control, in the next piece.
_BEGUN = rb"(?P<held>\x1b(?:\[[0-9;:?]{0,32})?\Z|\xc2\Z)"
_CONTROLS = rb"\xc2[\x80-\x9f]|[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f]"
_ESCAPES = re.compile(b"|".join((_HARMLESS, _BEGUN, _CONTROLS)))


def plain(text: object) -> str:
    """Return ``text`` with everything escaped that a terminal might act on."""
    raw = str(text)
    if raw.isprintable():
        return raw
    return "".join(
        char if char.isprintable() or char in _JOINERS else _escape(char) for char in raw
    )


def _escape(char: str) -> str:
    # What is no UTF-8 comes as lone surrogates (os.fsdecode), of which nobody knows the byte.
    byte = ord(char) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else ascii(char)[1:-1]


def escaped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a text as ``plain`` shows it, but for the ends of its lines."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield b"".join(_escaped_line(line.removesuffix(b"\r")) + b"\n" for line in lines)
    yield _escaped_line(rest)


def _escaped_line(line: bytes) -> bytes:
    return plain(line.decode(errors="replace")).encode()


class LogCleaner:
    """Takes a log in pieces and returns what is safe on a terminal: text, colours, line redraws.

    A title, a cursor report or a character set that a job (or what it prints from elsewhere) sends
    is shown as text instead.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        self._held = b""
        return _ESCAPES.sub(self._replace, data)

    def end(self) -> bytes:
        """Return what was held back because more could have followed."""
        held, self._held = self._held, b""
        return held.replace(b"\x1b", b"^[")

    def _replace(self, match: re.Match[bytes]) -> bytes:
        found = match.group()
        if match.group("held") is not None:
            self._held = found
            return b""
        if found[:2] == b"\x1b[" or found == b"\x08":
            return found
        if found[:1] == b"\xc2":
            return b"\\x%02x" % found[1]
        return b"^" + bytes([found[0] ^ 0x40])


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s"


def size(count: int) -> str:
    """Return a number of bytes in binary units."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_SIZES) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} {_SIZES[0]}" if unit == 0 else f"{value:.1f} {_SIZES[unit]}"


def energy(joules: float) -> str:
    """Return an energy in the unit that people pay for, where it is not too little of it."""
    hours = joules / 3600
    if hours < 10:
        return f"{joules:.0f} J"
    return f"{hours:.1f} Wh" if hours < 1000 else f"{hours / 1000:.2f} kWh"


def moment(text: str | None) -> datetime | None:
    """Return the local time that the API's RFC 3339 text means."""
    return None if text is None else datetime.fromisoformat(text).astimezone()


def when(text: str | None) -> str:
    """Return a time of the API in the local zone, to the second."""
    time = moment(text)
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M:%S")


def when_short(text: str | None, now: datetime) -> str:
    """Return the time of day, or the date where it is not today's."""
    time = moment(text)
    if time is None:
        return "-"
    today = now.astimezone()
    if time.date() == today.date():
        return time.strftime("%H:%M:%S")
    return time.strftime("%b %d %H:%M" if time.year == today.year else "%Y-%m-%d")


def elapsed(job: Json, now: datetime) -> float | None:
    """Return how long the job's last attempt has run or ran, in seconds; None: not started."""
    started = moment(job.get("started_at"))
    if started is None:
        return None
    end = moment(job.get("finished_at")) or now.astimezone(UTC)
    return max(0.0, (end - started).total_seconds())


def is_final(job: Json) -> bool:
    return job["status"] in ("completed", "failed", "canceled")


def ending(job: Json, now: datetime | None = None) -> str:
    """Return how a job ended, as a sentence's predicate."""
    took = elapsed(job, now or datetime.now(UTC))
    after = "" if took is None else f" after {duration(took)}"
    if job["status"] == "completed":
        return "completed" + after
    why = plain(job.get("message") or how(job) or job.get("reason") or "")
    return f"{job['status']}{after}" + (f": {why}" if why else "")


def how(job: Json) -> str:
    """Return the exit code or the signal in words; empty where there is neither."""
    if job.get("signal") is not None:
        return f"signal {signal_name(job['signal'])}"
    if job.get("exit_code") is not None:
        return f"exit code {job['exit_code']}"
    return ""


def signal_name(number: int) -> str:
    import signal

    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)


def stands(job: Json) -> str:
    """Return where a job stands, in a few words."""
    status = str(job["status"])
    if status == "running" and job.get("progress"):
        return f"{status} {job['progress']}%"
    return status


def called(job: Json) -> str:
    """Return a job's id, and its name where it has one."""
    return f"{job['job_id']} ({plain(job['name'])})" if job.get("name") else str(job["job_id"])


def money(amount: float, currency: str | None) -> str:
    """Return an amount of the API with two decimals, or with as many as it has."""
    whole, _, rest = f"{amount:.6f}".rstrip("0").partition(".")
    return f"{whole}.{rest:0<2} {plain(currency or '')}".rstrip()


def share_of(part: float) -> str:
    """Return a part of one as a percentage."""
    return f"{part * 100:.1f} %"


def status_block(job: Json, now: datetime, width: int | None = None) -> str:
    """Return what ``status`` shows: one line a fact, only what there is to say."""
    facts = [("job", _title(job)), ("status", _beside(_status_line(job, now), width))]
    if job.get("waiting"):
        facts.append(("waiting", _beside(plain(job["waiting"]), width)))
    facts.append(("submitted", when(job["created_at"])))
    if job.get("started_at"):
        facts.append(("started", when(job["started_at"]) + _attempt(job)))
    if job.get("finished_at"):
        facts.append(("finished", when(job["finished_at"])))
    elif job.get("estimated_completion"):
        facts.append(("expected", when(job["estimated_completion"])))
    if job.get("gpu_uuids"):
        facts.append(("gpus", ", ".join(map(plain, job["gpu_uuids"]))))
    if job.get("result_path"):
        facts.append(("results", plain(job["result_path"])))
    elif job.get("results") == "expired":
        facts.append(("results", f"expired {when(job['expires_at'])}"))
    elif job.get("results") == "none":
        facts.append(("results", "none"))
    if job.get("expires_at") and job.get("results") == "kept":
        facts.append(("expires", when(job["expires_at"])))
    if job.get("charge"):
        facts.append(("charged", money(job["charge"], job.get("currency"))))
    if job.get("retry_of"):
        facts.append(("repeats", plain(job["retry_of"])))
    if job["status"] == "failed":
        facts.append(("again", f"aitbcctl retry {job['job_id']}"))
    if job.get("cause"):
        facts.append(("cause", plain(job["cause"])))
    if job.get("advice"):
        facts.append(("advice", _beside(plain(job["advice"]), width)))
    if job.get("contact"):
        facts.append(("contact", plain(job["contact"])))
    return aligned(facts)


def _title(job: Json) -> str:
    name = f"  {plain(job['name'])}" if job.get("name") else ""
    return f"{job['job_id']}  (number {job['number']}){name}"


def _status_line(job: Json, now: datetime) -> str:
    if is_final(job):
        return ending(job, now)
    ran = elapsed(job, now)
    return stands(job) + ("" if ran is None else f", for {duration(int(ran))}")


def _attempt(job: Json) -> str:
    return f"  (attempt {job['attempt']})" if (job.get("attempt") or 0) > 1 else ""


def aligned(facts: Iterable[tuple[str, str]]) -> str:
    """Return named facts, a line each, their values below each other."""
    rows = list(facts)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def detail_block(
    job: Json, now: datetime, width: int | None = None, left_out: Iterable[Json] = ()
) -> str:
    """Return what ``get`` shows: the status, what was asked for, each attempt, file and event."""
    parts = [
        status_block(job, now, width),
        aligned(_asked(job, width)),
        _attempts(job, now),
        _shown_by(job),
        _files(job),
        _not_kept(left_out),
        _events(job),
    ]
    return "\n\n".join(part for part in parts if part)


def _asked(job: Json, width: int | None) -> list[tuple[str, str]]:
    facts = [("user", plain(job["user"]))]
    if job.get("command"):
        facts.append(("command", _command(job)))
    facts.append(("directory", plain(text_of(job.get("cwd") or "home"))))
    asked: Json = job.get("requested") or {}
    facts.append(("asked for", _resources(asked)))
    if asked.get("artifacts"):
        facts.append(("artifacts", " ".join(plain(text_of(glob)) for glob in asked["artifacts"])))
    if job.get("env_names"):
        names = (plain(text_of(name)) for name in job["env_names"])
        facts.append(("variables", _beside(" ".join(names), width)))
    if job.get("miner_id"):
        facts.append(("machine", plain(job["miner_id"])))
    if job.get("result_files"):
        facts.append(
            ("package", f"{job['result_files']} files, {size(job.get('result_bytes') or 0)}")
        )
    if job.get("manifest_sha256"):
        facts.append(("sha256", plain(job["manifest_sha256"])))
    if job.get("shares"):
        facts.append(("shares", f"{job['shares']}: aitbcctl share --list {job['job_id']}"))
    return facts


def _beside(words: str, width: int | None) -> str:
    """Return many words as lines below each other, beside the names of facts."""
    indent = len("submitted  ")
    return folded(" " * indent + words, width, indent=indent).lstrip()


def folded(line: str, width: int | None, *, indent: int) -> str:
    """Return a line as several where the terminal is narrower, all but the first one indented.

    What has no space, as a path, stays whole.
    """
    if width is None or len(line) <= width:
        return line
    import textwrap

    wrapped = textwrap.wrap(
        line,
        max(width, indent + 20),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return "\n".join(wrapped)


def text_of(value: object) -> str:
    """Return what the API sent as text, or as ``{"b64": ...}`` where it is no UTF-8."""
    if isinstance(value, dict) and isinstance(value.get("b64"), str):
        import binascii
        import os

        return os.fsdecode(binascii.a2b_base64(value["b64"]))
    return str(value)


def _command(job: Json) -> str:
    import shlex

    command = job["command"]
    if isinstance(command, str):
        return plain(command)
    words = [text_of(word) for word in command]
    if job.get("shell") and len(words) == 3:
        return f"{plain(words[2])}  (a line for {plain(words[0])})"
    return plain(shlex.join(words))


def _gpus(asked: Json, count: int) -> str:
    words = f"{count} GPU{'s' * (count != 1)}"
    if asked.get("vram"):
        words = f"{size(asked['vram'])} of a GPU"
    if asked.get("gpu_type"):
        words += f" of type {plain(asked['gpu_type'])}"
    if asked.get("min_vram"):
        words += f" with {size(asked['min_vram'])}"
    if asked.get("gpu"):
        words += f" ({', '.join(map(plain, asked['gpu']))})"
    return words


def _resources(asked: Json) -> str:
    cpus, gpus = asked.get("cpus", 1), asked.get("gpus", 0)
    parts = [f"{cpus} core{'s' * (cpus != 1)}"]
    if gpus:
        parts.append(_gpus(asked, gpus))
    if asked.get("memory"):
        parts.append(f"{size(asked['memory'])} of memory")
    if asked.get("timeout_s"):
        parts.append(f"at most {duration(asked['timeout_s'])}")
    if asked.get("priority") not in (None, "normal"):
        parts.append(f"{plain(asked['priority'])} priority")
    if asked.get("retries"):
        parts.append(f"{asked['retries']} retries")
    return ", ".join(parts)


def _attempts(job: Json, now: datetime) -> str:
    lines = []
    for attempt in job.get("attempts") or []:
        facts = [f"attempt {attempt['attempt']}", f"started {when(attempt.get('started_at'))}"]
        if attempt.get("finished_at"):
            ran = elapsed(attempt, now)
            facts.append("never ran" if ran is None else f"ran {_span(ran)}")
        why = attempt.get("reason")
        facts += [how(attempt), "" if why in ("exit", "signal") else plain(why or "")]
        facts.append(plain(attempt.get("cause") or ""))
        usage = attempt.get("rusage") or attempt
        if usage.get("max_rss"):
            facts.append(f"peak {size(usage['max_rss'])}")
        if usage.get("memory_peak"):
            facts.append(f"with all processes and cached files {size(usage['memory_peak'])}")
        if attempt.get("charge"):
            facts.append(f"charged {money(attempt['charge'], job.get('currency'))}")
        lines.append("  ".join(fact for fact in facts if fact))
        if attempt.get("gpu_use"):
            lines += _use(attempt["gpu_use"])
    return "\n".join(lines)


def _shown_by(job: Json) -> str:
    """Return what shows why the last attempt failed."""
    attempts = job.get("attempts") or [{}]
    seen = attempts[-1].get("snapshot")
    if not seen:
        return ""
    lines = [f"shown by: {plain(seen['evidence'])}"] if seen.get("evidence") else []
    if seen.get("oom_kills"):
        lines.append(f"processes that the kernel ended for want of memory: {seen['oom_kills']}")
    lines += [
        f"XID {one['xid']} of {plain(one['uuid'])}, {when(one['time'])}" for one in seen["xids"]
    ]
    lines += [_gpu_then(gpu, seen, job) for gpu in seen["gpus"]]
    known = {one["pid"] for gpu in seen["gpus"] for one in gpu["processes"]}
    lines += [
        f"on a GPU before: {_process_then(one, job)}"
        for one in seen["foreign"]
        if one["pid"] not in known
    ]
    lines += [f"stderr | {plain(line)}" for line in seen["stderr"]]
    return "\n".join(lines)


def _gpu_then(gpu: Json, seen: Json, job: Json) -> str:
    at = f"as seen last, {when(seen['seen_at'])}" if seen.get("seen_at") else "afterwards"
    held = f"{size(gpu['memory_used'])} of {size(gpu['memory_total'])} in use"
    lines = [f"GPU {gpu['index']}, {at}: {held}"]
    return "\n    ".join([*lines, *(_process_then(one, job) for one in gpu["processes"])])


def _process_then(one: Json, job: Json) -> str:
    words = [str(one["pid"]), plain(one.get("user") or "?"), plain(one.get("command") or "")]
    words.append(size(one["memory"]) if one.get("memory") else "")
    if one.get("job_id") is None:
        words.append("(not of the queue)")
    elif one["job_id"] != job["job_id"]:
        words.append(f"({plain(one['job_id'])})")
    return "  ".join(word for word in words if word)


def _use(use: Json) -> Iterator[str]:
    """Yield what an attempt made of its GPUs, as far as that is known."""
    facts = []
    if use["utilization_mean"] is not None:
        facts.append(f"used {use['utilization_mean']:.0f} %, at most {use['utilization_peak']} %")
    if use["idle_s"]:
        idle, whole = (duration(round(use[name])) for name in ("idle_s", "sampled_s"))
        facts.append(f"idle {idle} of {whole}")
    if use["energy_j"] is not None:
        facts.append(energy(use["energy_j"]))
    if facts:
        yield f"  GPUs {'  '.join(facts)}"
    if use["memory_peak"] is not None:
        own = use["job_memory_peak"]
        its = "" if own is None else f", its own {size(own)}"
        yield f"  GPU memory at most {size(use['memory_peak'])}{its}"


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(int(seconds))


def _files(job: Json) -> str:
    """Return the files of its package: the first ones, where there are many."""
    files = job.get("files") or []
    shown = [(size(file["size"] or 0), plain(text_of(file["path"]))) for file in files[:_FILES_MAX]]
    lines = [f"{count:>11}  {path}" for count, path in shown]
    more = job.get("files_total", len(files)) - len(lines)
    return "\n".join([*lines, f"{'...':>11}  and {more} more"] if more > 0 else lines)


def _not_kept(left_out: Iterable[Json]) -> str:
    lines = [f"{plain(text_of(one['path']))}: {plain(one.get('why') or '')}" for one in left_out]
    shown = [f"{'left out':>11}  {line}" for line in lines[:_FILES_MAX]]
    more = len(lines) - len(shown)
    return "\n".join([*shown, f"{'...':>11}  and {more} more"] if more > 0 else shown)


def _events(job: Json) -> str:
    return "\n".join(change_line(event) for event in job.get("events") or [])


def change_line(change: Json) -> str:
    """Return an event or a progress line of the API as one line."""
    time = when(change["time"])
    if "seq" not in change:
        return f"{time}  running {change['progress']}%"
    why = plain(change.get("message") or change.get("reason") or "")
    attempt = f" (attempt {change['attempt']})" if (change.get("attempt") or 0) > 1 else ""
    if change.get("kind", "status") != "status":
        return f"{time}  while {change['status']}{attempt}: {why}"
    return f"{time}  {change['status']}{attempt}" + (f": {why}" if why else "")
