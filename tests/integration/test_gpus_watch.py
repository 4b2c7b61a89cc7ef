"""``aitbcctl gpus --watch`` on a terminal of its own, at a real daemon with the scripted driver."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.driver import GIB, Driver, gpu, process, program, uuid_of
from tests.integration.conftest import Box
from tests.integration.test_gpus_api import daemon_with, reached
from tests.service import DEADLINE_S, environ_of, wait_for
from tests.system.conftest import Cli, Screen

UNICODE = {"LC_ALL": "C.UTF-8"}
BEGIN, END = "\x1b[?1049h", "\x1b[?1049l"
SHOW_CURSOR = "\x1b[?25h"
Open = Callable[..., Screen]


@pytest.fixture(scope="module")
def driver(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(nvml_library, tmp_path_factory.mktemp("script") / "nvml")


@pytest.fixture(scope="module")
def box(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    driver.write(gpu(0), gpu(1))
    with daemon_with(driver, tmp_path_factory.mktemp("daemon")) as made:
        yield made


@pytest.fixture
def watch(box: Box, driver: Driver, tmp_path: Path) -> Iterator[Open]:
    """Watch two free GPUs on a terminal: ``watch("--interval", "5", columns=40)``."""
    driver.write(gpu(0, utilization=17), gpu(1))
    reached(box, ["free", "free"])
    with ExitStack() as stack:
        cli = stack.enter_context(closing(Cli(box.service, tmp_path)))

        def open_one(
            *options: str, columns: int = 80, stderr: Path | None = None, **more: str
        ) -> Screen:
            words = ("gpus", "--watch", *options)
            environ = UNICODE | more
            made = Screen(cli, *words, columns=columns, environ=environ, stderr=stderr)
            stack.enter_context(closing(made))
            return made

        yield open_one


def words(screen: Screen) -> str:
    """Return what was written on it, without what moves and colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", screen.text)


def assert_given_back(screen: Screen) -> None:
    assert screen.text.count(BEGIN) == screen.text.count(END)
    rest = screen.text.rpartition("quits")[2]
    assert END in rest
    assert SHOW_CURSOR in rest
    assert screen.is_line_by_line


def test_gpus_are_live_with_their_jobs_and_whoever_else_is_there(
    box: Box, driver: Driver, watch: Open
) -> None:
    job = box.submit("sh", "-c", "echo 3/4 > $AITBC_PROGRESS; exec sleep 1000", name="resnet",
                     gpu=["0"])["job_id"]  # fmt: skip
    box.reached(job, "running")
    pid = wait_for("its process is there", lambda: pid_of(job))
    with program("sleep", "1000") as notebook:
        driver.write(
            gpu(0, utilization=42, used=3 * GIB, process=[process(pid, 3 * GIB)]),
            gpu(1, used=5 * GIB, process=[process(notebook.pid, 5 * GIB)]),
        )
        reached(box, ["busy", "foreign"])
        screen = watch(columns=120)
        who = (job, "resnet", "75%", f"pid {notebook.pid}", "sleep 1000")
        for expected in ("1 busy", "1 foreign", "42%", "3.0/80 GiB", *who, "no job waits", "quits"):
            screen.expect(expected)
        driver.write(gpu(0, utilization=99, used=3 * GIB, process=[process(pid, 3 * GIB)]), gpu(1))
        screen.expect("99%")
        screen.expect("1 free")
        behind = box.submit("true", gpus=2)["job_id"]
        screen.expect(f"1 job waits for GPUs; {behind}")
        screen.type("q")
        assert screen.end() == 0
        assert_given_back(screen)
    for each in (behind, job):
        box.http.post(f"/v1/jobs/{each}/cancel", json={"force": True})
        box.reached(each, "canceled")


def pid_of(job_id: str) -> int | None:
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    wanted = {b"AITBC_JOB_ID": job_id.encode()}
    return next((pid for pid in pids if wanted.items() <= environ_of(pid).items()), None)


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (lambda screen: screen.interrupt(), 130),
        (lambda screen: screen.process.send_signal(signal.SIGTERM), 143),
        (lambda screen: screen.process.send_signal(signal.SIGHUP), 129),
    ],
    ids=["^C", "SIGTERM", "SIGHUP"],
)
def test_the_terminal_is_given_back_however_it_is_left(
    watch: Open, leave: Callable[[Screen], None], code: int
) -> None:
    screen = watch()
    screen.expect("quits")
    assert not screen.is_line_by_line
    leave(screen)
    assert screen.end() == code
    assert_given_back(screen)


