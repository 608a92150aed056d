"""One suite for every transport: whatever holds over real hivemind holds in memory, and the other way round."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from p2pnode.errors import FrameTooLarge, IdentityTaken, NetworkError, PeerFault, Unreachable, UsageError
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import limits, records
from p2pnode.transport.base import MAX_CALL_BYTES, MAX_FRAME_BYTES, MAX_RECORD_BYTES, Transport, TransportOptions
from p2pnode.transport.memory import MemoryNetwork

RUN = bytes(range(32))
TEST_SECONDS = 60.0


class Harness:
    """Makes nodes of one kind, and does to them what an enemy or an accident would."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        self.nodes: list[Any] = []

    def make(
        self, identity: PeerIdentity | None = None, run: bytes = RUN, options: TransportOptions | None = None
    ) -> Any:
        """A node, not started."""
        raise NotImplementedError

    async def node(self, *near: Transport, **how: Any) -> Any:
        """A started node that knows those in `near`."""
        options = how.pop("options", TransportOptions())
        fields = {**options.__dict__, "bootstraps": [address for other in near for address in other.addresses()]}
        made = self.make(how.pop("identity", None), how.pop("run", RUN), TransportOptions(**fields))
        self.nodes.append(made)
        await made.start()
        return made

    async def kill(self, node: Any) -> None:
        """End a node without a word."""
        raise NotImplementedError

    async def offer(self, node: Any, to: Any, hashed: bytes, subkey: bytes, raw: bytes, expiration: float) -> bool:
        """`node` asks `to` to store a record as it is; whether it was taken."""
        raise NotImplementedError

    async def oversized(self, node: Any, to: Any, channel: str) -> None:
        """`node` sends a frame beyond the limit."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop all nodes."""
        await asyncio.gather(*(node.stop() for node in self.nodes))


class Memory(Harness):
    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.network = MemoryNetwork()

    def make(
        self, identity: PeerIdentity | None = None, run: bytes = RUN, options: TransportOptions | None = None
    ) -> Any:
        return self.network.transport(identity or PeerIdentity.generate(), run, options)

    async def kill(self, node: Any) -> None:
        self.network.kill(node.peer_id)

    async def offer(self, node: Any, to: Any, hashed: bytes, subkey: bytes, raw: bytes, expiration: float) -> bool:
        return self.network.offer(RUN, node.peer_id, hashed, subkey, raw, expiration)

    async def oversized(self, node: Any, to: Any, channel: str) -> None:
        await node.send_unchecked(to.peer_id, channel, bytes(MAX_FRAME_BYTES + 1))


class Hivemind(Harness):
    kind = "hivemind"

    def make(
        self, identity: PeerIdentity | None = None, run: bytes = RUN, options: TransportOptions | None = None
    ) -> Any:
        from p2pnode.transport.hivemind import HivemindTransport

        return HivemindTransport(identity or PeerIdentity.generate(), run, options)

    async def kill(self, node: Any) -> None:
        node._keeper.cancel()  # a process that dies starts nothing again
        os.kill(node._link.pid, signal.SIGKILL)

    async def offer(self, node: Any, to: Any, hashed: bytes, subkey: bytes, raw: bytes, expiration: float) -> bool:
        from hivemind.dht import DHTID
        from hivemind.p2p import PeerID

        protocol = node._dht.protocol
        taken = await protocol.call_store(
            PeerID(to.peer_id.to_bytes()),
            [DHTID.from_bytes(hashed)],
            [protocol.serializer.dumps(raw)],
            [expiration],
            [subkey],
        )
        return bool(taken and taken[0])

    async def oversized(self, node: Any, to: Any, channel: str) -> None:
        sock = await node._link.open_stream(to.peer_id, channel)
        header = (MAX_FRAME_BYTES + 1).to_bytes(4, "big")
        await asyncio.get_running_loop().sock_sendall(sock, node.instance + header + b"x")
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""  # closed at the header
        sock.close()


@pytest.fixture(params=[Memory, Hivemind], ids=["memory", "hivemind"])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    return request.param()


