"""The memory network's faults: they happen, they are counted, and a seed repeats them."""

from __future__ import annotations

import asyncio

import pytest

from p2pnode.errors import Unreachable
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import limits
from p2pnode.transport.addresses import by_peer, order, split
from p2pnode.transport.base import TransportOptions
from p2pnode.transport.clock import SwarmClock
from p2pnode.transport.faults import Faults
from p2pnode.transport.memory import MemoryNetwork, MemoryTransport

RUN = bytes(32)
SEEDS = [bytes([n]) * 32 for n in range(1, 5)]


async def swarm(network: MemoryNetwork, count: int) -> tuple[list[MemoryTransport], list[list[tuple[PeerId, bytes]]]]:
    nodes: list[MemoryTransport] = []
    seen: list[list[tuple[PeerId, bytes]]] = [[] for _ in range(count)]
    for n in range(count):
        near = nodes[0].addresses() if nodes else ()
        node = network.transport(PeerIdentity.from_seed(SEEDS[n]), RUN, TransportOptions(bootstraps=near))

        async def take(peer: PeerId, frame: bytes, n: int = n) -> None:
            seen[n].append((peer, frame))

        node.on_frame("x", take)
        await node.start()
        nodes.append(node)
    return nodes, seen


def lossy(seed: int) -> tuple[list[bytes], int, int]:
    async def test() -> tuple[list[bytes], int, int]:
        network = MemoryNetwork(seed=seed)
        (a, b), seen = await swarm(network, 2)
        network.set_faults(Faults(delay=(0.0, 0.001), drop=0.3, duplicate=0.2), sender=b.peer_id)
        for n in range(200):
            await b.send(a.peer_id, "x", bytes([n]))
            await a.send(b.peer_id, "x", bytes([n]))
        await asyncio.sleep(0.5)
        await a.stop()
        await b.stop()
        assert [frame[0] for _, frame in seen[1]] == list(range(200)), "only b's sending is hurt"
        return [frame for _, frame in seen[0]], network.dropped, network.duplicated

    return asyncio.run(test())


def test_faults_happen_and_a_seed_repeats_them() -> None:
    first, dropped, duplicated = lossy(1)
    assert 30 < dropped < 90
    assert 10 < duplicated < 60
    assert len(first) == 200 - dropped + duplicated
    assert first == sorted(first), "still in order"
    assert lossy(1) == (first, dropped, duplicated)
    assert lossy(2)[0] != first


def test_faults_are_checked() -> None:
    for bad in ({"drop": 1.5}, {"duplicate": -0.1}, {"delay": (2.0, 1.0)}, {"delay": (-1.0, 1.0)}):
        with pytest.raises(ValueError):
            Faults(**bad)  # type: ignore[arg-type]


def test_partitions_part_and_heal() -> None:
    async def test() -> None:
        network = MemoryNetwork()
        (a, b, c), seen = await swarm(network, 3)
        gone: list[PeerId] = []
        a.on_peer_gone(gone.append)
        await a.send(b.peer_id, "x", b"1")
        await a.send(c.peer_id, "x", b"1")
        await c.store("k", b"v", lifetime=60)
        await asyncio.sleep(0.01)
        network.partition([a.peer_id, b.peer_id], [c.peer_id])
        await asyncio.sleep(0)
        assert gone == [c.peer_id]
        with pytest.raises(Unreachable):
            await a.send(c.peer_id, "x", b"2")
        with pytest.raises(Unreachable):
            await c.call(a.peer_id, "hello", b"", timeout=1)
        await a.send(b.peer_id, "x", b"2")
        await a.store("k", b"w", lifetime=60)
        assert set(await a.fetch("k")) >= {a.peer_id}
        assert set(await c.fetch("k")) == {c.peer_id}
        network.heal()
        await a.send(c.peer_id, "x", b"3")
        await asyncio.sleep(0.01)
        assert [frame for _, frame in seen[2]] == [b"1", b"3"]
        assert set(await b.fetch("k")) == {a.peer_id, c.peer_id}
        for node in (a, b, c):
            await node.stop()

    asyncio.run(test())


def test_many_nodes_cost_no_tasks_while_they_are_silent() -> None:
    async def test() -> None:
        network = MemoryNetwork()
        nodes = [network.transport(PeerIdentity.generate(), RUN) for _ in range(1000)]
        for node in nodes:
            await node.start()
        assert len(asyncio.all_tasks()) == 1
        for node in nodes:
            await node.stop()

    asyncio.run(test())


def test_the_swarms_clock() -> None:
    clock = SwarmClock(lambda: 100.0)
    clock.correct([])
    assert clock.offset == 0.0
    clock.correct([5.0])  # a newcomer believes whom it asks
    assert clock.offset == 5.0
    assert clock.now() == 105.0
    clock.correct([500.0])  # later, one voice does not move it
    assert clock.offset == 5.0
    for _ in range(limits.CLOCK_CONFIRM):
        assert clock.offset == 5.0
        clock.correct([500.0, 600.0])  # two do, to the nearer, if they stay with it
    assert clock.offset == 500.0
    for _ in range(9):
        clock.correct([500.2, 500.2])
        assert clock.offset == 500.0, "a tiny step is not taken"
    for ahead in (3.0, 3.1, 7.0, 3.1, 3.0, 0.0, 3.0, 3.0):  # never three in a row
        clock.correct([500.0 + ahead] * 2)
        assert clock.offset == 500.0
    clock.correct([503.0] * 2)
    assert clock.offset == 503.0
    founder = SwarmClock(lambda: 0.0)
    founder.settle()
    founder.correct([9.0])
    assert founder.offset == 0.0


def test_addresses() -> None:
    peer = PeerIdentity.generate().peer_id
    assert split(f" /ip4/1.2.3.4/tcp/5/p2p/{peer} ") == ("/ip4/1.2.3.4/tcp/5", peer)
    relayed = f"/ip4/1.2.3.4/tcp/5/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit/p2p/{peer}"
    assert split(relayed)[1] == peer
    assert by_peer([f"/ip4/1.2.3.4/tcp/5/p2p/{peer}"] * 2 + [f"/dns4/a/tcp/6/p2p/{peer}"]) == {
        peer: ["/ip4/1.2.3.4/tcp/5", "/dns4/a/tcp/6"]
    }
    assert order(
        ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip6/::1/tcp/1", "/ip4/8.8.8.8/tcp/1", "/ip6/fe80::1/tcp/1"]
    ) == ["/ip4/8.8.8.8/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip6/fe80::1/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"]
