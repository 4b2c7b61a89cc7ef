"""Print the configuration file with every key commented out, at its default.

The keys and examples are those of ``aitbcd.settings``, the sentences those of
docs/configuration.md. Each key stands below a table that is open, so that a line counts as soon as
its # is gone.
"""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aitbcd import settings

_HEAD = """\
# The configuration of aitbcd, the job queue of this machine: see aitbcd.toml(5).
#
# Every key stands here at its default, or with an example where that is nothing to write down.
# Take the "#" before a key away to set it. Durations are seconds or "90s", "2h", "7d"; sizes are
# bytes or "500M", "16G". What is saved counts at once, if all of it is right: "aitbcctl config
# check" says what is not. A wrong file changes nothing.
"""
_ROW = re.compile(r"^\| `([\w.]+)` \| (.*?) \| (.*) \|$", re.M)
#: To a section of the same document, whose heading aitbcd.toml(5) writes in capitals.
_LINK = re.compile(r"\[below\]\(#([\w-]+)\)")
#: In place of NAME in the tables that have one for each of something.
_NAMES = {"plans": "free", "users": "ada", "groups": "staff"}


def lines(document: str) -> Iterator[str]:
    """Yield the lines of the file."""
    rows = {key: (default, meaning) for key, default, meaning in _ROW.findall(document)}
    yield from _HEAD.splitlines()
    for name, table in settings.TABLES.items():
        yield from ("", "", f"[{name}]")
        for key, about in table.keys.items():
            shown = f"{name}.NAME.{key}" if table.is_named else f"{name}.{key}"
            default, meaning = rows[shown]
            yield ""
            if shown == "plans.NAME.retention":
                yield from _comment(f"{meaning}.")
                for plan, kept in settings.PLANS.items():
                    yield f'#{plan}.{key} = "{kept.retention_s / settings.DAY_S:.0f}d"'
                continue
            value = _value(default, about.read)
            said = [f"{meaning}."]
            if value is None:
                said.append(f"Default: {default}.")
            if f"{name}.{key}" in settings.FROM_THE_START:
                said.append("Counts from the next start of the daemon.")
            yield from _comment(" ".join(said))
            before = f"{_NAMES[name]}." if table.is_named else ""
            yield f"#{before}{key} = {value or _example(about.allowed)}"


def _comment(text: str) -> list[str]:
    plain = _LINK.sub(
        lambda found: f"see {found[1].replace('-', ' ').upper()} in aitbcd.toml(5)", text
    )
    plain = plain.replace("`", "")
    return textwrap.wrap(plain, 98, initial_indent="# ", subsequent_indent="# ")


def _value(default: str, read: Callable[[Any], Any]) -> str | None:
    """Return a default as it is written in the file, None where it is said in words."""
    found = re.fullmatch(r"`([^`]+)`", default)
    try:
        read(tomllib.loads(f"value = {found[1]}")["value"] if found else None)
    except (TypeError, ValueError):
        return None
    return found[1] if found else None


def _example(allowed: str) -> str:
    """Return the example in what a key says that it may be."""
    found = re.search(r"(?:for example|by model:) (.*)$", allowed)
    return found[1] if found else '"pro"'


def main() -> None:
    document = Path(__file__).parents[1] / "docs" / "configuration.md"
    sys.stdout.writelines(f"{line}\n" for line in lines(document.read_text()))


if __name__ == "__main__":
    main()
