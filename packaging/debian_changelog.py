"""Print debian/changelog, made of CHANGELOG.md: ``debian_changelog.py SECONDS VERSION-SUFFIX``.

The version is ours with the release that the package is built on (0.1.0+deb12), so that a newer
release's is an upgrade. One that is not released yet has the time of its commit, SECONDS, before
that (0.1.0~20261127.134715+deb12): a newer commit is an upgrade, and so is the release.
"""

from __future__ import annotations

import calendar
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

_ENTRY = re.compile(r"^## (\S+)(?: \((.*)\))?\n(.*?)(?=^## |\Z)", re.M | re.S)
#: As in debian/control.
_MAINTAINER = "the aitbcd authors <aitbcd@example.org>"


def changelog(text: str, seconds: int, release: str, suffix: str) -> Iterator[str]:
    """Yield an entry for each version; the first one is that of the package."""
    for version, said, body in _ENTRY.findall(text):
        day = _day(said)
        if day is None:
            day = seconds
            version += time.strftime("~%Y%m%d.%H%M%S", time.gmtime(seconds))
        yield f"aitbcd ({version}{release}{suffix}) stable; urgency=medium\n\n"
        for item in re.findall(r"^- (.*?)(?=^- |\Z)", body, re.M | re.S):
            words = " ".join(item.split())
            filled = textwrap.wrap(words, 76, break_on_hyphens=False, break_long_words=False)
            yield "  * " + "\n    ".join(filled) + "\n"
        yield f"\n -- {_MAINTAINER}  {formatdate(day)}\n\n"
        suffix = ""


def _day(said: str) -> int | None:
    try:
        return calendar.timegm(time.strptime(said, "%Y-%m-%d"))
    except ValueError:
        return None


def _release() -> str:
    """Return what tells the packages of two releases apart, in their order."""
    lines = Path("/etc/os-release").read_text().splitlines()
    said = {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    name = {"debian": "deb"}.get(said["ID"], said["ID"])
    # Debian's next release has no number until it is one.
    return f"+{name}{said.get('VERSION_ID', '~~')}"


def main() -> None:
    seconds, suffix = int(sys.argv[1]), sys.argv[2]
    text = Path("CHANGELOG.md").read_text()
    sys.stdout.write("".join(changelog(text, seconds, _release(), suffix)))


if __name__ == "__main__":
    main()
