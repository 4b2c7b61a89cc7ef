"""Sealing on real folders: what a package holds, what it leaves alone, and what a kill leaves.

Most tests run three times: as ourselves, as a second user, and as root for a second user. What the
job left is made by who the job would be.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aitbcd import manifest
from aitbcd.launcher import package, protocol, seal
from aitbcd.launcher.identity import Identity, do_as
from aitbcd.launcher.linux import punch_hole, set_mode

JOB = "job_7k3m9q2x"
IS_ROOT = os.getuid() == 0
SAMPLES = b"time,gpu\n2026-02-13T10:00:00Z,GPU-a\n"
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root: only it can be somebody else")
Json = dict[str, Any]


@pytest.fixture(scope="module")
def other() -> Iterator[Identity]:
    name = f"aitbcd-s{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", name], check=True)
    user = pwd.getpwnam(name)
    yield Identity(user.pw_uid, user.pw_gid, name)
    subprocess.run(["userdel", name], check=True, capture_output=True)


class Case:
    """A results folder and the working directory of one job, whose user is ``owner``.

    ``is_for_him``: root seals for the owner; else the owner does all himself.
    """

    def __init__(self, folder: Path, owner: Identity | None, *, is_for_him: bool) -> None:
        self.folder = folder
        self.results = folder / "results"
        self.cwd = folder / "cwd"
        self.building = self.results / f".{JOB}"
        self.sealed = self.results / JOB
        self.logs = self.building / "logs"
        self.artifacts = self.building / "artifacts"
        self.owner = owner
        self._sealer = None if is_for_him else owner
        self._for = owner if is_for_him else None
        self.is_by_root = IS_ROOT and self._sealer is None
        folder.chmod(0o711)
        for made in (self.results, self.cwd):
            made.mkdir(mode=0o711)
        if owner:
            os.chown(self.cwd, owner.uid, owner.gid)
            if not is_for_him:
                os.chown(self.results, owner.uid, owner.gid)
        self.fd = os.open(self.results, os.O_RDONLY | os.O_DIRECTORY)
        run_folder = folder / "run"
        run_folder.mkdir(mode=0o700)
        if owner and not is_for_him:
            os.chown(run_folder, owner.uid, owner.gid)
        #: A memfd of samples, where there are some.
        self.samples: int | None = None
        #: Where sealings note what they have left out.
        self.run_fd = os.open(run_folder, os.O_RDONLY | os.O_DIRECTORY)
        self.create()

    def create(self) -> None:
        def action() -> Json:
            package.create(self.fd, JOB, self._for).close()
            return {}

        do_as(self._sealer, action, 60)

    def job(self, *steps: Callable[[], object]) -> None:
        """Do something as the job's user."""

        def action() -> Json:
            os.umask(0o022)
            # In this process, when the job's user is ours.
            before = Path.cwd()
            try:
                for step in steps:
                    step()
            finally:
                os.chdir(before)
            return {}

        do_as(self.owner, action, 60)

    def order(self, *artifacts: str, **more: Any) -> Json:
        uid, gid, user = self.owner or Identity(os.getuid(), os.getgid(), "")
        return {
            "job": JOB,
            "attempt": 1,
            "uid": uid,
            "gid": gid,
            "user": user,
            "cwd": str(self.cwd),
            "artifacts": list(artifacts),
            "log_limit": 1 << 20,
            "output": {"format": 1, "attempt": 1},
            **more,
        }

    def seal(self, *artifacts: str, **more: Any) -> Json:
        return self.seal_again(self.order(*artifacts, **more))

    def seal_again(self, order: Json) -> Json:
        """Seal; afterwards nothing of an earlier sealing is noted."""
        report = do_as(
            self._sealer, lambda: seal.seal(self.fd, order, self.run_fd, samples=self.samples), 60
        )
        (self.folder / "run" / protocol.LEFT_OUT).unlink(missing_ok=True)
        return report

    def sealed_files(self, *artifacts: str, **more: Any) -> list[str]:
        """Seal, check the package, and return the names of its artifacts."""
        report = self.seal(*artifacts, **more)
        found = self.check(report)
        prefix = b"artifacts/"
        names = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
        return sorted(name.decode("utf-8", "backslashreplace") for name in names)

    def output(self) -> Json:
        found: Json = json.loads((self.sealed / "output.json").read_bytes())
        return found

    def left_out(self) -> dict[str, str]:
        return {str(entry["path"]): entry["why"] for entry in self.output()["left_out"]}

    def check(self, report: Json) -> dict[bytes, str]:
        """Assert that the package is whole and read-only; return its manifest."""
        assert not self.building.exists()
        text = (self.sealed / manifest.FILE_NAME).read_bytes()
        assert hashlib.sha256(text).hexdigest() == report["digest"]
        command = ["sha256sum", "--check", "--strict", "--quiet", manifest.FILE_NAME]
        subprocess.run(command, cwd=self.sealed, check=True)
        uid = self.owner.uid if self.owner else os.getuid()
        present = set()
        for path in self._walk():
            about = path.lstat()
            assert about.st_uid == uid, path
            assert stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode), path
            assert not about.st_mode & (0o222 | stat.S_ISUID | stat.S_ISVTX), path
            if stat.S_ISREG(about.st_mode):
                assert not about.st_mode & stat.S_ISGID, path
                present.add(os.fsencode(path.relative_to(self.sealed)))
        stated = manifest.parse(text)
        assert present == {*stated, manifest.FILE_NAME.encode()}
        assert {b"result.txt", b"logs/stdout.log", b"logs/stderr.log"} <= present
        output = self.output()
        assert len(output["files"]) == len(stated) - 1
        assert report["files"] == len(present)
        once = {(about.st_ino, about.st_size) for about in map(os.lstat, self._files())}
        assert report["bytes"] == sum(size for _, size in once)
        return stated

    def _files(self) -> list[Path]:
        return [path for path in self._walk() if path.is_file()]

    def _walk(self) -> Iterator[Path]:
        yield self.sealed
        for root, folders, files in os.walk(self.sealed):
            for name in (*folders, *files):
                yield Path(root) / name


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can reach."""
    made = Path(tempfile.mkdtemp(prefix="aitbcd-seal-"))
    yield made
    subprocess.run(["chmod", "-R", "u+rwx", made], check=False, capture_output=True)
    shutil.rmtree(made)


@pytest.fixture(params=["self", "user", "for_user"])
def case(request: pytest.FixtureRequest, folder: Path) -> Case:
    if request.param == "self":
        return Case(folder, None, is_for_him=False)
    if not IS_ROOT:
        pytest.skip("needs root: only it can be somebody else")
    return Case(folder, request.getfixturevalue("other"), is_for_him=request.param == "for_user")


@pytest.fixture
def mine(folder: Path) -> Case:
    return Case(folder, None, is_for_him=False)


# -- what is in it ------------------------------------------------------------------------------


def test_a_job_that_wrote_no_result_has_stdout_log_as_its_result(case: Case) -> None:
    case.job(lambda: (case.logs / "stdout.log").write_text("out\n"))
    assert case.sealed_files() == []
    both = (case.sealed / "result.txt", case.sealed / "logs/stdout.log")
    assert both[0].read_text() == "out\n"
    assert both[0].samefile(both[1])
    assert [path.stat().st_nlink for path in both] == [2, 2]


def test_a_result_of_its_own_stays(case: Case) -> None:
    case.job(
        lambda: (case.logs / "stdout.log").write_text("out\n"),
        lambda: (case.building / "result.txt").write_text("42\n"),
    )
    case.sealed_files()
    assert (case.sealed / "result.txt").read_text() == "42\n"
    assert (case.sealed / "logs/stdout.log").read_text() == "out\n"


def test_names_of_any_bytes_are_escaped_and_told(case: Case) -> None:
    names = [b"new\nline", b"back\\slash", b"'quotes' \"both\"", b"\xff\xfe", b"\r", b" ", b"-rf"]

    def make() -> None:
        for name in names:
            path = os.path.join(os.fsencode(case.artifacts), name)
            os.mkdir(path)
            with open(os.path.join(path, name), "wb") as file:
                file.write(name)

    case.job(make)
    report = case.seal()
    stated = case.check(report)
    assert {b"artifacts/" + name + b"/" + name for name in names} <= set(stated)
    shown = [entry["path"] for entry in case.output()["files"]]
    assert "artifacts/new\nline/new\nline" in shown
    assert {"b64": "YXJ0aWZhY3RzL//+L//+"} in shown


@pytest.mark.parametrize("planted", ["file", "folder", "link", "read-only"])
def test_samples_of_gpus_are_the_daemons_whatever_the_job_left_there(
    case: Case, planted: str
) -> None:
    case.samples = protocol.sealed_memory(SAMPLES)
    case.job(lambda: _plant(case.logs / "gpu.csv", planted))
    stated = case.check(case.seal())
    assert stated[b"logs/gpu.csv"] == hashlib.sha256(SAMPLES).hexdigest()
    assert (case.sealed / "logs/gpu.csv").read_bytes() == SAMPLES
    assert case.left_out() == {}


def test_a_job_without_gpus_has_no_samples(case: Case) -> None:
    case.job(lambda: _plant(case.logs / "gpu.csv", "file"))
    assert b"logs/gpu.csv" not in case.check(case.seal())
    assert case.left_out() == {"logs/gpu.csv": "its name is for the samples of the job's GPUs"}


def _plant(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
        (path / "file").touch()
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    else:
        path.write_text("planted")
    if kind == "read-only":
        path.chmod(0o400)
        path.parent.chmod(0o500)


def test_what_is_no_samples_of_a_daemon_is_left_out(case: Case) -> None:
    reading, writing = os.pipe()
    changing = os.memfd_create("changing")
    os.write(changing, SAMPLES)
    for number, fd in enumerate((reading, changing), 1):
        case.samples = fd
        assert b"logs/gpu.csv" not in case.check(case.seal(attempt=number))
        assert case.left_out() == {"logs/gpu.csv": "samples that could still change"}
        subprocess.run(["chmod", "-R", "u+w", case.sealed], check=True)
        shutil.rmtree(case.sealed)
        case.create()
    for fd in (reading, writing, changing):
        os.close(fd)


def test_only_regular_files_stay(case: Case) -> None:
    def make() -> None:
        os.chdir(case.artifacts)
        os.symlink("/etc/passwd", "link")
        os.symlink("/etc", "folder-link")
        os.mkfifo("fifo")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("socket")
        Path("file").write_text("stays")
        Path("empty").mkdir()

    case.job(make)
    odd = ["link", "folder-link", "fifo", "socket"]
    if IS_ROOT:
        os.mknod(case.artifacts / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        odd.append("device")
        os.mknod(case.artifacts / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 0))
        odd.append("disk")
    assert case.sealed_files() == ["file"]
    assert case.left_out() == {f"artifacts/{name}": "not a regular file" for name in odd}
    assert (case.sealed / "artifacts/empty").is_dir()


def test_set_id_bits_go_and_execute_bits_stay(case: Case) -> None:
    def make() -> None:
        for mode in (0o4755, 0o2755, 0o1644, 0o7777, 0o755):
            path = case.artifacts / f"{mode:o}"
            path.write_text("x")
            path.chmod(mode)

    case.job(make)
    case.sealed_files()
    assert (case.sealed / "artifacts/755").stat().st_mode & 0o7777 == 0o550
    assert (case.sealed / "artifacts/1644").stat().st_mode & 0o7777 == 0o440


def test_all_of_a_package_is_of_the_group_that_reads_it(case: Case) -> None:
    """However it came there: the daemon is of that group, and not of the user's."""

    def make() -> None:
        for name in ("tree/below", "moved/below"):
            (case.cwd / name).mkdir(parents=True)
            (case.cwd / name / "file").write_text("x")
        (case.cwd / "result").write_text("answer")
        case.artifacts.chmod(0o755)
        (case.artifacts / "made").mkdir()
        (case.artifacts / "made" / "file").write_text("x")
        (case.cwd / "moved").rename(case.artifacts / "moved")
        (case.cwd / "result").rename(case.building / "result.txt")
        case.building.chmod(0o755)

    case.job(make)
    case.seal("tree/*")
    found = [case.sealed, *case.sealed.rglob("*")]
    assert len(found) > 12
    readers = os.getgid() if case.is_by_root else case.sealed.stat().st_gid
    assert {path: path.stat().st_gid for path in found} == dict.fromkeys(found, readers)
    assert {path.stat().st_mode & 0o7777 for path in found if path.is_file()} == {0o440}


