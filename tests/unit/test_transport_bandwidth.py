"""The measure of what this node can send, on a clock of our own; and once over a socket that is read slowly."""

from __future__ import annotations

import asyncio
import random
import socket
import time

from p2pnode.transport.bandwidth import SendMeter
from p2pnode.transport.framing import FrameWriter

KIB, MIB = 1 << 10, 1 << 20


class Line:
    """A meter whose time passes as its line is slow."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meter = SendMeter(lambda: self.now)

    def send(self, size: int, rate: float, step: int = 16 * KIB) -> None:
        """A busy period: `size` bytes at `rate`, in pieces."""
        self.meter.wait()
        self.pieces(size, rate, step)
        self.meter.go()

    def pieces(self, size: int, rate: float, step: int = 16 * KIB) -> None:
        while size > 0:
            self.now += min(step, size) / rate
            self.meter.sent(min(step, size))
            size -= step


def near(rate: int, expected: float) -> bool:
    return abs(rate - expected) < 0.02 * expected


def test_nothing_is_known_until_enough_was_sent() -> None:
    line = Line()
    assert line.meter.rate() == 0
    for _ in range(1000):
        line.meter.sent(MIB)  # into a buffer, nobody had to wait
        line.send(300, 5.0, 300)  # a tiny frame
    assert line.meter.rate() == 0
    line.send(64 * KIB, 3e6)
    assert near(line.meter.rate(), 3e6)


def test_idle_time_does_not_count() -> None:
    line = Line()
    for _ in range(5):
        line.send(2 * MIB, 8e6)
        line.now += 1000
    assert near(line.meter.rate(), 8e6)


def test_it_follows_a_line_that_changes() -> None:
    line = Line()
    line.send(30 * MIB, 50e6)
    line.send(2 * MIB, 1e6)
    assert near(line.meter.rate(), 50e6), "not at once"
    line.send(14 * MIB, 1e6)
    assert near(line.meter.rate(), 1e6)


def test_a_buffer_that_takes_the_first_bytes_at_once_is_outvoted() -> None:
    line = Line()
    for _ in range(4):
        line.meter.wait()
        line.pieces(2 * MIB, 4e9)
        line.pieces(6 * MIB, 2e6)
        line.meter.go()
        line.now += 60
    assert near(line.meter.rate(), 2e6)


def test_writers_share_one_line_and_a_peer_that_crawls_is_outvoted() -> None:
    line = Line()
    for _ in range(3):
        line.meter.wait()  # the one that crawls
        line.meter.wait()
        line.meter.wait()
        line.pieces(6 * MIB, 20e6)  # of all three together
        line.meter.go()
        line.meter.go()
        line.pieces(1 * MIB, 1000.0)
        line.meter.go()
    assert near(line.meter.rate(), 20e6)
    line.meter.wait()
    line.now += 20
    line.meter.go()  # one that read nothing, and was dropped
    assert near(line.meter.rate(), 20e6)


def test_any_order_of_events_gives_a_number() -> None:
    chance = random.Random(5)
    for _ in range(50):
        line = Line()
        waiting = 0
        for _ in range(300):
            line.now += chance.choice((0.0, 1e-6, 0.1))
            if chance.random() < 0.3 and waiting < 5:
                line.meter.wait()
                waiting += 1
            elif chance.random() < 0.3 and waiting:
                line.meter.go()
                waiting -= 1
            else:
                line.meter.sent(chance.choice((0, 1, 100_000, MIB)))
        assert line.meter.rate() >= 0


def test_a_socket_that_is_read_slowly() -> None:
    async def test() -> None:
        near_end, far_end = socket.socketpair()
        for end in (near_end, far_end):
            end.setblocking(False)
        meter = SendMeter()
        writer = FrameWriter(near_end, bytes(16), lambda challenge: None, lambda: None, meter)
        read, began = 0, time.monotonic()

        async def reading() -> None:
            nonlocal read
            while True:
                read += len(await asyncio.get_running_loop().sock_recv(far_end, 32 * KIB))
                await asyncio.sleep(0.002)

        task = asyncio.create_task(reading())
        async with asyncio.timeout(20):
            for _ in range(64):
                await writer.put(bytes(128 * KIB))
            while writer.queued:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        rate = read / (time.monotonic() - began)
        assert 0.5 * rate < meter.rate() < 2 * rate
        await writer.put(bytes(MIB))  # more than the socket takes: it breaks while it waits
        writer.close()
        assert meter._waiting == 0
        task.cancel()
        far_end.close()

    asyncio.run(test())
