#!/usr/bin/env python3
"""Test the GPUs that a job was given, with torch: the job of ``aitbcctl gpus test``.

A program of its own: the standard library (of Python 3.9 too) and torch. Without GPUs it tests the
processor. It writes a table to $AITBC_RESULT, whose last line is the verdict, the same as JSON to
gpus-test.json in $AITBC_ARTIFACTS_DIR, and "done/total" to $AITBC_PROGRESS; run by hand, the JSON
into the current folder and the rest nowhere.

What is computed is judged on every model. How fast is judged on the models of ``PUBLISHED``, by a
part of what NVIDIA publishes that a sound one reaches also while it is limited by its power, or
while others use the bus; of another model the figures are shown.

Several GPUs at once are tested for what passes between each two of them, and for nothing else.

Exit codes: 0 good, 1 something failed, 3 this torch cannot test it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

GOOD, FAILED, UNTESTED = "good", "failed", "untested"
EXIT_CODES = {GOOD: 0, FAILED: 1, UNTESTED: 3}
MIB, GIB = 1 << 20, 1 << 30


class Figures(NamedTuple):
    """What is published of a model: TFLOP/s without sparsity, GB/s; None where it has none."""

    fp32: float
    tf32: float | None
    bf16: float | None
    memory: float
    #: Of its PCIe link, in one direction.
    link: float


#: By the name that the driver gives a model. From NVIDIA's data sheets (B200: "HGX B200"; H200 and
#: H100 "Tensor Core GPU"; A100, A40, A30, A10, L40S, L40, L4, V100, T4 "Tensor Core GPU" or "GPU
#: accelerator"; RTX A6000; RTX 6000 Ada) and from appendix A of its white papers "NVIDIA Ada GPU
#: Architecture" and "NVIDIA Ampere GA102 GPU Architecture" (GeForce). Where a sheet has figures
#: with sparsity only, the half of them.
PUBLISHED = {
    "NVIDIA B200": Figures(75, 1100, 2250, 7700, 64),
    "NVIDIA H200": Figures(67, 494, 989, 4800, 64),
    "NVIDIA H200 NVL": Figures(60, 417, 835, 4800, 64),
    "NVIDIA H100 80GB HBM3": Figures(67, 494, 989, 3350, 64),
    "NVIDIA H100 NVL": Figures(60, 417, 835, 3900, 64),
    "NVIDIA H100 PCIe": Figures(51, 378, 756, 2000, 64),
    "NVIDIA A100-SXM4-80GB": Figures(19.5, 156, 312, 2039, 32),
    "NVIDIA A100-SXM4-40GB": Figures(19.5, 156, 312, 1555, 32),
    "NVIDIA A100 80GB PCIe": Figures(19.5, 156, 312, 1935, 32),
    "NVIDIA A100-PCIE-40GB": Figures(19.5, 156, 312, 1555, 32),
    "NVIDIA L40S": Figures(91.6, 183, 362, 864, 32),
    "NVIDIA L40": Figures(90.5, 90.5, 181, 864, 32),
    "NVIDIA L4": Figures(30.3, 60, 121, 300, 32),
    "NVIDIA A40": Figures(37.4, 74.8, 149.7, 696, 32),
    "NVIDIA A30": Figures(10.3, 82, 165, 933, 32),
    "NVIDIA A10": Figures(31.2, 62.5, 125, 600, 32),
    "NVIDIA RTX A6000": Figures(38.7, 77.4, 154.8, 768, 32),
    "NVIDIA RTX 6000 Ada Generation": Figures(91.1, 182.1, 364.2, 960, 32),
    "NVIDIA GeForce RTX 4090": Figures(82.6, 82.6, 165.2, 1008, 32),
    "NVIDIA GeForce RTX 3090": Figures(35.6, 35.6, 71, 936, 32),
    "Tesla V100-SXM2-32GB": Figures(15.7, None, None, 900, 16),
    "Tesla V100-SXM2-16GB": Figures(15.7, None, None, 900, 16),
    "Tesla T4": Figures(8.1, None, None, 300, 16),
}
#: What part of a published figure is to be reached.
SHARES = Figures(0.3, 0.3, 0.3, 0.6, 0.25)
#: Unit roundoffs: of what the products are summed in, and of tensor cores' shorter formats, which
#: may cut off instead of round.
FP32_ROUNDOFF, TF32_ROUNDOFF, BF16_ROUNDOFF = 2.0**-24, 2.0**-10, 2.0**-8


@dataclass
class Check:
    """What was found of one thing."""

    name: str
    #: None: it is a figure only, and was reached by no computation that could be wrong.
    is_right: bool | None = None
    value: float | None = None
    unit: str = ""
    #: What is published of this model, and the least that will do.
    published: float | None = None
    least: float | None = None
    #: What more there is to say, above all what is wrong.
    detail: str = ""

    @property
    def is_slow(self) -> bool:
        return self.value is not None and self.least is not None and self.value < self.least

    @property
    def failure(self) -> str | None:
        """Return what is wrong, as a part of a sentence."""
        if self.is_right is False:
            return f"{self.name}: {self.detail or 'wrong'}"
        if self.is_slow:
            return f"{self.name}: {self.value:.4g} {self.unit}, at least {self.least:.4g} expected"
        return None


class Untested(Exception):
    """This torch cannot test the device; nothing is known of that."""


class Wrong(Exception):
    """A device does not do what it should; nothing more can be tested on it."""


def judged(check: Check, kind: str, model: str) -> Check:
    """Return a check with what is expected of this model."""
    published = getattr(PUBLISHED.get(model), kind, None)
    if published is not None:
        check.published, check.least = published, published * getattr(SHARES, kind)
    return check


def verdict(checks: Sequence[Check]) -> tuple[str, str]:
    """Return the verdict, and the sentence that says why."""
    failures = [check.failure for check in checks if check.failure]
    if failures:
        return FAILED, "; ".join(failures)
    return GOOD, "all checks passed"


def not_as_allotted(allotted: Sequence[str], seen: Sequence[str | None]) -> str | None:
    """Return how the devices that torch sees differ from those of the job; None: they are the same.

    torch leaves out the ``GPU-`` of a UUID. Of a MIG device it may tell the UUID of its GPU, and an
    old one tells none: those are counted.
    """
    if len(seen) != len(allotted):
        return f"torch sees {len(seen)} devices, and the job has {len(allotted)}"
    if None in seen or any(uuid.startswith("MIG-") for uuid in allotted):
        return None
    ours = {uuid.removeprefix("GPU-").lower() for uuid in allotted}
    others = [f"GPU-{uuid}" for uuid in seen if uuid is not None and uuid.lower() not in ours]
    if others:
        return f"torch sees {', '.join(others)}, and the job has {', '.join(allotted)}"
    return None


# -- what is computed ----------------------------------------------------------------------------


class Device:
    """One device, and how much of it a test uses."""

    def __init__(self, torch: Any, name: str, uuid: str | None = None) -> None:
        self.torch = torch
        #: As torch names it.
        self.name = name
        self.uuid = uuid
        self.is_gpu = name != "cpu"
        about = torch.cuda.get_device_properties(name) if self.is_gpu else None
        self.model = str(about.name) if about else "the processor"
        self.has_tensor_cores = about is not None and about.major >= 8
        free = torch.cuda.mem_get_info(name)[0] if about else GIB
        #: Bytes that are marched through: what the driver and the libraries leave.
        self.memory = max(free - GIB, free // 2) if about else 128 * MIB
        self.piece = min(256 * MIB if about else 32 * MIB, max(self.memory // 8 // MIB, 1) * MIB)
        self.rows = (8192 if free > 4 * GIB else 2048) if about else 512
        self.seconds = 2.0 if about else 0.2

    def clock(self) -> float:
        """Return the time when all that was begun is done."""
        if self.is_gpu:
            self.torch.cuda.synchronize(self.name)
        return time.perf_counter()

    def best(self, action: Callable[[], object], times: int = 6) -> float:
        """Return the seconds that the fastest of several takes."""
        action()
        spent = []
        for _ in range(times):
            began = self.clock()
            action()
            spent.append(self.clock() - began)
        return min(spent)


def matrices(torch: Any, rows: int, kind: str, where: str) -> tuple[Any, Any]:
    """Return two matrices of normal deviates."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    one, other = (torch.randn(rows, rows, device=where).to(dtype) for _ in range(2))
    return one, other


