"""What the Debian package is made of: made of the program's own words, so that they stay true."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from aitbcctl.verbs import SAME, VERBS, ctl
from aitbcd import settings

ROOT = Path(__file__).resolve().parents[2]
FILE = Path("/etc/aitbcd/aitbcd.toml")
#: A key that is commented out.
COMMENTED = re.compile(r"^#(?=[a-z])", re.M)


def made(script: str, *arguments: str) -> str:
    command = [sys.executable, f"packaging/{script}", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def configuration() -> str:
    return made("configuration_file.py")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    made("man_pages.py", str(folder))
    return folder


def test_the_configuration_file_changes_nothing_and_has_every_key(configuration: str) -> None:
    assert settings.parse(configuration, FILE) == settings.Settings()
    tables = tomllib.loads(COMMENTED.sub("", configuration))
    assert list(tables) == list(settings.TABLES)
    for name, table in settings.TABLES.items():
        given = tables[name]
        if table.is_named:
            given = {key for entry in given.values() for key in entry}
        assert set(given) == set(table.keys)


def test_what_stands_below_in_the_document_is_named_by_its_heading(
    configuration: str, pages: Path
) -> None:
    (page,) = pages.rglob("aitbcd.toml.5")
    headings = re.findall(r"^\.SH (.*)$", page.read_text(), re.M)
    assert "](" not in configuration + page.read_text()
    named = re.findall(r"see ([A-Z ]+) in aitbcd", " ".join(configuration.replace("#", "").split()))
    assert named
    for name in named:
        assert name in headings
        assert f"below, {name}" in page.read_text()


def test_the_points_of_a_list_are_points_of_the_page(pages: Path) -> None:
    (page,) = pages.rglob("aitbcd.toml.5")
    (_, points) = page.read_text().split("each job has a cgroup (v2) of its own:\n")
    assert points.startswith(".IP \\(bu 2\n\\fB\\-\\-memory\\fR is a limit.")
    assert "\n.IP \\(bu 2\n\\fB\\-\\-cpus\\fR is a share" in points


def test_each_of_its_lines_counts_as_soon_as_its_mark_is_gone(configuration: str) -> None:
    settings.parse(COMMENTED.sub("", configuration), FILE)
    for found in COMMENTED.finditer(configuration):
        before, after = configuration[: found.start()], configuration[found.end() :]
        assert before.rsplit("\n\n", 1)[1].startswith("# "), "it is explained"
        # These two go together only.
        if not after.startswith("tls_"):
            settings.parse(before + after, FILE)


def test_what_it_shows_as_a_default_is_one(configuration: str) -> None:
    said = {line for line in configuration.splitlines() if "Default:" in line}
    assert said
    lines = configuration.split("\n\n")
    shown = [COMMENTED.sub("", each) for each in lines if "Default:" not in " ".join(each.split())]
    assert settings.parse("\n\n".join(shown), FILE) == settings.Settings()


#: How troff is told to set a character.
SET = {"\\-": "-", "\\(aq": "'", "\\(ga": "`", "\\(ti": "~", "\\(ha": "^", "\\&": "", "\\e": "\\"}


def words(page: str) -> str:
    """Return what a reader of the page sees, without its layout."""
    lines = [line for line in page.splitlines() if not re.fullmatch(r"\.[A-Za-z]+( 4)?", line)]
    text = " ".join(re.sub(r"^\.(B|BR|I|IP|SH|TP|TH) ", "", line) for line in lines)
    for written, shown in SET.items():
        text = text.replace(written, shown)
    return " ".join(text.split())


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for verb in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), verb)
            assert below is not None
            yield from commands(f"{name} {verb}", below)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - set(SAME)))
def test_the_page_of_a_verb_says_what_its_help_says(pages: Path, verb: str) -> None:
    page = words((pages / f"aitbcctl-{verb}.1").read_text())
    found = ctl.get_command(click.Context(ctl), verb)
    assert found is not None
    for name, command in commands(f"aitbcctl {verb}", found):
        assert name in page
        for param in command.params:
            for shown in param.get_help_record(click.Context(command)) or ():
                assert " ".join(shown.split()) in page
        for paragraph in re.split(r"\n\s*\n", f"{command.help}\n\n{command.epilog or ''}"):
            text = " ".join(paragraph.replace("\b", "").split())
            assert re.sub(r"^Examples?: ", "", text) in page


def test_every_verb_is_on_the_page_of_the_program(pages: Path) -> None:
    page = words((pages / "aitbcctl.1").read_text())
    for verb, about in VERBS.items():
        assert f"aitbcctl-{verb} (1) {about}" in page
        assert (pages / f"aitbcctl-{verb}.1").exists()


def test_the_page_of_the_configuration_has_every_key(pages: Path) -> None:
    page = (pages / "aitbcd.toml.5").read_text()
    for name, table in settings.TABLES.items():
        for key in table.keys:
            shown = f"{name}.NAME.{key}" if table.is_named else f"{name}.{key}"
            assert f"\n.TP\n\\fB{shown}\\fR\n" in page


def test_the_pages_are_set_without_a_warning(pages: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    for page in sorted(pages.iterdir()):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z", page], cwd=pages, capture_output=True, text=True
        )
        assert ".so" in page.read_text() or done.stderr == "", page.name


def test_library_upgrades_restart_everything_but_the_unit_of_the_jobs() -> None:
    if shutil.which("perl") is None:
        pytest.skip("perl is not installed")
    units = [path.name for path in ROOT.glob("systemd/*.service")]
    program = """
        our %nrconf;
        eval do { local(@ARGV, $/) = "packaging/needrestart.conf"; <> };
        die $@ if $@;
        my %override = %{ $nrconf{override_rc} };
        for my $unit (@ARGV) {
            for my $pattern (keys %override) { print "$unit\\n" if $unit =~ /$pattern/ }
        }
    """
    done = subprocess.run(
        ["perl", "-e", program, *units], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == "aitbcd-jobs.service\n"


@pytest.mark.parametrize(
    ("said", "version"),
    [("not yet released", r"0\.1\.0~20260213\.100000\+"), ("2026-02-13", r"0\.1\.0\+")],
)
def test_a_newer_commit_and_the_release_are_upgrades(
    said: str, version: str, tmp_path: Path
) -> None:
    (tmp_path / "CHANGELOG.md").write_text(f"# Changes\n\n## 0.1.0 ({said})\n\n- Begins.\n")
    script = str(ROOT / "packaging/debian_changelog.py")
    command = [sys.executable, script, "1770976800", "+lab1"]
    done = subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
    assert re.match(rf"aitbcd \({version}[a-z]\S*\+lab1\) stable;", done.stdout)
