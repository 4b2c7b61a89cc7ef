"""The program as it is published: an sdist, the wheel that is built of it, and an installation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import starlette

ROOT = Path(__file__).resolve().parents[1]
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
_OFFLINE = ("--no-index", "--no-deps")


def build(target: str, folder: Path) -> Path:
    """Build the ``sdist`` or the ``wheel`` of this checkout."""
    _run(sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", folder)
    [made] = folder.iterdir()
    return made


def build_wheel(sdist: Path, folder: Path) -> Path:
    """Build it of the sdist alone, as pip does, with what is installed here."""
    _run(*_PIP, "wheel", *_OFFLINE, "--no-build-isolation", "--wheel-dir", folder, sdist)
    [made] = folder.glob("*.whl")
    return made


def install(wheel: Path, folder: Path) -> Path:
    """Install it into a new environment, which takes its dependencies from here; return ``bin``."""
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    _run(*_PIP, "--python", folder / "bin" / "python", "install", *_OFFLINE, wheel)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text(f"{Path(starlette.__file__).parents[1]}\n")
    return folder / "bin"


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
