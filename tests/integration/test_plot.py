"""``aitbcctl plot`` and the samples that it draws, at a real daemon with the scripted driver."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.driver import GIB, Driver, gpu, uuid_of
from tests.integration.conftest import WAIT, Box, User, problem
from tests.integration.test_gpus_api import daemon_with
from tests.service import wait_for
from tests.system.conftest import Cli, Screen

CONFIG = """[server]
tcp = ""
[gpus]
sample = "0.1s"
[jobs]
cancel_grace = "1s"
"""
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def box(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    driver = Driver(nvml_library, tmp_path_factory.mktemp("script") / "nvml")
    driver.write(gpu(0, utilization="10 90 every 0.1"), gpu(1, utilization=50, power=300_000))
    with daemon_with(driver, tmp_path_factory.mktemp("daemon"), CONFIG) as made:
        yield made


@pytest.fixture
def cli(box: Box, tmp_path: Path) -> Iterator[Cli]:
    with closing(Cli(box.service, tmp_path)) as made:
        yield made


@pytest.fixture(scope="module")
def ended(box: Box, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job that is over, with samples of two GPUs."""
    gate = tmp_path_factory.mktemp("gate") / "gate"
    job = box.submit_waiting(gate, gpus=2, name="both")
    sampled(box, job, 10)
    gate.touch()
    assert box.ended(job)["status"] == "completed"
    return job


def sampled(box: Box, job: str, rows: int) -> list[str]:
    """Return the lines of a job's samples when there are enough."""

    def look() -> list[str] | None:
        answer = box.http.get(f"/v1/jobs/{job}/logs/gpu")
        lines = answer.text.splitlines() if answer.status_code == 200 else []
        return lines if len(lines) > rows else None

    return wait_for("it was sampled", look, log=box.service.log)


def test_the_samples_are_there_while_it_runs_and_those_of_the_package_after(
    box: Box, tmp_path: Path
) -> None:
    job = box.submit_waiting(tmp_path / "gate", gpus=2)
    lines = sampled(box, job, 6)
    assert lines[0].startswith("time,gpu,index,utilization,")
    assert {line.split(",")[1] for line in lines[1:]} == {uuid_of(0), uuid_of(1)}
    (tmp_path / "gate").touch()
    box.ended(job)
    answer = box.http.get(f"/v1/jobs/{job}/logs/gpu")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.content == (box.package(job) / "logs/gpu.csv").read_bytes()
    assert answer.text.splitlines()[: len(lines)] == lines
    part = box.http.get(f"/v1/jobs/{job}/logs/gpu", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"time")


def test_curves_are_drawn_while_it_runs(box: Box, cli: Cli, tmp_path: Path) -> None:
    job = box.submit_waiting(tmp_path / "gate", gpus=2, name="live")
    sampled(box, job, 6)
    said = cli("plot", job, environ={"LC_ALL": "C.UTF-8"}).stdout.decode()
    (tmp_path / "gate").touch()
    box.ended(job)
    first, *lines = said.splitlines()
    assert first.startswith(f"{job} (live), ")
    assert first.endswith("GPU 0  1")
    assert [line for line in lines if ", " in line] == ["utilization, %", "memory, GiB", "power, W"]
    assert "1111" in said
    assert "\x1b" not in said
    assert all(len(line) <= 80 for line in lines)


def test_a_name_longer_than_a_line_is_cut(box: Box, cli: Cli, tmp_path: Path) -> None:
    job = box.submit_waiting(tmp_path / "gate", gpus=1, name="x" * 200)
    sampled(box, job, 2)
    first = cli("plot", job, environ={"LC_ALL": "C.UTF-8"}).stdout.decode().splitlines()[0]
    (tmp_path / "gate").touch()
    box.ended(job)
    assert first.startswith(f"{job} (xxx")
    assert first.endswith("GPU 0")
    assert len(first) <= 80
    cli("plot", job, "--output", "a.svg")
    root = ET.parse(tmp_path / "a.svg").getroot()
    title = next(root.iter("{http://www.w3.org/2000/svg}text")).text or ""
    assert title.endswith("x… of root")
    assert len(title) <= 80


def test_on_a_terminal_they_fill_it_in_colours(cli: Cli, ended: str) -> None:
    unicode = {"LC_ALL": "C.UTF-8"}
    with closing(Screen(cli, "plot", ended, columns=60, environ=unicode)) as screen:
        assert screen.end() == 0
        assert "\x1b[38;5;" in screen.text
        assert any("\u2800" < char <= "\u28ff" for char in screen.text)
    poor = {"LC_ALL": "C", "NO_COLOR": "1"}
    with closing(Screen(cli, "plot", "--metric", "power", ended, environ=poor)) as screen:
        assert screen.end() == 0
        assert screen.text.isascii()
        assert "\x1b" not in screen.text
        assert "power, W" in screen.text
        assert "utilization" not in screen.text


