"""What ``aitbcctl doctor`` looks at: each check yields findings, and none of them changes anything.

A check that the daemon has to answer is left out where it does not; that is a finding itself.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from aitbcctl import custody
from aitbcctl.client import Client
from aitbcctl.findings import FAIL, OK, WARN, Finding
from aitbcd import __version__, certificate, paths, settings
from aitbcd.errors import AitbcError, SettingsError
from aitbcd.units import format_size

Json = dict[str, Any]

_UNITS = ("aitbcd.socket", "aitbcd.service", "aitbcd-launcher.service", "aitbcd-jobs.service")
#: An extra, which a taken port may cost.
_EXTRA_UNITS = ("aitbcd-tcp.socket",)
#: What "aitbcd install --user" has one's own systemd start.
_OWN_UNITS = ("aitbcd.service", "aitbcd-launcher.service", "aitbcd-jobs.service")
_JOBS_UNIT = "aitbcd-jobs.service"
#: As systemctl(1) shows a time.
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_PROPERTIES = "LoadState,ActiveState,SubState,Result"
_LINGERING = "/var/lib/systemd/linger"
#: Below this much free a machine is about to stop starting jobs.
_LITTLE_BYTES = 2 << 30
_FEW_INODES = 10_000
_PAGE = 200
#: What is missing without a controller.
_CONTROLLERS = {
    "cpu": "--cpus gives no share of cores that are in demand",
    "cpuset": "jobs can leave the cores near their GPUs",
    "memory": "--memory is no limit",
    "pids": "[jobs] processes counts all processes of a user",
}


def look(client: Client) -> Iterator[Finding]:
    """Yield all findings, in the order in which to read them."""
    yield from _units()
    try:
        health = client.get("/healthz")
        mine = client.get("/v1/jobs", limit=1)
    except AitbcError as error:
        yield from _configuration(_configuration_here())
        yield Finding("daemon", FAIL, error.detail, error.hint)
        yield from custody.look(_state_here())
        return
    yield from _configuration(_configuration_of(health))
    yield from _daemon(health, mine)
    yield from _cgroups(health)
    state = health.get("state_dir")
    if state is not None:
        yield from custody.look(Path(state))
        yield from _disk(state)
        yield from _orphans(client, state)
    for check in (_clock, _gpus):
        yield from _asked(check, client)


def _state_here() -> Path:
    """Return the state directory of a daemon of ours where there is one, or the system's."""
    own = paths.resolve(environ=os.environ, uid=os.getuid()).state
    return own if own.exists() else Path(paths.SYSTEM_STATE)


def _asked(check: Callable[[Client], Iterable[Finding]], client: Client) -> Iterator[Finding]:
    try:
        yield from check(client)
    except AitbcError as error:
        yield Finding(check.__name__.strip("_"), FAIL, error.detail, error.hint)


def _units() -> Iterator[Finding]:
    if not os.path.isdir("/run/systemd/system") or not shutil.which("systemctl"):
        return
    for unit in (*_UNITS, *_EXTRA_UNITS):
        yield from _unit("systemctl", unit)
    if os.getuid() == 0:
        return
    own = [finding for unit in _OWN_UNITS for finding in _unit("systemctl --user", unit)]
    yield from own
    if own:
        yield from _lingering()


def _unit(systemctl: str, unit: str) -> Iterator[Finding]:
    """Yield how a unit does, if there is one."""
    said = _ask(systemctl, unit, _PROPERTIES)
    about = f"your {unit}" if "--user" in systemctl else unit
    state = WARN if unit in _EXTRA_UNITS else FAIL
    # A socket is not started beside the service that it is for; the service starts it.
    start = f"{systemctl} {'restart aitbcd' if unit.endswith('.socket') else f'start {unit}'}"
    loaded, now = said.get("LoadState"), said.get("ActiveState")
    if loaded in (None, "not-found"):
        return
    if loaded == "masked":
        # Whoever wants no TCP does so.
        if unit not in _EXTRA_UNITS:
            words = "it is masked, so that it does not start"
            yield Finding(about, state, words, f"{systemctl} unmask {unit} && {start}")
    elif loaded != "loaded":
        hint = f"what is wrong in it: systemd-analyze verify {unit}"
        yield Finding(about, state, f"systemd cannot read it ({loaded})", hint)
    elif now == "active":
        yield Finding(about, OK, f"{now} ({said.get('SubState')})")
    else:
        why = said.get("Result" if now == "failed" else "SubState")
        hint = f"{start}; why it does not run: {systemctl} status {unit}"
        yield Finding(about, state, f"{now} ({why})", hint)


