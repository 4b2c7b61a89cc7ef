"""Bars and sparklines out of characters, and what stands for them in plain ASCII. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aitbcctl.tables import columns

#: Not the full block: lines below each other stay apart.
LEVELS = "▁▂▃▄▅▆▇"
_FULL, _HALF, _REST = "━╸─"
#: One column for one column, so that what was laid out stays so.
_IN_ASCII = str.maketrans("…×°━╸─┌│└┤┬" + LEVELS, "~x ##-,|`++" + "_.-:=+#")
#: Terminals that show only what one font of the console has.
_POOR_TERMINALS = ("linux", "vt100", "vt220")


def is_unicode(environ: Mapping[str, str]) -> bool:
    """Tell whether the user's locale and terminal can show more than ASCII.

    Not what the interpreter says of its output: in the C locale that is UTF-8 all the same
    (PEP 538, which also sets LC_CTYPE).
    """
    if environ.get("TERM") in _POOR_TERMINALS:
        return False
    coerced = environ.get("LC_CTYPE") == "C.UTF-8" and not environ.get("LC_ALL")
    names = ("LC_ALL", "LANG") if coerced else ("LC_ALL", "LC_CTYPE", "LANG")
    locale = next((environ[name] for name in names if environ.get(name)), "C")
    return locale.lower().replace("-", "").endswith("utf8")


def in_ascii(text: str) -> str:
    """Return ``text`` in as many columns, with what is not ASCII replaced."""
    if text.isascii():
        return text
    text = text.translate(_IN_ASCII)
    return "".join(char if char.isascii() else "?" * columns(char) for char in text)


def bar(share: float, width: int) -> tuple[str, str]:
    """Return the filled part of a bar, and the rest of it."""
    halves = min(2 * width, max(0, round(share * 2 * width)))
    filled = _FULL * (halves // 2) + _HALF * (halves % 2)
    return filled, _REST * (width - len(filled))


def sparkline(shares: Sequence[float | None]) -> str:
    """Return a column for each share of one; a space where there is None."""
    top = len(LEVELS) - 1
    return "".join(
        " " if share is None else LEVELS[min(top, max(0, round(share * top)))] for share in shares
    )
