"""Many round machines on a simulated network and clock: loss, duplication, delay, crashes and restarts, by seed.

Nothing here is a fake of the round: the machines are the real ones; only the wire and the clock are simulated.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.manifest import (
    DeadlinesSection,
    ExchangeSection,
    LimitsSection,
    PrivacySection,
    RosterSection,
    RunManifest,
    TaskSection,
)
from p2pnode.replica.chain import Certified, Link
from p2pnode.replica.roster import Roster, RosterEntry
from p2pnode.replica.state import NO_PARENT, GlobalState
from p2pnode.round.contribution import Update
from p2pnode.round.effects import Behind, Committed, Discarded, Halt, Persist, Rejected
from p2pnode.round.frames import Send
from p2pnode.round.machine import RoundMachine
from p2pnode.round.progress import Durable
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import Mechanism

VALUES = 512


def identities(count: int) -> list[PeerIdentity]:
    """Fixed identities."""
    return [PeerIdentity.from_seed(blake3(b"test identity %d" % i).digest()) for i in range(count)]


def make_manifest(author: PeerId, **changes: object) -> RunManifest:
    """A small run without privacy; sections can be replaced."""
    sections: dict[str, object] = {
        "name": "simulated",
        "author": author.text,
        "task": TaskSection(name="digits", data_digest="0" * 64, schema_digest="0" * 64),
        "privacy": PrivacySection(mode="none"),
        "exchange": ExchangeSection(),
        "roster": RosterSection(provisional_after=600, company_wait=0),
        "limits": LimitsSection(chunk_bytes=1024),
        "deadlines": DeadlinesSection(gather=4, contribute=4, close=4, vote=4),
    }
    return RunManifest.model_validate(sections | changes)


def full_roster(peers: Iterable[PeerId]) -> Roster:
    """A roster of members, as if they had always been there."""
    return Roster(tuple(RosterEntry(peer, 0, 0, True) for peer in sorted(peers)))


def genesis(manifest: RunManifest, roster: Roster, values: int = VALUES) -> GlobalState:
    """A first state of zeros."""
    return GlobalState(manifest.digest, 0, NO_PARENT, roster, np.zeros(values, dtype=np.float32), values)


@dataclass
class Faults:
    """What the network does to a frame."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.01, 0.05)


@dataclass
class SimNode:
    """One machine and its disk."""

    identity: PeerIdentity
    machine: RoundMachine | None
    disk: dict[str, bytes] = field(default_factory=dict)
    committed: list[Certified] = field(default_factory=list)
    state: GlobalState | None = None
    discarded: list[Discarded] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    behind: int = 0
    halted: str = ""
    training_until: float | None = None


