"""Jobs in cgroups with controllers: on a machine that has them all, as its people see it.

An emulated machine, so what can be asked at once is, and all tests have the same one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.machine import submit, until
from tests.service import wait_for
from tests.vm import VirtualMachine

pytestmark = pytest.mark.vm

UNIT = "/sys/fs/cgroup/system.slice/aitbcd-jobs.service"
MIB = 1 << 20
PROCESSES = 100
#: Of the machine's gigabyte.
SHARED_MIB = 500
CONFIG = (
    f'[jobs]\ncancel_grace = "1s"\nprocesses = {PROCESSES}\n[slots]\nmemory = "{SHARED_MIB}M"\n'
)
PREPARE = (
    f"mkdir /etc/aitbcd && printf '%s' '{CONFIG}' > /etc/aitbcd/aitbcd.toml"
    " && useradd --create-home --shell /bin/sh --groups aitbc ada"
)
#: A job that says what limits it, and tries to leave that.
LOOK = f"""
cd {UNIT}/$AITBC_JOB_ID.$AITBC_ATTEMPT &&
grep -H . memory.max memory.swap.max memory.oom.group memory.high cpu.weight pids.max
for folder in . .. ../supervisors ../../../user.slice; do
    (echo $$ > $folder/cgroup.procs) 2> /dev/null && echo left
done
(echo max > memory.max) 2> /dev/null && echo raised
cat /proc/self/cgroup
"""
#: Runs until the gate is open; what it leaves has nothing in common with it but its cgroup.
LASTING = """
trap "" TERM
env -i setsid sh -c "trap \\"\\" TERM; setsid sleep 1000 & exec sleep 1000" &
until test -e /tmp/gate; do sleep 0.2; done
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[VirtualMachine]:
    with VirtualMachine(PREPARE) as made:
        yield made


@pytest.fixture(autouse=True)
def _all_is_well(machine: VirtualMachine) -> Iterator[None]:
    yield
    assert machine("systemctl --failed --no-legend --plain; rm -f /tmp/gate") == ""
    assert cgroups(machine) == []


def ended(machine: VirtualMachine, job: str) -> dict[str, Any]:
    return until(machine, job, "completed", "failed", "canceled")


def cgroups(machine: VirtualMachine) -> list[str]:
    return machine(f"cd {UNIT} && ls -d job_* 2>/dev/null || :").split()


def members(machine: VirtualMachine, job: str) -> list[str]:
    return machine(f"cat {UNIT}/{job}.*/cgroup.procs 2>/dev/null || :").split()


def lasting(machine: VirtualMachine, options: str = "") -> str:
    job = submit(machine, LASTING, options=options)
    wait_for("all of it is there", lambda: len(members(machine, job)) == 4)
    return job


def test_a_job_has_the_limits_that_it_asked_for(machine: VirtualMachine) -> None:
    plain = submit(machine, LOOK)
    asking = submit(machine, LOOK, options="--memory 200M --cpus 2")
    ended(machine, plain)
    ended(machine, asking)
    said = machine(f"aitbcctl logs {plain}; aitbcctl logs {asking}", user="ada")
    assert re.findall(r"^(\S+):(\w+)$", said, re.M) == [
        ("memory.max", "max"),
        ("memory.swap.max", "max"),
        ("memory.oom.group", "1"),
        ("memory.high", str(SHARED_MIB * MIB)),
        ("cpu.weight", "10"),
        ("pids.max", str(PROCESSES)),
        ("memory.max", str(200 * MIB)),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("memory.high", "max"),
        ("cpu.weight", "20"),
        ("pids.max", str(PROCESSES)),
    ]
    assert not re.search("^(left|raised)$", said, re.M)
    assert f"0::/system.slice/aitbcd-jobs.service/{plain}.1\n" in said
    assert "OK    cgroups: jobs have their own, with cpu, cpuset, memory, pids" in machine(
        "aitbcctl doctor"
    )


