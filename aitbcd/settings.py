"""The configuration: keys, units, defaults. The only reader of ``aitbcd.toml`` in the daemon.

Every key has a default and the daemon runs without a file. What is in the file must be right: an
unknown key or a value of the wrong kind is refused with file, line, key and what is allowed, before
anything starts. Looks at nothing but the file: "the machine's" is left as None here.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aitbcd.errors import SettingsError
from aitbcd.units import parse_duration, parse_size

#: Below this a log could not keep a first and a last part worth reading.
LOG_LIMIT_MIN = 64 * 1024


@dataclass(frozen=True, slots=True)
class Server:
    #: HOST:PORT for HTTP beside the Unix socket; a loopback address; "" turns it off. Port 0 takes
    #: a free one, which the start message names.
    tcp: str = "127.0.0.1:8000"

    @property
    def address(self) -> tuple[str, int] | None:
        """Return ``tcp`` as host and port, None when it is off."""
        return _split_address(self.tcp) if self.tcp else None


@dataclass(frozen=True, slots=True)
class Slots:
    #: Cores to share among jobs; None is all that the machine lets us use.
    cpus: int | None = None
    #: Bytes of memory to share among jobs; None is the machine's.
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Jobs:
    #: Seconds between SIGTERM and SIGKILL when a job is canceled or out of time.
    cancel_grace_s: float = 10.0
    #: Bytes that each of a job's two logs keeps: its first and its last part.
    log_limit: int = 2**30


@dataclass(frozen=True, slots=True)
class Settings:
    server: Server = field(default_factory=Server)
    slots: Slots = field(default_factory=Slots)
    jobs: Jobs = field(default_factory=Jobs)


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of the file: the field it fills, how it is read, what it may be."""

    field: str
    read: Callable[[Any], Any]
    allowed: str


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65536:
        raise ValueError
    return value


def _loopback_address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    if value:
        host, _ = _split_address(value)
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise ValueError
    return value


def _log_limit(value: Any) -> int:
    size = parse_size(value)
    if size < LOG_LIMIT_MIN:
        raise ValueError
    return size


_TABLES: dict[str, tuple[type[Any], dict[str, _Key]]] = {
    "server": (
        Server,
        {
            "tcp": _Key(
                "tcp",
                _loopback_address,
                'a loopback address with a port, for example "127.0.0.1:8000", or "" for none',
            )
        },
    ),
    "slots": (
        Slots,
        {
            "cpus": _Key("cpus", _whole_number, "a whole number from 1, for example 8"),
            "memory": _Key("memory", parse_size, 'bytes or a size, for example "64G"'),
        },
    ),
    "jobs": (
        Jobs,
        {
            "cancel_grace": _Key(
                "cancel_grace_s", parse_duration, 'seconds or a duration, for example "10s"'
            ),
            "log_limit": _Key(
                "log_limit", _log_limit, 'bytes or a size from "64K", for example "1G"'
            ),
        },
    ),
}


def load(path: Path, *, is_named: bool = False) -> Settings:
    """Return the settings in ``path``; the defaults when there is no such file.

    Args:
        is_named: somebody asked for this file, so that a missing one is an error.

    Raises:
        SettingsError: with the fields ``file``, ``line`` (None when unknown) and ``key``.
    """
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        if is_named:
            raise _error(path, None, None, "there is no such file", "create it") from None
        return Settings()
    except UnicodeDecodeError as problem:
        line = problem.object[: problem.start].count(b"\n") + 1
        raise _error(path, line, None, "is not UTF-8", "save the file as UTF-8") from None
    except OSError as problem:
        hint = "let the daemon's user read it, or name another one with --config"
        raise _error(path, None, None, f"cannot be read: {problem.strerror}", hint) from None
    return parse(text, path)


def parse(text: str, path: Path) -> Settings:
    """Return the settings in ``text``; ``path`` is for the messages."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        found = re.search(r"line (\d+)", str(problem))
        line = int(found[1]) if found else text.count("\n") + 1
        raise _error(path, line, None, f"is not TOML: {problem}", "correct it") from None
    read = {name: _table(name, value, text, path) for name, value in tables.items()}
    return Settings(**read)


def _table(name: str, value: Any, text: str, path: Path) -> Any:
    if name not in _TABLES:
        allowed = ", ".join(f"[{table}]" for table in _TABLES)
        raise _refusal(text, path, (name,), f"unknown table or key '{name}'", allowed)
    if not isinstance(value, dict):
        found = f"{name} is {value!r}"
        raise _refusal(text, path, (name,), found, f"a table [{name}]")
    made, keys = _TABLES[name]
    arguments = {}
    for key, raw in value.items():
        if key not in keys:
            found = f"unknown key '{key}' in [{name}]"
            raise _refusal(text, path, (name, key), found, ", ".join(keys))
        try:
            arguments[keys[key].field] = keys[key].read(raw)
        except ValueError:
            found = f"{key} in [{name}] is {_as_written(raw)}"
            raise _refusal(text, path, (name, key), found, keys[key].allowed) from None
    return made(**arguments)


def _refusal(
    text: str, path: Path, key: tuple[str, ...], found: str, allowed: str
) -> SettingsError:
    return _error(path, _line_of(text, key), ".".join(key), found, f"allowed: {allowed}")


def _error(path: Path, line: int | None, key: str | None, found: str, hint: str) -> SettingsError:
    where = f"{path}, line {line}" if line else str(path)
    return SettingsError(f"{where}: {found}", hint=hint, file=str(path), line=line, key=key)


def _line_of(text: str, key: tuple[str, ...]) -> int | None:
    """Return where ``key`` is set: the first line with which the text before parses to have it.

    tomllib keeps no positions. This asks the parser itself instead of guessing at TOML with
    patterns, once, on the way out.
    """
    lines = text.splitlines()
    begin = 1
    for count in range(1, len(lines) + 1):
        try:
            found: Any = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue
        for part in key:
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None:
            return begin
        begin = count + 1
    return None


def _as_written(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _split_address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(text)
    if not host:
        raise ValueError(text)
    return host.removeprefix("[").removesuffix("]"), int(port)
