"""Which GPUs a job gets: who fits a wish, which set is closest together, where a share fits. Pure.

A job asks for whole GPUs, or for a share of one: so many bytes of its memory. Whole GPUs are chosen
close to each other, and no better than asked for; shares are packed, so that whole GPUs stay free.
GPUs are known by UUID: an index is only where one is at present.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aitbcd.devices import LINKS, Gpu, GpuState
from aitbcd.units import format_size

_DISTANCE = {link: place for place, link in enumerate(LINKS)}
_FARTHEST = len(LINKS)
#: A GPU that is sold with 24 GiB reports a little less: the driver keeps some.
_AS_SOLD = 0.98


@dataclass(frozen=True, slots=True)
class Wish:
    """What a job asks of GPUs."""

    count: int = 0
    #: Any part of a model's name.
    model: str | None = None
    #: Bytes that each has to have.
    min_memory: int | None = None
    #: These and no others, by UUID or index; then ``count`` is their number.
    named: tuple[str, ...] = ()
    #: Bytes of one GPU's memory, which others may share; None asks for whole GPUs.
    share: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What jobs hold of one GPU: all of it, or shares."""

    jobs: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()
    is_whole: bool = False


NOTHING_HELD = Held()


@dataclass(frozen=True, slots=True)
class Stock:
    """The GPUs at one moment, what is held of them, and what is collected for a job that waits."""

    gpus: Sequence[Gpu] = ()
    held: Mapping[str, Held] = field(default_factory=dict)
    collected: frozenset[str] = frozenset()
    #: Given only where no other will do.
    avoided: frozenset[str] = frozenset()
    #: Jobs that may share one GPU.
    shares_max: int = 8

    def with_held(self, job: str, uuids: Iterable[str], share: int | None) -> Stock:
        """Return the stock after a job got these."""
        held = dict(self.held)
        for uuid in uuids:
            before = held.get(uuid, NOTHING_HELD)
            shares = before.shares if share is None else (*before.shares, share)
            held[uuid] = Held((*before.jobs, job), shares, share is None)
        return Stock(self.gpus, held, self.collected, self.avoided, self.shares_max)

    def collecting(self, wish: Wish) -> Stock:
        """Return the stock without what is kept free for a job that waits for more."""
        if wish.share is None:
            kept = [gpu.uuid for gpu in self._free(wish)][: wish.count]
        else:
            # The one with most room will have enough first.
            fitting = [gpu for gpu in self.gpus if fits(gpu, wish) and self._has_room(gpu)]
            kept = [gpu.uuid for gpu in sorted(fitting, key=self._room)[-1:]]
        collected = self.collected.union(kept)
        return Stock(self.gpus, self.held, collected, self.avoided, self.shares_max)

    @property
    def has_room(self) -> bool:
        """Tell whether any GPU is left to give."""
        return any(self._has_room(gpu) for gpu in self.gpus)

    def _has_room(self, gpu: Gpu) -> bool:
        return gpu.uuid not in self.collected and self._room(gpu) > 0

    def allot(self, wish: Wish) -> tuple[str, ...] | None:
        """Return the UUIDs that a job gets, None while they are not free."""
        if wish.share is not None:
            return self._allot_share(wish, wish.share)
        if not wish.count:
            return ()
        free = self._free(wish)
        if len(free) < wish.count:
            return None
        if self.avoided:
            liked = [gpu for gpu in free if gpu.uuid not in self.avoided]
            free = liked if len(liked) >= wish.count else free
        return tuple(gpu.uuid for gpu in _closest(free, wish.count))

    def _free(self, wish: Wish) -> list[Gpu]:
        return [
            gpu
            for gpu in self.gpus
            if gpu.state is GpuState.FREE
            and gpu.uuid not in self.collected
            and not self.held.get(gpu.uuid, NOTHING_HELD).jobs
            and fits(gpu, wish)
        ]

    def _allot_share(self, wish: Wish, share: int) -> tuple[str, ...] | None:
        best: tuple[bool, bool, int, str] | None = None
        for gpu in self.gpus:
            room = self._room(gpu)
            if room < share or gpu.uuid in self.collected or not fits(gpu, wish):
                continue
            is_new = not self.held.get(gpu.uuid, NOTHING_HELD).shares
            candidate = (gpu.uuid in self.avoided, is_new, room, gpu.uuid)
            best = candidate if best is None else min(best, candidate)
        return best and (best[3],)

    def _room(self, gpu: Gpu) -> int:
        """Return the bytes that another share of this GPU may have; -1 for none at all."""
        held = self.held.get(gpu.uuid, NOTHING_HELD)
        if held.is_whole or len(held.shares) >= self.shares_max:
            return -1
        if gpu.state is not GpuState.FREE and not (held.shares and gpu.state is GpuState.BUSY):
            return -1
        return gpu.memory_total - sum(held.shares)


