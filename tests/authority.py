"""A certificate authority of the tests' own; the openssl program makes what it signs."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        #: What clients have to trust.
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            "req", "-x509", *_new_key(self._key), "-out", self.certificate, "-days", 30,
            "-subj", "/CN=tests", "-addext", "basicConstraints=critical,CA:TRUE",
            # Python 3.13 believes no authority without.
            "-addext", "keyUsage=critical,keyCertSign",
        )  # fmt: skip

    def issue(
        self, name: str, *names: str, days: int = 30, usage: str = "serverAuth"
    ) -> tuple[Path, Path]:
        """Return the files of a new certificate and its key, for names such as ``IP:127.0.0.1``."""
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        request, extensions = cert.with_suffix(".csr"), cert.with_suffix(".ext")
        lines = [f"extendedKeyUsage={usage}"]
        lines += [f"subjectAltName={','.join(names)}"] if names else []
        extensions.write_text("\n".join(lines) + "\n")
        _openssl("req", *_new_key(key), "-out", request, "-subj", f"/CN={name}")
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key,
            "-CAcreateserial", "-days", days, "-extfile", extensions, "-out", cert,
        )  # fmt: skip
        key.chmod(0o600)
        return cert, key


def _new_key(path: Path) -> list[str | Path]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", path]


def _openssl(*arguments: str | int | Path) -> None:
    command = ["openssl", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
