"""``aitbcctl doctor``: what a support person would ask for, each line with what to do."""

from __future__ import annotations

import click

from aitbcctl import checkup, findings, options, terminal
from aitbcctl.render import folded, plain
from aitbcctl.terminal import put, put_json

_SHOWN = {findings.OK: "OK  ", findings.WARN: "warn", findings.FAIL: "FAIL"}


@click.command("doctor")
@options.json_option("Print the findings, each with about, state, detail and hint.")
def command(as_json: bool) -> int:
    """Look for what is wrong with the daemon and this machine, and say what to do.

    Changes nothing. As root it sees more. Exit code 1 if something fails.

    \b
    Example:
      sudo aitbcctl doctor
    """
    found = []
    for finding in checkup.look(options.client()):
        found.append(finding)
        if not as_json:
            said = f"{_SHOWN[finding.state]}  {plain(finding.about)}: {plain(finding.detail)}"
            put(folded(said, terminal.columns(1), indent=6))
            if finding.hint:
                put(f"      {plain(finding.hint)}")
    if as_json:
        put_json({"findings": [finding._asdict() for finding in found]})
    return int(any(finding.state == findings.FAIL for finding in found))
