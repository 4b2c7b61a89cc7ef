"""A followed log in frames: whatever the pieces in which it comes, and wherever it breaks off."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from aitbcctl.following import Frames

NOTE = b"\n[aitbcd: 5000 bytes dropped here; this log had passed its limit]\n"


def frame(attempt: int, data: bytes, following: int, **more: int) -> bytes:
    head = {"attempt": attempt, "length": len(data), "next": following, **more}
    return json.dumps(head).encode() + b"\n" + data


#: What a job wrote, and what stands for a part of it, as (attempt, offset, bytes).
WHOLE = frame(1, b"one\n", 4) + frame(2, b"two\n{}\n", 7) + frame(2, NOTE, 5007, dropped=5000)
WHOLE += frame(2, b"three", 5012)


def test_frames_give_what_the_job_wrote() -> None:
    frames = Frames()
    assert frames.place is None
    assert b"".join(frames.feed(WHOLE)) == b"one\ntwo\n{}\n" + NOTE + b"three"
    assert frames.place == {"attempt": 2, "offset": 5012}


@given(st.lists(st.integers(0, len(WHOLE)), max_size=10).map(sorted))
def test_it_does_not_matter_in_which_pieces_they_come(cuts: list[int]) -> None:
    frames = Frames()
    got = b""
    for start, end in zip([0, *cuts], [*cuts, len(WHOLE)], strict=True):
        got += b"".join(frames.feed(WHOLE[start:end]))
    assert got == b"one\ntwo\n{}\n" + NOTE + b"three"


@given(st.integers(0, len(WHOLE)))
def test_what_is_asked_for_goes_on_behind_what_was_given(cut: int) -> None:
    frames = Frames()
    got = b"".join(frames.feed(WHOLE[:cut]))
    if frames.place is None:
        assert got == b""
        return
    attempt, offset = frames.place["attempt"], frames.place["offset"]
    if attempt == 1:
        assert got == b"one\n"[:offset]
        return
    second = got.removeprefix(b"one\n")
    if NOTE in second:
        assert second == b"two\n{}\n" + NOTE + b"three"[: offset - 5007]
    else:
        assert second == b"two\n{}\n"[:offset]
