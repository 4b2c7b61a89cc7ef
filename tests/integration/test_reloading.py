"""The configuration is read again, as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Box, serving
from tests.service import PLAIN_CONFIG, Service, wait_for


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Box]:
    with serving(tmp_path / "daemon") as box:
        yield box


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def by_renaming(path: Path, text: str) -> None:
    """Save as most editors do: the old one is away for a moment."""
    new = path.with_suffix(".new")
    new.write_text(text)
    path.rename(path.with_suffix(".old"))
    new.rename(path)


def said(box: Box, words: str, times: int = 1) -> None:
    log = box.service.log
    wait_for(f"{words!r} is said", lambda: log.read_text().count(words) >= times, log=log)


def watched(service: Service, folder: Path) -> None:
    """Wait until the daemon has an inotify watch of a folder (proc(5), fdinfo)."""
    of_it = f"ino:{folder.stat().st_ino:x} "
    told = Path(f"/proc/{service.pid}/fdinfo")
    wait_for(
        f"{folder} is watched",
        lambda: any(of_it in path.read_text() for path in told.iterdir()),
        log=service.log,
    )


def contact_of_a_failure(box: Box) -> str:
    return str(box.run("false")["message"]) + str(box.status("@", detail=True))


@pytest.mark.parametrize("save", [in_place, by_renaming])
def test_what_is_saved_counts(own: Box, save: Callable[[Path, str], None]) -> None:
    assert "the lab's desk" not in contact_of_a_failure(own)
    save(own.service.config, f'{PLAIN_CONFIG}contact = "the lab\'s desk"\n')
    said(own, "changed: server.contact")
    assert "the lab's desk" in contact_of_a_failure(own)
    save(own.service.config, PLAIN_CONFIG)
    said(own, "server.contact", 2)
    assert "the lab's desk" not in contact_of_a_failure(own)


def test_a_wrong_file_changes_nothing_and_is_said_with_line_and_key(own: Box) -> None:
    config = own.service.config
    config.write_text('[server]\ntcp = ""\ncontact = "nobody"\nrequest_rate = "many"\n')
    said(own, f'{config}, line 4: request_rate in [server] is "many"')
    said(own, "allowed: requests a second")
    said(own, "stays as it was")
    assert "nobody" not in contact_of_a_failure(own)
    config.write_text("[server\n")
    said(own, "line 1: is not TOML")
    assert own.run("true")["status"] == "completed"


def test_sighup_reads_it_and_a_missing_one_means_the_defaults_only_then(own: Box) -> None:
    config = own.service.config
    config.write_text(f'{PLAIN_CONFIG}contact = "her"\n')
    said(own, "changed: server.contact")
    config.unlink()
    (config.parent / "another").write_text("")
    assert "her" in contact_of_a_failure(own)
    os.kill(own.service.pid, signal.SIGHUP)
    said(own, "server.contact", 2)
    assert "her" not in contact_of_a_failure(own)


def test_the_folder_of_a_configuration_may_be_made_while_the_daemon_runs(tmp_path: Path) -> None:
    service = Service(tmp_path / "daemon")
    home = service.folder / "home"
    service.config = home / "aitbcd" / "aitbcd.toml"
    service.config.parent.mkdir(parents=True)
    in_place(service.config, PLAIN_CONFIG)
    with service:
        shutil.rmtree(home)
        for folder in (home, service.config.parent):
            watched(service, folder.parent)
            folder.mkdir()
        watched(service, service.config.parent)
        in_place(service.config, f'{PLAIN_CONFIG}contact = "her"\n')
        said(Box(service), "changed: server.contact")


def test_what_counts_from_the_start_only_is_said(own: Box) -> None:
    config = own.service.config
    config.write_text(config.read_text() + '[storage]\nreserve = "1M"\n')
    said(own, "changed: storage.reserve")
    config.write_text(config.read_text().replace('tcp = ""', 'tcp = "127.0.0.1:0"'))
    said(own, "server.tcp will count from the next start")
    # Said again as long as it is so.
    os.kill(own.service.pid, signal.SIGHUP)
    said(own, "server.tcp will count from the next start", 2)


def test_jobs_that_wait_for_a_limit_start_when_it_is_lifted(own: Box, tmp_path: Path) -> None:
    config = own.service.config
    config.write_text(config.read_text() + "[limits]\nrunning = 1\n")
    said(own, "changed: limits")
    gate = tmp_path / "gate"
    first = own.submit_waiting(gate)
    second = own.submit("true")["job_id"]
    assert own.status(second)["status"] == "pending"
    config.write_text(config.read_text().replace("running = 1", "running = 2"))
    assert own.ended(second)["status"] == "completed"
    gate.touch()
    assert own.ended(first)["status"] == "completed"