def test_an_own_file_with_another_name_outside_is_copied(case: Case) -> None:
    kept = case.cwd / "kept"

    def make() -> None:
        kept.write_text("mine")
        kept.chmod(0o664)
        os.link(kept, case.artifacts / "linked")
        os.link(kept, case.artifacts / "linked-again")

    case.job(make)
    before = kept.stat()
    assert case.sealed_files() == ["linked", "linked-again"]
    after = kept.stat()
    assert (after.st_mode, after.st_uid, after.st_gid, after.st_mtime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
        before.st_mtime_ns,
    )
    assert kept.read_text() == (case.sealed / "artifacts/linked").read_text() == "mine"
    assert after.st_nlink == 1


@needs_root
@pytest.mark.parametrize("is_readable", [True, False])
def test_a_file_of_another_user_is_copied_or_left_out_and_left_alone(
    case: Case, is_readable: bool
) -> None:
    theirs = case.cwd / "theirs"
    theirs.write_text("secret")
    os.chown(theirs, 4242, 4242)
    theirs.chmod(0o4644 if is_readable else 0o4640)
    before = theirs.stat()
    places = ["artifacts/a", "result.txt", "logs/stderr.log"]
    for place in places:
        (case.building / place).unlink(missing_ok=True)
        os.link(theirs, case.building / place)
    case.job(lambda: (case.logs / "stdout.log").write_text("out\n"))
    is_kept = is_readable or case.owner is None
    assert case.sealed_files() == (["a"] if is_kept else [])
    left = case.left_out()
    assert set(left) == (set() if is_kept else set(places))
    assert all("another user (uid 4242)" in why for why in left.values())
    after = theirs.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, 4242, 4242)
    assert theirs.read_text() == "secret"
    # Where they are left out, it is as if the job had written nothing.
    assert (case.sealed / "result.txt").read_text() == ("secret" if is_kept else "out\n")
    assert (case.sealed / "logs/stderr.log").read_text() == ("secret" if is_kept else "")


