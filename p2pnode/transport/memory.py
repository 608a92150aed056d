"""The transport in memory: many nodes in one event loop, with faults on order. For tests and simulations.

The same interface, limits, calls and record validator as over real hivemind; only how bytes move differs. What goes
wrong is drawn from a seed, for each link by itself, so that it does not depend on the order in which links are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from p2pnode.errors import FrameTooLarge, IdentityTaken, PeerFault, Unreachable
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import limits
from p2pnode.transport.bandwidth import SendMeter
from p2pnode.transport.base import MAX_FRAME_BYTES, Traffic, TransportOptions
from p2pnode.transport.core import TransportCore
from p2pnode.transport.faults import Faults
from p2pnode.transport.records import RecordStore

_REPLICAS: Final = 5

logger = logging.getLogger("p2pnode.transport")


class MemoryNetwork:
    """Where memory transports meet. `clock`: wall clock of nodes that have none of their own."""

    def __init__(self, *, seed: int = 0, clock: Callable[[], float] = time.time, faults: Faults | None = None) -> None:
        self._seed = seed
        self._clock = clock
        self._faults: dict[tuple[PeerId | None, PeerId | None], Faults] = {(None, None): faults or Faults()}
        self._nodes: dict[tuple[bytes, PeerId], MemoryTransport] = {}
        self._sides: dict[PeerId, int] = {}
        self._holders: dict[bytes, set[MemoryTransport]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.dropped = self.delayed = 0  # frames and calls
        self.duplicated = 0  # frames

    def transport(
        self, identity: PeerIdentity, run_digest: bytes, options: TransportOptions | None = None
    ) -> MemoryTransport:
        """A node in this network, not started."""
        options = options or TransportOptions()
        if options.clock is time.time:
            options = replace(options, clock=self._clock)
        return MemoryTransport(self, identity, run_digest, options)

    # ---- faults

    def set_faults(self, faults: Faults, sender: PeerId | None = None, receiver: PeerId | None = None) -> None:
        """From now on; for a sender, a receiver or both if they are given. The most specific applies."""
        self._faults[sender, receiver] = faults

    def faults(self, sender: PeerId, receiver: PeerId) -> Faults:
        """What befalls what `sender` sends to `receiver`."""
        for key in ((sender, receiver), (sender, None), (None, receiver)):
            if key in self._faults:
                return self._faults[key]
        return self._faults[None, None]

    def chance(self, sender: PeerId, receiver: PeerId, what: str) -> random.Random:
        """The random source of one link."""
        return random.Random(f"{self._seed}:{sender}:{receiver}:{what}")

    def partition(self, *sides: Collection[PeerId]) -> None:
        """Peers of different sides can't reach one another; whoever is in none is with the rest."""
        self._sides = {peer: number for number, side in enumerate(sides, 1) for peer in side}
        for node in list(self._nodes.values()):
            for other in list(node.links):
                if not self.joined(node.peer_id, other):
                    node.lose(other)

    def heal(self) -> None:
        """End all partitions."""
        self._sides = {}

    def kill(self, peer: PeerId) -> None:
        """The peer's process ends on the spot: nothing is flushed, its peers find it gone."""
        for (_, owner), node in list(self._nodes.items()):
            if owner == peer:
                node.die()

    def joined(self, one: PeerId, other: PeerId) -> bool:
        """Whether no partition lies between two peers."""
        return self._sides.get(one, 0) == self._sides.get(other, 0)

    # ---- for transports

    def enter(self, run: bytes, node: MemoryTransport) -> None:
        """A node comes up. IdentityTaken if its identity is up already."""
        if (run, node.peer_id) in self._nodes:
            raise IdentityTaken(f"another running node uses this identity ({node.peer_id})")
        self._nodes[run, node.peer_id] = node

    def leave(self, run: bytes, node: MemoryTransport) -> None:
        """A node goes down."""
        if self._nodes.get((run, node.peer_id)) is node:
            del self._nodes[run, node.peer_id]
        for holders in self._holders.values():
            holders.discard(node)

    def find(self, run: bytes, sender: PeerId, receiver: PeerId) -> MemoryTransport:
        """A node that can be reached. Unreachable."""
        node = self._nodes.get((run, receiver))
        if node is None or not self.joined(sender, receiver):
            raise Unreachable(f"{receiver.short} can't be reached")
        return node

    def nearest(self, run: bytes, asker: PeerId, hashed: bytes) -> list[MemoryTransport]:
        """The nodes that keep a key, as Kademlia would choose them among those that `asker` can reach."""
        where = int.from_bytes(hashed, "big")
        reachable = [node for (r, peer), node in self._nodes.items() if r == run and self.joined(asker, peer)]
        return sorted(reachable, key=lambda node: node.dht_id ^ where)[:_REPLICAS]

    def offer(self, run: bytes, asker: PeerId, hashed: bytes, subkey: bytes, raw: bytes, expiration: float) -> bool:
        """Ask the keepers of a key to store a record; whether any did."""
        took = False
        for node in self.nearest(run, asker, hashed):
            if node.records.put(hashed, subkey, raw, expiration, node.swarm_time()):
                self._holders.setdefault(hashed, set()).add(node)
                took = True
        return took

    def held(self, run: bytes, asker: PeerId, hashed: bytes) -> list[tuple[bytes, bytes, float]]:
        """All records under a key that `asker` can reach: (subkey, envelope bytes, expiration)."""
        found = []
        for node in self._holders.get(hashed, ()):
            if self.joined(asker, node.peer_id):
                shelf = node.records.get(hashed, node.swarm_time())
                found += [(subkey, raw, record.expiration) for subkey, (record, raw) in shelf.items()]
        return found

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something that belongs to no single node."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Link:
    """Frames on their way from one node to another in one channel. Its task lives only while there are any."""

    def __init__(self, network: MemoryNetwork, sender: MemoryTransport, receiver: MemoryTransport, channel: str):
        self._network = network
        self._sender = sender
        self.receiver = receiver
        self._channel = channel
        self._chance = network.chance(sender.peer_id, receiver.peer_id, f"channel {channel}")
        self._queue: deque[tuple[float, bytes]] = deque()  # (loop time of arrival, frame)
        self._queued = 0
        self._last = 0.0
        self._space = asyncio.Event()
        self._turn = asyncio.Lock()
        self._putting = 0
        self._pump: asyncio.Task[None] | None = None
        self.broken = False

    async def put(self, frame: bytes) -> None:
        """Queue a frame; waits while the queue is full."""
        if self._putting or self._full(frame):
            self._putting += 1
            try:
                async with self._turn:
                    while self._full(frame):
                        self._space.clear()
                        await self._space.wait()
            finally:
                self._putting -= 1
        if self.broken:
            raise Unreachable(f"the channel {self._channel} to {self.receiver.peer_id.short} broke")
        faults = self._network.faults(self._sender.peer_id, self.receiver.peer_id)
        if self._chance.random() < faults.drop:
            self._network.dropped += 1
            return
        copies = 1
        if self._chance.random() < faults.duplicate:
            self._network.duplicated += 1
            copies = 2
        delay = self._chance.uniform(*faults.delay)
        self._network.delayed += delay > 0
        self._last = max(self._last, asyncio.get_running_loop().time() + delay)
        for _ in range(copies):
            self._queue.append((self._last, frame))
            self._queued += len(frame)
        if self._pump is None:
            self._sender.meter.wait()
            self._pump = self._network.spawn(self._run())

    def _full(self, frame: bytes) -> bool:
        return self._queued + len(frame) > limits.QUEUE_BYTES and self._queued > 0 and not self.broken

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                arrival, frame = self._queue.popleft()
                if arrival > loop.time():
                    await asyncio.sleep(arrival - loop.time())
                if self.broken:
                    return
                await self.receiver.deliver(self._sender.peer_id, self._channel, frame, self)
                self._queued -= len(frame)
                self._sender.meter.sent(len(frame))
                self._space.set()
        finally:
            self._pump = None
            self._sender.meter.go()

    async def flush(self) -> None:
        """Wait until everything is handled."""
        if self._pump is not None:
            await asyncio.wait([self._pump])

    def close(self) -> None:
        """What is queued is lost."""
        self.broken = True
        self._queue.clear()
        self._queued = 0
        self._space.set()


