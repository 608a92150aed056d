"""The fetching side of state sync: everything is verified before it is used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from blake3 import blake3
from google.protobuf.message import Message

from p2pnode.errors import ManifestError, NetworkError, PeerFault, Unreachable
from p2pnode.identity import PeerId
from p2pnode.invite import Invite
from p2pnode.manifest import MAX_MANIFEST_BYTES, RunManifest
from p2pnode.manifest_file import verify_manifest
from p2pnode.messages import reject
from p2pnode.replica.branches import Chain, better
from p2pnode.replica.chain import Link, check_record, decode_record
from p2pnode.replica.outer import buffers
from p2pnode.replica.roster import Roster
from p2pnode.replica.state import STATE_CHUNK_BYTES, GlobalState, chunk_belongs, chunk_count, state_digest
from p2pnode.sync.calls import CHUNKS_A_CALL, RECORDS_A_CALL, decode
from p2pnode.transport.base import Transport
from p2pnode.wire.chain_pb2 import StateHeader
from p2pnode.wire.sync_pb2 import (
    ChainReply,
    ChainRequest,
    ManifestReply,
    ManifestRequest,
    StateReply,
    StateRequest,
    StatusReply,
    StatusRequest,
)

CALL_SECONDS: Final = 15.0
STATUS_SECONDS: Final = 2.0
PEERS_ASKED: Final = 6
TRIES: Final = 5  # while we download, the swarm moves on: then look again

M = TypeVar("M", bound=Message)
T = TypeVar("T")

Credible = Callable[[int, Sequence[Link]], bool]
"""(last common round, links after it) -> whether such a branch may be followed at all."""


@dataclass(frozen=True)
class Status:
    """What a peer says of its newest state. digest: 32 bytes, or empty before it has one."""

    round: int
    digest: bytes


@dataclass(frozen=True)
class Synced:
    """A verified state with the chain that led to it. links, records: of the rounds after `common`, in order."""

    state: GlobalState
    link: Link
    common: int  # the last round of our own chain that leads to it
    links: tuple[Link, ...]
    records: tuple[bytes, ...]


@dataclass(frozen=True)
class _Branch:
    """A `branches.Chain`: ours up to the round `common`, then a peer's checked links with their records."""

    ours: Chain
    common: int
    links: tuple[Link, ...]
    records: tuple[bytes, ...]
    donors: tuple[PeerId, ...] = ()  # who has its tip

    @property
    def first(self) -> int:
        return self.ours.first

    @property
    def tip(self) -> Link:
        return self.links[-1] if self.links else self.ours.link_at(self.common)

    def digest_at(self, round_number: int) -> bytes | None:
        if round_number <= self.common:
            return self.ours.digest_at(round_number)
        index = round_number - self.common - 1
        return self.links[index].digest if index < len(self.links) else None

    def link_at(self, round_number: int) -> Link:
        if round_number <= self.common:
            return self.ours.link_at(round_number)
        return self.links[round_number - self.common - 1]

    def grown(self, common: int, links: Sequence[Link], records: Sequence[bytes], donor: PeerId) -> _Branch:
        """This branch up to `common`, then `links`."""
        if common <= self.common:
            return _Branch(self.ours, common, tuple(links), tuple(records), (donor,))
        kept = common - self.common
        return _Branch(self.ours, self.common, (*self.links[:kept], *links), (*self.records[:kept], *records), (donor,))

    def with_donor(self, donor: PeerId) -> _Branch:
        """The same, with one more peer that has its tip."""
        return _Branch(self.ours, self.common, self.links, self.records, (*self.donors, donor))


