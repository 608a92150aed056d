"""What can go wrong in a cluster, as operations: used by the hypothesis state machine and by scripts/model-check.

`Chaos` does harm and then, in `recover`, checks that the run gets on: two more rounds, within as many attempts as there
are members and within a time bound. `play` is one random scenario, wholly determined by its seed.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

from p2pnode.identity import PeerId
from p2pnode.manifest import DeadlinesSection, RosterSection
from p2pnode.round.frames import Kind
from p2pnode.round.machine import LEAVE_STEP
from tests.support.cluster import Cluster, Faults, Trap, identities, make_manifest
from tests.support.liar import EquivocatingReducer

RECOVER_SECONDS: Final = 150.0  # of simulated time, for two rounds
REUNITE_SECONDS: Final = 300.0  # of simulated time, for branches to become one
PROVISIONAL_AFTER: Final = 15.0
KINDS: Final = (Kind.ENTRY, Kind.PROPOSAL, Kind.COMMITMENT, Kind.OUTPUT, Kind.OUTPUT_CHUNK, Kind.CLOSING, Kind.VOTE,
                Kind.CERTIFICATE, Kind.WANT, Kind.CHUNK)  # fmt: skip
_MOMENTS: Final[tuple[Literal["before", "after"], ...]] = ("before", "after")
_RECORDS: Final[tuple[Literal["promise", "update", "lock", "committed"], ...]] = (
    "promise",
    "update",
    "lock",
    "committed",
)
TRAPS: Final = (
    *(Trap(when, what) for what in _RECORDS for when in _MOMENTS),
    Trap("before", "send"),
    Trap("amid", "send"),
    Trap("after", "send"),
)


@dataclass
class Recovery:
    """What it took to get on after the faults: rounds made, attempts of the worst round, simulated seconds."""

    rounds: int = 0
    attempts: int = 0
    seconds: float = 0.0


class Chaos:
    """A cluster and the harm done to it so far."""

    def __init__(
        self, count: int, *, seed: int = 0, founders: int = 0, asleep: int = 0, provisional: bool = False,
        liar: bool = False, hasty: bool = False,
    ) -> None:  # fmt: skip
        """hasty: short deadlines, for scenarios of many failed attempts."""
        sections: dict[str, object] = {}
        if provisional:
            sections["roster"] = RosterSection(provisional_after=PROVISIONAL_AFTER, company_wait=0)
        if hasty:
            sections["deadlines"] = DeadlinesSection(gather=0.5, contribute=0.5, close=0.5, vote=0.5)
        manifest = make_manifest(identities(1)[0].peer_id, **sections)
        self.cluster = Cluster(count, seed=seed, manifest=manifest, founders=founders or None, asleep=asleep)
        self.peers = sorted(self.cluster.nodes)
        self.provisional = provisional
        self.liar: EquivocatingReducer | None = None
        if liar:
            members = self.cluster.genesis.roster.members
            self.liar = EquivocatingReducer(self.cluster, members[seed % len(members)])
        self.done: Counter[str] = Counter()

    def peer(self, index: int) -> PeerId:
        """The peer with this number, modulo their count."""
        return self.peers[index % len(self.peers)]

    def up(self, peer: PeerId) -> bool:
        """Whether the peer's machine runs."""
        return self.cluster.nodes[peer].machine is not None

    # harm

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.cluster.run(seconds)

    def weather(self, loss: float, duplicate: float, slowest: float) -> None:
        """Loss, duplicates, and delays up to `slowest` seconds, which also reorder."""
        faults = self.cluster.faults
        faults.loss, faults.duplicate, faults.delay = loss, duplicate, (0.005, slowest)
        self.done["weather"] += 1

    def silence(self, kinds: frozenset[Kind]) -> None:
        """Lose all frames of some kinds."""
        self.cluster.faults.drop = kinds
        self.done["silence"] += 1

    def split(self, sides: dict[PeerId, int]) -> None:
        """A partition of the network."""
        self.cluster.faults.sides = sides
        self.done["split"] += 1

    def crash(self, peer: PeerId, *, noticed: bool) -> None:
        """Kill a node."""
        if self.up(peer):
            self.cluster.crash(peer, noticed=noticed)
            self.done["crash"] += 1

    def trap(self, peer: PeerId, trap: Trap) -> None:
        """Kill a node between two effects, the next time that it gets there."""
        if self.up(peer):
            self.cluster.nodes[peer].trap = trap

    def restart(self, peer: PeerId) -> None:
        """Start a node that is down, from its disk."""
        if not self.up(peer):
            self.cluster.start(peer)
            self.done["restart"] += 1

    def rewind(self, peer: PeerId, rounds: int) -> None:
        """A node that is down comes back some rounds behind; not if nobody else could tell it what it missed."""
        node = self.cluster.nodes[peer]
        others = (self.cluster.nodes[other] for other in self.peers if other != peer and self.up(other))
        newest = max((other.state.round for other in others if other.state is not None), default=0)
        older = node.committed[-1 - rounds].link.roster if len(node.committed) > rounds else self.cluster.genesis.roster
        if older.members == (peer,):
            return  # alone on the roster it makes the same rounds again, by intent: nobody could tell it of them
        if not self.up(peer) and node.state is not None and newest >= node.state.round and not self.provisional:
            self.cluster.rewind(peer, rounds)
            self.done["rewind"] += 1

    def dawdle(self, peer: PeerId, seconds: float) -> None:
        """Its local work takes longer from now on."""
        self.cluster.nodes[peer].slow = seconds

    def lose_touch(self, peer: PeerId, other: PeerId) -> None:
        """A connection breaks, though both live."""
        if self.up(peer) and peer != other:
            self.cluster.lose_touch(peer, other)
            self.done["lose_touch"] += 1

    def leave(self, peer: PeerId, *, by_entry: bool) -> None:
        """Say goodbye, in the next entries or by a signed leave; in the latter case it is down afterwards."""
        if not self.up(peer):
            return
        self.cluster.leave(peer, by_entry=by_entry)
        self.done["leave"] += 1

    # and its end

    def heal(self) -> None:
        """No more faults; everybody runs."""
        self.cluster.faults = Faults()
        for peer in self.peers:
            node = self.cluster.nodes[peer]
            node.slow, node.trap = 0.0, None
            if node.machine is None:
                self.cluster.start(peer)

    def recover(self) -> Recovery:
        """Heal, and see two more rounds certified; a violation "progress" if that takes too much."""
        self.heal()
        cluster = self.cluster
        if self.provisional:
            return self._reunite()
        rounds = [cluster.machine(peer)._c.round for peer in self.peers]
        reached = max(max(r.attempt, r.promised) for r in rounds)  # what was promised before a restart counts too
        started_round, began = cluster.highest_round() + 1, cluster.now
        target = started_round + 1
        cluster.run(RECOVER_SECONDS, until_round=target)
        found = Recovery(seconds=cluster.now - began)
        found.rounds = cluster.lowest_round() - (started_round - 1)
        if found.rounds < 2:
            waits = {peer.short: (node.machine.round, node.machine.attempt) for peer in self.peers
                     if (node := cluster.nodes[peer]).machine}  # fmt: skip
            cluster.witness.accuse("progress", f"{found.rounds} rounds in {found.seconds:.0f} s: {waits}")
            return found
        members = max(len(node.state.roster.members) for node in cluster.nodes.values() if node.state)
        for node in cluster.nodes.values():
            for certified in node.committed:
                link = certified.link
                if started_round <= link.round <= target:
                    before = reached if link.round == started_round else -1
                    if link.attempt // LEAVE_STEP > max(before, 0) // LEAVE_STEP:  # one who left has come back
                        before = link.attempt // LEAVE_STEP * LEAVE_STEP - 1
                    found.attempts = max(found.attempts, link.attempt - before)
        if found.attempts > members + 1:
            cluster.witness.accuse("progress", f"{found.attempts} attempts for {members} members")
        return found

    def _reunite(self) -> Recovery:
        """Branches that came of provisional rounds become one, and two more rounds are made of it."""
        cluster, began = self.cluster, self.cluster.now
        while not cluster.agree() and cluster.now < began + REUNITE_SECONDS:
            cluster.run(1.0)
        target = cluster.highest_round() + 2
        cluster.run(RECOVER_SECONDS, until_round=target)
        found = Recovery(2, 0, cluster.now - began)
        if not cluster.agree() or cluster.lowest_round() < target:
            running = {peer.short: node for peer in self.peers if (node := cluster.nodes[peer]).machine}
            tips = {name: (node.chain.tip.round, node.chain.tip.digest[:3].hex(), len(node.chain.tip.roster.members))
                    for name, node in running.items()}  # fmt: skip
            cluster.witness.accuse("progress", f"not reunited after {found.seconds:.0f} s: {tips}")
        return found


