"""/v1/keys: what programs prove with, over TCP, that they are somebody's."""

from __future__ import annotations

import os

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import plans, users, wire
from aitbcd.api.context import Api, Caller, caller, sees_all
from aitbcd.api.messages import JsonResponse
from aitbcd.api.operations import (
    Asked,
    Operation,
    choice,
    duration,
    flag,
    number,
    required,
    text,
)
from aitbcd.api.schemas import BOOLEAN, INTEGER, MOMENT, STRING, json, optional, page, record
from aitbcd.clock import now_us
from aitbcd.errors import Forbidden, NoSuchKey, NotSatisfiable, WrongState
from aitbcd.model import Key

_PAGE_MAX = 200
_NAME = required(
    text("name", "To know it by", r"^[A-Za-z0-9._@-]+$", 64, "letters, digits and any of ._@-")
)
_EXPIRES = duration("expires", "How long it counts; for ever where it is not given")
_READ_ONLY = flag("read_only", "It may change nothing")
_LIMIT = number("limit", "How many at most", 1, _PAGE_MAX, default=50)
_AFTER = text(
    "after", "The next of the page before", r"^[0-9]{20}-key_[0-9a-hjkmnp-tv-z]{8}$",
    wanted="the next of a page",
)  # fmt: skip
_ALL = flag("all", "Everybody's: for administrators")


def operations(api: Api) -> list[Operation]:
    resource = _Keys(api)
    plan = choice("plan", "Of the jobs that it submits", sorted(api.settings.plans), default=None)
    fields = {
        "id": STRING, "name": STRING, "user": STRING, "plan": optional(STRING),
        "read_only": BOOLEAN, "created_at": MOMENT, "expires_at": optional(MOMENT),
        "last_used_at": optional(MOMENT),
    }  # fmt: skip

    async def create(request: Request, asked: Asked) -> Response:
        return await resource.create(request, asked, asked[plan])

    return [
        Operation(
            "POST", "/v1/keys", create, "Make an API key",
            (json("The key, which nobody can tell again", record(**fields, key=STRING), 201),),
            fields=(_NAME, _EXPIRES, plan, _READ_ONLY), errors=(NotSatisfiable, WrongState),
        ),
        Operation(
            "GET", "/v1/keys", resource.list, "List one's API keys",
            (json("One page of them", page("keys", record(**fields))),),
            query=(_LIMIT, _AFTER, _ALL),
        ),
        Operation(
            "DELETE", "/v1/keys/{name}", resource.revoke, "Revoke an API key, by its id or name",
            (json("How many were revoked", record(revoked=INTEGER)),), errors=(NoSuchKey,),
        ),
    ]  # fmt: skip


class _Keys:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def create(self, request: Request, asked: Asked, plan: str | None) -> Response:
        who = caller(request)
        if who.key is not None:
            raise Forbidden(
                "an API key makes no other keys",
                hint="make it on the machine itself: aitbcctl key create --name NAME",
            )
        await self._check_plan(who, plan)
        now = now_us()
        lasts_s = asked[_EXPIRES]
        if lasts_s is not None and lasts_s < 1:
            raise NotSatisfiable("the key would expire at once", hint="for example 90d")
        key, secret = await self._api.keyring.create(
            who.owner,
            asked[_NAME],
            plan=plan,
            is_read_only=asked[_READ_ONLY],
            expires_at=None if lasts_s is None else now + round(lasts_s * 1e6),
            now=now,
        )
        return JsonResponse({**self._shown(key), "key": secret}, 201)

    async def list(self, request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        if asked[_ALL]:
            sees_all(owner)
        keys = self._api.keyring.of(None if asked[_ALL] else owner.uid)
        if (after := asked[_AFTER]) is not None:
            keys = [key for key in keys if _cursor(key) > after]
        shown = keys[: asked[_LIMIT]]
        return JsonResponse(
            {
                "keys": [self._shown(key) for key in shown],
                "next": _cursor(shown[-1]) if len(keys) > len(shown) else None,
            }
        )

    async def revoke(self, request: Request, asked: Asked) -> Response:
        owner, now = caller(request).owner, now_us()
        ref: str = request.path_params["name"]
        await self._api.keyring.revoke(ref, owner, now, but=request.state.abort)
        return JsonResponse({"revoked": 1})

    async def _check_plan(self, who: Caller, plan: str | None) -> None:
        if plan is None or who.owner.is_admin or who.owner.uid == os.getuid():
            return
        groups = await users.groups_of(who.owner.uid) or ()
        own = plans.name_of(self._api.settings, who.owner.name, groups)
        if plan != own:
            raise Forbidden(
                f"the plan of {who.owner.name} is {own}, not {plan}",
                hint="an administrator gives plans, in the configuration",
            )

    def _shown(self, key: Key) -> dict[str, wire.Json]:
        return {
            "id": key.id,
            "name": key.name,
            "user": key.owner.name,
            "plan": key.plan,
            "read_only": key.is_read_only,
            "created_at": wire.rfc3339(key.created_at),
            "expires_at": wire.rfc3339(key.expires_at),
            "last_used_at": wire.rfc3339(self._api.keyring.last_used_at(key)),
        }


def _cursor(key: Key) -> str:
    return f"{key.created_at:020d}-{key.id}"
