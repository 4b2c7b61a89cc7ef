"""Opening the file: refuse what is not ours or damaged, then bring the schema up to date.

A file that cannot be used is never changed: it is looked at through a read-only connection first.
Migrations are the numbered files of ``migrations/``; those that are missing run in one
transaction together with the record of it (``user_version``), after a copy was made.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast
from urllib.parse import quote

from aitbcd.errors import StartupError, StateError
from aitbcd.store import lanes

FOLDER = Path(__file__).with_name("migrations")

#: "AITB", in the header of the file (``PRAGMA application_id``).
APPLICATION_ID = 0x41495442

# The sqlite3 module binds int and str as they are, but searches an adapter for each None and each
# bytes object, by raising and catching AttributeError: half the time of an insert.
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(type(None), cast("Callable[[None], None]", {}.get))

#: Larger files are read through only after a crash: that costs about a second a gigabyte.
_ALWAYS_CHECKED = 64 << 20
#: How long a change waits for another program that writes; longer than a backup takes.
BUSY_MS = 10_000
#: What the log reaches before SQLite writes it back and begins it again, and a little more.
_LOG_BYTES = 1_040 * (4096 + 24)
#: A large batch makes it longer; then it is cut to this.
_LOG_BYTES_MAX = 64 << 20


def migrations() -> list[tuple[int, str]]:
    """Return (version, SQL) of every migration, in order."""
    files = sorted(FOLDER.glob("[0-9]*.sql"))
    return [(int(file.name.split("_")[0]), file.read_text("utf-8")) for file in files]


def open_database(path: Path, *, now: int) -> sqlite3.Connection:
    """Return the one connection that writes, on a file with the newest schema.

    Raises:
        StartupError: it cannot be used; the file is as it was.
    """
    try:
        version = _inspect(path)
        _create(path)
        connection = _connect(path)
    except OSError as error:
        raise _not_writable(path, error.strerror or str(error)) from None
    except sqlite3.Error as error:
        raise _unusable(path, error) from None
    try:
        _migrate(connection, path, version, now)
        # As the only writer, whose log nobody makes longer meanwhile.
        connection.execute("BEGIN IMMEDIATE")
        _reserve_log(path)
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        connection.close()
        raise _unusable(path, error) from None
    except OSError as error:
        connection.close()
        raise _not_writable(path, error.strerror or str(error)) from None
    except BaseException:
        connection.close()
        raise
    return connection


# Looking at it


def look_at(path: Path) -> int:
    """Return the schema's version of a file that a daemon may be using.

    Raises:
        StartupError: a daemon could not use it.
    """
    try:
        return _inspect(path, is_in_use=True)
    except sqlite3.Error as error:
        raise _unusable(path, error) from None


def _inspect(path: Path, *, is_in_use: bool = False) -> int:
    """Return the schema's version, 0 for a file that is not there, or refuse it."""
    log = path.with_name(path.name + "-wal")
    size = path.stat().st_size if path.exists() else 0
    log_size = log.stat().st_size if log.exists() else 0
    if not size:
        if log_size:
            # SQLite would take the file for new and remove the log.
            raise StateError(
                f"{path} is missing or empty, but {log} holds changes of it; nothing was touched",
                hint=f"put {path.name} back beside it, or move {log.name} away to start anew",
            )
        return 0
    source = f"file:{quote(str(path))}?mode=ro"
    if is_in_use and not log_size:
        # Nobody has it open; SQLite would make a log, and the daemon find files that are new.
        source += "&immutable=1"
    connection = sqlite3.connect(source, uri=True, isolation_level=None, timeout=BUSY_MS / 1000)
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        version = _check_header(connection, path)
        if (log_size and not is_in_use) or size <= _ALWAYS_CHECKED:
            _check_pages(connection, path)
        return version
    finally:
        connection.close()


def _check_header(connection: sqlite3.Connection, path: Path) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    owner: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables: int = connection.execute("PRAGMA schema_version").fetchone()[0]
    if not tables and not version:
        # Created, and the daemon ended before its first transaction.
        return 0
    if owner != APPLICATION_ID:
        raise StateError(
            f"{path} is an SQLite file of another program (application id {owner})",
            hint="give aitbcd a state directory of its own: --state-dir",
        )
    newest = migrations()[-1][0]
    if version > newest:
        raise StateError(
            f"{path} has schema {version}, made by a newer aitbcd; this one knows up to {newest}",
            hint="install that version again; the queue was not touched",
            schema=version,
            known=newest,
        )
    return version