def test_pictures_are_written_whole(cli: Cli, ended: str, tmp_path: Path) -> None:
    assert cli("plot", ended, "--output", "a.svg").stdout == b"a.svg\n"
    root = ET.parse(tmp_path / "a.svg").getroot()
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words[0] == f"{ended} (both) of root"
    assert {"GPU 0", "GPU 1", "utilization, %", "memory, GiB", "power, W"} <= {*words}
    cli("plot", ended, "--output", "a.PNG", "--metric", "clock")
    assert (tmp_path / "a.PNG").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "a.svg"]


def test_the_figures_come_as_json(cli: Cli, ended: str) -> None:
    document = cli.json("plot", ended)
    first, second = document["gpus"]
    assert (document["job_id"], first["uuid"], second["index"]) == (ended, uuid_of(0), "1")
    assert {*first["utilization"]} <= {*range(10, 91)}
    assert second["power"][-1] == 300
    assert len(first["time"]) == len(first["memory_used"]) >= 5
    assert first["time"] == sorted(first["time"])


def test_what_cannot_be_drawn_is_refused_with_the_reason(
    box: Box, cli: Cli, ended: str, tmp_path: Path
) -> None:
    def said(*words: str, code: int, environ: dict[str, str] | None = None) -> str:
        done = cli("plot", *words, code=code, environ=environ)
        assert done.stdout == b""
        return done.stderr.decode()

    plain = box.run("true")["job_id"]
    assert f"job {plain} has no GPUs" in said(plain, code=4)
    assert "there is no job" in said("job_zzzzzzzz", code=3)
    for name in ("a.pdf", "svg", "a.svg.gz"):
        assert "has to end in .svg or .png" in said(ended, "--output", name, code=2)
    assert "not both" in said(ended, "--output", "a.svg", "--json", code=2)
    assert "is not one of" in said(ended, "--metric", "fun", code=2)
    assert "cannot write no/a.svg" in said(ended, "--output", "no/a.svg", code=1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/resvg_py.py").write_text("raise ImportError")
    without = {"PYTHONPATH": str(tmp_path / "broken")}
    assert "pip install 'aitbcd[plot]'" in said(ended, "--output", "a.png", code=1, environ=without)
    assert not list(tmp_path.glob("a*"))


def test_a_job_without_samples_says_why(box: Box, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    holder = box.submit_waiting(gate, gpus=2)
    waits = box.submit("true", gpus=1)["job_id"]
    why = problem(box.http.get(f"/v1/jobs/{waits}/logs/gpu"), 409, "no-results")
    assert "yet: it has not started" in why["detail"]
    assert "gpus.sample" in why["hint"]
    box.http.post(f"/v1/jobs/{waits}/cancel")
    why = problem(box.http.get(f"/v1/jobs/{waits}/logs/gpu"), 409, "no-results")
    assert "has no results: it never started" in why["detail"]
    gate.touch()
    box.ended(holder)
    (box.package(holder) / "logs").chmod(0o755)
    (box.package(holder) / "logs/gpu.csv").unlink()
    why = problem(box.http.get(f"/v1/jobs/{holder}/logs/gpu"), 409, "no-results")
    assert "over before the first one" in why["detail"]


def test_samples_are_their_owners(box: Box, ended: str, ada: User) -> None:
    answer = ada.ask(box.service.socket, "GET", f"/v1/jobs/{ended}/logs/gpu")
    assert (answer.status, answer.json["code"]) == (404, "no-such-job")


def test_samples_that_somebody_has_spoiled_are_no_traceback(
    box: Box, cli: Cli, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = box.submit("/bin/sh", "-c", WAIT, "sh", str(gate), gpus=1)["job_id"]
    sampled(box, job, 2)
    gate.touch()
    box.ended(job)
    table = box.package(job) / "logs/gpu.csv"
    table.chmod(0o600)
    for spoiled in (b"", b"\xff\0\n\n,,,", b"time\n1\n", json.dumps([1] * 999).encode()):
        table.write_bytes(spoiled)
        assert b"has no row that makes sense" in cli("plot", job, code=4).stderr
    table.write_bytes(b"time,gpu,seconds,utilization,memory_used\n"
                      b"2026-02-13T10:00:00Z,\x1b[2Jx,1,50,%d\n" % GIB)  # fmt: skip
    assert b"\x1b" not in cli("plot", job).stdout
