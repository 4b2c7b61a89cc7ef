"""``output.sha256`` in the current directory, for ``sha256sum -c`` there, whatever its package."""

from __future__ import annotations

import hashlib
import os
import re

from aitbcctl.files import written_whole
from aitbcctl.refusals import Refused
from aitbcctl.sources import LIST, LIST_MAX
from aitbcd import manifest
from aitbcd.errors import ClientFailure

_OF_A_JOB = re.compile(rb"(?:\A|/)job_[0-9a-z]{8}/")


def check_is_free(*, force: bool) -> None:
    """Make sure that no other list than one of ours would be overwritten.

    Raises:
        Refused: the file there lists something else, for one the package that we are in.
    """
    if force or not os.path.lexists(LIST):
        return
    try:
        with open(LIST, "rb") as file:
            names = manifest.parse(file.read(LIST_MAX))
    except (OSError, manifest.BadManifest):
        names = {b"": ""}
    if not all(_OF_A_JOB.search(name) for name in names):
        raise Refused(
            f"{manifest.FILE_NAME} is here already and is no list of a download",
            hint="go to another directory, or replace it with --force",
        )


def write(folder: str, text: bytes, digests: dict[bytes, str]) -> None:
    """Write the list of a package whose copy is ``folder``, as seen from here."""
    digests = digests | {LIST: hashlib.sha256(text).hexdigest()}
    prefix = os.fsencode(os.path.normpath(folder))
    lines = manifest.build((b"%s/%s" % (prefix, name), digest) for name, digest in digests.items())
    try:
        with written_whole(manifest.FILE_NAME) as put:
            put(lines)
    except OSError as error:
        raise ClientFailure(
            f"cannot write {manifest.FILE_NAME} here: {error.strerror}",
            hint="go to a directory of yours",
        ) from None
