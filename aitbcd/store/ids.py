"""Job numbers <-> job ids, by arithmetic alone: no id is stored, looked up or drawn twice. Pure.

The eight letters of an id are 40 bits, ``(offset + number * STEP) mod 2**40``. STEP is 2**40 over
the golden ratio: the ids of n jobs in a row are then spread over all ids as evenly as can be (the
three-distance theorem), so prefixes that are unique stay as short as they can, and neighbours
differ in their first letter. The offset is the store's own, so two machines' ids do not meet.
An id hides nothing: it is a name, not a secret.

The jobs whose id begins with a prefix are the n for which ``n * STEP mod 2**40`` lies in an
interval; Euclid's algorithm steps from one to the next without trying those between. (An index
over random ids cost a third of the time of a large submit.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import overload

from aitbcd.model import ID_ALPHABET, ID_LENGTH

PREFIX = "job_"
#: Odd, so that the multiplication can be undone.
STEP = 0x9E3779B97F

_BITS = 5 * ID_LENGTH
_SIZE = 1 << _BITS
_MASK = _SIZE - 1
_BACK = pow(STEP, -1, _SIZE)
#: Ten bits -> two letters.
_PAIRS = tuple(high + low for high in ID_ALPHABET for low in ID_ALPHABET)
_VALUES = {letter: value for value, letter in enumerate(ID_ALPHABET)}
_LETTERS = re.compile(f"[{ID_ALPHABET}]{{1,{ID_LENGTH}}}")


def letters_of(ref: str) -> str | None:
    """Return the letters of an id or of its beginning, None where it cannot be one."""
    letters = ref.lower().removeprefix(PREFIX)
    return letters if _LETTERS.fullmatch(letters) else None


class JobIds:
    """The ids of one store."""

    __slots__ = ("_offset",)

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def of(self, number: int) -> str:
        """Return the id of a job."""
        x = (self._offset + number * STEP) & _MASK
        pairs = _PAIRS
        return (
            f"job_{pairs[x >> 30]}{pairs[x >> 20 & 1023]}{pairs[x >> 10 & 1023]}{pairs[x & 1023]}"
        )

    def letters(self, number: int) -> str:
        """Return the eight letters of an id."""
        return self.of(number).removeprefix(PREFIX)

    def number(self, letters: str) -> int:
        """Return the number of the job that has these eight letters."""
        return (_value(letters) - self._offset) * _BACK & _MASK

    def number_of(self, word: str, prefix: str) -> int:
        """Return the number of which a whole id with another prefix was made; 0 for no id."""
        letters = word.removeprefix(prefix)
        is_id = (
            word.startswith(prefix) and len(letters) == ID_LENGTH and _LETTERS.fullmatch(letters)
        )
        return self.number(letters) if is_id else 0

    def matching(self, letters: str, last: int) -> Iterator[int]:
        """Yield the numbers from ``last`` down to 1 whose ids begin with these letters."""
        spare = _BITS - 5 * len(letters)
        low = _value(letters) << spare
        width = (1 << spare) - 1
        number = last
        while number > 0:
            # How far the interval's beginning lies above this number's id, walking downwards.
            here = (self._offset + number * STEP) & _MASK
            begin = (low - here) & _MASK
            steps = _first_step(_SIZE - STEP, _SIZE, begin, begin + width)
            if steps is None or steps >= number:
                return
            yield number - steps
            number -= steps + 1


class Named(Sequence[tuple[int, str]]):
    """(number, id) of jobs in a row; none is made before it is asked for."""

    __slots__ = ("_ids", "_numbers")

    def __init__(self, numbers: range, ids: JobIds) -> None:
        self._numbers = numbers
        self._ids = ids

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> tuple[int, str]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[int, str]]: ...
    def __getitem__(self, at: int | slice) -> tuple[int, str] | list[tuple[int, str]]:
        some = self._numbers[at]
        if isinstance(some, int):
            return some, self._ids.of(some)
        return [(number, self._ids.of(number)) for number in some]


def _value(letters: str) -> int:
    value = 0
    for letter in letters:
        value = value << 5 | _VALUES[letter]
    return value


def _first_step(step: int, size: int, low: int, high: int) -> int | None:
    """Return the least n >= 0 with ``low <= n * step mod size <= high``, None if there is none.

    ``low`` is within the size; ``high`` may go beyond it, once around.
    """
    if low == 0 or high >= size:
        return 0
    if step == 0:
        return None
    n = -(-low // step)
    if n * step <= high:
        return n
    # No multiple of step before the first turn is in there, so none fits twice between low and
    # high: the least number of turns after which one is, is the same question, smaller.
    turns = _first_step(size % step, step, -high % step, -low % step)
    return None if turns is None else -(-(low + turns * size) // step)
