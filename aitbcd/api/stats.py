"""/v1/stats: figures of one's jobs, whole and by user, name or day of one's time zone."""

from __future__ import annotations

import re
from datetime import UTC, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from starlette.requests import Request
from starlette.responses import Response

from aitbcd import wire
from aitbcd.api.context import Api, caller, sees_all
from aitbcd.api.filters import ALL, DAYS, since
from aitbcd.api.messages import JsonResponse
from aitbcd.api.operations import Asked, Operation, Parameter, choice, wrong
from aitbcd.api.schemas import BOOLEAN, INTEGER, NUMBER, STRING, array, json, optional, record
from aitbcd.errors import NotSatisfiable
from aitbcd.store import By, Totals, Wanted

_WORD = "[A-Za-z0-9_+-]{1,31}"
_ZONE_FORM = f"^(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]|[A-Za-z]{_WORD}(/{_WORD}){{0,2}})$"
_is_zone = re.compile(_ZONE_FORM.replace("$", r"\Z")).match
_HOUR_US = 3_600_000_000
#: An offset's plus is a space where it was not written %2B.
_OFFSET = re.compile(r"[ +-]\d\d:\d\d")


def _zone() -> Parameter[tzinfo]:
    def read(name: str, text: str) -> tzinfo:
        text = "+" + text[1:] if text.startswith(" ") else text
        if not _is_zone(text):
            raise wrong(name, text, "a time zone, for example Europe/Berlin, +02:00 or Z")
        return _offset(text) if _OFFSET.fullmatch(text) else _named(text)

    schema = {"type": "string", "pattern": _ZONE_FORM, "default": "Z"}
    return Parameter("zone", "The time zone that days and dates are of", schema, read, UTC)


def _offset(text: str) -> tzinfo:
    span = timedelta(hours=int(text[1:3]), minutes=int(text[4:6]))
    return timezone(-span if text[0] == "-" else span)


def _named(text: str) -> tzinfo:
    try:
        return UTC if text == "Z" else ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        # OSError: of a folder of zones.
        raise NotSatisfiable(
            f"this machine knows no time zone '{text}'",
            hint="give the offset instead, for example +02:00",
            field="zone",
        ) from None


def _moment(name: str, about: str, *, is_end: bool = False) -> Parameter[str | None]:
    """A date or a time as it was given: what it means depends on the zone."""

    def read(name: str, text: str) -> str:
        wire.parse_time(name, text, is_end=is_end)
        return text

    return Parameter(name, about, wire.TIME_SCHEMA, read, None)


_FROM = _moment("from", "From this time on")
_TO = _moment("to", "Before this time, or on this day or before", is_end=True)
_ZONE = _zone()
_BY = choice("by", "In groups", [by.value for by in By], default=None)


def operations(api: Api) -> list[Operation]:
    async def stats(request: Request, asked: Asked) -> Response:
        owner = caller(request).owner
        if asked[ALL]:
            sees_all(owner)
        by, zone, begin, end = asked[_BY], asked[_ZONE], asked[_FROM], asked[_TO]
        start = wire.parse_time("from", begin, zone=zone) if begin else None
        wanted = Wanted(
            uid=None if asked[ALL] else owner.uid,
            begin=since(start, asked[DAYS]),
            end=wire.parse_time("to", end, is_end=True, zone=zone) if end else None,
            by=By(by) if by else None,
            zone=zone,
        )
        found = await api.store.stats(wanted)
        currency = api.settings.pricing.currency
        groups = [
            {
                "key": group.key, "is_rest": group.is_rest, **_shown(group.totals, currency),
                "causes": dict(group.causes),
            }
            for group in found.groups
        ]  # fmt: skip
        total = _shown(found.total, currency) | {"causes": dict(found.causes)}
        return JsonResponse({"total": total, "groups": groups})

    figures = {
        "submitted": INTEGER, "finished": INTEGER, "completed": INTEGER, "failed": INTEGER,
        "canceled": INTEGER, "success_rate": optional(NUMBER),
        "average_completion_s": optional(NUMBER), "wait_median_s": optional(NUMBER),
        "wait_p95_s": optional(NUMBER), "cpu_hours": NUMBER, "gpu_hours": NUMBER,
        "gpu_energy_j": NUMBER, "spent": NUMBER, "currency": optional(STRING),
        "causes": {"type": "object", "additionalProperties": INTEGER},
    }  # fmt: skip
    group = record(key=optional(STRING), is_rest=BOOLEAN, **figures)
    return [
        Operation(
            "GET", "/v1/stats", stats, "Count one's jobs, what became of them and what they used",
            (json("The figures", record(total=record(**figures), groups=array(group))),),
            query=(_FROM, _TO, DAYS, _BY, _ZONE, ALL), errors=(NotSatisfiable,),
        )
    ]  # fmt: skip


def _shown(totals: Totals, currency: str) -> dict[str, wire.Json]:
    judged = totals.completed + totals.failed
    return {
        "submitted": totals.submitted,
        "finished": totals.finished,
        "completed": totals.completed,
        "failed": totals.failed,
        "canceled": totals.canceled,
        "success_rate": totals.completed / judged if judged else None,
        "average_completion_s": _seconds(totals.mean_run_us),
        "wait_median_s": _seconds(totals.median_wait_us),
        "wait_p95_s": _seconds(totals.p95_wait_us),
        "cpu_hours": totals.cpu_us / _HOUR_US,
        "gpu_hours": totals.gpu_us / _HOUR_US,
        "gpu_energy_j": totals.energy_mj / 1000,
        "spent": wire.money(totals.charge_micro),
        "currency": currency or None,
    }


def _seconds(span_us: float | None) -> float | None:
    return None if span_us is None else round(span_us) / 1e6
