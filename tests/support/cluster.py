"""Many round machines on a simulated network and clock: loss, duplication, delay, crashes and restarts, by seed.

Nothing here is a fake of the round: the machines are the real ones; only the wire and the clock are simulated.
"""

from __future__ import annotations

import heapq
import itertools
import random
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

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
from p2pnode.replica.branches import better, credible
from p2pnode.replica.chain import Certified, Link
from p2pnode.replica.roster import Roster, RosterEntry
from p2pnode.replica.state import NO_PARENT, GlobalState
from p2pnode.round.contribution import Update
from p2pnode.round.effects import Behind, Committed, Discarded, Effect, Halt, Persist, Rejected
from p2pnode.round.frames import Kind, Send
from p2pnode.round.machine import RoundMachine
from p2pnode.round.progress import Durable
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import Mechanism
from tests.support.witness import Witness

VALUES = 512
WATCH_SECONDS = 5.0  # as node/catching_up.py


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
    """What the network does to a frame. drop: kinds that never arrive; sides: peers on different sides can't talk."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.01, 0.05)
    drop: frozenset[Kind] = frozenset()
    kind_loss: dict[Kind, float] = field(default_factory=dict)  # on top, of some kinds
    sides: dict[PeerId, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Trap:
    """A crash between two effects: before, amid (a Send to some peers only) or after the next one that matches."""

    when: Literal["before", "amid", "after"]
    effect: Literal["promise", "update", "lock", "committed", "send"]

    def catches(self, effect: Effect) -> bool:
        """Whether this is the effect at which to crash."""
        if isinstance(effect, Persist):
            return effect.name == self.effect
        return (isinstance(effect, Send) and self.effect == "send") or (
            isinstance(effect, Committed) and self.effect == "committed"
        )


@dataclass
class SimChain:
    """A node's `branches.Chain`, from genesis on, and when each link was certified there."""

    links: list[Link]
    times: list[float]

    @property
    def first(self) -> int:
        return self.links[0].round

    @property
    def tip(self) -> Link:
        return self.links[-1]

    def digest_at(self, round_number: int) -> bytes | None:
        return self.links[round_number].digest if round_number < len(self.links) else None

    def link_at(self, round_number: int) -> Link:
        return self.links[round_number]

    def back_to(self, round_number: int) -> None:
        del self.links[round_number + 1 :], self.times[round_number + 1 :]

    def append(self, link: Link, now: float) -> None:
        self.links.append(link)
        self.times.append(now)

    def common(self, other: SimChain) -> int:
        """The last round that both have in common."""
        pairs = zip(self.links, other.links, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0].digest == pair[1].digest, pairs)) - 1


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
    lost: int = 0  # rounds, by going over to better branches
    chain: SimChain = field(default_factory=lambda: SimChain([], []))
    halted: str = ""
    training_until: float | None = None
    slow: float = 0.0  # seconds of local work on top
    trap: Trap | None = None
    traps_sprung: int = 0


