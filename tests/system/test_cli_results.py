"""``download`` and ``verify``: results get out whole, or it is said what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from aitbcctl import package
from aitbcctl.client import Client
from tests.system.conftest import Cli, Gate

pytestmark = pytest.mark.system

JOB = r"""
echo out; echo err >&2; mkdir ckpt; echo model >ckpt/a.pt
mkdir "$AITBC_ARTIFACTS_DIR/deep"; head -c 300000 /dev/urandom >"$AITBC_ARTIFACTS_DIR/deep/w.bin"
printf odd >"$AITBC_ARTIFACTS_DIR"/"$(printf 'new\nline " \\ \377')"
ln -s /etc/passwd "$AITBC_ARTIFACTS_DIR/link"
"""


@pytest.fixture
def job(cli: Cli) -> str:
    done = cli.shell(JOB, "--artifact", "ckpt/*.pt")
    assert cli.ended(done)["status"] == "completed"
    return done


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        os.fspath(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def stored(cli: Cli, job: str) -> Path:
    return Path(cli.status(job)["result_path"])


def test_a_download_is_the_package_and_its_list_is_right(cli: Cli, job: str) -> None:
    assert cli("download", job, "--output", "to/results").stdout == f"to/results/{job}\n".encode()
    copy = cli.folder / "to" / "results" / job
    assert files_below(copy) == files_below(stored(cli, job))
    assert (copy / "logs/stdout.log").read_bytes() == b"out\n"
    assert (copy / "result.txt").read_bytes() == b"out\n"
    assert (copy / "artifacts/ckpt/a.pt").read_bytes() == b"model\n"
    assert not (copy / "artifacts/link").exists()
    assert os.listdir(copy.parent) == [job]
    checked = subprocess.run(
        ["sha256sum", "-c", "--strict", "output.sha256"], cwd=copy, check=False
    )
    assert checked.returncode == 0


def test_a_copy_over_http_is_the_same_as_one_from_disk(cli: Cli, job: str) -> None:
    cli("download", job)
    client, digest = Client(cli.environ), cli.json("get", job)["manifest_sha256"]
    files = package.OverHttp(client, job)
    text, digests = package.read_list(files, digest)
    target = str(cli.folder / "http")
    assert package.copy(files, text, digests, target, force=False, tell=lambda count: None)
    assert files_below(cli.folder / "http") == files_below(cli.folder / job)


def test_where_the_disk_cannot_be_read_http_is_used(cli: Cli, job: str) -> None:
    found = package.source(Client(cli.environ), job, str(cli.folder / "closed to us"))
    assert isinstance(found, package.OverHttp)


def test_downloading_twice_is_fine_and_overwriting_is_not(cli: Cli, job: str) -> None:
    cli("download", job)
    assert b"was there already" in cli("download", job).stderr
    assert cli.json("download", job)["is_new"] is False
    (cli.folder / job / "result.txt").write_text("mine")
    assert b"--force" in cli("download", job, code=4).stderr
    assert (cli.folder / job / "result.txt").read_text() == "mine"
    assert cli.json("download", job, "--force")["is_new"] is True
    assert (cli.folder / job / "result.txt").read_text() == "out\n"


@pytest.mark.parametrize(
    ("spoil", "kind", "name", "copied"),
    [
        (lambda at: (at / "artifacts/deep/w.bin").write_bytes(b"x"), "changed",
         "artifacts/deep/w.bin", False),
        (lambda at: (at / "logs/stderr.log").unlink(), "missing", "logs/stderr.log", False),
        (lambda at: (at / "artifacts/more").write_bytes(b""), "extra", "artifacts/more", True),
        (lambda at: (at / "output.sha256").write_bytes(b""), "manifest", "output.sha256", False),
    ],
)  # fmt: skip
def test_each_difference_is_named_by_verify_and_met_by_download(
    cli: Cli, job: str, spoil: Callable[[Path], object], kind: str, name: str, copied: bool
) -> None:
    assert b"all as sealed" in cli("verify", job).stdout
    folder = stored(cli, job)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    spoil(folder)
    lines = cli("verify", job, code=1).stdout.decode().splitlines()
    assert [line.split()[:2] for line in lines if line.split()[0] == kind] == [[kind, name]]
    answer = cli.json("verify", job, code=1)
    assert {"kind": kind, "path": name} in answer["differences"]
    done = cli("download", job, code=0 if copied else 1)
    if not copied:
        assert name in done.stderr.decode()
    assert os.listdir(cli.folder).count(job) == int(copied)
    assert not [entry for entry in os.listdir(cli.folder) if entry.startswith(".job_")]


def test_results_are_there_only_at_the_end(own_cli: Cli, gate: Gate) -> None:
    running = own_cli.shell(gate.wait, "--cpus", str(os.sysconf("SC_NPROCESSORS_ONLN")))
    never = own_cli.submit("--", "true")
    own_cli("cancel", never)
    for verb in ("download", "verify"):
        assert b"running" in own_cli(verb, running, code=4).stderr
        own_cli(verb, never, code=4)
    gate.open()
    own_cli.ended(running)
    own_cli("verify", running)


def test_partial_results_of_a_failed_job_are_there(cli: Cli) -> None:
    job = cli.shell("echo partial; exit 1")
    cli.ended(job)
    cli("verify", job)
    cli("download", job)
    assert (cli.folder / job / "logs/stdout.log").read_text() == "partial\n"


def test_a_program_that_could_not_start_left_the_systems_words(cli: Cli) -> None:
    job = cli.submit("--", "./none")
    assert cli.ended(job)["reason"] == "cannot_start"
    assert "No such file" in cli("status", job).stdout.decode()
    cli("download", job)
    assert "No such file" in (cli.folder / job / "logs/stderr.log").read_text()
    assert "No such file" in json.dumps(json.loads((cli.folder / job / "output.json").read_text()))


def test_an_output_that_is_a_file_is_refused(cli: Cli, job: str) -> None:
    (cli.folder / "file").touch()
    assert b"it is no folder" in cli("download", job, "--output", "file", code=1).stderr
