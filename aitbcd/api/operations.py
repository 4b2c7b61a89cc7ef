"""Operations: what can be asked of the API, declared as data.

From one declaration come the route, the check of what is asked, and its part of the OpenAPI
document (``openapi``). A resource offers ``operations(api)``; a handler gets the request and what
was asked with it, read and checked:

    _LIMIT = number("limit", "How many at most", 1, 200, default=50)

    Operation("GET", "/v1/jobs", handle, "List", (json(...),), query=(_LIMIT,))

    async def handle(request: Request, asked: Asked) -> Response:
        limit = asked[_LIMIT]  # an int, from 1 to 200
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aitbcd import description, wire
from aitbcd.api.context import Caller, caller
from aitbcd.api.messages import body_of
from aitbcd.errors import AitbcError, BadRequest, Forbidden, InvalidValue
from aitbcd.units import parse_duration

T = TypeVar("T")
#: A JSON schema (2020-12), and one value of a table of them.
Schema = dict[str, Any]

#: Bytes of a body that is an object of a few fields.
_FIELDS_BYTES_MAX = 64 << 10
#: More than any number of ours has, and few enough for int() (it refuses thousands).
_DIGITS_MAX = 40
_SHOWN_MAX = 80


@dataclass(frozen=True, eq=False, slots=True)
class Parameter(Generic[T]):
    """One value that may be asked with: of the query, or a field of the body.

    ``read`` gets its name and its text (of a JSON body: numbers and booleans as JSON writes them).
    It raises ``InvalidValue``.
    """

    name: str
    about: str
    schema: Schema
    read: Callable[[str, str], Any]
    #: Where it is not given (or, in a body, null).
    default: T
    is_required: bool = False
    #: Of the query: may be given several times; then ``read`` gives the items of each.
    is_repeated: bool = False


class Asked:
    """What a request asks for: ``asked[PARAMETER]``."""

    def __init__(self, values: Mapping[Parameter[Any], Any]) -> None:
        self._values = values

    def __getitem__(self, parameter: Parameter[T]) -> T:
        value: T = self._values[parameter]
        return value


class Answer(Struct, frozen=True):
    """What is answered when all went well."""

    about: str
    #: None: bytes.
    schema: Schema | None
    status: int = 200
    media_type: str = "application/json"


Handler = Callable[[Request, Asked], Awaitable[Response]]


class Operation(Struct, frozen=True):
    method: str
    #: As starlette writes it; names in braces are described in ``openapi.PATHS``.
    path: str
    handle: Handler
    about: str
    answers: tuple[Answer, ...]
    query: tuple[Parameter[Any], ...] = ()
    #: Of the JSON object that is its body, which is read and checked before the handler.
    fields: tuple[Parameter[Any], ...] = ()
    #: Of a body that the handler reads itself: its schema by media type.
    body: Mapping[str, Schema] | None = None
    #: Beside those that any operation of this form can have.
    errors: tuple[type[AitbcError], ...] = ()
    #: Whether anybody may ask, also who is nobody here.
    is_public: bool = False
    #: Whether it changes nothing, whatever its method says.
    is_reading: bool = False


def routes(operations: Iterable[Operation]) -> list[Route]:
    """Return the routes, one a path, so that 405 names all its methods."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [Route(path, _dispatch(ways), methods=list(ways)) for path, ways in by_path.items()]


