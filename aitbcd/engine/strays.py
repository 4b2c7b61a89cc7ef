"""Results that lie here of jobs which the queue does not know: an older copy of it was put back.

A new job would get the number of such a job, and with it its id and its results.
"""

from __future__ import annotations

import logging
import os

from aitbcd.store import Store
from aitbcd.store.ids import PREFIX, JobIds

_log = logging.getLogger(__name__)

#: How many numbers are tried before it is believed that there are none: those of jobs that had no
#: results, in a row.
_GAP = 1024
#: What lies further ahead is of another queue, whose ids say nothing of numbers here.
_FAR = 10_000_000


async def skip(store: Store, results: str) -> None:
    """See that no job is given a number whose results lie in ``results``."""
    last = store.last_number
    if not any(os.path.lexists(f"{results}/{store.ids.of(last + n)}") for n in range(1, _GAP + 1)):
        return
    highest = _highest(store.ids, results, last)
    await store.skip_to(highest)
    _log.warning(
        "the queue knows no job after number %d, but results up to number %d lie in %s: was an"
        " older copy of queue.db put back? New jobs begin at %d, and those results are kept",
        last,
        highest,
        results,
        highest + 1,
    )


def _highest(ids: JobIds, results: str, last: int) -> int:
    with os.scandir(results) as entries:
        numbers = (ids.number_of(entry.name, PREFIX) for entry in entries)
        return max((number for number in numbers if number <= last + _FAR), default=last)