def wrong_products(device: Device, kind: str) -> int:
    """Return how many elements of a product are farther from the true ones than rounding explains.

    The bound is that of a sum of ``rows`` products in any order (Higham, Accuracy and Stability of
    Numerical Algorithms, 3.1), twice, because tensor cores cut off.
    """
    rows = min(device.rows, 1024)
    one, other = matrices(device.torch, rows, kind, "cpu")
    true = one.double() @ other.double()
    bound = 2 * rows * FP32_ROUNDOFF + (2 * TF32_ROUNDOFF if kind == "tf32" else 0)
    allowed = bound * (one.double().abs() @ other.double().abs())
    if kind == "bf16":
        allowed += BF16_ROUNDOFF * true.abs()
    found = device.torch.mm(one.to(device.name), other.to(device.name)).double().cpu()
    # Not "greater than": what is no number is wrong.
    return int((~((found - true).abs() <= allowed)).sum())


def multiply(device: Device, kind: str) -> Iterator[Check]:
    """Multiply matrices: right, as fast as it can be, and on a GPU the same each time."""
    torch = device.torch
    check = judged(Check(f"matmul {kind}", is_right=True, unit="TFLOP/s"), kind, device.model)
    # "high" is TF32 where there are tensor cores; of a processor it is not asked.
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    # Else parts of a sum may be rounded to bf16, for which no bound holds.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if wrong := wrong_products(device, kind):
        check.is_right, check.detail = False, f"{wrong} elements of a product are wrong"
    one, other = matrices(torch, device.rows, kind, device.name)
    first, product = torch.mm(one, other), torch.empty_like(one)
    differing = rounds = 0
    until = time.perf_counter() + device.seconds
    fastest = float("inf")
    while rounds == 0 or time.perf_counter() < until:
        fastest = min(fastest, device.best(lambda: torch.mm(one, other, out=product), times=3))
        rounds += 1
        # cuBLAS promises the same bits each time.
        differing += device.is_gpu and not torch.equal(first, product)
    check.value = 2 * device.rows**3 / fastest / 1e12
    if differing:
        check.is_right = False
        check.detail = f"{differing} of {rounds} products differ from the first, of the same input"
    yield check


