"""Compare a sealed package with its manifest, and the manifest with the digest in the store.

Names each file that was changed, is missing or was added, and a changed manifest. Empty folders
are no files and do not count. Reads everything once, on all cores: hashlib lets go of the
interpreter while it works. Call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

from msgspec import Struct

from aitbcd import manifest
from aitbcd.results import beneath
from aitbcd.results.package import Package

_PIECE = 1 << 20
#: No manifest of ours comes near it: what is larger is none.
_MANIFEST_MAX = 1 << 30
#: More than any file has.
ANY_SIZE = 1 << 62
_MANIFEST = manifest.FILE_NAME.encode()
_RESULT = b"result.txt"
_STDOUT = b"logs/stdout.log"


class Abandoned(Exception):
    """Whoever wanted to know has left."""


class Verdict(Struct, frozen=True):
    """What ``verify`` found."""

    files: int
    #: Bytes: once what has two names.
    size: int
    #: (``changed`` | ``missing`` | ``extra`` | ``manifest``, path), by path.
    differences: tuple[tuple[str, bytes], ...]

    @property
    def is_ok(self) -> bool:
        return not self.differences


def verify(
    package: Path, digest: str | None, left: Event | None = None, sealed_bytes: int = ANY_SIZE
) -> Verdict:
    """Return how a package differs from what was sealed.

    Args:
        digest: sha256 of its manifest as kept in the store; None when none is.
        sealed_bytes: of the whole package; a larger file is another one, and is not read.
        left: set when nobody waits for the verdict any more.

    Raises:
        Abandoned: ``left`` was set.
    """
    try:
        opened = Package(package)
    except beneath.NotThere:
        return Verdict(0, 0, (("missing", _MANIFEST),))
    with opened, opened.held() as folder:
        return _verify(folder, digest, left or Event(), sealed_bytes)


def _verify(folder: int, digest: str | None, left: Event, most: int) -> Verdict:
    text = _read_manifest(folder, most)
    stated = text.count(b"\n") if text else 1
    found, total = _Digests(folder, left, most).of_all(stated)
    if text is None:
        kind = "manifest" if _MANIFEST in found else "missing"
        return Verdict(len(found), total, ((kind, _MANIFEST),))
    total += len(text)
    differences: list[tuple[str, bytes]] = []
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        differences.append(("manifest", _MANIFEST))
    found.pop(_MANIFEST, None)
    try:
        differences += manifest.compare(manifest.parse(text), found)
    except manifest.BadManifest:
        if not differences:
            differences.append(("manifest", _MANIFEST))
    return Verdict(len(found) + 1, total, tuple(differences))


class _Digests:
    """The digests of all files below a folder, made by as many threads as there are cores."""

    def __init__(self, folder: int, left: Event, most: int) -> None:
        self._folder = folder
        self._most = most
        self._left = left
        self._lock = Lock()
        #: result.txt is then another name of stdout.log, and is neither read nor counted again.
        self._is_shared = beneath.is_same_file(folder, _RESULT, _STDOUT)
        self._paths = self._to_hash()
        self._found: dict[bytes, str] = {}
        self._total = 0

    def of_all(self, expected: int) -> tuple[dict[bytes, str], int]:
        """Return path -> digest, "" for what is no readable file; and all bytes."""
        count = max(1, min(len(os.sched_getaffinity(0)), expected))
        with ThreadPoolExecutor(count, thread_name_prefix="verify") as pool:
            for worker in [pool.submit(self._work) for _ in range(count)]:
                worker.result()
        if self._left.is_set():
            raise Abandoned
        if self._is_shared:
            self._found[_RESULT] = self._found.get(_STDOUT, "")
        return self._found, self._total

    def _work(self) -> None:
        buffer = memoryview(bytearray(_PIECE))
        while (path := self._next()) is not None:
            digest, size = self._digest(path, buffer)
            with self._lock:
                self._found[path] = digest
                self._total += size

    def _next(self) -> bytes | None:
        with self._lock:
            return None if self._left.is_set() else next(self._paths, None)

    def _to_hash(self) -> Iterator[bytes]:
        for path, is_file in beneath.walk(self._folder):
            if is_file and path != _MANIFEST:
                if not (self._is_shared and path == _RESULT):
                    yield path
            elif not path.endswith(b"/"):
                self._found[path] = ""

    def _digest(self, path: bytes, buffer: memoryview) -> tuple[str, int]:
        hashed, size = hashlib.sha256(), 0
        try:
            fd = beneath.open_beneath(self._folder, path)
            with open(fd, "rb", buffering=0) as file:
                if os.fstat(fd).st_size > self._most:
                    # Its owner has put a hole there, say, that takes days to read.
                    return "", 0
                while (count := file.readinto(buffer)) and not self._left.is_set():
                    hashed.update(buffer[:count])
                    size += count
        except (beneath.NotThere, OSError):
            # A disk that cannot give a file back has not kept it as it was.
            return "", size
        return hashed.hexdigest(), size


def _read_manifest(folder: int, most: int) -> bytes | None:
    try:
        fd = beneath.open_beneath(folder, _MANIFEST)
    except (beneath.NotThere, PermissionError):
        return None
    limit = min(most, _MANIFEST_MAX)
    with open(fd, "rb") as file:
        text = file.read(limit + 1) if os.fstat(fd).st_size <= limit else None
    return text if text is not None and len(text) <= limit else None
