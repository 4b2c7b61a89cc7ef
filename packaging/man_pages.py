"""Write the man pages: ``man_pages.py DIR``.

They say what ``--help`` and docs/configuration.md say, because they are made of the same words:
aitbcctl(1) and a page for each verb from click's commands, aitbcd(8) from its argument parser,
aitbcd.toml(5) from the document. The form is that of man(7).
"""

from __future__ import annotations

import re
import sys
import time
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator
from inspect import cleandoc
from itertools import takewhile
from os import environ
from pathlib import Path
from textwrap import dedent

import click

from aitbcctl.verbs import SAME, VERBS, Verbs, ctl, suite
from aitbcd import __version__, daemon
from aitbcd.install import command as install

_ROOT = Path(__file__).parents[1]
_DAY = time.strftime("%Y-%m-%d", time.gmtime(int(environ.get("SOURCE_DATE_EPOCH", time.time()))))
_EXAMPLES = ".SH EXAMPLES"
_FILES = """\
.SH FILES
.TP
.I /etc/aitbcd/aitbcd.toml
The configuration, see
.BR aitbcd.toml (5).
.TP
.I /var/lib/aitbcd
The queue and the results.
.TP
.I /run/aitbcd/aitbcd.sock
Where clients reach the daemon.
.SH UNITS
.TP
.B aitbcd.service
The daemon, as the user aitbcd. Stopping and restarting it leaves jobs running.
.TP
.BR aitbcd.socket ", " aitbcd\\-tcp.socket
Hold its sockets, so that a restart drops no connection.
.TP
.B aitbcd\\-launcher.service
Starts jobs as the users who submitted them. It may be restarted at any time.
.TP
.B aitbcd\\-jobs.service
The jobs. Stopping it ends all of them, in order.
.SH SIGNALS
.TP
.BR SIGTERM ", " SIGINT
The daemon stops. Jobs go on, and the next daemon finds them.
.TP
.B SIGHUP
It reads its configuration again. A wrong one changes nothing, and the log says what is wrong.
.SH EXIT STATUS
.TP
.B 0
It was told to stop.
.TP
.B 1
It cannot start, and may as soon as something else has changed.
.TP
.B 2
Somebody has to mend what the message names: the command line, the configuration, the state.
"""


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name of each page and its text."""
    yield "aitbcd.8", daemon_page()
    yield "aitbcd.toml.5", configuration_page((_ROOT / "docs/configuration.md").read_text())
    top = _context("aitbcctl", ctl)
    yield "aitbcctl.1", verbs_page(top)
    yield "aitbc.1", command_page(_context("aitbc", suite), "the commands of aitbc")
    for verb, about in VERBS.items():
        if verb in SAME:
            yield f"aitbcctl-{verb}.1", f".so man1/aitbcctl-{SAME[verb]}.1\n"
            continue
        command = ctl.get_command(top, verb)
        assert command is not None
        yield f"aitbcctl-{verb}.1", command_page(_context(verb, command, top), about)


def verbs_page(top: click.Context) -> str:
    """Return aitbcctl(1): how it is used, and its verbs with where each is described."""
    assert isinstance(top.command, Verbs)
    lines = [*_head("aitbcctl", 1, "queue jobs on this machine and get their results")]
    lines += [*_usage(top), *_description(top.command.help), *_options(top), ".SH VERBS"]
    for verb, about in VERBS.items():
        lines += [".TP", f".BR {_literal(f'aitbcctl-{verb}')} (1)", _text(about)]
    return _page([*lines, *_see_also("aitbcd(8)", "aitbcd.toml(5)")])


def command_page(context: click.Context, about: str) -> str:
    """Return the page of a command and of those below it."""
    about_it = list(_description(context.command.help))
    end = about_it.index(_EXAMPLES) if _EXAMPLES in about_it else len(about_it)
    lines = [*_head(context.command_path.replace(" ", "-"), 1, about), *_usage(context)]
    lines += [*about_it[:end], *_options(context)]
    for name, command in _commands(context):
        below = _context(name, command, context)
        lines += [f".SH {_literal(below.command_path)}", *_synopsis(below)]
        # Its examples are a part of it here.
        lines += [*_paragraphs(command.help), *_options(below, ".PP")]
    if context.command.epilog:
        lines += _description(context.command.epilog, ".SH NOTES")
    lines += about_it[end:]
    return _page([*lines, *_see_also("aitbcctl(1)", "aitbcd(8)")])


def daemon_page() -> str:
    """Return aitbcd(8)."""
    parser = daemon.command_line()
    lines = [*_head("aitbcd", 8, "the job queue of this machine"), ".SH SYNOPSIS"]
    lines += _usage_of(parser)
    installing = dict(_verbs_of(install.command_line()))
    for verb in installing.values():
        lines += [".br", *_usage_of(verb)]
    lines += [".SH DESCRIPTION", _text(parser.description or "")]
    lines += [".PP", _text(parser.epilog or ""), ".SH OPTIONS", *_options_of(parser)]
    for name, verb in installing.items():
        lines += [f".SH aitbcd {name}", _text(verb.description or ""), *_options_of(verb)]
    lines += [_FILES.rstrip("\n")]
    return _page([*lines, *_see_also("aitbcctl(1)", "aitbcd.toml(5)", "systemctl(1)")])


def _verbs_of(parser: ArgumentParser) -> Iterator[tuple[str, ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action.choices, dict):
            yield from action.choices.items()


def _usage_of(parser: ArgumentParser) -> Iterator[str]:
    usage = parser.format_usage().removeprefix("usage: ")
    yield f".B {_literal(' '.join(usage.split()))}"


def _options_of(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.help is not SUPPRESS:
            value = f" {action.metavar}" if action.metavar else ""
            name = ", ".join(action.option_strings) + value
            about = (action.help or "").replace("%(prog)s", parser.prog)
            yield from (".TP", f".B {_literal(name)}", _text(about))


def configuration_page(document: str) -> str:
    """Return aitbcd.toml(5): a document in Markdown, as far as ours use it."""
    title, _, rest = document.partition("\n")
    assert title.startswith("# ")
    lines = [*_head("aitbcd.toml", 5, "configuration of aitbcd"), ".SH DESCRIPTION"]
    for block in re.split(r"\n{2,}(?=[^\n])", _code_kept(rest.strip())):
        lines += _block(block)
    return _page([*lines, *_see_also("aitbcd(8)", "aitbcctl-config(1)")])


def _code_kept(text: str) -> str:
    """Return it without blank lines within code, which would take it apart."""
    return re.sub(
        r"^```\w*\n(.*?)^```",
        lambda found: re.sub(r"\n\n", "\n\0\n", found[0]),
        text,
        flags=re.M | re.S,
    )


def _block(block: str) -> Iterator[str]:
    if block.startswith("```"):
        yield from _example(block.replace("\0", "").splitlines()[1:-1])
    elif block.startswith("#"):
        yield f".SH {_text(block.lstrip('# ').upper())}"
    elif block.startswith("|"):
        yield from _table([_cells(line) for line in block.splitlines()])
    elif re.match(r"\d\. ", block):
        for item in re.split(r"\n(?=\d\. )", block):
            number, _, text = item.partition(" ")
            yield from (f".IP {number} 4", _marked(" ".join(text.split())))
    elif block.startswith("- "):
        for item in re.split(r"\n(?=- )", block):
            yield from (".IP \\(bu 2", _marked(" ".join(item[2:].split())))
    else:
        yield from (".PP", _marked(" ".join(block.split())))


def _table(rows: list[list[str]]) -> Iterator[str]:
    head, _, *body = rows
    for first, *others in body:
        yield from (".TP", _marked(first))
        if head[0] == "key":
            default, meaning = others
            yield _marked(f"{meaning}. Default: {default}.")
            continue
        for number, (what, cell) in enumerate(zip(head[1:], others, strict=True)):
            yield from [".br"] * (number > 0)
            yield _marked(f"{what}: {cell}")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _marked(text: str) -> str:
    """Return a paragraph of Markdown: code is bold, nothing else is marked."""
    # A link to a section of the same page: to its heading, as ``_block`` writes it.
    text = re.sub(
        r"\[(below)\]\(#([\w-]+)\)",
        lambda found: f"{found[1]}, {found[2].replace('-', ' ').upper()}",
        text,
    )
    parts = re.split(r"`([^`]+)`", text)
    return "".join(
        f"\\fB{_literal(part)}\\fR" if number % 2 else _text(part, is_begin=number == 0)
        for number, part in enumerate(parts)
    )


def _page(lines: list[str]) -> str:
    return "\n".join(line for line in lines if line) + "\n"


def _head(name: str, section: int, about: str) -> Iterator[str]:
    yield f'.TH {_literal(name).upper()} {section} "{_DAY}" "aitbcd {__version__}"'
    # Ragged: what is in a page is commands more often than prose.
    yield from (".ad l", ".nh", ".SH NAME")
    yield f"{_literal(name)} \\- {_text(about[:1].lower() + about[1:].rstrip('.'))}"


def _context(
    name: str, command: click.Command, above: click.Context | None = None
) -> click.Context:
    return click.Context(command, above, name, **command.context_settings)


def _commands(context: click.Context) -> Iterator[tuple[str, click.Command]]:
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None and command is not ctl:
                yield name, command


def _usage(context: click.Context) -> Iterator[str]:
    yield ".SH SYNOPSIS"
    yield from _synopsis(context)


def _synopsis(context: click.Context) -> Iterator[str]:
    pieces = " ".join(context.command.collect_usage_pieces(context))
    yield from (f".B {_literal(context.command_path)}", _literal(pieces))


def _options(context: click.Context, heading: str = ".SH OPTIONS") -> Iterator[str]:
    yield heading
    for param in context.command.get_params(context):
        record = param.get_help_record(context)
        if record and record[1]:
            yield from (".TP", f".B {_literal(record[0])}", _text(record[1]))


def _description(text: str | None, heading: str = ".SH DESCRIPTION") -> Iterator[str]:
    """Yield a help's paragraphs; its examples are a section, the last one."""
    yield heading
    yield from _paragraphs(text, _EXAMPLES)