@dataclass
class Story:
    """What came of one scenario."""

    seed: int
    violations: list[tuple[str, str]]
    rounds: int = 0
    records: int = 0
    relocks: int = 0
    recovery: Recovery = field(default_factory=Recovery)
    done: Counter[str] = field(default_factory=Counter)
    clauses: Counter[str] = field(default_factory=Counter)


def play(
    seed: int, *, steps: int = 25, provisional: bool = False, liar: bool = False, mutant: str = "",
    stop_on_violation: bool = False,
) -> Story:  # fmt: skip
    """One random scenario. mutant: only the digests of certified states are compared (see tests.support.mutants)."""
    rng = random.Random(seed)
    count = 3 if mutant in ("votes", "locks") else rng.randint(3, 5) if liar or mutant else rng.randint(1, 7)
    founders = count if liar or mutant or rng.random() < 0.6 else rng.randint(1, count)
    asleep = rng.randint(0, count - founders)
    torn = rng.random() < 0.3 or mutant in ("votes", "locks")
    chaos = Chaos(
        count, seed=seed, founders=founders, asleep=asleep, provisional=provisional, liar=liar,
        hasty=torn and not provisional,
    )  # fmt: skip
    witness = chaos.cluster.witness
    witness.only_digests = bool(mutant)
    if mutant == "promises":
        chaos.cluster.forgets = frozenset({"promise"})
    stormy = rng.random() < 0.6
    for _ in range(steps):
        if torn:
            _tear(chaos, rng)
        else:
            _harm(chaos, rng, stormy=stormy, deadly=mutant != "closing" and not liar)
        if stop_on_violation and witness.violations:
            break
    recovery = Recovery()
    if not mutant:
        recovery = chaos.recover()
    if chaos.liar is not None:
        chaos.done["lie"] = chaos.liar.lies
    rounds = chaos.cluster.highest_round()
    chaos.done["trap"] = sum(node.traps_sprung for node in chaos.cluster.nodes.values())
    return Story(
        seed, witness.violations, rounds, witness.records, witness.relocks, recovery, chaos.done, witness.clauses
    )


