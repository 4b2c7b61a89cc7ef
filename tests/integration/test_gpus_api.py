"""GPUs over HTTP and through ``aitbcctl``, of a real daemon with the scripted driver."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.driver import (
    GIB,
    VERSION_MISMATCH,
    Driver,
    gpu,
    mig,
    mig_uuid_of,
    process,
    program,
    uuid_of,
)
from tests.integration.conftest import Box, Json, User, problem, serving
from tests.service import Service, children, wait_for

CONFIG = '[server]\ntcp = ""\n[gpus]\nretry = "0.1s"\nforeign_grace = "0.2s"\n'
#: What a test begins with. A GPU's name stays for the life of a probe.
PLAIN = (gpu(0), gpu(1, "4090"))
FIXED = {
    "index", "uuid", "name", "memory_total", "memory_used", "utilization", "state", "reason",
    "jobs", "processes",
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(nvml_library, tmp_path_factory.mktemp("script") / "nvml")


@pytest.fixture(scope="module")
def gpu_box(shared: Driver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    shared.write(*PLAIN)
    with daemon_with(shared, tmp_path_factory.mktemp("daemon")) as box:
        yield box


@contextmanager
def daemon_with(driver: Driver, folder: Path, config: str = CONFIG) -> Iterator[Box]:
    """Run a daemon that finds this driver; other daemons do not."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in driver.environ.items():
            patch.setenv(name, value)
        serving_box = serving(folder, config)
        box = serving_box.__enter__()
        # For others than root.
        box.service.socket.parent.chmod(0o755)
    try:
        yield box
    finally:
        serving_box.__exit__(None, None, None)


def seen(box: Box) -> Json:
    answer = box.http.get("/v1/gpus")
    assert answer.status_code == 200, answer.text
    document: Json = answer.json()
    return document


def reached(box: Box, states: list[str]) -> Json:
    def look() -> Json | None:
        document = seen(box)
        return document if [one["state"] for one in document["gpus"]] == states else None

    return wait_for(f"the GPUs are {states}", look, log=box.service.log)


def test_gpus_have_the_fields_that_are_fixed(gpu_box: Box, shared: Driver) -> None:
    shared.write(gpu(0, used=GIB, utilization=42), gpu(1, "4090"))
    document = wait_for(
        "it is used",
        lambda: next((d for d in [seen(gpu_box)] if d["gpus"][0]["utilization"]), None),
    )
    assert (document["problem"], document["driver_version"]) == (None, "570.86.15")
    first = document["gpus"][0]
    assert first.keys() >= FIXED
    assert (first["index"], first["uuid"], first["name"]) == (
        0,
        uuid_of(0),
        "NVIDIA H100 80GB HBM3",
    )
    assert (first["memory_total"], first["memory_used"]) == (80 * GIB, GIB)
    assert (first["utilization"], first["state"], first["reason"]) == (42, "free", None)


def test_drain_and_resume_over_http(gpu_box: Box, shared: Driver) -> None:
    shared.write(*PLAIN)
    reached(gpu_box, ["free", "free"])
    path = f"/v1/gpus/{uuid_of(1)}"
    answer = gpu_box.http.post(f"{path}/drain", json={"reason": "new fan"})
    assert (answer.status_code, answer.json()["state"]) == (200, "drained")
    assert answer.json()["reason"] == "new fan (drained by root)"
    assert [one["state"] for one in seen(gpu_box)["gpus"]] == ["free", "drained"]
    kept = json.loads((gpu_box.service.state / "gpus.json").read_text())
    assert (kept["format"], list(kept["drained"])) == (1, [uuid_of(1)])
    assert gpu_box.http.post(f"{path}/resume").json()["state"] == "free"
    problem(gpu_box.http.post(f"{path}/resume"), 409, "wrong-state")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid-value"),
        ({"reason": ""}, 422, "invalid-value"),
        ({"reason": "two\nlines"}, 422, "invalid-value"),
        ({"reason": "x" * 201}, 422, "invalid-value"),
        ({"reason": 1}, 422, "invalid-value"),
        ({"reason": "x", "force": True}, 422, "invalid-value"),
        ([], 400, "bad-request"),
    ],
)
def test_a_drain_that_is_wrong_changes_nothing(
    gpu_box: Box, shared: Driver, body: object, status: int, code: str
) -> None:
    shared.write(*PLAIN)
    reached(gpu_box, ["free", "free"])
    path = f"/v1/gpus/{uuid_of(0)}/drain"
    problem(gpu_box.http.post(path, content=json.dumps(body)), status, code)
    reached(gpu_box, ["free", "free"])


