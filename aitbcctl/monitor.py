"""The live view of the GPUs: asks the daemon again and again, beside, and shows what it says.

It asks in a thread of its own, so that keys and resizes are heard while a daemon does not answer.
The daemon looks at most once a second, however many ask.
"""

from __future__ import annotations

import os
import select
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Self

from aitbcctl import panel
from aitbcctl.client import Client
from aitbcctl.following import woken_by_signals
from aitbcctl.history import History
from aitbcctl.panel import Seen
from aitbcctl.screen import Screen
from aitbcd.errors import AitbcError

#: After so long without an answer that is said, and then said anew.
_SILENCE_S = 3.0
#: Jobs that may have come between the two questions.
_MORE_JOBS = 8
_PAGE_MAX = 200


def run(client: Client, interval_s: float) -> int:
    """Show the GPUs until somebody leaves; return the exit code.

    Raises:
        AitbcError: the daemon did not answer the first time.
    """
    first = look(client)
    watcher, screen = Watcher(client, interval_s, first), Screen()
    with watcher, screen, woken_by_signals() as signals:
        _show(watcher, screen, signals)
    return 0


def look(client: Client) -> Seen:
    """Return what there is now: the GPUs, and the jobs that have them or wait for them."""
    inventory = client.get("/v1/gpus")
    running = {job for gpu in inventory["gpus"] for job in gpu["jobs"]}
    limit = min(_PAGE_MAX, len(running) + _MORE_JOBS)
    queue = client.get("/v1/queue", gpus=True, limit=limit)
    return Seen(inventory, queue["jobs"], queue["pending"])


class Watcher:
    """Asks ``interval_s`` after each answer. ``fileno`` is readable when there is news to take."""

    def __init__(self, client: Client, interval_s: float, first: Seen) -> None:
        self.history = History()
        self._client = client
        self._interval_s = interval_s
        self._seen = first
        self._trouble: str | None = None
        self._answered_at = time.monotonic()
        self._news: SimpleQueue[Seen | BaseException] = SimpleQueue()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_over = threading.Event()
        self._learn(first)

    def __enter__(self) -> Self:
        # A daemon that hangs keeps it in a question: nobody waits for that.
        threading.Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def fileno(self) -> int:
        return self._bell

    def take(self) -> None:
        """Take notice of what came. Raises a mistake of ours."""
        os.eventfd_read(self._bell)
        while not self._news.empty():
            self._learn(self._news.get())

    @property
    def seen(self) -> Seen:
        """What was last seen, and what is wrong since."""
        silent_s = time.monotonic() - self._answered_at
        if self._trouble is not None:
            text = f"no answer for {silent_s:.0f} s, jobs go on, asking again: {self._trouble}"
        elif silent_s > self._interval_s + _SILENCE_S:
            text = f"no answer for {silent_s:.0f} s, jobs go on, still waiting for it"
        else:
            return self._seen
        return replace(self._seen, trouble=text)

    def _learn(self, news: Seen | BaseException) -> None:
        now = time.monotonic()
        if isinstance(news, Seen):
            self._seen, self._trouble, self._answered_at = news, None, now
            self.history.note(news.inventory["gpus"], int(now))
        elif isinstance(news, AitbcError):
            self._trouble = news.detail
            self.history.gap(int(now))
        else:
            raise news

    def _work(self) -> None:
        while not self._is_over.wait(self._interval_s):
            try:
                self._news.put(look(self._client))
            except BaseException as error:
                self._news.put(error)
            os.eventfd_write(self._bell, 1)


def _show(watcher: Watcher, screen: Screen, signals: int) -> None:
    waiting_for = [fd for fd in (signals, watcher.fileno(), screen.key_fd) if fd is not None]
    while True:
        size = screen.size
        screen.paint(panel.draw(watcher.seen, watcher.history, *size, datetime.now(UTC)), size)
        ready, _, _ = select.select(waiting_for, [], [], _SILENCE_S)
        if signals in ready:
            os.read(signals, 4096)
            screen.stop_if_asked()
        if watcher.fileno() in ready:
            watcher.take()
        if screen.key_fd in ready and screen.is_left():
            return
