"""Which of the caller's variables go with a job. Pure.

A job may start days later, when the terminal it was submitted from is gone: what describes that
terminal or login would mislead it (a plot that looks for a display, a git that asks a vanished
agent). Everything else goes along, secrets included: it is the caller's own environment.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Left out by name: of the display, the terminal, the multiplexer, the login, the shell itself.
NAMES = frozenset(
    b"COLUMNS LINES WINDOWID WINDOW COLORFGBG TERM_PROGRAM TERM_PROGRAM_VERSION TERM_SESSION_ID "
    b"VTE_VERSION WT_SESSION WT_PROFILE_ID TMUX TMUX_PANE TMUX_TMPDIR STY ZELLIJ GPG_TTY "
    b"DISPLAY WAYLAND_DISPLAY XAUTHORITY DESKTOP_STARTUP_ID XDG_ACTIVATION_TOKEN "
    b"XDG_SEAT XDG_SEAT_PATH XDG_SESSION_ID XDG_SESSION_PATH XDG_SESSION_TYPE XDG_SESSION_CLASS "
    b"XDG_VTNR INVOCATION_ID JOURNAL_STREAM SYSTEMD_EXEC_PID _ SHLVL OLDPWD PWD".split()
)
#: Left out by their beginning.
PREFIXES = (
    b"SSH_",
    b"ITERM_",
    b"KITTY_",
    b"KONSOLE_",
    b"WEZTERM_",
    b"ALACRITTY_",
    b"GHOSTTY_",
    b"GNOME_TERMINAL_",
    b"VSCODE_",
    b"ZELLIJ_",
)


def captured(environ: Mapping[bytes, bytes], cwd: bytes) -> list[bytes]:
    """Return the ``KEY=VALUE`` entries of the caller's environment that a job in ``cwd`` gets."""
    # make takes $(PWD) from its environment, and there may be no shell to set it.
    return [b"PWD=" + cwd] + [
        b"%s=%s" % (name, value)
        for name, value in environ.items()
        if name not in NAMES and not name.startswith(PREFIXES)
    ]


def described() -> str:
    """Return what is left out, for the help."""
    names = sorted(NAMES - {b"PWD"}) + [prefix + b"*" for prefix in PREFIXES]
    return ", ".join(name.decode() for name in names)
