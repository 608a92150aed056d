"""Channels over plain socket pairs: caps and deadlines, with the deadlines made short."""

from __future__ import annotations

import asyncio
import socket

import pytest

from p2pnode.errors import Unreachable
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import limits
from p2pnode.transport.channels import Channels, Hooks
from p2pnode.transport.framing import FrameReader

US, THEM = (PeerIdentity.from_seed(bytes([n]) * 32).peer_id for n in (1, 2))


class Side:
    """One node's channels; what it opens arrives at `other`."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.hooks = Hooks()
        self.other: Side | None = None
        self.near: set[PeerId] = set()
        self.gone: list[PeerId] = []
        self.violations: list[tuple[PeerId, str]] = []
        self.hooks.gone.append(self.gone.append)
        self.hooks.violations.append(lambda peer, clause: self.violations.append((peer, clause)))
        self.channels = Channels(me.key[:16], self.hooks, self.open, self.connected, lambda peer, challenge: None)

    async def connected(self) -> set[PeerId]:
        return self.near

    async def open(self, peer: PeerId, channel: str) -> socket.socket:
        if self.other is None or peer not in self.near:
            raise Unreachable("nobody there")
        near, far = socket.socketpair()
        near.setblocking(False)
        other = self.other

        def prefix(reader: FrameReader, view: memoryview) -> int:
            if len(view) < limits.INSTANCE_BYTES:
                return 0
            other.channels.instance_read(self.me, reader, bytes(view[: limits.INSTANCE_BYTES]))
            return limits.INSTANCE_BYTES

        reader = FrameReader(prefix)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: reader, far)
        other.channels.accept(self.me, channel, reader)
        return near


def pair() -> tuple[Side, Side]:
    one, other = Side(US), Side(THEM)
    one.other, other.other = other, one
    one.near, other.near = {THEM}, {US}
    one.channels.start()
    other.channels.start()
    return one, other


async def until(condition: object, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_frame_that_does_not_come_in_closes_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAME_STALL_SECONDS", 0.2)

    async def test() -> None:
        one, other = pair()
        got: list[bytes] = []

        async def take(peer: PeerId, frame: bytes) -> None:
            got.append(frame)

        other.hooks.frames["x"] = take
        sock = await one.open(THEM, "x")
        sock.send(bytes(16) + (1).to_bytes(4, "big") + b"a" + (100).to_bytes(4, "big") + b"half")
        await until(lambda: other.violations)
        assert other.violations == [(US, "frame-stalled")]
        assert got == [b"a"]
        assert other.gone == [], "a closed channel is not a gone peer"
        idle = await one.open(THEM, "x")
        idle.send(bytes(16) + (1).to_bytes(4, "big") + b"b")
        await asyncio.sleep(1.5)
        assert len(other.violations) == 1, "an idle channel does no harm"
        sock.close()
        idle.close()
        await one.channels.stop(0.1)
        await other.channels.stop(0.1)

    asyncio.run(test())


def test_a_reader_that_stalls_is_dropped_but_not_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITE_STALL_SECONDS", 0.3)

    async def test() -> None:
        one, other = pair()
        gate = asyncio.Event()

        async def wait(peer: PeerId, frame: bytes) -> None:
            await gate.wait()

        other.hooks.frames["x"] = wait

        async def push() -> None:
            while True:
                await one.channels.send(THEM, "x", bytes(1 << 19))

        pushing = asyncio.create_task(push())
        with pytest.raises(Unreachable):
            async with asyncio.timeout(5):
                await pushing
        gate.set()
        assert one.gone == []
        await one.channels.send(THEM, "x", b"opened anew")
        await one.channels.stop(1)
        await other.channels.stop(0.1)

    asyncio.run(test())


def test_streams_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STREAMS_PER_PEER", 3)

    async def test() -> None:
        one, other = pair()

        async def take(peer: PeerId, frame: bytes) -> None:
            pass

        for name in "abcde":
            other.hooks.frames[name] = take
        socks = [await one.open(THEM, name) for name in "abcd"]
        await asyncio.sleep(0.05)
        assert other.violations == [(US, "streams")]
        for sock in socks:
            sock.close()
        await asyncio.sleep(0.05)
        await one.channels.send(THEM, "e", b"room again")
        await asyncio.sleep(0.05)
        assert len(other.violations) == 1
        await one.channels.stop(0.1)
        await other.channels.stop(0.1)

    asyncio.run(test())


def test_a_channel_opened_again_keeps_the_order_and_takes_the_place_of_the_first() -> None:
    async def test() -> None:
        one, other = pair()
        got: list[bytes] = []

        async def slow(peer: PeerId, frame: bytes) -> None:
            await asyncio.sleep(0.05)
            got.append(frame)

        other.hooks.frames["x"] = slow
        first, second = await one.open(THEM, "x"), await one.open(THEM, "x")
        second.send(bytes(16) + (1).to_bytes(4, "big") + b"2")
        first.send(bytes(16) + (1).to_bytes(4, "big") + b"1")
        await asyncio.sleep(0.3)
        assert got in ([b"1", b"2"], [b"2"]), "what the first brought before it was closed comes first"
        assert other.channels.instances(US) == {bytes(16)}
        first.close()
        second.close()
        await one.channels.stop(0.1)
        await other.channels.stop(0.1)

    asyncio.run(test())


def test_gone_is_told_once_and_when_no_stream_is_open_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCH_SECONDS", 0.1)

    async def test() -> None:
        one, other = pair()

        async def take(peer: PeerId, frame: bytes) -> None:
            pass

        for name in "ab":
            other.hooks.frames[name] = take
            await one.channels.send(THEM, name, b"?")
        await asyncio.sleep(0.05)
        other.near = set()
        one.near = set()
        one.channels.abort()
        await until(lambda: other.gone)
        await asyncio.sleep(0.3)
        assert other.gone == [US]

        other.near = {US}
        one.near = {THEM}
        sock = await one.open(THEM, "a")
        sock.send(bytes(16))
        await asyncio.sleep(0.05)
        sock.close()  # merely a channel
        await asyncio.sleep(1.6)
        assert other.gone == [US]
        other.near = set()  # and now the connection, with no stream to show it
        await until(lambda: len(other.gone) == 2)
        await one.channels.stop(0.1)
        await other.channels.stop(0.1)

    asyncio.run(test())
