"""What the daemon sends to who does not read yet: nothing is lost, nor a descriptor left open."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from aitbcd.launcher import protocol
from aitbcd.runs import _Packets


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_descriptor_waits_with_its_packet_for_who_reads_late() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        packets = _Packets(ours, lambda message, fds: None, lambda: None)
        before = open_files()
        count = 500
        for number in range(count):
            memory = protocol.sealed_memory(b"%d" % number)
            packets.send({"number": number, "padding": "x" * 4096}, [memory])
            os.close(memory)
        assert open_files() > before
        for number in range(count):
            received = await asyncio.to_thread(protocol.receive, theirs)
            assert received is not None
            message, [fd] = received
            assert (message["number"], os.pread(fd, 16, 0)) == (number, b"%d" % number)
            os.close(fd)
        assert open_files() == before
        packets.close()
        theirs.close()

    asyncio.run(scenario())


def test_what_could_not_be_sent_is_let_go_with_the_connection() -> None:
    async def scenario() -> None:
        before = open_files()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        packets = _Packets(ours, lambda message, fds: None, lambda: None)
        for _ in range(500):
            memory = protocol.sealed_memory(b"x")
            packets.send({"padding": "x" * 4096}, [memory])
            os.close(memory)
        packets.close()
        packets.send({}, [0])
        theirs.close()
        assert open_files() == before

    asyncio.run(scenario())