#: Words that are written, read back, and written again with each bit turned over.
PATTERNS = (0, 0x5555555555555555, 0x0F0F0F0F0F0F0F0F, 0x00FF00FF00FF00FF)
#: When a slow device is left before all patterns were tried.
MARCH_S = 60.0


def pieces_of(device: Device) -> list[Any]:
    """Return most of the free memory, in pieces of 64-bit words."""
    torch = device.torch
    found: list[Any] = []
    words, wanted = device.piece // 8, device.memory // device.piece
    try:
        while len(found) < wanted:
            found += [torch.empty(words, dtype=torch.int64, device=device.name)]
    except torch.cuda.OutOfMemoryError:
        if len(found) < wanted // 2:
            raise
        # The rest is somebody else's by now; and comparing takes some.
        del found[-2:]
    return found


def march(device: Device) -> Iterator[Check]:
    """Write patterns through most of the memory, up and down, and read them back."""
    torch, pieces = device.torch, pieces_of(device)
    check = Check("memory march", is_right=True, unit="GiB")
    check.value = len(pieces) * device.piece / GIB
    until = time.perf_counter() + MARCH_S
    wrong, first, done = 0, None, 0

    def compare(at: int, wanted: Any) -> None:
        nonlocal wrong, first
        differs = pieces[at] != wanted
        if count := int(differs.sum()):
            wrong += count
            place = at * device.piece + 8 * int(differs.nonzero()[0])
            first = place if first is None else min(first, place)

    for pattern in PATTERNS:
        for piece in pieces:
            piece.fill_(pattern)
        for at, piece in enumerate(pieces):
            compare(at, pattern)
            piece.fill_(~pattern)
        for at in reversed(range(len(pieces))):
            compare(at, ~pattern)
            pieces[at].fill_(pattern)
        done += 1
        if device.clock() > until:
            break
    # Each word its own number: two addresses that are one are found.
    words = device.piece // 8
    for at, piece in enumerate(pieces):
        torch.arange(at * words, (at + 1) * words, out=piece)
    for at in range(len(pieces)):
        compare(at, torch.arange(at * words, (at + 1) * words, device=device.name))
    if wrong:
        check.is_right = False
        check.detail = f"{wrong} words read back wrong, the first {first} bytes from the start"
    elif done < len(PATTERNS):
        check.detail = f"{done} of {len(PATTERNS)} patterns, then its time was up"
    yield check


