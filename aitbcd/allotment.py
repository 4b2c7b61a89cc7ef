"""Which GPUs a job gets: who fits a wish, which set is closest together, where a share fits. Pure.

A job asks for whole GPUs, or for a share of one: so many bytes of its memory. Whole GPUs are chosen
close to each other, and no better than asked for; shares are packed, so that whole GPUs stay free.
GPUs are known by UUID: an index is only where one is at present.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from aitbcd.devices import LINKS, Gpu, GpuState
from aitbcd.units import format_size

_DISTANCE = {link: place for place, link in enumerate(LINKS)}
_FARTHEST = len(LINKS)
#: A GPU that is sold with 24 GiB reports a little less: the driver keeps some.
_AS_SOLD = 0.98


class Wish(NamedTuple):
    """What a job asks of GPUs; a tuple, because it is looked up many times in a decision."""

    count: int = 0  # type: ignore[assignment] # tuple.count, which nobody needs here
    #: Any part of a model's name.
    model: str | None = None
    #: Bytes that each has to have.
    min_memory: int | None = None
    #: These and no others, by UUID or index; then ``count`` is their number.
    named: tuple[str, ...] = ()
    #: Bytes of one GPU's memory, which others may share; None asks for whole GPUs.
    share: int | None = None


class Held(NamedTuple):
    """What a job has of these GPUs: all of them, or a share of one."""

    uuids: Sequence[str]
    #: Bytes; None is all.
    share: int | None = None


class Place(NamedTuple):
    """A GPU, and what is left of it to give."""

    gpu: Gpu
    #: Bytes that jobs have of it.
    shares: tuple[int, ...] = ()
    #: Nobody has any of it.
    is_free: bool = False
    #: Bytes that another share may have.
    room: int = 0


@dataclass(frozen=True, slots=True)
class Stock:
    """What there is to give at one moment."""

    #: By UUID, what has anything left.
    places: Mapping[str, Place] = field(default_factory=dict)
    #: Given only where no other will do.
    avoided: frozenset[str] = frozenset()
    #: Jobs that may share one GPU.
    shares_max: int = 8

    @classmethod
    def of(
        cls,
        gpus: Iterable[Gpu],
        held: Iterable[Held] = (),
        *,
        avoided: frozenset[str] = frozenset(),
        shares_max: int = 8,
    ) -> Stock:
        """Return what is left of GPUs beside what jobs have."""
        places = {gpu.uuid: _place(gpu, (), shares_max) for gpu in gpus}
        for each in held:
            _hold(places, each, shares_max)
        left = {uuid: place for uuid, place in places.items() if place.is_free or place.room}
        return cls(left, avoided, shares_max)

    def with_held(self, held: Held) -> Stock:
        """Return the stock after a job got these."""
        places = dict(self.places)
        _hold(places, held, self.shares_max)
        return Stock(places, self.avoided, self.shares_max)

    def collecting(self, wish: Wish) -> Stock:
        """Return the stock without what is kept free for a job that waits for more."""
        fitting = [each for each in self.places.values() if fits(each.gpu, wish)]
        if wish.share is None:
            # Free ones first, then those that the fewest shares have yet to leave: no new one
            # comes there, so what is kept at the next moment is never farther from being free.
            kept = sorted(fitting, key=lambda place: len(place.shares))[: wish.count]
        else:
            # The one with most room will have enough first.
            kept = sorted(fitting, key=attrgetter("room"))[-1:]
        closed = {place.gpu.uuid for place in kept}
        places = {uuid: place for uuid, place in self.places.items() if uuid not in closed}
        return Stock(places, self.avoided, self.shares_max)

    @property
    def has_room(self) -> bool:
        """Tell whether any GPU is left to give."""
        return bool(self.places)

    def allot(self, wish: Wish) -> tuple[str, ...] | None:
        """Return the UUIDs that a job gets, None while they are not free."""
        if wish.share is not None:
            return self._allot_share(wish, wish.share)
        if not wish.count:
            return ()
        if len(self.places) < wish.count or len(free := self.free(wish)) < wish.count:
            return None
        if self.avoided:
            liked = [gpu for gpu in free if gpu.uuid not in self.avoided]
            free = liked if len(liked) >= wish.count else free
        return tuple(gpu.uuid for gpu in _closest(free, wish.count))

    def free(self, wish: Wish) -> list[Gpu]:
        """Return the whole GPUs of the kind that is asked for."""
        return [each.gpu for each in self.places.values() if each.is_free and fits(each.gpu, wish)]

    def _allot_share(self, wish: Wish, share: int) -> tuple[str, ...] | None:
        candidates = [
            (uuid in self.avoided, place.is_free, place.room, uuid)
            for uuid, place in self.places.items()
            if place.room >= share and fits(place.gpu, wish)
        ]
        return (min(candidates)[-1],) if candidates else None


def _place(gpu: Gpu, shares: tuple[int, ...], shares_max: int) -> Place:
    is_free = gpu.state is GpuState.FREE and not shares
    is_shared = bool(shares) and gpu.state.is_usable and not gpu.has_stranger
    if len(shares) < shares_max and (is_free or is_shared):
        return Place(gpu, shares, is_free, max(gpu.memory_total - sum(shares), 0))
    return Place(gpu, shares)


def _hold(places: dict[str, Place], held: Held, shares_max: int) -> None:
    """Take from places what a job has."""
    for uuid in held.uuids:
        if held.share is None:
            places.pop(uuid, None)
        elif uuid in places:
            before = places[uuid]
            places[uuid] = _place(before.gpu, (*before.shares, held.share), shares_max)
            if not places[uuid].room:
                del places[uuid]


def fits(gpu: Gpu, wish: Wish) -> bool:
    """Tell whether a GPU is of the kind that is asked for, whatever it does at present."""
    if wish.named and gpu.uuid not in wish.named and str(gpu.index) not in wish.named:
        return False
    if wish.model is not None and not is_model(gpu.name, wish.model):
        return False
    least = round((wish.min_memory or 0) * _AS_SOLD)
    return gpu.memory_total >= max(least, wish.share or 0)


@lru_cache(maxsize=256)
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
    missing = max(1, wish.count - len(stock.free(wish)))
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


def _closest(free: Sequence[Gpu], count: int) -> Sequence[Gpu]:
    """Return ``count`` GPUs that are near each other, of the smallest memory that will do.

    Greedy from each GPU as a start: for as many as a machine has, the best of these is the best or
    next to it, and it takes microseconds.
    """
    if count == len(free):
        return free
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
