"""The records of a zip, read by another implementation."""

from __future__ import annotations

import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

import pytest

from aitbcd.results import zip64
from aitbcd.results.zip64 import Entry

CONTENT = b"behind the large one\n"
AT = 1_790_000_000
LARGE = (4 << 30) + 5


def write(path: Path, entries: list[tuple[Entry, bytes | None]]) -> None:
    """Write a zip; a content of None is a hole."""
    directory = bytearray()
    with path.open("wb") as file:
        for entry, content in entries:
            offset = file.tell()
            file.write(zip64.header(entry))
            if content is None:
                file.seek(entry.size, os.SEEK_CUR)
            else:
                file.write(content)
            checksum = crc32(content or b"")
            file.write(zip64.descriptor(entry, checksum))
            directory += zip64.directory_entry(entry, checksum, offset)
        start = file.tell()
        file.write(directory + zip64.end(len(entries), start, len(directory)))


def test_files_behind_four_gib_are_found(tmp_path: Path) -> None:
    small = Entry(b"a/small", len(CONTENT), AT)
    write(tmp_path / "zip", [(Entry(b"a/large", LARGE, AT), None), (small, CONTENT)])
    with zipfile.ZipFile(tmp_path / "zip") as archive:
        assert archive.getinfo("a/large").file_size == LARGE
        assert archive.getinfo("a/small").header_offset > LARGE
        assert archive.read("a/small") == CONTENT


def test_more_files_than_sixteen_bits_count_are_found(tmp_path: Path) -> None:
    entries = [(Entry(b"%d" % number, 1, AT), b"x") for number in range(70_000)]
    write(tmp_path / "zip", [(entry, content) for entry, content in entries])
    with zipfile.ZipFile(tmp_path / "zip") as archive:
        assert len(archive.namelist()) == 70_000
        assert archive.read("69999") == b"x"


@pytest.mark.parametrize("at", [-(2**40), 0, AT, 2**32 - 1, 2**62])
def test_times_modes_and_names_are_kept(tmp_path: Path, at: int) -> None:
    program = Entry("ä/run".encode(), 0, at, is_executable=True)
    write(tmp_path / "zip", [(program, b""), (Entry(b"empty/", 0, 0), b"")])
    with zipfile.ZipFile(tmp_path / "zip") as archive:
        assert archive.testzip() is None
        about = archive.getinfo("ä/run")
        assert about.external_attr >> 16 == 0o100755
        assert archive.getinfo("empty/").is_dir()
        if at == AT:
            seconds = datetime(*about.date_time, tzinfo=UTC).timestamp()
            assert abs(seconds - at) < 2
