"""Words completed in a real bash; the other two where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.service import PROGRAMS
from tests.system.conftest import Cli

pytestmark = pytest.mark.system

_TRY = """
eval "$(aitbcctl completion bash)"
eval "$(aitbc client completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _$1_completion $1
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(cli: Cli, *words: str, program: str = "aitbcctl", script: str = _TRY) -> list[str]:
    """Return what a bash offers for the last word."""
    environ = cli.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script, "bash", program, *words],
        env=environ, cwd=cli.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_verbs_options_and_values_are_completed(cli: Cli) -> None:
    assert completed(cli, "canc") == ["cancel"]
    assert any(line.startswith("submit  (Put a job") for line in completed(cli, ""))
    assert completed(cli, "download", "--checks") == ["--checksum"]
    assert completed(cli, "list", "--status", "fail") == ["failed"]
    assert completed(cli, "client", "canc", program="aitbc") == ["cancel"]


def test_job_ids_are_offered_with_their_names_and_alone_once_one_is_left(own_cli: Cli) -> None:
    first, second = own_cli.submit("--name", "one", "--", "true"), own_cli.submit("--", "false")
    own_cli.ended(first)
    own_cli.ended(second)
    offered = [f"{second}  (failed)", f"{first}  (one, completed)"]
    assert completed(own_cli, "get", "job_") == offered
    assert completed(own_cli, "get", "--job-id", "") == offered
    assert completed(own_cli, "get", first[:-1]) == [first]
    # Nothing of them is left to be canceled.
    assert completed(own_cli, "cancel", "job_") == [""]


def test_without_a_daemon_nothing_is_offered_and_nothing_said(cli: Cli) -> None:
    nowhere = _TRY.replace("eval", f"export AITBC_SOCKET={cli.folder}/none; eval")
    assert completed(cli, "get", "job_", script=nowhere) == [""]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_understand_their_scripts(cli: Cli, shell: str) -> None:
    script = cli("completion", shell).stdout.decode()
    assert "aitbcctl" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=script.encode(), check=True)


def test_another_shell_is_refused_by_name(cli: Cli) -> None:
    assert b"'bash', 'zsh', 'fish'" in cli("completion", "tcsh", code=2).stderr
