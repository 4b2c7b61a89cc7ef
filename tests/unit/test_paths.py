from __future__ import annotations

import os
from pathlib import Path

from aitbcd.paths import client_sockets, resolve

UID = 54321


def test_root_has_the_systems_paths() -> None:
    where = resolve(environ={"HOME": "/root", "XDG_STATE_HOME": "/x"}, uid=0)
    assert where.state == Path("/var/lib/aitbcd")
    assert where.runtime == Path("/run/aitbcd")
    assert where.config == Path("/etc/aitbcd/aitbcd.toml")
    assert not where.config_is_named


def test_a_user_has_the_xdg_paths(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": str(tmp_path)}
    where = resolve(environ=environ, uid=os.stat(tmp_path).st_uid or UID)
    assert where.state == Path("/s/aitbcd")
    assert where.config == Path("/c/aitbcd/aitbcd.toml")


def test_a_user_without_xdg_variables_has_folders_below_home() -> None:
    where = resolve(environ={"HOME": "/home/a"}, uid=UID)
    assert where.state == Path("/home/a/.local/state/aitbcd")
    assert where.config == Path("/home/a/.config/aitbcd/aitbcd.toml")
    assert where.socket == Path("/home/a/.local/state/aitbcd/runtime/aitbcd.sock")


def test_relative_xdg_paths_are_ignored_as_their_specification_says() -> None:
    environ = {"HOME": "/home/a", "XDG_STATE_HOME": "s", "XDG_RUNTIME_DIR": "r"}
    where = resolve(environ=environ, uid=UID)
    assert where.state == Path("/home/a/.local/state/aitbcd")
    assert where.runtime == where.state / "runtime"


def test_a_runtime_folder_that_vanished_or_is_anothers_is_not_used(tmp_path: Path) -> None:
    somebody_else = os.stat(tmp_path).st_uid + 1
    for runtime in (tmp_path / "gone", tmp_path):
        where = resolve(
            environ={"HOME": "/home/a", "XDG_RUNTIME_DIR": str(runtime)}, uid=somebody_else
        )
        assert where.runtime == where.state / "runtime"


def test_systemds_folders_beat_the_defaults_and_ours_beat_systemds() -> None:
    environ = {
        "STATE_DIRECTORY": "/sd/state:/sd/other",
        "RUNTIME_DIRECTORY": "/sd/run",
        "CONFIGURATION_DIRECTORY": "/sd/etc",
    }
    where = resolve(environ=environ, uid=UID)
    assert where.state == Path("/sd/state")
    assert where.runtime == Path("/sd/run")
    assert where.config == Path("/sd/etc/aitbcd.toml")
    ours = {"AITBCD_STATE_DIR": "/e/s", "AITBCD_RUNTIME_DIR": "/e/r", "AITBCD_CONFIG": "/e/c"}
    where = resolve(environ=environ | ours, uid=UID)
    assert where[:3] == (Path("/e/s"), Path("/e/r"), Path("/e/c"))
    assert where.config_is_named


def test_the_command_line_beats_everything() -> None:
    ours = {"AITBCD_STATE_DIR": "/e/s", "AITBCD_RUNTIME_DIR": "/e/r", "AITBCD_CONFIG": "/e/c"}
    where = resolve(state="/a/s", runtime="/a/r", config="/a/c", environ=ours, uid=0)
    assert where[:3] == (Path("/a/s"), Path("/a/r"), Path("/a/c"))


def test_relative_paths_become_absolute_where_they_were_said(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert resolve(state="here", environ={}, uid=0).state == tmp_path.resolve() / "here"
    finally:
        os.chdir(before)


def test_all_files_of_a_daemon_are_below_its_two_folders() -> None:
    where = resolve(state="/s", runtime="/r", environ={}, uid=0)
    assert where.db == Path("/s/queue.db")
    assert where.package("job_x") == Path("/s/results/job_x")
    assert where.building("job_x") == Path("/s/results/.job_x")
    assert where.run == Path("/s/run")
    assert where.socket == Path("/r/aitbcd.sock")


def test_a_client_looks_at_its_users_sockets_before_the_systems() -> None:
    found = client_sockets({"HOME": "/home/a"}, UID)
    assert found == [
        "/home/a/.local/state/aitbcd/runtime/aitbcd.sock",
        f"/run/user/{UID}/aitbcd/aitbcd.sock",
        "/run/aitbcd/aitbcd.sock",
    ]


def test_a_client_finds_the_daemon_of_a_login_session_from_outside_of_it(tmp_path: Path) -> None:
    uid = os.stat(tmp_path).st_uid or UID
    inside = resolve(environ={"HOME": "/h", "XDG_RUNTIME_DIR": f"/run/user/{uid}"}, uid=uid)
    assert str(inside.socket) in client_sockets({"HOME": "/h"}, uid)


def test_a_named_socket_is_the_only_one() -> None:
    assert client_sockets({"AITBC_SOCKET": "/x.sock", "HOME": "/h"}, UID) == ["/x.sock"]


def test_root_looks_at_the_systems_socket() -> None:
    assert client_sockets({"HOME": "/root"}, 0) == ["/run/aitbcd/aitbcd.sock"]


def test_a_client_asks_no_daemon_in_a_folder_of_another_user(tmp_path: Path) -> None:
    """``su -m`` and ``sudo -E`` keep HOME and the rest."""
    runtime = tmp_path / ".local/state/aitbcd/runtime"
    runtime.mkdir(parents=True)
    own = os.stat(runtime).st_uid
    environ = {"HOME": str(tmp_path)}
    if own:
        assert f"{runtime}/aitbcd.sock" in client_sockets(environ, own)
    assert f"{runtime}/aitbcd.sock" not in client_sockets(environ, own + 1)
    link = tmp_path / "other/.local/state/aitbcd"
    link.mkdir(parents=True)
    (link / "runtime").symlink_to("/nonexistent")
    environ = {"HOME": str(tmp_path / "other")}
    assert f"{link}/runtime/aitbcd.sock" not in client_sockets(environ, own + 1)