def numbers(device: Device, where: str, **how: object) -> Any:
    return device.torch.arange(device.piece // 8, dtype=device.torch.int64, device=where, **how)


def copy_within(device: Device) -> Iterator[Check]:
    """Copy from one place of its memory to another."""
    check = judged(Check("memory copy", unit="GB/s"), "memory", device.model)
    source = numbers(device, device.name)
    target = device.torch.empty_like(source)
    seconds = device.best(lambda: target.copy_(source))
    check.value = 2 * device.piece / seconds / 1e9  # read and written
    check.is_right = bool(device.torch.equal(source, target))
    check.detail = "" if check.is_right else "a copy differs from what was copied"
    yield check


def copy_to_and_from(device: Device) -> Iterator[Check]:
    """Copy between the host and the device."""
    torch, detail = device.torch, ""
    try:
        source, back = (numbers(device, "cpu").pin_memory() for _ in range(2))
    except RuntimeError:
        source, back = (numbers(device, "cpu") for _ in range(2))
        detail = "of pageable memory: none could be pinned"
    back.zero_()
    there = torch.empty_like(source, device=device.name)
    for name, target, origin in (
        ("host to device", there, source),
        ("device to host", back, there),
    ):
        check = Check(name, unit="GB/s", detail=detail)
        seconds = device.best(partial(target.copy_, origin, non_blocking=True))
        check.value = device.piece / seconds / 1e9
        check.is_right = bool(torch.equal(target.cpu(), source))
        if not check.is_right:
            check.detail = "what arrives differs from what was sent"
        yield check if detail else judged(check, "link", device.model)


def copy_between(one: Device, other: Device) -> Iterator[Check]:
    """Copy from one GPU to another; how fast depends on what connects them, and is not judged."""
    torch = one.torch
    check = Check(f"{one.name} to {other.name}", unit="GB/s")
    source = numbers(one, one.name)
    target = torch.empty_like(source, device=other.name)

    def both() -> None:
        target.copy_(source, non_blocking=True)
        other.clock()

    check.value = one.piece / one.best(both) / 1e9
    check.is_right = bool(torch.equal(source.cpu(), target.cpu()))
    has_access = one.is_gpu and torch.cuda.can_device_access_peer(one.name, other.name)
    check.detail = "directly" if has_access else "through the host"
    if not check.is_right:
        check.detail = f"what arrives differs from what was sent ({check.detail})"
    yield check


# -- the run -------------------------------------------------------------------------------------


def find_torch() -> Any:
    # It says so where numpy is missing, which nothing here needs.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise Untested(
            f"torch cannot be imported by {sys.executable} ({error}):"
            f" {sys.executable} -m pip install torch"
        ) from None


def devices_of(torch: Any, allotted: Sequence[str]) -> list[Device]:
    """Return the job's devices.

    Raises:
        Untested: this torch knows no GPUs.
        Wrong: it sees others than the job has.
    """
    if not allotted:
        # The job has asked for one core.
        torch.set_num_threads(1)
        return [Device(torch, "cpu")]
    if torch.version.cuda is None:
        raise Untested(
            f"torch {torch.__version__} of {sys.executable} is built without CUDA, so that it can"
            " test no GPU: name an interpreter with another one"
        )
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
        about = [torch.cuda.get_device_properties(at) for at in range(count)]
    except (RuntimeError, AssertionError) as error:
        ours = ", ".join(allotted)
        raise Wrong(f"torch sees none of the job's devices ({ours}): {first_line(error)}") from None
    uuids = [str(each.uuid) if hasattr(each, "uuid") else None for each in about]
    if differs := not_as_allotted(allotted, uuids):
        raise Wrong(differs)
    return [Device(torch, f"cuda:{at}", uuid) for at, uuid in enumerate(allotted)]


def steps(devices: Sequence[Device]) -> list[tuple[str, Callable[[], Iterable[Check]]]]:
    """Return what is to be done, by name."""
    if len(devices) > 1:
        return [
            (f"{one.name} to {other.name}", partial(copy_between, one, other))
            for one in devices
            for other in devices
            if one is not other
        ]
    (device,) = devices
    kinds = ["fp32", "tf32", "bf16"] if device.has_tensor_cores else ["fp32"]
    if not device.is_gpu:
        kinds = ["fp32", "bf16"]
    last = [("host to device", copy_to_and_from)] if device.is_gpu else []
    rest = [("memory march", march), ("memory copy", copy_within), *last]
    return [
        *((f"matmul {kind}", partial(multiply, device, kind)) for kind in kinds),
        *((name, partial(step, device)) for name, step in rest),
    ]


