"""Strangers at work on the transport: slow, endless, many, lying. Each attack is seen to happen, and to be bounded."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable

import pytest

from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import limits, rates
from p2pnode.transport.calls import CallGate
from p2pnode.transport.channels import Channels, Hooks
from p2pnode.transport.clock import SwarmClock
from p2pnode.transport.framing import FrameReader

US, *STRANGERS = (PeerIdentity.from_seed(bytes([n]) * 32).peer_id for n in range(1, 12))
HONEST, ENEMY = STRANGERS[:2]
EMPTY = bytes(4)


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


class Victim:
    """One node's channels, to which anybody opens streams by hand."""

    def __init__(self) -> None:
        self.hooks = Hooks()
        self.violations: list[tuple[PeerId, str]] = []
        self.got: dict[PeerId, int] = {}
        self.hooks.violations.append(lambda peer, clause: self.violations.append((peer, clause)))
        self.channels = Channels(bytes(16), self.hooks, self.nobody, self.everybody, lambda peer, challenge: None)
        self.hooks.frames["x"] = self.take
        self.readers: list[FrameReader] = []
        self.ends: list[socket.socket] = []

    async def nobody(self, peer: PeerId, channel: str) -> socket.socket:
        raise AssertionError("the victim opens nothing")

    async def everybody(self) -> set[PeerId]:
        return set(STRANGERS)

    async def take(self, peer: PeerId, body: bytes) -> None:
        self.got[peer] = self.got.get(peer, 0) + 1

    async def open(self, peer: PeerId, channel: str = "x", preamble: bytes | None = None) -> socket.socket:
        """A stream from `peer`."""
        near, far = socket.socketpair()
        near.setblocking(False)

        def prefix(reader: FrameReader, view: memoryview) -> int:
            if len(view) < limits.INSTANCE_BYTES:
                return 0
            self.channels.instance_read(peer, reader, bytes(view[: limits.INSTANCE_BYTES]))
            return limits.INSTANCE_BYTES

        reader = FrameReader(prefix)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: reader, far)
        self.channels.accept(peer, channel, reader)
        self.readers.append(reader)
        self.ends.append(near)
        near.send(peer.key[:16] if preamble is None else preamble)
        return near

    async def close(self) -> None:
        for end in self.ends:
            end.close()
        await self.channels.stop(0.1)


