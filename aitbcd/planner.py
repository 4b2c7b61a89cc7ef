"""Decides which waiting jobs start now. Pure: no clock, no I/O; what it is told is all it knows.

The queue is first come, first served within a priority, strictly: a large job at its head waits
until enough is free and is not overtaken, so that small ones cannot starve it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Claim(NamedTuple):
    """What a job takes of the machine while it runs."""

    cpus: int
    #: Bytes; 0 claims none.
    memory: int = 0
    gpus: int = 0

    def plus(self, other: Claim) -> Claim:
        return Claim(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Claim) -> Claim:
        return Claim(*(a - b for a, b in zip(self, other, strict=True)))

    def fits(self, free: Claim) -> bool:
        return self.cpus <= free.cpus and self.memory <= free.memory and self.gpus <= free.gpus


class Waiting(NamedTuple):
    number: int
    claim: Claim


def plan(queue: Iterable[Waiting], free: Claim) -> list[int]:
    """Return the numbers of the jobs to start, in order. ``queue`` is in order of precedence."""
    chosen: list[int] = []
    for waiting in queue:
        if not waiting.claim.fits(free):
            break
        free = free.minus(waiting.claim)
        chosen.append(waiting.number)
    return chosen


def lacking(claim: Claim, free: Claim, whole: Claim) -> str:
    """Return as a sentence what a job at the head of the queue waits for; empty: for nothing."""
    lacks = []
    if claim.cpus > free.cpus:
        lacks.append(f"{_count(claim.cpus, 'CPU core')} ({max(free.cpus, 0)} of {whole.cpus} free)")
    if claim.memory > free.memory:
        left = f"{_gib(max(free.memory, 0))} of {_gib(whole.memory)} free"
        lacks.append(f"{_gib(claim.memory)} of memory ({left})")
    if claim.gpus > free.gpus:
        lacks.append(f"{_count(claim.gpus, 'GPU')} ({max(free.gpus, 0)} of {whole.gpus} free)")
    return "waits for " + " and ".join(lacks) if lacks else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
