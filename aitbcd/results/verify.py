"""Compare a sealed package with its manifest, and the manifest with the digest in the store.

Names each file that was changed, is missing or was added, and a changed manifest. Empty folders
are no files and do not count. Reads everything: call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from aitbcd import manifest
from aitbcd.results import beneath

_PIECE = 1 << 20
#: No manifest of ours comes near it: what is larger is none.
_MANIFEST_MAX = 1 << 30
_MANIFEST = manifest.FILE_NAME.encode()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``verify`` found."""

    files: int
    size: int
    #: (``changed`` | ``missing`` | ``extra`` | ``manifest``, path), by path.
    differences: tuple[tuple[str, bytes], ...]

    @property
    def is_ok(self) -> bool:
        return not self.differences


def verify(package: Path, digest: str | None) -> Verdict:
    """Return how a package differs from what was sealed.

    Args:
        digest: sha256 of its manifest as kept in the store; None when none is.
    """
    try:
        folder = beneath.open_folder(package)
    except beneath.NotThere:
        return Verdict(0, 0, (("missing", _MANIFEST),))
    try:
        return _verify(folder, digest)
    finally:
        os.close(folder)


def _verify(folder: int, digest: str | None) -> Verdict:
    found, total = _digests(folder)
    text = _read_manifest(folder)
    if text is None:
        kind = "manifest" if _MANIFEST in found else "missing"
        return Verdict(len(found), total, ((kind, _MANIFEST),))
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


def _digests(folder: int) -> tuple[dict[bytes, str], int]:
    """Return path -> digest of what is there, "" for what is no readable file; and all bytes."""
    digests: dict[bytes, str] = {}
    total = 0
    for path, is_file in beneath.walk(folder):
        if path.endswith(b"/"):
            continue
        digests[path], size = _digest(folder, path) if is_file else ("", 0)
        total += size
    return digests, total


def _digest(folder: int, path: bytes) -> tuple[str, int]:
    try:
        fd = beneath.open_beneath(folder, path)
    except (beneath.NotThere, PermissionError):
        return "", 0
    hashed, size = hashlib.sha256(), 0
    try:
        while piece := os.read(fd, _PIECE):
            hashed.update(piece)
            size += len(piece)
    finally:
        os.close(fd)
    return hashed.hexdigest(), size


def _read_manifest(folder: int) -> bytes | None:
    try:
        fd = beneath.open_beneath(folder, _MANIFEST)
    except (beneath.NotThere, PermissionError):
        return None
    with open(fd, "rb") as file:
        text = file.read(_MANIFEST_MAX + 1)
    return text if len(text) <= _MANIFEST_MAX else None
