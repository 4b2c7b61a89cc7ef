"""Cursors: where a page ended, as a word that is safe in a URL. Pure.

``<order>.<value>.<number>``: what the list is in order of, that value of the last job (``n`` for
none, an integer, or ``s`` and base 64 of a text), and its number.
"""

from __future__ import annotations

import base64
import binascii
from typing import TypeAlias

from aitbcd.errors import WrongCursor

MAX_NUMBER = (1 << 63) - 1
_DIGITS = len(str(MAX_NUMBER))
#: The value that a list is sorted by, and the number.
Key: TypeAlias = tuple[int | str | None, int]


def write(order: str, key: Key) -> str:
    """Return the cursor behind a key."""
    value, number = key
    if value is None:
        word = "n"
    elif isinstance(value, str):
        word = "s" + base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")
    else:
        word = str(value)
    return f"{order}.{word}.{number}"


def read(order: str, word: str, *kinds: type) -> Key:
    """Return the key behind which a page begins.

    Args:
        kinds: types that its value may have.

    Raises:
        WrongCursor: no list in this order gave such a cursor.
    """
    try:
        said, value, number = word.split(".")
        key = _value(value), _whole(number)
    except ValueError:
        said, key = "", (None, 0)
    if said != order or type(key[0]) not in kinds:
        shown = word if len(word) <= 80 else f"{word[:80]}..."
        raise WrongCursor(
            f"after is '{shown}', which no list in this order gave as its next",
            hint="take it from the page before, and ask for the same order",
            field="after",
        )
    return key


def _value(word: str) -> int | str | None:
    if word == "n":
        return None
    if not word.startswith("s"):
        return _whole(word)
    try:
        text = base64.b64decode(word[1:] + "=" * (-(len(word) - 1) % 4), b"-_", validate=True)
    except binascii.Error:
        raise ValueError(word) from None
    return text.decode()


def _whole(word: str) -> int:
    """Return what ``str`` made of an integer that SQLite holds."""
    if len(word) > _DIGITS + 1:
        raise ValueError(word)
    number = int(word)
    if str(number) != word or abs(number) > MAX_NUMBER:
        raise ValueError(word)
    return number
