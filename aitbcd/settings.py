"""The configuration: keys, units, defaults. The only reader of ``aitbcd.toml`` in the daemon.

Every key has a default and the daemon runs without a file. What is in the file must be right: an
unknown key or a value of the wrong kind is refused with file, line, key and what is allowed, before
anything starts. Looks at nothing but the file: "the machine's" is left as None here.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct, field
from msgspec.structs import force_setattr

from aitbcd.errors import SettingsError
from aitbcd.units import parse_duration, parse_size

#: Below this a log could not keep a first and a last part worth reading.
LOG_LIMIT_MIN = 64 * 1024
DAY_S = 86400.0
#: Of an hour: more is a mistake, and its millionths still fit 64 bits for years.
PRICE_MAX = 1_000_000
#: More is a mistake.
LIMIT_MAX = 1_000_000_000
#: What somebody has to write who serves a network without TLS.
PLAINTEXT = "i-know"


class Server(Struct, frozen=True):
    #: HOST:PORT for HTTP beside the Unix socket; "" turns it off. Port 0 takes a free one, which
    #: the start message names.
    tcp: str = "127.0.0.1:8000"
    #: PEM files of what it is encrypted with; "" for not at all.
    tls_cert: str = ""
    tls_key: str = ""
    #: PLAINTEXT where an address that the network reaches is meant to go without.
    plaintext: str = ""
    #: How people reach this daemon's HTTP from elsewhere (a proxy's address); "" for only here.
    public_url: str = ""
    #: Whom to ask about a failed job: a name, an address, a page.
    contact: str = ""
    #: Requests a second that one caller may make, on average; 0 for no limit.
    request_rate: int = 1000

    @property
    def address(self) -> tuple[str, int] | None:
        """Return ``tcp`` as host and port, None when it is off."""
        return _split_address(self.tcp) if self.tcp else None

    @property
    def certificate_files(self) -> tuple[str, ...]:
        """Return the files of the certificate; none where there is none."""
        return (self.tls_cert, self.tls_key) if self.tls_cert else ()


class Slots(Struct, frozen=True):
    #: Cores to share among jobs; None is all that the machine lets us use.
    cpus: int | None = None
    #: Bytes of memory to share among jobs; None is the machine's.
    memory: int | None = None
    #: Seconds after which a job comes before those of who has less in use.
    patience_s: float = 3600.0


class Jobs(Struct, frozen=True):
    #: Seconds between SIGTERM and SIGKILL when a job is canceled or out of time.
    cancel_grace_s: float = 10.0
    #: Bytes that each of a job's two logs keeps: its first and its last part.
    log_limit: int = 2**30
    #: Processes and threads that a job may have at a time, where it has a cgroup; 0 is no limit.
    processes: int = 16384


class Storage(Struct, frozen=True):
    #: Bytes of the state directory's file system below whose being free no job starts; None is
    #: 1 GiB, or 2 % of a small file system.
    reserve: int | None = None
    #: Bytes of results that a user may have; above, his jobs wait. None is no limit.
    quota: int | None = None


class Limits(Struct, frozen=True):
    """What one user may have at a time; None is no limit."""

    #: Jobs that run.
    running: int | None = None
    #: GPUs in use; a job on a share of one counts as one.
    gpus: int | None = None
    #: Jobs that wait.
    pending: int | None = None


class Plan(Struct, frozen=True):
    """How long results are kept; ``[plans.NAME]``."""

    #: Seconds from a job's end.
    retention_s: float = 7 * DAY_S
    #: How far ahead, in seconds, ``keep`` may put it off; None is the retention, 0 not at all.
    keep_s: float | None = None
    #: As in ``Limits``.
    running: int | None = None
    gpus: int | None = None
    pending: int | None = None


class Member(Struct, frozen=True):
    """What is settled for a user or a group; ``[users.NAME]``, ``[groups.NAME]``."""

    plan: str | None = None
    #: As in ``Limits``.
    running: int | None = None
    gpus: int | None = None
    pending: int | None = None


class Pricing(Struct, frozen=True):
    """Prices in millionths of the currency."""

    cpu_hour: int = 0
    #: By GPU model: any part of its name.
    gpu_hour: Mapping[str, int] = field(default_factory=dict)
    #: Shown behind amounts.
    currency: str = ""


#: Plans that are there without being configured.
PLANS: Mapping[str, Plan] = {
    "free": Plan(7 * DAY_S),
    "pro": Plan(30 * DAY_S),
    "enterprise": Plan(90 * DAY_S),
}


class Gpus(Struct, frozen=True):
    #: Seconds that the driver has for an answer; six times as many for the first one.
    deadline_s: float = 10.0
    #: Seconds after which a driver that fails is asked again; longer each time.
    retry_s: float = 60.0
    #: Seconds that a GPU has to be without foreign processes before it is free again.
    foreign_grace_s: float = 5.0
    #: Bytes that a process may hold that only draws, before it counts as a foreign one.
    display_memory: int = 1 << 29
    #: What becomes of a GPU that somebody uses past the queue: "wait" until it is left alone,
    #: "avoid" it while another one is free, or "ignore" that.
    foreign: str = "wait"
    #: What is called so that somebody who uses a GPU past the queue can be told: a program and its
    #: arguments; nothing to call nothing.
    foreign_command: tuple[str, ...] = ()
    #: Seconds that his process has to have been there.
    foreign_command_after_s: float = 300.0
    #: How many jobs may share one GPU.
    shares: int = 8
    #: Jobs run on the cores near to their GPUs, while those are enough for all that do.
    numa: bool = True
    #: Seconds between two samples of the GPUs of running jobs; 0 for none.
    sample_s: float = 1.0


class Launcher(Struct, frozen=True):
    """How jobs are started; a launcher that is a service of root's reads this by itself too."""

    #: Where it is a service of root's: groups whose members are served and have their jobs run as
    #: themselves.
    groups: tuple[str, ...] = ("aitbc", "aitbc-admin")
    #: There: root may have jobs too.
    root: bool = False
    #: No job gets more rights than its user has: set-id programs (sudo, newuidmap) give none.
    no_new_privs: bool = False