def run(harness: Harness, test: Callable[[], Awaitable[None]]) -> None:
    """Run `test` with a deadline, stop all nodes, and see that nothing is left."""

    async def whole() -> None:
        before = asyncio.all_tasks()
        try:
            async with asyncio.timeout(TEST_SECONDS):
                await test()
        finally:
            async with asyncio.timeout(10):
                await harness.close()
        for _ in range(20):
            if asyncio.all_tasks() == before:
                break
            await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == before, "tasks were left"

    asyncio.run(whole())


class Inbox:
    """Collects frames of a channel."""

    def __init__(self, node: Any, channel: str = "x") -> None:
        self.frames: asyncio.Queue[tuple[PeerId, bytes]] = asyncio.Queue()
        node.on_frame(channel, self.take)

    async def take(self, peer: PeerId, frame: bytes) -> None:
        await self.frames.put((peer, frame))

    async def next(self) -> tuple[PeerId, bytes]:
        async with asyncio.timeout(10):
            return await self.frames.get()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait for `condition`; the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


async def listening(harness: Harness, *near: Any, **how: Any) -> tuple[Any, Inbox]:
    """A started node with a channel."""
    made = await harness.node(*near, **how)
    inbox = Inbox(made)
    await asyncio.sleep(0.05)  # a handler that comes late is registered in the background
    return made, inbox


# ---- channels


def test_frames_arrive_in_order_and_whole(harness: Harness) -> None:
    async def test() -> None:
        a, inbox = await listening(harness)
        b = await harness.node(a)
        sizes = [0, 1, 3, 300, 4096, 65_531, 65_532, 65_533, 65_536, 128 << 10, MAX_FRAME_BYTES, 5, 0, 7]
        frames = [bytes([n % 256]) * size for n, size in enumerate(sizes * 3)]
        for frame in frames:
            await b.send(a.peer_id, "x", frame)
        for frame in frames:
            assert await inbox.next() == (b.peer_id, frame)
        assert b.traffic().sent >= sum(map(len, frames))
        assert a.traffic().received >= sum(map(len, frames))

    run(harness, test)


def test_senders_that_wait_keep_their_order(harness: Harness) -> None:
    async def test() -> None:
        a, inbox = await listening(harness)
        b = await harness.node(a)
        count = 64
        frames = [n.to_bytes(2, "big") + bytes(200_000) for n in range(count)]
        sends = [asyncio.create_task(b.send(a.peer_id, "x", frame)) for frame in frames]
        assert [int.from_bytes((await inbox.next())[1][:2], "big") for _ in frames] == list(range(count))
        await asyncio.gather(*sends)

    run(harness, test)


def test_many_frames_both_ways_and_by_id_alone(harness: Harness) -> None:
    async def test() -> None:
        a, at_a = await listening(harness)
        b, at_b = await listening(harness, a)
        c, at_c = await listening(harness, a)
        await b.send(a.peer_id, "x", b"first")
        await c.send(a.peer_id, "x", b"first")
        assert {(await at_a.next())[0], (await at_a.next())[0]} == {b.peer_id, c.peer_id}
        deadline = time.monotonic() + 5
        while True:  # b was never told c's address
            try:
                await b.send(c.peer_id, "x", b"hello")
                break
            except Unreachable:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        assert await at_c.next() == (b.peer_id, b"hello")

        async def talk(sender: Any, receiver: Any, inbox: Inbox) -> None:
            for n in range(500):
                await sender.send(receiver.peer_id, "x", n.to_bytes(4, "big"))
            for n in range(500):
                assert await inbox.next() == (sender.peer_id, n.to_bytes(4, "big"))

        await asyncio.gather(talk(b, c, at_c), talk(c, b, at_b))

    run(harness, test)


def test_a_slow_handler_slows_its_sender(harness: Harness) -> None:
    async def test() -> None:
        a = await harness.node()
        gate, seen = asyncio.Event(), []

        async def slow(peer: PeerId, frame: bytes) -> None:
            await gate.wait()
            seen.append(len(frame))

        a.on_frame("x", slow)
        await asyncio.sleep(0.05)
        b = await harness.node(a)
        sent = 0

        async def push() -> None:
            nonlocal sent
            while sent < 200:
                await b.send(a.peer_id, "x", bytes(256 << 10))
                sent += 1

        pushing = asyncio.create_task(push())
        await asyncio.sleep(1.0)
        held = sent << 18
        assert limits.QUEUE_BYTES // 2 <= held <= limits.QUEUE_BYTES + (8 << 20), "bounded by bytes, not by patience"
        await asyncio.sleep(0.3)
        assert sent << 18 <= held + (1 << 20)
        gate.set()
        await pushing
        await until(lambda: len(seen) == 200)

    run(harness, test)