def test_a_gpu_that_is_not_there_is_named_with_those_that_are(gpu_box: Box, shared: Driver) -> None:
    shared.write(*PLAIN)
    reached(gpu_box, ["free", "free"])
    answer = gpu_box.http.post("/v1/gpus/GPU-x/drain", json={"reason": "x"})
    document = problem(answer, 404, "no-such-file")
    assert uuid_of(0) in document["hint"]


def test_only_administrators_drain(gpu_box: Box, shared: Driver, ada: User, bob: User) -> None:
    shared.write(*PLAIN)
    reached(gpu_box, ["free", "free"])
    where = gpu_box.service.socket
    path = f"/v1/gpus/{uuid_of(0)}"
    assert bob.ask(where, "GET", "/v1/gpus").status == 200
    refused = bob.ask(where, "POST", f"{path}/drain", {"reason": "mine"})
    assert (refused.status, refused.json["code"]) == (403, "forbidden")
    assert "aitbc-admin" in refused.json["hint"]
    assert [one["state"] for one in seen(gpu_box)["gpus"]] == ["free", "free"]
    subprocess.run(["groupadd", "aitbc-admin"], check=True)
    try:
        subprocess.run(["usermod", "-aG", "aitbc-admin", ada.name], check=True)
        drained = ada.ask(where, "POST", f"{path}/drain", {"reason": "mine"})
        assert drained.json["reason"] == f"mine (drained by {ada.name})"
        assert ada.ask(where, "POST", f"{path}/resume").status == 200
    finally:
        subprocess.run(["groupdel", "aitbc-admin"], check=True)


def test_a_jobs_process_is_the_jobs_and_its_arguments_the_owners(
    gpu_box: Box, shared: Driver, bob: User, tmp_path: Path
) -> None:
    shared.write(*PLAIN)
    gate = tmp_path / "gate"
    job = gpu_box.submit_waiting(gate)
    (pid,) = [
        pid
        for supervisor in children(os.getpid())
        for pid in _with_descendants(supervisor)
        if f"AITBC_JOB_ID={job}".encode() in _environ(pid)
        # Not one that it has just forked, and that is to become another program.
        and os.getsid(pid) == pid
    ]
    shared.write(gpu(0, used=GIB, process=[process(pid, GIB)]), gpu(1, "4090"))
    document = reached(gpu_box, ["busy", "free"])
    (one,) = document["gpus"][0]["processes"]
    assert (one["job_id"], one["pid"], one["user"]) == (job, pid, "root")
    assert 'until test -e "$1"' in one["command"]
    assert document["gpus"][0]["jobs"] == [job]
    (other,) = bob.ask(gpu_box.service.socket, "GET", "/v1/gpus").json["gpus"][0]["processes"]
    assert other["command"] == "sh"
    # Saying that it is of this job does not make another user's process so.
    environ = {"PATH": os.environ["PATH"], "AITBC_JOB_ID": job}
    with program("sleep", "3600", user=bob.uid, env=environ) as liar:
        shared.write(gpu(0), gpu(1, "4090", process=[process(liar.pid, GIB)]))
        (one,) = reached(gpu_box, ["free", "foreign"])["gpus"][1]["processes"]
    assert (one["job_id"], one["user"]) == (None, bob.name)
    gate.touch()
    gpu_box.ended(job)


def _with_descendants(pid: int) -> list[int]:
    return [pid, *(found for child in children(pid) for found in _with_descendants(child))]


