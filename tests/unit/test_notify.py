"""What is written for the journal."""

from __future__ import annotations

import logging

import pytest

from aitbcd.notify import Formatter


def formatted(message: str, *, is_journal: bool = False, error: Exception | None = None) -> str:
    about = (type(error), error, None) if error else None
    record = logging.LogRecord("aitbcd", logging.WARNING, "", 0, "said: %s", (message,), about)
    formatter = Formatter("%(levelname)s %(message)s", is_journal=is_journal)
    return formatter.format(record)


@pytest.mark.parametrize("is_journal", [False, True])
def test_what_stands_in_a_record_forges_no_other(is_journal: bool) -> None:
    evil = "a\n<0>ERROR forged\r\x1b[2J\x9b\u202e\u2028\x85b\n  hint"
    before = "<4>" if is_journal else ""
    for error in (None, ValueError(evil)):
        first, *more = formatted(evil, is_journal=is_journal, error=error).split("\n")
        assert first == f"{before}WARNING said: a"
        assert more
        assert all(line.startswith(f"{before}  ") for line in more)
        assert all(line.isprintable() for line in more)
    assert f"\n{before}  hint" in formatted(evil, is_journal=is_journal)