def test_bandwidth_is_measured_on_what_is_sent(harness: Harness) -> None:
    async def test() -> None:
        a, inbox = await listening(harness)
        b = await harness.node(a)
        assert b.bandwidth() == 0, "nothing is known yet"
        for _ in range(500):
            await b.send(a.peer_id, "x", bytes(20))
        assert b.bandwidth() == 0, "small frames show nothing"
        for _ in range(24):
            await b.send(a.peer_id, "x", bytes(MAX_FRAME_BYTES))
        for _ in range(524):
            await inbox.next()
        assert 1_000_000 < b.bandwidth() < 1 << 40
        assert a.bandwidth() == 0, "who only receives knows nothing of its own"
        before = b.traffic()
        await asyncio.sleep(0.1)
        assert b.traffic() == before, "no probing"

    run(harness, test)


def test_a_frame_beyond_the_limit_is_not_sent(harness: Harness) -> None:
    async def test() -> None:
        a, inbox = await listening(harness)
        b = await harness.node(a)
        with pytest.raises(FrameTooLarge):
            await b.send(a.peer_id, "x", bytes(MAX_FRAME_BYTES + 1))
        await b.send(a.peer_id, "x", b"still fine")
        assert await inbox.next() == (b.peer_id, b"still fine")

    run(harness, test)


def test_a_frame_beyond_the_limit_is_refused_by_its_clause(harness: Harness) -> None:
    async def test() -> None:
        a, inbox = await listening(harness)
        b = await harness.node(a)
        violations: list[tuple[PeerId, str]] = []
        a.on_violation(lambda peer, clause: violations.append((peer, clause)))
        await harness.oversized(b, a, "x")
        await until(lambda: bool(violations))
        assert violations == [(b.peer_id, "frame-size")]
        assert inbox.frames.empty()
        await asyncio.sleep(0.1)
        await b.send(a.peer_id, "x", b"a new channel")
        assert await inbox.next() == (b.peer_id, b"a new channel")

    run(harness, test)


def test_a_fault_in_a_frame_is_reported_and_the_channel_lasts(harness: Harness) -> None:
    async def test() -> None:
        a = await harness.node()
        violations: list[tuple[PeerId, str]] = []
        seen: list[bytes] = []

        async def strict(peer: PeerId, frame: bytes) -> None:
            if frame == b"bad":
                raise PeerFault("my-clause", "bad")
            seen.append(frame)

        a.on_violation(lambda peer, clause: violations.append((peer, clause)))
        a.on_frame("x", strict)
        await asyncio.sleep(0.05)
        b = await harness.node(a)
        for frame in (b"1", b"bad", b"2"):
            await b.send(a.peer_id, "x", frame)
        await until(lambda: len(seen) == 2)
        assert violations == [(b.peer_id, "my-clause")]

    run(harness, test)


def test_no_frame_to_a_foreign_run_an_unknown_channel_or_an_unknown_peer(harness: Harness) -> None:
    async def test() -> None:
        a, inbox = await listening(harness)
        b = await harness.node(a)
        with pytest.raises(Unreachable):
            await b.send(a.peer_id, "nobody-listens", b"?")
        with pytest.raises(Unreachable):
            await b.send(PeerIdentity.generate().peer_id, "x", b"?")
        stranger = harness.make(run=bytes(32))
        harness.nodes.append(stranger)
        await stranger.start()
        await stranger.connect(a.addresses())
        with pytest.raises(Unreachable):
            await stranger.send(a.peer_id, "x", b"?")
        with pytest.raises(NetworkError):
            await stranger.call(a.peer_id, "hello", b"", timeout=2)
        assert inbox.frames.empty()

    run(harness, test)


# ---- calls


async def reverse(peer: PeerId, request: bytes) -> bytes:
    return request[::-1]