class SyncClient:
    """Fetches, verifies, and prefers the best of several peers' histories."""

    def __init__(self, transport: Transport, log: Callable[[str], None] = lambda line: None) -> None:
        self._transport = transport
        self._log = log

    async def manifest(self, invite: Invite, peers: Sequence[PeerId]) -> tuple[RunManifest, bytes]:
        """The invite's manifest and its author's signature, from whichever peer has it.

        Raises Unreachable if no peer does, ManifestError if the run id names a manifest that is not valid here.
        """

        async def ask(peer: PeerId) -> tuple[RunManifest, bytes]:
            reply = await self._call(peer, "manifest", ManifestRequest(), ManifestReply)
            if len(reply.manifest) > MAX_MANIFEST_BYTES:
                raise reject("manifest-size")
            if blake3(reply.manifest).digest() != invite.run:
                raise reject("manifest-digest", "not the manifest that the invite names")
            manifest = RunManifest.from_canonical(reply.manifest)
            verify_manifest(manifest, reply.signature)
            if manifest.author != invite.author.text:
                raise ManifestError("the invite names another author than its run's manifest: ask for a new invite")
            return manifest, reply.signature

        return await self._first(peers, ask, "the manifest")

    async def checkpoint(self, invite: Invite, manifest: RunManifest, peers: Sequence[PeerId]) -> Link:
        """The invite's checkpoint with its roster, which must have the digest that the invite names."""
        if invite.round == 0:
            roster = Roster.genesis(manifest, invite.author)
            if roster.digest != invite.roster_digest:
                raise ManifestError("the invite's first roster is not the one that its manifest gives")
            return Link(0, invite.state_digest, roster)

        async def ask(peer: PeerId) -> Link:
            reply = await self._call(peer, "chain", ChainRequest(from_round=invite.round, most=1), ChainReply)
            if not reply.records:
                raise reject("chain-gap", "has not the checkpoint's record")
            record = decode_record(reply.records[0])
            try:
                roster = Roster.from_message(record.roster)
                matches = state_digest(record.header) == invite.state_digest and record.header.round == invite.round
            except ValueError as error:
                raise reject("record-roster", str(error)) from None
            if not matches or roster.digest != invite.roster_digest:
                raise reject("checkpoint", "another history than the invite's")
            return Link(invite.round, invite.state_digest, roster, record.header)

        return await self._first(peers, ask, "the invite's checkpoint")

    async def follow(
        self,
        ours: Chain,
        manifest: RunManifest,
        values: int,
        peers: Sequence[PeerId],
        *,
        credible: Credible = lambda common, links: True,
        tip_missing: bool = False,
    ) -> Synced | None:
        """The state of a better chain than `ours`: a longer one, or a branch that the fork choice prefers.

        values: the model's parameters. tip_missing: the state of our own tip is wanted too, if no chain is better.
        None if there is none that is `credible`. Raises Unreachable when peers have it, and its state can't be fetched.
        """
        last_error: Exception = Unreachable("no peer to sync from")
        for _ in range(TRIES):
            best = await self._best(ours, manifest, values, peers, credible, tip_missing)
            if not best.donors:
                return None
            try:
                state = await self._download(best.tip, manifest, values, best.donors)
            except NetworkError as error:
                last_error = error
                continue
            return Synced(state, best.tip, best.common, best.links, best.records)
        raise Unreachable(f"the state could not be fetched: {last_error}")

    async def status(self, peer: PeerId) -> Status:
        """What `peer` says of its newest state."""
        reply = await self._call(peer, "status", StatusRequest(), StatusReply, timeout=STATUS_SECONDS)
        return Status(int(reply.round), reply.state_digest)

    async def _best(
        self,
        ours: Chain,
        manifest: RunManifest,
        values: int,
        peers: Sequence[PeerId],
        credible: Credible,
        tip_missing: bool,
    ) -> _Branch:
        """The best branch that a peer shows, with the peers that have its tip; without donors if ours is.

        Of each peer's chain only that is fetched and checked in which it differs from the best so far.
        """
        best = _Branch(ours, ours.tip.round, (), ())
        for peer in await self._answering(peers[:PEERS_ASKED]):
            try:
                head, common = await self._common(peer, best)
                if head == common:
                    if common == best.tip.round and (best.links or tip_missing):
                        best = best.with_donor(peer)
                    continue
                links, records = await self._chain(peer, best.link_at(common), manifest, values)
                theirs = best.grown(common, links, records, peer)
                if not better(best, common, links):
                    continue
                if credible(theirs.common, theirs.links):
                    best = theirs
                else:
                    self._log(f"{peer.short} went on provisionally, sooner than this node's clock allows")
            except (PeerFault, NetworkError) as error:
                self._log(f"{peer.short} can't help with the chain: {error}")
        return best

    async def _answering(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """Those of `peers` that answer, whoever claims to be furthest first; all, if none does."""
        answers = await asyncio.gather(*(self.status(peer) for peer in peers), return_exceptions=True)
        found = [(peer, said.round) for peer, said in zip(peers, answers, strict=True) if isinstance(said, Status)]
        return [peer for peer, _ in sorted(found, key=lambda item: -item[1])] or list(peers)

    async def _common(self, peer: PeerId, ours: Chain) -> tuple[int, int]:
        """The peer's last round, and the last round that it has in common with `ours`, by bisection."""
        tip = ours.tip.round
        reply = await self._call(peer, "chain", ChainRequest(from_round=tip, most=1), ChainReply)
        head = int(reply.head)
        if head < ours.first:
            raise reject("chain-gap", "is further back than our checkpoint")
        low, differs = ours.first, min(head, tip)  # the start is believed: whoever lacks it can show no valid link
        if differs == low or (reply.records and self._same(reply.records[0], tip, ours)):
            return head, differs
        if await self._shared(peer, differs, ours):
            return head, differs
        while differs - low > 1:
            middle = (low + differs) // 2
            if await self._shared(peer, middle, ours):
                low = middle
            else:
                differs = middle
        return head, low

    async def _shared(self, peer: PeerId, round_number: int, ours: Chain) -> bool:
        if round_number == ours.first:
            return True
        reply = await self._call(peer, "chain", ChainRequest(from_round=round_number, most=1), ChainReply)
        if not reply.records:
            raise reject("chain-gap", f"has not the record of round {round_number}")
        return self._same(reply.records[0], round_number, ours)

    @staticmethod
    def _same(record: bytes, round_number: int, ours: Chain) -> bool:
        header = decode_record(record).header
        try:
            return header.round == round_number and state_digest(header) == ours.digest_at(round_number)
        except ValueError as error:
            raise reject("record-form", str(error)) from None

    async def _chain(
        self, peer: PeerId, start: Link, manifest: RunManifest, values: int
    ) -> tuple[list[Link], list[bytes]]:
        """What `peer` has after `start`, each link checked against its parent, and the records."""
        links: list[Link] = [start]
        records: list[bytes] = []
        while True:
            request = ChainRequest(from_round=links[-1].round + 1, most=RECORDS_A_CALL)
            reply = await self._call(peer, "chain", request, ChainReply)
            if len(reply.records) > RECORDS_A_CALL:
                raise reject("chain-size")
            for raw in reply.records:
                certified = check_record(decode_record(raw), links[-1], manifest, values)
                links.append(certified.link)
                records.append(certified.record)
                await asyncio.sleep(0)  # a long chain must not hold up the rest of the node
            if not reply.records:
                if links[-1].round < reply.head:
                    raise reject("chain-gap", "has not all records up to its own head")
                return links[1:], records

    async def _download(self, link: Link, manifest: RunManifest, values: int, donors: Sequence[PeerId]) -> GlobalState:
        """The state that `link` attests, chunk by chunk; each is checked before it is used."""
        total = values * (1 + buffers(manifest.training.outer))
        count = chunk_count(total)
        tensors = np.empty(total, dtype="<f4")
        view = tensors.data.cast("B")
        header = link.header
        index = failures = 0
        while index < count:
            if failures >= 2 * len(donors):
                raise Unreachable("no peer serves this state any more")
            peer = donors[(index // CHUNKS_A_CALL + failures) % len(donors)]
            request = StateRequest(round=link.round, first_chunk=index, most=CHUNKS_A_CALL)
            try:
                reply = await self._call(peer, "state", request, StateReply)
                if not reply.known or not reply.data or len(reply.data) != len(reply.proofs):
                    raise reject("state-unknown", f"has not round {link.round} any more")
                if header is None:
                    header = _header(reply.header, link.digest)
                for data, proof in zip(reply.data, reply.proofs, strict=True):
                    if index >= count or not chunk_belongs(header.tensors, total, index, data, proof.siblings):
                        raise reject("state-chunk", f"chunk {index} is not of the attested state")
                    view[index * STATE_CHUNK_BYTES : index * STATE_CHUNK_BYTES + len(data)] = data
                    index += 1
            except (NetworkError, PeerFault) as error:
                failures += 1
                self._log(f"{peer.short} can't help with the state: {error}")
        state = GlobalState(manifest.digest, link.round, header.parent if header else b"", link.roster, tensors, values)
        if state.digest != link.digest or not bool(np.all(np.isfinite(tensors))):
            raise Unreachable("the fetched state is not the attested one")
        return state

    async def _first(self, peers: Sequence[PeerId], ask: Callable[[PeerId], Awaitable[T]], what: str) -> T:
        """The first good answer of several peers asked in turn."""
        reasons = []
        for peer in peers:
            try:
                return await ask(peer)
            except (NetworkError, PeerFault) as error:
                reasons.append(f"{peer.short}: {error}")
        tried = "; ".join(reasons) or "nobody to ask"
        raise Unreachable(f"no peer could give {what} ({tried}): is somebody of the run online? ask for a new invite")

    async def _call(
        self, peer: PeerId, method: str, request: Message, reply: type[M], *, timeout: float = CALL_SECONDS
    ) -> M:
        return decode(reply, await self._transport.call(peer, method, request.SerializeToString(), timeout=timeout))


def _header(raw: bytes, digest: bytes) -> StateHeader:
    header = decode(StateHeader, raw)
    try:
        if state_digest(header) == digest:
            return header
    except ValueError:
        pass
    raise reject("state-header", "not the preimage of the checkpoint's digest")
