"""``download`` and ``verify``: results get out whole, or it is said what is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from aitbcctl import package, sources
from aitbcctl.client import Client
from tests.service import PROGRAMS
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
    files = sources.OverHttp(client, job)
    text, digests = sources.read_list(files, digest)
    target = str(cli.folder / "http")
    assert package.copy(files, text, digests, target, force=False, tell=lambda count: None)
    assert files_below(cli.folder / "http") == files_below(cli.folder / job)


class Wire:
    """Stands between a client and the daemon; hangs up after so many bytes of an answer."""

    def __init__(self, daemon: str, path: Path, limits: Sequence[int] = ()) -> None:
        self._daemon = daemon
        self._limits = list(limits)
        self.client = Client({"AITBC_SOCKET": str(path)})
        #: Bytes of all answers.
        self.passed = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            with ours, socket.socket(socket.AF_UNIX) as theirs:
                theirs.connect(self._daemon)
                theirs.sendall(ours.recv(65536))
                left = self._limits.pop(0) if self._limits else 1 << 60
                while left > 0 and (data := theirs.recv(min(65536, left))):
                    ours.sendall(data)
                    self.passed += len(data)
                    left -= len(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def fetch(cli: Cli, wire: Wire, job: str, name: str) -> dict[str, bytes]:
    files = sources.OverHttp(wire.client, job)
    listed = sources.read_list(files, None)
    package.copy(files, *listed, str(cli.folder / name), force=False, tell=lambda count: None)
    return files_below(cli.folder / name)


def test_a_copy_over_http_goes_on_where_the_connection_was_lost(cli: Cli, job: str) -> None:
    # Of output.sha256, whole; of artifacts/ckpt/a.pt; of artifacts/deep/w.bin, two thirds.
    limits = [1 << 30, 1 << 30, 200_000]
    with closing(Wire(str(cli.daemon.socket), cli.folder / "wire", limits)) as wire:
        assert fetch(cli, wire, job, "http") == files_below(stored(cli, job))
    assert wire.passed < 400_000


def test_a_copy_over_http_goes_on_where_it_was_killed(cli: Cli, job: str) -> None:
    package_ = files_below(stored(cli, job))
    left = cli.folder / ".http.partial"
    (left / "artifacts" / "deep").mkdir(parents=True)
    (left / "artifacts" / "deep" / "w.bin").write_bytes(package_["artifacts/deep/w.bin"][:290_000])
    (left / "result.txt").write_bytes(b"something else that is longer")
    with closing(Wire(str(cli.daemon.socket), cli.folder / "wire")) as wire:
        assert fetch(cli, wire, job, "http") == package_
    assert wire.passed < 100_000
    assert os.listdir(cli.folder).count(".http.partial") == 0


def test_a_zip_holds_the_package_and_goes_on_where_it_broke_off(cli: Cli, job: str) -> None:
    assert cli("download", job, "--format", "zip").stdout == f"{job}.zip\n".encode()
    with zipfile.ZipFile(cli.folder / f"{job}.zip") as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        held = {name.partition("/")[2]: archive.read(name) for name in names}
    expected = {os.fsencode(name).decode(errors="backslashreplace"): content
                for name, content in files_below(stored(cli, job)).items()}  # fmt: skip
    assert held == expected
    assert b"was there already" in cli("download", job, "--format", "zip").stderr
    assert b"all as sealed" in cli("verify", "--path", f"{job}.zip").stdout
    whole = (cli.folder / f"{job}.zip").read_bytes()
    (cli.folder / f"{job}.zip").unlink()
    (cli.folder / f".{job}.zip.partial").write_bytes(whole[:100_000])
    cli("download", job, "--format", "zip")
    assert b"all as sealed" in cli("verify", "--path", f"{job}.zip").stdout
    assert [name for name in os.listdir(cli.folder) if "partial" in name] == []


@pytest.mark.parametrize("how", ["zip", "http"])
def test_what_was_tampered_with_is_named_and_not_kept_over_http_either(
    cli: Cli, job: str, how: str
) -> None:
    folder = stored(cli, job)
    for path in (folder / "artifacts/ckpt", folder / "artifacts/ckpt/a.pt"):
        path.chmod(0o755)
    (folder / "artifacts/ckpt/a.pt").write_bytes(b"other\n")
    if how == "zip":
        said = cli("download", job, "--format", "zip", code=1).stderr.decode()
    else:
        with (
            closing(Wire(str(cli.daemon.socket), cli.folder / "wire")) as wire,
            pytest.raises(sources.Corrupt) as refused,
        ):
            fetch(cli, wire, job, "http")
        said = refused.value.detail
    assert "artifacts/ckpt/a.pt is not what was sealed" in said
    assert [name for name in os.listdir(cli.folder) if "job_" in name or "http" in name] == []


def test_a_zip_that_is_something_else_is_not_overwritten(cli: Cli, job: str) -> None:
    (cli.folder / f"{job}.zip").write_text("mine")
    assert b"--force" in cli("download", job, "--format", "zip", code=4).stderr
    assert (cli.folder / f"{job}.zip").read_text() == "mine"
    cli("download", job, "--format", "zip", "--force")
    assert b"all as sealed" in cli("verify", job, "--path", f"{job}.zip").stdout


@pytest.mark.parametrize("before", [[], ["--output", "results"], ["--output", "."]])
@pytest.mark.parametrize("there", [[], ["--output", "results"]])
def test_the_list_of_checksums_is_right_from_here_wherever_the_results_are(
    cli: Cli, job: str, before: list[str], there: list[str]
) -> None:
    if before:
        cli("download", job, *before)
    done = cli("download", "--job-id", job, *there, "--checksum")
    assert done.stdout == b"output.sha256\n"
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "output.sha256"], cwd=cli.folder, capture_output=True
    )
    assert checked.returncode == 0, checked.stderr
    lines = checked.stdout.decode(errors="replace").splitlines()
    assert all(line.endswith(": OK") for line in lines)
    assert f"{'results/' if there else ''}{job}/logs/stdout.log: OK" in lines
    assert len(lines) == len(files_below(stored(cli, job)))


def test_the_list_of_checksums_replaces_another_jobs_and_nothing_else(cli: Cli, job: str) -> None:
    other = cli.submit("--", "true")
    cli.ended(other)
    cli("download", other, "--checksum")
    cli("download", job, "--checksum")
    assert f"{job}/result.txt" in (cli.folder / "output.sha256").read_text(errors="replace")
    (cli.folder / "output.sha256").write_text("0" * 64 + "  result.txt\n")
    assert b"--force" in cli("download", job, "--checksum", code=4).stderr
    assert "job_" not in (cli.folder / "output.sha256").read_text(errors="replace")


def test_a_path_is_no_name_of_a_job(cli: Cli, job: str) -> None:
    cli("share", job, "--with", "nobody", "--expires", "1h")
    for verb in ("delete", "status", "verify"):
        done = cli(verb, f"{job}/shares", code=3)
        assert f"there is no job {job}/shares" in done.stderr.decode()
    assert len(cli.json("share", "--list", job)["shares"]) == 1


def test_no_folder_is_not_the_one_that_one_is_in(cli: Cli, job: str) -> None:
    assert b"--output is empty" in cli("download", job, "--output", "", code=2).stderr
    assert not (cli.folder / job).exists()


class TestVerifyCopy:
    def test_each_difference_of_a_copy_is_named(self, cli: Cli, job: str) -> None:
        cli("download", job)
        assert b"all as sealed" in cli("verify", "--path", job).stdout
        assert b"all as sealed" in cli("verify", job, "--path", ".").stdout
        (cli.folder / job / "artifacts/ckpt/a.pt").write_text("other")
        (cli.folder / job / "artifacts/more").write_text("more")
        (cli.folder / job / "logs/stderr.log").unlink()
        answer = cli.json("verify", "--path", job, code=1)
        assert answer["differences"] == [
            {"kind": "changed", "path": "artifacts/ckpt/a.pt"},
            {"kind": "extra", "path": "artifacts/more"},
            {"kind": "missing", "path": "logs/stderr.log"},
        ]

    def test_a_list_that_was_made_to_fit_is_found_out(self, cli: Cli, job: str) -> None:
        cli("download", job)
        (cli.folder / job / "result.txt").write_text("forged")
        line = "find . -type f ! -name output.sha256 -exec sha256sum {} + | sed 's#\\./##'"
        subprocess.run(["sh", "-c", f"{line} >output.sha256"], cwd=cli.folder / job, check=True)
        answer = cli.json("verify", "--path", job, code=1)
        assert {"kind": "manifest", "path": "output.sha256"} in answer["differences"]

    def test_no_daemon_is_needed(self, cli: Cli, job: str) -> None:
        cli("download", job)
        nowhere = {"AITBC_SOCKET": str(cli.folder / "none.sock")}
        done = cli("verify", "--path", job, environ=nowhere)
        assert b"all as sealed" in done.stdout
        assert b"own output.sha256 alone" in done.stderr
        (cli.folder / job / "result.txt").write_text("other")
        assert b"result.txt" in cli("verify", "--path", job, environ=nowhere, code=1).stdout

    @pytest.mark.parametrize("count", [2, 3])
    def test_several_copies_are_checked_as_is_said(self, cli: Cli, job: str, count: int) -> None:
        jobs = [job, *(cli.shell("echo more") for _ in range(count - 1))]
        for each in jobs:
            cli.ended(each)
            cli("download", each, "--output", "my results")
        done = cli("verify", "--path", *(f"my results/{each}" for each in jobs), code=2)
        said, loop = done.stderr.decode().splitlines()
        assert "--path takes one copy" in said
        loop = loop.replace("aitbcctl", str(PROGRAMS / "aitbcctl"))
        checked = subprocess.check_output(["sh", "-c", loop], cwd=cli.folder, env=cli.environ)
        assert checked.count(b"all as sealed") == count
        assert b"verify takes one job" in cli("verify", *jobs, code=2).stderr

    def test_what_is_no_copy_is_said(self, cli: Cli, job: str) -> None:
        assert b"no folder and no zip" in cli("verify", "--path", "none", code=1).stderr
        assert b"is no copy" in cli("verify", "--path", ".", code=1).stderr
        (cli.folder / "x.zip").write_text("no zip")
        assert b"cannot check x.zip" in cli("verify", "--path", "x.zip", code=1).stderr
        cli("verify", "job_zzzzzzzz", "--path", str(stored(cli, job)), code=3)


def test_where_the_disk_cannot_be_read_http_is_used(cli: Cli, job: str) -> None:
    found = sources.source(Client(cli.environ), job, str(cli.folder / "closed to us"))
    assert isinstance(found, sources.OverHttp)


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
        (lambda at: (at / "output.sha256").unlink(), "missing", "output.sha256", False),
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


def test_a_list_that_is_gone_is_not_said_to_be_listed(cli: Cli, job: str) -> None:
    stored(cli, job).chmod(0o755)
    (stored(cli, job) / "output.sha256").unlink()
    assert (
        b"output.sha256  (the list of checksums itself is gone" in cli("verify", job, code=1).stdout
    )


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
