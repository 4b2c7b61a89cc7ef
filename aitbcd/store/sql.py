"""queries.sql as a mapping from name to text. It knows no connection and no job.

The file is a series of ``-- name --``, comment lines, and one statement or fragment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

_NAME = re.compile(r"^-- (\w+) --$", re.MULTILINE)


def parse(text: str) -> Mapping[str, str]:
    """Return name -> text without comments and line breaks.

    Raises:
        ValueError: a name is there twice, or has no statement.
    """
    _, *parts = _NAME.split(text)
    queries: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        lines = [line.strip() for line in body.splitlines() if not line.startswith("--")]
        statement = " ".join(filter(None, lines))
        if name in queries or not statement:
            raise ValueError(f"queries.sql: {name} is there twice or empty")
        queries[name] = statement
    return MappingProxyType(queries)


def with_rows(statement: str, rows: int) -> str:
    """Return an INSERT of one row as one of several: it costs half as much a row."""
    head, values = statement.split(" VALUES ")
    return f"{head} VALUES {', '.join([values] * rows)}"


QUERIES = parse(Path(__file__).with_name("queries.sql").read_text("utf-8"))
