"""GPUs of the API -> text for people. Pure: no I/O; the width comes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aitbcctl.render import Json, plain, size, when
from aitbcctl.tables import table
from aitbcd.errors import AmbiguousJob, NoSuchFile

_HEADER = ("GPU", "NAME", "STATE", "MEMORY", "UTIL", "POWER", "TEMP", "USED BY")
GIB = 1 << 30


def gpu_table(gpus: Sequence[Json], width: int | None, problem: str | None = None) -> str:
    """Return a line a GPU that fits ``width``, and below what there is to say of some.

    Args:
        problem: what is said once for all of them, beside.
    """
    lines = [table(_HEADER, map(_row, gpus), width, giving=("NAME", "USED BY"))]
    for gpu in gpus:
        lines += _notes(gpu, problem)
    return "\n".join(lines)


def driver_line(inventory: Json) -> str | None:
    """Return the versions, where there is a driver."""
    if not inventory.get("driver_version"):
        return None
    versions = f"driver {plain(inventory['driver_version'])}"
    if inventory.get("cuda_version"):
        versions += f", CUDA up to {plain(inventory['cuda_version'])}"
    return versions


def named_gpu(gpus: Sequence[Json], word: str) -> Json:
    """Return the GPU with this UUID, this number in the table, or this unique beginning of a UUID.

    Raises:
        NoSuchFile, AmbiguousJob: none or several are meant.
    """
    found = [gpu for gpu in gpus if gpu["uuid"] == word]
    found = found or [gpu for gpu in gpus if label(gpu) == word]
    found = found or [gpu for gpu in gpus if word and str(gpu["uuid"]).startswith(word)]
    known = ", ".join(str(gpu["uuid"]) for gpu in found or gpus)
    if not found:
        raise NoSuchFile(
            f"there is no GPU {word}", hint=f"GPUs here: {known}" if known else "see aitbcctl gpus"
        )
    if len(found) > 1:
        raise AmbiguousJob(f"{word} is the beginning of several GPUs", hint=f"they are: {known}")
    return found[0]


def named_uuid(gpus: Sequence[Json], word: str) -> str:
    """Return the UUID of a GPU as ``named_gpu``, or of one that is divided as a whole.

    Raises:
        NoSuchFile, AmbiguousJob: none or several are meant.
    """
    whole = {
        gpu["mig"]["parent"]: {"uuid": gpu["mig"]["parent"], "index": gpu["index"]}
        for gpu in gpus
        if gpu.get("mig")
    }
    return str(named_gpu([*gpus, *whole.values()], word)["uuid"])


def title(gpu: Json) -> str:
    """Return what a GPU is called in a sentence."""
    return f"GPU {label(gpu)} ({plain(gpu['uuid'])})"


def _row(gpu: Json) -> list[str]:
    return [
        label(gpu),
        model(gpu),
        str(gpu["state"]),
        f"{gpu['memory_used'] / GIB:.1f}/{gpu['memory_total'] / GIB:.1f} GiB",
        _with_unit(gpu.get("utilization"), "%"),
        _power(gpu),
        _with_unit(gpu.get("temperature"), " C"),
        _used_by(gpu),
    ]


def label(gpu: Json) -> str:
    """Return a GPU's number, of a MIG device with its own."""
    mig = gpu.get("mig")
    return f"{gpu['index']}:{mig['gpu_instance']}" if mig else str(gpu["index"])


def model(gpu: Json) -> str:
    return plain(str(gpu["name"]).removeprefix("NVIDIA "))


def _with_unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value}{unit}"


def _power(gpu: Json) -> str:
    if gpu.get("power") is None:
        return "-"
    limit = gpu.get("power_limit")
    return f"{gpu['power']:.0f}{'' if limit is None else f'/{limit:.0f}'} W"


def _used_by(gpu: Json) -> str:
    users = [str(one["user"] or "?") for one in gpu["processes"] if one["job_id"] is None]
    return ", ".join(map(plain, dict.fromkeys([*gpu["jobs"], *users])))


def _notes(gpu: Json, problem: str | None) -> Iterator[str]:
    if gpu.get("reason") and gpu["reason"] != problem:
        yield f"GPU {label(gpu)} is {gpu['state']}: {plain(gpu['reason'])}"
    for one in gpu["processes"]:
        memory = "?" if one["memory"] is None else size(one["memory"])
        whose = plain(one["job_id"] or one["user"] or "?")
        since = f", since {when(one['since'])}" if one.get("since") else ""
        command = plain(one["command"] or "?")
        yield f"GPU {label(gpu)}: {whose}, pid {one['pid']}, {memory}{since}: {command}"
