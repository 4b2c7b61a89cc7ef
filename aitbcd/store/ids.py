"""Job numbers <-> job ids: a bijection on 40 bits, keyed by the store's seed. Pure.

Two rounds of an odd multiplication and an xor of the high half onto the low one; each step can be
undone, so two numbers never share an id, while neighbours differ from their first letter on. It
hides nothing: an id is a name, not a secret.
"""

from __future__ import annotations

from collections.abc import Callable

from aitbcd.model import ID_ALPHABET, ID_LENGTH

PREFIX = "job_"
IdMaker = Callable[[int], str]

_BITS = 5 * ID_LENGTH
_MASK = (1 << _BITS) - 1
#: Ten bits -> two letters.
_PAIRS = tuple(high + low for high in ID_ALPHABET for low in ID_ALPHABET)


def id_maker(seed: bytes) -> IdMaker:
    """Return the function from a number to its id.

    Args:
        seed: 16 random bytes, the same for as long as the store lives.
    """
    first = int.from_bytes(seed[:5], "big") | 1
    second = int.from_bytes(seed[5:10], "big") | 1
    offset = int.from_bytes(seed[10:15], "big")
    pairs = _PAIRS

    def job_id(number: int) -> str:
        x = (number * first + offset) & _MASK
        x = ((x ^ (x >> 20)) * second) & _MASK
        x ^= x >> 20
        return (
            f"job_{pairs[x >> 30]}{pairs[x >> 20 & 1023]}{pairs[x >> 10 & 1023]}{pairs[x & 1023]}"
        )

    return job_id


def next_prefix(prefix: str) -> str:
    """Return the first string after all that begin with ``prefix``, in byte order."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