class Cluster:
    """Nodes, a queue of frames in flight, and a clock."""

    def __init__(self, count: int, *, seed: int = 0, manifest: RunManifest | None = None, founders: int | None = None):
        self.random = random.Random(seed)
        self.now = 0.0
        self.faults = Faults()
        keys = identities(count)
        self.manifest = manifest or make_manifest(keys[0].peer_id)
        self.rules = Rules(self.manifest, VALUES)
        roster = full_roster(key.peer_id for key in keys[: founders or count])
        self.genesis = genesis(self.manifest, roster)
        self.nodes = {key.peer_id: SimNode(key, None) for key in keys}
        self.certificates: dict[int, set[bytes]] = {}
        self._queue: list[tuple[float, int, PeerId, PeerId, bytes]] = []
        self._ticket = itertools.count()
        self._next_tick = 0.0
        self.local_work = 0.2
        self.contributing = set(self.nodes)
        self.tamper: dict[PeerId, object] = {}
        for peer in self.nodes:
            self.start(peer)

    def machine(self, peer: PeerId) -> RoundMachine:
        """The running machine of `peer`."""
        machine = self.nodes[peer].machine
        assert machine is not None
        return machine

    def start(self, peer: PeerId) -> None:
        """Start or restart a node from its disk."""
        node = self.nodes[peer]
        assert node.machine is None
        disk = node.disk
        durable = Durable(disk.get("promise"), disk.get("update"), disk.get("lock"), disk.get("record"))
        state = node.state or self.genesis
        node.machine = RoundMachine(
            self.rules, node.identity, Link.of(state), state, durable, self.random.randbytes, self.now
        )
        node.training_until = None
        for other, running in self.nodes.items():
            if other != peer and running.machine is None and self.now > 0:
                node.machine.peer_gone(other, self.now)
        self._carry_out(peer)

    def crash(self, peer: PeerId, *, noticed: bool = True) -> None:
        """Kill a node: its memory and all frames in flight to it are lost."""
        self.nodes[peer].machine = None
        self._queue = [item for item in self._queue if item[3] != peer]
        heapq.heapify(self._queue)
        if noticed:
            for other, node in self.nodes.items():
                if node.machine is not None:
                    node.machine.peer_gone(peer, self.now)
                    self._carry_out(other)

    def run(self, seconds: float, *, until_round: int | None = None) -> None:
        """Let time pass; stop early once every running node has certified `until_round`."""
        end = self.now + seconds
        while self.now < end:
            if until_round is not None and self.lowest_round() >= until_round:
                return
            if self._queue and self._queue[0][0] <= self._next_tick:
                self.now, _, sender, to, data = heapq.heappop(self._queue)
                node = self.nodes[to]
                if node.machine is not None:
                    node.machine.receive(sender, data, self.now)
                    self._carry_out(to)
            else:
                self.now = self._next_tick
                self._next_tick += 0.1
                self._tick()

    def lowest_round(self) -> int:
        """The last round that every running node has certified."""
        running = [node for node in self.nodes.values() if node.machine is not None]
        return min((node.machine.round - 1 for node in running if node.machine), default=0)

    def _tick(self) -> None:
        for peer, node in self.nodes.items():
            machine = node.machine
            if machine is None:
                continue
            if machine.wants_update:
                if node.training_until is None:
                    node.training_until = self.now + self.local_work * (0.5 + self.random.random())
                elif self.now >= node.training_until:
                    node.training_until = None
                    machine.offer(self.update_of(peer, machine.round), self.now)
            machine.tick(self.now)
            self._carry_out(peer)

    def update_of(self, peer: PeerId, round_number: int) -> Update | None:
        """What `peer` contributes to a round: the same whenever it is asked."""
        if peer not in self.contributing:
            return None
        seed = int.from_bytes(blake3(peer.key + round_number.to_bytes(8, "big")).digest()[:4], "big")
        values = np.random.default_rng(seed).normal(0, 0.1, VALUES).astype(np.float32)
        return Update(values, 1, Mechanism(mode="none"))

    def _carry_out(self, peer: PeerId) -> None:
        node = self.nodes[peer]
        machine = node.machine
        if machine is None:
            return
        for effect in machine.drain():
            if isinstance(effect, Send):
                for to in effect.peers:
                    for data in effect.frames:
                        self.post(peer, to, data)
            elif isinstance(effect, Persist):
                node.disk[effect.name] = effect.data
            elif isinstance(effect, Committed):
                node.state = effect.state
                node.committed.append(effect.certified)
                node.disk["record"] = effect.certified.record
                node.training_until = None
                self.certificates.setdefault(effect.state.round, set()).add(effect.state.digest)
            elif isinstance(effect, Discarded):
                node.discarded.append(effect)
            elif isinstance(effect, Rejected):
                node.rejected.append(effect)
            elif isinstance(effect, Behind):
                node.behind += 1
                self._sync(peer)
            elif isinstance(effect, Halt):
                node.halted = effect.reason

    def _sync(self, peer: PeerId) -> None:
        """What the driver does for a node that is behind: adopt a verified state."""
        node = self.nodes[peer]
        ahead = [n.state for n in self.nodes.values() if n.machine is not None and n.state is not None]
        best = max(ahead, key=lambda state: state.round, default=None)
        node.disk.pop("record", None)
        if best is not None and node.machine is not None and best.round >= node.machine.round:
            node.state = best
            node.training_until = None
            node.machine.adopt(best, Link.of(best), self.now)

    def post(self, sender: PeerId, to: PeerId, data: bytes) -> None:
        """Put a frame on the wire."""
        if self.nodes[to].machine is None or self.random.random() < self.faults.loss:
            return
        copies = 2 if self.random.random() < self.faults.duplicate else 1
        for _ in range(copies):
            at = self.now + self.random.uniform(*self.faults.delay)
            heapq.heappush(self._queue, (at, next(self._ticket), sender, to, data))
