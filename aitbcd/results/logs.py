"""Read a job's log, also while it is written and its middle is given back to keep its limit.

Bytes only, no waiting: who follows a log waits for ``watches`` and comes back. An offset counts
what the job wrote, so that it means the same while the log has a hole (lseek(2), SEEK_HOLE: what
was dropped of a log that has passed its limit) and when sealing has closed it. One line stands for
what was dropped, here and in the sealed log.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from aitbcd.results.beneath import OpenFile

PIECE_BYTES = 256 * 1024
#: Of a log, for ``tail``.
TAIL_BYTES_MAX = 16 << 20
_TAIL_STEP = 64 * 1024
#: Where the launcher begins to drop: behind half of the limit, in whole blocks of these.
_BLOCK = 4096
_NOTE = re.compile(rb"\n\[aitbcd: (\d{1,18}) bytes dropped here; this log had passed its limit\]\n")
_NOTE_MAX = 128


class Piece(NamedTuple):
    """What was read: its bytes, and where to go on."""

    data: bytes
    next_offset: int
    #: How much ``data`` says was dropped; 0 for what the job wrote.
    dropped: int = 0


class _Cut(NamedTuple):
    """Where a closed log has a line in place of what was dropped."""

    at: int
    dropped: int
    length: int


class Log:
    """An open log, by offsets in what its job wrote."""

    def __init__(self, file: OpenFile, limit: int) -> None:
        """Take a log as it is.

        Args:
            limit: what it may keep; a file below it has no holes of ours.
        """
        self.file = file
        self._limit = limit
        self._cut = _cut_of(file, limit)

    @property
    def end(self) -> int:
        return self.offset_of(self.file.size)

    def offset_of(self, place: int) -> int:
        """Return what a position in the file is as an offset."""
        cut = self._cut
        if cut is None or place <= cut.at:
            return place
        return cut.at + cut.dropped + max(0, place - cut.at - cut.length)

    def place_of(self, offset: int) -> int:
        """Return where in the file an offset is; what was dropped is where its line is."""
        cut = self._cut
        if cut is None or offset <= cut.at:
            return offset
        behind = offset - cut.at - cut.dropped
        return cut.at if behind < 0 else cut.at + cut.length + behind

    def read(self, offset: int, length: int = PIECE_BYTES) -> Piece:
        """Return at most ``length`` bytes from ``offset``; none at the end of what is written."""
        cut = self._cut
        if cut is None:
            return _read(self.file, offset, length, self._limit)
        if cut.at <= offset < cut.at + cut.dropped:
            return Piece(note(cut.dropped), cut.at + cut.dropped, cut.dropped)
        if offset < cut.at:
            length = min(length, cut.at - offset)
        data = self.file.pread(length, self.place_of(offset))
        return Piece(data, offset + len(data))


def _read(file: OpenFile, offset: int, length: int, limit: int) -> Piece:
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
        dropped = after - _start_of_hole(fd, offset)
        return Piece(note(dropped), after, dropped)


def _cut_of(file: OpenFile, limit: int) -> _Cut | None:
    at = -(-(limit // 2) // _BLOCK) * _BLOCK
    found = _NOTE.match(file.pread(_NOTE_MAX, at))
    return _Cut(at, int(found[1]), len(found[0])) if found else None


def place_of_tail(file: OpenFile, lines: int) -> int:
    """Return where in the file its last lines begin; an unfinished one counts.

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
