"""Write what ``aitbcctl completion`` prints to where each shell looks: ``completions.py SHARE``."""

from __future__ import annotations

import sys
from pathlib import Path

from aitbcctl import shells, verbs

#: Below /usr/share.
_PLACES = {
    "bash": "bash-completion/completions/{name}",
    "zsh": "zsh/vendor-completions/_{name}",
    "fish": "fish/vendor_completions.d/{name}.fish",
}


def main() -> None:
    share = Path(sys.argv[1])
    for shell in shells.SHELLS:
        for program in (verbs.ctl, verbs.suite):
            name = str(program.name)
            file = share / _PLACES[shell].format(name=name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(shells.script(program, name, shell))


if __name__ == "__main__":
    main()