def _environ(pid: int) -> bytes:
    return _read(pid, "environ")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def test_metrics_are_there_for_anybody(gpu_box: Box, shared: Driver) -> None:
    shared.write(gpu(0, temperature=66), gpu(1, "4090"))
    reached(gpu_box, ["free", "free"])
    labels = f'gpu="0",uuid="{uuid_of(0)}",name="NVIDIA H100 80GB HBM3"'
    line = f"aitbcd_gpu_temperature_celsius{{{labels}}} 66"
    wait_for("it is warm", lambda: line in gpu_box.http.get("/metrics").text)
    answer = gpu_box.http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_the_command_line_shows_drains_and_resumes(gpu_box: Box, shared: Driver) -> None:
    shared.write(gpu(0), gpu(1, "4090", used=GIB, process=[process(os.getpid(), GIB)]))
    reached(gpu_box, ["free", "foreign"])
    run = gpu_box.service.run
    shown = run("aitbcctl", "gpus")
    assert shown.returncode == 0, shown.stderr
    assert "GeForce RTX 4090" in shown.stdout
    assert f"pid {os.getpid()}, 1.0 GiB" in shown.stdout
    assert "driver 570.86.15, CUDA up to 12.8" in shown.stderr
    assert json.loads(run("aitbcctl", "gpus", "--json").stdout)["gpus"][1]["state"] == "foreign"

    drained = run("aitbcctl", "gpus", "drain", "0", "--reason", "new fan")
    assert drained.stdout == f"GPU 0 ({uuid_of(0)}) is drained: new fan (drained by root)\n"
    resumed = run("aitbcctl", "gpus", "resume", uuid_of(0)[:12], "--json")
    assert json.loads(resumed.stdout)["state"] == "free"
    for words, code in (
        (["drain", "0"], 2),
        (["drain", "9", "--reason", "x"], 3),
        (["resume", "0"], 4),
    ):
        refused = run("aitbcctl", "gpus", *words)
        assert (refused.returncode, refused.stdout) == (code, "")


def test_the_command_line_drains_and_resumes_a_divided_gpu(gpu_box: Box, shared: Driver) -> None:
    shared.write(gpu(0, mig=1), mig(1), mig(2), gpu(1, "4090"))
    reached(gpu_box, ["free", "free", "free"])
    run = gpu_box.service.run
    whole = f"GPU 0 ({uuid_of(0)})"
    for word in ("0", uuid_of(0)[:12]):
        drained = run("aitbcctl", "gpus", "drain", word, "--reason", "new fan")
        assert drained.stdout == f"{whole} is drained: new fan (drained by root)\n"
        assert run("aitbcctl", "gpus", "resume", word).stdout == f"{whole} is free\n"
    part = f"GPU 0:1 ({mig_uuid_of(1)})"
    drained = run("aitbcctl", "gpus", "drain", "0:1", "--reason", "slow")
    assert drained.stdout == f"{part} is drained: slow (drained by root)\n"
    reached(gpu_box, ["drained", "free", "free"])
    assert run("aitbcctl", "gpus", "resume", mig_uuid_of(1)).stdout == f"{part} is free\n"


def test_a_driver_that_fails_costs_only_the_gpus(nvml_library: Path, tmp_path: Path) -> None:
    """The daemon starts and runs jobs, says what is wrong, and finds the GPUs afterwards."""
    driver = Driver(nvml_library, tmp_path / "nvml")
    driver.write(gpu(0), init=VERSION_MISMATCH)
    with daemon_with(driver, tmp_path / "daemon") as box:
        wait_for("it greets", lambda: "devices" in box.service.log.read_text())
        assert "(reboot needed: the NVIDIA driver's files" in box.service.log.read_text()
        assert box.shell("exit 0")["status"] == "completed"
        job = box.submit("true", gpus=1)["job_id"]
        assert "waits for the GPUs: reboot needed" in box.status(job)["waiting"]
        assert "reboot needed" in seen(box)["problem"]
        driver.write(gpu(0))
        box.reached(job, "completed")
        reached(box, ["free"])
        assert seen(box)["problem"] is None


