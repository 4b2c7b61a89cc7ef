"""/v1/shares, /v1/jobs/{job}/share, /s/{token}: results for others, by a link or by their name.

A link is 128 random bits, which give the results of one job to read and nothing else; they are
stored as a hash. No share outlives the results that it is of.
"""

from __future__ import annotations

import hashlib
import pwd
import re
import secrets

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api import link_page
from aitbcd.api.context import Api, caller, sees_all
from aitbcd.api.messages import JsonResponse
from aitbcd.api.operations import Asked, Operation, choice, duration, flag, number, text
from aitbcd.api.peer import FIRST_USER_UID
from aitbcd.api.results import path_of, refuse_without_results, send_file, send_zip
from aitbcd.api.schemas import BOOLEAN, INTEGER, MOMENT, STRING, json, optional, page, raw, record
from aitbcd.clock import now_us
from aitbcd.errors import (
    BadRange,
    NoResults,
    NoSuchFile,
    NoSuchShare,
    NotSatisfiable,
    RateLimited,
    WrongState,
)
from aitbcd.model import Job, Share

_DEFAULT_S = 7 * 86400.0
_TOKEN_BYTES = 16
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")
_PAGE_MAX = 200

_EXPIRES = duration("expires", "How long it counts; seven days where it is not given")
_WITH = text("with", "A user of this machine; without one it is a link")
_LIMIT = number("limit", "How many at most", 1, _PAGE_MAX, default=50)
_AFTER = text(
    "after", "The next of the page before", r"^share_[0-9a-hjkmnp-tv-z]{8}$", 32,
    "the next of a page",
)  # fmt: skip
_ALL = flag("all", "Everybody's: for administrators")
_FORMAT = choice("format", "As what; a browser gets the page", ["zip", "html"], default=None)

#: A link is a secret in an address: it must not travel further than to who has it.
_PRIVATE = {
    "cache-control": "private, no-store",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex",
}


def operations(api: Api) -> list[Operation]:
    resource = _Shares(api)
    share = {
        "id": STRING, "job_id": STRING, "url": optional(STRING), "with": optional(STRING),
        "created_at": MOMENT, "expires_at": MOMENT, "uses": INTEGER,
        "last_used_at": optional(MOMENT),
    }  # fmt: skip
    made = record(**share, limited_by_results=BOOLEAN)
    shares = json("One page of them", page("shares", record(**share)))
    zipped, files = "application/zip", (NoSuchShare, NoResults, NoSuchFile, BadRange, RateLimited)
    return [
        Operation(
            "POST", "/v1/jobs/{job}/share", resource.create, "Share a job's results",
            (json("The share; a link's address is told only now", made, 201),),
            fields=(_EXPIRES, _WITH), errors=(NoResults, NotSatisfiable, WrongState),
        ),
        Operation(
            "GET", "/v1/shares", resource.list, "List what one shares, newest first", (shares,),
            query=(_LIMIT, _AFTER, _ALL),
        ),
        Operation(
            "GET", "/v1/jobs/{job}/shares", resource.of_job, "List how a job is shared", (shares,),
            query=(_LIMIT, _AFTER),
        ),
        Operation(
            "DELETE", "/v1/jobs/{job}/shares", resource.revoke, "Share a job no more",
            (json("How many shares were revoked", record(revoked=INTEGER)),),
        ),
        Operation(
            "GET", "/s/{token}", resource.follow, "Take shared results",
            (raw("The folder job_<ID>", zipped), raw("The Range of it", zipped, 206),
             raw("A page about it", "text/html"), raw("A page, that it is over", "text/html", 404)),
            query=(_FORMAT,), errors=files, is_public=True,
        ),
        Operation(
            "GET", "/s/{token}/files/{path:any}", resource.file, "Take one file of shared results",
            (raw("The file", "*/*"), raw("The Range of it", "*/*", 206)),
            errors=files, is_public=True,
        ),
    ]  # fmt: skip


