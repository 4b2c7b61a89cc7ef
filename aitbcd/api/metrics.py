"""Numbers of the GPUs and jobs in Prometheus' text format, version 0.0.4. Pure; names no user."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from aitbcd import __version__
from aitbcd.devices import Gpu, Inventory

MEDIA_TYPE = "text/plain; version=0.0.4"

#: Name, kind, meaning, value; a GPU that has no value has no line.
_OF_GPU: tuple[tuple[str, str, str, Callable[[Gpu], float | None]], ...] = (
    ("memory_total_bytes", "gauge", "Memory that it has", lambda gpu: gpu.memory_total),
    ("memory_used_bytes", "gauge", "Memory in use", lambda gpu: gpu.memory_used),
    ("utilization_ratio", "gauge", "Part of the time in which it computes",
     lambda gpu: None if gpu.utilization is None else gpu.utilization / 100),
    ("power_watts", "gauge", "Power that it draws", lambda gpu: gpu.power),
    ("temperature_celsius", "gauge", "Its temperature", lambda gpu: gpu.temperature),
    ("energy_joules_total", "counter", "Energy since the driver was loaded",
     lambda gpu: gpu.energy),
    ("jobs", "gauge", "Jobs on it", lambda gpu: len(gpu.jobs)),
)  # fmt: skip


def page(seen: Inventory, *, active_jobs: int) -> str:
    """Return all numbers."""
    return "\n".join((*_of_daemon(seen, active_jobs), *_of_gpus(seen), ""))


def _of_daemon(seen: Inventory, active_jobs: int) -> Iterator[str]:
    yield from _head("aitbcd_info", "gauge", "The daemon's version")
    yield f"aitbcd_info{{version={_quoted(__version__)}}} 1"
    yield from _head("aitbcd_jobs_active", "gauge", "Jobs that were started and are not over")
    yield f"aitbcd_jobs_active {active_jobs}"
    yield from _head("aitbcd_gpu_problem", "gauge", "1 while something stands in the GPUs' way")
    yield f"aitbcd_gpu_problem {int(seen.problem is not None)}"


def _of_gpus(seen: Inventory) -> Iterator[str]:
    if not seen.gpus:
        return
    for name, kind, meaning, value_of in _OF_GPU:
        yield from _head(f"aitbcd_gpu_{name}", kind, meaning)
        for gpu in seen.gpus:
            if (value := value_of(gpu)) is not None:
                yield f"aitbcd_gpu_{name}{{{_labels(gpu)}}} {value}"
    yield from _head("aitbcd_gpu_state", "gauge", "1 for the state that it is in")
    for gpu in seen.gpus:
        yield f'aitbcd_gpu_state{{{_labels(gpu)},state="{gpu.state.value}"}} 1'


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}."
    yield f"# TYPE {name} {kind}"


def _labels(gpu: Gpu) -> str:
    return f'gpu="{gpu.index}",uuid={_quoted(gpu.uuid)},name={_quoted(gpu.name)}'


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
