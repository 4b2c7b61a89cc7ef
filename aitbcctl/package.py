"""A job's sealed package -> a verified copy under a name of the user's choice.

The copy is built beside its target under a temporary name, each file checked against output.sha256
while it is copied, synced, and renamed: under the final name there is the whole copy or nothing.
Files come straight from the disk where the caller may read it, else over HTTP. The names in the
list are somebody's data: only plain relative ones count, and no symlink is followed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager

from aitbcctl.client import Client, Response, job_path, quote
from aitbcctl.refusals import Refused
from aitbcctl.render import plain
from aitbcd import manifest
from aitbcd.errors import ClientFailure, NoSuchFile

_PIECE = 1024 * 1024
#: A list of more than a million files.
_LIST_MAX = 256 * 1024 * 1024
_LIST = manifest.FILE_NAME.encode()
_LOOK_CLOSER = "what exactly differs: aitbcctl verify"

#: Takes the number of bytes just copied.
Tell = Callable[[int], None]


class Corrupt(ClientFailure):
    """The stored results are not what was sealed; nothing was copied."""


class _DiskFile:
    """A file of the package, open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(0, "it is no regular file")
        #: What the copy is made with, less the umask.
        self.mode = 0o777 if status.st_mode & stat.S_IXUSR else 0o666

    def read(self) -> bytes:
        return os.read(self._fd, _PIECE)

    def close(self) -> None:
        os.close(self._fd)


class _HttpFile:
    """A file of the package on its way."""

    mode = 0o666

    def __init__(self, response: Response) -> None:
        self._response = response
        self._pieces = response.pieces()

    def read(self) -> bytes:
        return next(self._pieces, b"")

    def close(self) -> None:
        self._response.close()


