"""/v1/gpus: what GPUs there are and who uses them; drain and resume one. /metrics."""

from __future__ import annotations

import os
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api import metrics
from aitbcd.api.context import ADMIN_GROUP, Api, caller
from aitbcd.api.messages import JsonResponse
from aitbcd.api.operations import Asked, Operation, Schema, required, text
from aitbcd.api.schemas import (
    BOOLEAN,
    INTEGER,
    MOMENT,
    NUMBER,
    STRING,
    array,
    json,
    one_of,
    optional,
    raw,
    record,
)
from aitbcd.devices import LINKS, Gpu, GpuState, Inventory, Process
from aitbcd.errors import Forbidden, NoSuchFile, StorageFull, WrongState
from aitbcd.model import Owner

#: The utilization of a GPU in the last minute.
Recent = Callable[[str], list[int | None]]

_REASON = required(
    text("reason", "Why, for those who wait", r"^[^\x00-\x1f\x7f]*$", 200, "a line of text")
)


def operations(api: Api) -> list[Operation]:
    resource = _Gpus(api)
    return [
        Operation(
            "GET", "/v1/gpus", resource.list, "Show all GPUs, and who uses them",
            (json("As they are now", _INVENTORY),),
        ),
        Operation(
            "POST", "/v1/gpus/{uuid}/drain", resource.drain, "Let a GPU take no new job",
            (json("It as it is now", _GPU),), fields=(_REASON,),
            errors=(NoSuchFile, StorageFull),
        ),
        Operation(
            "POST", "/v1/gpus/{uuid}/resume", resource.resume, "Let a GPU take jobs again",
            (json("It as it is now", _GPU),), errors=(NoSuchFile, WrongState, StorageFull),
        ),
        Operation(
            "GET", "/metrics", resource.metrics, "Numbers for Prometheus",
            (raw("In its text format", metrics.MEDIA_TYPE),), is_public=True,
        ),
    ]  # fmt: skip


class _Gpus:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def list(self, request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        seen = await self._api.gpus.look()
        return JsonResponse(inventory(seen, owner, self._api.gpus.recent))

    async def drain(self, request: Request, asked: Asked) -> Response:
        owner = _administrator(request)
        uuid = request.path_params["uuid"]
        drained = await self._api.gpus.drain(uuid, asked[_REASON], owner.name)
        return JsonResponse(_gpu(drained, owner, self._api.gpus.recent))

    async def resume(self, request: Request, asked: Asked) -> Response:
        owner = _administrator(request)
        resumed = await self._api.gpus.resume(request.path_params["uuid"])
        return JsonResponse(_gpu(resumed, owner, self._api.gpus.recent))

    async def metrics(self, request: Request, asked: Asked) -> Response:
        seen = await self._api.gpus.look()
        page = metrics.page(seen, active_jobs=self._api.engine.active_count)
        return Response(page, media_type=metrics.MEDIA_TYPE)


def _administrator(request: Request) -> Owner:
    """Return who asks.

    Raises:
        Forbidden: it is not root, the daemon's own user, or of the group of administrators.
    """
    owner = caller(request).owner
    if owner.is_admin or owner.uid == os.getuid():
        return owner
    raise Forbidden(
        "only an administrator drains and resumes GPUs",
        hint=f"administrators are root and the group {ADMIN_GROUP}",
    )


# --- as JSON --------------------------------------------------------------------------------


def inventory(seen: Inventory, viewer: Owner, recent: Recent) -> dict[str, wire.Json]:
    """Return what ``viewer`` may know: of others' jobs not their arguments."""
    return {
        "problem": seen.problem,
        "driver_version": seen.driver_version,
        "cuda_version": seen.cuda_version,
        "time": wire.rfc3339_exact(seen.at),
        "gpus": [_gpu(gpu, viewer, recent) for gpu in seen.gpus],
    }


def _gpu(gpu: Gpu, viewer: Owner, recent: Recent) -> dict[str, wire.Json]:
    mig = gpu.mig
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "memory_total": gpu.memory_total,
        "memory_used": gpu.memory_used,
        "utilization": gpu.utilization,
        "state": gpu.state.value,
        "reason": gpu.reason,
        "jobs": list(gpu.jobs),
        "processes": [_process(one, viewer) for one in gpu.processes],
        "bus_id": gpu.bus_id,
        "compute_capability": gpu.compute_capability,
        "power": gpu.power,
        "power_limit": gpu.power_limit,
        "temperature": gpu.temperature,
        "energy": gpu.energy,
        "sm_clock": gpu.sm_clock,
        "memory_clock": gpu.memory_clock,
        "recent": [*recent(gpu.uuid)],
        "numa_node": gpu.numa_node,
        "cpus": list(gpu.cpus),
        "links": dict(gpu.links),
        "faults": list(gpu.faults),
        "mig": mig
        and {
            "parent": mig.parent,
            "gpu_instance": mig.gpu_instance,
            "compute_instance": mig.compute_instance,
        },
    }


def _process(one: Process, viewer: Owner) -> dict[str, wire.Json]:
    command = one.command
    if one.job_id and command and not viewer.is_admin and viewer.name != one.user:
        command = command.partition(" ")[0]
    return {
        "pid": one.pid,
        "user": one.user,
        "command": command,
        "memory": one.memory,
        "job_id": one.job_id,
        "foreign": one.is_foreign,
        "since": wire.rfc3339(one.since),
    }


_PROCESS = record(
    pid=INTEGER, user=optional(STRING), command=optional(STRING), memory=optional(INTEGER),
    job_id=optional(STRING), foreign=BOOLEAN, since=optional(MOMENT),
)  # fmt: skip
_LINKS: Schema = {"type": "object", "additionalProperties": one_of(*LINKS)}
_GPU = record(
    index=INTEGER, uuid=STRING, name=STRING, memory_total=INTEGER, memory_used=INTEGER,
    utilization=optional(INTEGER), state=one_of(*(state.value for state in GpuState)),
    reason=optional(STRING), jobs=array(STRING), processes=array(_PROCESS),
    bus_id=optional(STRING), compute_capability=optional(STRING), power=optional(NUMBER),
    power_limit=optional(NUMBER), temperature=optional(INTEGER), energy=optional(NUMBER),
    sm_clock=optional(INTEGER), memory_clock=optional(INTEGER), recent=array(optional(INTEGER)),
    numa_node=optional(INTEGER), cpus=array(INTEGER), links=_LINKS, faults=array(STRING),
    mig=optional(record(parent=STRING, gpu_instance=INTEGER, compute_instance=INTEGER)),
)  # fmt: skip
_INVENTORY = record(
    problem=optional(STRING), driver_version=optional(STRING), cuda_version=optional(STRING),
    time=MOMENT, gpus=array(_GPU),
)  # fmt: skip
