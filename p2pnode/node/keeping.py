"""What is kept and told of every certified round: history, served states, reports, invite, who was there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from p2pnode.exchange import Adopted
from p2pnode.home import write_atomically
from p2pnode.manifest import RunManifest
from p2pnode.node.inviting import Inviter
from p2pnode.node.members import Members
from p2pnode.node.reporting import Reporter, RoundReport
from p2pnode.round.effects import Committed
from p2pnode.round.evidence import Evidence
from p2pnode.sync import History, SyncServer
from p2pnode.transport.base import Traffic
from p2pnode.wire.evidence_pb2 import EvidenceFile


@dataclass(frozen=True)
class Spent:
    """This node's own side of a round: examples used in it, and epsilon spent so far (None without privacy)."""

    samples: int
    epsilon: float | None


@dataclass(frozen=True)
class Keeper:
    """Passes each certified round on to all who need it, whether we took part in it or caught up with it."""

    history: History
    server: SyncServer
    reporter: Reporter
    inviter: Inviter
    members: Members
    manifest: RunManifest
    evidence: Path  # directory

    def keep(self, outcome: Committed) -> None:
        """At once, before anything of the next round is done: the history is never behind what we sign."""
        self.history.append(outcome.certified.link, outcome.certified.record, time.monotonic())
        self.server.add(outcome.state)

    def tell(self, outcome: Committed, traffic: Traffic, spent: Spent) -> None:
        """A round that we took part in, or at least followed as it happened."""
        link, state = outcome.certified.link, outcome.state
        samples = spent.samples if outcome.contributed else 0
        self.reporter.put(RoundReport(link, state, outcome.contributed, samples, traffic, spent.epsilon))
        self.members.seen(link)
        self.inviter.write(state, time.monotonic())

    def keep_evidence(self, evidence: Evidence) -> Path:
        """Save it so that anyone can verify it; the file. StorageError."""
        path = self.evidence / f"{evidence.digest.hex()[:16]}.evidence"
        file = EvidenceFile(manifest=self.manifest.canonical, misbehaviour=evidence.raw)
        write_atomically(path, file.SerializeToString(deterministic=True))
        return path

    def tell_adopted(self, outcome: Adopted, traffic: Traffic, spent: Spent) -> None:
        """Rounds that others certified without us, ending in a state that we fetched."""
        for link in outcome.links:
            state = outcome.state if link.round == outcome.state.round else None
            self.reporter.put(RoundReport(link, state, False, 0, traffic, spent.epsilon))
        self.inviter.write(outcome.state, time.monotonic())