def test_who_takes_too_much_ends_himself_and_not_his_neighbour(machine: VirtualMachine) -> None:
    neighbour = lasting(machine)
    # The shell is not the one that takes it, and ends all the same.
    taking = submit(
        machine, 'python3 -c "bytes(range(256)) * (1 << 20)"; echo survived', options="--memory 60M"
    )
    forking = submit(machine, "bomb() { bomb | bomb & }; bomb; while :; do sleep 1000 & done")
    ended_taking, ended_forking = ended(machine, taking), ended(machine, forking)
    assert (ended_taking["reason"], ended_taking["signal"]) == ("signal", 9)
    assert ended_taking["cause"] == "host_oom"
    details = json.loads(machine(f"aitbcctl get {taking} --json", user="ada"))
    assert 50 * MIB < details["attempts"][0]["memory_peak"] <= 60 * MIB
    assert "survived" not in machine(f"aitbcctl logs {taking}", user="ada")
    assert ended_forking["status"] == "failed"
    assert "as many processes and threads as one job may have" in ended_forking["message"]
    assert members(machine, forking) == []
    assert len(members(machine, neighbour)) == 4
    machine("touch /tmp/gate")
    assert ended(machine, neighbour)["status"] == "completed"


def test_who_asks_for_no_memory_leaves_the_rest_of_it_to_the_machine(
    machine: VirtualMachine,
) -> None:
    # In files, which it needs to keep in memory no more than anybody else's.
    job = submit(
        machine, "for each in 1 2 3; do dd if=/dev/zero of=file$each bs=1M count=200; done"
    )
    assert ended(machine, job)["status"] == "completed"
    details = json.loads(machine(f"aitbcctl get {job} --json; rm ~ada/file*", user="ada"))
    assert details["attempts"][0]["memory_peak"] < (SHARED_MIB + 50) * MIB


def test_restarts_leave_cgroups_and_what_is_in_them_alone(machine: VirtualMachine) -> None:
    job = lasting(machine)
    before = set(members(machine, job))
    machine("systemctl restart aitbcd-launcher aitbcd")
    # All but the sleep between two looks at the gate.
    assert len(before & set(members(machine, job))) == 3
    assert cgroups(machine) == [f"{job}.1"]
    machine("touch /tmp/gate")
    assert ended(machine, job)["status"] == "completed"
    assert machine(f"ps --no-headers {' '.join(before)} || :") == ""


def test_what_a_killed_supervisor_left_is_found_by_its_cgroup(machine: VirtualMachine) -> None:
    job = lasting(machine)
    left = set(members(machine, job))
    # Nobody is left whose child it could become.
    # One that is idle ends by itself, so no list of them stays true.
    machine(f"systemctl stop aitbcd-launcher; echo 1 > {UNIT}/supervisors/cgroup.kill")
    assert len(left & set(members(machine, job))) == 3
    machine("systemctl start aitbcd-launcher")
    assert ended(machine, job)["reason"] == "lost"
    assert machine(f"ps --no-headers {' '.join(left)} || :") == ""


def test_the_end_of_the_unit_ends_jobs_in_order_and_it_starts_again(
    machine: VirtualMachine,
) -> None:
    lost, retried = lasting(machine), lasting(machine, "--retries 1")
    left = members(machine, lost)
    machine("systemctl stop aitbcd-jobs")
    assert machine(f"ps --no-headers {' '.join(left)} || :") == ""
    assert machine.code(f"test -e {UNIT}") == 1
    machine("systemctl start aitbcd-jobs")
    assert "was stopped" in ended(machine, lost)["message"]
    wait_for("it runs again", lambda: members(machine, retried))
    # What holds it is killed: systemd starts it anew, which it could not with controllers in use.
    machine("systemctl kill --kill-who=main --signal KILL aitbcd-jobs")
    assert ended(machine, retried)["reason"] == "lost"
    machine("touch /tmp/gate")
    assert ended(machine, submit(machine, LASTING))["status"] == "completed"


def test_a_job_can_be_bound_to_cores(machine: VirtualMachine) -> None:
    """There are no GPUs here that it could be near to."""
    folder = f"{UNIT}/job_00000000.1"
    machine(
        "python3 -I -c '"
        'import sys; sys.path.append("/opt/aitbcd/source");'
        "from aitbcd.launcher.jobgroup import JobGroup;"
        f'made = JobGroup.create("{folder}", {{"cpus": 1, "near": [1]}}); assert made.is_bound\''
    )
    assert machine(f"cat {folder}/cpuset.cpus.effective; rmdir {folder}") == "1\n"


def test_a_reboot_leaves_nothing_and_the_queue_goes_on(machine: VirtualMachine) -> None:
    lost, waiting = lasting(machine), submit(machine, LOOK, options="--cpus 2")
    machine("systemctl reboot")
    machine.rebooted()
    assert until(machine, lost, "failed")["reason"] == "lost"
    assert ended(machine, waiting)["status"] == "completed"
    assert f"{waiting}.1\n" in machine(f"aitbcctl logs {waiting}", user="ada")
