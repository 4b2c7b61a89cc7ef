"""A sealed package as a zip that is made while it is sent, of any size, nothing compressed.

The size is known before the first byte, so that a client sees its progress, and one that loses the
connection knows it and goes on where it was. A file that changes its size meanwhile (its owner can
do that) breaks the stream off instead of giving a zip that lies.

The end of a zip has the checksums of all its files. They are kept for a while, with what was sent,
so that who goes on does not wait until all before it is read again.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import OrderedDict
from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile
from threading import Lock
from zlib import crc32

from aitbcd.results import beneath, zip64
from aitbcd.results.package import Package
from aitbcd.results.zip64 import Entry

_PIECE = 256 * 1024
#: Pieces that are passed over in one go.
_PAUSE_EVERY = 16
#: Of the central directory, until it goes to an unlinked file.
_IN_MEMORY_MAX = 1 << 20
#: A zip's names have 16 bits for their length.
_NAME_MAX = 0xFFFF
#: Checksums that are kept: of so many zips, and so many files of one.
_KEPT_ZIPS, _KEPT_FILES = 64, 100_000


class Changed(Exception):
    """The package is not any more what was looked through."""


class _Known:
    """The checksums of a zip's files as far as they were read."""

    __slots__ = ("at", "checksum", "whole")

    def __init__(self) -> None:
        #: Of the first files, each as a whole.
        self.whole = array("L")
        #: Of the next one, up to this offset.
        self.at = 0
        self.checksum = 0


_zips: OrderedDict[str, _Known] = OrderedDict()
_lock = Lock()


def _recall(tag: str) -> _Known:
    """Return a copy of what is known of a zip."""
    known = _Known()
    with _lock:
        if (kept := _zips.get(tag)) is not None:
            known.whole, known.at, known.checksum = kept.whole[:], kept.at, kept.checksum
    return known


def _remember(tag: str, known: _Known, at: int, checksum: int, *, is_whole: bool) -> None:
    """Take one more file, or a part of it, into what is known."""
    with _lock:
        known.at, known.checksum = (0, 0) if is_whole else (at, checksum)
        if is_whole:
            known.whole.append(checksum)
        if len(known.whole) > _KEPT_FILES:
            return
        kept = _zips.get(tag)
        if kept is None or (len(kept.whole), kept.at) < (len(known.whole), known.at):
            _zips[tag] = known
        _zips.move_to_end(tag)
        while len(_zips) > _KEPT_ZIPS:
            _zips.popitem(last=False)