def fits(gpu: Gpu, wish: Wish) -> bool:
    """Tell whether a GPU is of the kind that is asked for, whatever it does at present."""
    if wish.named and gpu.uuid not in wish.named and str(gpu.index) not in wish.named:
        return False
    if wish.model is not None and not is_model(gpu.name, wish.model):
        return False
    least = round((wish.min_memory or 0) * _AS_SOLD)
    return gpu.memory_total >= max(least, wish.share or 0)


def is_model(name: str, part: str) -> bool:
    """Tell whether ``part`` names this model: all of its words, in any case."""
    lowered = name.casefold()
    return all(word in lowered for word in part.casefold().split())


def impossible(gpus: Sequence[Gpu], wish: Wish) -> str | None:
    """Return why this machine can never grant a wish, as a sentence; None where it can.

    GPUs that are lost, drained or used by others count: they come back.
    """
    if not wish.count and wish.share is None:
        return None
    wanted = describe(wish)
    if not gpus:
        return f"the job asks for {wanted} and this machine has no GPUs"
    for name in wish.named:
        if not any(name in (gpu.uuid, str(gpu.index)) for gpu in gpus):
            known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus)
            return f"there is no GPU {name} here: known are {known}"
    if wish.model is not None and not any(is_model(gpu.name, wish.model) for gpu in gpus):
        return f"no GPU here is a '{wish.model}': there are {inventory(gpus)}"
    fitting = sum(fits(gpu, wish) for gpu in gpus)
    if fitting >= max(wish.count, 1):
        return None
    return f"the job asks for {wanted} and this machine has {inventory(gpus)}"


def lacking(stock: Stock, wish: Wish) -> str:
    """Return what a job waits for, as the end of a sentence: ``1 of 2 GPUs with 40 GiB``."""
    if wish.share is not None:
        return f"room for {format_size(wish.share)} on a GPU"
    missing = max(1, wish.count - len(stock._free(wish)))
    return f"{missing} of {describe(wish)}" if wish.count > 1 else describe(wish)


def describe(wish: Wish) -> str:
    """Return a wish in words: ``2 GPUs of type h100 with 40 GiB``."""
    if wish.share is not None:
        words = f"{format_size(wish.share)} of a GPU's memory"
    else:
        words = f"{wish.count} GPU{'' if wish.count == 1 else 's'}"
    if wish.model is not None:
        words += f" of type {wish.model}"
    if wish.min_memory is not None:
        words += f" with {format_size(wish.min_memory)}"
    if wish.named:
        words = f"GPU {', '.join(wish.named)}"
    return words


def inventory(gpus: Sequence[Gpu]) -> str:
    """Return GPUs in words: ``2 x NVIDIA H100 80GB HBM3 (79.6 GiB)``."""
    counts: dict[tuple[str, int], int] = {}
    for gpu in gpus:
        key = (gpu.name, gpu.memory_total)
        counts[key] = counts.get(key, 0) + 1
    kinds = (f"{count} x {name} ({format_size(size)})" for (name, size), count in counts.items())
    return ", ".join(kinds) or "no GPUs"


def _closest(free: Sequence[Gpu], count: int) -> list[Gpu]:
    """Return ``count`` GPUs that are near each other, of the smallest memory that will do.

    Greedy from each GPU as a start: for as many as a machine has, the best of these is the best or
    next to it, and it takes microseconds.
    """
    if count == 1:
        return [min(free, key=_modesty)]
    sets = (_around(start, free, count) for start in free)
    return min(sets, key=_cost)


def _around(start: Gpu, free: Sequence[Gpu], count: int) -> list[Gpu]:
    others = [gpu for gpu in free if gpu is not start]
    others.sort(key=lambda gpu: (_distance(start, gpu), *_modesty(gpu)))
    return [start, *others[: count - 1]]


def _cost(chosen: Sequence[Gpu]) -> tuple[int, int, int]:
    spread = sum(
        _distance(one, other) for at, one in enumerate(chosen) for other in chosen[at + 1 :]
    )
    return spread, sum(gpu.memory_total for gpu in chosen), sum(gpu.index for gpu in chosen)


def _modesty(gpu: Gpu) -> tuple[int, int]:
    return gpu.memory_total, gpu.index


def _distance(one: Gpu, other: Gpu) -> int:
    return _DISTANCE.get(one.links.get(other.uuid, ""), _FARTHEST)
