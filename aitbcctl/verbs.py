"""The verbs of ``aitbcctl`` and ``aitbc client`` as click groups.

A verb's module is imported when that verb is used: the others would cost each call their imports.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from aitbcctl.terminal import INTERRUPTED, Left

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: Each verb is ``commands/<verb>.py``, but for ``SAME``; the line stands in the list of ``--help``.
VERBS = {
    "submit": "Put a job into the queue.",
    "status": "Show where a job stands.",
    "watch": "Follow a job to its end, live.",
    "logs": "Print what a job wrote to stdout and stderr.",
    "list": "List your jobs, the newest first.",
    "queue": "Show everybody's running and waiting jobs, in order.",
    "get": "Show everything about a job.",
    "plot": "Draw what a job's GPUs did over time.",
    "cancel": "End jobs.",
    "download": "Copy a job's results, checked, into a folder.",
    "retry": "Submit a job that is over once more.",
    "delete": "Delete jobs and their results.",
    "rm": "The same as delete.",
    "keep": "Keep a job's results longer.",
    "verify": "Check a job's stored results against their checksums.",
    "stats": "Show how many jobs, how they ended, and what they cost.",
    "export": "Write the history of your jobs as JSON or CSV.",
    "share": "Let others read a job's results: by a link, or by their name.",
    "key": "Make, list and revoke API keys, for clients over TCP.",
    "retention": "Show which results are deleted when.",
    "config": "Check the daemon's configuration before it counts.",
    "completion": "Print a script that completes words in your shell.",
    "gpus": "Show the machine's GPUs and who uses them.",
    "doctor": "Look for what is wrong with the daemon and this machine.",
    "demo": "See it all once: a daemon, a real job, its results.",
}
#: Verbs that are another one.
SAME = {"rm": "delete"}
_CONTEXT = {"help_option_names": ["-h", "--help"]}


class Verbs(click.Group):
    """A group that knows its verbs by name and imports only the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = __import__(
            f"aitbcctl.commands.{SAME.get(cmd_name, cmd_name)}", fromlist=["command"]
        )
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Left:
            # click would print an empty line below what was said.
            return INTERRUPTED

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # A typo is never taken for a job (gflow submits a job named "list").
        if args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(_no_such_verb(args[0]), ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(verb, help=about)
            for verb, about in VERBS.items()
            if verb.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _no_such_verb(word: str) -> str:
    import difflib

    near = difflib.get_close_matches(word, VERBS, 1)
    rest = f"Did you mean {near[0]}?" if near else "They are: " + ", ".join(VERBS) + "."
    return f"There is no verb {word!r}. {rest}"


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from aitbcd import __version__

        click.echo(f"{ctx.find_root().info_name} {__version__}")
        ctx.exit()


_VERSION = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)


@click.group("aitbcctl", cls=Verbs, context_settings=_CONTEXT, subcommand_metavar="VERB [ARGS]...")
@_VERSION
def ctl() -> None:
    """Queue jobs on this machine and get their results.

    A job is named by its id (job_7k3m9q2x), its number, any unique beginning of its id, or @ for
    your latest one. Data goes to stdout, everything else to stderr.

    The daemon is found through AITBC_SOCKET, AITBC_URL (with AITBC_API_KEY, and AITBC_CA_FILE
    where a CA of your own vouches for it), your own daemon's socket, or the system's, in this
    order.

    \b
    Exit codes: 0 done, 1 the answer is no (job failed, verification failed),
    2 usage, 3 no such job, 4 refused, 5 the daemon is not reachable.
    With submit --wait: the job's own.
    """


class _Suite(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in VERBS:
            raise click.UsageError(f"There is aitbc client {args[0]}, and aitbcctl {args[0]}.", ctx)
        return super().resolve_command(ctx, args)


@click.group("aitbc", cls=_Suite, context_settings=_CONTEXT)
@_VERSION
def suite() -> None:
    """The commands of aitbc; the ones for jobs are below "client"."""


suite.add_command(ctl, "client")


def run(name: str, words: Sequence[str]) -> int:
    """Run ``aitbcctl`` or ``aitbc`` and return its exit code; each verb returns its own."""
    if f"_{name.upper()}_COMPLETE" in os.environ:
        from aitbcctl import shells  # noqa: F401  # makes itself known to click
    try:
        result = (ctl if name == "aitbcctl" else suite).main(words, name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else 0
