"""Users who go while their jobs run, and a user database that does not answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import WAIT, Box, User, new_user, serving
from tests.service import wait_for

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")

#: A C library that does not say who a user is while a file is there.
SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pwd.h>
#include <stdlib.h>
#include <unistd.h>
int getpwuid_r(uid_t uid, struct passwd *p, char *b, size_t n, struct passwd **r)
{
    int (*real)(uid_t, struct passwd *, char *, size_t, struct passwd **) =
        dlsym(RTLD_NEXT, "getpwuid_r");
    const char *gate = getenv("SLOW_WHILE");
    while (gate && access(gate, F_OK) == 0)
        usleep(10000);
    return real(uid, p, b, n, r);
}
"""


@contextmanager
def open_to_all() -> Iterator[Box]:
    """A daemon of root's whose folders others can reach."""
    with tempfile.TemporaryDirectory(prefix="aitbcd-engine-") as folder:
        Path(folder).chmod(0o755)
        with serving(Path(folder) / "daemon") as box:
            box.service.socket.parent.chmod(0o755)
            yield box


def test_a_user_removed_while_his_job_runs_has_it_sealed(tmp_path: Path) -> None:
    with open_to_all() as box:
        gate = Path(tempfile.mkdtemp(prefix="aitbcd-gate-"))
        gate.chmod(0o755)
        try:
            with new_user("gone") as user:
                job = submit_as(user, box, "sh", "-c", f"echo here; {WAIT}", "sh", str(gate / "go"))
                box.reached(job, "running")
                remove(user)
                # The next daemon has never heard of him.
                box.service.kill()
                box.service.start()
                (gate / "go").touch()
                ended = box.ended(job)
                assert (ended["status"], ended["results"]) == ("completed", "kept")
                assert box.package(job).stat().st_uid == user.uid
                assert box.log(job) == b"here\n"
                assert box.http.post(f"/v1/jobs/{job}/verify").json()["ok"]
                waiting = [path.name for path in (box.service.state / "run").glob("job_*")]
                assert waiting == []
                subprocess.run(
                    ["useradd", "--no-create-home", "--uid", str(user.uid), user.name], check=True
                )
        finally:
            shutil.rmtree(gate)


def submit_as(user: User, box: Box, *argv: str) -> str:
    answer = user.ask(box.service.socket, "POST", "/v1/jobs", {"argv": list(argv), "cwd": "/"})
    assert answer.status == 201, answer.body
    job: str = answer.json["job_id"]
    return job


def remove(user: User) -> None:
    # His job runs, so that it takes some force; its exit status tells of that.
    subprocess.run(["userdel", "--force", user.name], capture_output=True, check=False)
    listed = subprocess.run(["getent", "passwd", user.name], capture_output=True, check=False)
    assert listed.returncode != 0


def test_a_database_that_does_not_answer_holds_up_only_who_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ada: User
) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a slow user database with")
    source, library, gate = tmp_path / "slow.c", tmp_path / "slow.so", tmp_path / "slow"
    source.write_text(SLOW)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("SLOW_WHILE", str(gate))
    with open_to_all() as box:
        monkeypatch.delenv("LD_PRELOAD")
        assert box.run("true")["status"] == "completed"
        gate.touch()
        refused = ada.ask(box.service.socket, "GET", "/v1/jobs")
        assert (refused.status, refused.json["code"]) == (503, "unavailable")
        assert f"getent passwd {ada.uid}" in refused.json["hint"]
        # Root is known, and so are his jobs' ids.
        assert box.run("true")["status"] == "completed"
        gate.unlink()
        answer = wait_for("ada is known", lambda: ask_jobs(ada, box))
        assert answer["jobs"] == []


def ask_jobs(user: User, box: Box) -> dict[str, object] | None:
    answer = user.ask(box.service.socket, "GET", "/v1/jobs")
    return answer.json if answer.status == 200 else None
