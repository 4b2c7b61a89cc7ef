"""The progress of a running job, as it changes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack

from aitbcd.api.context import Api
from aitbcd.results import beneath, reported

#: Seconds between two percentages.
PAUSE_S = 1.0
#: Who rewrites a file empties it first: seconds in which the rest comes.
_GATHER_S = 0.02


async def percentages(api: Api, job_id: str) -> AsyncGenerator[int]:
    """Yield what the job says whenever it is another, at most once in a second; ends with it.

    It looks when the job's files change, and costs nothing while they do not.
    """
    last: int | None = None
    written = asyncio.Event()
    while True:
        looked_at = time.monotonic()
        written.clear()
        with ExitStack() as watches:
            try:
                _watch(api, job_id, watches, written)
            except (beneath.NotThere, OSError):
                return
            percent = reported.percentage(api.paths.building(job_id))
            if percent is not None and percent != last:
                last = percent
                yield percent
            await written.wait()
        await asyncio.sleep(max(_GATHER_S, looked_at + PAUSE_S - time.monotonic()))


def _watch(api: Api, job_id: str, watches: ExitStack, written: asyncio.Event) -> None:
    folder = beneath.open_folder(api.paths.building(job_id))
    watches.callback(os.close, folder)
    watches.enter_context(api.watches.on_change(folder, written))
    log = beneath.open_beneath(folder, b"logs/stderr.log")
    watches.callback(os.close, log)
    watches.enter_context(api.watches.on_write(log, written))
