"""Rows of a CSV file (RFC 4180) that a spreadsheet opens without running what is in them. Pure.

A cell that begins like a formula gets an apostrophe before it: names, commands and messages come
from whoever submitted the job, and a spreadsheet would run them in the name of who opens the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: What begins a formula, also written wide (U+FF0B and so on), and what is skipped before one.
_FORMULA = re.compile("[\\s\x00]*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_QUOTED = re.compile('[",\r\n]|^\\s|\\s$')


def row(cells: Iterable[object]) -> bytes:
    """Return one line; None is an empty cell."""
    return ",".join(map(_cell, cells)).encode("utf-8", "replace") + b"\r\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # str() writes what is small as 8e-05, which not everything that reads CSV knows.
        whole, _, fraction = f"{value:.6f}".partition(".")
        return f"{whole}.{fraction.rstrip('0') or '0'}"
    if not isinstance(value, str):
        return str(value)
    text = f"'{value}" if _FORMULA.match(value) else value
    if _QUOTED.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text
