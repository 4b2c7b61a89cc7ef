"""Unit files as they are written for an installation: what systemd would read differently."""

from __future__ import annotations

from pathlib import Path

import pytest

from aitbcd.errors import CannotInstall
from aitbcd.install import unitfiles

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    str(path.relative_to(ROOT / "systemd"))
    for path in (ROOT / "systemd").rglob("*")
    if path.is_file()
)


@pytest.mark.parametrize(
    ("word", "is_argument", "expected"),
    [
        ("/opt/a b/aitbcd", False, '"/opt/a b/aitbcd"'),
        ("/opt/100%/$x", False, '"/opt/100%%/$x"'),
        ("/opt/100%/$x", True, '"/opt/100%%/$$x"'),
        ('a"b\\n', True, '"a\\"b\\\\n"'),
    ],
)
def test_a_word_is_quoted_as_systemd_reads_it(word: str, is_argument: bool, expected: str) -> None:
    assert unitfiles.quoted(word, is_argument=is_argument) == expected


@pytest.mark.parametrize("word", ["a\nExecStart=b", "a\x1b", "a\udcff"])
def test_what_no_unit_file_can_say_is_refused(word: str) -> None:
    with pytest.raises(CannotInstall, match="cannot stand in a unit file"):
        unitfiles.quoted(word)


@pytest.mark.parametrize("path", ['/opt/"x"/aitbcd', "/opt/it's/aitbcd", "/opt/a\\b/aitbcd"])
def test_a_program_that_systemd_would_not_start_is_refused(path: str) -> None:
    with pytest.raises(CannotInstall, match="quotes or backslashes"):
        unitfiles.render("aitbcd.service", [path])


@pytest.mark.parametrize("name", SHIPPED)
def test_every_file_is_written_for_this_installation_alone(name: str) -> None:
    program = ["/opt/py thon", "-m", "aitbcd"]
    text = unitfiles.render(name, program, state="/s t")
    assert text.startswith(unitfiles.MARK)
    assert "/usr/bin/aitbcd" not in text
    assert "%h" not in text
    shipped = unitfiles.shipped(name)
    ours = shipped.count("/usr/bin/aitbcd")
    assert text.count('"/opt/py thon" "-m" "aitbcd" ') == ours
    assert len(text.splitlines()) == len(shipped.splitlines()) + 1


def test_what_is_noted_in_a_unit_is_read_again(tmp_path: Path) -> None:
    facts = {"State": "/a = [b]/c", "Config": "/d"}
    environ = {"XDG_STATE_HOME": "/a b"}
    text = unitfiles.render("user/aitbcd.service", ["/x"], environ=environ, facts=facts)
    assert '[Service]\nEnvironment="XDG_STATE_HOME=/a b"\n' in text
    file = tmp_path / "aitbcd.service"
    assert unitfiles.facts_of(file) == {}
    unitfiles.write(file, text)
    assert unitfiles.facts_of(file) == facts


def test_a_file_of_somebody_else_is_neither_changed_nor_removed(tmp_path: Path) -> None:
    file = tmp_path / "aitbcd.service"
    file.write_text("[Unit]\n")
    with pytest.raises(CannotInstall, match=str(file)):
        unitfiles.check_ours([tmp_path / "other", file])
    assert not unitfiles.remove(file)
    assert file.read_text() == "[Unit]\n"
    unitfiles.write(file, unitfiles.MARK)
    unitfiles.check_ours([file])
    assert unitfiles.remove(file)
    assert not unitfiles.remove(file)
    assert list(tmp_path.iterdir()) == []


def test_the_jobs_unit_of_a_user_is_the_system_s_but_for_what_only_root_may() -> None:
    def settings(name: str) -> set[str]:
        lines = unitfiles.shipped(name).splitlines()
        return {line for line in lines if line and not line.startswith(("#", "Description="))}

    more = settings("aitbcd-jobs.service") - settings("user/aitbcd-jobs.service")
    of_root = {"After", "Documentation", "OOMScoreAdjust", "Slice"}
    assert {line.partition("=")[0] for line in more} <= of_root
    assert settings("user/aitbcd-jobs.service") <= settings("aitbcd-jobs.service")
