"""The documents say what the code does: tables in them are compared with those in the code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from aitbcctl.verbs import Verbs
from aitbcd import errors, settings
from aitbcd.lifecycle import diagram
from aitbcd.model import Reason
from tests.unit.test_imports import LEVELS

ROOT = Path(__file__).resolve().parents[2]
VERBS = sorted(path.stem for path in (ROOT / "aitbcctl" / "commands").glob("[!_]*.py"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: A command in a sentence or a table, perhaps over the end of a line.
COMMAND = re.compile(r"`(?:aitbcctl|aitbc client)\s([^`]+)`")
#: A link to a file, with or without a place in it.
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def document(name: str) -> str:
    return (ROOT / name).read_text()


def test_diagram_is_the_transition_table() -> None:
    shown = re.search(
        r"<!-- lifecycle\.diagram\(\) -->\n```\n(.*?)\n```", document("docs/architecture.md"), re.S
    )
    assert shown
    assert shown[1] == diagram()


def test_reasons_are_all_named() -> None:
    text = document("docs/architecture.md")
    assert [reason.value for reason in Reason if f"`{reason.value}`" not in text] == []


def test_layers_are_those_of_the_import_rules() -> None:
    text = document("docs/architecture.md")
    shown = re.findall(r"^    (\d)  ((?:.*\n)(?:       .*\n)*)", text, re.M)
    levels = {int(level): set(words.split()) for level, words in shown}
    assert len(levels) == len(LEVELS)
    for level, names in enumerate(LEVELS):
        assert names <= levels[level]


def test_every_configuration_key_is_described_with_its_default() -> None:
    text = document("docs/configuration.md")
    described = set(re.findall(r"^\| `([\w.]+)` \|", text, re.M))
    known = {
        ".".join((table, *(("NAME",) if about.is_named else ()), key))
        for table, about in settings.TABLES.items()
        for key in about.keys
    }
    assert described == known


def test_keys_that_count_from_the_start_are_named() -> None:
    text = document("docs/configuration.md").partition("## When a change counts")[2]
    named = set(re.findall(r"`(\w+\.\w+)`", text.partition("##")[0]))
    assert named == settings.FROM_THE_START


def test_configuration_example_is_one(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", document("docs/configuration.md"), re.S)
    assert example
    loaded = settings.parse(example[1], tmp_path / "aitbcd.toml")
    assert loaded != settings.Settings()


def test_every_error_that_a_client_can_meet_is_described() -> None:
    described = dict(re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", document("docs/http.md"), re.M))
    answered = {"internal-error": "500"}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.AitbcError) and kind.status != 500:
            answered[kind.code] = str(kind.status)
    # Beside those: what only the server itself says.
    assert described == answered | {"method-not-allowed": "405", "request-timeout": "408"}


def test_every_route_is_described() -> None:
    sources = (path.read_text() for path in (ROOT / "aitbcd" / "api").glob("*.py"))
    routes = {
        route
        for source in sources
        for route in re.findall(r'Operation\(\s*"[A-Z]+",\s*"([^"]+)"', source)
    }
    text = document("docs/http.md")
    shown = {route.replace("{path:any}", "{path}") for route in routes}
    assert len(shown) > 10
    assert {
        route for route in shown if f"{route}`" not in text and f"{route}?" not in text
    } == set()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readme(verb: str) -> None:
    assert f"aitbcctl {verb}" in document("README.md")


def _commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for verb, below in command.commands.items():
            yield from _commands(f"{name} {verb}", below)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example_and_fits_a_terminal(verb: str) -> None:
    of_verb = Verbs().get_command(click.Context(Verbs()), verb)
    assert of_verb is not None
    for name, command in _commands(verb, of_verb):
        text = command.get_help(click.Context(command, info_name=name, terminal_width=80))
        assert re.search(r"\n    .*\baitbcctl ", text), name
        assert max(map(len, text.splitlines())) <= 80, name
        # A sentence that is cut off is of no use: its beginning is made to fit.
        assert not re.search(r"\w\.\.\.$", text, re.M), name


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_commands_in_sentences_are_such(path: Path) -> None:
    for words in map(shlex.split, COMMAND.findall(path.read_text())):
        command: click.Command | None = Verbs()
        while isinstance(command, click.Group) and words and re.fullmatch("[a-z]+", words[0]):
            command = command.get_command(click.Context(command), words.pop(0))
        assert command is not None
        # Raises where it has no such option.
        command.make_parser(click.Context(command)).parse_args(words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    links = LINK.findall(path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_fit_a_terminal_or_are_tables(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []
