"""What is done in a user's name: as whom, how its errors come back, and for how long."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import signal
import struct
from collections.abc import Callable
from typing import Any

import pytest

from aitbcd.launcher.identity import Identity, do_as, in_child, of_spec
from tests.launcher import Who, proc_status
from tests.service import children

Json = dict[str, Any]


@pytest.fixture(params=["myself", "another user"])
def who(request: pytest.FixtureRequest) -> Identity | None:
    if request.param == "myself":
        return None
    return whoever(request.getfixturevalue("other"))


def whoever(other: Who) -> Identity:
    return Identity(other.uid, other.gid, other.name)


def test_whom_to_become() -> None:
    spec = {"uid": os.getuid(), "gid": 7, "user": "x"}
    assert of_spec(spec) is None
    assert of_spec(spec | {"uid": os.getuid() + 1}) == (os.getuid() + 1, 7, "x")


def test_an_answer_of_any_size_comes_back(who: Identity | None) -> None:
    text = "x\udcff" * 500_000
    assert do_as(who, lambda: {"text": text}, 60) == {"text": text}


def failing(error: BaseException) -> Callable[[], Json]:
    def action() -> Json:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (PermissionError(errno.EACCES, "not yours", "file"), errno.EACCES),
        (ValueError("odd"), errno.EBADMSG),
        (RecursionError("deep"), errno.EBADMSG),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), errno.EBADMSG),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_comes_back_as_one_of_the_system(
    who: Identity | None, error: Exception, number: int
) -> None:
    with pytest.raises(OSError) as caught:
        do_as(who, failing(error), 60)
    assert caught.value.errno == number
    assert type(caught.value) is type(OSError(number, ""))
    unexpected = f"[Errno {number}] {type(error).__name__}: {error}"
    assert str(caught.value) == (str(error) if isinstance(error, OSError) else unexpected)


def test_it_is_done_as_the_user_and_nothing_of_root_is_left(other: Who) -> None:
    def look() -> Json:
        with open("/proc/self/status") as file:
            return dict(proc_status(file.read()))

    found = do_as(whoever(other), look, 60)
    assert found["Uid"].split() == [str(other.uid)] * 4
    assert found["Gid"].split() == [str(other.gid)] * 4
    groups = os.getgrouplist(other.name, other.gid)
    assert len(groups) == 2
    assert sorted(map(int, found["Groups"].split())) == sorted(groups)
    assert {int(found[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")} == {0}
    # And we are who we were.
    assert os.getresuid() == (0, 0, 0)


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32, True, 1000.5, "1000", None])
@pytest.mark.parametrize("which", ["uid", "gid"])
def test_what_is_no_id_is_nobody_to_become(other: Who, which: str, number: Any) -> None:
    odd = whoever(other)._replace(**{which: number})
    with pytest.raises(PermissionError, match=re.escape(f"{which} {number!r}")):
        do_as(odd, dict, 60)


def test_root_is_nobody_to_become(other: Who) -> None:
    with pytest.raises(PermissionError):
        do_as(whoever(other)._replace(uid=0), dict, 60)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of its system calls")
@pytest.mark.parametrize("number", [116, 119, 117], ids=["setgroups", "setresgid", "setresuid"])
def test_who_has_not_become_the_user_does_nothing(other: Who, number: int) -> None:
    def become() -> Json:
        os.setgroups([])
        answer_without_doing(number)
        whoever(other).become()
        return {}

    with pytest.raises(PermissionError, match="not all ids"):
        in_child(None, become, 60)


def answer_without_doing(number: int) -> None:
    """Have the kernel say that a system call has succeeded, and do nothing (seccomp(2))."""
    code = [
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, number),
        (0x06, 0, 0, 0x00050000),  # SECCOMP_RET_ERRNO: 0
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())


def test_root_cannot_be_had_back(other: Who) -> None:
    def become_root() -> Json:
        os.setresuid(0, 0, 0)
        return {}

    with pytest.raises(PermissionError):
        do_as(whoever(other), become_root, 60)


def test_what_hangs_is_given_up_after_the_deadline(other: Who) -> None:
    def hang() -> Json:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        select.select([], [], [])
        return {}

    before = set(children(os.getpid()))
    with pytest.raises(TimeoutError):
        do_as(whoever(other), hang, 0.05)
    for pid in set(children(os.getpid())) - before:
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


def test_one_that_is_stopped_is_given_up_after_the_deadline(other: Who) -> None:
    def stop() -> Json:
        os.kill(os.getpid(), signal.SIGSTOP)
        return {}

    before = set(children(os.getpid()))
    with pytest.raises(TimeoutError):
        do_as(whoever(other), stop, 0.05)
    for pid in set(children(os.getpid())) - before:
        os.waitpid(pid, 0)


def test_one_that_its_user_ends_gave_no_answer(other: Who) -> None:
    def end() -> Json:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(OSError) as caught:
        do_as(whoever(other), end, 60)
    assert caught.value.errno == errno.EOWNERDEAD


def test_nothing_stays_open(who: Identity | None) -> None:
    before = os.listdir("/proc/self/fd")
    do_as(who, dict, 60)
    with pytest.raises(OSError):
        do_as(who, failing(OSError(errno.EIO, "")), 60)
    assert os.listdir("/proc/self/fd") == before
