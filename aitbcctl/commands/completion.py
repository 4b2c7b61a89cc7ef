"""``aitbcctl completion``: the script that teaches a shell our verbs, options and job ids."""

from __future__ import annotations

import click

from aitbcctl.terminal import put


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    """Print a script for your shell that completes verbs, options and your jobs' ids.

    \b
    Examples, each a line for the file that the shell reads at its start:
      eval "$(aitbcctl completion bash)"      # ~/.bashrc
      eval "$(aitbcctl completion zsh)"       # ~/.zshrc, after compinit
      aitbcctl completion fish | source       # ~/.config/fish/config.fish
    """
    from aitbcctl import shells

    root = ctx.find_root()
    put(shells.script(root.command, str(root.info_name), shell).rstrip("\n"))
    return 0