class Settings(Struct, frozen=True):
    server: Server = field(default_factory=Server)
    slots: Slots = field(default_factory=Slots)
    limits: Limits = field(default_factory=Limits)
    jobs: Jobs = field(default_factory=Jobs)
    gpus: Gpus = field(default_factory=Gpus)
    launcher: Launcher = field(default_factory=Launcher)
    storage: Storage = field(default_factory=Storage)
    pricing: Pricing = field(default_factory=Pricing)
    plans: Mapping[str, Plan] = field(default_factory=lambda: PLANS)
    users: Mapping[str, Member] = field(default_factory=dict)
    groups: Mapping[str, Member] = field(default_factory=dict)

    def take(self, other: Settings) -> None:
        """Become like ``other``, but for what counts from the start only.

        The one change there ever is to what is frozen for all others: they hold it, or a table of
        it, and see each value as it is when they need it.
        """
        for table in self.__struct_fields__:
            mine, new = getattr(self, table), getattr(other, table)
            if isinstance(mine, Mapping):
                force_setattr(self, table, new)
                continue
            for key in mine.__struct_fields__:
                if (table, key) not in _FIXED:
                    force_setattr(mine, key, getattr(new, key))


#: Keys whose new value counts when the daemon starts again, as they stand in the file.
FROM_THE_START = frozenset(
    {
        "server.tcp",
        "server.tls_cert",
        "server.tls_key",
        "server.plaintext",
        "server.public_url",
        "slots.cpus",
        "slots.memory",
        "gpus.foreign_grace",
        "gpus.display_memory",
    }
)


class _Key(Struct, frozen=True):
    """One key of the file: the field it fills, how it is read, what it may be."""

    field: str
    read: Callable[[Any], Any]
    allowed: str


class Table(Struct, frozen=True):
    """One table of the file: what it makes and its keys."""

    made: type[Any]
    keys: Mapping[str, _Key]
    #: It is a table of tables: ``[plans.NAME]``.
    is_named: bool = False


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65536:
        raise ValueError
    return value


