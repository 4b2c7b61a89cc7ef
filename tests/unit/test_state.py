"""Which file system holds a folder, read from mountinfo as the kernel writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aitbcd import state
from aitbcd.errors import StartupError
from aitbcd.paths import resolve
from aitbcd.state import NETWORK_FILE_SYSTEMS, StateFolder, file_system

MOUNTINFO = r"""
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
40 22 0:35 / /home rw,relatime shared:20 master:3 - nfs4 server:/export/home rw,vers=4.2
41 40 0:36 / /home/local rw - xfs /dev/sdb1 rw
42 22 0:37 / /mnt/with\040space rw - cifs //server/share rw
43 22 0:38 / /scratch rw - ext4 /dev/sdc1 rw
44 43 0:39 / /scratch rw - fuse.sshfs host:/x rw
45 22 0:40 / /homestead rw - btrfs /dev/sdd1 rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/aitbcd", "ext4"),
        ("/home/ada/.local/state/aitbcd", "nfs4"),
        ("/home", "nfs4"),
        ("/home/local/state", "xfs"),
        ("/homestead/x", "btrfs"),
        ("/mnt/with space/state", "cifs"),
        ("/scratch/state", "fuse.sshfs"),
    ],
)
def test_the_innermost_and_last_mount_counts(path: str, kind: str) -> None:
    assert file_system(Path(path), MOUNTINFO) == kind


def test_links_are_followed_to_the_file_system_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mountinfo = f"{MOUNTINFO}\n50 22 0:50 / {tmp_path.resolve()}/far rw - nfs host:/x rw"
    assert file_system(tmp_path / "near/state", mountinfo) == "nfs"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph"])
def test_network_file_systems_are_known_by_name(kind: str) -> None:
    assert kind in NETWORK_FILE_SYSTEMS


def test_a_state_folder_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    # There is none to be had in a test: the one that is there counts as one.
    monkeypatch.setattr(state, "NETWORK_FILE_SYSTEMS", {file_system(tmp_path, mountinfo)})
    where = resolve(state=tmp_path / "state", environ={}, uid=0)
    with StateFolder(where) as folder, pytest.raises(StartupError) as caught:
        folder.check()
    assert "on a network file system" in caught.value.detail
    assert str(tmp_path) in caught.value.detail
    assert "--state-dir" in str(caught.value.hint)
    assert not where.results.exists()
