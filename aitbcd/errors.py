"""Every error that we raise on purpose, as one tree.

    AitbcError                  internal-error    500   exit 1
    |- BadRequest               bad-request       400   exit 2   not understood as HTTP or JSON
    |- InvalidJob               invalid-job       422   exit 2   a job description that is wrong
    |- InvalidValue             invalid-value     422   exit 2   any other value that is wrong
       |- WrongCursor           wrong-cursor      409   exit 2   of a list in another order
    |- Unauthorized             unauthorized      401   exit 4   nobody we know
    |- Forbidden                forbidden         403   exit 4   known, but not allowed to
    |- NoSuchJob                no-such-job       404   exit 3
    |- NoSuchFile               no-such-file      404   exit 3   no such log, file or route
    |- NoSuchKey                no-such-key       404   exit 3
    |- NoSuchShare              no-such-share     404   exit 3   also one that counts no more
    |- AmbiguousJob             ambiguous-job     409   exit 2   a prefix of several ids
    |- WrongState               wrong-state       409   exit 4   the job's state forbids it
    |- NoResults                no-results        409   exit 4   nothing kept to download or verify
    |- NotSatisfiable           not-satisfiable   409   exit 4   this machine can never do it
    |- OverLimit                over-limit        409   exit 4   more than this user may have
    |- TooLarge                 too-large         413   exit 4
    |- BadRange                 bad-range         416   exit 2
    |- RateLimited              rate-limited      429   exit 4   asked too often
    |- StorageFull              storage-full      507   exit 4   nothing was changed
    |- Unavailable              unavailable       503   exit 5   stopping, or a part is not there
    |- Unreachable              unreachable        -    exit 5   client side: no daemon answers
    |- ClientFailure            client-failure     -    exit 1   client side: its own files
    |- CannotInstall            cannot-install     -    exit 4   its units, here and like this
    |- StartupError             startup-error      -    exit 1   the daemon cannot start
       |- SettingsError         settings-error     -    exit 2   its configuration is wrong
       |- StateError            state-error        -    exit 2   what it keeps is not for it to use
    |- IllegalTransition        illegal-transition 500  exit 1   a bug of ours

A message says what happened, with which value, and what to do next; ``fields`` carry the same
for programs. The HTTP body is an RFC 9457 problem document (see ``wire``). This module imports
nothing, because the command line needs it at every start.
"""

from __future__ import annotations


class AitbcError(Exception):
    """Base of all: ``detail`` is one sentence for people, ``hint`` what to do next."""

    code = "internal-error"
    title = "Internal error"
    status = 500
    exit_code = 1

    def __init__(self, detail: str, *, hint: str | None = None, **fields: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.fields = fields


class BadRequest(AitbcError):
    code, title, status, exit_code = "bad-request", "Bad request", 400, 2


class InvalidJob(AitbcError):
    code, title, status, exit_code = "invalid-job", "Invalid job description", 422, 2


class InvalidValue(AitbcError):
    code, title, status, exit_code = "invalid-value", "Invalid value", 422, 2


class WrongCursor(InvalidValue):
    code, title, status, exit_code = "wrong-cursor", "Cursor of another list", 409, 2


class Unauthorized(AitbcError):
    code, title, status, exit_code = "unauthorized", "Not authenticated", 401, 4


class Forbidden(AitbcError):
    code, title, status, exit_code = "forbidden", "Not allowed", 403, 4


class NoSuchJob(AitbcError):
    code, title, status, exit_code = "no-such-job", "No such job", 404, 3


class NoSuchFile(AitbcError):
    code, title, status, exit_code = "no-such-file", "Not found", 404, 3


class NoSuchKey(AitbcError):
    code, title, status, exit_code = "no-such-key", "No such key", 404, 3


class NoSuchShare(AitbcError):
    code, title, status, exit_code = "no-such-share", "No such share", 404, 3


class AmbiguousJob(AitbcError):
    code, title, status, exit_code = "ambiguous-job", "Several jobs match", 409, 2


class WrongState(AitbcError):
    code, title, status, exit_code = "wrong-state", "Not in this state", 409, 4


class NoResults(AitbcError):
    code, title, status, exit_code = "no-results", "No results", 409, 4


class NotSatisfiable(AitbcError):
    code, title, status, exit_code = "not-satisfiable", "Not possible on this machine", 409, 4


class OverLimit(AitbcError):
    code, title, status, exit_code = "over-limit", "Over your limit", 409, 4


class TooLarge(AitbcError):
    code, title, status, exit_code = "too-large", "Too large", 413, 4


class BadRange(AitbcError):
    code, title, status, exit_code = "bad-range", "Range not satisfiable", 416, 2


class RateLimited(AitbcError):
    """Its field ``retry_after_s`` says when to try again."""

    code, title, status, exit_code = "rate-limited", "Too many requests", 429, 4


class StorageFull(AitbcError):
    code, title, status, exit_code = "storage-full", "Storage failed", 507, 4


class Unavailable(AitbcError):
    code, title, status, exit_code = "unavailable", "Not available now", 503, 5


class Unreachable(AitbcError):
    code, title, exit_code = "unreachable", "Daemon not reachable", 5


class ClientFailure(AitbcError):
    code, title, exit_code = "client-failure", "Client failure", 1


class CannotInstall(AitbcError):
    code, title, exit_code = "cannot-install", "Cannot install", 4


class StartupError(AitbcError):
    code, title, exit_code = "startup-error", "Cannot start", 1


class SettingsError(StartupError):
    code, title, exit_code = "settings-error", "Wrong configuration", 2


class StateError(StartupError):
    code, title, exit_code = "state-error", "Unusable state", 2


class IllegalTransition(AitbcError):
    code, title = "illegal-transition", "Illegal transition"


def from_problem(document: dict[str, object]) -> AitbcError:
    """Return the error that a problem document speaks of; ``AitbcError`` for an unknown code."""
    kind = _by_code(AitbcError).get(str(document.get("code")), AitbcError)
    known = ("type", "title", "status", "detail", "code", "hint")
    hint = document.get("hint")
    detail = str(document.get("detail") or document.get("title") or "unknown error")
    error = kind(detail, hint=str(hint) if hint else None)
    error.fields = {name: value for name, value in document.items() if name not in known}
    return error


def _by_code(base: type[AitbcError]) -> dict[str, type[AitbcError]]:
    # A kind without a code of its own is a special case of the one whose code it has.
    kinds = {base.code: base} if "code" in vars(base) else {}
    for kind in base.__subclasses__():
        kinds |= _by_code(kind)
    return kinds
