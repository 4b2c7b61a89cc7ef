"""The layers of the program, as sets: a new arrow between modules fails here.

What imports what is read from the source, function bodies included, so an import cannot hide.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Modules of the daemon by level; an import goes to a lower level.
LEVELS: tuple[set[str], ...] = (
    {
        "errors",
        "model",
        "manifest",
        "units",
        "progress",
        "paths",
        "clock",
        "devices",
        "spreadsheet",
        "notify",
    },
    {
        "lifecycle",
        "settings",
        "wire",
        "machine",
        "users",
        "allotment",
        "certificate",
        "causes",
        "samples",
    },
    {
        "planner",
        "description",
        "outcome",
        "output",
        "launch",
        "plans",
        "pricing",
        "retention",
        "space",
    },
    {"store", "results", "runs", "feed", "backlog", "reserve", "state", "gpus", "series"},
    {"engine", "reloading"},
    {"api", "install"},
    {"daemon"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

#: No clock, no files, no processes: the standard library's modules that they may not use.
PURE = {
    "errors",
    "model",
    "manifest",
    "units",
    "progress",
    "devices",
    "lifecycle",
    "planner",
    "outcome",
    "plans",
    "pricing",
    "allotment",
    "causes",
    "retention",
    "samples",
    "space",
}
IMPURE_MODULES = {"asyncio", "os", "pathlib", "random", "socket", "sqlite3", "subprocess", "time"}

#: Of the launcher, the daemon's side knows the protocol only.
FROM_LAUNCHER = {"aitbcd.launcher.protocol"}
#: Of the daemon, the launcher uses this, and the command line those.
FOR_LAUNCHER = {"aitbcd", "aitbcd.manifest"}
FOR_CLI = {
    "aitbcd",
    "aitbcd.certificate",
    "aitbcd.errors",
    "aitbcd.manifest",
    "aitbcd.model",
    "aitbcd.paths",
    "aitbcd.settings",
    "aitbcd.spreadsheet",
    # How a daemon looks at its store before it opens it; the doctor does the same.
    "aitbcd.store.migrate",
    "aitbcd.units",
    "aitbcd.wire",
}

#: Dependencies that we never import by name: uvicorn does.
USED_BY_UVICORN = {"httptools", "websockets"}
#: Import name of a distribution, where they differ.
IMPORT_NAMES = {"nvidia-ml-py": "pynvml", "resvg-py": "resvg_py"}

#: What costs more than a whole `aitbcctl submit` may, or a supervisor that is forked.
HEAVY_FOR_SUBMIT = {
    "aitbcd.model",
    "aitbcd.settings",
    "aitbcd.wire",
    "asyncio",
    "dataclasses",
    "http",
    "pathlib",
    "subprocess",
    "tempfile",
    "urllib",
}
HEAVY_FOR_LAUNCHER = {"asyncio", "http", "logging", "multiprocessing", "sqlite3", "subprocess"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_of(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(source: Path) -> Iterator[str]:
    """Yield the modules that a file imports; of our own, submodules are told from names."""
    for node in ast.walk(ast.parse(source.read_bytes(), str(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if base.startswith("aitbc") and is_module(full) else base


@cache
def arrows(package: str) -> list[tuple[str, str]]:
    return [(module_of(source), name) for source in sources(package) for name in imports(source)]


def unit_of(module: str) -> str:
    """Return the part of ``aitbcd`` that has a level: ``store`` for ``aitbcd.store.rows``."""
    return [*module.split("."), ""][1]


def daemon_arrows() -> list[tuple[str, str]]:
    return [
        (source, target)
        for source, target in arrows("aitbcd")
        if unit_of(source) not in ("", "launcher") and re.match(r"aitbc(d|ctl)\b", target)
    ]


def test_every_module_of_the_daemon_has_a_level() -> None:
    found = {unit_of(module_of(source)) for source in sources("aitbcd")} - {"", "launcher"}
    assert found - LEVEL.keys() == set(), "state its level in tests/unit/test_imports.py"


def test_imports_of_the_daemon_go_to_lower_levels() -> None:
    wrong = []
    for source, target in daemon_arrows():
        upper, lower = unit_of(source), unit_of(target)
        if upper == lower or lower == "" or lower == "launcher":
            continue
        if LEVEL[lower] >= LEVEL[upper]:
            wrong.append(f"{source} (level {LEVEL[upper]}) -> {target} (level {LEVEL[lower]})")
    assert wrong == []


def test_daemon_takes_the_protocol_only_from_the_launcher() -> None:
    taken = {(s, t) for s, t in daemon_arrows() if t.startswith("aitbcd.launcher")}
    assert {(s, t) for s, t in taken if t not in FROM_LAUNCHER} == set()


def test_daemon_does_not_know_its_command_line() -> None:
    assert [(s, t) for s, t in arrows("aitbcd") if t.split(".")[0] == "aitbcctl"] == []


def test_pure_modules_touch_nothing() -> None:
    wrong = [
        (source, target)
        for source, target in arrows("aitbcd")
        if unit_of(source) in PURE and target.split(".")[0] in IMPURE_MODULES
    ]
    assert wrong == []


def test_package_holds_the_version_only() -> None:
    assert list(imports(ROOT / "aitbcd" / "__init__.py")) == []


def test_launcher_uses_the_standard_library_and_the_manifest() -> None:
    wrong = [
        (source, target)
        for source, target in arrows("aitbcd")
        if unit_of(source) == "launcher"
        and unit_of(target) != "launcher"
        and target not in FOR_LAUNCHER
        and target.split(".")[0] not in sys.stdlib_module_names
    ]
    assert wrong == []


def test_command_line_takes_plain_data_only_from_the_daemon() -> None:
    taken = {(s, t) for s, t in arrows("aitbcctl") if t.split(".")[0] == "aitbcd"}
    assert {(s, t) for s, t in taken if t not in FOR_CLI} == set()


def test_dependencies_are_those_that_the_code_imports() -> None:
    used = {
        target.split(".")[0] for package in ("aitbcd", "aitbcctl") for _, target in arrows(package)
    } - sys.stdlib_module_names
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = import_names(project["dependencies"])
    extra = import_names(project["optional-dependencies"]["plot"])
    assert used - {"aitbcd", "aitbcctl"} <= declared | extra
    assert declared - used <= USED_BY_UVICORN
    assert extra <= used


def import_names(requirements: list[str]) -> set[str]:
    names = {re.split(r"[<>=!~ ]", line, maxsplit=1)[0] for line in requirements}
    return {IMPORT_NAMES.get(name, name) for name in names}


def modules_after(statements: str, *options: str) -> set[str]:
    """Return the names in sys.modules of a child interpreter that ran the statements."""
    code = f"import sys, json; sys.path.insert(0, {str(ROOT)!r})\n{statements}\n"
    done = subprocess.run(
        [sys.executable, "-I", *options, "-c", code + "print(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def loaded(heavy: set[str], modules: set[str]) -> set[str]:
    return {name for name in modules if name in heavy or name.split(".")[0] in heavy}


def test_launcher_starts_without_third_party_or_heavy_modules() -> None:
    names = [module_of(source) for source in sources("aitbcd/launcher")]
    modules = modules_after(
        "\n".join(f"import {name}" for name in names if not name.endswith("__main__")), "-S"
    )
    roots = {name.split(".")[0] for name in modules}
    assert roots - set(sys.stdlib_module_names) - {"aitbcd", "__main__"} == set()
    assert {name for name in modules if name.startswith("aitbcd")} <= {*names, *FOR_LAUNCHER}
    assert loaded(HEAVY_FOR_LAUNCHER, modules) == set()


@pytest.mark.parametrize("words", [["submit", "--", "true"], ["status", "@"]], ids=lambda w: w[0])
def test_short_verbs_load_little_more_than_click(words: list[str]) -> None:
    before = modules_after("import click")
    run = (
        "import os; os.environ['AITBC_SOCKET'] = '/nonexistent/aitbcd.sock'\n"
        f"from aitbcctl.cli import main; assert main({words!r}) == 5"
    )
    modules = modules_after(run) - before
    third_party = {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert third_party <= {"aitbcctl", "aitbcd"}
    assert loaded(HEAVY_FOR_SUBMIT, modules) == set()
