"""The README's picture of ``aitbcctl gpus --watch``: ``python -m tests.picture``, as root.

It is what the real program draws of a real daemon with real jobs of three users, who are made for
it. Only the driver is the one that tests use.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from aitbcctl import monitor, panel
from aitbcctl.client import Client
from aitbcctl.panel import Line
from aitbcctl.screen import joined
from tests.driver import GIB, Driver, build, gpu, process, uuid_of
from tests.integration.conftest import User
from tests.integration.test_gpus_watch import pid_of
from tests.service import PLAIN_CONFIG, Service, wait_for

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "gpus.svg"
WIDTH, HEIGHT = 100, 26
#: What the sparkline shows, and a little.
MINUTE_S = 64.0
CONFIG = PLAIN_CONFIG + '[slots]\ncpus = 32\n[gpus]\nforeign_grace = "1s"\n'
WORK = "n=$1; while :; do n=$((n + 1)); echo $n/$2 >$AITBC_PROGRESS; sleep 1; done"
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"


class Machine:
    """Eight GPUs, and who uses them."""

    def __init__(self, service: Service, driver: Driver) -> None:
        self._service = service
        self._driver = driver
        self._random = random.Random(7)
        self._processes: dict[str, list[tuple[int, int]]] = {}

    def submit(self, user: User, name: str, done: int, total: int, **asked: object) -> str:
        body = {"argv": ["sh", "-c", WORK, "sh", str(done), str(total)], "name": name, **asked}
        answer = user.ask(self._service.socket, "POST", "/v1/jobs", body)
        assert answer.status == 201, answer.body
        job_id: str = answer.json["job_id"]
        return job_id

    def run(self, user: User, name: str, done: int, total: int, held: int, **asked: object) -> None:
        """Have a job, with so many GiB on each of its GPUs."""
        job_id = self.submit(user, name, done, total, **asked)
        path = f"/v1/jobs/{job_id}"

        def uuids() -> Sequence[str]:
            found: Sequence[str] = user.ask(self._service.socket, "GET", path).json["gpu_uuids"]
            return found if pid_of(job_id) else ()

        given = wait_for(f"{name} runs", uuids, log=self._service.log)
        for uuid in given:
            self.hold(uuid, pid_of(job_id) or 0, held)

    def hold(self, uuid: str, pid: int, held: int) -> None:
        self._processes.setdefault(uuid, []).append((pid, held))

    def begin(self, levels: Sequence[tuple[int, int]]) -> None:
        """Let the GPUs do something: between these percentages."""
        self._driver.write(*(self._gpu(number, *span) for number, span in enumerate(levels)))

    def _gpu(self, number: int, least: int, most: int) -> str:
        held = self._processes.get(uuid_of(number), [])
        return gpu(
            number,
            utilization=self._curve(least, most),
            power=self._curve(70_000 + 5_200 * least, 90_000 + 5_900 * most),
            temperature=31 + most // 3,
            used=sum(size for _, size in held) * GIB,
            process=[process(pid, size * GIB) for pid, size in held],
        )

    def _curve(self, least: int, most: int) -> str:
        values = [self._random.randint(least, most) for _ in range(31)]
        for _ in range(4):  # a checkpoint, data that comes late
            values[self._random.randrange(31)] = least // 2
        return " ".join(map(str, values)) + " every 2"


@contextmanager
def user(name: str) -> Iterator[User]:
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True)
    try:
        entry = pwd.getpwnam(name)
        yield User(name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


@contextmanager
def notebook(of: User, folder: Path) -> Iterator[int]:
    """Run something past the queue; give its pid."""
    (folder / "ipykernel_launcher.py").write_text("import time; time.sleep(3600)")
    running = subprocess.Popen(
        ["python3", "-m", "ipykernel_launcher"], executable="/usr/bin/python3", cwd=folder,
        user=of.uid, group=of.gid,
    )  # fmt: skip
    try:
        yield running.pid
    finally:
        running.kill()
        running.wait()


def picture(lines: Sequence[Line]) -> str:
    """Return the screen as SVG, which needs no font from elsewhere."""
    with open(os.devnull, "w") as nowhere:
        console = Console(
            record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        for line in lines:
            console.print(Text.assemble(*joined(line)), no_wrap=True, overflow="crop")
    document = console.export_svg(title="aitbcctl gpus --watch", unique_id="gpus")
    document = re.sub(r"@font-face \{.*?\}\s*", "", document, flags=re.S)
    return document.replace("Fira Code, monospace", FONTS)


def seen(machine: Machine, service: Service) -> list[Line]:
    """Return the screen of who has watched for a minute."""
    watcher = monitor.Watcher(client := Client(service.environ), 1.0, monitor.look(client))
    with watcher:
        until = time.monotonic() + MINUTE_S
        while time.monotonic() < until:
            if select.select([watcher.fileno()], [], [], MINUTE_S)[0]:
                watcher.take()
        return panel.draw(watcher.seen, watcher.history, WIDTH, HEIGHT, datetime.now(UTC))


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aitbcd-picture-")))
        folder.chmod(0o755)
        ada, bob, cleo = (stack.enter_context(user(name)) for name in ("ada", "bob", "cleo"))
        driver = Driver(build(folder), folder / "nvml")
        os.environ.update(driver.environ)
        driver.write(*map(gpu, range(8)))
        service = stack.enter_context(Service(folder / "daemon", CONFIG))
        service.socket.parent.chmod(0o755)
        machine = Machine(service, driver)
        service.run("aitbcctl", "gpus", "drain", "7", "--reason", "new fan on Monday")
        machine.run(ada, "llama-70b-sft", 60, 7200, 71, gpu=["0", "1", "2", "3"])
        machine.run(bob, "resnet50", 300, 900, 22, gpu=["4"])
        machine.run(cleo, "eval-small", 100, 400, 9, vram="10G")
        machine.run(ada, "embed-docs", 20, 1500, 17, vram="20G")
        machine.hold(uuid_of(6), stack.enter_context(notebook(bob, folder)), 5)
        machine.begin([(91, 100)] * 4 + [(35, 97), (40, 70), (0, 22), (0, 0)])
        wait_for(
            "the notebook is seen", lambda: "foreign" in service.run("aitbcctl", "gpus").stdout
        )
        machine.submit(cleo, "sweep-7", 0, 9, gpus=2)
        machine.submit(bob, "resnet101", 0, 9, gpus=1)
        PICTURE.write_text(picture(seen(machine, service)))
    print(PICTURE)


if __name__ == "__main__":
    main()