class Archive:
    """One zip of one package. ``pieces`` blocks on the disk: iterate in a thread. Close it."""

    def __init__(self, package: Path, name: str, spool: Path) -> None:
        """Look through the package.

        Args:
            name: the folder that everything is in within the zip.
            spool: a folder for temporary files.

        Raises:
            beneath.NotThere: the package is gone.
        """
        self._package = Package(package)
        self._name = name
        self._spool = spool
        self._file: beneath.OpenFile | None = None
        self._is_closed = False
        seen = hashlib.sha256()
        at = directory = count = 0
        try:
            for path, entry in self._entries():
                seen.update(b"%s\0%d %d\n" % (path, entry.size, entry.modified_at))
                directory += len(zip64.directory_entry(entry, 0, at))
                at += len(zip64.header(entry)) + entry.size + len(zip64.descriptor(entry, 0))
                count += 1
        except BaseException:
            self.close()
            raise
        #: Bytes of the whole zip.
        self.size = at + directory + len(zip64.end(count, at, directory))
        #: Another one for another content, as far as names, sizes and times tell.
        self.tag = seen.hexdigest()[:32]

    def pieces(self, start: int = 0, end: int | None = None) -> Generator[bytes]:
        """Yield the bytes from ``start`` to ``end``; nothing, now and then, on the way to them.

        Raises:
            Changed, beneath.NotThere, OSError: the zip cannot be finished.
        """
        stop = self.size if end is None else end
        at = 0
        # Withheld until what comes after it is known to be right: who has all bytes has the zip.
        held = b""
        for number, piece in enumerate(self._from(start)):
            if at < start and number % _PAUSE_EVERY == 0:
                # Whoever asks for the end of what takes hours to read must not keep a thread.
                yield b""
            if isinstance(piece, int):
                at += piece
                continue
            first, last = max(0, start - at), min(len(piece), stop - at)
            at += len(piece)
            if first < last:
                if held:
                    yield held
                held = piece if last - first == len(piece) else piece[first:last]
            if at >= stop and stop < self.size:
                break
        else:
            if at != self.size:
                raise Changed("it has other files than before")
        yield held

    def close(self) -> None:
        """Close what is open, also while a thread is in ``pieces``: that ends with an error."""
        self._is_closed = True
        self._package.close()
        if self._file is not None:
            self._file.close()

    def _from(self, start: int) -> Iterator[bytes | int]:
        """Yield all pieces in order; of some that end before ``start`` the length alone."""
        known = _recall(self.tag)
        at = count = files = 0
        with SpooledTemporaryFile(max_size=_IN_MEMORY_MAX, dir=os.fspath(self._spool)) as directory:
            for path, entry in self._entries():
                offset = at
                head = zip64.header(entry)
                yield head
                at += len(head)
                checksum = 0
                if not entry.is_folder:
                    checksum = yield from self._content(path, entry, files, start - at, known)
                    files += 1
                tail = zip64.descriptor(entry, checksum)
                yield tail
                at += entry.size + len(tail)
                directory.write(zip64.directory_entry(entry, checksum, offset))
                count += 1
            size = directory.tell()
            directory.seek(0)
            while piece := directory.read(_PIECE):
                yield piece
            yield zip64.end(count, at, size)

    def _content(
        self, path: bytes, entry: Entry, index: int, start: int, known: _Known
    ) -> Generator[bytes | int, None, int]:
        """Yield a file's bytes (what is before ``start`` need not be read) and return its CRC."""
        if index < len(known.whole) and entry.size <= start:
            yield entry.size
            return known.whole[index]
        is_next = index == len(known.whole)
        at = checked = checksum = 0
        if is_next:
            checked, checksum = known.at, known.checksum
            at = max(0, min(start, checked))
            if at:
                yield at
        try:
            with self._open(path) as file:
                while piece := file.pread(min(_PIECE, entry.size - at), at):
                    fresh = piece[max(0, checked - at) :]
                    at += len(piece)
                    checksum, checked = crc32(fresh, checksum), max(checked, at)
                    yield piece
                if at != file.size:
                    raise Changed(f"a file had {entry.size} bytes and has {file.size} now")
        finally:
            if is_next:
                is_whole = checked == entry.size
                _remember(self.tag, known, checked, checksum, is_whole=is_whole)
        return checksum

    def _open(self, path: bytes) -> beneath.OpenFile:
        """Open the file whose turn it is: a package may have more than we may open at once."""
        self._file = self._package.open(path)
        if self._is_closed:
            self._file.close()
        return self._file

    def _entries(self) -> Iterator[tuple[bytes, Entry]]:
        with self._package.held() as folder:
            for path, is_file in beneath.walk(folder):
                name = _named(self._name, path)
                if path.endswith(b"/"):
                    yield path, Entry(name, 0, 0)
                elif is_file and (about := _about(folder, path)) is not None:
                    is_executable = bool(about.st_mode & 0o111)
                    yield path, Entry(name, about.st_size, int(about.st_mtime), is_executable)


def _about(folder: int, path: bytes) -> os.stat_result | None:
    """Return what a readable file is like."""
    try:
        with beneath.OpenFile(beneath.open_beneath(folder, path)) as file, file.held() as fd:
            return os.fstat(fd)
    except (beneath.NotThere, PermissionError):
        return None


def _named(folder: str, path: bytes) -> bytes:
    """Return a path's name in the zip: UTF-8; what is none stays legible and distinct."""
    name = f"{folder}/{path.decode(errors='backslashreplace')}".encode()
    if len(name) <= _NAME_MAX:
        return name
    # Hundreds of folders in folders, with names that are no UTF-8.
    end = b"~" + hashlib.sha256(path).hexdigest().encode() + (b"/" if path.endswith(b"/") else b"")
    return name[: _NAME_MAX - 1000].decode(errors="ignore").encode() + end
