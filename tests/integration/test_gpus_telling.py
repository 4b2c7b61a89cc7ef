"""The command for who uses a GPU past the queue: when it is called, with what, how it fails."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from aitbcd import settings
from aitbcd.gpus import Drains, Gpus, Telling, telling
from aitbcd.settings import Gpus as Settings
from tests.documents import blocks
from tests.driver import GIB, Driver, gpu, process, program, uuid_of
from tests.integration.test_gpus_api import daemon_with
from tests.service import DEADLINE_S, wait_for

DOCUMENT, SECTION = "docs/configuration.md", "Telling who uses a GPU past the queue"
#: Appends what it is told to a file, a line each.
NOTE = """#!/bin/sh
{ cat; printf '%s|%s|%s|%s\\n' "$AITBC_USER" "$AITBC_PID" "$AITBC_GPU" "$AITBC_TEXT"; } >> "$1"
"""


@pytest.fixture(autouse=True)
def found_by_the_loader(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in driver.environ.items():
        monkeypatch.setenv(name, value)


def script(folder: Path, text: str) -> Path:
    made = folder / "tell"
    made.write_text(text)
    made.chmod(0o755)
    return made


@asynccontextmanager
async def telling_in(
    folder: Path, *command: object, after_s: float = 0.2, boot_id: str = "this boot"
) -> AsyncIterator[Gpus]:
    settings = Settings(
        retry_s=0.1,
        foreign_grace_s=0.1,
        foreign_command=tuple(map(str, command)),
        foreign_command_after_s=after_s,
    )
    drains = Drains(folder / "gpus.json", boot_id)
    gpus = Gpus(settings, drains, lambda process, held: None)
    told = Telling(gpus, settings, drains)
    gpus.open()
    try:
        yield gpus
    finally:
        await told.close()
        await gpus.close()


async def until(gpus: Gpus, what: str, file: Path, lines: int) -> list[str]:
    """Return the lines of a file once there are so many, while somebody asks for GPUs."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        found = file.read_text().splitlines() if file.exists() else []
        if len(found) >= lines:
            return found
        assert asyncio.get_running_loop().time() < deadline, f"{what}: {found}"
        await gpus.look(max_age_s=0)
        await asyncio.sleep(0.02)


async def settled(gpus: Gpus) -> None:
    """Let more time pass than anybody has to have been there, while somebody asks."""
    for _ in range(10):
        await gpus.look(max_age_s=0)
        await asyncio.sleep(0.05)


