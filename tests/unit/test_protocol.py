"""Packets and locks between the daemon, the launcher and the supervisors, on real sockets."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aitbcd.launcher import protocol
from aitbcd.launcher.protocol import PACKET_BYTES, Message

Pair = tuple[socket.socket, socket.socket]


def make_pair() -> Pair:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = make_pair()
    with ours, theirs:
        yield ours, theirs


def open_files() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists()}


def received(sock: socket.socket) -> tuple[Message, list[int]]:
    found = protocol.receive(sock)
    assert found is not None
    return found


def refused(sock: socket.socket) -> str:
    """Return why what comes is no message, having checked that nothing stays open."""
    before = open_files()
    with pytest.raises(ValueError, match="not a message") as error:
        protocol.receive(sock)
    assert open_files() == before
    return str(error.value)


texts = st.text(st.characters(exclude_categories=()))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(texts.filter(lambda name: name != "memfd"), values, max_size=4))
def test_a_message_comes_as_it_was_sent(message: Message) -> None:
    ours, theirs = make_pair()
    with ours, theirs:
        protocol.send(ours, message)
        assert protocol.receive(theirs) == (message, [])


@given(st.binary(max_size=100))
def test_bytes_that_are_no_text_come_through(data: bytes) -> None:
    ours, theirs = make_pair()
    with ours, theirs:
        protocol.send(ours, {"argv": data.decode("utf-8", "surrogateescape")})
        message, _ = received(theirs)
        assert message["argv"].encode("utf-8", "surrogateescape") == data


def test_packets_keep_their_borders(pair: Pair) -> None:
    ours, theirs = pair
    for number in range(5):
        protocol.send(ours, {"number": number})
    ours.close()
    assert [received(theirs)[0]["number"] for _ in range(5)] == list(range(5))
    assert protocol.receive(theirs) is None


@pytest.mark.parametrize("size", [0, PACKET_BYTES - 8, PACKET_BYTES - 7, 3 << 20, 20 << 20])
def test_a_message_of_any_size(pair: Pair, size: int) -> None:
    ours, theirs = pair
    before = open_files()
    protocol.send(ours, {"x": "x" * size})
    assert received(theirs) == ({"x": "x" * size}, [])
    assert open_files() == before


def test_a_packet_is_used_as_far_as_it_goes(pair: Pair) -> None:
    ours, theirs = pair
    assert len(protocol.encode({"x": "x" * (PACKET_BYTES - 8)})) == PACKET_BYTES
    protocol.send(ours, {"x": "x" * (PACKET_BYTES - 8)})
    data, ancillary, _, _ = theirs.recvmsg(1 << 20, 1024)
    assert len(data) == PACKET_BYTES
    assert not ancillary


@pytest.mark.parametrize("size", [1, PACKET_BYTES], ids=["in a packet", "in a memfd"])
def test_descriptors_come_in_order_and_close_on_exec(pair: Pair, size: int, tmp_path: Path) -> None:
    ours, theirs = pair
    fds = []
    for number in range(3):
        (tmp_path / str(number)).write_text(str(number))
        fds.append(os.open(tmp_path / str(number), os.O_RDONLY))
    protocol.send(ours, {"x": "x" * size}, fds)
    protocol.close_all(fds)
    _, came = received(theirs)
    assert [os.read(fd, 10) for fd in came] == [b"0", b"1", b"2"]
    assert not any(os.get_inheritable(fd) for fd in came)
    protocol.close_all(came)


def test_what_was_sent_is_read_also_when_the_sender_did_not_read(pair: Pair) -> None:
    ours, theirs = pair
    protocol.send(theirs, {"unread": 1})
    protocol.send(ours, {"last": "words"})
    ours.close()
    assert received(theirs)[0] == {"last": "words"}
    assert protocol.receive(theirs) is None


def test_nothing_there_is_told_from_the_end(pair: Pair) -> None:
    ours, theirs = pair
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        protocol.receive(theirs)
    ours.close()
    assert protocol.receive(theirs) is None


def test_a_full_socket_takes_all_or_nothing(pair: Pair) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    theirs.setblocking(False)
    for size in (30_000, 100_000):
        sent = fill(ours, size)
        assert sent > 0
        for number in range(sent):
            assert received(theirs)[0]["number"] == number
        with pytest.raises(BlockingIOError):
            protocol.receive(theirs)


def fill(sock: socket.socket, size: int) -> int:
    """Send numbered messages until the socket is full; return how many went."""
    for number in itertools.count():
        try:
            protocol.send(sock, {"number": number, "x": "x" * size})
        except BlockingIOError:
            return number
    raise AssertionError("never full")


GARBAGE = [b"\xff", b"{", b"[]", b"null", b"7", b'"memfd"', b'["memfd"]', b'{"memfd":1}']
#: JSON, but with something around it.
NOT_ALONE = [b"{}{}", b"{} ", b"{}\n", b"{}\0", b" {}", b"\n{}", b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize(
    "packet", [*GARBAGE, b"[" * 60_000, *NOT_ALONE], ids=lambda packet: packet[:12]
)
def test_garbage_is_refused(pair: Pair, packet: bytes) -> None:
    ours, theirs = pair
    ours.send(packet)
    refused(theirs)
    # The connection is not out of step.
    protocol.send(ours, {"next": 1})
    assert received(theirs)[0] == {"next": 1}


def test_the_descriptors_of_garbage_are_closed(pair: Pair) -> None:
    ours, theirs = pair
    with open(os.devnull) as file:
        socket.send_fds(ours, [b"{"], [file.fileno(), file.fileno()])
        refused(theirs)


def test_a_packet_that_is_too_large_is_refused(pair: Pair) -> None:
    ours, theirs = pair
    ours.send(json.dumps({"x": "x" * PACKET_BYTES}).encode())
    assert "larger than the protocol allows" in refused(theirs)


def test_too_many_descriptors_are_refused_and_closed(pair: Pair) -> None:
    ours, theirs = pair
    with open(os.devnull) as file:
        socket.send_fds(ours, [b"{}"], [file.fileno()] * (protocol.MAX_FDS + 1))
        assert "larger than the protocol allows" in refused(theirs)


def test_a_memfd_that_its_sender_can_still_change_is_refused(pair: Pair) -> None:
    ours, theirs = pair
    shrinks = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW
    for seals in (0, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, shrinks):
        memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.write(memory, b"{}")
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        socket.send_fds(ours, [b'{"memfd":1}'], [memory])
        os.close(memory)
        assert "not sealed" in refused(theirs)


def test_a_file_is_no_memfd(pair: Pair, tmp_path: Path) -> None:
    ours, theirs = pair
    (tmp_path / "file").write_text("{}")
    with (tmp_path / "file").open() as file:
        socket.send_fds(ours, [b'{"memfd":1}'], [file.fileno()])
        refused(theirs)


@pytest.mark.parametrize("content", [b"", b"[]", b"{"], ids=["nothing", "a list", "half a message"])
def test_a_memfd_without_a_message_is_refused(pair: Pair, content: bytes) -> None:
    ours, theirs = pair
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(memory, content)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
    with open(os.devnull) as file:
        socket.send_fds(ours, [b'{"memfd":1}'], [file.fileno(), memory])
    os.close(memory)
    refused(theirs)


def test_the_peer_is_who_the_kernel_says(pair: Pair) -> None:
    assert protocol.peer_uid(pair[0]) == os.getuid()


def test_a_socket_is_reached_however_long_its_path_is(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(protocol.address(fd, "sock"))
        listener.listen()
        client.connect(protocol.address(fd, "sock"))
    assert (folder / "sock").exists()
    os.close(fd)


# -- locks ------------------------------------------------------------------------------------

#: Reports over its standard output what another process sees of a lock.
ASK = """
import os, sys
sys.path.append(sys.argv[1])
from aitbcd.launcher import protocol
for line in sys.stdin:
    fd = os.open(sys.argv[2], os.O_RDWR)
    seen = protocol.is_locked(fd), protocol.try_lock(fd)
    os.close(fd)
    print(*seen, flush=True)