def test_a_hung_driver_stalls_nobody(nvml_library: Path, tmp_path: Path) -> None:
    driver = Driver(nvml_library, tmp_path / "nvml")
    driver.write(gpu(0), hang__nvmlInitWithFlags=1)
    with daemon_with(driver, tmp_path / "daemon") as box:
        assert box.shell("exit 0")["status"] == "completed"
        assert "has not answered" in seen(box)["problem"]
        assert box.service.stop() == 0


def test_a_daemon_without_a_driver_has_no_probe(box: Box) -> None:
    names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(box.service.pid)]
    assert not any(b"aitbcd.gpus.probe" in name for name in names)
    document = seen(box)
    assert document["gpus"] == []
    assert document["problem"]
    shown = box.service.run("aitbcctl", "gpus")
    assert (shown.returncode, shown.stdout) == (0, "")
    assert document["problem"] in shown.stderr


def test_a_broken_list_of_drained_gpus_stops_the_start(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.state.mkdir()
    (service.state / "gpus.json").write_text('{"format": 7}')
    refused = service.run("aitbcd")
    assert refused.returncode == 2
    assert "has format 7, and this release knows 1" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_shell_is_offered_gpus_and_what_a_divided_one_consists_of(
    driver: Driver, tmp_path: Path
) -> None:
    driver.write(gpu(0, mig=1), mig(1), mig(2), gpu(3, "4090"))
    with daemon_with(driver, tmp_path / "daemon") as box:
        reached(box, ["free"] * 3)

        def offered(*words: str) -> list[str]:
            line = ["aitbcctl", *words]
            environ = {
                "_AITBCCTL_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join(line), "COMP_CWORD": str(len(line) - 1),
            }  # fmt: skip
            done = box.service.run("aitbcctl", environ=environ)
            return [entry.split("\t")[1] for entry in done.stdout.splitlines()]

        parts = [mig_uuid_of(1), mig_uuid_of(2)]
        whole, other = uuid_of(0), uuid_of(3)
        assert sorted(offered("submit", "--gpu", "")) == sorted([whole, *parts, other])
        assert offered("gpus", "drain", "GPU-00000000") == [whole]
        assert sorted(offered("gpus", "test", "")) == sorted([*parts, other])
        assert offered("submit", "--gpu", "MIG-00000002") == [parts[1]]
        # What is offered is understood.
        for named in (whole, parts[0], "0:1", other):
            box.reached(box.submit("true", gpu=named)["job_id"], "completed")


def test_who_tests_a_gpu_is_told_at_once_whom_he_waits_for(driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    with program("sleep", "1000") as running:
        stranger = process(running.pid, 5 * GIB)
        driver.write(gpu(0, process=stranger, used=5 * GIB), gpu(1), gpu(2))
        with daemon_with(driver, tmp_path / "daemon") as box:
            reached(box, ["foreign", "free", "free"])
            holder = box.submit("sleep", "1000", gpu="1")["job_id"]
            box.reached(holder, "running")
            reached(box, ["foreign", "busy", "free"])
            done = box.service.run(
                "aitbcctl", "gpus", "test", "--no-wait", environ={"PYTHONPATH": str(tmp_path)}
            )
            assert done.returncode == 0, done.stderr
            free, foreign, busy = done.stdout.split()
            assert free not in done.stderr
            first, _, second = done.stderr.partition(f"{busy} tests GPU 1")
            assert first.startswith(f"{foreign} tests GPU 0 ({uuid_of(0)}) and waits ")
            assert "waits for GPU 0; GPU 0 is foreign: " in first
            assert f"process {running.pid}" in first
            assert "ask whose that is to end it" in first
            assert f"aitbcctl cancel {foreign}" in first
            assert f"{holder} holds one" in second
            for job in (foreign, busy, holder):
                box.http.post(f"/v1/jobs/{job}/cancel", json={"force": True})