def leave_as_a_container(case: Case) -> None:
    """Put into a package what a container that runs as root leaves there."""
    deep = "/".join("d" * 40)
    for folder in ("ckpt/1", "own/roots", "closed", "empty", "open", f"{deep}/roots"):
        (case.artifacts / folder).mkdir(parents=True)
    for name in (
        "ckpt/1/model",
        "ckpt/secret",
        "own/roots/f",
        "closed/f",
        "top",
        "hidden",
        "own/f",
    ):
        (case.artifacts / name).write_text(name)
    (case.artifacts / f"{deep}/roots/f").write_text("deep")
    (case.artifacts / "ckpt/link").symlink_to("/etc/passwd")
    uid = case.owner.uid if case.owner else 0
    for name in ("own", "own/f", *("/".join("d" * count) for count in range(1, 41))):
        os.chown(case.artifacts / name, uid, uid)
    for name in ("ckpt/secret", "hidden"):
        (case.artifacts / name).chmod(0o600)
    (case.artifacts / "closed").chmod(0o700)
    (case.artifacts / "open").chmod(0o777)
    case.job(lambda: (case.artifacts / "mine").write_text("mine"))


#: What of it goes into the package: all that its user can read.
FROM_A_CONTAINER = ["ckpt/1/model", "/".join("d" * 40) + "/roots/f", "mine", "own/f", "own/roots/f"]
LEFT_IN_A_CONTAINER = {"closed", "ckpt/secret", "ckpt/link", "hidden"}


