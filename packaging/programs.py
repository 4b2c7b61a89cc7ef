"""Write the programs of pyproject.toml for an environment of their own: ``programs.py BIN SITE``.

They run the system's Python, isolated and without its site packages: nothing that a user, a
variable or another package brings along can take the place of what they were built with.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

_PROGRAM = """\
#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, "{site}")
from {module} import {function}
sys.exit({function}())
"""


def main() -> None:
    folder, site = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True, exist_ok=True)
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    for name, entry in project["scripts"].items():
        module, _, function = entry.partition(":")
        program = folder / name
        program.write_text(_PROGRAM.format(site=site, module=module, function=function))
        program.chmod(0o755)


if __name__ == "__main__":
    main()
