from __future__ import annotations

from pathlib import Path

import pytest

from aitbcd.errors import SettingsError
from aitbcd.settings import Settings, load, parse

FILE = Path("/etc/aitbcd/aitbcd.toml")


def refused(text: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        parse(text, FILE)
    assert str(FILE) in caught.value.detail
    assert caught.value.fields["file"] == str(FILE)
    return caught.value


def test_everything_has_a_default() -> None:
    settings = parse("", FILE)
    assert settings == Settings()
    assert settings.server.address == ("127.0.0.1", 8000)
    assert settings.slots.cpus is None
    assert settings.jobs.cancel_grace_s == 10
    assert settings.jobs.log_limit == 2**30


def test_every_key_is_read() -> None:
    settings = parse(
        """
        [server]
        tcp = "[::1]:0"
        [slots]
        cpus = 4
        memory = "64G"
        [jobs]
        cancel_grace = "1m"
        log_limit = 1048576
        """,
        FILE,
    )
    assert settings.server.address == ("::1", 0)
    assert (settings.slots.cpus, settings.slots.memory) == (4, 64 * 2**30)
    assert (settings.jobs.cancel_grace_s, settings.jobs.log_limit) == (60, 2**20)


def test_tcp_can_be_turned_off() -> None:
    assert parse('[server]\ntcp = ""', FILE).server.address is None


def test_tables_of_tables_are_read() -> None:
    settings = parse('[plans.lab]\nretention = "2w"\n[users."a.b"]\nplan = "lab"', FILE)
    assert settings.plans["lab"].retention_s == 14 * 86400
    assert settings.plans["pro"].retention_s == 30 * 86400
    assert settings.users["a.b"].plan == "lab"


def test_prices_are_millionths() -> None:
    pricing = parse("[pricing]\ncpu_hour = 0.05\ngpu_hour = {h100 = 2}", FILE).pricing
    assert (pricing.cpu_hour, pricing.gpu_hour) == (50_000, {"h100": 2_000_000})


@pytest.mark.parametrize(
    ("text", "line", "key", "allowed"),
    [
        ("[plans]\nlab = 7", 2, "plans.lab", "[plans.lab]"),
        ("[plans.lab]\n\nretention = 'soon'", 3, "plans.lab.retention", "30d"),
        ("[users.ann]\nplan = 'gold'", 2, "users.ann.plan", "free, pro, enterprise"),
        ("[users.ann]\ngpus = -1", 2, "users.ann.gpus", "from 0"),
        ("[limits]\nrunning = true", 2, "limits.running", "from 0"),
        ("[gpus]\nforeign = 'kill'", 2, "gpus.foreign", "avoid"),
        ("[gpus]\nsample = '10ms'", 2, "gpus.sample", "for none"),
        ("[gpus]\nsample = 0.01", 2, "gpus.sample", "from 0.1 s"),
        ("[gpus]\nsample = -1", 2, "gpus.sample", "from 0.1 s"),
        ("[gpus]\nforeign_command = 'tell'", 2, "gpus.foreign_command", "absolute path"),
        ("[gpus]\nforeign_command = ['tell']", 2, "gpus.foreign_command", "absolute path"),
        ("[gpus]\nforeign_command = ['/a', 1]", 2, "gpus.foreign_command", "arguments"),
        (
            "[gpus]\nforeign_command = ['/a\\u0000']".replace("'", '"'),
            2,
            "gpus.foreign_command",
            "",
        ),
        ("[gpus]\nforeign_command_after = 0", 2, "gpus.foreign_command_after", "5m"),
        ("[pricing]\ncpu_hour = -1", 2, "pricing.cpu_hour", "0.05"),
        ("[pricing]\ncpu_hour = nan", 2, "pricing.cpu_hour", "0.05"),
        ("[pricing]\ngpu_hour = 2", 2, "pricing.gpu_hour", "by model"),
        ("[pricing]\ngpu_hour = {h100 = 'x'}", 2, "pricing.gpu_hour", "by model"),
        ("[server]\npublic_url = 'gpu'", 2, "server.public_url", "https://"),
        ("[server]\nrequest_rate = -1", 2, "server.request_rate", "whole number"),
        ("[storage]\nquota = 'all'", 2, "storage.quota", "500G"),
        ("[slots]\n\n# four\ncpus = 'four'\n", 4, "slots.cpus", "whole number from 1"),
        ("[slots]\ncpus = true", 2, "slots.cpus", "whole number"),
        ("slots.cpus = 0", 1, "slots.cpus", "from 1"),
        ("slots = {cpus = 1.5}", 1, "slots.cpus", "whole number"),
        ("[jobs]\ncancel_grace = 'soon'", 2, "jobs.cancel_grace", "10s"),
        ("[jobs]\nlog_limit = '1K'", 2, "jobs.log_limit", "64K"),
        ("[jobs]\nlog_limit = [\n1,\n2\n]", 2, "jobs.log_limit", "64K"),
        ("[server]\ntcp = '0.0.0.0:8000'", 2, "server.tcp", "loopback"),
        ("[server]\ntcp = '127.0.0.1'", 2, "server.tcp", "127.0.0.1:8000"),
        ("[server]\ntcp = 'box:80'", 2, "server.tcp", "an address with a port"),
        ("[server]\ntcp = '127.0.0.1:99999'", 2, "server.tcp", "an address with a port"),
    ],
)
def test_a_wrong_value_is_refused_with_line_key_and_what_is_allowed(
    text: str, line: int, key: str, allowed: str
) -> None:
    error = refused(text)
    assert (error.fields["line"], error.fields["key"]) == (line, key)
    assert f"line {line}" in error.detail
    assert key.rpartition(".")[2] in error.detail
    assert error.hint is not None
    assert allowed in error.hint


@pytest.mark.parametrize(
    ("text", "line", "named", "allowed"),
    [
        ("[slots]\ncpus = 1\ncpu = 4", 3, "cpu", "cpus, memory"),
        ("# x\n[servr]\ntcp = ''", 2, "servr", "[server], [slots], [jobs]"),
        ("tcp = ''", 1, "tcp", "[server]"),
        ("jobs = 3", 1, "jobs", "[jobs]"),
    ],
)
def test_an_unknown_key_is_refused_by_its_name(
    text: str, line: int, named: str, allowed: str
) -> None:
    error = refused(text)
    assert error.fields["line"] == line
    assert named in error.detail
    assert error.hint is not None
    assert allowed in error.hint


def test_a_syntax_error_says_its_line() -> None:
    assert refused("[slots]\ncpus = \n").fields["line"] == 2
    assert refused("[slots]\n[slots]\n").fields["line"] == 2


def test_no_file_means_defaults_unless_it_was_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert load(missing) == Settings()
    with pytest.raises(SettingsError, match="there is no such file"):
        load(missing, is_named=True)


def test_a_file_that_is_no_utf8_says_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b"# one\n# \xff\n")
    with pytest.raises(SettingsError, match="line 2: is not UTF-8"):
        load(file)


def test_a_folder_in_place_of_the_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load(tmp_path)
