"""The samples of one attempt in a file of the daemon's, which outlives it.

Every few seconds what came is written behind the rest, and that is all that a kill can cost. What
is there is bounded: when it is full, rows are merged two by two (``samples.halved``), and from then
on as many samples make one row. Until a row is whole, it stands at the end as it is and is written
over. A disk without room costs samples, and nothing else.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

from aitbcd import samples
from aitbcd.model import GpuUse
from aitbcd.samples import RECORD_BYTES, Row

_log = logging.getLogger(__name__)

#: Rows of a GPU that are kept at most; at one a second that is an hour, and half of it after.
ROWS_MAX = 3600
#: Rows of all GPUs that wait for room on the disk; more are given up.
_UNWRITTEN_MAX = 4096
#: What the file is, how many samples make a row, and milliseconds between them.
_HEAD = struct.Struct("<8sII")
_MAGIC = b"AITBgpu1"
#: More would be years.
_FACTOR_MAX = 1 << 20


class Series:
    """``read``, ``tidy`` and making one of a long file take their time: for a thread."""

    def __init__(self, path: Path, gpus: int, interval_s: float) -> None:
        """Go on with what is in the file, or begin it with the next ``write``."""
        self._path = path
        self._gpus = gpus
        self._interval_s = interval_s
        #: How many samples make a row.
        self._factor = 1
        #: Of each GPU, all rows as one.
        self._totals: list[Row | None] = [None] * gpus
        #: Of each GPU, the row that is not whole yet, and how many samples are in it.
        self._begun: dict[int, tuple[Row, int]] = {}
        self._unwritten: list[Row] = []
        #: How many whole rows are in the file.
        self._written = 0
        self._fd = -1
        self._has_told = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._resume()

    def _resume(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            head = _HEAD.unpack(os.pread(self._fd, _HEAD.size, 0))
        except FileNotFoundError:
            return
        except OSError as problem:
            self._tell(problem)
            return
        except struct.error:
            head = b"", 0, 0
        if head[0] != _MAGIC or not 0 < head[1] <= _FACTOR_MAX or not head[2]:
            # Killed before it had a head, or what a power cut left: it is begun anew.
            self._let_go()
            return
        self._factor, self._interval_s = head[1], head[2] / 1000
        rows = self._rows()
        self._written = len(rows)
        for row in rows:
            self._count(row)

    def last(self, gpu: int) -> Row | None:
        """Return all rows of a GPU as one, which ends as the last of them does."""
        return self._totals[gpu]

    def use(self, share: int) -> GpuUse | None:
        """Return what they sum up to; None while there is nothing."""
        rows = self._written + len(self._unwritten) + len(self._begun)
        if not rows:
            return None
        return samples.summary(
            self._totals, interval_s=self._interval_s * self._factor, rows=rows, share=share
        )

    def add(self, row: Row) -> None:
        with self._lock:
            self._count(row)
            begun, count = self._begun.pop(row.gpu, (None, 0))
            row = row if begun is None else samples.merge(begun, row)
            if count + 1 < self._factor:
                self._begun[row.gpu] = row, count + 1
            else:
                self._unwritten.append(row)

    def _count(self, row: Row) -> None:
        known = self._totals[row.gpu]
        self._totals[row.gpu] = row if known is None else samples.merge(known, row)

    @property
    def is_full(self) -> bool:
        """Tell whether ``tidy`` is to be called."""
        return self._written + len(self._unwritten) >= ROWS_MAX * self._gpus

    @property
    def is_written(self) -> bool:
        """Tell whether there is a file."""
        return self._fd >= 0

    def write(self) -> None:
        """Put what came into the file."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        # What is not whole yet is written again with what comes to it, in the same place.
        begun = [row for row, _ in self._begun.values()]
        if self._is_closed or not (self._unwritten or begun):
            return
        data = samples.pack([*self._unwritten, *begun])
        try:
            if self._fd < 0:
                self._fd = self._create()
            begin = _HEAD.size + self._written * RECORD_BYTES
            if os.pwrite(self._fd, data, begin) < len(data):
                # The rest has no room; whoever reads it leaves out what is no whole record.
                raise OSError(0, "no room")
        except OSError as problem:
            self._tell(problem)
            del self._unwritten[:-_UNWRITTEN_MAX]
            return
        self._written += len(self._unwritten)
        self._unwritten.clear()

    def _create(self) -> int:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, self._head(self._factor), 0)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _head(self, factor: int) -> bytes:
        return _HEAD.pack(_MAGIC, factor, round(self._interval_s * 1000))

    def tidy(self) -> None:
        """Make it half as long."""
        with self._lock:
            if self._is_closed:
                return
            self._replace(list(samples.halved([*self._kept(), *self._unwritten])))

    def _replace(self, rows: Sequence[Row]) -> None:
        new = self._path.with_name(self._path.name + ".new")
        try:
            with new.open("wb") as file:
                file.write(self._head(2 * self._factor) + samples.pack(rows))
            fd = os.open(new, os.O_RDWR | os.O_CLOEXEC)
            os.replace(new, self._path)
        except OSError as problem:
            self._tell(problem)
            self._unwritten.clear()
            return
        self._let_go()
        self._fd, self._written = fd, len(rows)
        self._factor *= 2
        self._unwritten.clear()

    def read(self) -> list[Row]:
        """Return all rows, as far as they could be kept."""
        with self._lock:
            begun = [row for row, _ in self._begun.values()]
            return [*self._kept(), *self._unwritten, *begun]

    def _kept(self) -> list[Row]:
        return self._rows()[: self._written]

    def _rows(self) -> list[Row]:
        if self._fd < 0:
            return []
        try:
            data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        except OSError as problem:
            self._tell(problem)
            return []
        return samples.unpack(data[_HEAD.size :], self._gpus)

    def _tell(self, problem: OSError) -> None:
        if not self._has_told:
            self._has_told = True
            _log.warning("samples of GPUs are lost: %s: %s", self._path, problem.strerror)

    def close(self) -> None:
        """Write no more, whoever still wants to: the file may be gone, and must not come back."""
        # Not under a reader: its descriptor would be another file's.
        with self._lock:
            self._is_closed = True
            self._let_go()

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
