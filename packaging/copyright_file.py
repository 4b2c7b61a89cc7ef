"""Print debian/copyright, with what the package brings along: ``copyright_file.py SITE``.

https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/. The texts are those in the
distributions' own metadata.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

_SITE = "usr/lib/aitbcd"
#: Debian has the text of this one.
_APACHE = (
    "Licensed under the Apache License, Version 2.0; on Debian systems its text is in"
    " /usr/share/common-licenses/Apache-2.0."
)
_EXAMPLE = """\
Files: usr/lib/aitbcd/aitbcctl/example/digits.csv.gz
Copyright: 1998 E. Alpaydin and C. Kaynak
License: CC-BY-4.0
 Creative Commons Attribution 4.0 International,
 <https://creativecommons.org/licenses/by/4.0/>. Where it is from is said in
 SOURCE.md beside it.
"""
_COPYRIGHT = re.compile(r"^[\s#*]*(?:Copyright|\(c\)|©).*\d{4}.*$", re.M | re.I)


def paragraphs(site: Path) -> Iterator[str]:
    """Yield the paragraphs of the file."""
    ours = Path("LICENSE").read_text()
    yield (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: aitbcd\n"
    )
    yield _paragraph(["*"], ours, "Expat", ours.partition("\n\n")[2].partition("\n\n")[2])
    yield _EXAMPLE
    found = sorted(distributions(path=[str(site)]), key=lambda each: each.name.lower())
    for each in found:
        text = _licences(each, site)
        if not text:
            raise SystemExit(f"{each.name} says nowhere what its licence is")
        yield _paragraph(_files(each), text, f"{each.name}-licence", text)


def _paragraph(files: list[str], holders: str, name: str, text: str) -> str:
    lines = [" ".join(line.strip(" #*").split()) for line in _COPYRIGHT.findall(holders)]
    holder = "\n           ".join(dict.fromkeys(lines)) or "see the licence"
    body = "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in text.splitlines())
    return f"Files: {' '.join(files)}\nCopyright: {holder}\nLicense: {name}\n{body}\n"


def _files(of: Distribution) -> list[str]:
    """Return what it put into the site, as patterns."""
    tops = {file.parts[0] for file in of.files or () if file.parts[0] not in ("..", "bin")}
    folders = {top for top in tops if not top.endswith(".py")}
    return sorted(f"{_SITE}/{top}{'/*' if top in folders else ''}" for top in tops)


def _licences(of: Distribution, site: Path) -> str:
    texts = []
    for file in of.files or ():
        if re.match(r"(LICEN[CS]E|COPYING)", file.name) and file.parts[0].endswith(".dist-info"):
            text = (site / file).read_text()
            texts.append(_APACHE if "Apache License" in text else text.strip())
    if not texts:
        # Some have it at the head of their only module.
        modules = [site / file for file in of.files or () if len(file.parts) == 1]
        texts += [_head(module) for module in modules if module.suffix == ".py"]
    return "\n\n".join(filter(None, texts))


def _head(module: Path) -> str:
    """Return the comment at the head of a module if it is a licence."""
    found = re.match(r"(?:#.*\n|\s*\n)+", module.read_text())
    text = re.sub(r"^# ?", "", found[0], flags=re.M).strip() if found else ""
    return text if "copyright" in text.lower() else ""


def main() -> None:
    sys.stdout.write("\n".join(paragraphs(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
