"""What holds for all tests: a clean environment, and no silent skip where none is allowed.

With AITBCD_TEST_STRICT=1 or CI=true a skipped test is a failed one. Tests marked ``gpu``,
``systemd`` or ``vm`` are left out there when the machine has no NVIDIA driver, or cannot boot
another one in a container, or under an emulator, which the header says; elsewhere they are skipped.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import machine, vm

# A slow machine is no failure.
settings.register_profile("aitbcd", deadline=None)
settings.load_profile("aitbcd")

IS_STRICT = os.environ.get("AITBCD_TEST_STRICT") == "1" or os.environ.get("CI") == "true"
#: Marks of tests that this machine cannot run, and why.
WITHOUT: dict[str, str] = {}
if not Path("/proc/driver/nvidia/version").exists():
    WITHOUT["gpu"] = "no NVIDIA driver on this machine"
for mark, kind in (("systemd", machine), ("vm", vm)):
    if against := kind.reason_against():
        WITHOUT[mark] = against

#: Where the program under test would otherwise look for the developer's own daemon and folders.
OURS = ("AITBC", "XDG_", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CONFIGURATION_DIRECTORY")


def pytest_report_header() -> list[str]:
    strictness = "a skip is a failure" if IS_STRICT else "what this machine cannot do is skipped"
    lines = [f"aitbcd: {strictness}"]
    lines += [f"aitbcd: no tests marked {mark}: {why}" for mark, why in WITHOUT.items()]
    return lines


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark, why in WITHOUT.items():
        marked = [item for item in items if item.get_closest_marker(mark)]
        if IS_STRICT and marked:
            items[:] = [item for item in items if item not in marked]
            config.hook.pytest_deselected(items=marked)
            continue
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=why))


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IS_STRICT and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: not to be skipped here: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Take away what would lead tests to another daemon than their own.

    A shell starts what runs in its background with SIGINT ignored, which children inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(OURS):
            patch.delenv(name)
    yield
    patch.undo()
