"""The records of a zip whose files are stored as they are (PKWARE APPNOTE 6.3). Pure.

A file's checksum follows its bytes in a data descriptor, so that a zip can be written without
reading a file twice. Nothing in it depends on when it is written: the same files give the same
bytes, and who lost the connection may go on in the middle.
"""

from __future__ import annotations

import struct
import time
from typing import NamedTuple

_MAX_32 = 0xFFFFFFFF
_MAX_16 = 0xFFFF
_SIZES_LATER, _UTF8 = 1 << 3, 1 << 11
_VERSION, _VERSION_64 = 20, 45
_ON_UNIX = 3 << 8
#: What both a date of MS-DOS (from 1980) and 32 bits of seconds can say.
_EARLIEST, _LATEST = 315_619_200, _MAX_32

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")


class Entry(NamedTuple):
    """A file or an empty folder (its name ends with a slash)."""

    name: bytes
    size: int
    #: Seconds since the epoch.
    modified_at: int
    is_executable: bool = False

    @property
    def is_folder(self) -> bool:
        return self.name.endswith(b"/")

    @property
    def _is_large(self) -> bool:
        return self.size >= _MAX_32

    @property
    def _flags(self) -> int:
        return (0 if self.is_folder else _SIZES_LATER) | (0 if self.name.isascii() else _UTF8)

    @property
    def _mode(self) -> int:
        if self.is_folder:
            return 0o40755
        return 0o100755 if self.is_executable else 0o100644


def header(entry: Entry) -> bytes:
    """Return what stands before a file's bytes."""
    sizes, extra = 0, _timestamp(entry)
    if entry._is_large:
        sizes, extra = _MAX_32, extra + struct.pack("<2H2Q", 1, 16, 0, 0)
    version = _VERSION_64 if entry._is_large else _VERSION
    fixed = _LOCAL.pack(b"PK\x03\x04", version, entry._flags, 0, *_dos_time(entry.modified_at),
                        0, sizes, sizes, len(entry.name), len(extra))  # fmt: skip
    return fixed + entry.name + extra


def descriptor(entry: Entry, checksum: int) -> bytes:
    """Return what stands behind a file's bytes; ``checksum`` is their CRC-32."""
    if entry.is_folder:
        return b""
    form = "<4sL2Q" if entry._is_large else "<4s3L"
    return struct.pack(form, b"PK\x07\x08", checksum, entry.size, entry.size)


def directory_entry(entry: Entry, checksum: int, offset: int) -> bytes:
    """Return a file's line in the central directory; ``offset`` is that of its header."""
    large = [entry.size] * 2 if entry._is_large else []
    if offset >= _MAX_32:
        large.append(offset)
    extra = _timestamp(entry)
    if large:
        extra += struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large)
    size = min(entry.size, _MAX_32)
    version = _VERSION_64 if large else _VERSION
    folder_bit = 0x10 if entry.is_folder else 0
    fixed = _CENTRAL.pack(
        b"PK\x01\x02", _ON_UNIX | version, version, entry._flags, 0, *_dos_time(entry.modified_at),
        checksum, size, size, len(entry.name), len(extra), 0, 0, 0,
        entry._mode << 16 | folder_bit, min(offset, _MAX_32),
    )  # fmt: skip
    return fixed + entry.name + extra


def end(count: int, start: int, size: int) -> bytes:
    """Return the end of a zip, whose central directory has ``size`` bytes from ``start``."""
    large = b""
    if count >= _MAX_16 or start >= _MAX_32 or size >= _MAX_32:
        large = _END_64.pack(
            b"PK\x06\x06", 44, _VERSION_64, _VERSION_64, 0, 0, count, count, size, start
        ) + _LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
    few = min(count, _MAX_16)
    return large + _END.pack(
        b"PK\x05\x06", 0, 0, few, few, min(size, _MAX_32), min(start, _MAX_32), 0
    )


def _timestamp(entry: Entry) -> bytes:
    """Return the time in UTC as Info-ZIP writes it; a date of MS-DOS has no zone."""
    return struct.pack("<2HBL", 0x5455, 5, 1, _within(entry.modified_at))


def _dos_time(at: int) -> tuple[int, int]:
    """Return time and date as MS-DOS has them, in UTC: a zone's rules change."""
    then = time.gmtime(_within(at))
    clock = then.tm_hour << 11 | then.tm_min << 5 | then.tm_sec // 2
    return clock, (then.tm_year - 1980) << 9 | then.tm_mon << 5 | then.tm_mday


def _within(at: int) -> int:
    return min(max(at, _EARLIEST), _LATEST)