def _paragraphs(text: str | None, of_examples: str | None = None) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", cleandoc(text or "")):
        lines = paragraph.splitlines()
        if lines and lines[0].strip() == "\b":
            yield from _kept(lines[1:], of_examples)
        elif lines:
            yield from (".PP", _text(" ".join(paragraph.split())))


def _kept(lines: list[str], of_examples: str | None) -> Iterator[str]:
    """Yield a paragraph whose lines stay as they are: a sentence, and what is below it."""
    if re.fullmatch(r"Examples?:", lines[0]) and of_examples:
        yield of_examples
        lines = lines[1:]
    flush = list(takewhile(lambda line: not line.startswith(" "), lines))
    for line in flush:
        yield from (".PP" if line is flush[0] else ".br", _text(line))
    if below := lines[len(flush) :]:
        yield from _example(dedent("\n".join(below)).splitlines())


def _example(lines: list[str]) -> Iterator[str]:
    yield from (".PP", ".RS 4", ".nf")
    yield from (_literal(line) or "\\&" for line in lines)
    yield from (".fi", ".RE")


def _see_also(*names: str) -> Iterator[str]:
    yield ".SH SEE ALSO"
    for number, name in enumerate(names, 1):
        page, _, section = name.partition("(")
        comma = "," if number < len(names) else ""
        yield f".BR {_literal(page)} ({section}{comma}"


def _text(text: str, *, is_begin: bool = True) -> str:
    """Return words that troff sets as they are."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if is_begin and escaped[:1] in (".", "'") else escaped


def _literal(text: str) -> str:
    """Return what one types: quotes and the like stay ASCII, so that it can be copied."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    escaped = escaped.replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    return f"\\&{escaped}" if escaped[:1] == "." else escaped


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
