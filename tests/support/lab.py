"""Nodes in one process over any transport: the real exchange, history, server and catching up, without training.

What is left out of a node: its task and data, its screen, and meeting others through the DHT.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from p2pnode.errors import NetworkError
from p2pnode.exchange import Adopted, GradientExchange, Journal, RoundOutcome
from p2pnode.home import RunFiles
from p2pnode.identity import PeerIdentity
from p2pnode.manifest import RunManifest
from p2pnode.node.catching_up import CatchUp
from p2pnode.node.finding import Run
from p2pnode.node.keeping import Keeper, Saver
from p2pnode.node.starting import Beginning, Voices
from p2pnode.replica.state import GlobalState
from p2pnode.round.contribution import Update
from p2pnode.round.effects import Behind
from p2pnode.round.rules import Rules
from p2pnode.sync import History, StateStore, SyncServer
from p2pnode.transport.base import Transport
from p2pnode.wire.round_pb2 import Mechanism


class LabNode:
    """One node. `async with` from a first state, or from what is in its folder; `outcomes` is all that its exchange
    told, `notices` all that it said when it began."""

    history: History
    states: StateStore
    catch_up: CatchUp

    def __init__(
        self, folder: Path, identity: PeerIdentity, manifest: RunManifest, transport: Transport, first: GlobalState
    ) -> None:
        self.identity = identity
        self.outcomes: list[RoundOutcome] = []
        self.notices: list[str] = []
        self.files = RunFiles(folder)
        self.transport = transport
        self.journal = Journal(self.files.journal)
        self.exchange = GradientExchange(Rules(manifest, first.parameter_count), identity, transport, self.journal)
        self.server = SyncServer(manifest, b"")
        self.server.register(transport)
        self.work_seconds = 0.05
        self._run = Run(manifest, b"", self.files, None, () if self.files.taken_part else None)
        self._first = first
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> LabNode:
        exchange, manifest = self.exchange, self._run.manifest
        voices = Voices(lambda number, state, roster: None, self.notices.append, self.notices.append)
        beginning = Beginning(self._run, exchange.rules, self.transport, self.journal, voices)
        begun = await beginning.begin(lambda: self._first)
        self.history, self.states = begun.history, beginning.states
        self.server.serve(self.history)
        self.server.add(begun.state)
        saver = Saver(self.states, self.history)
        untold: Any = None  # whoever tells people of rounds
        exchange.on_certified = Keeper(self.server, untold, untold, untold, manifest, self.files.directory, saver).keep
        self.catch_up = CatchUp(
            manifest, exchange, self.transport, self.history, self.server, self.states, lambda line: None
        )
        exchange.start(begun.state, self.history.tip, self.history.record_at(begun.state.round))
        for run in (self._follow, self._work, self.catch_up.watch, saver.run):
            self._tasks.append(asyncio.create_task(run()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.exchange.stop()
        self.history.close()

    async def _follow(self) -> None:
        while True:
            outcome = await self.exchange.outcomes.get()
            self.outcomes.append(outcome)
            if isinstance(outcome, Behind):
                self._tasks.append(asyncio.create_task(self._look(outcome)))

    async def _look(self, outcome: Behind) -> None:
        with contextlib.suppress(NetworkError):
            await self.catch_up.look(outcome.peers)

    async def _work(self) -> None:
        while True:
            machine = self.exchange.machine
            if machine.wants_update:
                number = machine.round
                await asyncio.sleep(self.work_seconds)
                if machine.round == number and machine.wants_update:
                    seed = blake3(self.identity.peer_id.key + number.to_bytes(8, "big")).digest()[:4]
                    rng = np.random.default_rng(int.from_bytes(seed, "big"))
                    values = rng.normal(0, 0.1, self.exchange.rules.values).astype(np.float32)
                    self.exchange.offer(Update(values, 1, Mechanism(mode="none")))
            await asyncio.sleep(0.01)

    @property
    def state(self) -> GlobalState:
        """The newest certified state."""
        return self.exchange.machine.state

    def adopted(self) -> list[Adopted]:
        """The times that it went over to others' states."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Adopted)]


async def until(what: Callable[[], bool], seconds: float) -> None:
    """Wait until it is so; AssertionError if it never is."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        await asyncio.sleep(0.02)
