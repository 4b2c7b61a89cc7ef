"""Histograms of waits as one integer each: adding two of them is adding their integers. Pure.

A lane of 32 bits for each quarter of an octave, from a millisecond up; SQLite holds the integer
as its bytes, the lowest first. (A year of quarter hours is added in 10 ms this way; a row for each
lane was ten times as many rows.)
"""

from __future__ import annotations

import math

_BITS = 32
_LANES = 160
_MASK = (1 << _BITS) - 1


def one(wait_us: int) -> int:
    """Return the histogram of one wait."""
    ms = max(wait_us, 0) / 1000
    lane = 0 if ms < 1 else 1 + int(4 * math.log2(ms))
    return 1 << _BITS * min(lane, _LANES - 1)


def pack(histogram: int) -> bytes:
    return histogram.to_bytes((histogram.bit_length() + 7) // 8, "little")


def unpack(packed: bytes) -> int:
    return int.from_bytes(packed, "little")


def count(histogram: int) -> int:
    """Return how many waits are in it."""
    return sum(_counts(histogram))


def quantile_us(histogram: int, part: float) -> int | None:
    """Return how long that part of the waits took at most, within 10 %; None without any."""
    counts = _counts(histogram)
    rank = part * sum(counts)
    for lane, here in enumerate(counts):
        if here and rank <= here:
            low, high = _bounds_ms(lane)
            return round(1000 * (low + (high - low) * rank / here))
        rank -= here
    return None


def _counts(histogram: int) -> list[int]:
    counts = []
    while histogram:
        counts.append(histogram & _MASK)
        histogram >>= _BITS
    return counts


def _bounds_ms(lane: int) -> tuple[float, float]:
    return (0.0, 1.0) if lane == 0 else (2 ** ((lane - 1) / 4), 2 ** (lane / 4))


# What SQL calls; see ``register`` in migrate.py.


def add_packed(one: bytes, other: bytes) -> bytes:
    return pack(unpack(one) + unpack(other)) if other else one


def pack_one(wait_us: int | None) -> bytes:
    return b"" if wait_us is None else pack(one(wait_us))


class Sum:
    """An aggregate of SQL: the sum of packed histograms."""

    def __init__(self) -> None:
        self._sum = 0

    def step(self, packed: bytes | None) -> None:
        if packed:
            self._sum += int.from_bytes(packed, "little")

    def finalize(self) -> bytes:
        return pack(self._sum)
