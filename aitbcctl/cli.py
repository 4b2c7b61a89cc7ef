"""``aitbcctl`` and ``aitbc client``: runs the verb, turns what it raises into exit codes.

Exit codes: 0 done, 1 the answer is no, 2 usage, 3 no such job, 4 refused, 5 daemon not reachable;
130 for ^C, 141 when whoever read our output went away. A plain submit goes past click.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from aitbcctl.terminal import (
    BROKEN_PIPE,
    INTERRUPTED,
    BrokenOutput,
    abandon_output,
    complain,
    flush,
    prepare,
    say,
)
from aitbcd.errors import AitbcError


def main(args: Sequence[str] | None = None) -> int:
    """Run ``aitbcctl`` and return its exit code."""
    words = list(sys.argv[1:] if args is None else args)
    return _run("aitbcctl", words, words)


def aitbc(args: Sequence[str] | None = None) -> int:
    """Run ``aitbc``, of which ``client`` is the same program, and return its exit code."""
    words = list(sys.argv[1:] if args is None else args)
    return _run("aitbc", words, words[1:] if words[:1] == ["client"] else [])


def _run(name: str, words: list[str], verb: list[str]) -> int:
    prepare()
    try:
        code = _answer(name, words, verb)
        flush()
        return code
    except (BrokenOutput, BrokenPipeError):
        abandon_output()
        return BROKEN_PIPE
    except OSError as error:
        # What a verb does with files it reports itself: this is our output, on a full disk.
        abandon_output()
        say(f"aitbcctl: cannot write the output: {error.strerror}")
        return 1
    except Exception as error:
        if os.environ.get("AITBC_DEBUG"):
            raise
        _confess(error)
        return 1


def _confess(bug: Exception) -> None:
    """Say where a mistake of ours is, in a line instead of a screenful."""
    at = bug.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else "?"
    say(f"aitbcctl: a mistake of this program: {type(bug).__name__}: {bug} ({place})")
    say("  please report it; with AITBC_DEBUG=1 it says more")


def _answer(name: str, words: list[str], verb: list[str]) -> int:
    try:
        if verb[:1] == ["submit"]:
            from aitbcctl import quick, submission

            if (asked := quick.read(verb[1:])) is not None:
                return submission.run(**asked)
        from aitbcctl import verbs

        return verbs.run(name, words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except AitbcError as error:
        complain(error)
        return error.exit_code
