"""A plain ``submit`` read without click: its import costs more than all the rest of a submit.

Reads only what is beyond doubt and stands before a ``--``; everything else (help, abbreviations,
mistakes) is None, and click has its say. What it does read, click reads the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aitbcctl.submission import FLAG, OPTIONS, TEXT, TEXTS, WHOLE

_OPTIONS = {flag: (name, kind) for flag, name, kind, _, _ in OPTIONS}


def read(words: Sequence[str]) -> dict[str, Any] | None:
    """Return the arguments of ``submission.run`` for the words after ``submit``."""
    asked: dict[str, Any] = {"argv": ()}
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            asked["argv"] = tuple(words[at + 1 :])
            return asked
        flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if flag not in _OPTIONS:
            return None
        name, kind = _OPTIONS[flag]
        if kind == FLAG:
            if equals:
                return None
            asked[name] = True
        else:
            if not equals:
                at += 1
                if at == len(words):
                    return None
                value = words[at]
            if not _take(asked, name, kind, value):
                return None
        at += 1
    return asked


def _take(asked: dict[str, Any], name: str, kind: str, value: str) -> bool:
    if kind == TEXT:
        asked[name] = value
    elif kind == TEXTS:
        asked[name] = (*asked.get(name, ()), value)
    elif kind == WHOLE:
        if not (value.isascii() and value.isdigit()):
            return False
        asked[name] = int(value)
    elif value in kind.split("|"):
        asked[name] = value
    else:
        return False
    return True