def run(devices: Sequence[Device]) -> Iterator[tuple[Check, float]]:
    """Yield what is found, with the share that is done then; what raises ends it.

    Raises:
        Untested: somebody else has the memory.
    """
    torch = devices[0].torch
    planned = steps(devices)
    for at, (name, step) in enumerate(planned, 1):
        try:
            for check in step():
                yield check, at / len(planned)
        except torch.cuda.OutOfMemoryError as error:
            raise Untested(f"{name}: {first_line(error)}") from None
        except RuntimeError as error:  # what torch raises of CUDA and of its own
            yield Check(name, is_right=False, detail=first_line(error)), 1.0
            return
        if devices[0].is_gpu:
            torch.cuda.empty_cache()


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def word(check: Check) -> str:
    """Return what is to be said of a check beside its figures."""
    if check.is_right is False:
        return f"FAILED {check.detail}".rstrip()
    if check.is_slow:
        return "TOO SLOW"
    return ", ".join(filter(None, ["right" if check.is_right else "", check.detail]))


def report_of(allotted: Sequence[str], tell: Callable[[Check, float], None]) -> dict[str, Any]:
    """Test the devices and return all about it."""
    began = time.monotonic()
    checks: list[Check] = []
    about: dict[str, Any] = {"torch": None, "cuda": None}
    about["devices"] = [{"uuid": uuid or None, "name": None} for uuid in allotted or [""]]

    def note(check: Check, done: float) -> None:
        checks.append(check)
        tell(check, done)

    try:
        torch = find_torch()
        about["torch"], about["cuda"] = str(torch.__version__), torch.version.cuda
        devices = devices_of(torch, allotted)
        about["devices"] = [{"uuid": each.uuid, "name": each.model} for each in devices]
        if allotted:
            note(Check("devices", is_right=True, detail="as allotted"), 0.0)
        for check, done in run(devices):
            note(check, done)
        result, message = verdict(checks)
    except Wrong as error:
        note(Check("devices", is_right=False, detail=str(error)), 1.0)
        result, message = verdict(checks)
    except Untested as error:
        result, message = UNTESTED, str(error)
    return {
        "format": 1,
        "verdict": result,
        "message": message,
        **about,
        "seconds": round(time.monotonic() - began, 1),
        "checks": [{**asdict(check), "word": word(check)} for check in checks],
    }


def table(report: dict[str, Any]) -> str:
    """Return a report for people."""
    lines = [("check", "measured", "at least", "published", "")]
    for check in report["checks"]:
        unit = check["unit"]
        figures = [
            "-" if each is None else f"{each:.4g} {unit}"
            for each in (check["value"], check["least"], check["published"])
        ]
        lines.append((check["name"], *figures, check["word"]))
    widths = [max(len(line[at]) for line in lines) for at in range(5)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines]
    torch = f"torch {report['torch']}" if report["torch"] else None
    heads = [
        "  ".join(filter(None, [device["uuid"] or "no GPU", device["name"], torch]))
        for device in report["devices"]
    ]
    shown = [row.rstrip() for row in rows] if report["checks"] else []
    last = f"{report['verdict']}: {report['message']}"
    return "\n".join([*heads, *shown, last]) + "\n"


def main() -> int:
    allotted = list(filter(None, os.environ.get("AITBC_GPUS", "").split(",")))
    progress = os.environ.get("AITBC_PROGRESS")

    def tell(check: Check, done: float) -> None:
        print(f"{check.name}: {word(check)}", flush=True)
        if progress:
            with open(progress, "a") as lines:
                lines.write(f"{round(100 * done)}/100\n")

    report = report_of(allotted, tell)
    folder = Path(os.environ.get("AITBC_ARTIFACTS_DIR") or ".")
    (folder / "gpus-test.json").write_text(json.dumps(report, indent=1) + "\n")
    text = table(report)
    if result := os.environ.get("AITBC_RESULT"):
        Path(result).write_text(text)
    print("\n" + text, end="")
    return EXIT_CODES[report["verdict"]]


if __name__ == "__main__":
    sys.exit(main())