class Cluster:
    """Nodes, a queue of frames in flight, and a clock."""

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        manifest: RunManifest | None = None,
        founders: int | None = None,
        asleep: int = 0,
    ):
        """founders: how many are on the first roster. asleep: how many, from the last, are not started yet."""
        self.random = random.Random(seed)
        self.now = 0.0
        self.faults = Faults()
        keys = identities(count)
        self.manifest = manifest or make_manifest(keys[0].peer_id)
        self.rules = Rules(self.manifest, VALUES)
        roster = full_roster(key.peer_id for key in keys[: founders or count])
        self.genesis = genesis(self.manifest, roster, VALUES)
        self.nodes = {key.peer_id: SimNode(key, None) for key in keys}
        for node in self.nodes.values():
            node.chain = SimChain([Link.of(self.genesis)], [0.0])
        self._next_watch = WATCH_SECONDS
        self.certificates: dict[int, set[bytes]] = {}
        self._queue: list[tuple[float, int, PeerId, PeerId, bytes]] = []
        self._ticket = itertools.count()
        self._next_tick = 0.0
        self.local_work = 0.2
        self.contributing = set(self.nodes)
        self.witness = Witness(self.manifest, VALUES, self.genesis)
        self.forgets: frozenset[str] = frozenset()  # records that never reach any disk: for mutants
        self.twist: dict[PeerId, Callable[[PeerId, bytes], Iterable[bytes]]] = {}  # what a liar sends instead
        self.overhear: dict[PeerId, Callable[[PeerId, bytes], None]] = {}  # what a liar does with what it receives
        for peer in list(self.nodes)[: count - asleep]:
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
        with self._watched(peer):
            machine = node.machine = RoundMachine(
                self.rules, node.identity, Link.of(state), state, durable, self.random.randbytes, self.now
            )
            node.training_until = None
            for other, running in self.nodes.items():
                if other != peer and running.machine is None and self.now > 0:
                    machine.peer_gone(other, self.now)
        self._carry_out(peer)

    @contextmanager
    def _watched(self, peer: PeerId) -> Iterator[None]:
        """No machine may raise, whatever comes in: if one does, that is a violation, and the node is dead."""
        try:
            yield
        except Exception:
            self.witness.accuse("exception", f"{peer.short}: {traceback.format_exc(limit=-4)}")
            self.nodes[peer].machine = None

    def crash(self, peer: PeerId, *, noticed: bool = True) -> None:
        """Kill a node: its memory and all frames in flight to it are lost."""
        self.nodes[peer].machine = None
        self.nodes[peer].trap = None
        self._queue = [item for item in self._queue if item[3] != peer]
        heapq.heapify(self._queue)
        if noticed:
            for other, node in self.nodes.items():
                if node.machine is not None:
                    with self._watched(other):
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
                if to in self.overhear:
                    self.overhear[to](sender, data)
                if node.machine is not None:
                    with self._watched(to):
                        self.witness.verdict(sender, to, node.machine.receive(sender, data, self.now))
                    self._carry_out(to)
            else:
                self.now = self._next_tick
                self._next_tick += 0.1
                self._tick()

    def lowest_round(self) -> int:
        """The last round that every running node has certified."""
        running = [node for node in self.nodes.values() if node.machine is not None]
        return min((node.machine.round - 1 for node in running if node.machine), default=0)

    def highest_round(self) -> int:
        """The last round that any node has certified."""
        return max((node.state.round for node in self.nodes.values() if node.state is not None), default=0)

    def rewind(self, peer: PeerId, rounds: int) -> None:
        """A node that is down loses its newest states, as one does that syncs from a peer that is behind. What it
        promised and voted stays on its disk."""
        node = self.nodes[peer]
        assert node.machine is None
        older = node.committed[-1 - rounds] if len(node.committed) > rounds else None
        node.state = self.witness.state(older.link.digest) if older is not None else None
        node.disk.pop("record", None)
        node.chain.back_to(node.state.round if node.state is not None else 0)
        if older is not None:
            node.disk["record"] = older.record

    def lose_touch(self, peer: PeerId, other: PeerId) -> None:
        """`peer`'s connection to `other` breaks; `peer` is told."""
        with self._watched(peer):
            self.machine(peer).peer_gone(other, self.now)
        self._carry_out(peer)

    def leave(self, peer: PeerId, *, by_entry: bool) -> None:
        """`peer` says in its entries from now on that it leaves; or signs a leave and is down afterwards."""
        if by_entry:
            self.machine(peer).prepare_to_leave()
            return
        with self._watched(peer):
            self.machine(peer).leave()
        self._carry_out(peer)
        if self.nodes[peer].machine is not None:
            self.crash(peer)

    def _tick(self) -> None:
        if self.now >= self._next_watch:
            self._next_watch = self.now + WATCH_SECONDS
            for peer in self.nodes:
                self._watch(peer)
        for peer, node in self.nodes.items():
            machine = node.machine
            if machine is None:
                continue
            with self._watched(peer):
                if machine.wants_update:
                    if node.training_until is None:
                        node.training_until = self.now + self.local_work * (0.5 + self.random.random()) + node.slow
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
            if node.machine is not machine:
                return  # it died of an earlier effect
            if node.trap is not None and node.trap.catches(effect):
                when, node.trap = node.trap.when, None
                node.traps_sprung += 1
                if when == "after":
                    self._do(peer, node, effect)
                elif when == "amid" and isinstance(effect, Send):
                    self._send(peer, effect, effect.peers[: len(effect.peers) // 2])
                self.crash(peer, noticed=self.random.random() < 0.5)
                return
            self._do(peer, node, effect)

    def _send(self, peer: PeerId, effect: Send, peers: Iterable[PeerId]) -> None:
        for to in peers:
            for data in effect.frames:
                self.post(peer, to, data)

    def _do(self, peer: PeerId, node: SimNode, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._send(peer, effect, effect.peers)
        elif isinstance(effect, Persist):
            if effect.name not in self.forgets:
                node.disk[effect.name] = effect.data
        elif isinstance(effect, Committed):
            node.state = effect.state
            node.committed.append(effect.certified)
            node.chain.append(effect.certified.link, self.now)
            node.disk["record"] = effect.certified.record
            node.training_until = None
            self.certificates.setdefault(effect.state.round, set()).add(effect.state.digest)
            self.witness.committed(peer, effect)
        elif isinstance(effect, Discarded):
            node.discarded.append(effect)
        elif isinstance(effect, Rejected):
            node.rejected.append(effect)
        elif isinstance(effect, Behind):
            node.behind += 1
            self._look(peer, self._reachable(peer))
        elif isinstance(effect, Halt):
            node.halted = effect.reason
            self.witness.accuse("halt", f"{peer.short}: {effect.reason}")

    def _reachable(self, peer: PeerId) -> list[PeerId]:
        sides = self.faults.sides
        running = [other for other, node in self.nodes.items() if node.machine is not None and other != peer]
        return [other for other in running if sides.get(other, 0) == sides.get(peer, 0)]

    def _watch(self, peer: PeerId) -> None:
        """What node/catching_up.py does now and then: look at a peer that takes no part in our rounds."""
        node = self.nodes[peer]
        if node.machine is None:
            return
        inside = {*node.chain.tip.contributors, *node.chain.tip.roster.members}
        outside = [other for other in self._reachable(peer) if other not in inside]
        if outside:
            self._look(peer, [self.random.choice(outside)])

    def _look(self, peer: PeerId, others: Iterable[PeerId]) -> None:
        """What the driver does for a node that is behind, or on another branch: go over to a better chain."""
        node = self.nodes[peer]
        adopted = False
        for other in others:
            chain = self.nodes[other].chain
            common = node.chain.common(chain)
            theirs = chain.links[common + 1 :]
            waited = self.now - node.chain.times[common]
            if not better(node.chain, common, theirs):
                continue
            if not credible(theirs, waited, self.manifest.roster.provisional_after):
                continue
            node.lost += node.chain.tip.round - common
            node.chain.back_to(common)
            for link in theirs:
                node.chain.append(link, self.now)
            adopted = True
        state = self.witness.state(node.chain.tip.digest)
        if adopted and state is not None and node.machine is not None:
            node.disk.pop("record", None)
            node.state = state
            node.training_until = None
            with self._watched(peer):
                node.machine.adopt(state, node.chain.tip, self.now)
            self._carry_out(peer)

    def agree(self) -> bool:
        """Whether the chains of all running nodes are one, some longer than others."""
        chains = [node.chain for node in self.nodes.values() if node.machine is not None]
        return all(
            one.common(other) == min(one.tip.round, other.tip.round) for one, other in itertools.combinations(chains, 2)
        )

    def post(self, sender: PeerId, to: PeerId, data: bytes) -> None:
        """Put a frame on the wire."""
        for sent in self.twist[sender](to, data) if sender in self.twist else (data,):
            self.deliver(sender, to, sent)

    def deliver(self, sender: PeerId, to: PeerId, data: bytes) -> None:
        """What the wire does with a frame."""
        self.witness.frame(data)
        faults = self.faults
        rare = faults.kind_loss.get(Kind(data[0]), 0.0) if faults.kind_loss else 0.0
        lost = self.random.random() < max(faults.loss, rare) or data[0] in faults.drop
        apart = faults.sides.get(sender, 0) != faults.sides.get(to, 0)
        if to not in self.nodes or self.nodes[to].machine is None or lost or apart:
            return
        copies = 2 if self.random.random() < faults.duplicate else 1
        for _ in range(copies):
            at = self.now + self.random.uniform(*faults.delay)
            heapq.heappush(self._queue, (at, next(self._ticket), sender, to, data))
