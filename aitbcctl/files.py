"""Files of the caller: read within bounds, written whole or not at all.

A plain submit pays for the import of this, so that it imports next to nothing itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from aitbcd.errors import ClientFailure, TooLarge


def umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def contents(file: str, most: int, what: str, *, hint: str | None = None) -> bytes:
    """Return what is in a file; ``-`` is stdin.

    Raises:
        ClientFailure: it cannot be read.
        TooLarge: it has more than ``most`` bytes, the limit of ``what``.
    """
    try:
        if file == "-":
            data = sys.stdin.buffer.read(most + 1)
        else:
            with open(file, "rb") as opened:
                data = opened.read(most + 1)
    except OSError as error:
        raise ClientFailure(f"cannot read {file}: {error.strerror}") from None
    if len(data) > most:
        detail = f"{file} is larger than {most >> 20} MiB, the limit of {what}"
        raise TooLarge(detail, hint=hint)
    return data


@contextmanager
def written_whole(path: str) -> Iterator[Callable[[bytes], object]]:
    """Give what writes a file that appears under its name at the end, on the disk.

    Raises:
        OSError: it could not be written; what was there is there.
    """
    import tempfile

    folder, name = os.path.split(path)
    beside = ""
    try:
        fd, beside = tempfile.mkstemp(prefix=f".{name[:100]}.", dir=folder or ".")
        with open(fd, "wb") as file:
            yield file.write
            file.flush()
            os.fsync(fd)
            os.fchmod(fd, 0o666 & ~umask())
        os.rename(beside, path)
    finally:
        with suppress(OSError):
            os.unlink(beside)


@contextmanager
def output_file(path: str) -> Iterator[Callable[[bytes], object]]:
    """Give what writes a file that was asked for by ``--output``, whole or not at all.

    Raises:
        ClientFailure: it could not be written; what was there is there.
    """
    try:
        if _is_special(path):
            with open(path, "wb") as file:
                yield file.write
        else:
            with written_whole(path) as write:
                yield write
    except OSError as error:
        raise ClientFailure(
            f"cannot write {path}: {error.strerror}", hint="choose another --output"
        ) from None


def _is_special(path: str) -> bool:
    """Tell whether a name stands for what is no file: /dev/stdout, a named pipe."""
    import stat

    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