@needs_root
def test_what_a_container_made_as_root_is_copied_or_set_apart(case: Case) -> None:
    leave_as_a_container(case)
    files = case.sealed_files()
    if case.owner is None:
        assert set(FROM_A_CONTAINER) < set(files)
        return
    assert files == sorted([*FROM_A_CONTAINER, "top"])
    assert (case.sealed / "artifacts/own/roots/f").read_text() == "own/roots/f"
    left = case.left_out()
    assert set(left) == {f"artifacts/{name}" for name in LEFT_IN_A_CONTAINER}
    assert all("belongs to another user (uid 0)" in why for why in left.values())
    # What could not be read is not lost.
    assert f"kept in .left_{JOB}" in left["artifacts/hidden"]
    apart = case.results / f".left_{JOB}/artifacts"
    assert (apart / "hidden").read_text() == "hidden"
    assert (apart / "closed/f").read_text() == "closed/f"
    assert not (apart / "mine").exists()
    # Asked again it says the same.
    assert case.check(case.seal()) == case.check(case.seal())


@needs_root
def test_what_a_container_left_does_not_stop_the_next_attempt(case: Case) -> None:
    for _ in range(3):
        leave_as_a_container(case)
        case.create()
    case.job(lambda: (case.artifacts / "new").touch())
    assert case.sealed_files() == ["new"]
    assert case.left_out() == {}
    if case.owner:
        # It waits for root, and is told of when the package is removed.
        assert len([*(case.results / f".gone_{JOB}").rglob("secret")]) == 3


def test_a_jobs_own_names_are_its_own(case: Case) -> None:
    names = [".aitbcd.copy", ".aitbcd.stdout.log", ".aitbcd.x/y"]

    def make() -> None:
        for name in names:
            path = case.artifacts / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(name)

    case.job(make)
    assert case.sealed_files() == names
    assert case.left_out() == {}


