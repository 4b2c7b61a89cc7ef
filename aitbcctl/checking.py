"""Is a folder or a zip on this machine what a list of checksums says? On all cores, reading once.

Follows no symlink: one in a package is a difference, whatever it points to.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress

from aitbcctl.crew import Crew
from aitbcctl.sources import DiskFile, open_beneath
from aitbcd import manifest

#: Takes a number of bytes just read.
Tell = Callable[[int], None]


def names_below(root: bytes) -> Iterator[bytes]:
    """Yield each file below a folder, and whatever else is there but no folder."""
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in names + links:
            yield os.path.relpath(os.path.join(folder, name), root)


def digests_below(root: bytes, tell: Tell) -> dict[bytes, str]:
    """Return each file's sha256, "" for what is no readable file."""
    names = {name: _size(os.path.join(root, name)) for name in names_below(root)}
    found = dict.fromkeys(names, "")
    crew = Crew()
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)

    def check(name: bytes) -> None:
        with suppress(OSError), closing(open_beneath(folder, name)) as file:
            found[name] = digest(file, crew, tell)

    try:
        # The largest first, so that no core is left alone with it at the end.
        crew.work(check, sorted(names, key=lambda name: -names[name]))
    finally:
        os.close(folder)
    return found


def digest(file: DiskFile, crew: Crew, tell: Tell, into: int | None = None) -> str:
    """Return the sha256 of a file, copied ``into`` another one meanwhile where that is given."""
    hashed = hashlib.sha256()
    for piece in file.pieces(into):
        crew.check()
        hashed.update(piece)
        tell(len(piece))
    return hashed.hexdigest()


def difference(root: bytes, stated: Mapping[bytes, str]) -> tuple[str, bytes] | None:
    """Return one way in which a folder differs from what is stated of all its files, or None."""
    names = dict.fromkeys(names_below(root), "")
    for kind, name in manifest.compare(stated, names):
        # Names tell at once what hashing would tell late.
        if kind != "changed":
            return kind, name
    return next(iter(manifest.compare(stated, digests_below(root, lambda count: None))), None)


def _size(path: bytes) -> int:
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
