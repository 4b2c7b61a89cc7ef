"""The units under a real systemd, as an administrator and his users meet them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.documents import blocks
from tests.driver import GIB, SCRIPT_VARIABLE, build, gpu, process
from tests.machine import NEEDED, ROOT, Machine, gated, open_gate, status, submit, until
from tests.service import wait_for

pytestmark = pytest.mark.systemd

#: timesyncd's own; tailscaled has 9.6.
EXPOSURE_MOST = 2.3


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as made:
        config = made.root / "etc/aitbcd/aitbcd.toml"
        config.parent.mkdir()
        config.write_text('[jobs]\ncancel_grace = "1s"\n')
        made.install()
        for user, groups in (("ada", "aitbc"), ("bob", "aitbc"), ("eve", ""), ("pat", "")):
            made(f"useradd --create-home --shell /bin/sh --groups '{groups}' {user}")
        made("usermod --append --groups aitbc-admin pat")
        yield made


@pytest.fixture(autouse=True)
def _all_is_well(machine: Machine) -> Iterator[None]:
    yield
    failed = machine("systemctl --failed --no-legend --plain")
    assert failed == ""


def test_a_job_runs_as_its_submitter_with_nothing_of_systemd_s(machine: Machine) -> None:
    look = "id -un; env; cat /proc/self/cgroup /proc/self/status /proc/self/limits"
    job = submit(machine, look, user="bob")
    assert until(machine, job, "completed", "failed", user="bob")["status"] == "completed"
    said = machine(f"aitbcctl logs {job}", user="bob")
    assert said.startswith("bob\n")
    assert not re.search("^(NOTIFY_SOCKET|LISTEN_|INVOCATION_ID|JOURNAL_STREAM)", said, re.M)
    assert "0::/system.slice/aitbcd-jobs.service/" in said
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "SigBlk", "SigPnd", "ShdPnd"):
        assert re.search(f"^{name}:\t0+$", said, re.M), name
    # Two of the C library's own, which no program can set (nptl(7)).
    assert re.search("^SigIgn:\t0000000[01]80000000$|^SigIgn:\t0+$", said, re.M)
    assert "NoNewPrivs:\t0\n" in said
    # As of a login: old programs cannot deal with descriptors above.
    assert re.search("^Max open files +1024 ", said, re.M)
    assert machine(f"aitbcctl verify {job}", user="bob").startswith("verified")


def test_the_daemon_reads_artifacts_however_they_came_there(machine: Machine) -> None:
    """It is of their group, and neither root nor their user."""
    made = "mkdir -p ~/tree ~/moved && echo a >~/tree/a && echo b >~/moved/b && echo c >~/c"
    line = 'cd "$AITBC_ARTIFACTS_DIR"; mv ~/moved .; chmod 755 .; mv ~/c "$AITBC_RESULT"'
    machine(made, user="bob")
    job = submit(machine, line, options="--cwd ~ --artifact 'tree/*'", user="bob")
    until(machine, job, "completed", "failed", user="bob")
    assert machine(f"aitbcctl verify {job}", user="bob").startswith("verified")
    machine(f"aitbcctl download {job} --format zip --output ~/all", user="bob")
    names = machine("python3 -m zipfile --list ~/all/*.zip", user="bob")
    assert "artifacts/tree/a" in names
    assert "artifacts/moved/b" in names


def test_users_do_not_see_each_other_s_jobs(machine: Machine) -> None:
    job = submit(machine, "echo secret", user="bob")
    until(machine, job, "completed", user="bob")
    assert machine.code(f"aitbcctl get {job}", user="ada") == 3
    assert machine.code(f"aitbcctl logs {job}", user="ada") == 3
    assert machine.code(f"cat /var/lib/aitbcd/results/{job}/result.txt", user="ada") != 0
    assert machine.code("ls /var/lib/aitbcd/run", user="ada") != 0
    assert machine.code("cat /var/lib/aitbcd/queue.db", user="ada") != 0


@pytest.mark.parametrize(
    "how", ["", "AITBC_URL=http://127.0.0.1:8000", "AITBC_URL=http://[::1]:8000"]
)
def test_who_is_in_no_group_of_it_is_told_so(machine: Machine, how: str) -> None:
    said = machine(f"env {how} aitbcctl submit -- true; echo $?", user="eve")
    assert "serves members of aitbc and aitbc-admin only, and eve is none" in said
    assert said.endswith("\n4\n")
    assert machine.code("env AITBC_URL=http://[::1]:8000 aitbcctl list", user="ada") == 0


def test_a_restart_of_the_launcher_is_told_as_no_error(machine: Machine) -> None:
    begin = machine("journalctl --show-cursor -n 0").split()[-1]
    machine("systemctl restart aitbcd-launcher")
    journal = f"journalctl -o cat --no-pager -u aitbcd --after-cursor '{begin}'"
    wait_for("it is told", lambda: "the launcher is there again, pid" in machine(journal))
    assert "ERROR" not in machine(journal)
    assert "the launcher is there again" in machine(f"{journal} -p warning")


def test_an_administrator_sees_and_ends_everybody_s_jobs_and_nobody_else_does(
    machine: Machine,
) -> None:
    job = gated(machine)
    for verb in ("get", "logs", "cancel --force", "delete --force"):
        assert machine.code(f"aitbcctl {verb} {job}", user="bob") == 3
    assert machine.code("aitbcctl list --all", user="bob") == 4
    assert job in machine("aitbcctl list --all", user="pat")
    assert machine.code(f"aitbcctl get {job}", user="pat") == 0
    assert machine.code(f"aitbcctl cancel --force {job}", user="pat") == 0
    assert until(machine, job, "canceled", "completed", "failed")["status"] == "canceled"
    assert machine.code(f"aitbcctl delete --force {job}", user="pat") == 0
    own = submit(machine, "id -un", user="pat")
    until(machine, own, "completed", user="pat")
    assert machine("aitbcctl logs @", user="pat") == "pat\n"


def test_root_has_no_jobs_unless_that_is_said(machine: Machine) -> None:
    said = machine("aitbcctl submit -- touch /root/ran; echo $?")
    assert "jobs do not run as root here" in said
    assert said.endswith("\n4\n")
    assert machine("aitbcctl list 2>&1") == "no jobs\n"
    assert machine.code("test -e /root/ran") == 1


@pytest.mark.parametrize(
    "line",
    [
        "systemctl restart aitbcd",
        "systemctl restart aitbcd-launcher",
        "systemctl kill --signal KILL aitbcd aitbcd-launcher",
        "systemctl restart aitbcd.socket aitbcd-tcp.socket aitbcd",
        "systemctl stop aitbcd && systemctl start aitbcd",
        # As the administrator's guide says, which nobody's request ends too early.
        "systemctl stop aitbcd.socket aitbcd-tcp.socket aitbcd && ! aitbcctl list &&"
        " ! curl --silent http://127.0.0.1:8000/healthz && systemctl start aitbcd",
    ],
)
def test_jobs_do_not_notice(machine: Machine, line: str) -> None:
    job = gated(machine)
    attempt = status(machine, job)["attempt"]
    machine(line)
    wait_for("it serves", lambda: machine.code("aitbcctl list", user="ada") == 0)
    assert status(machine, job)["status"] == "running"
    other = submit(machine, "true")
    assert until(machine, other, "completed", "failed")["status"] == "completed"
    open_gate(machine)
    ended = until(machine, job, "completed", "failed")
    assert (ended["status"], ended["attempt"]) == ("completed", attempt)


@pytest.mark.parametrize(
    "line", ["systemctl stop aitbcd-jobs", "systemctl kill --kill-who=main -s KILL aitbcd-jobs"]
)
def test_the_end_of_the_jobs_unit_is_the_end_of_all_jobs(machine: Machine, line: str) -> None:
    lost, retried = gated(machine), gated(machine, "--retries 1")
    waiting = submit(machine, "true", options="--cpus 2")
    machine(line)
    wait_for(
        "nothing of them is left",
        lambda: machine.code("pgrep --uid ada --full /tmp/gate") == 1,
    )
    if "stop" in line:
        assert "was stopped" in until(machine, lost, "failed")["message"]
        machine("systemctl start aitbcd-jobs")
    wait_for("it is tried again", lambda: status(machine, retried)["attempt"] == 2)
    until(machine, retried, "running")
    open_gate(machine)
    assert until(machine, retried, "completed", "failed")["status"] == "completed"
    assert until(machine, waiting, "completed", "failed")["status"] == "completed"
    assert until(machine, lost, "failed")["reason"] == "lost"


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_the_queue_goes_on_after(machine: Machine, how: str) -> None:
    done = submit(machine, "echo once >> ~/done")
    until(machine, done, "completed")
    lost, retried = gated(machine), gated(machine, "--retries 1")
    waiting = submit(machine, "true")
    machine.power_off() if how == "reboot" else machine.cut_power()
    machine.boot()
    wait_for("it serves", lambda: machine.code("aitbcctl list", user="ada") == 0)
    open_gate(machine)
    assert until(machine, lost, "failed", "completed")["reason"] == "lost"
    assert until(machine, retried, "failed", "completed")["status"] == "completed"
    assert until(machine, waiting, "failed", "completed")["status"] == "completed"
    assert status(machine, done)["status"] == "completed"
    assert machine("cat ~/done; rm ~/done", user="ada") == "once\n"


def test_at_a_shutdown_jobs_end_before_what_they_write_to(machine: Machine) -> None:
    machine("mkdir -m 777 /srv/there /srv/remote")
    machine("echo '/srv/there /srv/remote none bind,_netdev' >>/etc/fstab; systemctl daemon-reload")
    machine("systemctl start srv-remote.mount")
    file = machine.root / "etc/aitbcd/aitbcd.toml"
    right = file.read_text()
    file.write_text('[jobs]\ncancel_grace = "60s"\n')
    machine("systemctl restart aitbcd")
    ends = 'trap "sleep 0.5; echo yes >/srv/remote/ended; exit" TERM'
    job = submit(machine, f"{ends}; echo 1; while sleep 0.1; do :; done")
    wait_for("it has begun", lambda: machine(f"aitbcctl logs {job}", user="ada"))
    machine.power_off()
    machine.boot()
    assert machine("cat /srv/there/ended") == "yes\n"
    file.write_text(right)
    machine("systemctl stop srv-remote.mount && rm -r /srv/there /srv/remote /etc/fstab")
    machine("systemctl daemon-reload")


def test_a_disk_that_comes_late_is_waited_for_and_not_taken_for_a_new_queue(
    machine: Machine,
) -> None:
    stop = "systemctl stop aitbcd.socket aitbcd-tcp.socket aitbcd aitbcd-jobs"
    late = machine.root / "etc/systemd/system/late.service"
    late.write_text("[Service]\nType=oneshot\nExecStart=sleep 2\n")
    drop_in = machine.root / "etc/systemd/system/var-lib-aitbcd.mount.d/late.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Unit]\nRequires=late.service\nAfter=late.service\n")
    machine(f"mkdir /srv/disk; {stop}")
    machine("echo '/srv/disk /var/lib/aitbcd none bind,nofail' >/etc/fstab")
    machine.power_off()
    machine.boot()
    wait_for("all is well", lambda: machine.code("aitbcctl doctor") == 0)
    job = submit(machine, "true")
    assert until(machine, job, "completed", "failed")["status"] == "completed"
    assert machine.code(f"test -e /srv/disk/results/{job}/result.txt") == 0
    machine(f"{stop}; umount /var/lib/aitbcd && rm -r /etc/fstab /srv/disk")
    drop_in.unlink()
    late.unlink()
    machine("systemctl daemon-reload; systemctl start aitbcd")


def test_a_broken_configuration_changes_nothing_until_it_is_mended(machine: Machine) -> None:
    file = machine.root / "etc/aitbcd/aitbcd.toml"
    right = file.read_text()
    try:
        file.write_text(right + "[jobs.x]\n")
        machine("systemctl reload aitbcd")
        wait_for(
            "the journal says it",
            lambda: "stays as it was" in machine("journalctl -u aitbcd -p warning -n 5 --no-pager"),
        )
        assert machine.code("aitbcctl config check") == 2
        assert f"line {len(right.splitlines()) + 1}" in machine("aitbcctl config check 2>&1 || :")
        job = submit(machine, "true")
        assert until(machine, job, "completed", "failed")["status"] == "completed"
    finally:
        file.write_text(right)
    machine("systemctl reload aitbcd")
    assert machine.code("aitbcctl config check") == 0
    assert machine("systemctl is-active aitbcd") == "active\n"


def test_the_devices_are_made_before_the_launcher_starts_and_it_starts_without_them(
    machine: Machine,
) -> None:
    programs = [machine.root / "usr/local/bin" / name for name in ("nvidia-modprobe", "nvidia-smi")]
    for program in programs:
        program.write_text('#!/bin/sh\necho "${0##*/} $@" >>/run/asked\nexit 1\n')
        program.chmod(0o755)
    machine("systemctl restart aitbcd-launcher")
    assert machine("cat /run/asked; rm /run/asked") == "nvidia-modprobe -u -c 0\nnvidia-smi -L\n"
    assert until(machine, submit(machine, "true"), "completed", "failed")["status"] == "completed"
    for program in programs:
        program.unlink()


def test_groups_count_for_the_launcher_when_they_are_saved(machine: Machine) -> None:
    machine("groupadd lab && useradd --create-home --groups lab zoe")
    file = machine.root / "etc/aitbcd/aitbcd.toml"
    right = file.read_text()
    assert machine.code("aitbcctl submit -- true", user="zoe") == 4
    try:
        file.write_text(right + '[launcher]\ngroups = ["aitbc", "aitbc-admin", "lab"]\n')
        wait_for("she is served", lambda: machine.code("aitbcctl list", user="zoe") == 0)
        assert machine("aitbcctl submit --wait -c 'id -un' && aitbcctl logs @", user="zoe")
        file.write_text(right + '[launcher]\nuser = "zoe"\n')
        machine("systemctl reload aitbcd")
        said = "the table as it was stays: /etc/aitbcd/aitbcd.toml: unknown key"
        journal = "journalctl -u aitbcd-launcher -n 5 --no-pager"
        wait_for("the launcher says it", lambda: said in machine(journal))
    finally:
        file.write_text(right)
    machine("systemctl reload aitbcd")


def test_the_doctor_finds_what_is_stopped(machine: Machine) -> None:
    assert machine.code("aitbcctl doctor") == 0
    # With what controllers is up to the machine that this one runs on.
    assert "cgroups: jobs have their own" in machine("aitbcctl doctor")
    machine("systemctl stop aitbcd-launcher")
    said = machine("aitbcctl doctor || :")
    assert "FAIL  aitbcd-launcher.service: inactive (dead)" in said
    assert "FAIL  launcher: there is none" in said
    machine("systemctl start aitbcd-launcher")
    wait_for("it is found again", lambda: machine.code("aitbcctl doctor") == 0)


def test_what_is_masked_or_closed_is_said_with_what_mends_it(machine: Machine) -> None:
    machine("systemctl mask --now aitbcd-launcher")
    found = json.loads(machine("aitbcctl doctor --json || :"))["findings"]
    (fault,) = (each for each in found if each["about"] == "aitbcd-launcher.service")
    assert "masked" in fault["detail"]
    machine(fault["hint"])
    wait_for("it is found again", lambda: machine.code("aitbcctl doctor") == 0)
    machine("systemctl stop aitbcd.socket")
    said = machine("aitbcctl list; echo $?", user="ada")
    assert "it is a service here: sudo systemctl start aitbcd;" in said
    assert said.endswith("\n5\n")
    machine("systemctl start aitbcd")
    # Who wants no TCP is not told of it again and again.
    machine("systemctl mask --now aitbcd-tcp.socket")
    assert "aitbcd-tcp" not in machine("aitbcctl doctor")
    machine("systemctl unmask aitbcd-tcp.socket && systemctl restart aitbcd")


def test_a_grace_that_a_shutdown_would_cut_short_is_told(machine: Machine) -> None:
    file = machine.root / "etc/aitbcd/aitbcd.toml"
    right = file.read_text()
    file.write_text('[jobs]\ncancel_grace = "2m"\n')
    found = json.loads(machine("aitbcctl doctor --json"))["findings"]
    (told,) = (each for each in found if each["state"] == "warn" and "grace" in each["detail"])
    assert "is 120 s, and at a shutdown jobs are killed after 1min 30s" in told["detail"]
    drop_in = machine.root / "etc/systemd/system/aitbcd-jobs.service.d/override.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("\n".join(told["hint"].partition(": ")[2].split(", ")) + "\n")
    machine("systemctl daemon-reload")
    assert "grace" not in machine("aitbcctl doctor")
    drop_in.unlink()
    drop_in.parent.rmdir()
    machine("systemctl daemon-reload")
    file.write_text(right)


def test_what_somebody_has_to_mend_is_not_tried_again_and_again(machine: Machine) -> None:
    config, store = "/etc/aitbcd/aitbcd.toml", "/var/lib/aitbcd/queue.db"
    for unit, spoil, mend, reason in (
        ("aitbcd-launcher", f"chmod 666 {config}", f"chmod 644 {config}", "others than root can"),
        ("aitbcd", f"mv {store} /root/; echo no >{store}", f"mv /root/queue.db {store}", "damaged"),
    ):
        machine(f"systemctl stop {unit} && {spoil}")
        assert machine.code(f"systemctl start {unit}") == 1
        said = machine(f"systemctl status --no-pager {unit}; aitbcctl doctor", check=False)
        assert "Active: failed" in said
        assert f"FAIL  {unit}.service: failed (exit-code)" in said
        assert said.count(reason) > 1
        assert machine(f"systemctl show -P NRestarts {unit}") == "0\n"
        # Who asked the socket may have had the daemon started once more before it was mended.
        machine(f"{mend} && systemctl stop {unit} && systemctl start {unit}")
    wait_for("all is well", lambda: machine.code("aitbcctl doctor") == 0)


def test_the_doctor_says_what_others_could_change_and_how_to_mend_it(machine: Machine) -> None:
    assert machine("aitbcctl doctor | grep -E 'store:|permissions:' | cut -c-2") == "OK\nOK\n"
    state = "/var/lib/aitbcd"
    for path, change in (
        (state, "chmod 0777"),
        ("/run/aitbcd", "chmod 0777"),
        ("/etc/aitbcd", "chmod 0775"),
        (f"{state}/results", "chmod 0777"),
        (f"{state}/results", "chown ada"),
        (f"{state}/queue.db", "chmod 0644"),
        ("/etc/aitbcd/aitbcd.toml", "chmod 0666"),
    ):
        machine(f"{change} {path}")
        found = json.loads(machine("aitbcctl doctor --json || :", user="ada"))["findings"]
        (fault,) = (each for each in found if each["state"] == "fail")
        assert f"{path} " in fault["detail"].replace(":", " ")
        machine(fault["hint"])
        assert machine.code("aitbcctl doctor") == 0, (path, change)


def test_the_doctor_tells_a_launcher_of_another_version(machine: Machine) -> None:
    older = machine.root / "opt/older/aitbcd"
    shutil.copytree(ROOT / "aitbcd", older)
    (older / "__init__.py").write_text('__version__ = "0.0.9"\n')
    unit = machine.root / "etc/systemd/system/aitbcd-launcher.service.d/older.conf"
    unit.parent.mkdir(exist_ok=True)
    start = "/usr/bin/python3 -I -S /opt/older/aitbcd/launcher /var/lib/aitbcd --lasting"
    unit.write_text(f"[Service]\nExecStart=\nExecStart={start}\n")
    machine("systemctl daemon-reload && systemctl restart aitbcd-launcher")

    def said() -> dict[str, str]:
        found = json.loads(machine("aitbcctl doctor --json || :"))["findings"]
        return next((each for each in found if each["about"] == "launcher"), {})

    wait_for("it is told", lambda: said().get("state") == "warn")
    assert said()["detail"].startswith("it is 0.0.9, and the daemon ")
    unit.unlink()
    machine("systemctl daemon-reload")
    assert "systemctl restart aitbcd-launcher" in said()["hint"]
    machine("systemctl restart aitbcd-launcher")
    wait_for("all is well", lambda: said().get("state") == "ok")


def test_a_file_that_the_launcher_refuses_is_not_said_to_be_right(machine: Machine) -> None:
    file = "/etc/aitbcd/aitbcd.toml"
    machine(f"install -m 666 {file} /tmp/draft.toml")
    assert machine.code("aitbcctl config check /tmp/draft.toml") == 0
    machine(f"chmod 0666 {file}")
    said = machine("aitbcctl config check; echo $?")
    assert f"{file}: others than root can write it" in said
    assert said.endswith("\n2\n")
    machine(f"chmod 0644 {file}")
    assert machine.code("aitbcctl config check") == 0


@pytest.fixture
def scripted(machine: Machine) -> Iterator[Callable[..., None]]:
    """Give the machine the scripted driver; what is called says what there is."""
    folder = machine.root / "opt/nvml"
    folder.mkdir()
    build(folder)
    script = folder / "script"
    # What asks the driver is a program of its own.
    path = machine.root / "usr/lib/python3/dist-packages/needed.pth"
    path.write_text(f"{NEEDED}\n")
    unit = machine.root / "etc/systemd/system/aitbcd.service.d/driver.conf"
    unit.parent.mkdir(parents=True, exist_ok=True)
    environ = f"LD_LIBRARY_PATH=/opt/nvml {SCRIPT_VARIABLE}=/opt/nvml/script"
    unit.write_text(f"[Service]\nEnvironment={environ}\n")
    file = machine.root / "etc/aitbcd/aitbcd.toml"
    right = file.read_text()
    # As the documentation says: below its own folder it may write.
    tell = '["/bin/sh", "-c", "cat > /var/lib/aitbcd/told.new; mv /var/lib/aitbcd/told.new $0",'
    file.write_text(
        f'{right}[gpus]\nforeign_command_after = "0.1s"\n'
        f'foreign_command = {tell} "/var/lib/aitbcd/told"]\n'
    )

    def write(*gpus: str) -> None:
        script.with_name("new").write_text("".join(gpus))
        script.with_name("new").rename(script)

    write(gpu(0), gpu(1))
    machine("systemctl daemon-reload && systemctl restart aitbcd")
    yield write
    unit.unlink()
    path.unlink()
    file.write_text(right)
    # Or they would be lost ones until the next boot.
    forget = "rm /var/lib/aitbcd/gpus.json"
    machine(f"systemctl daemon-reload && {forget} && systemctl restart aitbcd")
    shutil.rmtree(folder)


def test_whose_a_gpu_is_is_known_though_the_daemon_can_read_nobody_s_environment(
    machine: Machine, scripted: Callable[..., None]
) -> None:
    job = submit(machine, "exec env -i sleep 7531", options="--gpus 1")
    until(machine, job, "running")
    own = int(wait_for("it has begun", lambda: machine("pgrep -f ^sleep.7531 || :").strip()))
    name = f"/sys/fs/cgroup/system.slice/docker-{'0123456789abcdef' * 4}.scope"
    # As docker's daemon starts it: of another user, and a child of nobody that is the job's.
    inside = f"echo $$ > {name}/cgroup.procs; exec setpriv --reuid 65534 sleep 7532"
    machine(f"mkdir {name}; AITBC_JOB_ID={job} setsid -f sh -c '{inside}' >/dev/null 2>&1")
    contained = int(wait_for("it too", lambda: machine("pgrep -f ^sleep.7532 || :").strip()))
    machine("setsid -f sleep 7533 >/dev/null 2>&1", user="bob")
    stranger = int(wait_for("and he", lambda: machine("pgrep -f ^sleep.7533 || :").strip()))
    held = [process(own, GIB), process(contained, GIB)]
    scripted(gpu(0, process=held, used=GIB), gpu(1, process=process(stranger, GIB), used=GIB))

    def seen() -> list[tuple[str, list[tuple[int, str | None]]]]:
        found = json.loads(machine("aitbcctl gpus --json", user="ada"))["gpus"]
        return [
            (one["state"], [(each["pid"], each["job_id"]) for each in one["processes"]])
            for one in found
        ]

    expected = [
        ("busy", sorted([(own, job), (contained, job)])),
        ("foreign", [(stranger, None)]),
    ]
    wait_for("it is known whose they are", lambda: seen() == expected)
    told = machine.root / "var/lib/aitbcd/told"
    wait_for("the command is called", told.exists)
    assert json.loads(told.read_text())["process"]["user"] == "bob"
    events = machine(f"aitbcctl get {job} --json", user="ada")
    assert '"foreign"' not in events
    machine(f"aitbcctl cancel --force {job}", user="ada")
    wait_for("the container is ended", lambda: machine.code("pgrep -f ^sleep.7532") == 1)
    machine(f"pkill -f ^sleep.7533; rmdir {name}")


def test_the_daemon_is_exposed_no_more_than_systemd_s_own_services(machine: Machine) -> None:
    said = machine("systemd-analyze security --no-pager aitbcd.service", check=False)
    found = re.search(r"Overall exposure level for aitbcd.service: ([\d.]+)", said)
    assert found
    assert float(found[1]) <= EXPOSURE_MOST
    assert re.search(r"^CapBnd:\t0+$", machine("cat /proc/$(pgrep -o -u aitbcd)/status"), re.M)


def test_nobody_else_can_bind_the_port_while_the_daemon_is_away(machine: Machine) -> None:
    machine("systemctl stop aitbcd")
    bind = 'import socket; socket.create_server(("127.0.0.1", 8000))'
    assert machine.code(f"python3 -c '{bind}'", user="eve") == 1
    machine("systemctl start aitbcd")


def holders(machine: Machine) -> list[str]:
    """Return the programs that listen on each address of port 8000."""
    said = machine("ss --no-header -tlnp sport = :8000").splitlines()
    return [" ".join(sorted(set(re.findall(r'"([^"]+)",pid', line)))) for line in said]


def test_a_socket_that_was_closed_is_held_again_after_what_the_doctor_says(
    machine: Machine,
) -> None:
    job = gated(machine)
    # More often than systemd lets a unit start by default.
    for _ in range(8):
        assert machine.code("systemctl restart aitbcd-tcp.socket") == 1
    assert holders(machine) == ["aitbcd", "aitbcd"]
    found = json.loads(machine("aitbcctl doctor --json"))["findings"]
    (hint,) = (each["hint"] for each in found if each["about"] == "aitbcd-tcp.socket")
    machine(hint.partition(";")[0])
    assert holders(machine) == ["aitbcd systemd", "aitbcd systemd"]
    assert "aitbcd-tcp.socket: active" in machine("aitbcctl doctor")
    open_gate(machine)
    assert until(machine, job, "completed", "failed")["attempt"] == 1


def test_a_machine_without_ipv6_is_served_and_its_port_held(machine: Machine) -> None:
    try:
        machine("sysctl -q net.ipv6.conf.all.disable_ipv6=1")
        machine("systemctl stop aitbcd-tcp.socket && systemctl restart aitbcd")
        assert machine("systemctl --failed --no-legend --plain") == ""
        assert "systemd" in holders(machine)[0]
        assert machine.code("AITBC_URL=http://127.0.0.1:8000 aitbcctl list", user="ada") == 0
        assert machine.code("aitbcctl doctor") == 0
    finally:
        machine("sysctl -q net.ipv6.conf.all.disable_ipv6=0")


def test_a_network_is_served_as_the_documents_say(machine: Machine, tmp_path: Path) -> None:
    document, section = "docs/configuration.md", "Serving a network"
    (config,) = blocks(document, section, "toml")
    service, held = blocks(document, section, "ini")
    restart, renewal = blocks(document, section)
    (hook,) = blocks(document, "Telling who uses a GPU past the queue", "ini")
    authority = Authority(tmp_path)
    shutil.copy(authority.certificate, machine.root / "etc/ca.pem")

    def renew(name: str) -> None:
        cert, key = authority.issue(name, "IP:127.0.0.1")
        shutil.copy(cert, machine.root / "srv/fullchain.pem")
        shutil.copy(key, machine.root / "srv/privkey.pem")
        machine(f"cd /srv && {renewal}")

    def shown() -> str:
        ask = 'import ssl; print(ssl.get_server_certificate(("127.0.0.1", 8443)))'
        return machine(f"python3 -c '{ask}'", check=False)

    file = machine.root / "etc/aitbcd/aitbcd.toml"
    before = file.read_text()
    units = machine.root / "etc/systemd/system"
    job = gated(machine)
    renew("first")
    for unit, lines in (("aitbcd.service", service), ("aitbcd-tcp.socket", held)):
        (units / f"{unit}.d").mkdir(exist_ok=True)
        (units / f"{unit}.d/override.conf").write_text(lines)
    let_through = units / "aitbcd.service.d/hook.conf"
    let_through.write_text(hook)
    file.write_text(before + config)
    machine("aitbcctl config check && systemctl daemon-reload")
    machine(restart)
    allowed = machine("systemctl show --property=IPAddressAllow aitbcd.service")
    assert {"203.0.113.7/32", "192.0.2.0/24"} <= set(allowed.strip().partition("=")[2].split())
    key = machine("aitbcctl key create --name network 2>/dev/null", user="ada").strip()
    there = "env AITBC_URL=https://127.0.0.1:8443 AITBC_CA_FILE=/etc/ca.pem"
    assert job in machine(f"{there} AITBC_API_KEY={key} aitbcctl list", user="ada")
    assert machine.code(f"{there} aitbcctl list", user="ada") == 4
    first = shown()
    renew("second")
    wait_for("the new one is shown", lambda: shown() not in (first, ""))
    for unit in ("aitbcd.service", "aitbcd-tcp.socket"):
        (units / f"{unit}.d/override.conf").unlink()
    let_through.unlink()
    file.write_text(before)
    machine("systemctl daemon-reload")
    machine(restart)
    assert holders(machine) == ["aitbcd systemd", "aitbcd systemd"]
    open_gate(machine)
    assert until(machine, job, "completed")["status"] == "completed"
    machine("env AITBC_URL=http://127.0.0.1:8000 aitbcctl list", user="ada")