async def until(condition: Callable[[], bool], seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def pour(end: socket.socket, data: bytes) -> None:
    """Send the same again and again, as fast as it is taken, until it is refused."""
    with contextlib.suppress(OSError):
        while True:
            await asyncio.get_running_loop().sock_sendall(end, data)
            await asyncio.sleep(0)


@pytest.mark.parametrize("what", ["frame", "instance"])
def test_what_comes_byte_by_byte_has_a_deadline(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(limits, "FRAME_SECONDS", 0.6)  # FRAME_STALL_SECONDS is long, and never reached

    async def test() -> None:
        victim = Victim()
        victim.channels.start()
        slow = await victim.open(ENEMY, preamble=None if what == "frame" else b"i")
        honest = await victim.open(HONEST)
        dripped = 0
        if what == "frame":
            slow.send((1000).to_bytes(4, "big"))
        with contextlib.suppress(OSError):
            while dripped < 200:
                slow.send(b"." if what == "frame" or dripped < 10 else b"")
                honest.send(frame(b"x"))
                dripped += 1
                await asyncio.sleep(0.02)
                if victim.violations:
                    break
        assert victim.violations == [(ENEMY, "frame-stalled")]
        assert dripped > 20, "it did drip"
        assert victim.got[HONEST] >= dripped - 2, "nobody else had to wait"
        await victim.close()

    asyncio.run(test())


def test_a_flood_of_empty_frames_fills_no_memory() -> None:
    async def test() -> None:
        victim = Victim()
        gate = asyncio.Event()

        async def wait(peer: PeerId, body: bytes) -> None:
            await gate.wait()

        victim.hooks.frames["x"] = wait
        victim.channels.start()
        end = await victim.open(ENEMY)
        pouring = asyncio.create_task(pour(end, EMPTY * 20_000))
        await until(lambda: victim.readers[0].paused)
        held = len(victim.readers[0]._frames)
        await asyncio.sleep(0.2)
        most = limits.READ_AHEAD_BYTES // limits.FRAME_COST + (384 << 10) // len(EMPTY)  # and one buffer's worth
        assert 10_000 < held == len(victim.readers[0]._frames) <= most
        assert not pouring.done(), "the flooder waits"
        pouring.cancel()
        await victim.close()

    asyncio.run(test())


def test_endless_streams_leave_their_turn_to_others() -> None:
    async def test() -> None:
        victim = Victim()
        handled = 0

        async def costly(peer: PeerId, body: bytes) -> None:
            nonlocal handled
            handled += 1
            until = time.perf_counter() + 0.0005
            while time.perf_counter() < until:
                pass
            victim.got[peer] = victim.got.get(peer, 0) + 1

        victim.hooks.frames["x"] = costly
        victim.channels.start()
        ends = [await victim.open(peer) for peer in STRANGERS[1:4]]
        floods = [asyncio.create_task(pour(end, frame(b"junk") * 2000)) for end in ends]
        await until(lambda: handled > 300)
        honest = await victim.open(HONEST)
        slowest = 0.0
        for n in range(10):
            began = time.monotonic()
            honest.send(frame(b"round"))
            await until(lambda: victim.got.get(HONEST, 0) > n)  # noqa: B023
            slowest = max(slowest, time.monotonic() - began)
        waiting = sum(len(reader._frames) for reader in victim.readers)
        assert waiting > 3000, "seconds of work lay in the queues"
        assert slowest < 1.0
        for flood in floods:
            flood.cancel()
        await victim.close()

    asyncio.run(test())


def test_streams_that_are_opened_again_and_again_are_rationed() -> None:
    async def test() -> None:
        victim = Victim()
        victim.channels.start()
        for _ in range(int(limits.STREAM_BURST) + 20):
            (await victim.open(ENEMY)).close()
            await asyncio.sleep(0)
        assert 15 <= victim.violations.count((ENEMY, "streams")) <= 20
        end = await victim.open(HONEST)
        end.send(frame(b"x"))
        await until(lambda: victim.got.get(HONEST) == 1)
        await victim.close()

    asyncio.run(test())


def test_who_holds_most_streams_gives_way_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STREAMS_TOTAL", 8)

    async def test() -> None:
        victim = Victim()
        for name in "abcd":
            victim.hooks.frames[name] = victim.take
        victim.channels.start()
        for hog in STRANGERS[1:3]:
            for name in "abcd":
                await victim.open(hog, name)
        assert not victim.violations and sum(victim.channels._inbound_count.values()) == 8
        honest = await victim.open(HONEST)
        honest.send(frame(b"x"))
        await until(lambda: victim.got.get(HONEST) == 1)
        await until(lambda: len(victim.violations) == 1)
        assert victim.violations[0][0] in STRANGERS[1:3] and victim.violations[0][1] == "streams"
        await victim.open(STRANGERS[1], "x")  # a hog can't take it back from the others
        assert victim.channels._inbound_count[HONEST] == 1
        assert sum(victim.channels._inbound_count.values()) <= 8
        await victim.close()

    asyncio.run(test())


def test_an_instance_that_changes_all_the_time_harms_its_owner_only() -> None:
    async def test() -> None:
        victim = Victim()
        gone: list[PeerId] = []
        victim.hooks.gone.append(gone.append)
        victim.channels.start()
        honest = await victim.open(HONEST)
        for n in range(10):
            await victim.open(ENEMY, preamble=bytes([n]) * 16)
            await asyncio.sleep(0.01)
        assert gone == [ENEMY] * 9
        honest.send(frame(b"x"))
        await until(lambda: victim.got.get(HONEST) == 1)
        await victim.close()

    asyncio.run(test())


def test_calls_have_a_rate_for_each_peer() -> None:
    now = 0.0
    refused: list[tuple[PeerId, str]] = []
    gate = CallGate(lambda: now, lambda peer, clause: refused.append((peer, clause)))

    def flood(seconds: int, cost: float = 1) -> int:
        nonlocal now
        passed = 0
        for _ in range(seconds * 2000):
            now += 1 / 2000
            with contextlib.suppress(PeerFault):
                gate.enter(ENEMY)
                gate.leave(ENEMY)
                gate.charge(ENEMY, cost - 1)
                passed += 1
        return passed

    assert flood(10) <= limits.CALL_BURST + 10 * limits.CALL_RATE + 1
    assert len(refused) > 15_000, "the flood was there"
    gate.enter(HONEST)
    gate.leave(HONEST)
    now += 10
    # What costs as much as many calls counts as many: 256 signatures in one request, over and over.
    assert flood(10, limits.STORE_ITEMS) <= (limits.CALL_BURST + 10 * limits.CALL_RATE) / limits.STORE_ITEMS + 1
    assert not gate._running


def test_rates_forget_peers_in_time() -> None:
    now = 0.0
    buckets = rates.Buckets(10, 20, lambda: now)
    for n in range(20_000):
        now += 0.001
        assert buckets.take(PeerId(n.to_bytes(32, "big")))
    assert len(buckets._levels) < 6000


LIARS: dict[str, Callable[[float], float]] = {
    "far ahead": lambda asker: 1e6,
    "far behind": lambda asker: -1e6,
    "a little ahead of whoever asks": lambda asker: asker + 3,
    "hardly ahead of whoever asks": lambda asker: asker + 0.4,
    "not believable": lambda asker: 1e300,
}


def swarm_of_clocks(lie: str, minutes: int, asked: int) -> tuple[float, int]:
    """24 honest nodes, 16 liars, calls that are measured badly. (worst error of all time, estimates with more liars)"""
    chance = random.Random(7)
    starts = [0.0, *(chance.uniform(-100, 100) for _ in range(23))]
    clocks = [SwarmClock(lambda start=start: start) for start in starts]  # type: ignore[misc]
    clocks[0].settle()
    for clock in clocks[1:]:
        clock.correct([clocks[0].now() - clock.local()])
    worst, swayed = 0.0, 0
    for _ in range(minutes):
        for me, clock in enumerate(clocks):
            peers = chance.sample([n for n in range(40) if n != me], asked)
            swayed += sum(n >= 24 for n in peers) > asked // 2
            times = [LIARS[lie](clock.now()) if n >= 24 else clocks[n].now() + chance.uniform(0, 0.05) for n in peers]
            clock.correct([when - clock.local() for when in times])
        worst = max(worst, *(abs(clock.now()) for clock in clocks))
    return worst, swayed


@pytest.mark.parametrize("lie", LIARS)
def test_a_minority_of_liars_does_not_move_the_clock(lie: str) -> None:
    worst, swayed = swarm_of_clocks(lie, 500, limits.CLOCK_PEERS)
    assert swayed > 50, "liars were the most of those asked, now and then"
    assert worst < 1


def test_the_liars_would_move_clocks_that_follow_each_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLOCK_NEAR", 0.0)
    monkeypatch.setattr(limits, "CLOCK_CONFIRM", 1)
    assert swarm_of_clocks("far ahead", 500, 9)[0] > 1e5
    assert swarm_of_clocks("a little ahead of whoever asks", 500, 9)[0] > 30