class MemoryTransport(TransportCore):
    """`base.Transport` in a `MemoryNetwork`. Made by `MemoryNetwork.transport`."""

    def __init__(
        self, network: MemoryNetwork, identity: PeerIdentity, run_digest: bytes, options: TransportOptions | None = None
    ) -> None:
        """See `TransportCore`."""
        super().__init__(identity, run_digest, options)
        self._network = network
        self._outgoing: dict[tuple[PeerId, str], _Link] = {}
        self._call_chances: dict[PeerId, random.Random] = {}
        self._sent = self._received = 0
        self._dead = asyncio.Event()
        self.meter = SendMeter()
        self.records = RecordStore()
        self.links: set[PeerId] = set()  # connected
        self.channels: set[PeerId] = set()  # had a channel with us, and are not gone
        self.dht_id = int.from_bytes(hashlib.sha1(self.peer_id.to_bytes()).digest(), "big")

    def swarm_time(self) -> float:
        """The swarm's time as this node knows it."""
        return self._clock.now()

    async def _up(self) -> None:
        self._network.enter(self._run, self)

    async def _down(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.FLUSH_SECONDS):
                for link in list(self._outgoing.values()):
                    await link.flush()
        self.die()

    def die(self) -> None:
        """End on the spot."""
        self._running = False
        self._dead.set()
        self._network.leave(self._run, self)
        for other in list(self.links | self.channels):
            self.lose(other, tell_us=False)

    def lose(self, other: PeerId, *, tell_us: bool = True) -> None:
        """The connection to `other` breaks, on both sides."""
        for key in [key for key in self._outgoing if key[0] == other]:
            self._outgoing.pop(key).close()
        self.links.discard(other)
        had = other in self.channels
        self.channels.discard(other)
        if had and tell_us and self._running:
            for handler in self._hooks.gone:
                asyncio.get_running_loop().call_soon(handler, other)
        node = self._network._nodes.get((self._run, other))
        if node is not None and self.peer_id in node.links | node.channels:
            node.lose(self.peer_id)

    def addresses(self) -> Sequence[str]:
        """See `base.Transport.addresses`."""
        return self.options.announce or [f"/memory/{self.peer_id.short}/p2p/{self.peer_id}"]

    async def _dial(self, peer: PeerId, some: Sequence[str]) -> None:
        await asyncio.sleep(0)
        if not any(address.startswith("/memory/") for address in some):
            raise Unreachable(f"{peer.short} has no address in memory")
        self._meet(self._network.find(self._run, self.peer_id, peer))

    def _meet(self, node: MemoryTransport) -> None:
        self.links.add(node.peer_id)
        node.links.add(self.peer_id)

    async def _connected(self) -> set[PeerId]:
        return set(self.links)

    def _acquainted(self) -> Mapping[PeerId, Sequence[str]]:
        return {}

    async def _met(self, peers: Sequence[PeerId]) -> None: ...

    async def _identity_taken(self, peers: Sequence[PeerId]) -> bool:
        return False  # `MemoryNetwork.enter` has looked

    def _background(self) -> Iterable[Coroutine[Any, Any, Any]]:
        return ()

    def _registered(self, name: str, *, is_call: bool) -> None: ...

    async def send(self, peer: PeerId, channel: str, frame: bytes) -> None:
        """See `base.Transport.send`."""
        if len(frame) > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"a frame of {len(frame)} bytes; the limit is {MAX_FRAME_BYTES}")
        await self.send_unchecked(peer, channel, frame)

    async def send_unchecked(self, peer: PeerId, channel: str, frame: bytes) -> None:
        """`send` as a peer that ignores the limit."""
        self._check_running()
        link = self._outgoing.get((peer, channel))
        if link is None or link.broken:
            node = self._network.find(self._run, self.peer_id, peer)
            if channel not in node._hooks.frames:
                raise Unreachable(f"{peer.short} has no channel {channel}")
            self._meet(node)
            self.channels.add(peer)
            node.channels.add(self.peer_id)
            link = self._outgoing[peer, channel] = _Link(self._network, self, node, channel)
        await link.put(frame)
        self._sent += len(frame)

    async def deliver(self, peer: PeerId, channel: str, frame: bytes, link: _Link) -> None:
        """A frame arrives."""
        if len(frame) > MAX_FRAME_BYTES:
            link.close()
            self._hooks.violated(peer, "frame-size")
            return
        if not self._running:
            return
        self._received += len(frame)
        try:
            await self._hooks.frames[channel](peer, frame)
        except PeerFault as fault:
            self._hooks.violated(peer, fault.clause)
        except Exception:
            logger.exception("a frame of channel %s could not be handled", channel)

    async def _ask(self, peer: PeerId, method: str, request: bytes) -> bytes:
        node = self._network.find(self._run, self.peer_id, peer)
        if method not in node._methods:
            raise Unreachable(f"{peer.short} has no method {method}")
        self._meet(node)
        faults = self._network.faults(self.peer_id, peer)
        chance = self._call_chances.setdefault(peer, self._network.chance(self.peer_id, peer, "calls"))
        if chance.random() < faults.drop:
            self._network.dropped += 1
            await asyncio.Future()  # the caller's timeout ends it
        delay = chance.uniform(*faults.delay)
        self._network.delayed += delay > 0
        await asyncio.sleep(delay)
        self._network.find(self._run, self.peer_id, peer)
        answer = self._network.spawn(node._answer(method, self.peer_id, request))
        dead = self._network.spawn(node._dead.wait())
        try:
            await asyncio.wait({answer, dead}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() or not self._network.joined(self.peer_id, peer):
                raise Unreachable(f"{peer.short} can't be reached any more")
            reply: bytes = answer.result()
            return reply
        finally:
            answer.cancel()
            dead.cancel()

    async def _put(self, source: bytes, subkey: bytes, raw: bytes, expiration: float) -> bool:
        await asyncio.sleep(0)
        hashed = hashlib.sha1(source).digest()
        return self._network.offer(self._run, self.peer_id, hashed, subkey, raw, expiration)

    async def _get(self, source: bytes) -> Iterable[tuple[bytes, bytes, float]]:
        await asyncio.sleep(0)
        return self._network.held(self._run, self.peer_id, hashlib.sha1(source).digest())

    def _kept(self) -> RecordStore:
        return self.records

    def traffic(self) -> Traffic:
        """See `base.Transport.traffic`."""
        return Traffic(self._sent + self._called_sent, self._received + self._called_received)

    def bandwidth(self) -> int:
        """See `base.Transport.bandwidth`."""
        return self.meter.rate()
