"""Reads the configuration again: when it is saved (inotify(7)), and when we are told (SIGHUP).

All of it counts or nothing: a wrong file is said, with its line and key, and what was there before
stays. A file that is gone counts only when we are told: many editors take it away for a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from aitbcd import settings
from aitbcd.errors import SettingsError
from aitbcd.notify import Notifier
from aitbcd.results.watches import Watches
from aitbcd.settings import Settings


class Reloading:
    def __init__(
        self,
        path: Path,
        current: Settings,
        watches: Watches,
        *,
        notifier: Notifier,
        apply: Callable[[], None],
        describe: Callable[[], str],
        say: Callable[[str], None],
    ) -> None:
        """Keep what is needed; ``apply`` is called when ``current`` has changed."""
        self._path = path
        self._current = current
        self._watches = watches
        self._notifier = notifier
        self._apply = apply
        self._describe = describe
        self._say = say
        self._woken = asyncio.Event()
        self._is_told = False
        self._known = self._content()

    def tell(self) -> None:
        """Have it read, whether it was saved or not."""
        self._is_told = True
        self._woken.set()

    async def run(self) -> None:
        """Read it whenever there is a reason; runs until it is cancelled."""
        while True:
            self._woken.clear()
            with ExitStack() as stack:
                # There may be no such folder, or no watch left: then SIGHUP is left.
                with suppress(OSError):
                    stack.enter_context(self._watches.on_save(self._path.parent, self._woken))
                # What was saved before the watch was set.
                if not self._is_told and not self._is_saved():
                    await self._woken.wait()
            if self._is_told or self._is_saved():
                self._is_told = False
                self._reload()

    def _content(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None

    def _is_saved(self) -> bool:
        content = self._content()
        return content is not None and content != self._known

    def _reload(self) -> None:
        self._notifier.reloading()
        self._known = self._content()
        try:
            self._take(settings.load(self._path))
        except SettingsError as error:
            self._say(f"{error.detail}; the configuration stays as it was\n  {error.hint}")
        self._notifier.ready(self._describe())

    def _take(self, read: Settings) -> None:
        changed = settings.changes(self._current, read)
        late = [key for key in changed if key in settings.FROM_THE_START]
        self._current.take(read)
        self._apply()
        what = f"changed: {', '.join(changed)}" if changed else "nothing has changed"
        self._say(f"read {self._path}: {what}")
        if late:
            self._say(f"  {', '.join(late)} will count from the next start of the daemon")