def test_calls_are_answered(harness: Harness) -> None:
    async def test() -> None:
        a, b = await _pair(harness, reverse)
        assert await b.call(a.peer_id, "m", b"abc", timeout=5) == b"cba"
        assert await b.call(a.peer_id, "m", b"", timeout=5) == b""
        big = bytes(MAX_CALL_BYTES)
        assert await b.call(a.peer_id, "m", big, timeout=10) == big
        answers = await asyncio.gather(*(b.call(a.peer_id, "m", bytes([n]), timeout=5) for n in range(16)))
        assert answers == [bytes([n]) for n in range(16)]

    run(harness, test)


async def _pair(harness: Harness, handler: Callable[[PeerId, bytes], Awaitable[bytes]]) -> tuple[Any, Any]:
    a = harness.make()
    harness.nodes.append(a)
    a.on_call("m", handler)
    await a.start()
    return a, await harness.node(a)


def test_calls_have_limits_both_ways(harness: Harness) -> None:
    async def test() -> None:
        async def bloat(peer: PeerId, request: bytes) -> bytes:
            return bytes(MAX_CALL_BYTES + 1)

        a, b = await _pair(harness, bloat)
        with pytest.raises(FrameTooLarge):
            await b.call(a.peer_id, "m", bytes(MAX_CALL_BYTES + 1), timeout=5)
        with pytest.raises(NetworkError):
            await b.call(a.peer_id, "m", b"", timeout=5)

    run(harness, test)


