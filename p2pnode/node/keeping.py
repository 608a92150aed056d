"""What is kept and told of every certified round: history, states, reports, invite, who was there."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from p2pnode.exchange import Adopted
from p2pnode.home import write_atomically
from p2pnode.manifest import RunManifest
from p2pnode.node.inviting import Inviter
from p2pnode.node.members import Members
from p2pnode.node.reporting import Reporter, RoundReport
from p2pnode.replica.state import GlobalState
from p2pnode.round.effects import Committed
from p2pnode.round.evidence import Evidence, to_file
from p2pnode.sync import History, StateStore, SyncServer
from p2pnode.transport.base import Traffic

SAVING_SHARE: Final = 0.05  # of the time, at most, goes into saving whole states


@dataclass(frozen=True)
class Spent:
    """This node's own side of a round: examples used in it, and epsilon spent so far (None without privacy)."""

    samples: int
    epsilon: float | None


class Saver:
    """Saves the newest whole state now and then, in a thread of its own, so that rounds do not wait for it."""

    def __init__(self, states: StateStore, history: History) -> None:
        self.states = states
        self.history = history
        self._newest: GlobalState | None = None
        self._news = asyncio.Event()

    def put(self, state: GlobalState) -> None:
        """A newer state: it is saved unless a still newer one comes first."""
        self._newest = state
        self._news.set()

    async def run(self) -> NoReturn:
        """Forever. StorageError."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._newest is None:
                continue
            began = time.monotonic()
            await asyncio.to_thread(self.states.write, self._newest)
            self.states.prune(self.history)
            await asyncio.sleep((time.monotonic() - began) * (1 / SAVING_SHARE - 1))


@dataclass(frozen=True)
class Keeper:
    """Passes each certified round on to all who need it, whether we took part in it or caught up with it."""

    server: SyncServer
    reporter: Reporter
    inviter: Inviter
    members: Members
    manifest: RunManifest
    evidence: Path  # directory
    saver: Saver

    def keep(self, outcome: Committed) -> None:
        """At once, before anything of the next round is done: the history is never behind what we sign.

        Outputs first: whatever the history's last round is, its state can be had from this disk.
        """
        self.saver.states.write_outputs(outcome.state, outcome.outputs)
        self.saver.history.append(outcome.certified.link, outcome.certified.record, time.time())
        self.server.add(outcome.state)
        self.saver.put(outcome.state)

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
        write_atomically(path, to_file(evidence, self.manifest))
        return path

    def tell_adopted(self, outcome: Adopted, traffic: Traffic, spent: Spent) -> None:
        """Rounds that others certified without us, ending in a state that we fetched."""
        for link in outcome.links:
            state = outcome.state if link.round == outcome.state.round else None
            self.reporter.put(RoundReport(link, state, False, 0, traffic, spent.epsilon))
        self.inviter.write(outcome.state, time.monotonic())
