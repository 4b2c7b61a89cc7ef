"""A job's package as one zip, fetched from the daemon, resumed where it broke off, then verified.

Built as ``.NAME.partial`` beside its target, like a folder (see ``package``). Names that are no
UTF-8 stand in a zip as the daemon writes them, with backslashes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from zipfile import BadZipFile, ZipFile, ZipInfo

from aitbcctl.client import Client, Response, job_path
from aitbcctl.crew import Crew
from aitbcctl.following import Patience
from aitbcctl.meter import Meter
from aitbcctl.package import claim, other_content, partial_of, placing, put_in_place
from aitbcctl.sources import LIST, LIST_MAX, Corrupt, put
from aitbcd import manifest
from aitbcd.errors import BadRange, ClientFailure, Unavailable, Unreachable

_PIECE = 1024 * 1024


def fetch(
    client: Client, job_id: str, text: bytes, digests: dict[bytes, str], target: str, *, force: bool
) -> bool:
    """Write a job's package to the zip ``target``; return False when the same was there already.

    Raises:
        Refused, Corrupt, ClientFailure: as ``package.copy``; ``target`` is as it was.
    """
    stated = digests | {LIST: hashlib.sha256(text).hexdigest()}
    with placing(target):
        if os.path.lexists(target) and not force:
            if os.path.islink(target) or not os.path.isfile(target):
                raise other_content(target, "it is no file")
            if found := differences(target, job_id, stated):
                raise other_content(target, f"{found[0][1]} differs")
            return False
        os.makedirs(os.path.dirname(target), exist_ok=True)
        partial = partial_of(target)
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            claim(fd, partial)
            _fill(client, job_id, stated, fd, partial)
            os.fdatasync(fd)
            put_in_place(partial, target)
        finally:
            os.close(fd)
    return True


def _fill(client: Client, job_id: str, stated: dict[bytes, str], fd: int, partial: str) -> None:
    """Leave the whole, verified zip in ``partial``; what cannot become that is removed."""
    try:
        is_resumed = os.fstat(fd).st_size > 0
        while True:
            _append(client, job_id, stated[LIST], fd)
            found = differences(partial, job_id, stated)
            if not found:
                return
            if not is_resumed:
                raise Corrupt(f"{found[0][1]} is not what was sealed; nothing was kept")
            is_resumed = False
            os.ftruncate(fd, 0)
    except (KeyboardInterrupt, Unreachable, Unavailable):
        raise
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def _append(client: Client, job_id: str, tag: str, fd: int) -> None:
    """Take the rest of the zip, over as many connections as it needs."""
    patience = Patience("what was fetched is kept")
    with Meter(None) as meter:
        while True:
            try:
                with _ask(client, job_id, tag, os.lseek(fd, 0, os.SEEK_END)) as response:
                    patience.found()
                    _take(response, fd, meter)
                return
            except BadRange:
                return  # it is all there
            except (Unreachable, Unavailable) as error:
                patience.lost(error)


def _ask(client: Client, job_id: str, tag: str, offset: int) -> Response:
    headers = {"Range": f"bytes={offset}-", "If-Range": f'"{tag}"'} if offset else {}
    return client.open("GET", job_path(job_id, "download"), headers=headers)


def _take(response: Response, fd: int, meter: Meter) -> None:
    if response.status != 206:
        os.ftruncate(fd, 0)
    at = os.lseek(fd, 0, os.SEEK_END)
    meter.tell(at)
    if length := response.headers.get("content-length"):
        meter.expect(at + int(length))
    for piece in response.pieces():
        put(fd, piece)
        meter.tell(len(piece))


def differences(path: str, job_id: str, stated: dict[bytes, str]) -> list[tuple[str, str]]:
    """Return (``changed`` | ``missing`` | ``extra``, name) for each difference of a zip."""
    expected = {f"{job_id}/{name.decode(errors='backslashreplace')}": digest
                for name, digest in stated.items()}  # fmt: skip
    try:
        with ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            found = _digests(archive, entries)
    except (BadZipFile, NotImplementedError, RuntimeError, EOFError):
        return [("changed", os.path.basename(path))]
    except OSError as error:
        raise ClientFailure(f"cannot read {path}: {error.strerror}") from None
    return [
        ("missing" if name not in found else "extra" if name not in expected else "changed", name)
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def _digests(archive: ZipFile, entries: Iterable[ZipInfo]) -> dict[str, str]:
    found: dict[str, str] = {}
    crew = Crew()

    def check(entry: ZipInfo) -> None:
        hashed = hashlib.sha256()
        try:
            with archive.open(entry) as file:
                while piece := file.read(_PIECE):
                    crew.check()
                    hashed.update(piece)
        except BadZipFile:  # its own checksum tells
            found[entry.filename] = ""
            return
        found[entry.filename] = hashed.hexdigest()

    crew.work(check, sorted(entries, key=lambda entry: -entry.file_size))
    return found


def listed(path: str) -> tuple[str, bytes | None, int]:
    """Return a zip's job id, its list of checksums, and the bytes of all its files.

    Raises:
        ClientFailure: it is no zip of a job's results.
    """
    suffix = f"/{manifest.FILE_NAME}"
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
            tops = {entry.filename.partition("/")[0] for entry in entries}
            if len(tops) != 1:
                raise BadZipFile("it is no zip of a job's results")
            (top,) = tops
            size = sum(entry.file_size for entry in entries)
            held = [entry for entry in entries if entry.filename == top + suffix]
            if not held or held[0].file_size > LIST_MAX:
                return top, None, size
            return top, archive.read(held[0]), size
    except (BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ClientFailure(f"cannot check {path}: {error}") from None
    except OSError as error:
        raise ClientFailure(f"cannot read {path}: {error.strerror}") from None
