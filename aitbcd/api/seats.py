"""Who has how many of the connections that there are; pure.

Whoever comes gets one while there are any. When all are taken, one is taken from whoever has most
and given to who comes, as long as that leaves him no worse off than the other: so nobody can keep
somebody else out, however many of them join for it, and who is alone may have them all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable


class Seats:
    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        #: Of each, in the order of their coming.
        self._taken: dict[Hashable, dict[Seat, None]] = {}

    def take(self, who: Hashable, leave: Callable[[], None]) -> Seat | None:
        """Return a seat for a connection; None when there is none for ``who``.

        Args:
            leave: called when it is given to somebody else.
        """
        if self._count >= self._most and not self._make_room(who):
            return None
        seat = Seat(self, who, leave)
        self._taken.setdefault(who, {})[seat] = None
        self._count += 1
        return seat

    def _make_room(self, who: Hashable) -> bool:
        heaviest = max(self._taken, key=lambda each: len(self._taken[each]))
        if len(self._taken[heaviest]) < len(self._taken.get(who, ())) + 2:
            return False
        # The newest: what has gone on for longest is most likely somebody's work.
        newest = next(reversed(self._taken[heaviest]))
        newest.free()
        newest.leave()
        return True

    def remove(self, who: Hashable, seat: Seat) -> None:
        """Take note that a seat is free; a second time is as good."""
        taken = self._taken.get(who, {})
        if seat not in taken:
            return
        del taken[seat]
        self._count -= 1
        if not taken:
            del self._taken[who]


class Seat:
    """The right of one connection to be open."""

    __slots__ = ("_seats", "_who", "leave")

    def __init__(self, seats: Seats, who: Hashable, leave: Callable[[], None]) -> None:
        self._seats = seats
        self._who = who
        self.leave = leave

    def free(self) -> None:
        """Give it back, once the connection is closed."""
        self._seats.remove(self._who, self)
