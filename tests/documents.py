"""The examples in documents, to be run as they stand there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def blocks(document: str, heading: str, language: str = "sh") -> list[str]:
    """Return the blocks in a language below a heading of a document."""
    text = (ROOT / document).read_text()
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section, heading
    found = re.findall(rf"^```{language}\n(.*?)^```", section[1], re.M | re.S)
    assert found, heading
    return found


def headings(document: str) -> list[str]:
    return re.findall(r"^## (.*)", (ROOT / document).read_text(), re.M)


def run_shell(
    script: str, folder: Path, environ: dict[str, str], uid: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it so that the first command that fails is its end."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-x", "-c", script],
        cwd=folder,
        env=environ,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
