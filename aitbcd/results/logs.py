"""Read a job's log, also while it is written and its middle is given back to keep its limit.

Bytes only, no waiting: who follows a log waits for ``watches`` and comes back. Offsets are those
in the file as it is. A hole (lseek(2), SEEK_HOLE) in a log that has passed its limit is what was
dropped; it is passed over and said in one line, the same that sealing writes in its place.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from aitbcd.results.beneath import OpenFile

PIECE_BYTES = 256 * 1024
#: Of a log, for ``tail``.
TAIL_BYTES_MAX = 16 << 20
_TAIL_STEP = 64 * 1024


class Piece(NamedTuple):
    """What was read: its bytes, and where to go on."""

    data: bytes
    next_offset: int


def read(file: OpenFile, offset: int, length: int, limit: int) -> Piece:
    """Return at most ``length`` bytes from ``offset``; none at the end of what is written.

    Args:
        limit: what the log may keep; a file below it has no holes of ours.
    """
    with file.held() as fd:
        data = os.pread(fd, length, offset)
        end = offset + len(data)
        if not data or os.fstat(fd).st_size <= limit:
            return Piece(data, end)
        # The hole is looked for after the read: one punched between the two would read as zeros.
        hole = os.lseek(fd, offset, os.SEEK_HOLE)
        if hole >= end:
            return Piece(data, end)
        if hole > offset:
            return Piece(data[: hole - offset], hole)
        after = _end_of_hole(fd, offset)
        return Piece(note(after - _start_of_hole(fd, offset)), after)


def offset_of_tail(file: OpenFile, lines: int) -> int:
    """Return where the last ``lines`` lines begin; an unfinished last line counts as one.

    No more than the last ``TAIL_BYTES_MAX`` are looked at: a job can make its log as long as it
    likes, without writing it.
    """
    end = at = file.size
    least = max(0, end - TAIL_BYTES_MAX)
    if lines <= 0:
        return end
    wanted = lines
    while at > least:
        start = max(least, at - _TAIL_STEP)
        block = file.pread(at - start, start)
        if at == end and block.endswith(b"\n"):
            wanted += 1
        count = block.count(b"\n")
        if count >= wanted:
            cut = len(block)
            for _ in range(wanted):
                cut = block.rindex(b"\n", 0, cut)
            return start + cut + 1
        wanted -= count
        at = start
    return least


def note(dropped: int) -> bytes:
    """Return the line that stands where bytes were dropped."""
    return b"\n[aitbcd: %d bytes dropped here; this log had passed its limit]\n" % dropped


def _start_of_hole(fd: int, offset: int) -> int:
    # A hole begins where the data before it ends; ours is the first and only one.
    return min(os.lseek(fd, 0, os.SEEK_HOLE), offset)


def _end_of_hole(fd: int, offset: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError:  # ENXIO: nothing but hole until the end
        return os.fstat(fd).st_size
