"""Who is in the run: publishes this node in the DHT, meets those whom it finds there, and remembers them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from p2pnode.errors import NetworkError, StorageError
from p2pnode.home import Home, write_atomically
from p2pnode.identity import PeerId
from p2pnode.replica.chain import Link
from p2pnode.replica.state import GlobalState
from p2pnode.transport.base import Transport
from p2pnode.ui.events import EventSink
from p2pnode.wire.records_pb2 import CommitRecord, MemberRecord

PUBLISH_SECONDS: Final = 30.0
LIFETIME_SECONDS: Final = 120.0
MAX_ADDRESSES: Final = 8
REMEMBERED: Final = 16
MISSES: Final = 20  # times in a row that a peer can't be reached before it is forgotten
TRIED_AT_ONCE: Final = 8  # of those
MEMBERS: Final = "members"
COMMITS: Final = "commits"


class Members:
    """The run's members as this node sees them."""

    def __init__(self, transport: Transport, home: Home, run_digest: bytes, sink: EventSink) -> None:
        self._transport = transport
        self._home = home
        self._run = run_digest.hex()
        self._sink = sink
        self._known: dict[PeerId, tuple[str, ...]] = {}
        self._misses: dict[PeerId, int] = {}
        self._contributors: frozenset[PeerId] = frozenset()
        transport.on_peer_gone(self._on_gone)

    def seen(self, link: Link) -> None:
        """A round is certified: tell who came and who stayed away."""
        now = frozenset(link.contributors) - {self._transport.peer_id}
        for peer in sorted(now - self._contributors):
            self._sink.emit("peer", peer=peer.text, change="joined")
        for peer in sorted(self._contributors - now):
            self._sink.emit("peer", peer=peer.text, change="left")
        self._contributors = now

    async def run(self, state: Callable[[], GlobalState]) -> None:
        """Forever: publish, look, meet."""
        while True:
            try:
                await self._publish(state())
                await self._meet(state().roster.members)
            except NetworkError:
                pass  # the DHT is a convenience: rounds go on without it
            await asyncio.sleep(PUBLISH_SECONDS)

    async def _publish(self, state: GlobalState) -> None:
        addresses = list(self._transport.addresses())[:MAX_ADDRESSES]
        member = MemberRecord(addresses=addresses, round=state.round, state_digest=state.digest)
        await self._transport.store(MEMBERS, member.SerializeToString(), lifetime=LIFETIME_SECONDS)
        commit = CommitRecord(round=state.round, state_digest=state.digest)
        if self._transport.peer_id in state.roster:
            await self._transport.store(COMMITS, commit.SerializeToString(), lifetime=LIFETIME_SECONDS)

    async def _meet(self, roster: Sequence[PeerId]) -> None:
        connected = set(await self._transport.peers())
        listed = set()
        for peer, record in (await self._transport.fetch(MEMBERS, prefer=roster)).items():
            if peer == self._transport.peer_id:
                continue
            try:
                member = MemberRecord.FromString(record.value)
            except DecodeError:
                continue
            addresses = tuple(a for a in member.addresses[:MAX_ADDRESSES] if a.endswith(f"/p2p/{peer.text}"))
            self._known[peer] = addresses
            listed.add(peer)
            if addresses and peer not in connected:
                await self._transport.connect(addresses)
        await self._meet_again(connected | listed)
        self._remember()

    async def _meet_again(self, met: set[PeerId]) -> None:
        """Those whom the DHT does not list any more: after a split of the network, it is the other half."""
        for peer in met & self._misses.keys():
            del self._misses[peer]
        lost = [peer for peer, addresses in self._known.items() if peer not in met and addresses]
        for peer in sorted(lost, key=lambda peer: self._misses.get(peer, 0))[:TRIED_AT_ONCE]:
            if await self._transport.connect(self._known[peer]):
                self._misses.pop(peer, None)
            elif self._misses.setdefault(peer, 0) >= MISSES:
                del self._known[peer], self._misses[peer]
            else:
                self._misses[peer] += 1

    def _remember(self) -> None:
        try:
            runs = json.loads(self._home.peers.read_text("utf-8"))
        except (OSError, ValueError):
            runs = {}
        if not isinstance(runs, dict):
            runs = {}
        found = [address for addresses in self._known.values() for address in addresses[:2]]
        if found:
            runs[self._run] = found[: 2 * REMEMBERED]
            try:
                write_atomically(self._home.peers, json.dumps(runs).encode())
            except StorageError as error:
                self._sink.emit("notice", text=f"peers can't be remembered: {error}")

    def _on_gone(self, peer: PeerId) -> None:
        if peer in self._contributors:
            self._sink.emit("peer", peer=peer.text, change="gone")
