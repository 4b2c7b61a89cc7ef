"""``Gpus`` and ``aitbcctl gpus test`` against the real driver, and what nvidia-smi says of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aitbcd.gpus import Drains, Gpus
from aitbcd.settings import Gpus as Settings
from tests.integration.conftest import Box
from tests.service import DEADLINE_S

pytestmark = pytest.mark.gpu


def nvidia_smi(*fields: str) -> list[list[str]]:
    query = f"--query-gpu={','.join(fields)}"
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path) -> None:
    fields = (
        "index",
        "uuid",
        "name",
        "pci.bus_id",
        "memory.total",
        "driver_version",
        "compute_cap",
    )

    async def look() -> None:
        gpus = Gpus(Settings(), Drains(tmp_path / "gpus.json", "boot"), lambda process, held: None)
        gpus.open()
        try:
            deadline = asyncio.get_running_loop().time() + DEADLINE_S
            while not (inventory := await gpus.look(max_age_s=0)).gpus:
                assert asyncio.get_running_loop().time() < deadline, inventory.problem
        finally:
            await gpus.close()
        found = [
            [
                str(gpu.index),
                gpu.uuid,
                gpu.name,
                gpu.bus_id,
                str(gpu.memory_total >> 20),
                inventory.driver_version,
                gpu.compute_capability,
            ]
            for gpu in inventory.gpus
            if gpu.mig is None
        ]
        said = [row for row in nvidia_smi(*fields) if row[0] in {row[0] for row in found}]
        assert found == said
        for gpu in inventory.gpus:
            assert 0 <= gpu.memory_used <= gpu.memory_total
            assert set(gpu.cpus) <= set(range(os.cpu_count() or 0))

    asyncio.run(look())


def test_a_sample_says_what_a_look_says(tmp_path: Path) -> None:
    async def sample() -> None:
        gpus = Gpus(Settings(), Drains(tmp_path / "gpus.json", "boot"), lambda process, held: None)
        gpus.open()
        try:
            deadline = asyncio.get_running_loop().time() + DEADLINE_S
            while not (looked := await gpus.look(max_age_s=0)).gpus:
                assert asyncio.get_running_loop().time() < deadline, looked.problem
            uuids = [gpu.uuid for gpu in looked.gpus]
            assert await gpus.sample(uuids)
            for before in looked.gpus:
                after = gpus.inventory.find(before.uuid)
                assert after
                assert (after.memory_total, after.faults) == (before.memory_total, before.faults)
                for figure in ("utilization", "power", "energy", "temperature", "memory_clock"):
                    told = [getattr(one, figure) is None for one in (before, after)]
                    assert told[0] == told[1], figure
                if before.energy is not None:
                    assert (after.energy or 0) >= before.energy
                assert len(gpus.recent(before.uuid)) == (after.utilization is not None)
        finally:
            await gpus.close()

    asyncio.run(sample())


def python_with_cuda() -> str:
    """Return an interpreter whose torch is built for GPUs."""
    look = "import torch, sys; sys.exit(torch.version.cuda is None)"
    for python in filter(None, (sys.executable, shutil.which("python3"))):
        if subprocess.run([python, "-c", look], capture_output=True).returncode == 0:
            return python
    pytest.skip("neither this interpreter nor python3 has a torch for GPUs")


def test_the_gpus_of_this_machine_pass(box: Box) -> None:
    done = box.service.run("aitbcctl", "gpus", "test", "--python", python_with_cuda(), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    tests = json.loads(done.stdout)["tests"]
    tested = [test["gpus"][0] for test in tests if len(test["gpus"]) == 1]
    assert set(tested) <= {row[0] for row in nvidia_smi("uuid")}
    for test in tests:
        checks = {check["name"]: check for check in test["report"]["checks"]}
        assert checks["devices"]["is_right"] is True
        assert all(check["is_right"] for check in checks.values())
        if len(test["gpus"]) == 1:
            assert checks["host to device"]["value"] > 0
