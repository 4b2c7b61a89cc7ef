"""Which of the caller's variables a job gets."""

from __future__ import annotations

from aitbcctl import environment


def test_what_belongs_to_the_terminal_stays_and_the_rest_goes() -> None:
    environ = {
        b"PATH": b"/bin",
        b"VIRTUAL_ENV": b"/v",
        b"SECRET": b"\xff=x",
        b"BASH_FUNC_f%%": b"() {  :\n}",
        b"TERM": b"xterm",
        b"DISPLAY": b":0",
        b"SSH_AUTH_SOCK": b"/tmp/agent",
        b"TMUX": b"/tmp/tmux",
        b"WINDOWID": b"1",
        b"_": b"/bin/aitbcctl",
        b"PWD": b"/elsewhere",
    }
    assert environment.captured(environ, b"/work") == [
        b"PWD=/work",
        b"PATH=/bin",
        b"VIRTUAL_ENV=/v",
        b"SECRET=\xff=x",
        b"BASH_FUNC_f%%=() {  :\n}",
        b"TERM=xterm",
    ]


def test_the_help_names_what_is_left_out() -> None:
    described = environment.described()
    assert "DISPLAY" in described
    assert "SSH_*" in described
    assert "PWD," not in described.replace("OLDPWD,", "")
