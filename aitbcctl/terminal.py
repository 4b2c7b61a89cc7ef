"""What is said to a person and what is printed as data: stderr and stdout, and how they end.

Data goes to stdout, talk to stderr, so that a pipe gets the first alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import NoReturn

from aitbcd.errors import AitbcError

#: What a shell shows for a program that SIGPIPE ended.
BROKEN_PIPE = 141
#: The same of one that ^C ended.
INTERRUPTED = 130


class Left(KeyboardInterrupt):
    """^C came, and what becomes of the job was said."""


class BrokenOutput(Exception):
    """Whoever read our stdout or stderr is gone: there is nobody left to tell."""


def prepare() -> None:
    """Make sure that 0, 1 and 2 are open and that any text can be written to them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # Started with it closed (``>&-``): the next socket would become our output.
            os.open(os.devnull, os.O_RDWR)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or open(fd, "w", closefd=False)  # noqa: SIM115
        # A name that this locale cannot print must not cost the whole answer.
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)


def say(text: str) -> None:
    """Say one thing to the person at the terminal."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        raise BrokenOutput from None


def tell_of_gone(gone: str, path: str) -> None:
    """Say that this is about another queue than whoever has started a daemon may expect."""
    say(
        f"aitbcctl: nobody listens on {gone}: your own daemon is gone; this is the one at {path}\n"
        "  start yours again: aitbcd; or remove that socket"
    )


def leave(text: str) -> NoReturn:
    """Say, below the ``^C`` that the terminal shows, what becomes of the job, and go."""
    say(f"\n{text}")
    raise Left from None


def draw(line: str) -> None:
    """Show a line on the terminal of stderr that the next one takes the place of."""
    width = (columns(2) or 80) - 1
    sys.stderr.write(f"\r{line[:width]}\x1b[K")
    sys.stderr.flush()


def is_meant(question: str) -> bool:
    """Ask, where there is a terminal to ask on; elsewhere what was said is meant."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def complain(error: AitbcError) -> None:
    """Say what went wrong and what to do next."""
    from aitbcctl.render import plain

    say(f"aitbcctl: {plain(error.detail)}")
    if error.hint:
        say("\n".join(f"  {plain(line)}" for line in error.hint.split("\n")))


def put(text: str) -> None:
    """Print a line of data."""
    try:
        sys.stdout.write(text + "\n")
    except BrokenPipeError:
        raise BrokenOutput from None


def put_json(value: object, *, line: bool = False) -> None:
    """Print a JSON document, indented, or as one ``line`` of a stream."""
    import json

    put(json.dumps(value) if line else json.dumps(value, indent=2))
    if line:
        flush()


def flush() -> None:
    """Hand to the reader what was printed so far."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise BrokenOutput from None


def put_bytes(data: bytes, fd: int) -> None:
    """Write all of ``data`` to 1 or 2, past the text layer: logs hold any bytes."""
    (sys.stdout if fd == 1 else sys.stderr).flush()
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        raise BrokenOutput from None


def put_document(pieces: Iterable[bytes]) -> None:
    """Write what is meant for a file to stdout; a terminal is not commanded by what is in it."""
    if os.isatty(1):
        from aitbcctl.render import escaped

        pieces = escaped(pieces)
    for piece in pieces:
        put_bytes(piece, 1)


def is_shown(fd: int) -> bool:
    """Tell whether 1 or 2 is a terminal that can redraw a line."""
    return os.isatty(fd) and os.environ.get("TERM") != "dumb"


def columns(fd: int) -> int | None:
    """Return the width of the terminal; None where there is none: nothing is cut then."""
    if not os.isatty(fd):
        return None
    try:
        return os.get_terminal_size(fd).columns or 80
    except OSError:
        return 80


def abandon_output() -> None:
    """Let the interpreter's own flush at exit go nowhere, silently."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
