"""Where the files of a sealed package are read: from the disk, else over HTTP.

The names in its list are somebody's data: only plain relative ones count, no symlink is followed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

from aitbcctl.client import Client, Response, job_path, quote
from aitbcctl.render import plain
from aitbcd import manifest
from aitbcd.errors import BadRange, ClientFailure, NoSuchFile

LIST = manifest.FILE_NAME.encode()
#: A list of more than a million files.
LIST_MAX = 256 * 1024 * 1024
_PIECE = 1024 * 1024
#: Past the page cache's read-ahead, and short enough to be left at ^C.
_SPAN = 8 * 1024 * 1024
#: What only writing can meet.
_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
#: What says that copy_file_range(2) is not for these two files, and that read and write are.
_NO_RANGE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


class Corrupt(ClientFailure):
    """The stored results are not what was sealed; nothing was copied."""


class DiskFile:
    """A regular file, open; ``pieces`` also puts them into another one where it is given."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(0, "it is no regular file")
        self.size = status.st_size
        #: What a copy is made with, less the umask.
        self.mode = 0o777 if status.st_mode & stat.S_IXUSR else 0o666

    def pieces(self, into: int | None = None) -> Iterator[bytes]:
        """Yield the bytes; with ``into``, those that are in that file after they were copied."""
        if into is not None:
            at = yield from self._ranges(into)
            os.lseek(self._fd, at, os.SEEK_SET)
        while piece := os.read(self._fd, _PIECE):
            if into is not None:
                put(into, piece)
            yield piece

    def _ranges(self, into: int) -> Generator[bytes, None, int]:
        """Let the kernel copy, or share blocks (reflink), as far as it will; return how far."""
        at = 0
        while True:
            try:
                count = os.copy_file_range(self._fd, into, _SPAN, at, at)
            except OSError as error:
                if error.errno not in _NO_RANGE:
                    raise
                count = 0
            if not count:
                os.lseek(into, at, os.SEEK_SET)
                return at
            end = at + count
            while at < end:
                # What is hashed is what arrived.
                piece = os.pread(into, min(_PIECE, end - at), at)
                if not piece:
                    raise OSError(errno.EIO, "what was copied cannot be read back")
                at += len(piece)
                yield piece

    def close(self) -> None:
        os.close(self._fd)


class HttpFile:
    """A file of the package on its way, from an offset on."""

    mode = 0o666

    def __init__(self, response: Response) -> None:
        self._response = response

    def pieces(self, into: int | None = None) -> Iterator[bytes]:
        for piece in self._response.pieces():
            if into is not None:
                put(into, piece)
            yield piece

    def close(self) -> None:
        self._response.close()


class OnDisk:
    """The package in the daemon's results folder, for who can read it."""

    #: What was copied before an interruption is not worth keeping.
    is_resumable = False

    def __init__(self, folder: str) -> None:
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            # Nobody deletes it meanwhile; where somebody is about to, it is gone already.
            fcntl.flock(self._root, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._root)
            raise

    def open(self, name: bytes) -> DiskFile:
        return open_beneath(self._root, name)

    def close(self) -> None:
        os.close(self._root)


class OverHttp:
    """The package as the daemon hands it out, file by file."""

    is_resumable = True

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self._job_id = job_id

    def open(self, name: bytes, offset: int = 0) -> HttpFile | None:
        """Return the file from ``offset`` on; None where it is not so long."""
        path = job_path(self._job_id, "files", quote(name, safe=b"/"))
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            response = self._client.open("GET", path, headers=headers)
        except NoSuchFile as error:
            raise FileNotFoundError(2, error.detail) from None
        except BadRange:
            return None
        if offset and response.status != 206:
            response.close()
            return None
        return HttpFile(response)

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
                disk.open(LIST).close()
                return disk
            except OSError:  # readable by its group only, or the path of another machine
                disk.close()
    return OverHttp(client, job_id)


def open_beneath(root: int, name: bytes) -> DiskFile:
    """Open a regular file below an open folder; no symlink on the way is followed."""
    *folders, last = name.split(b"/")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    at = os.dup(root)
    try:
        for folder in folders:
            below = os.open(folder, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        return DiskFile(os.open(last, flags, dir_fd=at))
    finally:
        os.close(at)


def read_list(files: Source, sealed: str | None) -> tuple[bytes, dict[bytes, str]]:
    """Return output.sha256 and what it says: file -> digest.

    Args:
        sealed: the list's own digest as the daemon recorded it.

    Raises:
        Corrupt: it is not the list that was sealed, or names what no package has.
    """
    text = b""
    with telling(LIST):
        file = files.open(LIST)
        assert file is not None
        with closing(file):
            for piece in file.pieces():
                text += piece
                if len(text) > LIST_MAX:
                    raise Corrupt(f"{manifest.FILE_NAME} is larger than any that is sealed")
    if sealed is not None and hashlib.sha256(text).hexdigest() != sealed:
        raise Corrupt(f"{manifest.FILE_NAME} was changed after the job's end; nothing was copied")
    try:
        digests = manifest.parse(text)
    except manifest.BadManifest as error:
        raise Corrupt(f"{error}; nothing was copied") from None
    for name in digests:
        if not is_plain(name) or name == LIST:
            raise Corrupt(f"{manifest.FILE_NAME} names {shown(name)}; nothing was copied")
    return text, digests


def is_plain(name: bytes) -> bool:
    """Tell whether a name can only mean a file below the folder that it is joined to."""
    parts = name.split(b"/")
    return b"\0" not in name and not any(part in (b"", b".", b"..") for part in parts)


def changed(name: bytes) -> Corrupt:
    """Return the error for a file whose bytes are not those that were sealed."""
    return Corrupt(
        f"{shown(name)} is not what was sealed: its checksum differs; nothing was copied"
    )


@contextmanager
def telling(name: bytes) -> Iterator[None]:
    """Turn what happens to a stored file into an error that names it; our own files' pass."""
    try:
        yield
    except FileNotFoundError:
        raise Corrupt(
            f"{shown(name)} is missing in the stored results; nothing was copied"
        ) from None
    except OSError as error:
        if error.errno in _OF_WRITING:
            raise
        raise Corrupt(
            f"{shown(name)} cannot be read in the stored results: {error.strerror}; "
            "nothing was copied"
        ) from None


def put(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def shown(name: bytes) -> str:
    return plain(os.fsdecode(name))