def _ask(systemctl: str, unit: str, properties: str) -> dict[str, str]:
    """Return what systemd says of a unit; nothing where there is no systemd."""
    try:
        done = subprocess.run(
            [*systemctl.split(), "show", f"--property={properties}", unit],
            # su(1) and cron(8) leave it out.
            env={"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"} | os.environ,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return {}
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _lingering() -> Iterator[Finding]:
    name = pwd.getpwuid(os.getuid()).pw_name
    if os.path.exists(f"{_LINGERING}/{name}"):
        yield Finding("lingering", OK, "your daemon and its jobs go on when you log out")
    else:
        hint = f"loginctl enable-linger; or root for you: loginctl enable-linger {name}"
        yield Finding("lingering", WARN, "your jobs end when you log out", hint)


def _configuration_here() -> Path:
    """Return the configuration of a daemon of ours where there is one, or the system's."""
    own = paths.resolve(environ=os.environ, uid=os.getuid())
    system = Path(paths.SYSTEM_CONFIG)
    if own.config_is_named or own.config.exists() or not system.exists():
        return own.config
    return system


def _configuration_of(health: Json) -> Path:
    """Return the file that the daemon reads which answers: ours, or that of the system's."""
    own = paths.resolve(environ=os.environ, uid=os.getuid())
    try:
        is_ours = os.stat(health["state_dir"]).st_uid == os.getuid()
    except (KeyError, TypeError, OSError):
        return _configuration_here()
    return own.config if is_ours or own.config_is_named else Path(paths.SYSTEM_CONFIG)


def _configuration(path: Path) -> Iterator[Finding]:
    """Look whether it is right, where there is one."""
    if not path.exists():
        yield Finding("configuration", OK, f"there is no {path}, so all is as it comes")
        return
    try:
        read = settings.load(path)
    except SettingsError as error:
        yield Finding("configuration", FAIL, error.detail, error.hint)
        return
    if refusal := custody.refusal(path):
        yield Finding("configuration", FAIL, refusal.detail, refusal.hint)
    else:
        yield Finding("configuration", OK, f"{path} is right")
    yield from _certificate(read.server)
    if path == Path(paths.SYSTEM_CONFIG):
        yield from _grace(read.jobs.cancel_grace_s)


def _grace(grace_s: float) -> Iterator[Finding]:
    """Look whether jobs have it, too, when the machine is shut down."""
    about = _ask("systemctl", _JOBS_UNIT, "LoadState,TimeoutStopUSec")
    shown = about.get("TimeoutStopUSec", "infinity")
    parts = re.findall(r"([\d.]+)([a-z]+)", shown)
    most_s = sum(float(number) * _SECONDS.get(unit, 0) for number, unit in parts)
    if about.get("LoadState") == "loaded" and parts and most_s <= grace_s:
        said = (
            f"[jobs] cancel_grace is {grace_s:g} s, and at a shutdown jobs are killed after {shown}"
        )
        hint = f"systemctl edit {_JOBS_UNIT}: [Service], TimeoutStopSec={grace_s + 60:.0f}"
        yield Finding(_JOBS_UNIT, WARN, said, hint)


def _certificate(server: settings.Server) -> Iterator[Finding]:
    """Look at what TCP is encrypted with, where it is and may be read."""
    if not server.certificate_files or not all(
        os.access(path, os.R_OK) or not os.path.exists(path) for path in server.certificate_files
    ):
        return
    try:
        found = certificate.load(*server.certificate_files)
    except SettingsError as error:
        yield Finding("certificate", FAIL, error.detail, error.hint)
        return
    doubts = list(found.doubts(time.time()))
    for doubt in doubts:
        yield Finding("certificate", WARN, f"{server.tls_cert}: {doubt}")
    if not doubts:
        names = ", ".join(found.names)
        yield Finding("certificate", OK, f"{server.tls_cert} is right, for {names}")


def _daemon(health: Json, mine: Json) -> Iterator[Finding]:
    version = health.get("version")
    if version == __version__:
        yield Finding("daemon", OK, f"version {version} answers, and serves you")
    else:
        hint = "restart the older one; jobs go on: systemctl restart aitbcd"
        yield Finding("daemon", WARN, f"it is {version}, and this program {__version__}", hint)
    if "launcher_pid" not in health:
        return
    if pid := health["launcher_pid"]:
        said = health.get("launcher_version")
        if said in (None, version):
            yield Finding("launcher", OK, f"it is there, pid {pid}")
        else:
            hint = (
                "restart it; jobs go on: systemctl restart aitbcd-launcher"
                " (your own: systemctl --user restart ...)"
            )
            yield Finding("launcher", WARN, f"it is {said}, and the daemon {version}", hint)
    else:
        hint = "start it: systemctl start aitbcd-launcher (your own: systemctl --user start ...)"
        yield Finding("launcher", FAIL, "there is none, so that no job starts", hint)


def _cgroups(health: Json) -> Iterator[Finding]:
    seen = health.get("cgroups")
    if seen is None:
        return
    folder = seen["folder"]
    if folder is None:
        said = "jobs have none of their own here, so that --memory and --cpus limit nothing"
        if health.get("state_dir") == paths.SYSTEM_STATE:
            hint = "use the units of systemd, and boot with systemd.unified_cgroup_hierarchy=1"
            yield Finding("cgroups", WARN, said, hint)
        else:
            yield Finding("cgroups", OK, said)
        return
    missing = [name for name in _CONTROLLERS if name not in seen["controllers"]]
    if not missing:
        yield Finding("cgroups", OK, f"jobs have their own, with {', '.join(seen['controllers'])}")
        return
    said = "; ".join(f"no {name}: {_CONTROLLERS[name]}" for name in missing)
    yield Finding("cgroups", WARN, f"jobs have their own, but {said}", _get(folder, missing))


def _get(folder: str, controllers: list[str]) -> str:
    """Return how jobs get these controllers."""
    try:
        given = Path(folder, "cgroup.controllers").read_text().split()
    except OSError:
        given = []
    if set(given) & set(controllers):
        return f"let {folder} hold no process itself: DelegateSubgroup= of systemd.resource-control"
    return "the kernel, a container or Delegate= of a unit above keeps them: see /proc/cgroups"


def _disk(state: str) -> Iterator[Finding]:
    try:
        about = os.statvfs(state)
    except OSError as error:
        yield Finding("disk", WARN, f"{state} cannot be looked at: {error.strerror}")
        return
    free = about.f_bavail * about.f_frsize
    said = f"{format_size(free)} free for results in {state}"
    hint = "see whose results take it: aitbcctl stats --all; delete some, or shorten a retention"
    few = about.f_files and about.f_favail < _FEW_INODES
    if few:
        yield Finding("disk", WARN, f"{about.f_favail} files can still be made in {state}", hint)
    elif free < _LITTLE_BYTES:
        yield Finding("disk", WARN, said, hint)
    else:
        yield Finding("disk", OK, said)


def _clock(client: Client) -> Iterator[Finding]:
    if stop := client.get("/v1/retention", limit=1).get("stopped"):
        hint = "set the clock right, or say that it is: aitbcctl retention resume"
        yield Finding("clock", FAIL, f"nothing expires: {stop['reason']}", hint)
    else:
        yield Finding("clock", OK, "it agrees with how long the machine has run")


def _gpus(client: Client) -> Iterator[Finding]:
    seen = client.get("/v1/gpus")
    if problem := seen.get("problem"):
        yield Finding("gpus", OK if not seen["gpus"] else FAIL, problem)
    for gpu in seen["gpus"]:
        if problem and gpu.get("reason") == problem:
            continue
        about = f"gpu {gpu['index']}"
        if gpu["state"] in ("free", "busy"):
            yield Finding(about, OK, f"{gpu['name']}: {gpu['state']}")
        else:
            state = FAIL if gpu["state"] in ("lost", "quarantined") else WARN
            detail = f"{gpu['name']} is {gpu['state']}: {gpu.get('reason') or 'no reason is known'}"
            yield Finding(about, state, detail, "see aitbcctl gpus")


def _orphans(client: Client, state: str) -> Iterator[Finding]:
    """Look for processes of jobs that are over: the daemon's own, as far as we may see them."""
    marks = list(_marked(os.fsencode(f"{state}/results/.")))
    # Asked afterwards, so that what has just ended is not taken for an orphan.
    active = _active(client)
    left = [f"{pid} of {job}" for pid, job in marks if job not in active and _lives(pid)]
    if left:
        hint = "end them: kill PID; and please report how they came to be"
        yield Finding("orphans", WARN, f"of jobs that are over: {', '.join(left[:20])}", hint)
    else:
        whose = "" if os.getuid() == 0 else " of yours"
        yield Finding("orphans", OK, f"no process{whose} is left of a job that is over")


def _active(client: Client) -> set[str]:
    found: set[str] = set()
    after: str | None = None
    while True:
        page = client.get("/v1/queue", limit=_PAGE, **({"after": after} if after else {}))
        found.update(job["job_id"] for job in page["jobs"] if job["status"] != "pending")
        after = page["next"]
        # Running ones come first.
        if after is None or any(job["status"] == "pending" for job in page["jobs"]):
            return found


def _marked(ours: bytes) -> Iterator[tuple[int, str]]:
    """Yield processes whose environment says that they are of a job of this daemon."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            words = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        said = dict(word.split(b"=", 1) for word in words if b"=" in word)
        if b"AITBC_JOB_ID" in said and said.get(b"AITBC_RESULT", b"").startswith(ours):
            yield int(name), said[b"AITBC_JOB_ID"].decode("utf-8", "replace")


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
