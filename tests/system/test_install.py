"""``aitbcd install`` and ``uninstall`` in a machine with systemd, for an installation by pip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import package
from tests.documents import blocks, typed
from tests.machine import NEEDED, Machine
from tests.service import wait_for

pytestmark = pytest.mark.systemd

GUIDE = "docs/administration.md"
#: Where ada has her program and her jobs; systemd reads most of these characters as its own.
OF_ADA = "/home/ada/100% of $HOME é/aitbcd"
STATE = '/home/ada/%h "$HOME" \\x ${HOME} é'
#: What stands before systemctl, and kills who calls it once too often.
KILLS = """#!/bin/sh
echo >>~/taken
test "$(wc -l <~/taken)" -le "$(cat ~/allowed)" || { kill -KILL $PPID; exit 1; }
exec /usr/bin/systemctl "$@"
"""
OWN = "export XDG_RUNTIME_DIR=/run/user/$(id -u);"
#: What libpam-systemd does, which is not in the machine.
RUNTIME_DIR = "[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    wheel = package.build("wheel", tmp_path_factory.mktemp("wheel"))
    with Machine() as made:
        shutil.copy(wheel, made.root / "opt")
        drop_in = made.root / "etc/systemd/system/user@.service.d/runtime.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(RUNTIME_DIR)
        made("systemctl daemon-reload; useradd --create-home --shell /bin/sh ada")
        pip(made, "/opt/queue", wheel.name)
        pip(made, "/home/ada/venv", wheel.name, "ada")
        # What sh(1) is told in the first line of a script cannot have these characters.
        made(f"install -d '{Path(OF_ADA).parent}'; ln -s ~/venv/bin/aitbcd '{OF_ADA}'", user="ada")
        profile = f"PATH=/home/ada/venv/bin:$PATH\nexport XDG_STATE_HOME='{STATE}'\n"
        (made.root / "home/ada/.profile").write_text(profile)
        yield made


def pip(machine: Machine, folder: str, wheel: str, user: str | None = None) -> None:
    """Install the wheel as people do; the network's part is what the tests have here."""
    machine(
        f"python3 -m venv --without-pip {folder} && PYTHONPATH={NEEDED} {folder}/bin/python -m pip"
        f" --quiet install --no-index --no-deps --ignore-installed /opt/{wheel}"
        f" && echo {NEEDED} >$(echo {folder}/lib/python3*/site-packages)/needed.pth",
        user=user,
    )


@pytest.fixture(scope="module")
def at_home(machine: Machine) -> Machine:
    """The machine, where ada's own systemd runs: she lingers, as the guide says."""
    machine(*typed(blocks(GUIDE, "Without the package", "console")[-1]))
    is_up = "systemctl is-active user@1000"
    wait_for("it runs", lambda: machine(is_up, check=False) == "active\n")
    return machine


def refused(machine: Machine, line: str, user: str | None = None) -> str:
    said = machine(f"{line}; echo $?", user=user)
    assert said.endswith("\n4\n")
    return said


def status(machine: Machine, job: str, user: str = "ada") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine(f"aitbcctl status {job} --json", user=user))
    return found