@pytest.mark.parametrize("log", ["stdout.log", "stderr.log"])
def test_a_second_name_of_a_log_outside_is_left_alone(case: Case, log: str) -> None:
    kept = case.cwd / "kept"

    def make() -> None:
        (case.logs / log).write_text("said")
        (case.logs / log).chmod(0o664)
        os.link(case.logs / log, kept)

    case.job(make)
    case.sealed_files()
    assert kept.stat().st_mode & 0o777 == 0o664
    assert kept.stat().st_nlink == 1
    assert (case.sealed / "logs" / log).read_text() == "said"


def test_a_name_of_our_copies_leads_nowhere(case: Case) -> None:
    """A job that knows how we name what is not finished can aim no copy of ours at a file."""
    precious, kept = case.cwd / "precious", case.cwd / "kept"

    def make() -> None:
        for path in (precious, kept):
            path.write_text(path.name)
        os.link(precious, case.artifacts / f".aitbcd.copy.{JOB}")
        os.link(kept, case.artifacts / "linked")
        (case.logs / "stdout.log").write_bytes(bytes(range(256)) * (3 << 12))
        with (case.logs / "stdout.log").open("r+b") as log:
            punch_hole(log.fileno(), 1 << 19, 1 << 20)
        os.mkfifo(case.logs / ".aitbcd.stdout.log")

    case.job(make)
    assert case.sealed_files() == ["linked"]
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("what", ["link", "dangling", "folder", "file", "fifo", "nothing"])
def test_what_the_job_put_in_the_place_of_ours_is_replaced(case: Case, what: str) -> None:
    outside = case.cwd / "outside"

    def put(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        match what:
            case "link":
                path.symlink_to(outside)
            case "dangling":
                path.symlink_to(case.cwd / "nowhere")
            case "folder":
                (path / "deep").mkdir(parents=True)
                (path / "deep/file").touch()
            case "file":
                path.write_text("mine")
            case "fifo":
                os.mkfifo(path)

    def make() -> None:
        outside.mkdir()
        (outside / "stdout.log").write_text("precious")
        ours = ["result.txt", "progress", "output.json", "output.sha256"]
        ours.append("logs" if what == "file" else "logs/stdout.log")
        for name in ours:
            put(case.building / name)

    case.job(make)
    case.sealed_files()
    assert [path.name for path in outside.iterdir()] == ["stdout.log"]
    assert (outside / "stdout.log").read_text() == "precious"
    assert not (case.cwd / "nowhere").exists()
    expected = {"result.txt": "mine" if what == "file" else "", "logs/stdout.log": ""}
    assert {name: (case.sealed / name).read_text() for name in expected} == expected


@pytest.mark.parametrize("what", ["link", "file", "nothing"])
def test_folders_that_the_job_replaced_are_made_again(case: Case, what: str) -> None:
    outside = case.cwd / "outside"

    def make() -> None:
        outside.mkdir()
        (case.cwd / "model").write_text("m")
        for path in (case.logs, case.artifacts):
            shutil.rmtree(path)
            if what == "link":
                path.symlink_to(outside)
            elif what == "file":
                path.write_text("x")

    case.job(make)
    assert case.sealed_files("model") == ["model"]
    assert list(outside.iterdir()) == []
    replaced = {"logs", "artifacts"} if what != "nothing" else set()
    assert set(case.left_out()) == replaced


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o555])
def test_a_tree_that_its_owner_may_not_enter_is_sealed(case: Case, mode: int) -> None:
    def make() -> None:
        (case.logs / "stdout.log").write_bytes(b"x" * (3 << 20))
        with (case.logs / "stdout.log").open("r+b") as log:
            punch_hole(log.fileno(), 1 << 19, 2 << 20)
        deep = case.artifacts / "a/b/c"
        deep.mkdir(parents=True)
        (deep / "file").write_text("f")
        (deep / "link").symlink_to("/etc")
        os.link(case.logs / "stderr.log", deep / "linked")
        (case.cwd / "model").write_text("m")
        for root, folders, files in os.walk(case.building, topdown=False):
            for name in (*folders, *files):
                if name != "link":
                    os.chmod(os.path.join(root, name), mode)
        case.building.chmod(mode)

    case.job(make)
    # A second name's mode is not changed, so that what may not be read is not copied.
    linked = [] if mode == 0 and case.owner else ["a/b/c/linked"]
    assert case.sealed_files("model") == ["a/b/c/file", *linked, "model"]


