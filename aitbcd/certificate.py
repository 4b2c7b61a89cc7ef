"""The certificate that HTTP is served with: two PEM files, tried as a whole before they count.

``ssl`` tells a server nothing of its own certificate. So a handshake within memory tries it, as a
client that trusts it would, and says which names it has and when it ends.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from aitbcd.errors import SettingsError

#: X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h): one that has ended is shown too.
_NO_CHECK_TIME = 0x200000
#: Seconds before its end; who renews by himself does so a month before.
_SOON_S = 7 * 86400
#: More steps than any handshake has.
_STEPS_MAX = 20


class Certificate(Struct, frozen=True):
    context: ssl.SSLContext
    #: As they stand in a Host header: lower case, IPv6 addresses in brackets; ``*.example.org``.
    names: tuple[str, ...]
    #: Seconds since the epoch.
    ends_at: float

    def is_for(self, name: str) -> bool:
        """Tell whether a name, as it stands in a Host header, is one of its own."""
        _, _, domain = name.partition(".")
        return name in self.names or (domain != "" and f"*.{domain}" in self.names)

    def doubts(self, now_s: float) -> Iterator[str]:
        """Yield why clients will not accept it, now or soon, though it can be served."""
        if not self.names:
            yield "it is for no name (subjectAltName), so that no client accepts it"
        left_s = self.ends_at - now_s
        if left_s <= 0:
            yield "it has expired, so that no client accepts it: renew it"
        elif left_s < _SOON_S:
            yield f"it expires in {int(left_s // 3600)} h: see why it was not renewed"


def load(cert: str, key: str) -> Certificate:
    """Return the certificate that two files make.

    Raises:
        SettingsError: one of them is not what it should be; the sentence names it and says why.
    """
    for path, name in ((cert, "tls_cert"), (key, "tls_key")):
        _check_readable(path, name)
    if os.stat(key).st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise _refusal(key, "tls_key", "everybody can read it", f"close it: chmod o= {key}")
    client = _client(cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, _no_passphrase)
    except (ssl.SSLError, ValueError) as problem:
        hint = "it is a PEM file with the private key of that very certificate"
        raise _refusal(key, "tls_key", _why(problem), hint) from None
    try:
        shown = _shown(context, client)
    except ssl.SSLError as problem:
        why = getattr(problem, "verify_message", "") or str(problem.reason)
        raise _refusal(cert, "tls_cert", f"no client accepts it: {why}", "make another") from None
    ends_at = float(ssl.cert_time_to_seconds(shown["notAfter"]))
    return Certificate(context, tuple(_names(shown)), ends_at)


def _refusal(path: str, name: str, why: str, hint: str) -> SettingsError:
    detail = f"{path}, which is {name} in [server]: {why}"
    return SettingsError(detail, hint=hint, file=path, line=None, key=f"server.{name}")


def _check_readable(path: str, name: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as problem:
        hint = "let the daemon's user read it, or name another one"
        raise _refusal(path, name, f"cannot be read: {problem.strerror}", hint) from None


def _client(cert: str) -> ssl.SSLContext:
    """Return what a client that trusts this very certificate has."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    try:
        client.load_verify_locations(cert)
    except ssl.SSLError:
        hint = "it is a PEM file: the certificate first, then those between it and the CA"
        raise _refusal(cert, "tls_cert", "holds no certificate", hint) from None
    return client


def _no_passphrase() -> str:
    raise ValueError("needs a passphrase, and there is nobody to ask; store the key without one")


def _why(problem: Exception) -> str:
    if not isinstance(problem, ssl.SSLError):
        return str(problem)
    if problem.reason == "KEY_VALUES_MISMATCH":
        return "does not belong to the certificate"
    if problem.reason is None or problem.reason in ("NO_START_LINE", "PEM_LIB"):
        return "holds no private key"
    return problem.reason.lower().replace("_", " ")


def _shown(context: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """Return what a client sees of the certificate of a server."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        context.wrap_bio(to_server, to_client, server_side=True),
    )
    for step in range(_STEPS_MAX):
        try:
            ends[step % 2].do_handshake()
        except ssl.SSLWantReadError:
            continue
        if step % 2 == 0:
            break
    return ends[0].getpeercert() or {}


def _names(shown: dict[str, Any]) -> Iterator[str]:
    for kind, name in shown.get("subjectAltName", ()):
        if kind == "DNS":
            yield name.lower()
        elif kind == "IP Address":
            try:
                address = ipaddress.ip_address(name.strip())
            except ValueError:
                continue  # of a length that no address has
            yield f"[{address}]" if address.version == 6 else str(address)