def until(machine: Machine, job: str, *wanted: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        found = status(machine, job)
        return found if found["status"] in wanted else None

    return wait_for(f"{job} is {wanted}", reached)


def running(machine: Machine) -> str:
    job = machine("aitbcctl submit -- sleep 1000", user="ada").strip()
    until(machine, job, "running")
    return job


def nothing_runs(machine: Machine, pattern: str = "bin/aitbc[d]|[l]auncher|[s]leep") -> None:
    assert machine.code(f"pgrep --full '{pattern}'") == 1
    assert machine("systemctl --failed --no-legend --plain") == ""
    # Her own systemd, where a test before had it run.
    if machine.code("systemctl is-active user@1000") == 0:
        assert machine(f"{OWN} systemctl --user --failed --no-legend --plain", user="ada") == ""


def test_a_user_s_own_units(at_home: Machine) -> None:
    machine = at_home
    said = machine(f"'{OF_ADA}' install --user 2>&1", user="ada")
    assert "enable-linger" not in said
    look = "env; cat /proc/self/cgroup /proc/self/status"
    until(machine, machine(f"aitbcctl submit -c '{look}'", user="ada").strip(), "completed")
    seen = machine("aitbcctl logs @", user="ada")
    jobs = "user@1000.service/app.slice/aitbcd-jobs.service/"
    assert f"0::/user.slice/user-1000.slice/{jobs}" in seen
    for name in ("NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "MANAGERPID", "SYSTEMD_EXEC"):
        assert f"\n{name}" not in seen
    # What the daemon may not, a job may.
    assert "NoNewPrivs:\t0" in seen
    daemon = "systemctl --user show --property=MainPID --value aitbcd"
    assert "NoNewPrivs:\t1" in machine(f"{OWN} cat /proc/$({daemon})/status", user="ada")
    assert machine.code(f"test -e '{STATE}/aitbcd/queue.db'") == 0
    assert machine.code("aitbcctl doctor", user="ada") == 0
    # Installed again, as after an upgrade, and whatever may be restarted.
    job = running(machine)
    for line in (
        f"'{OF_ADA}' install --user",
        "systemctl --user restart aitbcd-launcher aitbcd",
        "systemctl --user kill --signal KILL aitbcd aitbcd-launcher",
    ):
        machine(f"{OWN} {line}", user="ada")
        wait_for("it serves", lambda: machine.code("aitbcctl list", user="ada") == 0)
        assert status(machine, job)["status"] == "running"
    wait_for("all is well", lambda: "OK    launcher" in machine("aitbcctl doctor || :", user="ada"))
    # A logout without lingering, and the next login.
    machine("rm /var/lib/systemd/linger/ada")
    assert "warn  lingering" in machine("aitbcctl doctor || :", user="ada")
    machine("systemctl stop user@1000")
    assert machine.code("pgrep --uid ada") == 1
    machine("systemctl start user@1000")
    wait_for("it serves", lambda: machine.code("aitbcctl list", user="ada") == 0)
    assert "was stopped" in until(machine, job, "failed")["message"]
    assert "enable-linger ada" in machine(f"'{OF_ADA}' install --user 2>&1", user="ada")
    # Somebody who is asked, and does not want it.
    job = running(machine)
    asked = "printf 'n\\n' | script --quiet --return --command \"{}\" /dev/null"
    no = asked.format("~/venv/bin/aitbcd uninstall --user")
    assert "End 1 job that may be running?" in machine(f"{no} && exit 1 || :", user="ada")
    assert status(machine, job)["status"] == "running"
    said = machine("~/venv/bin/aitbcd uninstall --user 2>&1", user="ada")
    assert f"kept       {STATE}/aitbcd" in said
    assert machine("ls -A ~/.config/systemd/user", user="ada") == ""
    nothing_runs(machine)
    # The next installation finds all of it.
    machine(f"'{OF_ADA}' install --user", user="ada")
    assert until(machine, job, "failed")["reason"] == "lost"
    machine(f"touch '{STATE}/aitbcd/mine'", user="ada")
    said = machine("aitbcd uninstall --user --purge 2>&1", user="ada")
    assert f"left       {STATE}/aitbcd: Directory not empty" in said
    assert machine(f"ls -A '{STATE}/aitbcd'") == "mine\n"
    machine(f"rm -r '{STATE}'")
    nothing_runs(machine)


def test_install_and_uninstall_go_on_after_a_kill_at_any_step(at_home: Machine) -> None:
    """Each run is killed one step later than the one before."""
    machine = at_home
    steps = machine.root / "home/ada/steps"
    steps.mkdir()
    (steps / "systemctl").write_text(KILLS)
    (steps / "systemctl").chmod(0o755)

    def killed_ever_later(verb: str) -> None:
        for allowed in range(40):
            line = f"rm -f ~/taken; echo {allowed} >~/allowed; PATH=~/steps:$PATH aitbcd {verb}"
            if machine.code(line, user="ada") == 0:
                assert allowed > 3
                return
        raise AssertionError(f"{verb} never came to its end")

    killed_ever_later("install --user")
    running(machine)
    killed_ever_later("uninstall --user --purge --yes")
    assert machine(f"ls -A ~/.config/systemd/user; ls -A '{STATE}'", user="ada") == ""
    nothing_runs(machine)


def test_what_the_administrator_s_guide_says(at_home: Machine) -> None:
    lines = "\n".join(blocks(GUIDE, "Without the package")).splitlines()
    assert lines.pop(0).startswith("pipx install . ")
    for line in lines:
        at_home(f"{OWN} {line}", user="ada")
    at_home(f"rm -r '{STATE}'")
    nothing_runs(at_home)


def test_where_a_user_s_units_cannot_be(machine: Machine) -> None:
    machine("useradd --create-home --shell /bin/sh --non-unique --uid 4242 eve")
    program = "/opt/queue/bin/aitbcd"
    said = refused(machine, f"{program} install --user", "eve")
    assert "enable-linger eve" in said
    said = refused(machine, f"{program} install --user")
    assert "aitbcd install" in said
    said = refused(machine, f"{program} install", "eve")
    assert "only root" in said
    assert machine.code("ls ~/.config", user="eve") == 2


def test_a_user_s_queue_goes_on_after_a_power_cut(at_home: Machine) -> None:
    machine = at_home
    machine("loginctl enable-linger ada")
    machine("aitbcd install --user", user="ada")
    lost = running(machine)
    retried = machine("aitbcctl submit --retries 1 -- sleep 1000", user="ada").strip()
    until(machine, retried, "running")
    machine.cut_power()
    machine.boot()
    wait_for("it serves", lambda: machine.code("aitbcctl list", user="ada") == 0)
    assert until(machine, lost, "failed")["reason"] == "lost"
    assert until(machine, retried, "running")["attempt"] == 2
    machine("aitbcd uninstall --user --purge", user="ada")
    nothing_runs(machine)


def test_no_systemd_and_an_old_one_are_refused(machine: Machine) -> None:
    program = "/opt/queue/bin/aitbcd"
    line = f"unshare --mount sh -c 'mount -t tmpfs none /run/systemd; {program} install'"
    assert "systemd does not run this machine" in refused(machine, line)
    old = machine.root / "opt/old/systemctl"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 249.11-0ubuntu3\n")
    old.chmod(0o755)
    said = refused(machine, f"PATH=/opt/old:$PATH {program} install")
    assert "this machine has systemd 249.11-0ubuntu3, and the units need 252" in said


def test_what_keeps_the_daemon_from_starting_is_said(at_home: Machine) -> None:
    config = at_home.root / "home/ada/wrong.toml"
    config.write_text("[jobs]\nlog_limit = 1\n")
    said = at_home("AITBCD_CONFIG=wrong.toml aitbcd install --user; echo $?", user="ada")
    assert "/home/ada/wrong.toml, line 2: log_limit in [jobs] is 1" in said
    assert said.endswith("\n2\n")
    assert at_home.code("test -e ~/.config/systemd/user/aitbcd.service", user="ada") == 1
    at_home(f"install -d '{STATE}' '{STATE}/aitbcd'")
    said = refused(at_home, "aitbcd install --user", "ada")
    assert f"the state directory {STATE}/aitbcd cannot be used: Permission denied" in said
    at_home("aitbcd uninstall --user", user="ada")
    at_home(f"rm -r '{STATE}'")
    nothing_runs(at_home)


def test_purge_leaves_alone_what_no_daemon_has_made(at_home: Machine) -> None:
    line = "export AITBCD_STATE_DIR=~ && aitbcd {}install --user {}"
    at_home("mkdir ~/results ~/run && touch ~/results/mine ~/run/mine", user="ada")
    at_home(line.format("", ""), user="ada")
    at_home("AITBCD_STATE_DIR=~ aitbcctl submit --wait -- true", user="ada")
    before = at_home("ls -A", user="ada").split()
    # It is asked what it was installed with.
    said = at_home("aitbcd uninstall --user --purge", user="ada")
    left = at_home("ls -A . results run", user="ada")
    assert "left       /home/ada/results: Directory not empty" in said
    assert {"results", "run", "venv", ".profile"} <= set(before) & set(left.split())
    assert "queue.db" in before
    assert "queue.db" not in left
    assert "\nresults:\nmine\n\nrun:\nmine\n" in left
    at_home("rm -r ~/results ~/run", user="ada")
    nothing_runs(at_home)


def test_a_daemon_that_was_started_by_hand_is_not_fought(at_home: Machine) -> None:
    machine = at_home
    machine("aitbcd >/dev/null 2>&1 &", user="ada")
    wait_for("it serves", lambda: machine.code("aitbcctl list", user="ada") == 0)
    said = refused(machine, "aitbcd install --user", "ada")
    pid = machine(f"cat '{STATE}/aitbcd/lock'").strip()
    assert f"pid {pid}" in said
    machine(f"kill {pid}")
    wait_for("it is gone", lambda: machine.code(f"kill -0 {pid}") == 1)
    machine("aitbcd install --user; aitbcd uninstall --user --purge", user="ada")
    nothing_runs(machine)


def test_what_the_guide_says_for_all_users(machine: Machine) -> None:
    made, removed, _ = map(typed, blocks(GUIDE, "Without the package", "console"))
    # What these two need of the network the tests have here.
    assert made[:2] == ["python3 -m venv /opt/aitbcd", "/opt/aitbcd/bin/pip install ."]
    (wheel,) = machine.root.glob("opt/*.whl")
    pip(machine, "/opt/aitbcd", wheel.name)
    for line in made[2:]:
        machine(line)
    assert machine.code("/opt/aitbcd/bin/aitbcctl doctor") == 0
    for line in removed:
        machine(line)
    nothing_runs(machine)
    machine("test -d /var/lib/aitbcd && /opt/aitbcd/bin/aitbcd uninstall --purge --yes")


def test_the_whole_machine(machine: Machine) -> None:
    program = "/opt/queue/bin/aitbcd"
    said = refused(machine, "/home/ada/venv/bin/aitbcd install")
    assert "sees nothing in /home" in said
    machine("install -d -o ada /srv/ada; ln -s /opt/queue /srv/ada/hop")
    machine("ln -s ../srv/ada/../ada/hop/bin /opt/via")
    assert "others than root can change /srv/ada" in refused(machine, "/opt/via/aitbcd install")
    machine("chown ada /opt/queue/bin")
    assert "others than root can change /opt/queue/bin" in refused(machine, f"{program} install")
    machine("chown root /opt/queue/bin; chmod 700 /opt/queue")
    assert "aitbcd cannot read /opt/queue" in refused(machine, f"{program} install")
    machine("chmod 755 /opt/queue; echo >/usr/lib/systemd/system/aitbcd.service")
    assert "apt remove aitbcd" in refused(machine, f"{program} install")
    machine("rm /usr/lib/systemd/system/aitbcd.service")
    machine("echo mine >/etc/systemd/system/aitbcd.socket")
    assert "not from 'aitbcd install'" in refused(machine, f"{program} install")
    machine("rm /etc/systemd/system/aitbcd.socket")
    before = machine("find /etc /run/systemd/system -newer /opt/queue/pyvenv.cfg | grep aitb || :")
    assert before == ""
    machine(f"{program} install && usermod --append --groups aitbc ada")
    assert machine.code("/opt/queue/bin/aitbcctl doctor") == 0
    job = running(machine)
    machine("/opt/queue/bin/python -m aitbcd install")
    unit = machine("systemctl show --property=ExecStart aitbcd")
    assert "argv[]=/opt/queue/bin/python -P -m aitbcd --separate-launcher" in unit
    assert status(machine, job)["status"] == "running"
    said = machine(f"{program} uninstall 2>&1")
    assert "kept       /var/lib/aitbcd" in said
    nothing_runs(machine)
    # It ended in order, and the next one knows, which a taken port costs no more than that.
    machine("systemd-run python3 -m http.server --bind 127.0.0.1 8000")
    bound = "ss --listening --tcp --numeric --no-header '( sport = :8000 )'"
    wait_for("the port is taken", lambda: machine(bound))
    assert "no HTTP on 127.0.0.1:8000" in machine(f"{program} install")
    assert "was stopped" in until(machine, job, "failed")["message"]
    running(machine)
    machine(f"{program} uninstall --purge --yes")
    nothing_runs(machine)
    left = machine(
        "ls -d /etc/*/*aitb* /etc/*aitb* /etc/systemd/*/*aitb* /var/lib/*aitb* /run/*aitb* 2>&1; :"
    )
    assert all("No such file" in line for line in left.splitlines())
    assert machine.code("getent passwd aitbcd; getent group aitbc aitbc-admin") != 0
    machine(f"{program} uninstall --purge --yes")
