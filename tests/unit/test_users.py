"""A user database that is slow or away holds nobody up for long, and forgets nobody."""

from __future__ import annotations

import asyncio
import os
import pwd
import threading
import time
from collections.abc import Iterator

import pytest

from aitbcd import users
from aitbcd.errors import Unavailable
from tests.service import wait_for

#: No user of this machine.
NOBODYS_UID = 2_000_000_001


class Directory:
    """The C library's database, as far away as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.questions = 0
        self.answers = threading.Event()
        self.answers.set()
        self._getpwuid = pwd.getpwuid
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(pwd, "getpwuid", self._answer)

    def go_away(self) -> None:
        """Answer nobody any more; nobody need wait for long to see it."""
        self._monkeypatch.setattr(users, "DEADLINE_S", 0.05)
        self.answers.clear()

    def come_back(self) -> None:
        self._monkeypatch.setattr(users, "DEADLINE_S", 60.0)
        self.answers.set()

    def _answer(self, uid: int) -> pwd.struct_passwd:
        self.questions += 1
        self.answers.wait()
        return self._getpwuid(uid)


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    # Of a machine that is busy with other tests, too.
    monkeypatch.setattr(users, "DEADLINE_S", 60.0)
    for answers in (users._users, users._groups):
        monkeypatch.setattr(answers, "_kept", {})
        monkeypatch.setattr(answers, "_asked", {})
    made = Directory(monkeypatch)
    yield made
    made.answers.set()
    # What is answered late must not be known to the next test.
    wait_for(
        "every question is answered", lambda: not (users._users._asked or users._groups._asked)
    )


def outdate() -> None:
    for uid, (_, user) in list(users._users._kept.items()):
        users._users._kept[uid] = (time.monotonic() - 1, user)


def test_root_is_found(directory: Directory) -> None:
    found = asyncio.run(users.find(0))
    assert found is not None
    assert (found.uid, found.gid, found.name) == (0, 0, "root")
    assert users.lookup(0) == found
    assert directory.questions == 1


def test_an_unknown_uid_is_nobody(directory: Directory) -> None:
    assert asyncio.run(users.find(NOBODYS_UID)) is None
    assert asyncio.run(users.groups_of(NOBODYS_UID)) == ()


def test_groups_have_names(directory: Directory) -> None:
    groups = asyncio.run(users.groups_of(0))
    assert groups is not None
    assert "root" in groups


def test_many_who_ask_at_once_cost_one_question(directory: Directory) -> None:
    async def scenario() -> None:
        found = await asyncio.gather(*(users.find(0) for _ in range(100)))
        assert {user and user.name for user in found} == {"root"}

    asyncio.run(scenario())
    assert directory.questions == 1


def test_a_database_that_never_answered_is_said_to_be_away(directory: Directory) -> None:
    async def scenario() -> None:
        directory.go_away()
        with pytest.raises(Unavailable, match="who uid 0 is") as refused:
            await users.find(0)
        assert refused.value.hint is not None
        assert "getent passwd 0" in refused.value.hint
        assert await users.groups_of(0) is None
        directory.come_back()
        while users._users._asked:
            await asyncio.sleep(0.001)
        assert await users.find(0) is not None

    asyncio.run(scenario())


def test_a_question_for_which_there_is_no_thread_is_asked_again(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        with monkeypatch.context() as patch:
            # As where this user has too many processes.
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(Unavailable, match="who uid 0 is"):
                await users.find(0)
        assert await users.find(0) is not None

    asyncio.run(scenario())


def test_the_last_answer_counts_while_there_is_no_newer_one(directory: Directory) -> None:
    async def scenario() -> None:
        known = await users.find(0)
        directory.go_away()
        outdate()
        assert await users.find(0) == known
        # Nor is anybody held up again before the next minute.
        began = directory.questions
        assert await users.find(0) == known
        assert directory.questions == began

    asyncio.run(scenario())


def test_the_loop_goes_on_while_the_database_is_asked(directory: Directory) -> None:
    async def scenario() -> None:
        directory.answers.clear()
        asking = asyncio.create_task(users.find(os.getuid()))
        await asyncio.sleep(0)
        assert not asking.done()
        directory.answers.set()
        assert await asking is not None

    asyncio.run(scenario())


def test_a_stranger_has_his_uid_and_no_group_of_anybody() -> None:
    alone = users.stranger(1234)
    assert alone.uid == 1234
    assert alone.gid != 0
    with pytest.raises(KeyError):
        pwd.getpwnam(alone.name)