class OnDisk:
    """The package in the daemon's results folder, for who can read it."""

    def __init__(self, folder: str) -> None:
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def open(self, name: bytes) -> _DiskFile:
        *folders, last = name.split(b"/")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        at = os.dup(self._root)
        try:
            for folder in folders:
                below = os.open(folder, flags | os.O_DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            return _DiskFile(os.open(last, flags, dir_fd=at))
        finally:
            os.close(at)

    def close(self) -> None:
        os.close(self._root)


class OverHttp:
    """The package as the daemon hands it out, file by file."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self._job_id = job_id

    def open(self, name: bytes) -> _HttpFile:
        path = job_path(self._job_id, "files", quote(name, safe=b"/"))
        try:
            return _HttpFile(self._client.open("GET", path))
        except NoSuchFile as error:
            raise FileNotFoundError(2, error.detail) from None

    def close(self) -> None:
        """Nothing is held between two files."""


Source = OnDisk | OverHttp


def source(client: Client, job_id: str, result_path: str | None) -> Source:
    """Return the cheaper way to the files that is open to this caller; close it."""
    if result_path is not None:
        try:
            disk = OnDisk(result_path)
        except OSError:
            pass
        else:
            try:
                disk.open(_LIST).close()
                return disk
            except OSError:  # readable by its group only, or the path of another machine
                disk.close()
    return OverHttp(client, job_id)


def read_list(files: Source, sealed: str | None) -> tuple[bytes, dict[bytes, str]]:
    """Return output.sha256 and what it says: file -> digest.

    Args:
        sealed: the list's own digest as the daemon recorded it.

    Raises:
        Corrupt: it is not the list that was sealed, or names what no package has.
    """
    text = b""
    for piece in _pieces(files, _LIST):
        text += piece
        if len(text) > _LIST_MAX:
            raise Corrupt(f"{manifest.FILE_NAME} is larger than any that is sealed")
    if sealed is not None and hashlib.sha256(text).hexdigest() != sealed:
        raise Corrupt(
            f"{manifest.FILE_NAME} was changed after the job's end; nothing was copied",
            hint=_LOOK_CLOSER,
        )
    try:
        digests = manifest.parse(text)
    except manifest.BadManifest as error:
        raise Corrupt(f"{error}; nothing was copied", hint=_LOOK_CLOSER) from None
    for name in digests:
        if not is_plain(name) or name == _LIST:
            raise Corrupt(f"{manifest.FILE_NAME} names {_shown(name)}; nothing was copied")
    return text, digests


def is_plain(name: bytes) -> bool:
    """Tell whether a name can only mean a file below the folder that it is joined to."""
    parts = name.split(b"/")
    return b"\0" not in name and not any(part in (b"", b".", b"..") for part in parts)


def copy(
    files: Source, text: bytes, digests: dict[bytes, str], target: str, *, force: bool, tell: Tell
) -> bool:
    """Copy a package to ``target``; return False when the same was there already.

    Raises:
        Refused: something else is there, and ``force`` was not given.
        Corrupt: a file is not what was sealed; ``target`` is as it was.
        ClientFailure: it could not be written; ``target`` is as it was.
    """
    folder, name = os.path.split(target)
    try:
        if os.path.lexists(target) and not force:
            _refuse_other(target, text, digests)
            return False
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as beside:
            built = os.path.join(beside, name)
            _build(files, text, digests, os.fsencode(built), tell)
            _put_in_place(built, target, os.path.join(beside, "replaced"))
            _sync(folder)
    except (FileExistsError, NotADirectoryError):
        raise ClientFailure(
            f"cannot write below {folder}: it is no folder", hint="choose another --output"
        ) from None
    except OSError as error:
        raise ClientFailure(
            f"cannot write {target}: {error.strerror}", hint="nothing was left under that name"
        ) from None
    return True


def _refuse_other(target: str, text: bytes, digests: dict[bytes, str]) -> None:
    difference = _difference(target, digests | {_LIST: hashlib.sha256(text).hexdigest()})
    if difference is not None:
        raise Refused(
            f"{target} exists already and is not the same: {difference}",
            hint="choose another --output, or replace it with --force",
        )


def _difference(target: str, expected: dict[bytes, str]) -> str | None:
    """Return in words what an earlier copy has otherwise than the package."""
    if os.path.islink(target) or not os.path.isdir(target):
        return "it is no folder"
    root = os.fsencode(target)
    found = set(_files_below(root))
    for name in sorted(expected.keys() | found):
        if name not in found:
            return f"{_shown(name)} is missing there"
        if name not in expected:
            return f"{_shown(name)} is only there"
        if _digest_of(os.path.join(root, name)) != expected[name]:
            return f"{_shown(name)} has other content there"
    return None


def _files_below(root: bytes) -> Iterator[bytes]:
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in names + links:
            yield os.path.relpath(os.path.join(folder, name), root)


def _digest_of(path: bytes) -> str | None:
    try:
        file = _DiskFile(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError:
        return None
    with closing(file):
        found = hashlib.sha256()
        while piece := file.read():
            found.update(piece)
        return found.hexdigest()


def _build(files: Source, text: bytes, digests: dict[bytes, str], root: bytes, tell: Tell) -> None:
    os.mkdir(root)
    folders = {root}
    for name in sorted(digests):
        folders.update(_make_folders(root, name))
        path = os.path.join(root, name)
        # As in the package: where result.txt is the job's stdout, it is one file with it.
        if name == b"result.txt" and digests.get(b"logs/stdout.log") == digests[name]:
            os.link(os.path.join(root, b"logs/stdout.log"), path)
        else:
            _copy_file(files, name, digests[name], path, tell)
    _write(os.path.join(root, _LIST), [text], 0o666, tell)
    for folder in folders:
        _sync(folder)


def _make_folders(root: bytes, name: bytes) -> Iterator[bytes]:
    path = root
    for folder in name.split(b"/")[:-1]:
        path = os.path.join(path, folder)
        if not os.path.isdir(path):
            os.mkdir(path)
        yield path


def _copy_file(files: Source, name: bytes, digest: str, path: bytes, tell: Tell) -> None:
    found = hashlib.sha256()

    def checked() -> Iterator[bytes]:
        for piece in _pieces(files, name, file):
            found.update(piece)
            yield piece

    with _telling(name):
        file = files.open(name)
    _write(path, checked(), file.mode, tell)
    if found.hexdigest() != digest:
        raise Corrupt(
            f"{_shown(name)} is not what was sealed: its checksum differs; nothing was copied",
            hint=_LOOK_CLOSER,
        )


def _pieces(
    files: Source, name: bytes, file: _DiskFile | _HttpFile | None = None
) -> Iterator[bytes]:
    with _telling(name):
        file = file or files.open(name)
    with closing(file):
        while True:
            with _telling(name):
                piece = file.read()
            if not piece:
                return
            yield piece


@contextmanager
def _telling(name: bytes) -> Iterator[None]:
    """Turn what happens to a stored file into an error that names it: ours are told elsewhere."""
    try:
        yield
    except FileNotFoundError:
        raise Corrupt(
            f"{_shown(name)} is missing in the stored results; nothing was copied",
            hint=_LOOK_CLOSER,
        ) from None
    except OSError as error:
        raise Corrupt(
            f"{_shown(name)} cannot be read in the stored results: {error.strerror}; "
            "nothing was copied",
            hint=_LOOK_CLOSER,
        ) from None


def _write(path: bytes, pieces: Iterable[bytes], mode: int, tell: Tell) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        size = 0
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
            size += len(piece)
            tell(len(piece))
        if size:
            os.fdatasync(fd)
    finally:
        os.close(fd)


def _put_in_place(built: str, target: str, aside: str) -> None:
    if not os.path.lexists(target):
        os.rename(built, target)
        return
    os.rename(target, aside)
    try:
        os.rename(built, target)
    except OSError:
        os.rename(aside, target)
        raise


def _sync(folder: str | bytes) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _shown(name: bytes) -> str:
    return plain(os.fsdecode(name))
