"""The page for Prometheus, read back with the rules of its text format."""

from __future__ import annotations

import re

from aitbcd.api.metrics import page
from aitbcd.devices import Gpu, GpuState, Inventory

SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (-?[0-9.e+]+)')
FREE = Gpu(0, "GPU-a", 'odd "name" \\ of\na GPU', None, 80, 5, GpuState.FREE, power=70.5)


def samples(text: str) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match, line
            found.setdefault(match[1], []).append((match[2] or "", float(match[3])))
    return found


def test_every_line_is_a_sample_whose_type_is_told_before() -> None:
    text = page(Inventory(0, None, gpus=(FREE,)), active_jobs=3)
    assert text.endswith("\n")
    typed = set(re.findall(r"^# TYPE (\w+) (?:gauge|counter)$", text, re.M))
    assert typed >= samples(text).keys()
    assert samples(text)["aitbcd_jobs_active"] == [("", 3)]


def test_a_gpu_has_a_line_for_what_it_says() -> None:
    found = samples(page(Inventory(0, None, gpus=(FREE,)), active_jobs=0))
    ((labels, used),) = found["aitbcd_gpu_memory_used_bytes"]
    assert (used, found["aitbcd_gpu_power_watts"][0][1]) == (5, 70.5)
    assert labels.startswith('gpu="0",uuid="GPU-a",name="odd \\"name\\" \\\\ of\\na GPU"')
    assert "aitbcd_gpu_temperature_celsius" not in found
    assert found["aitbcd_gpu_state"][0][0].endswith('state="free"')


def test_a_problem_is_a_number_to_alert_on() -> None:
    assert samples(page(Inventory(0, "reboot"), active_jobs=0))["aitbcd_gpu_problem"] == [("", 1)]
    assert samples(page(Inventory(0, None), active_jobs=0))["aitbcd_gpu_problem"] == [("", 0)]
