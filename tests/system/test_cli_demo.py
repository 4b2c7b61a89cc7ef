"""``aitbcctl demo``: from nothing to a verified result, and back to nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from tests.driver import GIB, Driver, build, gpu, process, program
from tests.service import DEADLINE_S, PROGRAMS, become_subreaper, descendants, end_ours, wait_for
from tests.system.conftest import Cli
from tests.torch import SEEN_BUT_USELESS, python_with_torch

pytestmark = pytest.mark.system


class Home:
    """A user who never ran anything of ours."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.environ = os.environ | {
            "HOME": str(folder),
            "AITBCD_STATE_DIR": str(self.state),
            "AITBCD_RUNTIME_DIR": str(runtime),
            "AITBCD_CONFIG": str(folder / "aitbcd.toml"),
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        }
        (folder / "aitbcd.toml").write_text('[server]\ntcp = ""\n')

    def start(self, *args: str, python: str | None = None) -> subprocess.Popen[str]:
        """Run our program, or the same by another interpreter."""
        program = ["aitbcctl"] if python is None else [python, "-P", "-m", "aitbcctl"]
        return subprocess.Popen(
            [*program, *args],
            executable=python or PROGRAMS / "aitbcctl",
            env=self.environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[int]:
        """Return all that live with this state directory in their environment."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                environ = Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(self.state) in environ:
                found.append(int(entry))
        return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    become_subreaper()
    runtime = Path("/tmp") / f"aitbcd-demo-{os.getpid()}"
    made = Home(tmp_path, runtime)
    yield made
    end_ours(str(made.state))
    if runtime.is_dir():
        for path in runtime.iterdir():
            path.unlink()
        runtime.rmdir()


def test_the_demo_goes_all_the_way_and_leaves_no_process(home: Home) -> None:
    demo = home.start("demo")
    out, err = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 0, out + err
    found = re.search(r"accuracy (0\.\d+)", out)
    assert found is not None, out
    assert float(found[1]) > 0.9
    for command in ("aitbcd", "aitbcctl submit", "aitbcctl watch job_", "aitbcctl download job_",
                    "aitbcctl verify job_", "aitbcctl get job_"):  # fmt: skip
        assert f" {command}" in out
    copies = list((home.folder / "aitbc-demo").iterdir())
    assert len(copies) == 1
    assert (copies[0] / "artifacts/model.bin").stat().st_size > 0
    subprocess.run(["sha256sum", "-c", "--quiet", "output.sha256"], cwd=copies[0], check=True)
    assert home.processes() == []


def test_with_torch_for_processors_it_trains_on_one_though_a_gpu_is_free(
    home: Home, tmp_path: Path
) -> None:
    home.environ |= driver_with(tmp_path, gpu(0)).environ
    demo = home.start("demo", "--output", "there", python=python_with_torch(tmp_path / "venv"))
    out, err = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 0, out + err
    assert "--gpus" not in out
    [result] = (home.folder / "there").glob("*/result.txt")
    assert "trained with torch-cpu" in result.read_text()


def test_where_a_gpu_is_free_the_job_gets_it(home: Home, tmp_path: Path) -> None:
    # No GPU here computes: torch says that it sees one.
    python = python_with_torch(tmp_path / "venv", fault=SEEN_BUT_USELESS)
    driver = driver_with(tmp_path, gpu(0))
    home.environ |= driver.environ
    assert "submit --name digits --gpus 1 --" in until_it_runs(home, python)
    # Somebody's notebook is there now: the demo does not wait for that.
    with program("sleep", "1000") as notebook:
        driver.write(gpu(0, process=process(notebook.pid, GIB)))
        assert "submit --name digits --" in until_it_runs(home, python)


def driver_with(folder: Path, *gpus: str) -> Driver:
    driver = Driver(build(folder), folder / "nvml.script")
    driver.write(*gpus)
    return driver


def until_it_runs(home: Home, python: str | None = None) -> str:
    """Return what the demo prints until its job runs; end it then."""
    demo = home.start("demo", python=python)
    assert demo.stdout is not None
    said = []
    # A job that waits is waited for by the demo too.
    deadline = Timer(DEADLINE_S, demo.send_signal, [signal.SIGINT])
    deadline.start()
    for line in demo.stdout:
        said.append(line)
        if " running" in line:
            break
    deadline.cancel()
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 130, "".join(said) + out + err
    assert " running" in said[-1], "".join(said)
    return "".join(said)


def test_kept_it_leaves_a_daemon_for_the_printed_commands(home: Home) -> None:
    first = home.start("demo", "--keep", "--output", "there")
    out, err = first.communicate(timeout=DEADLINE_S)
    assert first.returncode == 0, out + err
    found = re.search(r"kill (\d+)", out)
    assert found is not None
    listed = home.start("list").communicate(timeout=DEADLINE_S)[0]
    assert " digits " in listed
    second = home.start("demo")
    out, err = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0, out + err
    assert f"running already (pid {found[1]})" in out
    assert int(found[1]) in home.processes()
    os.kill(int(found[1]), signal.SIGTERM)
    wait_for("nothing runs any more", lambda: not _living(home))


def _living(home: Home) -> list[int]:
    """Reap what ended (we are the subreaper) and return the rest."""
    for pid in descendants(os.getpid()):
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
    return home.processes()


def test_an_interrupted_demo_ends_its_job_and_its_daemon(home: Home) -> None:
    until_it_runs(home)
    assert home.processes() == []


def test_a_daemon_that_cannot_start_is_quoted(home: Home) -> None:
    home.state.mkdir(mode=0o700)
    (home.state / "daemon.log").write_text("what another one said\n")
    (home.folder / "aitbcd.toml").write_text("[sever]\n")
    demo = home.start("demo")
    out, err = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 1
    assert "sever" in err
    assert "another one" not in err
    assert "Ending" not in out
    assert home.processes() == []


def test_a_socket_named_elsewhere_is_not_replaced_by_a_daemon_here(home: Home) -> None:
    home.environ["AITBC_SOCKET"] = str(home.folder / "other.sock")
    demo = home.start("demo")
    _, err = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 5
    assert "other.sock" in err
    assert not home.state.exists()


def test_a_running_daemon_is_used_and_left(cli: Cli) -> None:
    done = cli("demo", "--output", "out")
    assert f"running already (pid {cli.daemon.pid})".encode() in done.stdout
    assert cli("list").returncode == 0
