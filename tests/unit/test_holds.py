"""What is kept of who has GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from aitbcd.engine.holds import Holds, Kept

KEPT = Kept(7, "job_00000007", 2, ("GPU-a", "GPU-b"), {"GPU-a": 600 << 20})


def test_what_was_written_is_of_its_boot(tmp_path: Path) -> None:
    path = tmp_path / "gpu-holds.json"
    assert Holds(path, "boot").read() == ()
    Holds(path, "boot").write([KEPT])
    assert Holds(path, "boot").read() == (KEPT,)
    assert Holds(path, "next").read() == ()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", [b"", b"\0\0", b"[]", b'{"boot_id": "boot"}', b"\xff{"])
def test_what_a_power_cut_left_is_nothing(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "gpu-holds.json"
    path.write_bytes(text)
    assert Holds(path, "boot").read() == ()


def test_that_it_cannot_be_written_is_said_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    holds = Holds(folder / "gpu-holds.json", "boot")
    said = []
    for _ in range(2):
        holds.write([KEPT])
        holds.write([KEPT])
        said.append(len(caplog.records))
        folder.mkdir(exist_ok=True)
        holds.write([KEPT])
        (folder / "gpu-holds.json").unlink()
        folder.rmdir()
    assert said == [1, 2]