def test_each_process_is_told_of_once_on_each_gpu_also_over_a_restart(
    driver: Driver, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    tell = script(tmp_path, NOTE)

    async def first(pid: int, other: int) -> None:
        async with telling_in(tmp_path, tell, notes) as gpus:
            facts, variables = await until(gpus, "it is told", notes, 2)
            told: dict[str, Any] = json.loads(facts)
            assert (told["gpu"], told["index"], told["jobs"]) == (uuid_of(0), 0, [])
            about = told["process"]
            assert (about["pid"], about["user"], about["memory"]) == (pid, "root", 5 * GIB)
            assert about["command"] == "sleep 1000"
            assert about["since"].endswith("Z")
            assert variables.startswith(f"root|{pid}|0|Your process {pid} (sleep 1000) holds 5 GiB")
            held = process(pid, 6 * GIB)
            driver.write(gpu(0, process=[held, process(other, GIB)]), gpu(1, process=held))
            lines = await until(gpus, "the others are told", notes, 6)
            await settled(gpus)
            told_of = [line.split("|")[1:3] for line in lines if line.count("|") == 3]
            assert sorted(told_of) == sorted([[str(pid), "0"], [str(other), "0"], [str(pid), "1"]])

    async def second() -> None:
        async with telling_in(tmp_path, tell, notes) as gpus:
            await settled(gpus)
            assert len(notes.read_text().splitlines()) == 6

    with program("sleep", "1000") as one, program("sleep", "1000") as other:
        driver.write(gpu(0, process=process(one.pid, 5 * GIB)), gpu(1))
        asyncio.run(first(one.pid, other.pid))
        asyncio.run(second())


def test_who_comes_while_nobody_asks_is_told(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "LOOK_LEAST_S", 0.1)
    notes = tmp_path / "notes"
    tell = script(tmp_path, NOTE)

    async def scenario(pid: int) -> None:
        async with telling_in(tmp_path, tell, notes, after_s=0.1) as gpus:
            await gpus.look(max_age_s=-1)
            driver.write(gpu(0, process=process(pid, GIB)))
            async with asyncio.timeout(DEADLINE_S):
                while not notes.exists() or len(notes.read_text().splitlines()) < 2:
                    await asyncio.sleep(0.02)

    with program("sleep", "1000") as running:
        driver.write(gpu(0))
        asyncio.run(scenario(running.pid))


def test_who_leaves_in_time_and_whose_job_it_is_is_not_told(driver: Driver, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    tell = script(tmp_path, NOTE)

    async def scenario(pid: int) -> None:
        async with telling_in(tmp_path, tell, notes, after_s=0.3) as gpus:
            driver.write(gpu(0, process=process(pid, GIB)))
            await gpus.look(max_age_s=-1)
            driver.write(gpu(0))
            await settled(gpus)
            # It draws.
            driver.write(gpu(0, process=process(pid, 1 << 20, "G")))
            await settled(gpus)
            assert not notes.exists()

    with program("sleep", "1000") as running:
        driver.write(gpu(0))
        asyncio.run(scenario(running.pid))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!/bin/sh\nyes no-such-user | head -c 9000000 >&2\nexit 3\n", "exited with status 3: "),
        ("#!/bin/sh\nsleep 1000\n", "did not end within 0.5 s and was killed"),
        (None, "cannot be started: No such file or directory"),
        ("#!/bin/sh\nkill -9 $$\n", "was ended by signal 9"),
        ("not a program", "cannot be started: Exec format error"),
    ],
)
def test_a_command_that_fails_is_told_in_a_sentence(
    driver: Driver,
    tmp_path: Path,
    text: str | None,
    words: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "DEADLINE_S", 0.5)
    tell = script(tmp_path, text) if text is not None else tmp_path / "none"

    async def scenario() -> None:
        with caplog.at_level(logging.WARNING):
            async with telling_in(tmp_path, tell) as gpus:
                deadline = asyncio.get_running_loop().time() + DEADLINE_S
                while words not in caplog.text:
                    assert asyncio.get_running_loop().time() < deadline, caplog.text
                    await gpus.look(max_age_s=0)
                    await asyncio.sleep(0.02)

    with program("sleep", "1000") as running:
        driver.write(gpu(0, process=process(running.pid, GIB)))
        asyncio.run(scenario())
        assert f"gpus.foreign_command for process {running.pid} {words}" in caplog.text
    assert len(caplog.text) < 4000


class _Hook(BaseHTTPRequestHandler):
    heard: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.heard.append((self.headers["content-type"], json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    heard: list[Any] = []
    server = HTTPServer(("127.0.0.1", 0), type("Hook", (_Hook,), {"heard": heard}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", heard
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_sample_of_the_documentation_posts_what_is_known(
    driver: Driver, tmp_path: Path, webhook: tuple[str, list[Any]]
) -> None:
    address, heard = webhook
    sample, _ = blocks(DOCUMENT, SECTION)
    tell = script(tmp_path, sample)
    with program("sleep", "1000") as running, daemon_with(driver, tmp_path / "daemon") as box:
        keys = (
            f'[gpus]\nforeign_command = ["{tell}", "{address}"]\nforeign_command_after = "0.1s"\n'
        )
        config = box.service.config.read_text()
        assert "[gpus]\n" in config
        # Saved, it counts.
        box.service.config.write_text(config.replace("[gpus]\n", keys))
        driver.write(gpu(0, process=process(running.pid, 5 * GIB)))

        def told() -> bool:
            box.http.get("/v1/gpus")
            return bool(heard)

        wait_for("the hook is called", told, log=box.service.log)
        kind, facts = heard[0]
        assert kind == "application/json"
        assert facts["process"]["pid"] == running.pid
        assert "submit it instead" in facts["text"]


def test_the_sample_of_the_configuration_names_the_command_and_what_it_is_called_with(
    tmp_path: Path,
) -> None:
    (sample,) = blocks(DOCUMENT, SECTION, "toml")
    told = settings.parse(sample, tmp_path / "aitbcd.toml").gpus.foreign_command
    assert told == ("/usr/local/bin/tell-of-gpu", "https://chat.example.org/hooks/gpu")


def test_the_sample_that_writes_to_terminals_writes_the_sentence(tmp_path: Path) -> None:
    _, sample = blocks(DOCUMENT, SECTION)
    write = tmp_path / "write"
    write.write_text('#!/bin/sh\n{ echo "to $1"; cat; } >heard\n')
    write.chmod(0o755)
    sentence = "%s: GPU 0 is the queue's; \\n $(false)"
    subprocess.run(
        [script(tmp_path, sample)],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:{os.defpath}", "AITBC_TEXT": sentence, "AITBC_USER": "ada",
        },
        check=True,
    )  # fmt: skip
    assert (tmp_path / "heard").read_text() == f"to ada\n{sentence}\n"
