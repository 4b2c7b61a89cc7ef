"""What is known of GPUs over restarts: which there are, wishes, XID errors, who was told.

One small file, replaced as a whole. What a fault left behind counts in the boot in which it
happened; a wish counts until it is taken back.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from aitbcd.devices import Gpu, GpuState, MigInstance
from aitbcd.errors import StateError, StorageFull

FORMAT = 1
#: Of one GPU; the latest are kept.
XIDS_MAX = 16
TOLD_MAX = 64


class Drain(Struct, frozen=True):
    """Somebody's wish."""

    reason: str
    user: str
    at: int


class Xid(Struct, frozen=True):
    at: int
    xid: int


class Device(Struct, frozen=True):
    """A GPU, or a MIG device, that was there when all could be seen."""

    index: int
    uuid: str
    name: str
    memory_total: int
    bus_id: str | None = None
    mig: MigInstance | None = None

    @classmethod
    def of(cls, gpu: Gpu) -> Device:
        return cls(gpu.index, gpu.uuid, gpu.name, gpu.memory_total, gpu.bus_id, gpu.mig)

    def lost(self, reason: str) -> Gpu:
        """Return it as one that cannot be seen."""
        return Gpu(
            self.index, self.uuid, self.name, self.bus_id, self.memory_total, 0, GpuState.LOST,
            reason, mig=self.mig,
        )  # fmt: skip


class Record(Struct, frozen=True):
    """What is on disk; everything by UUID."""

    format: int = FORMAT
    drained: dict[str, Drain] = field(default_factory=dict)
    #: All GPUs, as they were seen last, and in which boot; None: never.
    devices: tuple[Device, ...] | None = None
    devices_boot_id: str = ""
    #: The boot that the rest is about.
    boot_id: str = ""
    xids: dict[str, tuple[Xid, ...]] = field(default_factory=dict)
    #: Processes of others, by GPU, whose users were told.
    told: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: Faults that an administrator has seen and lives with.
    accepted: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Drains:
    def __init__(self, path: Path, boot_id: str) -> None:
        """Read the file.

        Raises:
            StateError: it cannot be read, or is of a newer release.
        """
        self._path = path
        record = _read(path)
        if record.boot_id != boot_id:
            record = Record(
                drained=record.drained,
                devices=record.devices,
                devices_boot_id=record.devices_boot_id,
                boot_id=boot_id,
            )
        self._record = record

    @property
    def devices(self) -> tuple[Device, ...] | None:
        """Return all GPUs, as they were seen last; None where they never were."""
        return self._record.devices

    @property
    def are_devices_of_this_boot(self) -> bool:
        return self._record.devices_boot_id == self._record.boot_id

    def note_devices(self, devices: tuple[Device, ...]) -> None:
        """Raises StorageFull: nothing was changed."""
        if devices != self.devices or not self.are_devices_of_this_boot:
            boot_id = self._record.boot_id
            self._write(replace(self._record, devices=devices, devices_boot_id=boot_id))

    def drained(self, uuid: str) -> Drain | None:
        return self._record.drained.get(uuid)

    def xids(self, uuid: str) -> tuple[Xid, ...]:
        """Return the XID errors of this boot, the latest last."""
        return self._record.xids.get(uuid, ())

    def accepted(self, uuid: str) -> tuple[str, ...]:
        return self._record.accepted.get(uuid, ())

    def was_told(self, uuid: str, mark: str) -> bool:
        return mark in self._record.told.get(uuid, ())

    def note_told(self, uuid: str, mark: str) -> None:
        """Raises StorageFull: nothing was changed."""
        told = (*self._record.told.get(uuid, ()), mark)[-TOLD_MAX:]
        self._write(replace(self._record, told=self._record.told | {uuid: told}))

    def drain(self, uuid: str, drain: Drain) -> None:
        """Raises StorageFull: nothing was changed."""
        self._write(replace(self._record, drained=self._record.drained | {uuid: drain}))

    def resume(self, uuid: str, faults: tuple[str, ...]) -> None:
        """Forget the wish, and accept these faults.

        Raises:
            StorageFull: nothing was changed.
        """
        drained = {key: drain for key, drain in self._record.drained.items() if key != uuid}
        accepted = dict(self._record.accepted)
        if faults:
            accepted[uuid] = faults
        self._write(replace(self._record, drained=drained, accepted=accepted))

    def add_xid(self, uuid: str, xid: Xid) -> None:
        """Record an XID error; one that was accepted before counts again.

        Raises:
            StorageFull: it counts all the same, until the daemon ends.
        """
        xids = (*self.xids(uuid), xid)[-XIDS_MAX:]
        accepted = {key: said for key, said in self._record.accepted.items() if key != uuid}
        record = replace(self._record, xids=self._record.xids | {uuid: xids}, accepted=accepted)
        self._record = record
        self._write(record)

    def _write(self, record: Record) -> None:
        new = self._path.with_name(self._path.name + ".new")
        try:
            with new.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(msgspec.json.encode(record) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self._path)
            _sync(self._path.parent)
        except OSError as problem:
            raise StorageFull(
                f"{self._path} could not be written: {problem.strerror}",
                hint="make room and try again",
            ) from None
        self._record = record


def _read(path: Path) -> Record:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return Record()
    except OSError as problem:
        raise _unusable(path, f"cannot be read: {problem.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise _unusable(path, f"is not what a daemon wrote: {problem}") from None
    if record.format != FORMAT:
        detail = f"has format {record.format}, and this release knows {FORMAT}"
        raise _unusable(path, detail)
    return record


def _unusable(path: Path, detail: str) -> StateError:
    return StateError(
        f"the list of GPUs, and of those that are drained, {path}, {detail}",
        hint="repair it, or remove it: then no GPU is drained",
    )


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
