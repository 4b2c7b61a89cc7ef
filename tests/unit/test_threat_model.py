"""The threat model names for each line a test that tries the attack, and that test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/threat-model.md").read_text()
#: Lines of its tables, without heads and rules.
LINES = [
    line for line in TEXT.splitlines() if line.startswith("| ") and not line.endswith("| test |")
]


def names_in(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_bytes()))
    return {each.name for each in nodes if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_line_names_a_test_that_is_there() -> None:
    wrong = []
    for line in LINES:
        named = re.search(r"\| `(tests/[\w/]+\.py)::(test_\w+)` \|$", line)
        path = ROOT / named[1] if named else None
        if named is None or path is None or not path.exists() or named[2] not in names_in(path):
            wrong.append(line)
    assert wrong == []
    assert len(LINES) > 40


def test_what_is_not_defended_is_said() -> None:
    said = TEXT.partition("## Not defended\n")[2]
    for what in ("one user", "user mode", "GPUs", "hidepid", "quota", "plaintext", "Root"):
        assert what in said, what
