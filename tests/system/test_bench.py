"""The bench works: every measure gives its rows. What they say is for people to judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.bench.__main__ import table
from tests.bench.measures import MEASURES, Row

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
QUICKLY = (sys.executable, "-m", "tests.bench", "--quick", "--json")


@pytest.mark.parametrize("measure", MEASURES)
def test_measure_runs_with_tiny_counts_and_leaves_nothing(measure: str) -> None:
    with tempfile.TemporaryDirectory(prefix="aitbcd-test-") as folder:
        # One of the measures is as another user.
        os.chmod(folder, 0o755)
        done = subprocess.run(
            [*QUICKLY, measure],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        left = os.listdir(folder)
    assert done.returncode == 0, done.stderr
    rows = [Row(**row) for row in json.loads(done.stdout)]
    assert rows
    assert all(row.what and row.figure for row in rows)
    assert [row.what for row in rows if row.goal and not row.baseline] == []
    assert left == []


def test_what_was_measured_in_a_folder_stays_there(tmp_path: Path) -> None:
    subprocess.run([*QUICKLY, "--folder", str(tmp_path), "drain"], cwd=ROOT, check=True)
    assert len(list(tmp_path.glob("aitbcd-bench-*/01-drain/state/results/job_*"))) == 20


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