@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_a_tree_that_its_owner_may_not_enter_makes_way_for_the_next_attempt(
    case: Case, mode: int
) -> None:
    def make() -> None:
        (case.artifacts / "a/b/c/1/1/1").mkdir(parents=True)
        (case.artifacts / "1/2/3").mkdir(parents=True)
        (case.artifacts / "a/b/c/file").write_text("f")
        for root, folders, files in os.walk(case.building, topdown=False):
            for name in (*folders, *files):
                os.chmod(os.path.join(root, name), mode)
        case.building.chmod(mode)

    case.job(make)
    case.create()
    assert case.sealed_files() == []


def test_what_lies_too_deep_is_left_out(case: Case) -> None:
    def make() -> None:
        os.chdir(case.artifacts)
        for _ in range(2500):
            os.mkdir("d")
            os.chdir("d")
        Path("bottom").touch()
        os.chdir(case.artifacts / "d")
        Path("top").touch()

    case.job(make)
    assert case.sealed_files() == ["d/top"]
    assert list(case.left_out().values()) == ["too deep"]


def test_thousands_of_files(case: Case) -> None:
    def make() -> None:
        for number in range(3000):
            path = case.artifacts / f"{number % 150}"
            path.mkdir(exist_ok=True)
            (path / f"{number}").write_bytes(b"%d" % number)

    case.job(make)
    assert len(case.sealed_files()) == 3000


# -- what is collected ----------------------------------------------------------------------------

TREE = ["a.pt", ".hidden.pt", "ckpt/1.pt", "ckpt/.2.pt", "ckpt/deep/er/3.pt", "ckpt/log", "x/a.pt"]


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (["*.pt"], ["a.pt"]),
        (["ckpt/*.pt"], ["ckpt/1.pt"]),
        (["*/*.pt"], ["ckpt/1.pt", "x/a.pt"]),
        (["**/*.pt"], ["a.pt", "ckpt/1.pt", "ckpt/deep/er/3.pt", "x/a.pt"]),
        (["**/**/./**//*.pt"], ["a.pt", "ckpt/1.pt", "ckpt/deep/er/3.pt", "x/a.pt"]),
        (["ckpt/**/*.pt"], ["ckpt/1.pt", "ckpt/deep/er/3.pt"]),
        ([".hidden.pt", ".*.pt"], [".hidden.pt"]),
        (["ckpt/.2*"], ["ckpt/.2.pt"]),
        (["ckpt"], ["ckpt/.2.pt", "ckpt/1.pt", "ckpt/deep/er/3.pt", "ckpt/log"]),
        (["ckpt/"], ["ckpt/.2.pt", "ckpt/1.pt", "ckpt/deep/er/3.pt", "ckpt/log"]),
        (["ckpt/deep/**"], ["ckpt/deep/er/3.pt"]),
        (["./a.pt", "a.pt", "[a]?pt"], ["a.pt"]),
        (["nothing*", "a.pt/x"], []),
        (["../*", "ckpt/../../*", "/etc/passwd", "/", "", ".", ".."], []),
        (["link/*", "link", "file-link", "**/passwd"], []),
        (["fifo"], []),
    ],
)
def test_globs(mine: Case, globs: list[str], expected: list[str]) -> None:
    for name in TREE:
        path = mine.cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (mine.folder / "outside").write_text("outside")
    (mine.cwd / "link").symlink_to("/etc")
    (mine.cwd / "file-link").symlink_to("/etc/passwd")
    os.mkfifo(mine.cwd / "fifo")
    assert mine.sealed_files(*globs) == expected
    assert {(mine.sealed / "artifacts" / name).read_text() for name in expected} == set(expected)


def test_a_glob_that_collects_nothing_says_why(mine: Case) -> None:
    (mine.cwd / "a.pt").touch()
    (mine.cwd / "folder").mkdir()
    (mine.cwd / "link").symlink_to("a.pt")
    os.mkfifo(mine.cwd / "fifo")
    outside = ["../x", "/etc/passwd", "a/../../x"]
    assert mine.sealed_files(*outside, "*.bin", "folder", "link", "fifo", "*.pt", "") == ["a.pt"]
    assert mine.left_out() == {
        **dict.fromkeys(outside, "leaves the working directory"),
        **dict.fromkeys(["*.bin", "folder", ""], "matched nothing"),
        "link": "a symbolic link, which is not followed",
        "fifo": "not a regular file",
    }


