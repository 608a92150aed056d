"""A peer that breaks the rules: the real exchange over real hivemind, with what it sends changed on the way out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from p2pnode.errors import NetworkError
from p2pnode.exchange import BULK, CONTROL, GradientExchange, Journal
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.invite import Invite
from p2pnode.manifest import RunManifest
from p2pnode.round.contribution import Update
from p2pnode.round.effects import Behind, Committed
from p2pnode.round.frames import Kind
from p2pnode.round.rules import Rules
from p2pnode.sync import ChainLog, History, SyncClient
from p2pnode.transport.base import TransportOptions
from p2pnode.transport.hivemind import HivemindTransport
from p2pnode.wire.round_pb2 import Mechanism

Tamper = Callable[[Kind, bytes], bytes]
"""(kind, payload) -> payload as it is sent."""


class RogueTransport(HivemindTransport):
    """Changes frames on their way out, and remembers what came in."""

    tamper: Tamper | None = None
    fired = 0
    last_entry = b""  # the payload that we sent

    async def send(self, peer: PeerId, channel: str, frame: bytes) -> None:
        if frame[0] == Kind.ENTRY:
            self.last_entry = frame[1:]
        if self.tamper is not None:
            payload = self.tamper(Kind(frame[0]), frame[1:])
            if payload != frame[1:]:
                self.fired += 1
                frame = frame[:1] + payload
        await super().send(peer, channel, frame)


class Rogue:
    """A contributor that joins a run, contributes zeros, and tampers. Use `async with`."""

    def __init__(self, folder: Path, invite: str, values: int) -> None:
        self.invite = Invite.parse(invite)
        self.identity = PeerIdentity.generate()
        options = TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",), bootstraps=self.invite.addresses)
        self.transport = RogueTransport(self.identity, self.invite.run, options)
        self.values = values
        self.heard: list[tuple[PeerId, bytes]] = []
        self._folder = folder
        self._history: History | None = None
        self._exchange: GradientExchange | None = None
        self._task: asyncio.Task[None] | None = None
        self.manifest: RunManifest | None = None
        self.counted: list[int] = []  # rounds in which our contribution counted
        self.update: np.ndarray = np.zeros(values, dtype=np.float32)

    async def __aenter__(self) -> Rogue:
        await self.transport.start()
        client = SyncClient(self.transport)
        self.manifest, _ = await client.manifest(self.invite, self.invite.bootstraps)
        peers = self.invite.bootstraps
        start = await client.checkpoint(self.invite, self.manifest, peers)
        log = ChainLog(self._folder / "rogue" / "chain.log")
        history = self._history = History(start, log, self.manifest, self.values, 0.0)
        synced = await client.follow(history, self.manifest, self.values, peers, tip_missing=True)
        assert synced is not None
        rules = Rules(self.manifest, self.values)
        exchange = self._exchange = GradientExchange(
            rules, self.identity, self.transport, Journal(self._folder / "rogue")
        )
        receive = exchange.receive

        def listen(sender: PeerId, data: bytes):  # type: ignore[no-untyped-def]
            self.heard.append((sender, data))
            return receive(sender, data)

        exchange.receive = listen  # type: ignore[method-assign]
        exchange.start(synced.state, synced.link, synced.records[-1] if synced.records else None)
        self._task = asyncio.create_task(self._contribute())
        return self

    async def _contribute(self) -> None:
        exchange = self.exchange
        while True:
            if exchange.machine.wants_update:
                exchange.offer(Update(self.update, 1, Mechanism(mode="none")))
            while not exchange.outcomes.empty():
                outcome = exchange.outcomes.get_nowait()
                if isinstance(outcome, Committed) and outcome.contributed:
                    self.counted.append(outcome.state.round)
                if isinstance(outcome, Behind):
                    await self._catch_up()
            await asyncio.sleep(0.05)

    async def _catch_up(self) -> None:
        assert self.manifest is not None and self._history is not None
        with contextlib.suppress(NetworkError):
            peers = self.invite.bootstraps
            found = await SyncClient(self.transport).follow(self._history, self.manifest, self.values, peers)
            if found is not None and found.state.round >= self.exchange.machine.round:
                self.exchange.adopt(found.state, found.links, lost=0)

    @property
    def exchange(self) -> GradientExchange:
        assert self._exchange is not None
        return self._exchange

    async def counted_in(self, rounds: int) -> None:
        """Until our contribution counted in so many rounds."""
        while len(self.counted) < rounds:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def heard_of(self, kind: Kind) -> Iterator[tuple[PeerId, bytes]]:
        """Frames of one kind that came in, newest first."""
        return ((sender, data) for sender, data in reversed(self.heard) if data[0] == kind)

    async def send(self, peer: PeerId, kind: Kind, payload: bytes) -> None:
        """One frame of our own making."""
        channel = BULK if kind in (Kind.CHUNK, Kind.COMMITMENT, Kind.OUTPUT, Kind.OUTPUT_CHUNK) else CONTROL
        await super(RogueTransport, self.transport).send(peer, channel, bytes((kind,)) + payload)

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._exchange is not None:
            await self._exchange.stop()
        await self.transport.stop()
