"""A whole terminal for a live view: keys, resizes, and painting no more than has changed.

rich knows the terminal's colours, and NO_COLOR. Its ``Live`` would send every line at each refresh,
which over a slow ssh is seen; here a line is compared piece by piece with what is shown.

However the view is left, also by SIGTERM or ^Z, the terminal is as it was before
(termios(3), and the alternate screen of xterm).
"""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from aitbcctl import glyphs
from aitbcctl.panel import Line, Piece
from aitbcctl.tables import columns

_ERASE_LINE = Control((ControlType.ERASE_IN_LINE, 0))
_CLEAR = Control(ControlType.CLEAR, ControlType.HOME)


class Screen:
    """``with`` it, ``paint`` the lines of ``size``; ``has_news`` says that they must be others."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._is_unicode = glyphs.is_unicode(os.environ)
        self._shown: list[Line] | None = None
        self._size = (0, 0)
        self._before: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._is_to_stop = False

    # -- entering and leaving --

    def __enter__(self) -> Self:
        for signum, handler in (
            (signal.SIGTERM, _end),
            (signal.SIGHUP, _end),
            (signal.SIGTSTP, self._on_stop),
            # What it does lies in being seen: the wait ends, and the size is asked for.
            (signal.SIGWINCH, lambda *_: None),
        ):
            self._handlers[signum] = signal.signal(signum, handler)
        try:
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._give_back()
        except (OSError, termios.error):
            pass  # the terminal is gone
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def _take(self) -> None:
        if os.isatty(0):
            self._before = termios.tcgetattr(0)
            tty.setcbreak(0)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        self._shown = None

    def _give_back(self) -> None:
        if self._before is not None:
            # What was typed meanwhile was meant for the view, not for the shell.
            termios.tcsetattr(0, termios.TCSAFLUSH, self._before)
            self._before = None
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)

    def _on_stop(self, signum: int, frame: FrameType | None) -> None:
        # Not here: it may have come in the middle of painting.
        self._is_to_stop = True

    def stop_if_asked(self) -> None:
        """Let ^Z stop us, with the terminal as the shell knows it, and come back afterwards."""
        if self._is_to_stop:
            self._is_to_stop = False
            self._give_back()
            ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, ours)
            self._take()

    # -- keys --

    @property
    def key_fd(self) -> int | None:
        """Where keys come from, if somebody can type."""
        return 0 if self._before is not None else None

    def is_left(self) -> bool:
        """Read the keys that came; tell whether one of them means to leave."""
        try:
            keys = os.read(0, 1024)
        except OSError:
            return True
        if b"\x0c" in keys:  # ^L, after something else wrote on the terminal
            self._shown = None
        return not keys or b"q" in keys.lower()

    # -- painting --

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        try:
            size = os.get_terminal_size(1)
        except OSError:
            size = os.terminal_size((80, 24))
        return size.columns or 80, size.lines or 24

    def paint(self, lines: Sequence[Line], size: tuple[int, int]) -> None:
        """Show ``lines``, which were made for this size."""
        if not self._is_unicode:
            lines = [tuple((glyphs.in_ascii(text), style) for text, style in one) for one in lines]
        with self._console:
            if self._shown is None or size != self._size:
                self._console.control(_CLEAR)
                self._shown = []
            self._size = size
            for at, line in enumerate(lines):
                before = self._shown[at] if at < len(self._shown) else ()
                if line != before:
                    self._paint_line(at, line, before)
        self._shown = list(lines)

    def _paint_line(self, at: int, line: Line, before: Line) -> None:
        for column, pieces in _changes(line, before):
            self._console.control(Control.move_to(column, at))
            text = Text.assemble(*joined(pieces), end="")
            self._console.print(text, end="", no_wrap=True, crop=False, overflow="ignore")
        if _width(line) < _width(before):
            self._console.control(Control.move_to(_width(line), at), _ERASE_LINE)


def _changes(line: Line, before: Line) -> Iterator[tuple[int, list[Piece]]]:
    """Yield what of a line is another than before, with its column."""
    run: list[Piece] = []
    begin = column = 0
    #: Behind the first piece of another width, everything stands elsewhere.
    is_aligned = True
    for at, piece in enumerate(line):
        old = before[at] if at < len(before) else None
        width = columns(piece[0])
        if is_aligned and piece == old:
            if run:
                yield begin, run
                run = []
        else:
            if not run:
                begin = column
            run.append(piece)
        is_aligned = is_aligned and old is not None and width == columns(old[0])
        column += width
    if run:
        yield begin, run


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces with those of one style as one."""
    for style, group in groupby(pieces, key=itemgetter(1)):
        yield "".join(text for text, _ in group), style


def _width(pieces: Sequence[Piece]) -> int:
    return sum(columns(text) for text, _ in pieces)


def _end(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