def test_a_terminal_that_is_gone_ends_it(watch: Open, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    screen = watch(AITBC_DEBUG="1", PYTHONFAULTHANDLER="1", stderr=errors)
    screen.expect("quits")
    screen.hang_up()
    # Whether it notices first that nothing can be read there, or written, is chance.
    assert screen.process.wait(DEADLINE_S) in (0, 1)
    assert "Traceback" not in errors.read_text()


def test_it_stops_with_the_terminal_as_it_was_and_comes_back(watch: Open) -> None:
    screen = watch()
    screen.expect("quits")
    # Nobody would wake it (setpgid(2)): in a session of its own a stop is nothing, and it goes on.
    screen.process.send_signal(signal.SIGTSTP)
    screen.expect(END)
    screen.text = screen.text.partition(END)[2]
    screen.expect(BEGIN)
    screen.expect("quits")
    screen.type("q")
    assert screen.end() == 0
    assert screen.is_line_by_line


def test_a_daemon_that_goes_is_said_and_its_return_seen(
    box: Box, driver: Driver, watch: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in driver.environ.items():
        monkeypatch.setenv(name, value)
    screen = watch()
    screen.expect("17%")
    box.service.kill()
    screen.expect("no answer for")
    driver.write(gpu(0, utilization=83), gpu(1))
    box.service.start()
    screen.expect("83%")
    screen.expect("no job waits")
    screen.type("q")
    assert screen.end() == 0


def test_a_daemon_that_hangs_is_said_and_can_be_left(box: Box, watch: Open) -> None:
    screen = watch()
    screen.expect("quits")
    os.kill(box.service.pid, signal.SIGSTOP)
    try:
        screen.expect("still waiting")
        screen.type("q")
        assert screen.end() == 0
        assert screen.is_line_by_line
    finally:
        os.kill(box.service.pid, signal.SIGCONT)


def test_a_resize_and_control_l_draw_it_all_at_once(watch: Open) -> None:
    screen = watch("--interval", "3600")
    screen.expect("quits")
    for change in ("resize", "^L"):
        screen.text = ""
        if change == "resize":
            screen.resize(100, 30)
        else:
            screen.type("\x0c")
        screen.expect("\x1b[2J")
        screen.expect("quits")
        assert "17%" in screen.text
    screen.type("q")
    assert screen.end() == 0


def test_only_what_changed_is_sent(box: Box, driver: Driver, watch: Open) -> None:
    gpus = [gpu(n, utilization=50) for n in range(2)]
    screen = watch()
    screen.expect("17%")
    driver.write(*gpus)
    screen.expect("50%")
    screen.text = ""
    # The clock goes on; a figure of the other GPU says that all before it has been seen.
    driver.write(gpus[0], gpu(1, utilization=61))
    screen.expect("61%")
    assert "H100" not in screen.text
    assert "LAST MINUTE" not in screen.text
    assert "50%" not in screen.text
    screen.type("q")
    assert screen.end() == 0


def test_a_poor_locale_gets_ascii_and_no_colours_when_so_wished(watch: Open) -> None:
    screen = watch(LC_ALL="C", NO_COLOR="1")
    screen.expect("quits")
    screen.expect("17%")
    screen.type("q")
    assert screen.end() == 0
    assert screen.text.isascii()
    assert "##--" in words(screen)
    assert "\x1b[32m" not in screen.text


def test_it_is_refused_where_it_cannot_be_drawn(box: Box, tmp_path: Path) -> None:
    with closing(Cli(box.service, tmp_path)) as cli:
        refused = cli("gpus", "--watch", code=2)
        assert refused.stdout == b""
        assert b"draws on a terminal" in refused.stderr
        assert b"aitbcctl gpus --json" in refused.stderr
        assert b"--watch goes without --json" in cli("gpus", "--watch", "--json", code=2).stderr
        assert b"give both" in cli("gpus", "--interval", "5", code=2).stderr
        assert b"0.0 is not in the range" in cli("gpus", "--interval", "0", code=2).stderr
        drain = ("gpus", "--watch", "drain", "0", "--reason", "fan")
        assert b"--watch goes without drain" in cli(*drain, code=2).stderr
        assert uuid_of(0).encode() in cli("gpus", "--json").stdout


def test_without_a_daemon_it_ends_as_any_verb(box: Box, tmp_path: Path) -> None:
    with closing(Cli(box.service, tmp_path)) as cli:
        nowhere = {"AITBC_SOCKET": str(tmp_path / "nothing")}
        with closing(Screen(cli, "gpus", "--watch", environ=nowhere)) as screen:
            assert screen.end() == 5
            assert "no daemon is running here" in screen.text
            assert BEGIN not in screen.text
