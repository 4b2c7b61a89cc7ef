"""TLS to a daemon on another machine, for ``client``; loaded only where AITBC_URL is https."""

from __future__ import annotations

import socket
import ssl

from aitbcd.errors import Unreachable


class Encrypted:
    """What ``client`` needs of a socket, with the errors of a plain one."""

    __slots__ = ("_sock",)

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    def recv(self, size: int) -> bytes:
        try:
            return self._sock.recv(size)
        except ssl.SSLWantReadError:
            # What has come is TLS' own, or half a record.
            raise BlockingIOError from None
        except ssl.SSLError as error:
            raise ConnectionError(error.reason) from None

    def sendall(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except ssl.SSLError:
            raise BrokenPipeError from None

    def settimeout(self, seconds: float | None) -> None:
        self._sock.settimeout(seconds)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


def encrypt(sock: socket.socket, host: str, url: str, ca_file: str | None) -> Encrypted:
    """Return the connection once the other end has shown that it is ``host``.

    Raises:
        Unreachable: it is not, or does not speak TLS.
    """
    context = _context(ca_file)
    try:
        return Encrypted(context.wrap_socket(sock, server_hostname=host))
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(
            f"the certificate of {url} (AITBC_URL) is not to be trusted: {error.verify_message}",
            hint="if its CA is your own, name the file that has it: AITBC_CA_FILE=FILE",
            url=url,
        ) from None
    except ssl.SSLError as error:
        why = (error.reason or "no reason is given").lower().replace("_", " ")
        raise Unreachable(
            f"what listens at {url} (AITBC_URL) does not speak TLS with us: {why}",
            hint="a daemon without a certificate is asked by http://HOST:PORT",
            url=url,
        ) from None
    except OSError as error:
        raise Unreachable(
            f"{url} (AITBC_URL) hung up before anything was said: {error.strerror or error}",
            hint="see whether the port is that of the daemon, and its log",
            url=url,
        ) from None


def _context(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        # An SSLError is one too: what was read is no certificate.
        why = "holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise Unreachable(
            f"AITBC_CA_FILE is {ca_file}: {why}",
            hint="name a PEM file with the certificate of the CA",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
