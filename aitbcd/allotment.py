"""Which GPUs a job gets: who fits a wish, which set is closest together, where a share fits. Pure.

A job asks for whole GPUs, or for a share of one: so many bytes of its memory. Whole GPUs are chosen
close to each other, and no better than asked for; shares are packed, so that whole GPUs stay free.
GPUs are known by UUID: an index is only where one is at present.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from operator import attrgetter
from typing import NamedTuple

from msgspec import Struct, field

from aitbcd.devices import LINKS, Gpu, GpuState
from aitbcd.units import format_size

_DISTANCE = {link: place for place, link in enumerate(LINKS)}
_FARTHEST = len(LINKS)
#: Of what it is sold with a GPU reports this at least, the driver keeps some; and this at least of
#: a size in steps where ECC takes a sixteenth: a L40S of 48 GiB has 45, a T4 of 16 has 15.
_KEPT, _KEPT_WITH_ECC, _STEP = 0.98, 0.93, 8 << 30
#: How UUIDs begin.
_UUIDS = ("GPU-", "MIG-")
_SEPARATORS = re.compile(r"[\s_-]+")


class Wish(NamedTuple):
    """What a job asks of GPUs; a tuple, because it is looked up many times in a decision."""

    count: int = 0  # type: ignore[assignment] # tuple.count, which nobody needs here
    #: A model's whole name; as a user asks, any part of it that means no other.
    model: str | None = None
    #: Bytes that each has to have.
    min_memory: int | None = None
    #: These and no others, by UUID; as a user asks, also by index, as lists show it, or by the
    #: beginning of a UUID. Of a GPU with MIG devices these are meant.
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


class Stock(Struct, frozen=True):
    """What there is to give at one moment."""

    #: By UUID, what has anything left.
    places: Mapping[str, Place] = field(default_factory=dict)
    #: Given only where no other will do.
    avoided: frozenset[str] = frozenset()
    #: Jobs that may share one GPU.
    shares_max: int = 8
    #: What jobs have, or can have: not what is lost, drained, quarantined or somebody else's.
    usable: tuple[Gpu, ...] = ()

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
        gpus = tuple(gpus)
        places = {gpu.uuid: _place(gpu, (), shares_max) for gpu in gpus}
        for each in held:
            _hold(places, each, shares_max)
        left = {uuid: place for uuid, place in places.items() if place.is_free or place.room}
        usable = tuple(gpu for gpu in gpus if gpu.state.is_usable and not gpu.has_stranger)
        return cls(left, avoided, shares_max, usable)

    def with_held(self, held: Held) -> Stock:
        """Return the stock after a job got these."""
        places = dict(self.places)
        _hold(places, held, self.shares_max)
        return Stock(places, self.avoided, self.shares_max, self.usable)

    def collected_for(self, wish: Wish) -> tuple[str, ...]:
        """Return what is kept free for a job that waits for more; nothing while more cannot come.

        That a stranger leaves, or a GPU is mended, may take days: until then others have the rest.
        """
        fitting = [each for each in self.places.values() if fits(each.gpu, wish)]
        if not fitting or not self._can_come(wish):
            return ()
        if wish.share is None:
            # Free ones first, then those that the fewest shares have yet to leave: no new one
            # comes there, so what is kept at the next moment is never farther from being free.
            kept = sorted(fitting, key=lambda place: len(place.shares))[: wish.count]
        else:
            # The one with most room will have enough first.
            kept = sorted(fitting, key=attrgetter("room"))[-1:]
        return tuple(place.gpu.uuid for place in kept)

    def _can_come(self, wish: Wish) -> bool:
        missing = wish.count
        for gpu in self.usable:
            missing -= fits(gpu, wish)
            if missing <= 0:
                return True
        return False

    def without(self, uuids: Collection[str]) -> Stock:
        """Return the stock without these."""
        places = {uuid: place for uuid, place in self.places.items() if uuid not in uuids}
        return Stock(places, self.avoided, self.shares_max, self.usable)

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
    """Tell whether a GPU is of the kind of a settled wish, whatever it does at present."""
    if wish.named and not _is_named(gpu, wish):
        return False
    if wish.model is not None and not is_model(gpu.name, wish.model):
        return False
    # CUDA shows a process one MIG device, however many are visible.
    if wish.count > 1 and gpu.mig is not None:
        return False
    return _is_large_enough(gpu, wish)


def _is_named(gpu: Gpu, wish: Wish) -> bool:
    # By index where nobody knew the UUID when the job came.
    return any(name in wish.named for name in _names(gpu))


@lru_cache(maxsize=256)
def is_model(name: str, model: str) -> bool:
    """Tell whether a GPU is of a model, by its whole name.

    A part will do where nobody knew the name when the job came, but not its beginning: that may
    be the whole name of another model, as ``NVIDIA L40`` beside ``NVIDIA L40S``.
    """
    if name == model:
        return True
    return not _joined(name).startswith(_joined(model)) and _likeness(name, model) > 0


def unsettled(model: str) -> str:
    """Return what of a name is to be kept until somebody knows which model it means."""
    words = model.split()
    return " ".join(words[1:] if len(words) > 1 and words[0].casefold() == "nvidia" else words)


def _is_large_enough(gpu: Gpu, wish: Wish) -> bool:
    if wish.min_memory is not None and _sold_with(gpu.memory_total) < wish.min_memory:
        return False
    return gpu.memory_total >= (wish.share or 0)


def _sold_with(total: int) -> float:
    """Return the most bytes that a GPU can be sold with that reports so many."""
    step = -(-total // _STEP) * _STEP
    return step if total >= step * _KEPT_WITH_ECC else total / _KEPT


def settle(gpus: Sequence[Gpu], wish: Wish) -> Wish | str:
    """Return what a user asks for by UUID and whole name; or why this machine can never grant it.

    GPUs that are lost, drained or used by others count: they come back.
    """
    if not wish.count:
        return wish
    if not gpus:
        return f"the job asks for {describe(wish)} and this machine has no GPUs"
    named: list[Gpu] = []
    for name in wish.named:
        found = _named(gpus, name)
        if isinstance(found, str):
            return found
        named += [gpu for gpu in found if gpu not in named]
    model = wish.model
    if model is not None:
        meant = _models(gpus, named, wish, model)
        if len(meant) > 1:
            return f"'{model}' can mean {' or '.join(meant)} here: give more of the name"
        if not meant:
            return f"no GPU here is a '{model}': there are {inventory(gpus)}"
        model = meant[0]
    settled = wish._replace(model=model, named=tuple(gpu.uuid for gpu in named))
    return impossible(gpus, settled, wish.model) or settled


def impossible(gpus: Sequence[Gpu], wish: Wish, model: str | None = None) -> str | None:
    """Return why this machine can never grant a settled wish, as a sentence; None where it can.

    Args:
        model: as the user named it.
    """
    asked = _labelled(wish._replace(model=model or wish.model), gpus)
    named = [gpu for gpu in gpus if _is_named(gpu, wish)]
    if wish.named and not named:
        return _unknown(gpus, wish.named[0])
    fitting = sum(fits(gpu, wish) for gpu in gpus)
    if fitting >= wish.count:
        return None
    for gpu in named:
        if wrong := _contradiction(gpu, asked, wish):
            return wrong
    if wish.count > 1 and any(gpu.mig for gpu in gpus if fits(gpu, wish._replace(count=1))):
        return (
            f"the job asks for {describe(asked)}, a program can use no more than one MIG device,"
            f" and this machine has {inventory(gpus)}"
        )
    return f"the job asks for {describe(asked)} and this machine has {inventory(gpus)}"


def _contradiction(gpu: Gpu, asked: Wish, wish: Wish) -> str | None:
    """Return what of a wish the GPU is not that it names."""
    if wish.model is not None and not is_model(gpu.name, wish.model):
        return f"GPU {gpu.label} is a {gpu.name}, and the job asks for one of type {asked.model}"
    if not _is_large_enough(gpu, wish):
        least = format_size(wish.share or wish.min_memory or 0)
        has = format_size(gpu.memory_total)
        return f"GPU {gpu.label} ({gpu.name}) has {has}, and the job asks for {least}"
    return None


def _named(gpus: Sequence[Gpu], name: str) -> list[Gpu] | str:
    """Return the GPU of this name, of one with MIG devices all; or why there is none."""
    found = [gpu for gpu in gpus if name in _names(gpu)]
    if not found and len(name) > len("GPU-"):
        begun = {uuid for gpu in gpus for uuid in _uuids(gpu) if uuid.startswith(name)}
        if len(begun) > 1:
            return f"{name} is the beginning of {' and '.join(sorted(begun))}"
        found = [gpu for gpu in gpus if begun & set(_uuids(gpu))]
    return found or _unknown(gpus, name)


def _uuids(gpu: Gpu) -> tuple[str, ...]:
    return (gpu.uuid, gpu.mig.parent) if gpu.mig else (gpu.uuid,)


def _names(gpu: Gpu) -> tuple[str, ...]:
    return (*_uuids(gpu), str(gpu.index), gpu.label)


def _unknown(gpus: Sequence[Gpu], name: str) -> str:
    known = ", ".join(f"{gpu.label} ({gpu.uuid})" for gpu in gpus)
    return f"there is no GPU {name} here: known are {known}"


def _models(gpus: Sequence[Gpu], named: Sequence[Gpu], wish: Wish, part: str) -> list[str]:
    """Return the models that a part of a name means best, of those that the rest of a wish allows.

    MIG devices have their GPU's name and more: they are meant where no GPU is.
    """
    likeness = {gpu.name: _likeness(gpu.name, part) for gpu in gpus}
    best = max(likeness.values(), default=0)
    meant = [gpu for gpu in gpus if best and likeness[gpu.name] == best]
    meant = [gpu for gpu in meant if gpu in named] or meant
    meant = [gpu for gpu in meant if gpu.mig is None] or meant
    meant = [gpu for gpu in meant if _is_large_enough(gpu, wish)] or meant
    return list(dict.fromkeys(gpu.name for gpu in meant))


def _likeness(name: str, part: str) -> int:
    """Tell how well a part names a model: 3 wholly, 2 by words, 1 by parts of words, 0 not at all.

    Case, spaces and dashes do not count: ``rtx4090`` is the end of ``NVIDIA GeForce RTX 4090``.
    """
    words, asked = _words(name), _words(part)
    whole, wanted = _joined(name), _joined(part)
    if not wanted:
        return 0
    if wanted in (whole, whole.removeprefix("nvidia")):
        return 3
    runs = ("".join(words[begin:end]) for begin, end in combinations(range(len(words) + 1), 2))
    if all(word in words for word in asked) or wanted in runs:
        return 2
    return int(wanted in whole or all(word in whole for word in asked))


def _joined(text: str) -> str:
    return "".join(_words(text))


def _words(text: str) -> list[str]:
    return [word for word in _SEPARATORS.split(text.casefold()) if word]


def lacking(stock: Stock, wish: Wish, gpus: Sequence[Gpu] = ()) -> str:
    """Return what a job waits for, as the end of a sentence: ``1 of 2 GPUs with 40 GiB``.

    Args:
        gpus: which it can wait for.
    """
    missing = max(1, wish.count - len(stock.free(wish)))
    wish = _labelled(wish, gpus)
    if wish.share is not None:
        on = describe(wish._replace(share=None)).removeprefix("1 ")
        return f"room for {format_size(wish.share)} on {'' if wish.named else 'a '}{on}"
    return f"{missing} of {describe(wish)}" if wish.count > 1 else describe(wish)


def _labelled(wish: Wish, gpus: Iterable[Gpu]) -> Wish:
    """Return a wish that names GPUs as lists show them."""
    if not wish.named:
        return wish
    labels = {gpu.uuid: gpu.label for gpu in gpus}
    return wish._replace(named=tuple(labels.get(name, name) for name in wish.named))


def describe(wish: Wish) -> str:
    """Return a wish in words: ``2 GPUs of type h100 with 40 GiB``."""
    if wish.share is not None:
        words = f"{format_size(wish.share)} of a GPU's memory"
    elif wish.named:
        kind = "" if wish.named[0].startswith(_UUIDS) else "GPU "
        words = f"{'one of ' if wish.count < len(wish.named) else ''}{kind}{', '.join(wish.named)}"
    else:
        words = f"{wish.count} GPU{'' if wish.count == 1 else 's'}"
    if wish.model is not None:
        words += f" of type {wish.model}"
    if wish.min_memory is not None:
        words += f" with {format_size(wish.min_memory)}"
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
