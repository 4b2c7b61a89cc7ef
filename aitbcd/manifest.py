"""output.sha256: write, parse, compare. Standard library only, pure.

The form is the one of ``sha256sum`` (GNU coreutils): 64 hexadecimal digits, two spaces, a path
relative to the package, a newline. A path with a backslash, newline or carriage return is
escaped (``\\\\``, ``\\n``, ``\\r``) and its line begins with a backslash. Paths are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

FILE_NAME = "output.sha256"

_DASH = b"./-"
_ESCAPES = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))


class BadManifest(ValueError):
    """A line is not of the form; ``line`` is its number from 1."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line} of {FILE_NAME} is not '<sha256>  <path>'")
        self.line = line


def format_line(digest: str, path: bytes) -> bytes:
    """Return one line for a file with this hexadecimal sha256."""
    # To sha256sum ``-`` alone is its standard input.
    escaped = path if path != b"-" else _DASH
    for raw, quoted in _ESCAPES:
        escaped = escaped.replace(raw, quoted)
    mark = b"\\" if b"\\" in escaped else b""
    return b"%s%s  %s\n" % (mark, digest.encode(), escaped)


def build(digests: Iterable[tuple[bytes, str]]) -> bytes:
    """Return the whole manifest of (path, digest) pairs, sorted by path."""
    return b"".join(format_line(digest, path) for path, digest in sorted(digests))


def _unescape(path: bytes, line: int) -> bytes:
    out = bytearray()
    rest = iter(path)
    for byte in rest:
        if byte != 0x5C:
            out.append(byte)
            continue
        following = {0x5C: 0x5C, 0x6E: 0x0A, 0x72: 0x0D}.get(next(rest, -1))
        if following is None:
            raise BadManifest(line)
        out.append(following)
    return bytes(out)


def parse(text: bytes) -> dict[bytes, str]:
    """Return path -> hexadecimal digest.

    Raises:
        BadManifest: a line is not of the form, or the last one has no newline.
    """
    digests: dict[bytes, str] = {}
    number = at = 0
    while at < len(text):
        # Not split at once: a forged one may be nothing but newlines.
        end, number = text.find(b"\n", at), number + 1
        if end < 0:
            raise BadManifest(number)
        line, at = text[at:end], end + 1
        is_escaped = line.startswith(b"\\")
        body = line[1:] if is_escaped else line
        digest, path = body[:64], body[66:]
        if body[64:66] not in (b"  ", b" *") or not path or digest.strip(b"0123456789abcdef"):
            raise BadManifest(number)
        name = _unescape(path, number) if is_escaped else path
        digests[b"-" if name == _DASH else name] = digest.decode()
    return digests


def compare(stated: Mapping[bytes, str], found: Mapping[bytes, str]) -> list[tuple[str, bytes]]:
    """Return (``changed`` | ``missing`` | ``extra``, path) for each difference, by path."""
    differences: list[tuple[str, bytes]] = []
    for path in sorted(stated.keys() | found.keys()):
        if path not in found:
            differences.append(("missing", path))
        elif path not in stated:
            differences.append(("extra", path))
        elif stated[path] != found[path]:
            differences.append(("changed", path))
    return differences
