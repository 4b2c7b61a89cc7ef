"""/healthz: whether the daemon serves; to those it knows also which one it is."""

from __future__ import annotations

import os

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import __version__
from aitbcd.api.context import Api, caller
from aitbcd.api.messages import JsonResponse
from aitbcd.api.operations import Asked, Operation
from aitbcd.api.schemas import INTEGER, STRING, array, json, optional, record
from aitbcd.errors import AitbcError


def operations(api: Api) -> list[Operation]:
    async def health(request: Request, asked: Asked) -> Response:
        answer: dict[str, object] = {"status": "ok", "version": __version__}
        try:
            caller(request)
        except AitbcError:
            return JsonResponse(answer)
        return JsonResponse(
            answer
            | {
                "pid": os.getpid(),
                "launcher_pid": api.engine.launcher_pid or None,
                "launcher_version": api.engine.launcher_version,
                "cgroups": api.engine.cgroups,
                "state_dir": os.fspath(api.paths.state),
            }
        )

    shown = record(status=STRING, version=STRING)
    cgroups = record(folder=optional(STRING), controllers=array(STRING))
    shown["properties"] |= {
        "pid": INTEGER,
        "launcher_pid": optional(INTEGER),
        "launcher_version": optional(STRING),
        "cgroups": optional(cgroups),
        "state_dir": STRING,
    }
    answer = json("It serves; to users of this machine also which one it is", shown)
    return [
        Operation("GET", "/healthz", health, "Whether the daemon serves", (answer,), is_public=True)
    ]
