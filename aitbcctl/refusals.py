"""What the command line itself will not do, before or without asking the daemon."""

from __future__ import annotations

from aitbcd.errors import ClientFailure


class Usage(ClientFailure):
    """The command line does not say what is wanted."""

    exit_code = 2


class Refused(ClientFailure):
    """Not done without being told to (``--force``)."""

    exit_code = 4
