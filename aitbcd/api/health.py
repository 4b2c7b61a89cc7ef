"""/healthz: whether the daemon serves; to those it knows also which one it is."""

from __future__ import annotations

import os

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aitbcd import __version__
from aitbcd.api.context import Api, caller
from aitbcd.api.messages import JsonResponse
from aitbcd.errors import AitbcError


def routes(api: Api) -> list[Route]:
    async def health(request: Request) -> Response:
        answer: dict[str, object] = {"status": "ok", "version": __version__}
        try:
            caller(request)
        except AitbcError:
            return JsonResponse(answer)
        return JsonResponse(answer | {"pid": os.getpid(), "state_dir": os.fspath(api.paths.state)})

    return [Route("/healthz", health)]