def _dispatch(ways: Mapping[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        operation = ways[method]
        if not operation.is_public:
            # Who is nobody here learns nothing else, not even what is wrong with his request.
            _check_may_ask(caller(request), operation)
        values = _of_query(request, operation.query)
        if operation.fields:
            values |= _of_body(await body_of(request, _FIELDS_BYTES_MAX), operation.fields)
        return await operation.handle(request, Asked(values))

    return answer


def _check_may_ask(who: Caller, operation: Operation) -> None:
    """Refuse a change by who may only read.

    Raises:
        Forbidden: his key is read-only.
    """
    if who.is_read_only and operation.method != "GET" and not operation.is_reading:
        raise Forbidden(
            f"the API key is read-only, and {operation.method} changes something",
            hint="use another key: aitbcctl key create --name NAME",
        )


def _of_query(
    request: Request, parameters: Sequence[Parameter[Any]]
) -> dict[Parameter[Any], object]:
    given: dict[str, list[str]] = {}
    for name, text in request.query_params.multi_items():
        given.setdefault(name, []).append(text)
    _refuse_unknown(given, parameters, "parameter")
    values: dict[Parameter[Any], object] = {}
    for each in parameters:
        texts = given.get(each.name, [])
        if len(texts) > 1 and not each.is_repeated:
            raise InvalidValue(f"{each.name} is given {len(texts)} times", field=each.name)
        if not texts:
            values[each] = _default(each)
        elif each.is_repeated:
            values[each] = frozenset().union(*(each.read(each.name, text) for text in texts))
        else:
            values[each] = each.read(each.name, texts[0])
    return values


def _of_body(body: bytes, fields: Sequence[Parameter[Any]]) -> dict[Parameter[Any], object]:
    given = wire.decode(body) if body.strip() else {}
    if not isinstance(given, dict):
        names = ", ".join(each.name for each in fields)
        raise BadRequest("the body is not a JSON object", hint=f"its fields: {names}")
    _refuse_unknown(given, fields, "field")
    return {
        each: _default(each) if given.get(each.name) is None else _field(each, given[each.name])
        for each in fields
    }


def _field(field: Parameter[Any], value: wire.Json) -> object:
    kind = {"boolean": bool, "integer": int}.get(field.schema.get("type", ""), str)
    value = wire.whole(value)
    text = value if isinstance(value, str) else wire.encode(value).decode()
    if type(value) is not kind:
        wanted = {bool: "true or false", int: "a whole number", str: "a string"}[kind]
        raise wrong(field.name, text, wanted)
    return field.read(field.name, text)


def _default(parameter: Parameter[Any]) -> object:
    if parameter.is_required:
        raise InvalidValue(f"{parameter.name} is missing", field=parameter.name)
    return parameter.default


def _refuse_unknown(given: Iterable[str], known: Sequence[Parameter[Any]], what: str) -> None:
    """Refuse what would otherwise silently do nothing."""
    names = {each.name for each in known}
    for name in given:
        if name not in names:
            allowed = ", ".join(each.name for each in known) or "none"
            shown = _shortened(name)
            raise InvalidValue(f"unknown {what} '{shown}'; known here: {allowed}", field=shown)


def wrong(name: str, text: str, wanted: str, hint: str | None = None) -> InvalidValue:
    """Return the refusal of a value."""
    return InvalidValue(f"{name} is '{_shortened(text)}': expected {wanted}", hint=hint, field=name)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}..."


# --- kinds of parameters --------------------------------------------------------------------


def flag(name: str, about: str) -> Parameter[bool]:
    """``true`` or ``false``; false where it is not given."""

    def read(name: str, text: str) -> bool:
        if text not in ("true", "false"):
            raise wrong(name, text, "true or false")
        return text == "true"

    return Parameter(name, about, {"type": "boolean"}, read, False)


def number(name: str, about: str, least: int, most: int, default: T) -> Parameter[int | T]:
    """A whole number within bounds."""

    def read(name: str, text: str) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
        if not is_number or not least <= int(text) <= most:
            raise wrong(name, text, f"a whole number from {least} to {most}")
        return int(text)

    schema: Schema = {"type": "integer", "minimum": least, "maximum": most}
    if default is not None:
        schema["default"] = default
    return Parameter(name, about, schema, read, default)


def choices(name: str, about: str, known: Sequence[str]) -> Parameter[frozenset[str]]:
    """Any of a few words, repeated or with commas; empty where it is not given."""

    def read(name: str, text: str) -> frozenset[str]:
        words = text.split(",")
        for word in words:
            if word not in known:
                raise wrong(name, word, ", ".join(known))
        return frozenset(words)

    schema: Schema = {"type": "array", "items": {"enum": list(known)}}
    return Parameter(name, about, schema, read, frozenset(), is_repeated=True)


def choice(name: str, about: str, known: Sequence[str], default: T) -> Parameter[str | T]:
    """One of a few words."""

    def read(name: str, text: str) -> str:
        if text not in known:
            raise wrong(name, text, ", ".join(known))
        return text

    schema: Schema = {"type": "string", "enum": list(known)}
    if default is not None:
        schema["default"] = default
    return Parameter(name, about, schema, read, default)


def text(
    name: str, about: str, pattern: str | None = None, longest: int = 255, wanted: str = ""
) -> Parameter[str | None]:
    """A text that is not empty; ``wanted`` is the pattern in words."""
    # In Python a newline may follow the place that $ stands for; in a JSON schema it may not.
    matches = re.compile(re.sub(r"\$$", r"\\Z", pattern or "")).search
    expected = wanted or f"1 to {longest} characters"

    def read(name: str, text: str) -> str:
        if not 1 <= len(text) <= longest or not matches(text):
            raise wrong(name, text, expected)
        return text

    schema: Schema = {"type": "string", "minLength": 1, "maxLength": longest}
    if pattern is not None:
        schema["pattern"] = pattern
    return Parameter(name, about, schema, read, None)


def moment(name: str, about: str, *, is_end: bool = False) -> Parameter[int | None]:
    """A date or a time, as microseconds since the epoch; see ``wire.parse_time``."""

    def read(name: str, text: str) -> int:
        return wire.parse_time(name, text, is_end=is_end)

    return Parameter(name, about, wire.TIME_SCHEMA, read, None)


def duration(name: str, about: str) -> Parameter[float | None]:
    """A duration like ``7d``, as seconds."""

    def read(name: str, text: str) -> float:
        try:
            return parse_duration(text)
        except ValueError as problem:
            raise InvalidValue(f"{name}: {problem}", field=name) from None

    return Parameter(name, about, description.DURATION_SCHEMA, read, None)


def required(parameter: Parameter[T | None]) -> Parameter[T]:
    """Return the same parameter, refused where it is missing."""
    return Parameter(
        parameter.name, parameter.about, parameter.schema, parameter.read,
        None, is_required=True,  # type: ignore[arg-type]  # it is never taken
    )  # fmt: skip
