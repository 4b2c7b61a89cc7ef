"""Jobs that make processes faster than anybody can look at them are ended all the same.

Each of them ends by itself some time, and says then that it has survived.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher import Daemon, Stage, Supervised, Who, is_alive, myself
from tests.service import descendants, wait_for

#: Of those that fork and exit, more may be dead and not yet reaped than the machine has pids.
pytestmark = pytest.mark.alone

#: hare N EVERY: so many run, each generation forks and exits, each EVERYth makes a session.
#: bomb MOST EVERY: all fork for ever, as many as this user may have.
SOURCE = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
int main(int count, char **argument) {
    int is_bomb = !strcmp(argument[1], "bomb"), many = atoi(argument[2]), every = atoi(argument[3]);
    time_t end = time(0) + 100;
    for (int number = 1; number < 32; number++) signal(number, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    struct rlimit limit = {many, many};
    if (is_bomb) setrlimit(RLIMIT_NPROC, &limit);
    else for (int each = 1; each < many; each++) if (!fork()) break;
    puts("up");
    fflush(stdout);
    for (unsigned long turn = 1; time(0) < end; turn++) {
        int child = fork();
        if (child > 0 && !is_bomb) _exit(0);
        if (child < 0) usleep(1000);
        if (child == 0 && every && turn % every == 0) setsid();
    }
    fclose(fopen("survived", "w"));
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    folder = Path("/tmp") / f"aitbcd-bombs-{os.getpid()}"
    folder.mkdir(mode=0o755)
    source = tmp_path_factory.mktemp("source") / "prey.c"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-O2", "-o", folder / "prey", source], check=True)
    yield folder / "prey"
    shutil.rmtree(folder)


def begin(
    stage: Stage, daemon: Daemon, who: Who, program: Path, *arguments: str | int
) -> Supervised:
    home = stage.folder / "home"
    home.mkdir(exist_ok=True)
    os.chown(home, who.uid, who.gid)
    spec = stage.spec(str(program), *map(str, arguments), who=who, cwd=str(home))
    attempt = daemon.start(spec)
    stage.line_of(spec)
    return attempt


def assert_ended(stage: Stage, daemon: Daemon, attempt: Supervised) -> None:
    assert attempt.exited()["undead"] == []
    assert not (stage.folder / "home/survived").exists()
    attempt.finish()
    ours = {stage.pid, *stage.supervisors()}
    assert {pid for pid in descendants(stage.pid) if is_alive(pid)} <= ours
    assert daemon.run(stage.spec("true")).facts["exit_code"] == 0


@pytest.mark.parametrize("every", [0, 1, 64])
@pytest.mark.parametrize("many", [1, 60])
def test_what_forks_and_exits_for_ever_is_ended(
    stage: Stage, daemon: Daemon, program: Path, many: int, every: int
) -> None:
    attempt = begin(stage, daemon, myself(), program, "hare", many, every)
    attempt.cancel(0)
    assert_ended(stage, daemon, attempt)


@pytest.mark.parametrize("every", [0, 1])
def test_what_doubles_for_ever_is_ended(
    stage: Stage, daemon: Daemon, program: Path, other: Who, every: int
) -> None:
    attempt = begin(stage, daemon, other, program, "bomb", 300, every)
    wait_for("it has grown", lambda: len(descendants(stage.pid)) > 250)
    attempt.cancel(0)
    assert_ended(stage, daemon, attempt)


@pytest.mark.parametrize("every", [0, 1])
def test_what_forks_and_exits_ends_with_its_supervisor(
    stage: Stage, daemon: Daemon, program: Path, every: int
) -> None:
    attempt = begin(stage, daemon, myself(), program, "hare", 4, every)
    for pid in stage.supervisors():
        os.kill(pid, signal.SIGKILL)
    attempt.wait_lost()
    wait_for("all are gone", lambda: not [p for p in descendants(stage.pid) if is_alive(p)])
    assert not (stage.folder / "home/survived").exists()
    assert daemon.run(stage.spec("true")).facts["exit_code"] == 0
