"""Seal a result package: collect, clean, hash, describe, sync, rename. One idempotent function.

A crash at any point leaves either ``.job_<ID>`` to be sealed again or ``job_<ID>`` sealed; the
rename decides. Nothing is believed of what the job left: only regular files stay, as its user's,
links are not followed, set-id bits go, and a file that has another name elsewhere is copied, so
that making it read-only changes nothing outside the package. Each file that is not empty is
synced (fdatasync(2)) and each folder (fsync(2)); never syncfs(2), which waits for everybody.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from aitbcd import manifest
from aitbcd.launcher import apart, logs, package
from aitbcd.launcher.collect import FILE, MAX_DEPTH, Collector, copy_file, kind_of
from aitbcd.launcher.identity import do_as, of_spec
from aitbcd.launcher.linux import hold, set_mode, set_mode_of, start_writing
from aitbcd.launcher.notes import Notes, shown
from aitbcd.launcher.package import (
    ARTIFACTS,
    DIRECTORY,
    LOGS,
    PROGRESS,
    RESULT,
    SAMPLES,
    STDERR,
    STDOUT,
)
from aitbcd.launcher.protocol import is_sealed, left_name, package_name
from aitbcd.launcher.turns import Turns

#: CPython's own sha256, without the C library that hashlib loads; its name changed in 3.12.
_BUILTIN = "_sha2" if sys.version_info >= (3, 12) else "_sha256"
small_sha256: Callable[[bytes], Any] = import_module(_BUILTIN).sha256

OUTPUT = "output.json"
_encoder = json.JSONEncoder()
_EMPTY: str = small_sha256(b"").hexdigest()
#: Above this the C library's vectorised sha256 is worth its import (10 ms, 5 MB).
_LARGE = 1 << 20
_PIECE = 1 << 20
#: Bytes that are read at once, by whoever waits for the job; and what a file costs at least.
_LIGHT, _LEAST_WORK = 64 << 20, 1 << 14
#: Files and folders that wait, open, to be synced together.
_OPEN_AT_ONCE = 64
#: Bytes of samples: a daemon sends far fewer, unless it was taken over.
_SAMPLES_MAX = 64 << 20
#: Why a package is sealed without them.
_NOT_WORTH_FAILING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINVAL})
_UNREADABLE = "not readable, and it has another name elsewhere"
_FILE_KIND, _FOLDER, _OTHER = "file", "folder", "other"
#: Unfinished copies of logs.
_LOG_COPIES = frozenset(os.fsencode(f"{LOGS}/{logs.TEMPORARY}{log}") for log in (STDOUT, STDERR))

#: Seconds that sealing may take whoever waits for the job.
_LIGHT_S = 60.0
#: Seconds that a user's own files may take to be collected, hashed and synced.
DEADLINE_S = 6 * 3600.0

Order = dict[str, Any]


class Heavy(Exception):
    """More than can be sealed at once: do it in a process of its own, in turn. Nothing is lost."""


def seal(
    results_fd: int,
    order: Order,
    run_folder_fd: int | None = None,
    take_turn: Callable[[], None] | None = None,
    samples: int | None = None,
) -> dict[str, Any]:
    """Seal a package as ordered and return ``{digest, files, bytes}``.

    The run folder is where what is left out is noted, should this sealing not come to its end.
    ``take_turn`` is called before the work becomes heavy, by the process that does it. ``samples``
    is a sealed memfd that becomes ``logs/gpu.csv``.

    The order has ``job``, ``attempt``, ``uid``, ``gid``, ``user``, ``cwd``, ``artifacts`` (globs),
    ``log_limit`` and ``output`` (the daemon's part of output.json); ``drop``, where the artifacts
    are to be left out, and ``uncollected``, where nothing is to be collected: why.

    Raises:
        Heavy: see there; only without ``take_turn``.
        OSError: the disk refused (ENOSPC, EDQUOT, ...); sealing again is safe.
    """
    building = package_name(order["job"], is_sealed=False)
    sealed = package_name(order["job"], is_sealed=True)
    who = of_spec(order)

    def build() -> dict[str, Any]:
        notes = Notes(run_folder_fd)
        if who is not None:
            notes.open()
        try:
            action = partial(_build, results_fd, building, order, notes, take_turn, samples)
            deadline_s = DEADLINE_S if take_turn else _LIGHT_S
            report = do_as(who, action, deadline_s, in_reserve=os.getgid())
        except TimeoutError:
            if take_turn:
                raise
            # Its user has stopped it, say: that need not keep us from hearing.
            raise Heavy from None
        finally:
            notes.close()
        if report.get("heavy"):
            raise Heavy
        return report

    def build_anew() -> dict[str, Any]:
        package.create(results_fd, order["job"], who).close()
        return build()

    try:
        report = build()
        if report.get("others"):
            os.rename(
                building, left_name(order["job"]), src_dir_fd=results_fd, dst_dir_fd=results_fd
            )
            report = build_anew()
            package.try_rmdir(results_fd, left_name(order["job"]))
    except FileNotFoundError:
        try:
            return do_as(who, lambda: _sealed_before(results_fd, sealed, order), DEADLINE_S)
        except FileNotFoundError:
            # A power cut took it before anything of it was on the disk: it is sealed empty. Or we
            # were killed when it had just been set apart.
            report = build_anew()
    os.rename(building, sealed, src_dir_fd=results_fd, dst_dir_fd=results_fd)
    os.fsync(results_fd)
    return report


def report(
    results_fd: int,
    order: Order,
    run_folder_fd: int | None,
    samples: int | None,
    *,
    turns_fd: int | None = None,
) -> dict[str, Any]:
    """Seal, and return what the daemon is told of it.

    Args:
        turns_fd: where whoever seals waits for a turn before the work becomes heavy (``turns``).

    Raises:
        Heavy: see there; only without ``turns_fd``.
    """
    try:
        take_turn = None if turns_fd is None else Turns(turns_fd, order["uid"]).take
        return {"op": "sealed", **seal(results_fd, order, run_folder_fd, take_turn, samples)}
    except OSError as error:
        return failure(error)


def failure(error: OSError) -> dict[str, Any]:
    """Return what the daemon is told where sealing has failed."""
    return {"op": "seal_failed", "errno": error.errno, "error": error.strerror or str(error)}


def collecting_of(order: Order, asked: Order) -> Order:
    """Return an order that collects no more than was asked for when the attempt was started.

    A daemon that was taken over may order more, and one with a full disk orders less.
    """
    allowed = frozenset(asked["artifacts"])
    globs = [glob for glob in order["artifacts"] if glob in allowed]
    return order | {"cwd": asked["cwd"], "artifacts": globs}


def _sealed_before(results_fd: int, sealed: str, order: Order) -> dict[str, Any]:
    """Read the report of a package whose rename was the last thing that happened."""
    top = os.open(sealed, DIRECTORY, dir_fd=results_fd)
    try:
        output = json.loads(_read(top, OUTPUT))
        if output["attempt"] != order["attempt"]:
            raise OSError(errno.EEXIST, f"{sealed} is of attempt {output['attempt']}")
        text = _read(top, manifest.FILE_NAME)
        sizes = [entry["size"] for entry in output["files"]]
        sizes.append(os.stat(OUTPUT, dir_fd=top).st_size)
        result, stdout = (os.stat(path, dir_fd=top) for path in (RESULT, f"{LOGS}/{STDOUT}"))
    finally:
        os.close(top)
    return _report(text, sizes, result.st_size if os.path.samestat(result, stdout) else 0)


def _report(text: bytes, sizes: list[int], shared: int) -> dict[str, Any]:
    """Count all files, and what they take: once what result.txt shares with stdout.log."""
    total = sum(sizes) - shared + len(text)
    return {"digest": small_sha256(text).hexdigest(), "files": len(sizes) + 1, "bytes": total}


class _Others(Exception):
    """The package holds what its user can neither change nor move: see ``apart``."""


def _build(
    results_fd: int,
    building: str,
    order: Order,
    notes: Notes,
    take_turn: Callable[[], None] | None,
    samples: int | None,
) -> dict[str, Any]:
    """Make a package ready.

    ``{"others": True}``: it has to be set apart first. ``{"heavy": True}``: see ``Heavy``.
    """
    apart_name = left_name(order["job"])
    top = _open_folder(results_fd, building.encode())
    try:
        is_apart = kind_of(results_fd, apart_name) != 0
        if is_apart:
            _take_out(results_fd, apart_name, top, order, notes)
        try:
            return _run_forced(top, partial(_Sealer, top, order, notes, take_turn, samples))
        except Heavy:
            return {"heavy": True}
        except _Others:
            if is_apart:
                raise OSError(errno.EPERM, f"another user changes {building}") from None
            return {"others": True}
    finally:
        os.close(top)


def _take_out(results_fd: int, apart_name: str, top: int, order: Order, notes: Notes) -> None:
    source = _open_folder(results_fd, apart_name.encode())
    try:
        os.fchmod(source, 0o700)
        os.fchmod(top, 0o700 | _setgid(top))
        taker = apart.Taker(_temporary(order))
        taker.take_all(source, top)
        for path, why in taker.left:
            notes.add(path, f"{why}; it is kept in {apart_name}")
    finally:
        os.close(source)


def _temporary(order: Order) -> bytes:
    """Return the name of a copy that is not finished: one that no job has by chance."""
    return os.fsencode(f"{logs.TEMPORARY}copy.{order['job']}")


def _run_forced(top: int, make_sealer: Callable[[], _Sealer]) -> dict[str, Any]:
    try:
        return _run(make_sealer())
    except PermissionError:
        pass
    try:
        # Left read-only by the job, or by a sealing that did not come to its end.
        os.fchmod(top, 0o700 | _setgid(top))
        for ours in (LOGS, ARTIFACTS):
            if kind_of(top, ours) == stat.S_IFDIR:
                set_mode(ours, 0o700 | _setgid(top), top)
        return _run(make_sealer())
    except PermissionError:
        raise _Others from None


def _run(sealer: _Sealer) -> dict[str, Any]:
    try:
        return sealer.run()
    finally:
        sealer.close()


def _setgid(top: int) -> int:
    """Return the bit that a root launcher gave the folder with its user."""
    return os.fstat(top).st_mode & stat.S_ISGID


def _readers() -> int | None:
    """Return the group by which packages are read that a root launcher seals."""
    _, own, reserve = os.getresgid()
    return reserve if reserve != own or os.getuid() == 0 else None


class _Sealer:
    """One sealing of one package; ``top`` is its open folder.

    A folder is listed once and asked for no more than the kinds of its entries, which the kernel
    gives with their names: for a job that does nothing, system calls are what sealing costs.
    """

    def __init__(
        self,
        top: int,
        order: Order,
        notes: Notes,
        take_turn: Callable[[], None] | None,
        samples: int | None,
    ) -> None:
        self._top = top
        self._samples = samples
        #: Further entries for ``left_out``.
        self._without: list[dict[str, str]] = []
        self._order = order
        self._uid: int = order["uid"]
        self._setgid = _setgid(top)
        #: The daemon reads packages by this group; None: it needs none, or there is none.
        self._readers = _readers()
        #: (path, size, digest) of each file, for output.json.
        self._files: list[tuple[bytes, int, str]] = []
        self._notes = notes
        self._take_turn = take_turn
        #: Bytes that may still be read before this is heavy work; None: it has its turn.
        self._light_left: int | None = _LIGHT
        self._temporary = _temporary(order)
        self._dropped: dict[str, dict[str, int]] = {}
        #: The inode of stdout.log, where result.txt is a second name of it, and its digest.
        self._shared: tuple[int, str] | None = None
        #: Open files and folders that are as they stay, to be synced together.
        self._unsynced_files: list[int] = []
        self._unsynced_folders: list[int] = []

    def run(self) -> dict[str, Any]:
        kinds = self._make_ours()
        if why := self._order.get("drop"):
            self._drop_artifacts(why)
        else:
            self._collect()
        self._close_logs(kinds)
        for name in kinds:
            self._take(self._top, name, name, kinds[name], 0)
        output = self._describe()
        self._write(OUTPUT, output)
        lines = [(path, digest) for path, _, digest in self._files]
        lines.append((OUTPUT.encode(), small_sha256(output).hexdigest()))
        text = manifest.build(lines)
        self._write(manifest.FILE_NAME, text)
        self._settle(self._top, 0o550 | self._setgid)
        self._keep_folder(os.dup(self._top))
        self._sync()
        sizes = [size for _, size, _ in self._files]
        return _report(text, [*sizes, len(output)], self._shared_size())

    def _shared_size(self) -> int:
        if self._shared is None:
            return 0
        return next((size for path, size, _ in self._files if path == RESULT.encode()), 0)

    def _drop_artifacts(self, why: str) -> None:
        self._drop(self._top, ARTIFACTS.encode(), ARTIFACTS.encode(), why)
        os.mkdir(ARTIFACTS, 0o750, dir_fd=self._top)

    def _spend(self, size: int) -> None:
        """Take note of work that comes; see that heavy work is done in turn."""
        if self._light_left is None:
            return
        self._light_left -= max(size, _LEAST_WORK)
        if self._light_left < 0:
            if self._take_turn is None:
                raise Heavy
            self._take_turn()
            self._light_left = None

    def _make_ours(self) -> dict[bytes, str]:
        """Put back the folders that the job may have replaced, drop what is not kept."""
        kinds = _list(self._top)
        for folder in (LOGS, ARTIFACTS):
            name = folder.encode()
            if kinds.get(name) != _FOLDER:
                if name in kinds:
                    self._drop(self._top, name, name, "replaced by something else")
                os.mkdir(name, 0o750, dir_fd=self._top)
                kinds[name] = _FOLDER
        for ours in (PROGRESS, OUTPUT, manifest.FILE_NAME):
            if kinds.pop(ours.encode(), None):
                self._drop(self._top, ours.encode(), b"", None)
        return kinds

    def _close_logs(self, kinds: dict[bytes, str]) -> None:
        """Make the logs whole, and result.txt another name of stdout.log if the job made none."""
        folder = os.open(LOGS, DIRECTORY, dir_fd=self._top)
        try:
            found = _list(folder)
            for log in (STDOUT, STDERR):
                if found.get(log.encode()) == _FILE_KIND:
                    self._close_log(folder, log)
                else:
                    self._replace_log(folder, log, "not a regular file")
            self._put_samples(folder, is_there=SAMPLES.encode() in found)
            self._make_result(kinds, folder)
        finally:
            os.close(folder)

    def _close_log(self, folder: int, log: str) -> None:
        about = os.stat(log, dir_fd=folder, follow_symlinks=False)
        if about.st_uid != self._uid:
            if (copy := self._open_own(folder, log.encode())) is None:
                raise _Others
            os.close(copy)
        if about.st_size <= self._order["log_limit"]:
            return
        fd = _open_file(folder, log.encode(), self._uid)
        if fd is None:
            self._replace_log(folder, log, _UNREADABLE)
            return
        try:
            cut = logs.close_hole(folder, log, fd, self._order["log_limit"])
        finally:
            os.close(fd)
        if cut:
            self._dropped[log] = {"at": cut.start, "bytes": cut.end - cut.start}

    def _replace_log(self, folder: int, log: str, why: str) -> None:
        if kind_of(folder, log):
            self._drop(folder, log.encode(), f"{LOGS}/{log}".encode(), why)
        os.close(package.open_new(log, 0o640, folder))

    def _put_samples(self, folder: int, *, is_there: bool) -> None:
        """Write what the daemon saw of the job's GPUs; nobody else's file has that name."""
        name, path = SAMPLES.encode(), f"{LOGS}/{SAMPLES}".encode()
        if is_there:
            # Where there are samples it may be of a sealing that did not come to its end.
            why = "its name is for the samples of the job's GPUs"
            self._drop(folder, name, path, why if self._samples is None else None)
        if self._samples is None:
            return
        fd = package.open_new(name, 0o640, folder)
        try:
            _copy_samples(self._samples, fd)
        except OSError as error:
            if error.errno not in _NOT_WORTH_FAILING:
                raise
            package.clear(folder, name)
            # Not among the notes: there may be room when it is sealed again.
            self._without = [{"path": path.decode(), "why": str(error.strerror)}]
        finally:
            os.close(fd)

    def _make_result(self, kinds: dict[bytes, str], folder: int) -> None:
        name = RESULT.encode()
        if kinds.get(name) == _FILE_KIND:
            mine = os.stat(name, dir_fd=self._top, follow_symlinks=False)
            both = os.stat(STDOUT, dir_fd=folder, follow_symlinks=False)
            if mine.st_size and not os.path.samestat(mine, both):
                return
            else:
                os.unlink(name, dir_fd=self._top)
        elif name in kinds:
            self._drop(self._top, name, name, "not a regular file")
        about = self._link_result(folder)
        if about.st_nlink > 2:
            # The log has a third name, perhaps outside: ours are two names of a copy.
            os.unlink(name, dir_fd=self._top)
            if (fd := self._open_own(folder, STDOUT.encode())) is not None:
                os.close(fd)
            else:
                self._replace_log(folder, STDOUT, _UNREADABLE)
            about = self._link_result(folder)
        kinds[name] = _FILE_KIND
        # Before the folder that holds the log, so that its hash is known when the log comes.
        kinds[LOGS.encode()] = kinds.pop(LOGS.encode())
        self._shared = (about.st_ino, "")

    def _link_result(self, folder: int) -> os.stat_result:
        os.link(STDOUT, RESULT, src_dir_fd=folder, dst_dir_fd=self._top, follow_symlinks=False)
        return os.stat(RESULT, dir_fd=self._top, follow_symlinks=False)

    # -- what is in the package -------------------------------------------------------------

    def _take(self, folder: int, name: bytes, path: bytes, kind: str, depth: int) -> None:
        if name == self._temporary or path in _LOG_COPIES:
            self._drop(folder, name, path, None)
        elif kind == _FILE_KIND:
            self._take_file(folder, name, path)
        elif kind == _FOLDER and depth < MAX_DEPTH:
            self._take_folder(folder, name, path, depth)
        else:
            why = "too deep" if kind == _FOLDER else "not a regular file"
            self._drop(folder, name, path, why)

    def _take_folder(self, parent: int, name: bytes, path: bytes, depth: int) -> None:
        # Whoever is above would walk again, and so would all above him.
        try:
            fd = _open_folder(parent, name)
        except PermissionError:
            raise _Others from None
        try:
            is_empty = self._walk_forced(fd, path, depth)
            self._settle(fd, 0o550 | self._setgid)
        except PermissionError:
            os.close(fd)
            raise _Others from None
        except BaseException:
            os.close(fd)
            raise
        self._keep_folder(fd, is_empty=is_empty)

    def _walk_forced(self, fd: int, path: bytes, depth: int) -> bool:
        known = len(self._files)
        try:
            return self._walk(fd, path, depth)
        except PermissionError:
            os.fchmod(fd, 0o700 | self._setgid)
            del self._files[known:]
            return self._walk(fd, path, depth)

    def _walk(self, fd: int, path: bytes, depth: int) -> bool:
        """Take all that is in a folder; return whether there is nothing."""
        kinds = _list(fd)
        for name, kind in kinds.items():
            self._take(fd, name, path + b"/" + name, kind, depth + 1)
        return not kinds

    def _take_file(self, folder: int, name: bytes, path: bytes) -> None:
        fd = self._open_own(folder, name)
        if fd is None:
            about = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if about.st_uid != self._uid:
                raise _Others
            self._drop(folder, name, path, _UNREADABLE)
            return
        about = os.fstat(fd)
        is_shared = self._shared is not None and self._shared[0] == about.st_ino
        if is_shared and self._shared and self._shared[1]:
            self._files.append((path, about.st_size, self._shared[1]))
            os.close(fd)
            return
        try:
            self._spend(about.st_size)
            digest = _hash(fd, about.st_size)
        except BaseException:
            os.close(fd)
            raise
        if is_shared:
            self._shared = (about.st_ino, digest)
        self._files.append((path, about.st_size, digest))
        self._close_file(fd, about.st_size, 0o440 | (about.st_mode & 0o110))

    def _open_own(self, folder: int, name: bytes) -> int | None:
        """Open a file; another user's, and one that has a name elsewhere, is replaced by a copy."""
        fd = _open_file(folder, name, self._uid)
        if fd is None:
            return None
        about = os.fstat(fd)
        is_shared = self._shared is not None and self._shared[0] == about.st_ino
        if about.st_uid == self._uid and about.st_nlink == 1 + is_shared:
            return fd
        try:
            if not stat.S_ISREG(about.st_mode):
                return None
            self._spend(about.st_size)
            copy = package.open_new(self._temporary, 0o600, folder)
            copy_file(fd, copy)
            os.fchmod(copy, about.st_mode & 0o777)
            os.rename(self._temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            return copy
        finally:
            os.close(fd)

    def _drop(self, folder: int, name: bytes, path: bytes, why: str | None) -> None:
        """Remove what a package does not hold; ``why`` goes into output.json."""
        if why:
            self._notes.add(path, why)
        try:
            package.clear(folder, name)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EBUSY):
                raise _Others from None
            raise

    # -- what the job asked to be collected ---------------------------------------------------

    def _collect(self) -> None:
        if why := self._order.get("uncollected"):
            for glob in self._order["artifacts"]:
                self._notes.add(os.fsencode(glob), why)
            return
        if not self._order["artifacts"]:
            return
        try:
            cwd = os.open(self._order["cwd"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._notes.add(os.fsencode(self._order["cwd"]), str(error.strerror))
            return
        target = os.open(ARTIFACTS, DIRECTORY, dir_fd=self._top)
        try:
            os.fchmod(target, 0o700 | self._setgid)
            collector = Collector(cwd, target, self._notes, self._spend, self._temporary)
            for glob in self._order["artifacts"]:
                collector.collect(os.fsencode(glob))
        finally:
            os.close(target)
            os.close(cwd)

    # -- what we write ------------------------------------------------------------------------

    def _describe(self) -> bytes:
        output = dict(self._order["output"])
        output["files"] = [{"path": shown(path), "size": size} for path, size, _ in self._files]
        output["logs_dropped"] = self._dropped
        output["left_out"] = [*self._notes.entries, *self._without]
        # A line a key: indent= would take the slow encoder.
        lines = (f"  {_encode(key)}: {_encode(value)}" for key, value in output.items())
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    def _write(self, name: str, data: bytes) -> None:
        fd = package.open_new(name, 0o640, self._top)
        _write_all(fd, data)
        self._close_file(fd, len(data), 0o440)

    # -- what reaches the disk ----------------------------------------------------------------
    #
    # On a journaling file system a sync commits all that was changed before it, and is nearly
    # free when nothing has changed since. So every change comes first, and then all syncs.

    def _settle(self, fd: int, mode: int) -> None:
        """Give a file or folder the mode that it keeps, and its readers.

        What was moved here, or made in a folder whose mode the job has set, is of another group.
        """
        if self._readers is None or os.fstat(fd).st_gid == self._readers:
            os.fchmod(fd, mode)
            return
        own = os.getegid()
        os.setresgid(-1, self._readers, -1)
        try:
            os.fchown(fd, -1, self._readers)
            os.fchmod(fd, mode)
        finally:
            os.setresgid(-1, own, -1)

    def _close_file(self, fd: int, size: int, mode: int) -> None:
        self._settle(fd, mode)
        if not size:
            os.close(fd)
            return
        start_writing(fd)
        self._unsynced_files.append(fd)
        if len(self._unsynced_files) >= _OPEN_AT_ONCE:
            self._sync()

    def _keep_folder(self, fd: int, *, is_empty: bool = False) -> None:
        if is_empty:
            # It has nothing to lose: that it exists is its parent's to keep.
            os.close(fd)
            return
        self._unsynced_folders.append(fd)
        if len(self._unsynced_folders) >= _OPEN_AT_ONCE:
            self._sync()

    def _sync(self) -> None:
        for sync, fds in (
            (os.fdatasync, self._unsynced_files),
            (os.fsync, self._unsynced_folders),
        ):
            while fds:
                sync(fds[-1])
                os.close(fds.pop())

    def close(self) -> None:
        """Let go of what a failed sealing left open."""
        for fds in (self._unsynced_files, self._unsynced_folders):
            while fds:
                os.close(fds.pop())


def _encode(value: object) -> str:
    """Return a value as JSON; the encoder takes twenty times as long for these two kinds."""
    if value is None:
        return "null"
    return str(value) if type(value) is int else _encoder.encode(value)


def _list(fd: int) -> dict[bytes, str]:
    """Return the entries of an open folder with their kinds, in order of their names."""
    kinds: dict[bytes, str] = {}
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                kind = _FILE_KIND
            elif entry.is_dir(follow_symlinks=False):
                kind = _FOLDER
            else:
                kind = _OTHER
            kinds[os.fsencode(entry.name)] = kind
    return dict(sorted(kinds.items()))


def _open_folder(parent: int, name: bytes) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=parent)
    except PermissionError:
        set_mode(name, 0o700, parent)
        return os.open(name, DIRECTORY, dir_fd=parent)


def _open_file(folder: int, name: bytes, uid: int) -> int | None:
    """Open a file to be read, even one whose owner may not read it; None: it is another's."""
    try:
        return os.open(name, FILE, dir_fd=folder)
    except PermissionError:
        held = hold(name, folder)
    try:
        about = os.fstat(held)
        # A second name's mode is not ours to change, and without it there is nothing to copy.
        if about.st_uid != uid or about.st_nlink > 1 or not stat.S_ISREG(about.st_mode):
            return None
        set_mode_of(held, 0o600)
        return os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(held)


def _read(folder: int, name: str) -> bytes:
    fd = os.open(name, FILE, dir_fd=folder)
    with open(fd, "rb") as file:
        return file.read()


def _copy_samples(samples: int, target: int) -> None:
    """Copy what the daemon has sent.

    Raises:
        OSError: EFBIG or EINVAL for what no daemon of ours sends.
    """
    size = os.fstat(samples).st_size
    if size > _SAMPLES_MAX:
        raise OSError(errno.EFBIG, "too large for samples")
    if not is_sealed(samples):
        raise OSError(errno.EINVAL, "samples that could still change")
    offset = 0
    while piece := os.pread(samples, _PIECE, offset):
        _write_all(target, piece)
        offset += len(piece)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _hash(fd: int, size: int) -> str:
    if size == 0:
        return _EMPTY
    found = _large_sha256() if size > _LARGE else small_sha256(b"")
    offset = 0
    while piece := os.pread(fd, _PIECE, offset):
        found.update(piece)
        offset += len(piece)
    return str(found.hexdigest())


def _large_sha256() -> Any:
    try:
        from hashlib import sha256
    except ImportError:
        # Replaced by an upgrade under our feet: slower, and as right.
        return small_sha256(b"")
    return sha256()
