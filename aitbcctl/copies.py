"""A copy of a job's package, a folder or a zip, against its list of checksums.

The list itself is checked against what the daemon recorded, where one answers that knows the job;
a copy in another place, or of a job that was deleted, is checked against its own list alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable

from aitbcctl import archive
from aitbcctl.checking import digests_below
from aitbcctl.client import Client, Json, job_path
from aitbcctl.meter import Meter
from aitbcctl.sources import LIST, LIST_MAX
from aitbcctl.terminal import say
from aitbcd import manifest, wire
from aitbcd.errors import AitbcError, ClientFailure, NoSuchJob

_JOB_ID = re.compile(r"job_[0-9a-z]{8}")
Differences = list[tuple[str, bytes]]


def verify(client: Client, ref: str | None, path: str) -> Json:
    """Return how a copy differs, as the API does for what is stored.

    Args:
        ref: the job, where it was named; else the copy itself says it.

    Raises:
        NoSuchJob: ``ref`` was given, and the daemon does not know it.
        ClientFailure: there is no copy at ``path``.
    """
    if os.path.isfile(path):
        return _verify_zip(client, ref, path)
    folder = _folder(path, ref)
    text = _read(os.path.join(folder, manifest.FILE_NAME))
    sealed = _sealed(client, ref, os.path.basename(os.path.realpath(folder)))
    with Meter(None) as meter:
        found = digests_below(os.fsencode(folder), meter.tell)
        total = meter.done
    return _answer(len(found), total, _compare(text, sealed, found))


def _compare(text: bytes | None, sealed: str | None, found: dict[bytes, str]) -> Differences:
    if text is None:
        return [("manifest" if LIST in found else "missing", LIST)]
    differences = _of_list(text, sealed)
    files = {name: digest for name, digest in found.items() if name != LIST}
    try:
        return differences + manifest.compare(manifest.parse(text), files)
    except manifest.BadManifest:
        return differences or [("manifest", LIST)]


def _of_list(text: bytes, sealed: str | None) -> Differences:
    """Return how a list differs from what the daemon recorded of it, where that is known."""
    is_other = sealed not in (None, hashlib.sha256(text).hexdigest())
    return [("manifest", LIST)] if is_other else []


def _folder(path: str, ref: str | None) -> str:
    """Return the folder of the copy: ``path``, or the job's own in it, as download made it."""
    if not os.path.isdir(path):
        raise ClientFailure(f"there is no folder and no zip at {path}")
    below = os.path.join(path, ref) if ref and _JOB_ID.fullmatch(ref) else path
    for folder in (path, below):
        if os.path.lexists(os.path.join(folder, manifest.FILE_NAME)):
            return folder
    if _JOB_ID.fullmatch(os.path.basename(os.path.realpath(below))) and os.path.isdir(below):
        return below
    raise ClientFailure(
        f"{path} is no copy of a job's results: there is no {manifest.FILE_NAME} in it",
        hint=f"name the folder that download made: {os.path.join(path, 'job_...')}",
    )


def _read(path: str) -> bytes | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            text = file.read(LIST_MAX + 1)
    except OSError:
        return None
    return text if len(text) <= LIST_MAX else None


def _sealed(client: Client, ref: str | None, name: str) -> str | None:
    """Return the list's checksum as the daemon recorded it; None, and say so, where none does."""
    named = ref or (name if _JOB_ID.fullmatch(name) else None)
    why = "the copy does not say of which job it is"
    if named:
        try:
            digest = client.get(job_path(named), detail=True).get("manifest_sha256")
            if digest is not None:
                return str(digest)
            why = f"the daemon has no checksum of {named}"
        except NoSuchJob:
            why = _why_unknown(client, named, is_asked_for=ref is not None)
        except AitbcError as error:
            why = error.detail
    say(f"note: checked against the copy's own {manifest.FILE_NAME} alone: {why}")
    return None


def _why_unknown(client: Client, named: str, *, is_asked_for: bool) -> str:
    try:
        client.get(job_path(named))
    except NoSuchJob:
        if is_asked_for:
            raise
        return f"the daemon knows no {named}"
    except AitbcError as error:
        return error.detail
    return f"{named} is another user's, and of such ones the daemon tells no checksum"


def _verify_zip(client: Client, ref: str | None, path: str) -> Json:
    name = os.path.basename(path).partition(".")[0]
    job_id, text, size = archive.listed(path)
    sealed = _sealed(client, ref, job_id or name)
    if text is None:
        return _answer(0, size, [("missing", LIST)])
    differences = _of_list(text, sealed)
    try:
        stated = manifest.parse(text)
    except manifest.BadManifest:
        return _answer(0, size, differences or [("manifest", LIST)])
    stated[LIST] = hashlib.sha256(text).hexdigest()
    differences += [
        (kind, os.fsencode(name.removeprefix(f"{job_id}/")))
        for kind, name in archive.differences(path, job_id, stated)
    ]
    return _answer(len(stated), size, differences)


def _answer(files: int, size: int, differences: Iterable[tuple[str, bytes]]) -> Json:
    shown = [{"kind": kind, "path": wire.text(path)} for kind, path in differences]
    return {"ok": not shown, "files": files, "bytes": size, "differences": shown}
