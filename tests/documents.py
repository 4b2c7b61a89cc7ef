"""The examples in documents, to be run as they stand there."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: A heading or a fenced block; what is in a block is no heading.
_PART = re.compile(
    r"^(?P<level>#+) (?P<title>[^\n]*)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A fenced block of a document."""

    #: The heading of level 2 that it is below, and the nearest of any level.
    section: str
    heading: str
    language: str
    text: str


def samples(document: str) -> list[Sample]:
    found: list[Sample] = []
    section = heading = ""
    for match in _PART.finditer((ROOT / document).read_text()):
        if match["level"]:
            heading = match["title"]
            section = heading if len(match["level"]) == 2 else section
        else:
            found.append(Sample(section, heading, match["language"], match["text"]))
    return found


def blocks(document: str, section: str, language: str = "sh") -> list[str]:
    """Return the blocks in a language below a heading of level 2 of a document."""
    found = [
        sample.text
        for sample in samples(document)
        if (sample.section, sample.language) == (section, language)
    ]
    assert found, section
    return found


def typed(block: str) -> list[str]:
    """Return the commands of a block that shows a console, without prompts and remarks."""
    return re.findall(r"^[#$] (\S.*?)(?: +#.*)?$", block, re.M)


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
