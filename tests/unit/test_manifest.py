"""output.sha256: any name survives, the real ``sha256sum`` agrees, and a bad line is found."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from aitbcd.manifest import BadManifest, build, compare, format_line, parse

ONE, TWO = "1" * 64, "2" * 64
AWKWARD = (b"a b", b" a", b"*a", b"\\n", b"a\nb", b"a\rb", b"\\", b"\xff\xfe", b"a  b", b"'\"$;")

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
names = st.one_of(
    st.text(st.sampled_from("ab\\\n\r *'\""), min_size=1).map(str.encode),
    st.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name),
)
#: Names of files in one folder.
file_names = names.map(lambda name: name.replace(b"/", b"_")).filter(
    lambda name: name not in (b".", b"..")
)
manifests = st.dictionaries(names, digests, max_size=8)


@given(manifests)
def test_what_was_built_is_parsed_again(files: dict[bytes, str]) -> None:
    # Not a name of a package's file: what ``-`` is written as.
    assume(b"./-" not in files)
    assert parse(build(files.items())) == files


@given(manifests)
def test_the_order_of_the_files_does_not_matter(files: dict[bytes, str]) -> None:
    assert build(reversed(list(files.items()))) == build(files.items())


@given(manifests)
def test_each_file_is_one_line(files: dict[bytes, str]) -> None:
    text = build(files.items())
    assert text.count(b"\n") == len(files)
    assert b"\r" not in text


@given(names)
def test_a_line_begins_with_a_backslash_exactly_when_the_name_is_escaped(name: bytes) -> None:
    is_escaped = any(letter in name for letter in (b"\\", b"\n", b"\r"))
    assert format_line(ONE, name).startswith(b"\\") is is_escaped


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(file_names, st.binary(max_size=99), min_size=1, max_size=5))
@example({name: name for name in AWKWARD})
@example({b"-": b""})
def test_sha256sum_accepts_it_and_says_the_same(files: dict[bytes, bytes]) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = os.fsencode(made)
        for name, content in files.items():
            Path(os.fsdecode(folder + b"/" + name)).write_bytes(content)
        text = build((name, hashlib.sha256(content).hexdigest()) for name, content in files.items())
        # ``--`` and no other words: as in the manifest, a name that begins with - is only a name.
        # Only ``-`` itself is its standard input, so it has to be written otherwise.
        words = [name if name != b"-" else b"./-" for name in sorted(files)]
        theirs = subprocess.run(
            ["sha256sum", "--", *words], cwd=folder, capture_output=True, check=True
        ).stdout
        assert text == theirs
        check = ["sha256sum", "--check", "--strict", "--quiet", "-"]
        checked = subprocess.run(check, cwd=folder, input=text, capture_output=True, check=False)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_lines_of_sha256sum_in_binary_mode_are_read_too() -> None:
    assert parse(ONE.encode() + b" *model.bin\n") == {b"model.bin": ONE}


def test_an_empty_manifest_has_no_files() -> None:
    assert parse(b"") == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"\n", 1),
        (b"nonsense\n", 1),
        (ONE.encode() + b"  a\n" + ONE.encode() + b" a\n", 2),
        (ONE.encode() + b"  a\n" + ONE.encode() + b"  \n", 2),
        (ONE[:63].encode() + b"  a\n", 1),
        (ONE[:63].encode() + b"G  a\n", 1),
        (b"A" * 64 + b"  a\n", 1),
        (b"\\" + ONE.encode() + b"  a\\\n", 1),
        (b"\\" + ONE.encode() + b"  a\\x\n", 1),
        (b" " + ONE.encode() + b"  a\n", 1),
        (ONE.encode() + b"  a\n" + TWO.encode() + b"  b", 2),
        (ONE.encode() + b"  a\r\n\n", 2),
    ],
)
def test_a_bad_line_is_refused_with_its_number(text: bytes, line: int) -> None:
    with pytest.raises(BadManifest) as refused:
        parse(text)
    assert refused.value.line == line
    assert f"line {line} " in str(refused.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(text: bytes) -> None:
    with suppress(BadManifest):
        assert all(len(digest) == 64 for digest in parse(text).values())


@given(manifests)
def test_what_is_equal_has_no_differences(files: dict[bytes, str]) -> None:
    assert compare(files, dict(files)) == []


@given(manifests, manifests)
def test_every_difference_is_named_once_in_order(
    stated: dict[bytes, str], found: dict[bytes, str]
) -> None:
    differences = compare(stated, found)
    assert [name for _, name in differences] == sorted(
        name for name in stated.keys() | found.keys() if stated.get(name) != found.get(name)
    )
    for kind, name in differences:
        expected = "missing" if name not in found else "changed" if name in stated else "extra"
        assert kind == expected


def test_each_kind_of_difference_has_its_word() -> None:
    stated = {b"a": ONE, b"b": ONE, b"c": ONE}
    found = {b"a": ONE, b"b": TWO, b"d": ONE}
    assert compare(stated, found) == [("changed", b"b"), ("missing", b"c"), ("extra", b"d")]