"""


class Watcher:
    """Another process, which looks at a lock and lets go of it."""

    def __init__(self, path: Path) -> None:
        root = Path(protocol.__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", ASK, root, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sees(self) -> tuple[bool, bool]:
        """Return whether it is locked, and whether it could be taken."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        is_locked, is_taken = self.process.stdout.readline().split()
        return is_locked == "True", is_taken == "True"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "lock"
    made.touch()
    return made


@pytest.fixture
def watcher(path: Path) -> Iterator[Watcher]:
    made = Watcher(path)
    with made.process:
        yield made


FREE, HELD = (False, True), (True, False)


def test_a_lock_is_seen_by_others_and_goes_with_its_descriptor(
    path: Path, watcher: Watcher
) -> None:
    assert watcher.sees() == FREE
    fd = os.open(path, os.O_RDWR)
    assert protocol.try_lock(fd)
    assert watcher.sees() == HELD
    os.close(fd)
    assert watcher.sees() == FREE


def test_a_stray_close_does_not_drop_a_lock(path: Path, watcher: Watcher) -> None:
    """As it does with the locks of POSIX."""
    fd = os.open(path, os.O_RDWR)
    assert protocol.try_lock(fd)
    path.read_bytes()
    os.close(os.dup(fd))
    assert watcher.sees() == HELD
    os.close(fd)


def test_two_open_files_of_one_process_are_two(path: Path) -> None:
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    assert protocol.try_lock(first)
    assert protocol.is_locked(second)
    assert not protocol.try_lock(second)
    # The holder itself has nobody in its way, and may ask again.
    assert not protocol.is_locked(first)
    assert protocol.try_lock(first)
    protocol.close_all([first, second])


def test_a_child_inherits_a_lock_and_keeps_it(path: Path, watcher: Watcher) -> None:
    fd = os.open(path, os.O_RDWR)
    assert protocol.try_lock(fd)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[fd]) as child:
        os.close(fd)
        assert watcher.sees() == HELD
        assert child.stdin
        child.stdin.close()
        child.wait()
        assert watcher.sees() == FREE


def test_a_lock_travels_with_its_descriptor(path: Path, watcher: Watcher, pair: Pair) -> None:
    ours, theirs = pair
    fd = os.open(path, os.O_RDWR)
    assert protocol.try_lock(fd)
    protocol.send(ours, {}, [fd])
    os.close(fd)
    assert watcher.sees() == HELD
    _, [came] = received(theirs)
    assert watcher.sees() == HELD
    os.close(came)
    assert watcher.sees() == FREE


def test_a_read_lock_does_not_count(path: Path) -> None:
    reader, other = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    flock = protocol._FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(reader, fcntl.F_OFD_SETLK, flock)
    assert not protocol.is_locked(other)
    protocol.close_all([reader, other])


def test_a_lock_is_asked_for_without_the_right_to_write(path: Path) -> None:
    holder, reader = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    assert not protocol.is_locked(reader)
    assert protocol.try_lock(holder)
    assert protocol.is_locked(reader)
    protocol.close_all([holder, reader])
