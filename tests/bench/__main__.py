"""Measure and print one table: ``python -m tests.bench [--quick] [MEASURE...]``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.measures import MEASURES, QUICK, Bench, Counts, Row

HEADINGS = Row("measured", "here", "baseline in this run", "ratio", "goal")


def cells(row: Row) -> tuple[str, ...]:
    verdict = {True: "  met", False: "  MISSED", None: ""}[row.is_met]
    return row.what, row.figure, row.baseline, row.ratio, row.goal + verdict


def table(rows: Sequence[Row]) -> str:
    """Return the rows in columns, figures to the right."""
    lines = [cells(HEADINGS), *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    texts = []
    for what, figure, baseline, ratio, goal in lines:
        left, right = f"{what:<{widths[0]}}  {figure:>{widths[1]}}", f"{baseline:<{widths[2]}}"
        texts.append(f"{left}  {right}  {ratio:>{widths[3]}}  {goal}".rstrip())
    texts.insert(1, "-" * max(map(len, texts)))
    return "\n".join(texts)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("measures", nargs="*", help=f"of {', '.join(MEASURES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny counts: does it work at all?")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--folder", type=Path, help="measure here, and delete nothing")
    options = parser.parse_args(arguments)
    for name in options.measures:
        if name not in MEASURES:
            parser.error(f"{name} is no measure; there are {', '.join(MEASURES)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    folder = Path(tempfile.mkdtemp(prefix="aitbcd-bench-", dir=options.folder))
    bench = Bench(folder, QUICK if options.quick else Counts())
    rows: list[Row] = []
    try:
        for name in options.measures or MEASURES:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            rows += MEASURES[name](bench)
    finally:
        # Only now, and not where it is measured again: it slows down what comes for minutes.
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print(f"Python {platform.python_version()}, Linux {platform.release()}, ", end="")
        print(f"{os.cpu_count()} cores, in {folder.parent}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
