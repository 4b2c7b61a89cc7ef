"""The job lifecycle document, taken apart: what its reader types, and what it promises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "job-lifecycle.md"
#: Its pages, in its order.
STATUS, RESULTS, HISTORY, CANCEL = range(4)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


class Snippet(NamedTuple):
    """One command line, or one program."""

    is_program: bool
    text: str


def pages() -> list[str]:
    """Return its four pages, without the comment on where it comes from."""
    text = DOCUMENT.read_text()
    return text[text.index("-->") + 3 :].split("\n---\n")


def snippets(page: int) -> Iterator[Snippet]:
    """Yield what the reader of a page types, in its order."""
    for language, text in _FENCE.findall(pages()[page]):
        if language == "python":
            yield Snippet(True, text)
        elif language == "bash":
            for line in text.splitlines():
                if line and not line.startswith("#"):
                    yield Snippet(False, line)


def block(page: int, after: str) -> str:
    """Return the first block behind these words."""
    _, _, rest = pages()[page].partition(after)
    found = _FENCE.search(rest)
    assert found, after
    return found[2]


def table(page: int, heading: str) -> list[list[str]]:
    """Return the rows of the table below a heading."""
    _, _, rest = pages()[page].partition(f"## {heading}\n")
    rows = re.match(r"\s*\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", rest)
    assert rows, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[1].splitlines()]


def sentences() -> set[str]:
    """Return all that it says beside headings and what is typed: prose, rows, items, comments."""
    found: set[str] = set()
    for page in pages():
        for _, text in _FENCE.findall(page):
            found |= {said.strip() for said in re.findall(r"#(.*)$", text, re.M)}
        prose = _FENCE.sub("", page)
        prose = re.sub(r"^\|.*\|\n(?=\|-)", "", prose, flags=re.M)
        for line in prose.splitlines():
            if line.startswith("|") and not line.startswith("|-"):
                found.add(" | ".join(cell.strip() for cell in line.strip("|").split("|")))
            elif line and not line.startswith(("#", "|")):
                found.add(line.removeprefix("- "))
    return found
