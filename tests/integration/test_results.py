"""Reading packages on a real file system, against an owner who changes them."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hashlib
import io
import os
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from aitbcd import manifest
from aitbcd.results import archive as archives
from aitbcd.results import beneath, checksums, logs
from aitbcd.results.archive import Archive, Changed
from aitbcd.results.package import Package
from aitbcd.results.verify import Abandoned, verify
from aitbcd.results.watches import Watches

FILES = {
    b"output.json": b"{}\n",
    b"result.txt": b"hello\n",
    b"logs/stdout.log": b"hello\n",
    b"logs/stderr.log": b"",
    b"artifacts/model.bin": bytes(range(256)) * 5000,
    b"artifacts/a 'quoted'\nname\\.txt": b"x",
    b"artifacts/deep/er/\xff\xfe": b"no UTF-8",
}
BLOCK = 4096
#: Deadline of what takes milliseconds.
SOON_S = 60.0


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "job_7k3m9q2x"
    for path, content in FILES.items():
        file = folder / os.fsdecode(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (folder / "artifacts/empty").mkdir()
    digests = [(path, hashlib.sha256(content).hexdigest()) for path, content in FILES.items()]
    (folder / manifest.FILE_NAME).write_bytes(manifest.build(digests))
    return folder


@pytest.fixture
def folder(package: Path) -> Iterator[int]:
    fd = beneath.open_folder(package)
    yield fd
    os.close(fd)


def digest_of(package: Path) -> str:
    return hashlib.sha256((package / manifest.FILE_NAME).read_bytes()).hexdigest()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- beneath


def test_files_below_are_opened_however_they_are_named(folder: int) -> None:
    for path, content in FILES.items():
        fd = beneath.open_beneath(folder, path)
        with open(fd, "rb") as file:
            assert file.read() == content


@pytest.mark.parametrize(
    "path",
    [b"", b"/etc/passwd", b"../x", b"logs/../result.txt", b"./result.txt", b"logs//stdout.log",
     b"logs", b"artifacts/empty", b"nothing", b"result.txt/x", b"a\0b", b"x" * 5000, b"logs/"],
)  # fmt: skip
def test_nothing_else_is_opened(folder: int, path: bytes) -> None:
    before = open_fds()
    with pytest.raises(beneath.NotThere):
        beneath.open_beneath(folder, path)
    assert open_fds() == before


def test_no_link_is_followed_at_any_place(package: Path, folder: int) -> None:
    (package / "artifacts/passwd").symlink_to("/etc/passwd")
    (package / "artifacts/etc").symlink_to("/etc")
    (package / "artifacts/self").symlink_to("../result.txt")
    for path in (b"artifacts/passwd", b"artifacts/etc/passwd", b"artifacts/self"):
        with pytest.raises(beneath.NotThere):
            beneath.open_beneath(folder, path)
    with pytest.raises(beneath.NotThere):
        beneath.open_folder(package / "artifacts/etc")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_second_name_of_another_users_file_is_not_there(package: Path, folder: int) -> None:
    (package / "secret").write_text("of root")
    os.chown(package / "artifacts", 12345, 12345)
    os.link(package / "secret", package / "artifacts/mine")
    with pytest.raises(beneath.NotThere):
        beneath.open_beneath(folder, b"artifacts/mine")
    os.chown(package / "secret", 12345, 12345)
    os.close(beneath.open_beneath(folder, b"artifacts/mine"))


def test_a_fifo_or_a_socket_in_place_of_a_file_holds_nobody_up(package: Path, folder: int) -> None:
    os.mkfifo(package / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(package / "sock"))
        for path in (b"fifo", b"sock"):
            with pytest.raises(beneath.NotThere):
                beneath.open_beneath(folder, path)


def test_a_walk_finds_files_others_and_empty_folders(package: Path, folder: int) -> None:
    (package / "artifacts/link").symlink_to("/etc")
    found = dict(beneath.walk(folder))
    assert {path for path, is_file in found.items() if is_file} == {*FILES, b"output.sha256"}
    assert {path for path, is_file in found.items() if not is_file} == {
        b"artifacts/link",
        b"artifacts/empty/",
    }


def test_a_walk_ends_in_folders_that_are_too_deep(package: Path, folder: int) -> None:
    before = open_fds()
    at = os.open(package / "artifacts", os.O_RDONLY)
    for _ in range(beneath.DEPTH_MAX + 50):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    assert any(path.count(b"/") == beneath.DEPTH_MAX for path, _ in beneath.walk(folder))
    assert open_fds() == before


# --- logs


def punch(fd: int, start: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_int(fd), 0x02 | 0x01, ctypes.c_int64(start), ctypes.c_int64(length))
    assert libc.fallocate(*arguments) == 0, os.strerror(ctypes.get_errno())


def read_all(log: io.BufferedRandom, limit: int, offset: int = 0, length: int = 3000) -> bytes:
    out = b""
    with beneath.OpenFile(os.dup(log.fileno())) as file:
        opened = logs.Log(file, limit)
        while (piece := opened.read(offset, length)).data:
            out += piece.data
            offset = piece.next_offset
    return out


@pytest.fixture
def log(tmp_path: Path) -> Iterator[io.BufferedRandom]:
    with (tmp_path / "log").open("w+b") as file:
        yield file


def test_a_log_is_read_in_pieces_as_it_is(log: io.BufferedRandom) -> None:
    content = os.urandom(10_000) + bytes(10_000)
    log.write(content)
    log.flush()
    assert read_all(log, limit=1000) == content
    assert read_all(log, limit=1000, offset=9_990) == content[9_990:]


def test_what_was_dropped_is_said_in_one_line(log: io.BufferedRandom) -> None:
    first, middle, last = b"a" * 2 * BLOCK, b"b" * 8 * BLOCK, b"c" * 2 * BLOCK
    log.write(first + middle + last)
    log.flush()
    punch(log.fileno(), len(first), len(middle))
    said = b"\n[aitbcd: %d bytes dropped here; this log had passed its limit]\n" % len(middle)
    assert read_all(log, limit=4 * BLOCK) == first + said + last
    # Who comes to stand in the hole is led out of it and told the same.
    within = read_all(log, limit=4 * BLOCK, offset=len(first) + 100)
    assert within == said + last


def test_an_offset_means_the_same_before_and_after_a_hole_is_closed(
    log: io.BufferedRandom, tmp_path: Path
) -> None:
    limit = 4 * BLOCK
    first, middle = b"a" * 2 * BLOCK, b"b" * 8 * BLOCK
    last = b"".join(b"%07d\n" % number for number in range(1024))
    log.write(first + middle + last)
    log.flush()
    os.fsync(log.fileno())
    punch(log.fileno(), len(first), len(middle))
    closed = tmp_path / "closed"
    said = logs.note(len(middle))
    closed.write_bytes(first + said + last)
    end = len(first + middle + last)
    offsets = [0, 1, len(first) - 1, len(first), len(first) + 1, len(first + middle) - 1,
               len(first + middle), len(first + middle) + 13, end - 1, end, end + 1]  # fmt: skip
    with (
        closed.open("r+b") as sealed,
        beneath.OpenFile(os.dup(log.fileno())) as file,
        beneath.OpenFile(os.dup(sealed.fileno())) as closed_file,
    ):
        before, after = logs.Log(file, limit), logs.Log(closed_file, limit)
        assert before.end == after.end == end
        for offset in offsets:
            assert read_all(log, limit, offset) == read_all(sealed, limit, offset), offset
        for place in [*range(0, len(first), 7), *range(len(first + said), closed_file.size, 7)]:
            assert after.place_of(after.offset_of(place)) == place
        assert before.read(len(first)) == after.read(len(first)) == (
            said, len(first + middle), len(middle)
        )  # fmt: skip


def test_zeros_that_a_job_wrote_are_not_taken_for_a_hole(log: io.BufferedRandom) -> None:
    content = b"a" * BLOCK + bytes(8 * BLOCK) + b"c" * BLOCK
    log.write(content)
    log.flush()
    os.fsync(log.fileno())
    assert read_all(log, limit=2 * BLOCK) == content


def test_a_hole_in_a_log_within_its_limit_is_the_jobs_own(log: io.BufferedRandom) -> None:
    os.ftruncate(log.fileno(), 3 * BLOCK)
    assert read_all(log, limit=3 * BLOCK) == bytes(3 * BLOCK)


@pytest.mark.parametrize(
    ("content", "lines", "tail"),
    [
        (b"", 3, b""),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 0, b""),
        (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 99, b"a\nb\nc\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"no end", 1, b"no end"),
        (b"x\n" + b"y" * 200_000 + b"\nz\n", 2, b"y" * 200_000 + b"\nz\n"),
        (b"l\n" * 100_000, 70_000, b"l\n" * 70_000),
    ],
)
def test_a_tail_begins_where_its_lines_do(
    log: io.BufferedRandom, content: bytes, lines: int, tail: bytes
) -> None:
    log.write(content)
    log.flush()
    with beneath.OpenFile(os.dup(log.fileno())) as file:
        assert content[logs.place_of_tail(file, lines) :] == tail


# --- verify


def test_an_untouched_package_verifies(package: Path) -> None:
    verdict = verify(package, digest_of(package))
    assert verdict.is_ok
    assert verdict.files == len(FILES) + 1
    assert verdict.size == sum(file.stat().st_size for file in package.rglob("*") if file.is_file())


def test_each_difference_is_named(package: Path) -> None:
    digest = digest_of(package)
    with (package / "artifacts/model.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"!")
    (package / "result.txt").unlink()
    (package / "artifacts/new\nfile").write_bytes(b"")
    (package / "logs/stderr.log").unlink()
    (package / "logs/stderr.log").symlink_to("/dev/null")
    (package / "link").symlink_to("/etc")
    assert verify(package, digest).differences == (
        ("changed", b"artifacts/model.bin"),
        ("extra", b"artifacts/new\nfile"),
        ("extra", b"link"),
        ("changed", b"logs/stderr.log"),
        ("missing", b"result.txt"),
    )


def test_a_changed_manifest_is_told_from_changed_files(package: Path) -> None:
    digest = digest_of(package)
    (package / "result.txt").write_bytes(b"forged\n")
    text = (package / manifest.FILE_NAME).read_bytes()
    forged = text.replace(
        hashlib.sha256(b"hello\n").hexdigest().encode() + b"  result",
        hashlib.sha256(b"forged\n").hexdigest().encode() + b"  result",
    )
    assert forged != text
    (package / manifest.FILE_NAME).write_bytes(forged)
    assert verify(package, digest).differences == (("manifest", b"output.sha256"),)


@pytest.mark.parametrize("text", [b"", b"rubbish", b"\xff\n", b"0" * 64 + b"  x"])
def test_a_manifest_that_is_none_is_named(package: Path, text: bytes) -> None:
    digest = digest_of(package)
    (package / manifest.FILE_NAME).write_bytes(text)
    assert ("manifest", b"output.sha256") in verify(package, digest).differences


def test_a_missing_manifest_and_a_missing_package_are_said(package: Path, tmp_path: Path) -> None:
    digest = digest_of(package)
    (package / manifest.FILE_NAME).unlink()
    assert verify(package, digest).differences == (("missing", b"output.sha256"),)
    assert verify(tmp_path / "gone", digest).differences == (("missing", b"output.sha256"),)


def test_a_verify_that_nobody_waits_for_ends(package: Path) -> None:
    left = Event()
    left.set()
    with pytest.raises(Abandoned):
        verify(package, digest_of(package), left)


def test_large_files_are_verified_by_several_threads(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {b"artifacts/%d" % number: os.urandom(3 << 20) for number in range(6)}
    for path, content in contents.items():
        (package / os.fsdecode(path)).write_bytes(content)
    digests = [
        (path, hashlib.sha256(content).hexdigest())
        for path, content in {**FILES, **contents}.items()
    ]
    (package / manifest.FILE_NAME).write_bytes(manifest.build(digests))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    assert verify(package, digest_of(package)).is_ok
    (package / "artifacts/3").write_bytes(b"!")
    assert verify(package, digest_of(package)).differences == (("changed", b"artifacts/3"),)


# --- zip


def test_a_zip_has_everything_and_the_size_it_said(package: Path) -> None:
    archive = Archive(package, "job_7k3m9q2x", package.parent)
    data = b"".join(archive.pieces())
    archive.close()
    assert len(data) == archive.size
    with zipfile.ZipFile(io.BytesIO(data)) as unpacked:
        assert unpacked.testzip() is None
        assert all(name.startswith("job_7k3m9q2x/") for name in unpacked.namelist())
        assert unpacked.read("job_7k3m9q2x/artifacts/model.bin") == FILES[b"artifacts/model.bin"]
        assert unpacked.read("job_7k3m9q2x/artifacts/deep/er/\\xff\\xfe") == b"no UTF-8"
        assert unpacked.getinfo("job_7k3m9q2x/artifacts/empty/").is_dir()
        assert len(unpacked.namelist()) == len(FILES) + 2


def test_a_zip_has_no_links(package: Path) -> None:
    (package / "artifacts/passwd").symlink_to("/etc/passwd")
    archive = Archive(package, "job_x", package.parent)
    data = b"".join(archive.pieces())
    archive.close()
    assert b"passwd" not in data


def test_a_file_that_grows_while_it_is_sent_breaks_the_zip_off(package: Path) -> None:
    archive = Archive(package, "job_x", package.parent)
    with (package / "artifacts/model.bin").open("ab") as file:
        file.write(b"more")
    with pytest.raises(Changed):
        b"".join(archive.pieces())
    archive.close()


def zip_of(package: Path, start: int = 0, end: int | None = None) -> bytes:
    archive = Archive(package, "job_x", package.parent)
    try:
        return b"".join(archive.pieces(start, end))
    finally:
        archive.close()


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "forgotten"])
def test_a_part_of_a_zip_is_the_same_bytes_as_in_the_whole(package: Path, is_known: bool) -> None:
    whole = zip_of(package)
    for start in [*range(0, len(whole), 20_011), *range(len(whole) - 300, len(whole), 13)]:
        if not is_known:
            archives._zips.clear()
        assert zip_of(package, start) == whole[start:], start
        assert zip_of(package, start, start + 1000) == whole[start : start + 1000], start


def test_a_zip_that_was_broken_off_goes_on_without_reading_it_again(package: Path) -> None:
    whole = zip_of(package)
    archives._zips.clear()
    first = Archive(package, "job_x", package.parent)
    pieces = first.pieces()
    got = b""
    while len(got) < 400_000:
        got += next(pieces)
    pieces.close()
    first.close()
    # What is known of the first file is believed: were it read again, it would show.
    known = archives._zips[first.tag]
    assert 400_000 < known.at < 1_000_000
    known.checksum ^= 1
    rest = zip_of(package, len(got) - 100)
    assert len(got) - 100 + len(rest) == len(whole)
    with zipfile.ZipFile(io.BytesIO(got[:-100] + rest)) as unpacked:
        assert unpacked.testzip() == "job_x/artifacts/model.bin"


def broken_off(package: Path, change: Callable[[], object], when: int) -> bytes:
    """Return what is sent of a zip whose package is changed after so many pieces."""
    archive = Archive(package, "job_x", package.parent)
    pieces = archive.pieces()
    got = [next(pieces) for _ in range(when)]
    change()
    with pytest.raises(Changed):
        got.extend(pieces)
    archive.close()
    assert len(b"".join(got)) < archive.size
    return b"".join(got)


def test_a_file_that_appears_or_goes_breaks_the_zip_off(package: Path) -> None:
    broken_off(package, partial((package / "zzz").write_bytes, b"new"), 0)
    broken_off(package, (package / "zzz").unlink, 0)
    broken_off(package, (package / "result.txt").unlink, 3)


def test_another_content_has_another_tag(package: Path) -> None:
    def tag() -> str:
        with_archive = Archive(package, "job_x", package.parent)
        with_archive.close()
        return with_archive.tag

    before = tag()
    assert tag() == before
    (package / "result.txt").write_bytes(b"hallo\n")
    os.utime(package / "result.txt", (1, 1))
    assert tag() != before


def test_unzip_makes_the_folder_again(package: Path) -> None:
    target = package.parent / "a.zip"
    target.write_bytes(zip_of(package))
    folder = package.parent / "unpacked"
    command = ["unzip", "-q", str(target), "-d", str(folder)]
    environment = {**os.environ, "UNZIP_DISABLE_ZIPBOMB_DETECTION": "TRUE", "LANG": "C.UTF-8"}
    subprocess.run(command, check=True, env=environment)
    assert (folder / "job_x/artifacts/model.bin").read_bytes() == FILES[b"artifacts/model.bin"]
    assert (folder / "job_x/artifacts/empty").is_dir()
    made = (folder / "job_x/result.txt").stat()
    assert int(made.st_mtime) == int((package / "result.txt").stat().st_mtime)


# --- the lock that keeps a package


def lock_exclusively(package: Path) -> int | None:
    """Do as who removes a package does."""
    fd = os.open(package, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def test_who_reads_a_package_keeps_it_from_being_removed(package: Path) -> None:
    archive, other = Archive(package, "job_x", package.parent), Package(package)
    assert lock_exclusively(package) is None
    archive.close()
    assert lock_exclusively(package) is None
    other.close()
    lock = lock_exclusively(package)
    assert lock is not None
    for opened in (lambda: Archive(package, "job_x", package.parent), lambda: Package(package)):
        with pytest.raises(beneath.NotThere):
            opened()
    os.close(lock)


# --- checksums


def test_checksums_are_those_of_files_in_the_folder(package: Path) -> None:
    (package / "-").write_bytes(b"dash")
    digests = [(path, hashlib.sha256(content).hexdigest()) for path, content in FILES.items()]
    digests.append((b"-", hashlib.sha256(b"dash").hexdigest()))
    (package / manifest.FILE_NAME).write_bytes(manifest.build(digests))
    with Package(package) as opened, opened.open(b"output.sha256") as file:
        text = b"".join(checksums.prefixed(file, package.name.encode()))
        assert checksums.digest(file) == digest_of(package)
    (package.parent / "sums").write_bytes(text)
    command = ["sha256sum", "-c", "--strict", "sums"]
    said = subprocess.run(command, cwd=package.parent, capture_output=True, check=True).stdout
    assert len(said.splitlines()) == len(FILES) + 1
    assert b"job_7k3m9q2x/-: OK" in said


def test_checksums_of_very_many_files_come_in_whole_lines(tmp_path: Path) -> None:
    stated = {b"artifacts/%06d" % number: "0" * 64 for number in range(10_000)}
    (tmp_path / "output.sha256").write_bytes(manifest.build(stated.items()))
    with Package(tmp_path) as opened, opened.open(b"output.sha256") as file:
        pieces = list(checksums.prefixed(file, b"job_x"))
    assert len(pieces) > 2
    assert manifest.parse(b"".join(pieces)) == {
        b"job_x/" + path: sum_ for path, sum_ in stated.items()
    }


def test_a_zip_that_is_read_no_further_holds_nothing_open(package: Path) -> None:
    before = open_fds()
    archive = Archive(package, "job_x", package.parent)
    pieces = archive.pieces()
    for _ in range(4):
        assert next(pieces)
    assert open_fds() > before
    archive.close()
    with pytest.raises(beneath.NotThere):
        b"".join(pieces)
    assert open_fds() == before


def test_a_file_in_use_is_closed_by_its_last_user(package: Path) -> None:
    before = open_fds()
    file = beneath.open_in(package, b"result.txt")
    with file.held() as fd:
        file.close()
        file.close()
        assert os.pread(fd, 100, 0) == b"hello\n"
    assert open_fds() == before
    with pytest.raises(beneath.NotThere):
        file.pread(1, 0)


def test_a_package_that_is_gone_has_no_zip(tmp_path: Path) -> None:
    before = open_fds()
    with pytest.raises(beneath.NotThere):
        Archive(tmp_path / "gone", "job_x", tmp_path)
    assert open_fds() == before


# --- watches


def test_all_who_wait_for_a_write_are_woken_by_it(log: io.BufferedRandom) -> None:
    async def scenario() -> None:
        watches = Watches()
        for _ in range(3):
            first, second = asyncio.Event(), asyncio.Event()
            with watches.on_write(log.fileno(), first), watches.on_write(log.fileno(), second):
                log.write(b"x")
                log.flush()
                async with asyncio.timeout(SOON_S):
                    await asyncio.gather(first.wait(), second.wait())
        watches.close()

    asyncio.run(scenario())


def test_a_new_file_wakes_who_watches_the_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        watches = Watches()
        fd = os.open(tmp_path, os.O_RDONLY)
        made, moved, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        async with asyncio.timeout(SOON_S):
            with watches.on_change(fd, made):
                (tmp_path / "a").write_bytes(b"1")
                await made.wait()
            with watches.on_change(fd, moved):
                (tmp_path / "a").rename(tmp_path / "b")
                await moved.wait()
            with watches.on_removal(tmp_path, gone):
                (tmp_path / "b").unlink()
                await gone.wait()
        os.close(fd)
        watches.close()

    asyncio.run(scenario())


def test_a_watch_that_was_left_leaves_nothing(log: io.BufferedRandom) -> None:
    async def scenario() -> None:
        watches = Watches()
        for _ in range(1000):
            with watches.on_write(log.fileno(), asyncio.Event()):
                pass
        inotify = Path(f"/proc/self/fdinfo/{watches._fd}").read_text()
        assert "inotify wd" not in inotify
        watches.close()

    asyncio.run(scenario())
