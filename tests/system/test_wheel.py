"""What pip, pipx and uv install: a wheel that was built of the sdist, in an environment of its own.

No network: the build's requirements and the program's come from where the tests run.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path

import pytest

from aitbcd import __version__
from tests import package
from tests.package import ROOT

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package.build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package.build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package.install(wheel, tmp_path_factory.mktemp("an installation") / "venv")


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty one, with a name short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="aitbcd-") as made:
        yield Path(made)


def run(folder: Path, *command: str | Path) -> str:
    """Run a program in an empty directory, with all that it makes below it."""
    (folder / "empty").mkdir(exist_ok=True)
    environ = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "AITBCD_STATE_DIR": str(folder / "state"),
        "AITBCD_RUNTIME_DIR": str(folder / "runtime"),
        "AITBCD_CONFIG": str(folder / "aitbcd.toml"),
    }
    done = subprocess.run(
        command,
        cwd=folder / "empty",
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def sources() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("this is no checkout: nobody knows which files belong to it")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_sdist_holds_all_that_builds_and_tests_it(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert sources() - held == set()
    assert held - sources() == {"PKG-INFO"}


def test_the_wheel_holds_every_file_of_the_program(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        info = f"aitbcd-{__version__}.dist-info"
        metadata = BytesParser().parsebytes(archive.read(f"{info}/METADATA"))
    source = sources()
    ours = {name for name in source if name.startswith(("aitbcd/", "aitbcctl/"))}
    units = {f"aitbcd/{name}" for name in source if name.startswith("systemd/")}
    assert {name for name in held if not name.startswith(info)} == ours | units
    assert f"{info}/licenses/LICENSE" in held
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "MIT"


def test_what_is_installed_runs_from_anywhere(programs: Path, folder: Path) -> None:
    python = programs / "python"
    for command in ([programs / "aitbcd"], [python, "-m", "aitbcd"]):
        assert run(folder, *command, "--version") == f"aitbcd {__version__}\n"
    assert "submit" in run(folder, programs / "aitbcctl", "--help")
    assert run(folder, python, "-m", "aitbcctl", "--version").endswith(f"{__version__}\n")
    assert "submit" in run(folder, programs / "aitbc", "client", "--help")
    assert os.listdir(folder / "empty") == []


def test_what_is_installed_runs_jobs(programs: Path, folder: Path) -> None:
    (folder / "aitbcd.toml").write_text('[server]\ntcp = ""\n')
    said = run(folder, programs / "aitbcctl", "demo", "--output", folder / "results")
    assert "nothing of it runs any more" in said
    assert list((folder / "results").glob("job_*/output.sha256"))
