"""Frames: whatever way the bytes are cut up, and whatever they claim."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pnode.errors import Unreachable
from p2pnode.transport import framing
from p2pnode.transport.bandwidth import SendMeter
from p2pnode.transport.base import MAX_FRAME_BYTES
from p2pnode.transport.framing import END, FrameReader, FrameWriter
from p2pnode.transport.limits import INSTANCE_BYTES, QUEUE_BYTES, READ_AHEAD_BYTES

INSTANCE = bytes(range(INSTANCE_BYTES))


def prefix(reader: FrameReader, view: memoryview) -> int:
    if len(view) < INSTANCE_BYTES:
        return 0
    if bytes(view[:INSTANCE_BYTES]) != INSTANCE:
        raise ValueError("stream-preamble")
    return INSTANCE_BYTES


def feed(reader: FrameReader, data: bytes, cuts: list[int]) -> None:
    """Hand `data` over in pieces, as an event loop does."""
    at = turn = 0
    while at < len(data):
        view = reader.get_buffer(-1)
        assert len(view), "room for at least one byte"
        size = min(len(view), len(data) - at, max(1, cuts[turn % len(cuts)]))
        view[:size] = data[at : at + size]
        reader.buffer_updated(size)
        at, turn = at + size, turn + 1


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


async def taken(reader: FrameReader) -> list[bytes]:
    out = []
    while reader._frames:
        got = await reader.next_frame()
        assert got is not None
        out.append(got)
    return out


sizes = st.one_of(
    st.integers(0, 40), st.integers(0, 200_000), st.sampled_from([65_532, 65_536, 1 << 18, MAX_FRAME_BYTES])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=8), st.lists(st.integers(1, 300_000), min_size=1, max_size=6))
@example(lengths=[65532, 0, 0, 1048576, 0, 0, 0], cuts=[300000])  # a frame begins in the middle of a full buffer
def test_frames_survive_any_cutting(lengths: list[int], cuts: list[int]) -> None:
    async def test() -> None:
        bodies = [bytes([n + 1]) * length for n, length in enumerate(lengths)]
        reader = FrameReader(prefix)
        feed(reader, INSTANCE + b"".join(map(frame, bodies)), cuts)
        assert await taken(reader) == bodies
        assert reader.began == 0.0
        assert reader.received == sum(lengths)

    asyncio.run(test())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000), st.lists(st.integers(1, 64), min_size=1, max_size=6))
def test_rubbish_never_raises(data: bytes, cuts: list[int]) -> None:
    async def test() -> None:
        reader = FrameReader(prefix)
        feed(reader, data, cuts)
        feed(reader, INSTANCE + data, cuts)
        second = FrameReader(prefix)
        feed(second, INSTANCE + data, cuts)

    asyncio.run(test())


def test_a_length_beyond_the_limit_allocates_nothing() -> None:
    async def test() -> None:
        reader = FrameReader(prefix)
        feed(reader, INSTANCE + frame(b"good") + (MAX_FRAME_BYTES + 1).to_bytes(4, "big") + b"x", [7])
        assert reader.fault == "frame-size"
        assert reader._frame is None
        assert len(reader._buffer) == framing._BUFFER_BYTES
        assert await reader.next_frame() == b"good"
        assert await reader.next_frame() is None

    asyncio.run(test())


def test_a_promise_of_a_large_frame_costs_little_memory() -> None:
    reader = FrameReader(prefix)
    feed(reader, INSTANCE + MAX_FRAME_BYTES.to_bytes(4, "big") + b"x" * 1000, [5000])
    held = len(reader._buffer) + len(reader._frame or b"")
    assert held <= (64 << 10) + (256 << 10)
    assert reader.began > 0


def test_what_comes_before_the_frames() -> None:
    async def test() -> None:
        reader = FrameReader(prefix)
        feed(reader, bytes(5000), [100])
        assert reader.fault == "stream-preamble"
        endless = FrameReader(lambda reader, view: 0)
        feed(endless, bytes(5000), [100])
        assert endless.fault == "stream-preamble"

    asyncio.run(test())


def test_the_end_comes_after_all_frames_and_is_final() -> None:
    async def test() -> None:
        reader = FrameReader(prefix)
        feed(reader, INSTANCE + frame(b"last") + END + frame(b"never"), [1])
        assert reader.ended
        assert await reader.next_frame() == b"last"
        assert await reader.next_frame() is None

    asyncio.run(test())


class Pair:
    """A writer and the far end of its socket."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.probes: list[bytes] = []
        self.meter = SendMeter()
        self.broken = 0
        self.writer = FrameWriter(self.near, INSTANCE, self.probes.append, self.count, self.meter)

    def count(self) -> None:
        self.broken += 1

    async def read(self, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(5):
            while len(data) < size:
                data += await asyncio.get_running_loop().sock_recv(self.far, size - len(data))
        return data

    def close(self) -> None:
        self.writer.close()
        self.far.close()


def test_the_writer_waits_when_its_queue_is_full_and_gives_up_when_broken() -> None:
    async def test() -> None:
        pair = Pair()
        body = bytes(1 << 18)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                while True:
                    await pair.writer.put(body)
        assert QUEUE_BYTES - len(body) <= pair.writer.queued <= QUEUE_BYTES
        assert pair.writer.blocked_since > 0
        waiting = [asyncio.create_task(pair.writer.put(bytes([n]))) for n in range(3)]
        waiting.insert(0, asyncio.create_task(pair.writer.put(body)))
        await asyncio.sleep(0.05)
        pair.far.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert any(isinstance(result, Unreachable) for result in results)
        with pytest.raises(Unreachable):
            await pair.writer.put(b"")
        assert pair.broken == 1
        pair.close()

    asyncio.run(test())


def test_the_writer_sends_empty_frames_and_leaves_politely() -> None:
    async def test() -> None:
        pair = Pair()
        for body in (b"", b"a", b""):
            await pair.writer.put(body)
        expected = INSTANCE + frame(b"") + frame(b"a") + frame(b"")
        assert await pair.read(len(expected)) == expected
        assert pair.writer.queued == 0
        finishing = asyncio.create_task(pair.writer.finish(5))
        assert await pair.read(4) == END
        assert not finishing.done()
        pair.far.send(framing.PROBE + bytes(32) + framing.DONE)
        async with asyncio.timeout(1):
            await finishing
        assert pair.probes == [bytes(32)]
        assert pair.broken == 1
        pair.close()

    asyncio.run(test())


def test_the_writer_bears_no_rubbish_from_the_reader() -> None:
    async def test() -> None:
        pair = Pair()
        pair.far.send(b"\x07")
        async with asyncio.timeout(1):
            await pair.writer._done.wait()
        assert pair.writer.broken
        pair.close()

    asyncio.run(test())


def test_reading_pauses_while_frames_wait() -> None:
    async def test() -> None:
        pair = Pair()
        reader = FrameReader(prefix)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: reader, pair.far)
        body = bytes(1 << 17)
        for _ in range(16):
            await pair.writer.put(body)
        await asyncio.sleep(0.2)
        assert reader.paused
        assert READ_AHEAD_BYTES <= len(reader._frames) << 17 <= READ_AHEAD_BYTES + (1 << 19)
        for _ in range(16):
            async with asyncio.timeout(2):
                assert await reader.next_frame() == body
        assert not reader.paused
        pair.writer.close()
        async with asyncio.timeout(2):
            assert await reader.next_frame() is None

    asyncio.run(test())
