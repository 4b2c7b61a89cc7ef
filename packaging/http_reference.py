"""Write docs/http-reference.md: ``http_reference.py <openapi.json``, where a daemon serves that.

What it all means is said in docs/http.md, by hand; here is what can be asked and what is answered.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Json = dict[str, Any]

_HEAD = """\
# HTTP reference

What can be asked of each route, and what it answers; [http.md](http.md) says what it means. This
is made of the `/openapi.json` of a daemon without a configuration by
`packaging/http_reference.py`; programs should read that of the daemon that they ask.
"""
_PROBLEM = "application/problem+json"
_WIDTH = 100
_TIE = "~"


def reference(document: Json) -> str:
    """Return the text of the reference."""
    operations = {
        f"{method.upper()} {path}": operation
        for path, ways in document["paths"].items()
        for method, operation in ways.items()
    }
    common = set.intersection(*(set(_codes(each)) for each in operations.values()))
    parts = [_HEAD, *_refusals("Any route can answer", common)]
    for name, operation in operations.items():
        parts += _route(name, operation, common)
    parts.append("## Objects\n")
    for name, schema in document["components"]["schemas"].items():
        parts += [f"### {name}\n", *_object(schema)]
    return "\n".join(parts).rstrip() + "\n"


def _route(name: str, operation: Json, common: set[str]) -> Iterator[str]:
    yield f"## `{name}`\n"
    yield f"{operation['summary']}.\n"
    yield from _table(
        ("parameter", "of the", "value", "meaning"),
        [
            (f"`{each['name']}`", each["in"], _kind(each["schema"]), each.get("description", ""))
            for each in operation["parameters"]
        ],
    )
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from _content(f"Body, `{media_type}`", content.get("schema"))
    for status, answer in _answers(operation):
        media_types = ", ".join(f"`{each}`" for each in answer["content"] if each != _PROBLEM)
        schema = answer["content"].get("application/json", {}).get("schema")
        yield from _content(f"**{status}**, {media_types}. {answer['description']}", schema)
    yield from _refusals("Refused with", set(_codes(operation)) - common)


def _content(title: str, schema: Json | None) -> Iterator[str]:
    """Yield what a body is: a table where it is an object that has no name."""
    if schema is None:
        yield f"{title}.\n"
    elif "properties" in schema:
        yield f"{title}:\n"
        yield from _object(schema)
    else:
        yield f"{title}: {_kind(schema)}.\n"


def _refusals(title: str, codes: Iterable[str]) -> Iterator[str]:
    if listed := ", ".join(sorted(codes)):
        # A status stays beside its code.
        text = f"{title} {listed.replace(' `', f'{_TIE}`')}."
        lines = textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
        yield lines.replace(_TIE, " ") + "\n"


def _answers(operation: Json) -> Iterator[tuple[str, Json]]:
    """Yield what is not a problem document alone."""
    for status, answer in operation["responses"].items():
        if answer["content"].keys() != {_PROBLEM}:
            yield status, answer


def _codes(operation: Json) -> Iterator[str]:
    """Yield the status and the code of each problem document."""
    for status, answer in operation["responses"].items():
        if answer["content"].keys() == {_PROBLEM}:
            for one in answer["description"].split("; "):
                yield f"{status} `{one.partition(':')[0]}`"


def _object(schema: Json) -> Iterator[str]:
    """Yield the fields of an object, after those that it is made of."""
    parts = schema.get("allOf", [schema])
    others = [_kind(part) for part in parts if "properties" not in part]
    fields = [
        (name, _field(name, field, part), name in part.get("required", ()))
        for part in parts
        for name, field in part.get("properties", {}).items()
    ]
    if others:
        yield f"{' and '.join(others)}{', and' if fields else ''}\n"
    yield from _table(
        ("field", "value", "always", "meaning"),
        [
            (f"`{name}`", _kind(field), "yes" if is_required else "", field.get("description", ""))
            for name, field, is_required in fields
        ],
    )


def _field(name: str, field: Json, of: Json) -> Json:
    """Return the schema of a field: of all forms that the object has, where only they say it."""
    if field.keys() - {"type", "minItems"} or field.get("type", "array") != "array":
        return field
    forms = [form["properties"][name] for form in of.get("anyOf", ()) if "properties" in form]
    return {**field, "anyOf": forms} if forms else field


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield a table without the columns in which nothing is said."""
    if not rows:
        return
    shown = [index for index in range(len(heads)) if any(row[index] for row in rows)]
    yield _row(heads[index] for index in shown)
    yield f"|{'---|' * len(shown)}"
    for row in rows:
        yield _row(row[index] for index in shown)
    yield ""


def _row(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _kind(schema: Json) -> str:
    """Return in words what fits a schema; patterns and lengths are for programs."""
    default = f"; default {json.dumps(schema['default'])}" if "default" in schema else ""
    return _plain_kind(schema) + default


def _plain_kind(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_kind, schema["anyOf"])))
    if "enum" in schema:
        return ", ".join("null" if word is None else f"`{word}`" for word in schema["enum"])
    kinds = schema.get("type", "array" if "items" in schema else "anything")
    names = [kinds] if isinstance(kinds, str) else kinds
    return " or ".join(_named(name, schema) for name in names)


def _named(name: str, schema: Json) -> str:
    if name == "array" and "items" in schema:
        return f"array of {_kind(schema['items'])}"
    if name == "object" and "properties" in schema:
        return f"object ({', '.join(f'`{field}`' for field in schema['properties'])})"
    if name == "string" and schema.get("format") in ("date", "date-time"):
        return "date" if schema["format"] == "date" else "time"
    if name in ("integer", "number") and "minimum" in schema and "maximum" in schema:
        return f"{name}, {schema['minimum']} to {schema['maximum']}"
    return name


if __name__ == "__main__":
    sys.stdout.write(reference(json.load(sys.stdin)))
