"""``aitbcctl submit`` as click sees it; what it does is in ``submission``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from aitbcctl import environment, options, submission

_EPILOG = f"""\
The command after -- is run as it is, byte for byte, without a shell; -c takes a line for /bin/sh.
A script is read when the job starts, not now: what you change in it until then is what runs.

The job gets your directory, your umask and your whole environment, except what belongs to this
terminal or login ({environment.described()}); --env NAME=VALUE adds or replaces one.

Options stand before the command. With --wait the exit code is the job's own, 128+n for a signal, 1
where it failed without one, 125 when this program failed itself; ^C detaches and leaves the job
alone.

\b
Examples:
  aitbcctl submit -- python train.py --lr 0.1
  aitbcctl submit --name a --timeout 8h --artifact 'ckpt/*.pt' -- ./train.sh
  aitbcctl submit --wait -c 'make test 2>&1 | tail -n 20'
  aitbcctl submit --batch jobs.jsonl
"""


class _Submit(click.Command):
    """Tells ``submit ./x --wait`` (whose option?) from ``submit -- ./x --wait`` (its)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        argv: tuple[str, ...] = ctx.params["argv"]
        before = given[: len(given) - len(argv)]
        if argv and before[-1:] != ["--"]:
            for word in argv:
                if word.startswith("-") and word != "-":
                    raise click.UsageError(
                        f"Whose option is {word!r}? Write submit's own options first, then -- "
                        "and the command.",
                        ctx,
                    )
        return rest


_COMPLETED = {
    "DIR": options.folders,
    "FILE": options.files,
    "UUID|INDEX": options.gpus,
    "MODEL": options.models,
}


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for flag, name, kind, metavar, text in reversed(submission.OPTIONS):
        how: dict[str, Any] = {"help": text, "metavar": metavar}
        if kind == submission.FLAG:
            how["is_flag"] = True
        elif kind == submission.TEXTS:
            how["multiple"] = True
        elif kind == submission.WHOLE:
            how["type"] = int
        elif kind != submission.TEXT:
            how["type"] = click.Choice(kind.split("|"))
        if metavar in _COMPLETED:
            how["shell_complete"] = _COMPLETED[metavar]
        function = click.option(flag, name, **how)(function)
    return function


@click.command(
    "submit",
    cls=_Submit,
    epilog=_EPILOG,
    context_settings={"allow_interspersed_args": False},
)
@click.argument(
    "argv",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="-- COMMAND [ARG]...",
    shell_complete=options.files,
)
@_with_options
def command(argv: tuple[str, ...], **asked: Any) -> int:
    """Put a job into the queue; prints its id."""
    return submission.run(argv, **asked)