def test_collecting_reads_and_changes_nothing_that_the_user_may_not(case: Case) -> None:
    def make() -> None:
        (case.cwd / "model").write_text("theirs")
        (case.cwd / "read-only").write_text("r")
        (case.cwd / "read-only").chmod(0o400)
        (case.artifacts / "model").write_text("the job's own")

    case.job(make)
    if IS_ROOT:
        (case.cwd / "root").write_text("secret")
        (case.cwd / "root").chmod(0o600)
    files = case.sealed_files("*")
    assert (case.sealed / "artifacts/model").read_text() == "the job's own"
    assert (case.cwd / "read-only").stat().st_mode & 0o777 == 0o400
    if case.owner:
        assert files == ["model", "read-only"]
        assert case.left_out() == {"root": "Permission denied"}


def test_a_working_directory_that_is_gone_is_told(case: Case) -> None:
    case.sealed_files("*.pt", cwd=os.fsdecode(os.fsencode(case.folder) + b"/gone\xff"))
    assert [entry["why"] for entry in case.output()["left_out"]] == ["No such file or directory"]
    assert "b64" in case.output()["left_out"][0]["path"]


# -- again ----------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_TRACEME, _KILL_WITH_TRACER, _SYSCALL, _SETOPTIONS = 0, 0x100000, 24, 0x4200


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    address = ctypes.c_void_p(0)
    if _libc.ptrace(ctypes.c_long(request), pid, address, ctypes.c_void_p(data)) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request})")


def seal_in_part(case: Case, order: Json, calls: int) -> bool:
    """Seal in a child that is killed after so many system calls; False: it was done before."""

    def action() -> None:
        seal.seal(case.fd, order, case.run_fd, samples=case.samples)

    return do_in_part(case.owner, action, calls)


def do_in_part(who: Identity | None, action: Callable[[], None], calls: int) -> bool:
    """Do something in a child that is killed after so many system calls; False: it was done."""
    # The two take turns: on one core each turn begins at once, with no other core to be woken.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return _do_in_part(who, action, calls)
    finally:
        os.sched_setaffinity(0, cores)


def _do_in_part(who: Identity | None, action: Callable[[], None], calls: int) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            if who:
                who.become()
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            action()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    _ptrace(_SETOPTIONS, pid, _KILL_WITH_TRACER)
    for _ in range(2 * calls):
        _ptrace(_SYSCALL, pid)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


@needs_root
def test_a_package_whose_making_was_killed_makes_way_for_the_next_attempt(
    folder: Path, other: Identity
) -> None:
    case = Case(folder, other, is_for_him=True)
    shutil.rmtree(case.building)
    calls = 0
    while do_in_part(None, lambda: package.create(case.fd, JOB, other).close(), calls):
        case.create()
        assert {path.lstat().st_uid for path in case.building.rglob("*")} == {other.uid}
        shutil.rmtree(case.building)
        calls += 1
    assert calls > 10


def _a_bit_of_all(case: Case) -> Json:
    """Make a package whose sealing has to do all that sealing does; return the order."""
    (case.cwd / "ckpt").mkdir(exist_ok=True)
    (case.cwd / "ckpt/model").write_text("model")
    with (case.logs / "stdout.log").open("wb") as log:
        log.write(b"first\n" + b"x" * (256 << 10) + b"last\n")
        log.flush()
        punch_hole(log.fileno(), 32 << 10, 192 << 10)
    (case.artifacts / "sub").mkdir()
    (case.artifacts / "sub/own").write_text("own")
    os.link(case.cwd / "ckpt/model", case.artifacts / "sub/linked")
    (case.artifacts / "sub/link").symlink_to("/etc")
    (case.artifacts / "sub").chmod(0o555)
    (case.building / "progress").write_text("50")
    (case.logs / "gpu.csv").mkdir()
    (case.logs / "gpu.csv/planted").write_text("x")
    return case.order("ckpt", log_limit=64 << 10)


def test_killed_after_any_system_call_it_is_sealed_again(mine: Case) -> None:
    mine.samples = protocol.sealed_memory(SAMPLES)
    calls = 0
    while True:
        order = _a_bit_of_all(mine)
        was_killed = seal_in_part(mine, order, calls)
        assert mine.sealed.exists() or mine.building.exists()
        report = mine.seal_again(order)
        stated = mine.check(report)
        assert set(stated) == {
            b"output.json",
            b"result.txt",
            b"logs/stdout.log",
            b"logs/stderr.log",
            b"logs/gpu.csv",
            b"artifacts/ckpt/model",
            b"artifacts/sub/own",
            b"artifacts/sub/linked",
        }
        log = (mine.sealed / "logs/stdout.log").read_bytes()
        assert log.startswith(b"first\n")
        assert log.endswith(b"last\n")
        assert log.count(b"[aitbcd: 196608 bytes dropped here;") == 1
        assert (mine.sealed / "logs/gpu.csv").read_bytes() == SAMPLES
        dropped = {"stdout.log": {"at": 32 << 10, "bytes": 192 << 10}}
        assert mine.output()["logs_dropped"] == dropped, calls
        assert mine.left_out() == {"artifacts/sub/link": "not a regular file"}, calls
        if not was_killed:
            break
        calls += 1
        package.remove(mine.fd, JOB, None)
        mine.create()
    assert calls > 60


