"""Downloads that break off and go on, checksums, and a verify whose client leaves."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import pytest

from tests.integration.conftest import Box, User, problem, proc_numbers
from tests.service import wait_for

MIB = 1 << 20
only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


@pytest.fixture(scope="module")
def job(box: Box, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("work")
    line = "head -c 20000000 /dev/urandom > model.bin; echo a > 'a b'; echo out"
    job_id: str = box.shell(line, cwd=str(folder), artifacts=["model.bin", "a b"])["job_id"]
    return job_id


def test_a_download_goes_on_where_it_broke_off(box: Box, job: str) -> None:
    url = f"/v1/jobs/{job}/download"
    with box.http.stream("GET", url) as answer:
        tag, size = answer.headers["etag"], int(answer.headers["content-length"])
        assert answer.headers["accept-ranges"] == "bytes"
        got = next(answer.iter_raw(5 * MIB))
    rest = box.http.get(url, headers={"range": f"bytes={len(got)}-", "if-range": tag})
    assert rest.status_code == 206
    assert rest.headers["content-range"] == f"bytes {len(got)}-{size - 1}/{size}"
    assert rest.headers["etag"] == tag
    assert len(got) + len(rest.content) == size
    with zipfile.ZipFile(io.BytesIO(got + rest.content)) as archive:
        assert archive.testzip() is None
    head = box.http.head(url)
    assert (head.headers["content-length"], head.headers["etag"]) == (str(size), tag)


def test_a_range_of_another_version_is_answered_with_the_whole(box: Box, job: str) -> None:
    for path in ("download", "files/result.txt"):
        url = f"/v1/jobs/{job}/{path}"
        whole = box.http.get(url)
        for wrong in ('"other"', "Tue, 24 Nov 2026 17:59:53 GMT", 'W/"x"', ""):
            answer = box.http.get(url, headers={"range": "bytes=1-", "if-range": wrong})
            assert (answer.status_code, answer.content) == (200, whole.content), wrong


@pytest.mark.parametrize("spec", ["bytes=99999999-", "bytes=-0", "bytes=99999999-99999999"])
def test_a_range_behind_the_end_of_a_zip_says_where_it_is(box: Box, job: str, spec: str) -> None:
    url = f"/v1/jobs/{job}/download"
    answer = box.http.get(url, headers={"range": spec})
    problem(answer, 416, "bad-range")
    assert (
        answer.headers["content-range"] == f"bytes */{box.http.head(url).headers['content-length']}"
    )


@pytest.mark.parametrize("spec", ["bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,4-5", "bytes"])
def test_a_range_that_is_none_is_passed_over(box: Box, job: str, spec: str) -> None:
    answer = box.http.get(f"/v1/jobs/{job}/download", headers={"range": spec})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [("format=tar", "format"), ("format=", "format"), ("format=zip&format=zip", "format"),
     ("colour=red", "colour")],
)  # fmt: skip
def test_a_wrong_wish_for_a_download_is_named(box: Box, job: str, query: str, field: str) -> None:
    answer = box.http.get(f"/v1/jobs/{job}/download?{query}")
    assert problem(answer, 422, "invalid-value")["field"] == field


def test_details_name_the_files_with_their_checksums(box: Box, job: str) -> None:
    detail = box.status(job, detail=True)
    package = box.package(job)
    files = {file["path"]: file for file in detail["files"]}
    assert detail["files_total"] == len(files) == detail["result_files"] == 7
    for path, file in files.items():
        content = (package / path).read_bytes()
        assert (file["size"], file["sha256"]) == (len(content), sha256(content).hexdigest())
    assert detail["shares"] == 0


def test_details_of_a_package_that_its_owner_broke_are_given_all_the_same(box: Box) -> None:
    job = box.run("true")["job_id"]
    package = box.package(job)
    package.chmod(0o700)
    (package / "result.txt").unlink()
    files = {file["path"]: file["size"] for file in box.status(job, detail=True)["files"]}
    assert files["result.txt"] is None
    manifest = package / "output.sha256"
    for text in (b"nonsense\n", b"x" * 40_000_000, b"\n" * 2000, b""):
        manifest.unlink()
        manifest.write_bytes(text)
        assert box.status(job, detail=True)["files"] == []
    package.rename(package.with_name(f"{job}.moved"))
    assert box.status(job, detail=True)["files"] == []


def test_details_name_the_first_thousand_files_of_many(box: Box, tmp_path: Path) -> None:
    for number in range(1500):
        (tmp_path / f"{number:04}").touch()
    job = box.run("true", cwd=str(tmp_path), artifacts=["*"])["job_id"]
    detail = box.status(job, detail=True)
    assert (len(detail["files"]), detail["files_total"]) == (1000, 1505)


def test_checksums_are_what_sha256sum_reads_beside_the_folder(
    box: Box, job: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(io.BytesIO(box.http.get(f"/v1/jobs/{job}/download").content)) as archive:
        archive.extractall(tmp_path)
    answer = box.http.get(f"/v1/jobs/{job}/checksums")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    (tmp_path / "output.sha256").write_bytes(answer.content)
    command = ["sha256sum", "-c", "--strict", "output.sha256"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"{job}/artifacts/a b: OK" in said.stdout
    assert len(said.stdout.splitlines()) == 6


def test_changed_checksums_are_not_handed_on(box: Box) -> None:
    job = box.run("true")["job_id"]
    manifest = box.package(job) / "output.sha256"
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes().replace(b"0", b"1"))
    document = problem(box.http.get(f"/v1/jobs/{job}/checksums"), 409, "no-results")
    assert f"aitbcctl verify {job}" in document["hint"]
    # The download gives what there is: who verifies it finds out which file it is.
    assert box.http.get(f"/v1/jobs/{job}/download").status_code == 200


def test_results_that_were_taken_away_are_missed_in_words(box: Box) -> None:
    job = box.run("true")["job_id"]
    package = box.package(job)
    package.rename(package.with_name("elsewhere"))
    for path in ("download", "checksums", "result", "files/result.txt"):
        problem(box.http.get(f"/v1/jobs/{job}/{path}"), 409, "no-results")


def test_a_verify_whose_client_left_is_given_up(box: Box, tmp_path: Path) -> None:
    job = box.shell("truncate -s 1G large", cwd=str(tmp_path), artifacts=["large"])["job_id"]
    package = box.package(job)
    package.chmod(0o700)
    # It would take minutes to read.
    for number in range(400):
        (package / f"{number}.large").touch()
        os.truncate(package / f"{number}.large", 1 << 30)

    def is_reading() -> bool:
        for link in Path(f"/proc/{box.service.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if os.readlink(link).endswith("large"):
                    return True
        return False

    with box.connect() as sock:
        sock.sendall(
            f"POST /v1/jobs/{job}/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
        )
        wait_for("it is verified", is_reading, log=box.service.log)
    # Not between two files only.
    wait_for(
        "it is left alone",
        lambda: not any(is_reading() for _ in range(50)),
        log=box.service.log,
    )
    assert box.run("true")["status"] == "completed"


def test_memory_is_flat_while_a_large_package_is_sent(box: Box, tmp_path: Path) -> None:
    job = box.shell("truncate -s 400M a", cwd=str(tmp_path), artifacts=["a"])["job_id"]
    before = proc_numbers(box.service.pid, "smaps_rollup")["Pss"]
    with box.http.stream("GET", f"/v1/jobs/{job}/download") as answer:
        assert sum(len(piece) for piece in answer.iter_raw()) > 400 * MIB
    assert proc_numbers(box.service.pid, "smaps_rollup")["Pss"] - before < 20 * MIB


HOLE = 8 << 40
#: More than there are threads for any one kind of question.
MANY = 6


@only_root
def test_an_owner_who_makes_his_results_endless_holds_up_nobody_else(
    shared: Box, ada: User, bob: User
) -> None:
    job, victim = (owned(shared, user, "echo x >$AITBC_ARTIFACTS_DIR/large") for user in (ada, bob))
    package = shared.package(job)
    for path in ("artifacts/large", "output.sha256"):
        (package / path).chmod(0o640)
        os.truncate(package / path, HOLE)
    heads = [
        f"POST /v1/jobs/{job}/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        f"GET /v1/jobs/{job}/checksums HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /v1/jobs/{job}/download HTTP/1.1\r\nHost: x\r\nRange: bytes=-1\r\n\r\n",
    ]
    with ExitStack() as open_ones:
        for head in heads * MANY:
            sock = open_ones.enter_context(connected_as(ada, shared))
            sock.sendall(head.encode())
        for method, path in (("GET", "download"), ("GET", "checksums"), ("POST", "verify")):
            answer = bob.ask(shared.service.socket, method, f"/v1/jobs/{victim}/{path}")
            assert answer.status == 200, answer.body
        # What need not be read is not: the answers are there.
        verdict = ada.ask(shared.service.socket, "POST", f"/v1/jobs/{job}/verify")
        assert {"kind": "manifest", "path": "output.sha256"} in verdict.json["differences"]
        refused = ada.ask(shared.service.socket, "GET", f"/v1/jobs/{job}/checksums")
        assert refused.json["code"] == "no-results"


@only_root
def test_a_manifest_of_newlines_costs_no_memory(shared: Box, ada: User) -> None:
    job = owned(shared, ada, "head -c 64M /dev/zero >$AITBC_ARTIFACTS_DIR/large")
    forged = shared.package(job) / "output.sha256"
    forged.chmod(0o640)
    forged.write_bytes(b"\n" * (60 * MIB))
    before = proc_numbers(shared.service.pid, "status")["VmRSS"]
    verdict = ada.ask(shared.service.socket, "POST", f"/v1/jobs/{job}/verify")
    assert verdict.json["differences"] == [{"kind": "manifest", "path": "output.sha256"}]
    assert proc_numbers(shared.service.pid, "status")["VmHWM"] - before < 160 * MIB


def owned(box: Box, user: User, line: str) -> str:
    """Return a job of this user that is over."""
    body = {"command": line, "cwd": "/"}
    job: str = user.ask(box.service.socket, "POST", "/v1/jobs", body).json["job_id"]
    assert box.ended(job)["status"] == "completed"
    return job


@contextmanager
def connected_as(user: User, box: Box) -> Iterator[socket.socket]:
    os.seteuid(user.uid)
    try:
        sock = box.connect()
    finally:
        os.seteuid(0)
    with sock:
        yield sock
