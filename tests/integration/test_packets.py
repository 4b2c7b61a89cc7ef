"""What the daemon sends to who does not read yet: nothing is lost, nor a descriptor left open."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from aitbcd.launcher import protocol
from aitbcd.model import JobState
from aitbcd.runs import _Packets
from tests.integration.engines import engine_in, until
from tests.service import DEADLINE_S, no_descriptors


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


def test_what_cannot_be_sent_for_want_of_a_descriptor_ends_the_connection() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        heard: list[protocol.Message] = []
        has_ended = asyncio.Event()
        packets = _Packets(ours, lambda message, fds: heard.append(message), has_ended.set)
        protocol.send(theirs, {"said": "before"})
        with no_descriptors():
            packets.send({"padding": "x" * 2 * protocol.PACKET_BYTES})
        packets.send({"rid": 2})
        async with asyncio.timeout(DEADLINE_S):
            await has_ended.wait()
        # Both sides know, and what was said before is heard.
        assert heard == [{"said": "before"}]
        assert not packets.is_open
        assert protocol.receive(theirs) is None
        theirs.close()

    asyncio.run(scenario())


def test_a_job_whose_sealing_cannot_be_asked_for_is_found_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    async def is_given_up() -> bool:
        return "a connection is given up: " in caplog.text

    async def scenario() -> None:
        async with engine_in(tmp_path) as rig:
            # What it is called with is part of what is to be sealed.
            large = "x" * (protocol.PACKET_BYTES + 1)
            job = await rig.submit("sh", "-c", f"read x < {gate}", large)
            await rig.reached(job, JobState.RUNNING)
            gate.write_text("\n")
            with no_descriptors():
                await until("its end is heard, and its sealing cannot be asked for", is_given_up)
            assert (await rig.ended(job)).status is JobState.COMPLETED

    asyncio.run(scenario())