class _Shares:
    def __init__(self, api: Api) -> None:
        self._api = api

    # -- for who shares -------------------------------------------------------------------------

    async def create(self, request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        job = await self._api.job(request)
        refuse_without_results(job)
        user, lasts_s, now = asked[_WITH], asked[_EXPIRES], now_us()
        lasts_s = _DEFAULT_S if lasts_s is None else lasts_s
        if lasts_s < 1:
            raise NotSatisfiable("the share would be over at once", hint="for example 7d")
        wanted = now + round(lasts_s * 1e6)
        if user is None:
            base = self._base_url()
            token = secrets.token_urlsafe(_TOKEN_BYTES)
            url, digest = f"{base}/s/{token}", _digest(token)
        else:
            await self._check_reader(job, user)
            url, digest = None, None
        share = await self._api.store.add_share(
            job.number, owner, digest=digest, user=user, expires_at=wanted, at=now
        )
        is_limited = share.expires_at < wanted
        return JsonResponse({**_shown(share, url), "limited_by_results": is_limited}, 201)

    async def list(self, request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        if asked[_ALL]:
            sees_all(owner)
        return await self._page(None if asked[_ALL] else owner.uid, None, asked)

    async def of_job(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        return await self._page(None, job.number, asked)

    async def revoke(self, request: Request, asked: Asked) -> Response:
        job = await self._api.job(request)
        revoked = await self._api.store.revoke_shares(job.number, now_us())
        return JsonResponse({"revoked": revoked})

    async def _page(self, uid: int | None, number: int | None, asked: Asked) -> Response:
        found = await self._api.store.shares(
            uid, number=number, after=asked[_AFTER], limit=asked[_LIMIT]
        )
        return JsonResponse(
            {"shares": [_shown(share, None) for share in found.shares], "next": found.next}
        )

    def _base_url(self) -> str:
        base = self._api.settings.server.public_url or self._api.url
        if base is None:
            raise NotSatisfiable(
                "there is no address for a link: this daemon does not know how others reach it",
                hint="set [server] public_url, or share with a user: --with USER",
            )
        return base

    async def _check_reader(self, job: Job, user: str) -> None:
        """Refuse a reader who could not read."""
        if not self._api.is_shared:
            raise NotSatisfiable(
                f"{user} cannot reach this daemon, which serves only its own user",
                hint="share a link: leave out --with",
            )
        if user == job.owner.name:
            raise NotSatisfiable(f"the results are {user}'s own", hint="name another user")
        uid = await self._api.in_thread(lambda: _uid_of(user))
        if uid is None:
            raise NotSatisfiable(
                f"there is no user '{user}' on this machine", hint="see: getent passwd"
            )
        if 0 < uid < FIRST_USER_UID:
            raise NotSatisfiable(f"{user} is a system's user", hint="name a person's")

    # -- for who has a link ---------------------------------------------------------------------

    async def follow(self, request: Request, asked: Asked) -> Response:
        wanted = asked[_FORMAT]
        if wanted is None and "text/html" in request.headers.get("accept", ""):
            wanted = "html"
        try:
            share, job = await self._find(request)
            if wanted == "html":
                answer = await link_page.show(self._api, request, job, share)
            else:
                answer = await send_zip(self._api, request, job)
        except (NoSuchShare, NoResults) as error:
            if wanted != "html":
                raise
            return link_page.refuse(error)
        answer.headers["vary"] = "accept"
        return self._private(request, answer, share)

    async def file(self, request: Request, asked: Asked) -> Response:
        share, job = await self._find(request)
        answer = send_file(self._api, request, job, path_of(request))
        return self._private(request, answer, share)

    async def _find(self, request: Request) -> tuple[Share, Job]:
        token: str = request.path_params["token"]
        share = None
        if _TOKEN.fullmatch(token):
            share = await self._api.store.share_by_digest(_digest(token))
        if share is None or share.revoked_at is not None or share.expires_at <= now_us():
            raise NoSuchShare(
                "this link is wrong, has expired or was revoked",
                hint="ask whoever gave it to you for another one",
            )
        job = await self._api.store.job(share.number)
        if job is None:
            raise NoSuchShare("what this link was for is deleted")
        refuse_without_results(job)
        return share, job

    def _private(self, request: Request, answer: Response, share: Share) -> Response:
        answer.headers.update(_PRIVATE)
        # A download that goes on where it broke off is the same use.
        is_begin = request.headers.get("range", "bytes=0-").startswith("bytes=0-")
        if request.method != "HEAD" and is_begin:
            self._api.count_use(share)
        return answer


def _shown(share: Share, url: str | None) -> dict[str, wire.Json]:
    return {
        "id": share.id,
        "job_id": share.job_id,
        "url": url,
        "with": share.user,
        "created_at": wire.rfc3339(share.created_at),
        "expires_at": wire.rfc3339(share.expires_at),
        "uses": share.uses,
        "last_used_at": wire.rfc3339(share.last_used_at),
    }


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        return None
