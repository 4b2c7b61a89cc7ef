"""The Debian package in a machine with a real systemd: what an administrator does with it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aitbcd.gpus.child import OURS_FIRST
from tests.documents import blocks, typed
from tests.machine import RELEASE, ROOT, Machine, gated, open_gate, status, submit, until
from tests.service import wait_for

pytestmark = pytest.mark.systemd

UNITS = ("aitbcd", "aitbcd-launcher", "aitbcd-jobs", "aitbcd.socket", "aitbcd-tcp.socket")
CONFIG = "/etc/aitbcd/aitbcd.toml"
#: What a machine writes by itself, or remembers of packages that it had.
OWN = (
    "/dev", "/home", "/opt", "/proc", "/run", "/sys", "/tmp", "/root", "/var/cache", "/var/log",
    "/var/lib/apt", "/var/lib/dpkg", "/var/lib/systemd", "/var/tmp",
)  # fmt: skip


def documented() -> list[str]:
    """Return the commands of the administrator's guide."""
    return typed("".join(blocks("docs/administration.md", "The package", "console")))


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it, as the README says."""
    if f"VERSION_CODENAME={RELEASE}\n" not in Path("/etc/os-release").read_text():
        pytest.skip(f"the machine is {RELEASE}, and a package is for the release it is built on")
    folder = tmp_path_factory.mktemp("package")
    # What a power cut left of an earlier build.
    (folder / ".aitbcd.deb.new").touch()
    done = subprocess.run(
        [ROOT / documented()[0], folder.name],
        cwd=folder.parent,
        env=os.environ | {"AITBCD_VERSION_SUFFIX": "+test1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert list(folder.iterdir()) == [path]
    assert re.fullmatch(r"aitbcd_[\d.~]+\+deb12\+test1_\w+\.deb", path.name)
    return path


@pytest.fixture(scope="session")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a higher version: its scripts and files are what an upgrade goes through."""
    folder = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder / "tree"], check=True)
    control = folder / "tree/DEBIAN/control"
    control.write_text(control.read_text().replace("+test1\n", "+test2\n"))
    with (folder / "tree/usr/share/aitbcd/aitbcd.toml").open("a") as file:
        file.write("# newer\n")
    path = folder / package.name.replace("+test1_", "+test2_")
    subprocess.run(
        ["dpkg-deb", "-Znone", "--build", folder / "tree", path],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(folder / "tree")
    return path


@pytest.fixture(scope="module")
def machine(package: Path, newer: Path) -> Iterator[Machine]:
    with Machine() as made:
        for path in (package, newer):
            shutil.copy(path, made.root / "root")
        for user in ("ada", "bob"):
            made(f"useradd --create-home --shell /bin/sh {user}")
        yield made


@pytest.fixture(scope="module")
def untouched(machine: Machine) -> set[str]:
    """Everything that there was before the package."""
    return names(machine)


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Install it where it is not, and find no failed unit afterwards."""
    if "machine" not in request.fixturenames:
        yield
        return
    machine: Machine = request.getfixturevalue("machine")
    request.getfixturevalue("untouched")
    if machine.code("dpkg --status aitbcd | grep -q '^Status: install ok installed'") != 0:
        install(machine, "test1")
    yield
    assert machine("systemctl --failed --no-legend --plain") == ""


def install(machine: Machine, version: str) -> str:
    said = apt(machine, f"install /root/aitbcd_*+{version}_*.deb")
    for user in ("ada", "bob"):
        machine(f"gpasswd --add {user} aitbc")
    # Long enough to be told from no grace at all.
    config = machine.root / CONFIG[1:]
    config.write_text(config.read_text().replace('#cancel_grace = "10s"', 'cancel_grace = "1s"'))
    machine("systemctl reload aitbcd || :")
    return said


def apt(machine: Machine, words: str) -> str:
    return machine(f"DEBIAN_FRONTEND=noninteractive apt-get --yes --quiet {words}")


def pid(machine: Machine, unit: str) -> str:
    return machine(f"systemctl show --property MainPID --value {unit}").strip()


def serves(machine: Machine) -> None:
    wait_for("it serves", lambda: machine.code("aitbcctl list", user="ada") == 0)


def names(machine: Machine) -> set[str]:
    """Return everything there is in the machine's file system, but for what it writes itself."""
    pruned = " -o ".join(f"-path {path}" for path in OWN)
    return set(machine(f"find / -xdev \\( {pruned} \\) -prune -o -print").splitlines())


def test_lintian_finds_no_error(package: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    done = subprocess.run(
        ["lintian", "--no-cfg", "--allow-root", "--fail-on", "error", package],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_it_is_for_one_minor_version_of_the_system_s_python(package: Path) -> None:
    said = subprocess.check_output(["dpkg-deb", "--field", package, "Depends"], text=True)
    version = subprocess.check_output(["/usr/bin/python3", "--version"], text=True).split()[1]
    major, minor = map(int, version.split(".")[:2])
    assert f"python3 (>= {major}.{minor}~), python3 (<< {major}.{minor + 1}~)" in said


def test_whoever_installs_it_has_a_queue_that_works(machine: Machine) -> None:
    for unit in UNITS:
        assert machine(f"systemctl is-active {unit}") == "active\n", unit
    assert machine.code("aitbcctl doctor") == 0
    assert f"{CONFIG} is right" in machine("aitbcctl config check")
    assert machine("dpkg --verify aitbcd | grep -v ' c /etc/'", check=False) == ""
    job = submit(machine, "id -un; echo secret", user="bob")
    assert until(machine, job, "completed", "failed", user="bob")["status"] == "completed"
    assert machine(f"aitbcctl logs {job}", user="bob") == "bob\nsecret\n"
    assert machine.code(f"aitbcctl logs {job}", user="ada") == 3
    assert machine.code(f"cat /var/lib/aitbcd/results/{job}/result.txt", user="ada") != 0


def test_shells_and_man_find_what_is_theirs(machine: Machine) -> None:
    line = ". /usr/share/bash-completion/completions/aitbcctl; complete -p aitbcctl"
    assert "_aitbcctl_completion" in machine(f"bash -c '{line}'")
    assert machine("zcat /usr/share/man/man1/aitbcctl-submit.1.gz").startswith(".TH AITBCCTL")
    assert machine("zcat /usr/share/man/man1/aitbcctl-rm.1.gz").startswith(".TH AITBCCTL")
    for file in ("zsh/vendor-completions/_aitbcctl", "fish/vendor_completions.d/aitbcctl.fish"):
        assert machine.code(f"test -s /usr/share/{file}") == 0


def test_its_programs_take_nothing_from_who_runs_them(machine: Machine) -> None:
    machine("mkdir -p ~/aitbcd && echo 'raise SystemExit(9)' > ~/aitbcd/__init__.py", user="ada")
    machine("cp ~/aitbcd/__init__.py ~/usercustomize.py", user="ada")
    assert machine.code("cd; PYTHONPATH=$HOME aitbcctl list", user="ada") == 0
    # Compiled already: root leaves nothing behind that dpkg does not know.
    # Nor does what asks the driver take another package's older NVML.
    other = machine.root / "usr/lib/python3/dist-packages/pynvml.py"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.touch()
    look = shlex.quote(f"{OURS_FIRST}import pynvml; print(pynvml.__file__)")
    said = machine(f"PYTHONDONTWRITEBYTECODE=1 python3 -P -c {look} /usr/lib/aitbcd")
    other.unlink()
    assert said == "/usr/lib/aitbcd/pynvml.py\n"
    known = set(machine("dpkg --listfiles aitbcd").splitlines())
    assert set(machine("find /usr/lib/aitbcd").splitlines()) <= known
    assert machine("dpkg --verify aitbcd | grep -v ' c /etc/'", check=False) == ""


def test_an_upgrade_keeps_jobs_settings_and_connections(machine: Machine) -> None:
    job = gated(machine)
    waiting = submit(machine, "true", options="--cpus 2")
    before = {unit: pid(machine, unit) for unit in ("aitbcd", "aitbcd-launcher", "aitbcd-jobs")}
    machine("systemctl mask --now aitbcd-tcp.socket; systemctl disable aitbcd-launcher")
    mine = machine(f"cat {CONFIG}")
    # Connections that are made while nobody is there wait for the new daemon.
    machine(
        "systemd-run --quiet --unit asking --property User=ada sh -c"
        " 'until test -e /tmp/enough; do aitbcctl queue >/dev/null || exit 1; done'"
    )
    try:
        install(machine, "test2")
        serves(machine)
    finally:
        machine("touch /tmp/enough")
    wait_for("no more is asked", lambda: machine.code("systemctl is-active asking") != 0)
    after = {unit: pid(machine, unit) for unit in before}
    assert after["aitbcd"] != before["aitbcd"]
    assert after["aitbcd-launcher"] != before["aitbcd-launcher"]
    assert after["aitbcd-jobs"] == before["aitbcd-jobs"]
    assert machine(f"cat {CONFIG}") == mine
    assert machine("systemctl is-active aitbcd-tcp.socket", check=False) == "inactive\n"
    assert machine("systemctl is-enabled aitbcd-launcher", check=False) == "disabled\n"
    machine("systemctl unmask aitbcd-tcp.socket && systemctl enable aitbcd-launcher")
    machine("systemctl restart aitbcd")
    serves(machine)
    assert status(machine, job)["status"] == "running"
    open_gate(machine)
    assert until(machine, job, "completed", "failed")["attempt"] == 1
    assert until(machine, waiting, "completed", "failed")["status"] == "completed"


@pytest.mark.parametrize(
    "line",
    [
        "systemctl restart aitbcd aitbcd-launcher",
        "systemctl kill --signal KILL aitbcd aitbcd-launcher",
    ],
)
def test_jobs_do_not_notice(machine: Machine, line: str) -> None:
    job = gated(machine)
    machine(line)
    serves(machine)
    assert until(machine, submit(machine, "true"), "completed", "failed")["status"] == "completed"
    open_gate(machine)
    assert until(machine, job, "completed", "failed")["attempt"] == 1


def test_after_a_reboot_the_queue_goes_on(machine: Machine) -> None:
    lost = gated(machine)
    waiting = submit(machine, "true", options="--cpus 2")
    machine.power_off()
    machine.boot()
    serves(machine)
    assert until(machine, lost, "failed", "completed")["reason"] == "lost"
    assert until(machine, waiting, "completed", "failed")["status"] == "completed"


def test_a_broken_configuration_stops_an_upgrade_from_stopping_what_runs(
    machine: Machine,
) -> None:
    file = machine.root / CONFIG[1:]
    right = file.read_text()
    before = pid(machine, "aitbcd")
    try:
        file.write_text(right + "[nonsense]\n")
        said = apt(machine, "install --reinstall /root/aitbcd_*+test2_*.deb")
        assert "unknown table or key 'nonsense'" in said
        assert "systemctl restart aitbcd-launcher aitbcd" in said
        assert pid(machine, "aitbcd") == before
        # Who asks a daemon that cannot start is told why, and the journal is not filled meanwhile.
        assert machine.code("systemctl restart aitbcd-launcher aitbcd") != 0
        said = machine("aitbcctl list; echo $?", user="ada")
        assert f"the daemon cannot start: {CONFIG}, line" in said
        assert said.endswith("\n5\n")
        assert machine("systemctl show -P NRestarts aitbcd-launcher") == "0\n"
    finally:
        file.write_text(right)
    machine("systemctl restart aitbcd-launcher aitbcd")
    serves(machine)


def test_a_configuration_that_nobody_has_changed_is_the_new_version_s(machine: Machine) -> None:
    apt(machine, "purge aitbcd")
    apt(machine, "install /root/aitbcd_*+test1_*.deb")
    assert machine.code(f"cmp {CONFIG} /usr/share/aitbcd/aitbcd.toml") == 0
    assert "# newer" not in machine(f"cat {CONFIG}")
    apt(machine, "install /root/aitbcd_*+test2_*.deb")
    assert "# newer" in machine(f"cat {CONFIG}")
    assert machine("ls /etc/aitbcd") == "aitbcd.toml\n"
    # The next test has one of its own.
    apt(machine, "purge aitbcd")


def test_an_upgrade_to_what_does_not_run_says_what_to_do(machine: Machine) -> None:
    machine("systemctl stop aitbcd && echo no >/var/lib/aitbcd/gpus.json")
    said = apt(machine, "install --reinstall /root/aitbcd_*+test2_*.deb")
    assert "aitbcd: it does not run. Why, and what to do: aitbcctl doctor" in said
    assert "gpus.json" in machine("aitbcctl doctor || :")
    machine("rm /var/lib/aitbcd/gpus.json && systemctl restart aitbcd")
    serves(machine)


def test_removing_it_ends_jobs_and_keeps_what_a_new_installation_finds(machine: Machine) -> None:
    done = submit(machine, "echo kept")
    assert until(machine, done, "completed", "failed")["status"] == "completed"
    lost, waiting = gated(machine), submit(machine, "true", options="--cpus 2")
    said = apt(machine, "remove aitbcd")
    assert "ends what runs" in said
    assert machine.code("pgrep --uid ada --full /tmp/gate") == 1
    assert machine("ps -o pid= -u aitbcd", check=False) == ""
    assert machine.code("test -e /run/aitbcd") == 1
    assert machine.code(f"test -e /var/lib/aitbcd/results/{done}/result.txt") == 0
    assert machine("systemctl --failed --no-legend --plain") == ""
    # Whoever forbids services to start has said so.
    machine(
        "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d"
    )
    install(machine, "test2")
    assert machine("systemctl is-active aitbcd aitbcd.socket", check=False) == "inactive\n" * 2
    machine("rm /usr/sbin/policy-rc.d; systemctl start aitbcd")
    serves(machine)
    assert machine(f"aitbcctl logs {done}", user="ada") == "kept\n"
    ended = until(machine, lost, "failed", "completed")
    assert (ended["reason"], "was stopped" in ended["message"]) == ("lost", True)
    assert until(machine, waiting, "completed", "failed")["status"] == "completed"
    numbers = [
        job["number"] for job in json.loads(machine("aitbcctl list --json", user="ada"))["jobs"]
    ]
    assert numbers == sorted(set(numbers), reverse=True)


def test_the_commands_of_the_guide_do_what_they_say(machine: Machine) -> None:
    apt(machine, "purge aitbcd")
    machine("mkdir -p /root/dist && cp /root/aitbcd_*+test2_*.deb /root/dist")
    for line in documented()[1:]:
        machine(f"cd /root && {line.replace('apt ', 'apt --yes --quiet ')}")
    assert machine.code("test -e /var/lib/aitbcd") == 1


def test_the_readme_installs_it_as_the_guide_does() -> None:
    (block,) = blocks("README.md", "Install", "console")
    assert [line.removeprefix("sudo ") for line in typed(block)] == documented()[:2]


def test_an_installation_by_pip_is_not_shadowed(machine: Machine) -> None:
    apt(machine, "remove aitbcd")
    unit = machine.root / "etc/systemd/system/aitbcd.service"
    unit.write_text(
        "# Written by 'aitbcd install'. To change it, use 'systemctl edit'.\n"
        '[Service]\nExecStart="/opt/aitbcd/bin/aitbcd" --separate-launcher\n'
    )
    said = machine("apt-get --yes --quiet install /root/aitbcd_*+test2_*.deb || :")
    assert "all results stay: /opt/aitbcd/bin/aitbcd uninstall" in " ".join(said.split())
    assert machine.code("dpkg --status aitbcd | grep -q '^Status: .* installed'") == 1
    unit.unlink()
    machine("systemctl daemon-reload")
    apt(machine, "install /root/aitbcd_*+test2_*.deb")
    serves(machine)


def test_nothing_is_left_of_a_purge_while_it_runs(machine: Machine, untouched: set[str]) -> None:
    gated(machine)
    machine("install -m 640 -g aitbcd /dev/null /etc/aitbcd/tls-key.pem")
    # What somebody mounted there is his.
    disk = "/var/lib/aitbcd/disk"
    machine(f"mkdir {disk} && mount -t tmpfs disk {disk} && touch {disk}/mine")
    # What the daemon's user puts in the place of a folder of root's is not followed.
    swap = "cd /var/lib/aitbcd && mv run away && ln -s /home/bob run"
    machine(f"runuser -u aitbcd -- sh -c '{swap}'")
    said = machine("apt-get --yes --quiet purge aitbcd </dev/null")
    assert "something is mounted below /var/lib/aitbcd; unmount it and remove the folder" in said
    assert machine("find /var/lib/aitbcd").split() == ["/var/lib/aitbcd", disk, f"{disk}/mine"]
    assert machine.code("test -e /home/bob/.profile") == 0
    machine(f"umount {disk} && rm -r /var/lib/aitbcd")
    assert names(machine) - untouched == set()
    assert machine("find /var /run -xdev -name '*aitbc*' -not -path '/var/cache/*'") == ""
    for line in ("passwd aitbcd", "group aitbcd", "group aitbc", "group aitbc-admin"):
        assert machine(f"getent {line}", check=False) == "", line
    assert machine("systemctl list-units --all --no-legend 'aitbc*'") == ""
    assert machine.code("pgrep --uid ada --full /tmp/gate") == 1
