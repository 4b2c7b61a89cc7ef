"""A job's sealed package -> a verified copy under a name of the user's choice.

The copy is built beside its target as ``.NAME.partial``, each file checked against output.sha256
while it is copied, synced, and renamed: under the final name there is the whole copy or nothing.
What came over HTTP before an interruption is kept there, and the next run goes on from it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress

from aitbcctl.checking import Tell, difference, digest, names_below
from aitbcctl.crew import Crew
from aitbcctl.files import umask
from aitbcctl.following import Patience
from aitbcctl.refusals import Refused
from aitbcctl.sources import (
    LIST,
    DiskFile,
    OnDisk,
    OverHttp,
    Source,
    changed,
    put,
    shown,
    telling,
)
from aitbcd.errors import ClientFailure, Unavailable, Unreachable

_DIFFERENCES = {
    "missing": "{} is missing there",
    "extra": "{} is only there",
    "changed": "{} has other content there",
}
_PIECE = 1024 * 1024
#: Files that are brought to the disk one by one; more of them with all of their file system.
_FEW = 64


def copy(
    files: Source, text: bytes, digests: dict[bytes, str], target: str, *, force: bool, tell: Tell
) -> bool:
    """Copy a package to ``target``; return False when the same was there already.

    Raises:
        Refused: something else is there, and ``force`` was not given.
        Corrupt: a file is not what was sealed; ``target`` is as it was.
        ClientFailure: it could not be written; ``target`` is as it was.
    """
    with placing(target):
        if os.path.lexists(target) and not force:
            _refuse_other(target, text, digests)
            return False
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with _workplace(partial_of(target), is_kept=files.is_resumable) as built:
            _build(files, text, digests, os.fsencode(built), tell)
            put_in_place(built, target)
    return True


@contextmanager
def placing(target: str) -> Iterator[None]:
    """Tell what happens to our own files as an error that names the target."""
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise ClientFailure(
            f"cannot write below {os.path.dirname(target)}: it is no folder",
            hint="choose another --output",
        ) from None
    except OSError as error:
        raise ClientFailure(
            f"cannot write {target}: {error.strerror}", hint="nothing was left under that name"
        ) from None


def partial_of(target: str) -> str:
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.partial")


def _refuse_other(target: str, text: bytes, digests: dict[bytes, str]) -> None:
    if os.path.islink(target) or not os.path.isdir(target):
        raise other_content(target, "it is no folder")
    stated = digests | {LIST: hashlib.sha256(text).hexdigest()}
    if found := difference(os.fsencode(target), stated):
        kind, name = found
        raise other_content(target, _DIFFERENCES[kind].format(shown(name)))


def other_content(target: str, why: str) -> Refused:
    return Refused(
        f"{target} exists already and is not the same: {why}",
        hint="choose another --output, or replace it with --force",
    )


@contextmanager
def _workplace(path: str, *, is_kept: bool) -> Iterator[str]:
    """Make or take the folder of a copy in progress, for us alone."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        claim(fd, path)
        try:
            yield path
        except (KeyboardInterrupt, Unreachable, Unavailable):
            if not is_kept:
                shutil.rmtree(path, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    finally:
        os.close(fd)


def claim(fd: int, path: str) -> None:
    """Make sure that what is open is ours, and ours alone: the folder can be everybody's.

    Raises:
        Refused: another download is at it, or another user made it.
    """
    if os.fstat(fd).st_uid != os.geteuid():
        raise Refused(f"{path} belongs to another user", hint="choose another --output")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may have renamed it to its final name just before.
        is_there = os.path.samestat(os.fstat(fd), os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
        is_there = False
    if not is_there:
        raise Refused(f"another download writes {path} now", hint="wait for it, and try again")
    os.fchmod(fd, 0o700 if os.path.isdir(path) else 0o600)


def _build(files: Source, text: bytes, digests: dict[bytes, str], root: bytes, tell: Tell) -> None:
    _clear(root, digests if files.is_resumable else {})
    folders = {root}
    for name in digests:
        folders.update(_make_folders(root, name))
    if isinstance(files, OnDisk):
        _copy_all(files, digests, root, tell)
    else:
        for name in sorted(digests):
            _fetch(files, name, digests[name], os.path.join(root, name), tell)
    fd = os.open(os.path.join(root, LIST), _NEW, 0o666)
    with closing_fd(fd):
        put(fd, text)
    _write_out(root, [*digests, LIST], folders)


_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


def _clear(root: bytes, kept: Iterable[bytes]) -> None:
    """Remove what an earlier copy left there that this one has no use for."""
    wanted = frozenset(kept)
    for name in list(names_below(root)):
        if name not in wanted:
            os.unlink(os.path.join(root, name))


def _make_folders(root: bytes, name: bytes) -> Iterator[bytes]:
    path = root
    for folder in name.split(b"/")[:-1]:
        path = os.path.join(path, folder)
        if not os.path.isdir(path):
            os.mkdir(path)
        yield path


def _copy_all(files: OnDisk, digests: dict[bytes, str], root: bytes, tell: Tell) -> None:
    """Copy from disk to disk, several files at a time, the largest first."""
    crew = Crew()

    def size(name: bytes) -> int:
        with telling(name), closing(files.open(name)) as file:
            return file.size

    def copy_one(name: bytes) -> None:
        with telling(name):
            file = files.open(name)
        with closing(file):
            _copy_file(file, name, digests[name], os.path.join(root, name), crew, tell)

    sizes = {name: size(name) for name in digests}
    crew.work(copy_one, sorted(digests, key=lambda name: (-sizes[name], name)))


def _copy_file(
    file: DiskFile, name: bytes, stated: str, path: bytes, crew: Crew, tell: Tell
) -> None:
    fd = os.open(path, _NEW, file.mode)
    with closing_fd(fd):
        with telling(name):
            found = digest(file, crew, tell, into=fd)
        if found != stated:
            raise changed(name)


def _fetch(files: OverHttp, name: bytes, stated: str, path: bytes, tell: Tell) -> None:
    """Fetch a file over HTTP, or what is lacking of it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with closing_fd(fd):
        hashed = _hashed(fd, tell)
        is_resumed = os.fstat(fd).st_size > 0
        while hashed.hexdigest() != stated:
            with telling(name):
                is_whole = _append(files, name, fd, hashed, tell)
            if hashed.hexdigest() == stated:
                return
            if is_whole and not is_resumed:
                raise changed(name)
            # What was there before was no beginning of it.
            is_resumed = False
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            hashed = hashlib.sha256()


def _append(files: OverHttp, name: bytes, fd: int, hashed: hashlib._Hash, tell: Tell) -> bool:
    """Take the rest of a file, over as many connections as it needs; False: there is no rest."""
    patience = Patience("what was fetched is kept")
    while True:
        try:
            file = files.open(name, os.lseek(fd, 0, os.SEEK_CUR))
            if file is None:
                return False
            patience.found()
            with closing(file):
                for piece in file.pieces(fd):
                    hashed.update(piece)
                    tell(len(piece))
            return True
        except (Unreachable, Unavailable) as error:
            patience.lost(error)


def _hashed(fd: int, tell: Tell) -> hashlib._Hash:
    hashed = hashlib.sha256()
    while piece := os.read(fd, _PIECE):
        hashed.update(piece)
        tell(len(piece))
    return hashed


@contextmanager
def closing_fd(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def _write_out(root: bytes, names: list[bytes], folders: Iterable[bytes]) -> None:
    """Bring a copy to the disk before its folder gets its final name."""
    if len(names) > _FEW:
        # A commit of the journal for each of ten thousand files takes longer than to copy them.
        _sync_file_system(root)
        return
    for name in names:
        fd = os.open(os.path.join(root, name), os.O_RDONLY | os.O_NOFOLLOW)
        with closing_fd(fd):
            os.fdatasync(fd)
    for folder in folders:
        sync(folder)


def _sync_file_system(root: bytes) -> None:
    import ctypes

    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    with closing_fd(fd):
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def put_in_place(built: str, target: str) -> None:
    """Give what was built its final name; what was there under it goes."""
    os.chmod(built, (0o777 if os.path.isdir(built) else 0o666) & ~umask())
    aside = f"{built}.replaced"
    _remove(aside)
    if os.path.lexists(target):
        os.rename(target, aside)
    try:
        os.rename(built, target)
    except OSError:
        if os.path.lexists(aside):
            os.rename(aside, target)
        raise
    sync(os.path.dirname(target))
    _remove(aside)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def sync(folder: str | bytes) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
