"""Reads the configuration again: when it is saved (inotify(7)), and when we are told (SIGHUP).

All of it counts or nothing: a wrong file is said, with its line and key, and what was there before
stays. A file that is gone counts only when we are told: many editors take it away for a moment.
The files of the certificate belong to it: a renewed one counts from the next connection on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from aitbcd import settings
from aitbcd.errors import SettingsError
from aitbcd.notify import Notifier
from aitbcd.results.watches import Watches
from aitbcd.settings import Settings

_log = logging.getLogger(__name__)


class Reloading:
    def __init__(
        self,
        path: Path,
        current: Settings,
        watches: Watches,
        *,
        notifier: Notifier,
        apply: Callable[[], None],
        renew: Callable[[], None],
        describe: Callable[[], str],
        say: Callable[[str], None],
    ) -> None:
        """Keep what is needed.

        Args:
            apply: called when ``current`` has changed.
            renew: takes the certificate as it is now, or raises a SettingsError.
        """
        self._path = path
        #: What is looked at; the paths of a certificate count from the start.
        self._files = (path, *map(Path, current.server.certificate_files))
        self._current = current
        self._watches = watches
        self._notifier = notifier
        self._apply = apply
        self._renew = renew
        self._describe = describe
        self._say = say
        self._woken = asyncio.Event()
        self._is_told = False
        self._known = self._contents()

    def tell(self) -> None:
        """Have it read, whether it was saved or not."""
        self._is_told = True
        self._woken.set()

    async def run(self) -> None:
        """Read it whenever there is a reason; runs until it is cancelled."""
        while True:
            self._woken.clear()
            with ExitStack() as stack:
                # There may be no watch left: then SIGHUP is left.
                for folder in {path.parent for path in self._files}:
                    with suppress(OSError):
                        self._watch(folder, stack)
                # What was saved before the watch was set.
                if not self._is_told and not self._is_saved():
                    await self._woken.wait()
            if self._is_told or self._is_saved():
                self._is_told = False
                self._reload()

    def _watch(self, folder: Path, stack: ExitStack) -> None:
        """Watch a folder, or while there is none the one that it will be made in."""
        # A user's first configuration is often in a folder that was made for it.
        while (made := _made_of(folder)) != folder:
            stack.enter_context(self._watches.on_arrival(made, self._woken))
            if _made_of(folder) == made:
                return
        stack.enter_context(self._watches.on_save(folder, self._woken))

    def _contents(self) -> list[bytes | None]:
        return [_digest(path) for path in self._files]

    def _is_saved(self) -> bool:
        return any(
            content is not None and content != known
            for content, known in zip(self._contents(), self._known, strict=True)
        )

    def _reload(self) -> None:
        self._notifier.reloading()
        self._known = self._contents()
        try:
            read = settings.load(self._path)
            self._renew()
        except SettingsError as error:
            _log.warning("%s; the configuration stays as it was\n  %s", error.detail, error.hint)
        else:
            self._take(read)
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


def _made_of(folder: Path) -> Path:
    """Return the longest beginning of a path that is a folder."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return None
