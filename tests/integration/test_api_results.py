"""Downloads that break off and go on, checksums, and a verify whose client leaves."""

from __future__ import annotations

import io
import os
import subprocess
import zipfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from tests.integration.conftest import Box, problem, proc_numbers
from tests.service import wait_for

MIB = 1 << 20


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
    job = box.shell("truncate -s 400G large", cwd=str(tmp_path))["job_id"]
    package = box.package(job)
    package.chmod(0o700)
    # It would take minutes to read.
    os.rename(tmp_path / "large", package / "large")

    def is_reading() -> bool:
        for link in Path(f"/proc/{box.service.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if os.readlink(link).endswith("/large"):
                    return True
        return False

    with box.connect() as sock:
        sock.sendall(
            f"POST /v1/jobs/{job}/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
        )
        wait_for("it is verified", is_reading, log=box.service.log)
    wait_for("it is left alone", lambda: not is_reading(), log=box.service.log)
    assert box.run("true")["status"] == "completed"


def test_memory_is_flat_while_a_large_package_is_sent(box: Box, tmp_path: Path) -> None:
    job = box.shell("truncate -s 400M a", cwd=str(tmp_path), artifacts=["a"])["job_id"]
    before = proc_numbers(box.service.pid, "smaps_rollup")["Pss"]
    with box.http.stream("GET", f"/v1/jobs/{job}/download") as answer:
        assert sum(len(piece) for piece in answer.iter_raw()) > 400 * MIB
    assert proc_numbers(box.service.pid, "smaps_rollup")["Pss"] - before < 20 * MIB