@needs_root
def test_killed_after_any_system_call_a_container_s_package_is_sealed_again(
    folder: Path, other: Identity
) -> None:
    case = Case(folder, other, is_for_him=False)
    calls = 0
    while True:
        leave_as_a_container(case)
        order = case.order()
        was_killed = seal_in_part(case, order, calls)
        case.check(case.seal_again(order))
        artifacts = {entry["path"] for entry in case.output()["files"]}
        assert {f"artifacts/{name}" for name in FROM_A_CONTAINER} <= artifacts, calls
        left = set(case.left_out())
        assert left == {f"artifacts/{name}" for name in LEFT_IN_A_CONTAINER}, calls
        if not was_killed:
            break
        calls += 31
        for name in os.listdir(case.results):
            subprocess.run(["rm", "-rf", case.results / name], check=True)
        case.create()
    assert calls > 500


def test_a_sealed_package_is_reported_again_unchanged(case: Case) -> None:
    case.job(lambda: (case.logs / "stdout.log").write_text("out"))
    first = case.seal()
    before = {path: path.stat() for path in case._walk()}
    assert case.seal(output={"format": 1, "attempt": 1, "other": True}) == first
    after = {path: path.stat() for path in case._walk()}
    assert {path: about.st_ctime_ns for path, about in before.items()} == {
        path: about.st_ctime_ns for path, about in after.items()
    }
    with pytest.raises(OSError, match="of attempt 1") as refusal:
        case.seal(attempt=2)
    assert refusal.value.errno == errno.EEXIST


def test_a_package_that_a_power_cut_took_is_sealed_empty(case: Case) -> None:
    shutil.rmtree(case.building)
    assert case.sealed_files("*") == []


@needs_root
def test_samples_that_have_no_room_cost_no_results(folder: Path, other: Identity) -> None:
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        case = Case(disk, other, is_for_him=True)
        folder.chmod(0o755)
        case.job(lambda: (case.logs / "stdout.log").write_text("out\n"))
        case.samples = protocol.sealed_memory(SAMPLES * (4 << 15))
        assert b"logs/gpu.csv" not in case.check(case.seal())
        assert case.left_out() == {"logs/gpu.csv": "No space left on device"}
        os.close(case.fd)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@needs_root
@pytest.mark.parametrize("what", ["collect", "copy"])
def test_a_full_disk_leaves_nothing_sealed_and_can_be_tried_again(
    folder: Path, other: Identity, what: str
) -> None:
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        case = Case(disk, other, is_for_him=True)
        outside = folder / "big"
        outside.write_bytes(b"x" * (4 << 20))
        folder.chmod(0o755)

        def make() -> None:
            (case.logs / "stdout.log").write_text("out\n")
            if what == "copy":
                (case.artifacts / "big").write_bytes(b"x" * (3 << 19))
                os.link(case.artifacts / "big", case.cwd / "big")

        case.job(make)
        globs = ["big"] if what == "collect" else []
        for _ in range(2):
            with pytest.raises(OSError, match="No space left") as full:
                case.seal(*globs, cwd=str(folder))
            assert full.value.errno == errno.ENOSPC
            assert not case.sealed.exists()
        if what == "copy":
            (case.cwd / "big").unlink()
        expected = ["big"] if what == "copy" else []
        assert case.sealed_files() == expected
        os.close(case.fd)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_mode_is_set_on_what_has_the_name_and_not_on_what_a_link_leads_to(
    tmp_path: Path, kind: str
) -> None:
    """Who owns a folder can put a link there between a look and the change of a mode."""
    target = tmp_path / kind
    target.touch() if kind == "file" else target.mkdir()
    target.chmod(0o750)
    (tmp_path / "link").symlink_to(target)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Not a directory"):
            set_mode("link", 0o700, folder)
        assert stat.S_IMODE(target.stat().st_mode) == 0o750
        set_mode(kind, 0o700, folder)
        assert stat.S_IMODE(target.stat().st_mode) == 0o700
    finally:
        os.close(folder)