def _pause(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds < 0.1:
        raise ValueError
    return seconds


def _pause_or_none(value: Any) -> float:
    seconds = parse_duration(value)
    return seconds and _pause(value)


def _address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    if value:
        host, _ = _split_address(value)
        if host != "localhost":
            ipaddress.ip_address(host)
    return value


def is_loopback(host: str) -> bool:
    """Tell whether an address is one that only this machine reaches."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError
    return value


def _plaintext(value: Any) -> str:
    if value not in ("", PLAINTEXT):
        raise ValueError
    return str(value)


def _log_limit(value: Any) -> int:
    size = parse_size(value)
    if size < LOG_LIMIT_MIN:
        raise ValueError
    return size


def _web_address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query):
        raise ValueError
    return value.rstrip("/")


def _line(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError
    return value


def _rate(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
        raise ValueError
    return value


def _price(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    if not 0 <= value <= PRICE_MAX:
        raise ValueError
    return round(value * 1_000_000)


def _prices(value: Any) -> Mapping[str, int]:
    if not isinstance(value, dict) or not all(name.strip() for name in value):
        raise ValueError
    return {name: _price(price) for name, price in value.items()}


def _groups(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    if not all(isinstance(name, str) and name for name in value):
        raise ValueError
    return tuple(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _plan_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _limit(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LIMIT_MAX:
        raise ValueError
    return value


def _foreign(value: Any) -> str:
    if value not in ("wait", "avoid", "ignore"):
        raise ValueError
    return str(value)


def _command(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError
    if (value and not value[0].startswith("/")) or any("\0" in word for word in value):
        raise ValueError
    return tuple(value)


_COUNT = "a whole number from 0, for example 4"
_LIMITS: Mapping[str, _Key] = {
    "running": _Key("running", _limit, _COUNT),
    "gpus": _Key("gpus", _limit, _COUNT),
    "pending": _Key("pending", _limit, _COUNT),
}
_MEMBER = Table(
    Member, {"plan": _Key("plan", _plan_name, "the name of a plan"), **_LIMITS}, is_named=True
)
_DURATION = 'a duration, for example "30d"'
#: Everything that the file may hold.
TABLES: Mapping[str, Table] = {
    "server": Table(
        Server,
        {
            "tcp": _Key(
                "tcp",
                _address,
                'an address with a port, for example "127.0.0.1:8000", or "" for none',
            ),
            "tls_cert": _Key(
                "tls_cert", _path, 'the path of a file, for example "/etc/aitbcd/tls-cert.pem"'
            ),
            "tls_key": _Key(
                "tls_key", _path, 'the path of a file, for example "/etc/aitbcd/tls-key.pem"'
            ),
            "plaintext": _Key("plaintext", _plaintext, f'"{PLAINTEXT}", or "" for no'),
            "public_url": _Key(
                "public_url", _web_address, 'an address, for example "https://gpu.example.org"'
            ),
            "contact": _Key("contact", _line, "a line of text"),
            "request_rate": _Key(
                "request_rate", _rate, "requests a second, a whole number; 0 for no limit"
            ),
        },
    ),
    "slots": Table(
        Slots,
        {
            "cpus": _Key("cpus", _whole_number, "a whole number from 1, for example 8"),
            "memory": _Key("memory", parse_size, 'bytes or a size, for example "64G"'),
            "patience": _Key("patience_s", _pause, 'a duration from 0.1 s, for example "1h"'),
        },
    ),
    "jobs": Table(
        Jobs,
        {
            "cancel_grace": _Key(
                "cancel_grace_s", parse_duration, 'seconds or a duration, for example "10s"'
            ),
            "log_limit": _Key(
                "log_limit", _log_limit, 'bytes or a size from "64K", for example "1G"'
            ),
            "processes": _Key(
                "processes", _limit, "a whole number, for example 16384; 0 for no limit"
            ),
        },
    ),
    "storage": Table(
        Storage,
        {
            "reserve": _Key("reserve", parse_size, 'bytes or a size, for example "10G"'),
            "quota": _Key("quota", parse_size, 'bytes or a size, for example "500G"'),
        },
    ),
    "pricing": Table(
        Pricing,
        {
            "cpu_hour": _Key("cpu_hour", _price, "a price, for example 0.05"),
            "gpu_hour": _Key("gpu_hour", _prices, "prices by model: { H100 = 2.5, A100 = 1.2 }"),
            "currency": _Key("currency", _line, 'a word, for example "EUR"'),
        },
    ),
    "plans": Table(
        Plan,
        {
            "retention": _Key("retention_s", parse_duration, _DURATION),
            "keep": _Key("keep_s", parse_duration, _DURATION),
            **_LIMITS,
        },
        is_named=True,
    ),
    "limits": Table(Limits, _LIMITS),
    "users": _MEMBER,
    "groups": _MEMBER,
    "launcher": Table(
        Launcher,
        {
            "groups": _Key("groups", _groups, 'names of groups, for example ["aitbc"]'),
            "root": _Key("root", _flag, "true or false"),
            "no_new_privs": _Key("no_new_privs", _flag, "true or false"),
        },
    ),
    "gpus": Table(
        Gpus,
        {
            "deadline": _Key("deadline_s", _pause, 'a duration from 0.1 s, for example "10s"'),
            "retry": _Key("retry_s", _pause, 'a duration from 0.1 s, for example "1m"'),
            "foreign_grace": _Key(
                "foreign_grace_s", _pause, 'a duration from 0.1 s, for example "5s"'
            ),
            "display_memory": _Key(
                "display_memory", parse_size, 'bytes or a size, for example "512M"'
            ),
            "foreign": _Key("foreign", _foreign, '"wait", "avoid" or "ignore"'),
            "foreign_command": _Key(
                "foreign_command",
                _command,
                'the absolute path of a program, and its arguments: ["/usr/local/bin/tell"]',
            ),
            "foreign_command_after": _Key(
                "foreign_command_after_s", _pause, 'a duration from 0.1 s, for example "5m"'
            ),
            "shares": _Key("shares", _whole_number, "a whole number from 1, for example 8"),
            "numa": _Key("numa", _flag, "true or false"),
            "sample": _Key(
                "sample_s", _pause_or_none, 'a duration from 0.1 s, for example "1s"; "0" for none'
            ),
        },
    ),
}


#: The fields of those, by table.
_FIXED = frozenset(
    (table, TABLES[table].keys[key].field)
    for table, key in (each.split(".") for each in FROM_THE_START)
)


def changes(old: Settings, new: Settings) -> list[str]:
    """Return the keys, as they stand in the file, whose values differ."""
    return [
        ".".join((*where, key))
        for name, table in TABLES.items()
        for where, mine, other in _pairs(name, getattr(old, name), getattr(new, name))
        for key, about in table.keys.items()
        if getattr(mine, about.field, None) != getattr(other, about.field, None)
    ]


def _pairs(name: str, old: Any, new: Any) -> list[tuple[tuple[str, ...], Any, Any]]:
    """Return the tables of this name in both; None where one of them has none."""
    if not isinstance(old, Mapping):
        return [((name,), old, new)]
    words = dict.fromkeys([*old, *new])
    return [((name, word), old.get(word), new.get(word)) for word in words]


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
        raise _not_toml(text, path, line, str(problem)) from None
    read = {name: _read_table(name, value, text, path) for name, value in tables.items()}
    if "plans" in read:
        read["plans"] = {**PLANS, **read["plans"]}
    settings = Settings(**read)
    _check_plans(settings, text, path)
    _check_encryption(settings.server, text, path)
    return settings


def _not_toml(text: str, path: Path, line: int, words: str) -> SettingsError:
    # In a file with a place for every key, what is added at its end stands there twice.
    if found := re.match(r"Cannot declare \('([^']+)',\) twice", words):
        first = _line_of(text, (found[1],))
        said = f"[{found[1]}] is there already, in line {first}"
        return _error(path, line, None, said, "put the keys below it there")
    if words.startswith("Cannot overwrite a value"):
        said = "this key is there already, in the same table"
        return _error(path, line, None, said, "take one of the two away")
    return _error(path, line, None, f"is not TOML: {words}", "correct it")


def _read_table(name: str, value: Any, text: str, path: Path) -> Any:
    if name not in TABLES:
        allowed = ", ".join(f"[{table}]" for table in TABLES)
        raise _refusal(text, path, (name,), f"unknown table or key '{name}'", allowed)
    table = TABLES[name]
    if not isinstance(value, dict):
        found = f"{name} is {value!r}"
        raise _refusal(text, path, (name,), found, f"a table [{name}]")
    if not table.is_named:
        return _fields(table, (name,), value, text, path)
    for word, inner in value.items():
        if not isinstance(inner, dict):
            found = f"{word} in [{name}] is {_as_written(inner)}"
            raise _refusal(text, path, (name, word), found, f"a table [{name}.{word}]")
    return {word: _fields(table, (name, word), inner, text, path) for word, inner in value.items()}


def _fields(
    table: Table, where: tuple[str, ...], value: dict[str, Any], text: str, path: Path
) -> Any:
    shown = ".".join(where)
    arguments = {}
    for key, raw in value.items():
        if key not in table.keys:
            found = f"unknown key '{key}' in [{shown}]"
            raise _refusal(text, path, (*where, key), found, ", ".join(table.keys))
        try:
            arguments[table.keys[key].field] = table.keys[key].read(raw)
        except ValueError:
            found = f"{key} in [{shown}] is {_as_written(raw)}"
            raise _refusal(text, path, (*where, key), found, table.keys[key].allowed) from None
    return table.made(**arguments)


def _check_plans(settings: Settings, text: str, path: Path) -> None:
    for table, members in (("users", settings.users), ("groups", settings.groups)):
        for name, member in members.items():
            if member.plan is not None and member.plan not in settings.plans:
                found = f'plan in [{table}.{name}] is "{member.plan}", which is no plan'
                key = (table, name, "plan")
                raise _refusal(text, path, key, found, ", ".join(settings.plans))


def _check_encryption(server: Server, text: str, path: Path) -> None:
    for one, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(server, one) and not getattr(server, other):
            found = f"{one} in [server] is there without {other}"
            raise _refusal(text, path, ("server", one), found, "both of them, or none")
    address = server.address
    if address is None or is_loopback(address[0]) or server.tls_cert or server.plaintext:
        return
    found = f'tcp in [server] is "{server.tcp}", which a network reaches, without TLS'
    allowed = (
        "a loopback address; any address with tls_cert and tls_key; without them only with"
        f' plaintext = "{PLAINTEXT}": then everybody on the way can read and use API keys'
    )
    raise _refusal(text, path, ("server", "tcp"), found, allowed)


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
