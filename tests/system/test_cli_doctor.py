"""``aitbcctl doctor``: finds what is wrong, and finds nothing where nothing is."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.authority import Authority
from tests.service import wait_for
from tests.system.conftest import Cli, Gate, Screen


def findings(cli: Cli, code: int = 0, **environ: str) -> dict[str, Any]:
    done = cli("doctor", "--json", code=code, environ=environ)
    return {each["about"]: each for each in json.loads(done.stdout)["findings"]}


def test_nothing_is_wrong_while_all_is_well(cli: Cli, gate: Gate) -> None:
    job = cli.shell(gate.wait)
    cli.until(job, "running")
    found = findings(cli)
    looked_at = {"daemon", "launcher", "configuration", "disk", "clock", "orphans", "gpus"}
    assert looked_at | {"cgroups", "store", "permissions"} <= set(found)
    assert found["orphans"]["state"] == found["launcher"]["state"] == "ok"
    said = cli("doctor").stdout.decode()
    assert "OK    daemon: version" in said
    gate.open()
    cli.ended(job)


def test_on_a_terminal_a_finding_is_broken_between_words(
    cli: Cli, screen: Callable[..., Screen]
) -> None:
    shown = screen(cli, "doctor", columns=60)
    assert shown.end() == 0
    whole = cli("doctor").stdout.decode().splitlines()
    long = next(line for line in whole if len(line) > 60 and "cgroups" in line)
    words = " ".join(shown.text.split())
    assert " ".join(long.split()) in words
    lines = shown.text.splitlines()
    assert all(len(line) <= 60 for line in lines if "/" not in line)


def test_a_daemon_that_is_away_fails_with_what_to_do(cli: Cli, tmp_path: Path) -> None:
    found = findings(cli, code=1, AITBC_SOCKET=str(tmp_path / "none.sock"))
    assert found["daemon"]["state"] == "fail"
    assert found["daemon"]["hint"]


def test_a_store_is_looked_at_though_nobody_serves_it(cli: Cli, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    there = {"AITBC_SOCKET": str(tmp_path / "none.sock"), "AITBCD_STATE_DIR": str(state)}
    file = state / "queue.db"
    with closing(sqlite3.connect(file)) as kept:
        kept.execute("PRAGMA journal_mode = WAL")
        with closing(sqlite3.connect(cli.daemon.state / "queue.db")) as source:
            source.backup(kept)
    file.chmod(0o600)
    found = findings(cli, code=1, **there)
    assert found["store"]["state"] == found["permissions"]["state"] == "ok"
    assert os.listdir(state) == [file.name]
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + bytes(4096) + whole[8192:])
    found = findings(cli, code=1, **there)
    assert (found["store"]["state"], "is damaged" in found["store"]["detail"]) == ("fail", True)
    file.write_bytes(b"something else" * 100)
    assert findings(cli, code=1, **there)["store"]["state"] == "fail"


def test_what_others_could_change_fails_until_it_is_mended_as_said(own_cli: Cli) -> None:
    own_cli.daemon.state.chmod(0o777)
    found = findings(own_cli, code=1)["permissions"]
    assert found["detail"].startswith(f"{own_cli.daemon.state} has mode 0777")
    subprocess.run(found["hint"].split(), check=True)
    assert findings(own_cli)["permissions"]["state"] == "ok"


def test_a_wrong_configuration_fails_with_its_line(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[jobs]\nx = 1\n")
    found = findings(cli, code=1, AITBCD_CONFIG=str(file))
    assert "line 2: unknown key 'x'" in found["configuration"]["detail"]


def test_a_certificate_is_looked_at_before_it_is_too_late(cli: Cli, tmp_path: Path) -> None:
    authority, file = Authority(tmp_path), tmp_path / "aitbcd.toml"

    def found(cert: Path, key: Path, code: int = 0) -> tuple[str, str]:
        file.write_text(f'[server]\ntls_cert = "{cert}"\ntls_key = "{key}"\n')
        finding = findings(cli, code=code, AITBCD_CONFIG=str(file))["certificate"]
        return finding["state"], finding["detail"]

    cert, key = authority.issue("right", "DNS:gpu.example.org")
    assert found(cert, key) == ("ok", f"{cert} is right, for gpu.example.org")
    state, said = found(*authority.issue("soon", "DNS:gpu.example.org", days=2))
    assert (state, "expires in 47 h" in said) == ("warn", True)
    _, other = authority.issue("other")
    state, said = found(cert, other, code=1)
    assert (state, "does not belong to the certificate" in said) == ("fail", True)
    assert found(tmp_path / "none", key, code=1)[0] == "fail"


def test_what_claims_to_be_of_a_job_that_is_over_is_an_orphan(cli: Cli) -> None:
    job = cli.submit("true")
    cli.ended(job)
    building = f"{cli.daemon.state}/results/.{job}"
    orphan = subprocess.Popen(
        ["sleep", "1000"],
        env={
            "AITBC_JOB_ID": job,
            "AITBC_RESULT": f"{building}/result.txt",
            "PATH": os.environ["PATH"],
        },
    )
    try:
        found = findings(cli)
        assert found["orphans"]["state"] == "warn"
        assert f"{orphan.pid} of {job}" in found["orphans"]["detail"]
    finally:
        orphan.kill()
        orphan.wait()


def test_a_launcher_that_is_gone_fails_until_there_is_another(own_cli: Cli) -> None:
    own_cli.ended(own_cli.submit("true"))
    pid = int(findings(own_cli)["launcher"]["detail"].split()[-1])
    os.kill(pid, signal.SIGKILL)

    def is_replaced() -> bool:
        done = own_cli.daemon.run("aitbcctl", "doctor", "--json")
        found = {each["about"]: each for each in json.loads(done.stdout)["findings"]}["launcher"]
        return found["state"] == "ok" and str(pid) not in found["detail"].split()

    wait_for("there is another", is_replaced)
