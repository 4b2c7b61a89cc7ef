"""The bench works: every measure gives its rows. What they say is for people to judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.__main__ import table
from tests.bench.measures import MEASURES, Row

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("measure", MEASURES)
def test_measure_runs_with_tiny_counts_and_leaves_nothing(measure: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--json", "--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, measure], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [Row(**row) for row in json.loads(done.stdout)]
    assert rows
    assert all(row.what and row.figure for row in rows)
    assert [row.what for row in rows if row.goal and not row.baseline] == []
    assert list(tmp_path.iterdir()) == []


def test_unknown_measure_is_refused_with_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "speed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "speed is no measure; there are drain, latency" in done.stderr


def test_table_has_a_line_a_row_and_says_what_was_missed() -> None:
    rows = [
        Row("short", "1 ms", "other 2 ms", "x0.5", "3 ms", True),
        Row("a longer name", "1,000/s", "", "", "2,000/s", False),
    ]
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].endswith("3 ms  met")
    assert lines[3].endswith("2,000/s  MISSED")
