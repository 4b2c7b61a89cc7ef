"""``aitbcctl config check``: says what is wrong before it counts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aitbcd import paths
from tests.system.conftest import Cli


def test_a_right_file_is_said_to_be_right(cli: Cli) -> None:
    assert cli("config", "check").stdout.decode() == f"{cli.daemon.config} is right\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[jobs]\n\ncancel_grace = 'soon'\n", 'line 3: cancel_grace in [jobs] is "soon"'),
        ("[job]\n", "line 1: unknown table or key 'job'"),
        ("[jobs]\ngrace = 1\n", "line 2: unknown key 'grace' in [jobs]"),
        ("[launcher]\ngroups = 'all'\n", 'line 2: groups in [launcher] is "all"'),
        ("[", "line 1: is not TOML"),
        ("[jobs]\n#x\n[gpus]\n[jobs]\n", "line 4: [jobs] is there already, in line 1"),
        ("[jobs]\nlog_limit = 1\nlog_limit = 2\n", "line 3: this key is there already"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_what_is_allowed(
    cli: Cli, tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "new.toml"
    file.write_text(text)
    done = cli("config", "check", str(file), code=2)
    assert f"{file}, {words}" in done.stderr.decode()
    assert done.stdout == b""


def test_a_missing_file_is_no_right_one(cli: Cli, tmp_path: Path) -> None:
    done = cli("config", "check", str(tmp_path / "none.toml"), code=2)
    assert "there is no such file" in done.stderr.decode()


def test_where_there_is_no_file_at_all_nothing_is_wrong(cli: Cli, tmp_path: Path) -> None:
    if os.path.lexists(paths.SYSTEM_CONFIG):
        pytest.skip("this machine has a configuration of its own")
    environ = {"AITBCD_CONFIG": "", "XDG_CONFIG_HOME": str(tmp_path)}
    said = cli("config", "check", environ=environ).stdout.decode()
    assert said.startswith("there is no configuration, so all is as it comes")
    answer = json.loads(cli("config", "check", "--json", environ=environ).stdout)
    assert answer == {"file": None, "warnings": []}


def test_what_is_probably_a_mistake_is_said_and_is_no_error(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "new.toml"
    file.write_text(
        '[users.root]\nplan = "pro"\n[users.roott]\nplan = "pro"\n'
        '[groups.nogrou]\nplan = "pro"\n[launcher]\nroot = true\n'
    )
    file.chmod(0o666)
    done = json.loads(cli("config", "check", str(file), "--json").stdout)
    assert done["file"] == str(file)
    assert [line.split(":")[0] for line in done["warnings"][:2]] == [
        "[users.roott]",
        "[groups.nogrou]",
    ]
    assert "nobody but root can write" in done["warnings"][2]
    if os.getuid() == 0:
        file.chmod(0o644)
        assert "nobody but root" not in cli("config", "check", str(file)).stderr.decode()