def _harm(chaos: Chaos, rng: random.Random, *, stormy: bool, deadly: bool) -> None:
    peer = chaos.peer(rng.randrange(100))
    dice = rng.random()
    if dice < 0.12:
        most = 0.5 if stormy else 0.15
        chaos.weather(rng.random() * most, rng.random() * 0.3, rng.choice([0.02, 0.05, 0.5, 2.0]))
    elif dice < 0.24:
        chaos.silence(frozenset(rng.sample(KINDS, rng.choice([0, 0, 1, 1, 2]))))
    elif dice < 0.34:
        sides = rng.choice([1, 1, 2, 3])
        chaos.split({other: rng.randrange(sides) for other in chaos.peers})
    elif dice < 0.44 and deadly:
        chaos.crash(peer, noticed=rng.random() < 0.6)
    elif dice < 0.60 and deadly:
        chaos.trap(peer, rng.choice(TRAPS))
    elif dice < 0.86:
        if rng.random() < 0.3 and not chaos.cluster.witness.only_digests:
            chaos.rewind(peer, rng.choice([1, 1, 2, 4]))
        chaos.restart(peer)
    elif dice < 0.90:
        chaos.dawdle(peer, rng.choice([0.0, 1.0, 8.0]))
    elif dice < 0.95:
        chaos.lose_touch(peer, chaos.peer(rng.randrange(100)))
    elif dice < 0.98 and deadly:
        chaos.leave(peer, by_entry=rng.random() < 0.5)
    chaos.wait(rng.choice([0.05, 0.3, 1.0, 3.0, 8.0]))


def _tear(chaos: Chaos, rng: random.Random) -> None:
    """Until somebody votes, one member is cut off, best who voted last, and Closings get lost: locks on different
    Closings come about."""
    cluster = chaos.cluster
    cluster.faults.kind_loss = {
        Kind.CLOSING: float(rng.random() < 0.5),
        Kind.PROPOSAL: rng.choice([0.0, 0.0, 0.5]),
    }
    alone = chaos.peer(rng.randrange(100))
    if cluster.witness.last_voter is not None and rng.random() < 0.75:
        alone = cluster.witness.last_voter
    chaos.split({alone: 1} if rng.random() < 0.85 else {})
    if rng.random() < 0.1:
        chaos.trap(alone, rng.choice(TRAPS))
    if rng.random() < 0.3:
        chaos.restart(chaos.peer(rng.randrange(100)))
    votes, until = cluster.witness.votes, cluster.now + 4
    while cluster.witness.votes == votes and cluster.now < until:
        cluster.run(0.1)
    cluster.run(0.2 * rng.random())
