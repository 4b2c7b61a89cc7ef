"""The README's picture: there, small, and of what the program shows today."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html import unescape

from tests.picture import PICTURE


def test_the_picture_is_small_and_loads_nothing_from_elsewhere() -> None:
    document = PICTURE.read_text()
    assert len(document) < 60_000
    assert "url(http" not in document
    ET.fromstring(document)


def test_it_shows_jobs_foreign_processes_and_what_waits() -> None:
    words = unescape(" ".join(re.findall(r"<text [^>]*>([^<]*)<", PICTURE.read_text())))
    words = re.sub(r"\s+", " ", words.replace("\xa0", " "))
    for expected in ("8 × H100", "LAST MINUTE", "llama-70b-sft", "left", "ipykernel", "drained by",
                     "jobs wait for GPUs", "q quits"):  # fmt: skip
        assert expected in words
