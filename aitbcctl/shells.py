"""Completion in shells: click's own for zsh and fish, and for bash one that shows what is what.

Imported only when a shell asks, or for the script that makes it ask.
"""

from __future__ import annotations

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
)

SHELLS = ("bash", "zsh", "fish")
#: Job ids say little: where several are possible each is shown with its name. Bash has no place
#: for that but the word itself, and only where it will not be inserted.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' kind value about i
    local -a values=() abouts=()
    COMPREPLY=()
    while IFS=$'\\t' read -r kind value about; do
        case $kind in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain) values+=("$value"); abouts+=("$about") ;;
        esac
    done < <(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    for i in "${!values[@]}"; do
        if [[ ${#values[@]} -gt 1 && -n ${abouts[i]} ]]; then
            COMPREPLY+=("${values[i]}  (${abouts[i]})")
        else
            COMPREPLY+=("${values[i]}")
        fi
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s 2>/dev/null ||
    complete -F %(complete_func)s %(prog_name)s
"""


class Bash(BashComplete):
    """As click's, with what it knows of a value beside it."""

    source_template = _BASH

    def source(self) -> str:
        # Not click's: it starts a bash to ask for its version.
        return ShellComplete.source(self)

    def format_completion(self, item: CompletionItem) -> str:
        # A long list of options with their help is hard to read.
        about = "" if item.value.startswith("-") else item.help or ""
        return f"{item.type}\t{item.value}\t{about}"


add_completion_class(Bash)


def script(program: click.Command, name: str, shell: str) -> str:
    """Return what a shell has to read once for the completion of ``name``."""
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(program, {}, name, f"_{name.upper()}_COMPLETE").source()
