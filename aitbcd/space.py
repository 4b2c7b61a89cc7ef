"""Whether there is room for another job: on the disk, and in its user's quota. Pure."""

from __future__ import annotations

from aitbcd.settings import Storage
from aitbcd.units import format_size

_RESERVE_MOST = 1 << 30
#: The last of it, which is not for jobs that wait.
_CLOSED_MOST = 256 << 20
#: Of a file system that is small itself.
_RESERVE_SHARE = 50


def reserve_of(storage: Storage, total: int) -> int:
    """Return the bytes to be kept free of a file system that has ``total``."""
    if storage.reserve is not None:
        return storage.reserve
    return min(_RESERVE_MOST, total // _RESERVE_SHARE)


def short_of_space(free: int, reserve: int, where: str) -> str | None:
    """Return what jobs wait for when less is free than is to be kept free."""
    if free >= reserve:
        return None
    return (
        f"waits for disk space: {format_size(free)} free of the {format_size(reserve)} that are"
        f" kept free in {where}"
    )


def closed_to_jobs(free: int, reserve: int, where: str) -> str | None:
    """Return why no more jobs are taken in, though they would only wait.

    What waits takes room too, and is in nobody's quota. The last part of what is kept free is for
    those that run, so that who sends very much keeps nobody from storing his results.
    """
    least = min(reserve // 4, _CLOSED_MOST)
    if free >= least:
        return None
    return (
        f"no jobs are taken in while less than {format_size(least)} are free in {where}:"
        f" there are {format_size(free)}"
    )


def over_quota(used: int, quota: int | None) -> str | None:
    """Return what a user's jobs wait for when he keeps more than he may."""
    if quota is None or used <= quota:
        return None
    return (
        f"waits for room: {format_size(used)} of results are kept of the {format_size(quota)} that"
        " a user may have; delete some: aitbcctl delete JOB"
    )
