"""Catching up: when others are further, or on another branch, look at their chains and follow the better one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from p2pnode.errors import NetworkError, PeerFault
from p2pnode.exchange import GradientExchange
from p2pnode.identity import PeerId
from p2pnode.manifest import RunManifest
from p2pnode.replica.branches import better, credible
from p2pnode.replica.chain import Link
from p2pnode.sync import History, StateStore, SyncClient, Synced, SyncServer
from p2pnode.transport.base import Transport

WATCH_SECONDS: Final = 5.0  # between two looks at a peer that takes no part in our rounds


def credible_to(history: History, manifest: RunManifest, common: int, links: Sequence[Link]) -> bool:
    """Whether `links` after the `common` round can be honest, by the time since that round was certified here."""
    waited = history.waited(common, time.time())
    return credible(links, waited, manifest.roster.provisional_after)


class CatchUp:
    """Compares our chain with others', one look at a time. Whatever is adopted comes out of the exchange's outcomes."""

    def __init__(
        self,
        manifest: RunManifest,
        exchange: GradientExchange,
        transport: Transport,
        history: History,
        server: SyncServer,
        states: StateStore,
        log: Callable[[str], None],
    ) -> None:
        """log: gets lines for whoever debugs."""
        self._manifest = manifest
        self._exchange = exchange
        self._transport = transport
        self._history = history
        self._server = server
        self._states = states
        self._client = SyncClient(transport, log)
        self._looking = False
        self._turn = 0

    async def look(self, peers: Sequence[PeerId]) -> None:
        """Compare our chain with those of `peers` and a few others; go over to a better one.

        Does nothing while another look is under way. NetworkError if a better state can't be fetched.
        """
        if self._looking:
            return
        self._looking = True
        try:
            # Several are asked, not only who says that it is ahead: one could lead us onto a branch of its own.
            others = [*peers, *self._history.tip.roster.members, *await self._transport.peers()]
            asked = [peer for peer in dict.fromkeys(others) if peer != self._transport.peer_id]
            values = self._exchange.rules.values
            found = await self._client.follow(self._history, self._manifest, values, asked, credible=self._credible)
            if found is not None:
                await self._adopt(found)
        finally:
            self._looking = False

    async def _adopt(self, found: Synced) -> None:
        # On disk before the history leads to it: nothing else there does.
        await asyncio.to_thread(self._states.write, found.state)
        history = self._history  # which may have grown while we looked
        common, links, records = found.common, found.links, found.records
        while links and history.digest_at(links[0].round) == links[0].digest:
            common, links, records = links[0].round, links[1:], records[1:]
        if not better(history, common, links) or not self._exchange.running:
            return
        before = history.tip.round
        history.follow(common, links, records, time.time())
        self._server.add(found.state)
        self._exchange.adopt(found.state, links, lost=before - common)

    def _credible(self, common: int, links: Sequence[Link]) -> bool:
        return credible_to(self._history, self._manifest, common, links)

    async def watch(self) -> None:
        """Forever: ask peers that take no part in our rounds where they are, so that two halves that meet notice."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                peer = await self._next_outsider()
                if peer is not None and await self._elsewhere(peer):
                    await self.look((peer,))
            except (NetworkError, PeerFault):
                continue

    async def _next_outsider(self) -> PeerId | None:
        link = self._history.tip
        inside = {*link.contributors, *link.roster.members, self._transport.peer_id}
        outsiders = [peer for peer in await self._transport.peers() if peer not in inside]
        self._turn += 1
        return outsiders[self._turn % len(outsiders)] if outsiders else None

    async def _elsewhere(self, peer: PeerId) -> bool:
        said = await self._client.status(peer)
        if not said.digest:
            return False
        ours = self._history.digest_at(said.round)
        return said.round > self._history.tip.round + 1 if ours is None else ours != said.digest