def _check_pages(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _damaged(path, found)


def _damaged(path: Path, words: str) -> StateError:
    kept = f"{path.name}.damaged"
    copies = sorted(file.name for file in path.parent.glob(f"{path.name}.schema-*"))
    known = f"; older copies: {', '.join(copies)}" if copies else ""
    return StateError(
        f"{path} is damaged ({' '.join(words.split())}); nothing was changed{known}",
        hint=(
            f"in {path.parent}: keep it with 'mv {path.name} {kept}' (its -wal and -shm files too),"
            f" then save what can be read with 'sqlite3 {kept} .recover | sqlite3 {path.name}';"
            " or start without: results are not touched"
        ),
        backup=str(path.with_name(kept)),
    )


def _unusable(path: Path, error: sqlite3.Error) -> StartupError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StartupError(
            f"{path} is locked by another program ({error})", hint="end it, then start again"
        )
    return _not_writable(path, str(error))


def _not_writable(path: Path, words: str) -> StartupError:
    return StartupError(
        f"{path} cannot be written: {words}",
        hint=f"see who owns {path.parent} and whether it has room, or give another --state-dir",
    )


# Opening it


def _create(path: Path) -> None:
    """Make the file, so that it never exists with wider permissions; the log inherits them."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(0, f"its folder {path.parent} is not writable")


def register(connection: sqlite3.Connection) -> None:
    """Teach a connection to add up histograms."""
    connection.create_function("add_waits", 2, lanes.add_packed, deterministic=True)
    connection.create_function("waits_of", 1, lanes.pack_one, deterministic=True)
    connection.create_aggregate("sum_waits", 1, lanes.Sum)  # type: ignore[arg-type]


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000
    )
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        connection.close()
        raise StateError(
            f"{path}: its file system does not do SQLite's WAL (journal mode {mode})",
            hint="put the state directory on a local file system: --state-dir",
        )
    for setting in (
        "synchronous = FULL",
        "foreign_keys = ON",
        # What is deleted was secret, perhaps; whether it is overwritten depends on the build.
        "secure_delete = ON",
        "temp_store = MEMORY",
        f"journal_size_limit = {_LOG_BYTES_MAX}",
    ):
        connection.execute(f"PRAGMA {setting}")
    register(connection)
    return connection


def _reserve_log(path: Path) -> None:
    """Write zeros behind the end of the log: a commit that makes a file longer costs twice.

    SQLite reads a log up to the first frame that is not of it, and writes over the rest. (An
    fdatasync of a longer file commits the file system's journal too: 0.47 ms became 0.25.)
    """
    log = path.with_name(path.name + "-wal")
    with contextlib.suppress(OSError), log.open("r+b", buffering=0) as file:
        begin = end = file.seek(0, os.SEEK_END)
        try:
            while end < _LOG_BYTES:
                end += file.write(bytes(min(_LOG_BYTES - end, 1 << 18)))
        except OSError:
            # No room for it: every commit finds its own, or says so.
            file.truncate(begin)


# Bringing it up to date


def _migrate(connection: sqlite3.Connection, path: Path, version: int, now: int) -> None:
    todo = [(number, text) for number, text in migrations() if number > version]
    if not todo:
        return
    copy = _back_up(connection, path, version, now) if version else None
    connection.execute("BEGIN IMMEDIATE")
    try:
        # A second process may have been faster.
        held: int = connection.execute("PRAGMA user_version").fetchone()[0]
        for number, text in todo:
            if number > held:
                for statement in statements(text):
                    connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {max(held, todo[-1][0])}")
        connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if copy is None:
            raise
        # Nothing needs it, and a service that is started again and again would fill the disk.
        copy.unlink()
        if not isinstance(error, sqlite3.Error):
            raise
        raise StartupError(
            f"{path} could not be brought from schema {version} to {todo[-1][0]}: {error};"
            " it is as it was",
            hint="see to what is said there, or install the version before again",
        ) from None


def _back_up(connection: sqlite3.Connection, path: Path, version: int, now: int) -> Path:
    """Copy the file to ``queue.db.schema-<version>.<time>``; a copy is never overwritten."""
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now // 1_000_000))
    target = path.with_name(f"{path.name}.schema-{version}.{when}")
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    copy = sqlite3.connect(target)
    try:
        connection.backup(copy)
    except BaseException:
        target.unlink()
        raise
    finally:
        copy.close()
    return target


def statements(text: str) -> Iterator[str]:
    """Split a script; ``executescript`` would commit first."""
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
