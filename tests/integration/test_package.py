"""Copies of packages: whole or not there, and never more than was sealed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aitbcctl import package, sources
from aitbcctl.refusals import Refused
from aitbcd import manifest
from aitbcd.errors import ClientFailure

FILES = {
    b"output.json": b"{}",
    b"result.txt": b"hello\n",
    b"logs/stdout.log": b"hello\n",
    b"logs/stderr.log": b"",
    b"artifacts/deep/er/model.bin": bytes(range(256)) * 9000,
    b'artifacts/new\nline "quoted" \\ \xff': b"odd",
}


def sealed(folder: Path, files: dict[bytes, bytes] = FILES) -> Path:
    """Make a package as the daemon does."""
    root = os.fsencode(folder)
    for name, content in files.items():
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    text = manifest.build(
        (name, hashlib.sha256(content).hexdigest()) for name, content in files.items()
    )
    (folder / manifest.FILE_NAME).write_bytes(text)
    return folder


def copy(source: Path, target: Path, *, force: bool = False, digest: str | None = None) -> bool:
    disk = sources.OnDisk(str(source))
    try:
        text, digests = sources.read_list(disk, digest)
        return package.copy(disk, text, digests, str(target), force=force, tell=lambda count: None)
    finally:
        disk.close()


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def contents(folder: Path) -> dict[bytes, bytes]:
    root = os.fsencode(folder)
    found = {}
    for at, _, names in os.walk(root):
        for name in names:
            path = os.path.join(at, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_copy_is_the_package(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    digest = hashlib.sha256((source / manifest.FILE_NAME).read_bytes()).hexdigest()
    assert copy(source, tmp_path / "new" / "er" / "job_x", digest=digest)
    assert contents(tmp_path / "new" / "er" / "job_x") == contents(source)
    assert os.listdir(tmp_path / "new" / "er") == ["job_x"]


def test_each_file_of_a_copy_is_one_of_its_own(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    (source / "result.txt").unlink()
    os.link(source / "logs/stdout.log", source / "result.txt")
    copy(source, tmp_path / "copy")
    # Whoever edits one must not change the other.
    (tmp_path / "copy/result.txt").write_text("edited")
    assert (tmp_path / "copy/logs/stdout.log").read_text() == "hello\n"


def test_where_the_kernel_does_not_copy_between_the_two_read_and_write_do(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert copy(source, Path(elsewhere) / "copy")
        assert contents(Path(elsewhere) / "copy") == contents(source)


def test_many_files_are_copied_by_several_threads_to_the_same_bytes(tmp_path: Path) -> None:
    files = {b"artifacts/%d" % i: os.urandom(1000 * (i % 7)) for i in range(500)}
    source = sealed(tmp_path / "job_x", files)
    copy(source, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)


def test_what_a_killed_copy_left_is_no_part_of_the_next_one(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    left = tmp_path / "to" / ".copy.partial"
    (left / "artifacts").mkdir(parents=True)
    (left / "artifacts" / "old").write_text("old")
    (left / "result.txt").write_text("half of somethi")
    copy(source, tmp_path / "to" / "copy")
    assert contents(tmp_path / "to" / "copy") == contents(source)
    assert os.listdir(tmp_path / "to") == ["copy"]


def test_two_downloads_to_one_place_do_not_mix(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    left = tmp_path / ".copy.partial"
    left.mkdir()
    with closing_fd(os.open(left, os.O_RDONLY)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="another download"):
            copy(source, tmp_path / "copy")
    assert copy(source, tmp_path / "copy")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of somebody else")
def test_a_folder_that_another_user_laid_out_is_not_written_into(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    (tmp_path / ".copy.partial").mkdir()
    os.chown(tmp_path / ".copy.partial", 12345, 12345)
    with pytest.raises(Refused, match="belongs to another user"):
        copy(source, tmp_path / "copy")
    assert os.listdir(tmp_path / ".copy.partial") == []


def test_a_package_that_is_being_deleted_is_not_read(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    with closing_fd(os.open(source, os.O_RDONLY)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            sources.OnDisk(str(source))


def test_a_program_among_the_artifacts_stays_executable(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x", {b"artifacts/tool": b"#!/bin/sh\n"})
    (source / "artifacts/tool").chmod(0o550)
    copy(source, tmp_path / "copy")
    assert os.access(tmp_path / "copy/artifacts/tool", os.X_OK)
    assert (tmp_path / "copy/artifacts/tool").stat().st_mode & 0o200


def test_the_same_copy_again_changes_nothing(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    assert copy(source, tmp_path / "copy")
    before = (tmp_path / "copy").stat()
    assert not copy(source, tmp_path / "copy")
    after = (tmp_path / "copy").stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda at: (at / "note").write_text("mine"), "note is only there"),
        (lambda at: (at / "result.txt").unlink(), "result.txt is missing there"),
        (lambda at: (at / "output.json").write_text("[]"), "output.json has other content there"),
        (lambda at: (at / "link").symlink_to("artifacts"), "link is only there"),
    ],
)
def test_something_else_is_not_overwritten_unless_forced(
    tmp_path: Path, spoil: object, words: str
) -> None:
    source = sealed(tmp_path / "job_x")
    copy(source, tmp_path / "to" / "copy")
    assert callable(spoil)
    spoil(tmp_path / "to" / "copy")
    before = everything(tmp_path / "to")
    with pytest.raises(Refused, match=words):
        copy(source, tmp_path / "to" / "copy")
    assert everything(tmp_path / "to") == before
    assert copy(source, tmp_path / "to" / "copy", force=True)
    assert contents(tmp_path / "to" / "copy") == contents(source)
    assert os.listdir(tmp_path / "to") == ["copy"]


def test_a_symlink_under_the_final_name_is_not_followed(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    (tmp_path / "other").mkdir()
    (tmp_path / "copy").symlink_to("other")
    with pytest.raises(Refused):
        copy(source, tmp_path / "copy")
    assert copy(source, tmp_path / "copy", force=True)
    assert not (tmp_path / "copy").is_symlink()
    assert os.listdir(tmp_path / "other") == []


def test_a_changed_file_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    (source / "artifacts/deep/er/model.bin").write_bytes(b"other")
    with pytest.raises(sources.Corrupt, match=r"artifacts/deep/er/model\.bin is not what"):
        copy(source, tmp_path / "to" / "copy")
    assert os.listdir(tmp_path / "to") == []


def test_a_missing_file_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    (source / "logs/stderr.log").unlink()
    with pytest.raises(sources.Corrupt, match=r"logs/stderr\.log is missing"):
        copy(source, tmp_path / "to" / "copy")
    assert os.listdir(tmp_path / "to") == []


def test_a_changed_list_is_not_believed(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    with pytest.raises(sources.Corrupt, match="was changed after the job's end"):
        copy(source, tmp_path / "copy", digest="0" * 64)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "name",
    [b"/etc/cron.d/x", b"../x", b"a/../../x", b"a//b", b"./a", b"a/.", b"output.sha256"],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: bytes) -> None:
    source = sealed(tmp_path / "job_x")
    with (source / manifest.FILE_NAME).open("ab") as listed:
        listed.write(manifest.format_line("0" * 64, name))
    with pytest.raises(sources.Corrupt, match="names"):
        copy(source, tmp_path / "copy")
    assert os.listdir(tmp_path) == ["job_x"]


@pytest.mark.parametrize("name", [b"artifacts/deep/er/model.bin", b"logs/stdout.log"])
def test_a_symlink_in_the_stored_results_is_not_followed(tmp_path: Path, name: bytes) -> None:
    source = sealed(tmp_path / "job_x")
    folder = source / os.fsdecode(os.path.dirname(name))
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(sources.Corrupt, match="cannot be read"):
        copy(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_fifo_in_the_stored_results_does_not_hang_the_copy(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    (source / "result.txt").unlink()
    (source / "logs/stdout.log").unlink()
    os.mkfifo(source / "logs/stdout.log")
    with pytest.raises(sources.Corrupt, match="no regular file"):
        copy(source, tmp_path / "copy")


def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x")
    (tmp_path / "file").touch()
    with pytest.raises(ClientFailure, match="it is no folder"):
        copy(source, tmp_path / "file" / "job_x")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    source = sealed(tmp_path / "job_x", {b"big": bytes(1 << 20)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(ClientFailure, match=r"cannot write .*: File too large"):
            copy(source, tmp_path / "to" / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path / "to") == []