def test_a_refusal_names_its_clause_and_a_bug_tells_nothing(
    harness: Harness, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async def refuse(peer: PeerId, request: bytes) -> bytes:
            if request == b"bug":
                raise RuntimeError("a secret of the callee")
            raise PeerFault("slot-round", "not for the caller's eyes")

        a, b = await _pair(harness, refuse)
        with pytest.raises(NetworkError, match="slot-round") as caught:
            await b.call(a.peer_id, "m", b"", timeout=5)
        assert not isinstance(caught.value, Unreachable)
        assert "eyes" not in str(caught.value)
        with pytest.raises(NetworkError) as caught:
            await b.call(a.peer_id, "m", b"bug", timeout=5)
        assert "secret" not in str(caught.value)

    run(harness, test)
    assert capfd.readouterr().out == ""


def test_a_call_times_out_and_does_no_harm(harness: Harness) -> None:
    async def test() -> None:
        async def slow(peer: PeerId, request: bytes) -> bytes:
            await asyncio.sleep(float(request))
            return b"late"

        a, b = await _pair(harness, slow)
        began = time.monotonic()
        with pytest.raises(Unreachable):
            await b.call(a.peer_id, "m", b"30", timeout=0.3)
        assert 0.25 < time.monotonic() - began < 2
        for n in range(40):  # answers that come as the caller gives up
            with contextlib.suppress(Unreachable):
                await b.call(a.peer_id, "m", b"0.02", timeout=0.018 + n * 0.0002)
        assert await b.call(a.peer_id, "m", b"0", timeout=5) == b"late"

    run(harness, test)


def test_a_peer_that_calls_too_much_is_refused(harness: Harness) -> None:
    async def test() -> None:
        gate = asyncio.Event()

        async def hold(peer: PeerId, request: bytes) -> bytes:
            await gate.wait()
            return b"done"

        a, b = await _pair(harness, hold)
        violations: list[tuple[PeerId, str]] = []
        a.on_violation(lambda peer, clause: violations.append((peer, clause)))
        extra = 5
        pending = [
            asyncio.create_task(b.call(a.peer_id, "m", b"", timeout=10)) for _ in range(limits.CALLS_PER_PEER + extra)
        ]
        await until(lambda: sum(task.done() for task in pending) == extra)
        gate.set()
        results = await asyncio.gather(*pending, return_exceptions=True)
        assert results.count(b"done") == limits.CALLS_PER_PEER
        assert all("calls-at-once" in str(result) for result in results if result != b"done")
        assert set(violations) == {(b.peer_id, "calls-at-once")}
        assert len(violations) >= extra  # b's search of the DHT may come at this time, and counts as calls too
        refusals: list[str] = []
        while not refusals:  # until the burst is used up; the harness sets a deadline
            batch = [b.call(a.peer_id, "m", b"", timeout=10) for _ in range(limits.CALLS_PER_PEER)]
            results = await asyncio.gather(*batch, return_exceptions=True)
            refusals = [str(result) for result in results if result != b"done"]
        assert all("call-rate" in refusal for refusal in refusals)

    run(harness, test)


def test_unknown_methods_and_peers_are_unreachable(harness: Harness) -> None:
    async def test() -> None:
        a, b = await _pair(harness, reverse)
        with pytest.raises(Unreachable):
            await b.call(a.peer_id, "nobody-answers", b"", timeout=3)
        with pytest.raises(Unreachable):
            await b.call(PeerIdentity.generate().peer_id, "m", b"", timeout=2)

    run(harness, test)


# ---- who is there


def test_a_bootstrap_that_does_not_answer_is_named(harness: Harness) -> None:
    async def test() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        peer = PeerIdentity.generate().peer_id
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"
        lines: list[str] = []
        node = harness.make(options=TransportOptions(bootstraps=[address], start_deadline=1.0, log=lines.append))
        began = time.monotonic()
        with pytest.raises(Unreachable, match=peer.short):
            await node.start()
        assert time.monotonic() - began < 4
        assert lines
        with pytest.raises(NetworkError):
            await node.send(node.peer_id, "x", b"")

    run(harness, test)


def test_one_bootstrap_of_several_is_enough(harness: Harness) -> None:
    async def test() -> None:
        a = await harness.node()
        dead = f"/ip4/127.0.0.1/tcp/9/p2p/{PeerIdentity.generate().peer_id}"
        b = harness.make(options=TransportOptions(bootstraps=[dead, *a.addresses()], remembered=[dead]))
        harness.nodes.append(b)
        began = time.monotonic()
        await b.start()
        assert time.monotonic() - began < 3
        assert a.peer_id in await b.peers()
        lone = harness.make(options=TransportOptions(remembered=[dead]))  # remembered peers need not answer
        harness.nodes.append(lone)
        await lone.start()
        assert await lone.peers() == []

    run(harness, test)


def test_a_bad_bootstrap_address_is_a_usage_error(harness: Harness) -> None:
    for bad in (
        "",
        "localhost:80",
        "/ip4/1.2.3.4/tcp/5",
        "/ip4/1.2.3.4/tcp/5/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    ):
        with pytest.raises(UsageError):
            harness.make(options=TransportOptions(bootstraps=[bad]))


def test_addresses_and_connect(harness: Harness) -> None:
    async def test() -> None:
        a, b = await harness.node(), await harness.node()
        assert a.addresses() and all(address.endswith(f"/p2p/{a.peer_id}") for address in a.addresses())
        loopback = ["127.0.0.1" in address for address in a.addresses()]
        assert loopback == sorted(loopback), "loopback comes last"
        assert await b.peers() == []
        assert not await b.connect([f"/ip4/127.0.0.1/tcp/9/p2p/{PeerIdentity.generate().peer_id}"])
        assert not await b.connect(["nonsense"])
        assert await b.connect(a.addresses())
        assert await b.peers() == [a.peer_id]

    run(harness, test)


def test_a_killed_peer_is_found_gone_once_and_can_come_back(harness: Harness) -> None:
    async def test() -> None:
        a, at_a = await listening(harness)
        b, at_b = await listening(harness, a)
        gone: list[PeerId] = []
        a.on_peer_gone(gone.append)
        await a.send(b.peer_id, "x", b"to b")
        await b.send(a.peer_id, "x", b"to a")
        await at_b.next()
        await at_a.next()
        await harness.kill(b)
        assert await until(lambda: bool(gone), 3) < 2
        await asyncio.sleep(0.3)
        assert gone == [b.peer_id]
        with pytest.raises(Unreachable):
            await a.send(b.peer_id, "x", b"?")
        await b.stop()
        again = await harness.node(a, identity=b._identity)  # no false alarm either
        await again.send(a.peer_id, "x", b"back")
        assert await at_a.next() == (b.peer_id, b"back")

    run(harness, test)


def test_a_call_to_a_peer_that_dies_ends_at_once(harness: Harness) -> None:
    async def test() -> None:
        async def never(peer: PeerId, request: bytes) -> bytes:
            await asyncio.sleep(60)
            return b""

        a, b = await _pair(harness, never)
        asked = asyncio.create_task(b.call(a.peer_id, "m", b"", timeout=30))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await harness.kill(a)
        with pytest.raises(Unreachable):
            await asked
        assert time.monotonic() - began < 3

    run(harness, test)


def test_a_peer_that_leaves_is_gone_and_its_last_words_arrive(harness: Harness) -> None:
    async def test() -> None:
        a, inbox = await listening(harness)
        b = await harness.node(a)
        gone: list[PeerId] = []
        a.on_peer_gone(gone.append)
        for n in range(20):
            await b.send(a.peer_id, "x", bytes([n]) * 50_000)
        await b.stop()
        for n in range(20):
            assert (await inbox.next())[1][0] == n
        await until(lambda: gone == [b.peer_id], 3)

    run(harness, test)


def test_an_identity_is_used_by_one_process_only(harness: Harness) -> None:
    async def test() -> None:
        a, inbox = await listening(harness)
        b = await harness.node(a)
        await asyncio.sleep(0.1)
        began = time.monotonic()
        with pytest.raises(IdentityTaken):
            await harness.node(a, identity=b._identity)
        assert time.monotonic() - began < 3
        await b.send(a.peer_id, "x", b"unharmed")
        assert await inbox.next() == (b.peer_id, b"unharmed")

    run(harness, test)


# ---- records


def test_records_are_stored_found_and_replaced(harness: Harness) -> None:
    async def test() -> None:
        a = await harness.node()
        b = await harness.node(a)
        c = await harness.node(a)
        assert await a.fetch("members") == {}
        assert await a.store("members", b"a1", lifetime=60)
        assert await b.store("members", b"b1", lifetime=60)
        assert await b.store("members", b"b2", lifetime=30)  # shorter: still replaces
        for node in (a, b, c):
            found = await node.fetch("members")
            assert {peer: record.value for peer, record in found.items()} == {a.peer_id: b"a1", b.peer_id: b"b2"}
        assert await c.fetch("other") == {}
        assert found[b.peer_id].sender == b.peer_id
        assert found[b.peer_id].sequence > found[a.peer_id].sequence - 10_000
        with pytest.raises(FrameTooLarge):
            await a.store("members", bytes(MAX_RECORD_BYTES), lifetime=60)
        for lifetime in (0.0, -1.0, records.MAX_LIFETIME + 1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="lifetime"):
                await a.store("members", b"", lifetime=lifetime)

    run(harness, test)


def test_records_expire(harness: Harness) -> None:
    async def test() -> None:
        a = await harness.node()
        b = await harness.node(a)
        assert await a.store("k", b"v", lifetime=0.7)
        assert await b.store("k", b"w", lifetime=60)
        assert set(await b.fetch("k")) == {a.peer_id, b.peer_id}
        await asyncio.sleep(0.8)
        assert set(await b.fetch("k")) == {b.peer_id}
        assert set(await a.fetch("k")) == {b.peer_id}

    run(harness, test)


def test_nobody_overwrites_or_hides_a_record(harness: Harness) -> None:
    async def test() -> None:
        a = await harness.node()
        b = await harness.node(a)
        enemy = await harness.node(a, b)
        assert await a.store("k", b"honest", lifetime=60)
        assert await b.store("k", b"honest too", lifetime=60)
        hashed = records.key_hash(RUN, "k")
        now = time.time()
        mine = enemy._identity

        def seal(key: bytes = hashed, issued: float = now, life: float = 60, by: PeerIdentity = mine) -> bytes:
            return records.seal_record(by, key, b"evil", issued=issued, expiration=issued + life, sequence=1 << 60)

        far = now + 10 * records.MAX_LIFETIME
        attempts = {
            "another's subkey": (a.peer_id.key, seal(), now + 60),
            "another key's record": (mine.peer_id.key, seal(key=bytes(20)), now + 60),
            "a later expiration": (mine.peer_id.key, seal(), now + 61),
            "too long a life": (mine.peer_id.key, seal(life=2 * records.MAX_LIFETIME), now + 2 * records.MAX_LIFETIME),
            "from the future": (mine.peer_id.key, seal(issued=far), far + 60),
            "expired": (mine.peer_id.key, seal(issued=now - 100), now - 40),
            "rubbish": (mine.peer_id.key, b"rubbish", now + 60),
            "a short subkey": (b"x", seal(), now + 60),
        }
        for what, (subkey, raw, expiration) in attempts.items():
            for target in (a, b):
                assert not await harness.offer(enemy, target, hashed, subkey, raw, expiration), what
        for node in (a, b, enemy):
            values = {peer: record.value for peer, record in (await node.fetch("k")).items()}
            assert values == {a.peer_id: b"honest", b.peer_id: b"honest too"}
        assert await harness.offer(enemy, a, hashed, mine.peer_id.key, seal(), now + 60), "a good one is taken"
        # An older one of its sender does not come back.
        older = records.seal_record(mine, hashed, b"old", issued=now, expiration=now + 90, sequence=5)
        assert not await harness.offer(enemy, a, hashed, mine.peer_id.key, older, now + 90)

    run(harness, test)


def test_a_wrong_clock_is_corrected(harness: Harness) -> None:
    async def test() -> None:
        a = await harness.node()
        late = await harness.node(a, options=TransportOptions(clock=lambda: time.time() - 500))
        assert abs(late.clock_offset() - 500) < 1
        assert await late.store("k", b"v", lifetime=60)
        assert late.peer_id in await a.fetch("k")
        assert await a.store("k", b"v", lifetime=60)
        assert set(await late.fetch("k")) == {a.peer_id, late.peer_id}
        assert abs((await a.fetch("k"))[late.peer_id].issued - time.time()) < 2
        third = await harness.node(a, late)
        assert abs(third.clock_offset()) < 1

    run(harness, test)


# ---- the end


def test_stop_is_fast_idempotent_and_final(harness: Harness) -> None:
    async def test() -> None:
        nodes = [await harness.node()]
        inboxes = [Inbox(nodes[0])]
        for _ in range(3):
            nodes.append(await harness.node(nodes[0]))
            inboxes.append(Inbox(nodes[-1]))
        await asyncio.sleep(0.1)
        for one in nodes[1:]:
            await one.send(nodes[0].peer_id, "x", bytes(100_000))
            await nodes[0].send(one.peer_id, "x", bytes(100_000))
            await one.store("k", b"v", lifetime=60)
        began = time.monotonic()
        await asyncio.gather(*(node.stop() for node in nodes), nodes[0].stop())
        assert time.monotonic() - began < 5
        await nodes[0].stop()
        with pytest.raises(NetworkError):
            await nodes[0].send(nodes[1].peer_id, "x", b"")
        with pytest.raises(NetworkError):
            await nodes[0].call(nodes[1].peer_id, "hello", b"", timeout=1)
        with pytest.raises(NetworkError):
            await nodes[0].start()
        assert await nodes[0].peers() == []

    run(harness, test)


def test_stop_before_start_and_during_it(harness: Harness) -> None:
    async def test() -> None:
        never = harness.make()
        await never.stop()
        dead = f"/ip4/127.0.0.1/tcp/9/p2p/{PeerIdentity.generate().peer_id}"
        waiting = harness.make(options=TransportOptions(bootstraps=[dead], start_deadline=60))
        starting = asyncio.create_task(waiting.start())
        await asyncio.sleep(0.5)
        starting.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await waiting.stop()
        assert time.monotonic() - began < 5

    run(harness, test)


def test_nothing_is_left_on_the_machine() -> None:
    harness = Hivemind()
    with tempfile.TemporaryDirectory() as base:
        pids: list[int] = []

        async def test() -> None:
            a = await harness.node(options=TransportOptions(socket_dir=Path(base) / "s"))
            b = await harness.node(a, options=TransportOptions(socket_dir=Path(base) / "s"))
            pids.extend([a._link.pid, b._link.pid])
            files = [path for path in (Path(base) / "s").rglob("*") if path.is_file()]
            assert all(path.suffix == ".lock" and path.stat().st_size == 0 for path in files), "no key on the disk"

        run(harness, test)
        assert list(Path(base).iterdir()) == []
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
