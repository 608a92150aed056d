"""State sync: serve, and fetch verified, the manifest, the chain of certificates, and the state.

Nothing is taken on trust: a manifest must hash to the run id, each link of the chain is checked against its parent from
the invite's checkpoint on, and each chunk of the state against the tree that the chain attests.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import numpy as np
from blake3 import blake3
from google.protobuf.message import DecodeError, Message

from p2pnode.errors import ManifestError, NetworkError, PeerFault, StorageError, Unreachable
from p2pnode.identity import PeerId
from p2pnode.invite import Invite
from p2pnode.manifest import MAX_MANIFEST_BYTES, RunManifest
from p2pnode.manifest_file import verify_manifest
from p2pnode.messages import reject
from p2pnode.replica.chain import MAX_RECORD_BYTES, Link, check_record, decode_record, prefer
from p2pnode.replica.outer import buffers
from p2pnode.replica.roster import Roster
from p2pnode.replica.state import STATE_CHUNK_BYTES, GlobalState, chunk_belongs, chunk_count, state_digest
from p2pnode.transport.base import MAX_CALL_BYTES, Transport
from p2pnode.wire.chain_pb2 import StateHeader
from p2pnode.wire.sync_pb2 import (
    ChainReply,
    ChainRequest,
    ManifestReply,
    ManifestRequest,
    StateProof,
    StateReply,
    StateRequest,
    StatusReply,
    StatusRequest,
)

KEPT_STATES: Final = 3  # newest states that are served
CHUNKS_A_CALL: Final = 8
RECORDS_A_CALL: Final = 256
CALL_SECONDS: Final = 15.0
CHAINS_COMPARED: Final = 3
_REPLY_ROOM: Final = MAX_CALL_BYTES - MAX_RECORD_BYTES  # of a reply before its last record is added

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class ChainLog:
    """The records of all rounds that this node saw certified, on disk, in order; offsets in memory."""

    def __init__(self, path: Path) -> None:
        """Begin an empty log at `path`. StorageError if it can't be written."""
        self.path = path
        self.first: int | None = None
        self._offsets: list[int] = [0]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("w+b")
        except OSError as error:
            raise StorageError(f"{path}: can't be written ({error.strerror})") from None

    def append(self, round_number: int, record: bytes) -> None:
        """Add the next round's record; a gap (after a sync) begins the log anew."""
        if self.first is None or round_number != self.last + 1:
            self.first = round_number
            self._offsets = [self._offsets[-1]]
        try:
            self._file.seek(self._offsets[-1])
            self._file.write(record)
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self.path}: can't be written ({error.strerror})") from None
        self._offsets.append(self._offsets[-1] + len(record))

    @property
    def last(self) -> int:
        """The newest round; 0 if empty."""
        return 0 if self.first is None else self.first + len(self._offsets) - 2

    def read(self, round_number: int) -> bytes | None:
        """One round's record, if it is here."""
        if self.first is None or not self.first <= round_number <= self.last:
            return None
        start, stop = self._offsets[round_number - self.first : round_number - self.first + 2]
        return os.pread(self._file.fileno(), stop - start, start)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


class SyncServer:
    """Answers what newcomers ask. Bounded work a call: a few chunks, a page of records."""

    def __init__(self, manifest: RunManifest, signature: bytes, log: ChainLog) -> None:
        self._manifest = ManifestReply(manifest=manifest.canonical, signature=signature).SerializeToString()
        self._log = log
        self._states: OrderedDict[int, GlobalState] = OrderedDict()

    def register(self, transport: Transport) -> None:
        """Answer calls on `transport`."""
        transport.on_call("manifest", self._on_manifest)
        transport.on_call("chain", self._on_chain)
        transport.on_call("state", self._on_state)
        transport.on_call("status", self._on_status)

    def add(self, state: GlobalState, record: bytes | None) -> None:
        """A new certified state, and its record if we have it."""
        if record is not None:
            self._log.append(state.round, record)
        self._states[state.round] = state
        while len(self._states) > KEPT_STATES:
            self._states.popitem(last=False)

    @property
    def head(self) -> GlobalState | None:
        """The newest state."""
        return next(reversed(self._states.values()), None)

    async def _on_manifest(self, sender: PeerId, request: bytes) -> bytes:
        return self._manifest

    async def _on_chain(self, sender: PeerId, request: bytes) -> bytes:
        asked = _decode(ChainRequest, request)
        head = self.head
        reply = ChainReply(head=head.round if head else 0)
        size = 0
        for number in range(asked.from_round, asked.from_round + min(asked.most, RECORDS_A_CALL)):
            record = self._log.read(number)
            if record is None or size > _REPLY_ROOM - len(record):
                break
            reply.records.append(record)
            size += len(record)
        return reply.SerializeToString()

    async def _on_state(self, sender: PeerId, request: bytes) -> bytes:
        asked = _decode(StateRequest, request)
        state = self._states.get(asked.round)
        if state is None:
            return StateReply(known=False).SerializeToString()
        count = chunk_count(len(state.tensors))
        reply = StateReply(known=True, chunks=count)
        if asked.first_chunk == 0:
            reply.header = state.header.SerializeToString(deterministic=True)
        stop = min(count, asked.first_chunk + min(asked.most, CHUNKS_A_CALL))
        for index in range(asked.first_chunk, stop):
            reply.data.append(bytes(state.chunk(index)))
            reply.proofs.append(StateProof(siblings=state.tree.proof(index)))
        return reply.SerializeToString()

    async def _on_status(self, sender: PeerId, request: bytes) -> bytes:
        head = self.head
        reply = StatusReply() if head is None else StatusReply(round=head.round, state_digest=head.digest)
        return reply.SerializeToString()


@dataclass(frozen=True)
class Synced:
    """A verified state with the chain that led to it. links, records: of the rounds after the start, in order."""

    state: GlobalState
    link: Link
    links: tuple[Link, ...]
    records: tuple[bytes, ...]

    @property
    def provisional(self) -> bool:
        """Whether the history since the start holds a provisional round."""
        return any(link.provisional for link in self.links)


@dataclass(frozen=True)
class _Chain:
    """Checked links, the start's first, and the records of all but the start."""

    links: list[Link]
    records: list[bytes]


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

    async def state(self, invite: Invite, manifest: RunManifest, values: int, peers: Sequence[PeerId]) -> Synced:
        """The newest state, verified from the invite's checkpoint on. values: the model's parameters."""
        checkpoint = await self._checkpoint(invite, manifest, peers)
        return await self.follow(checkpoint, manifest, values, peers)

    async def follow(self, start: Link, manifest: RunManifest, values: int, peers: Sequence[PeerId]) -> Synced:
        """The newest state that a chain from `start` leads to.

        Several peers' chains are compared by the fork choice. Raises Unreachable when no peer can serve it.
        """
        last_error: Exception = Unreachable("no peer to sync from")
        for _ in range(5):  # while we download, the swarm moves on: then look again
            chains = await self._chains(start, manifest, values, peers)
            if not chains:
                raise Unreachable("no peer could show a valid chain of certificates from the invite's checkpoint on")
            donors, links, records = chains
            link = links[-1]
            try:
                state = await self._download(link, manifest, values, donors)
            except NetworkError as error:
                last_error = error
                continue
            return Synced(state, link, tuple(links[1:]), tuple(records))
        raise Unreachable(f"the state could not be fetched: {last_error}")

    async def round_of(self, peer: PeerId) -> int:
        """The last round that `peer` says is certified."""
        reply = await self._call(peer, "status", StatusRequest(), StatusReply, timeout=2.0)
        return int(reply.round)

    async def _checkpoint(self, invite: Invite, manifest: RunManifest, peers: Sequence[PeerId]) -> Link:
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

    async def _chains(
        self, start: Link, manifest: RunManifest, values: int, peers: Sequence[PeerId]
    ) -> tuple[list[PeerId], list[Link], list[bytes]] | None:
        """The preferred chain, and the peers that have its tip.

        One peer's chain is checked whole; of the others' only what they have beyond it, or instead of it.
        """
        best: _Chain | None = None
        donors: list[PeerId] = []
        for peer in await self._answering(peers[: 2 * CHAINS_COMPARED]):
            try:
                known = _Chain([start], []) if best is None else await self._common(peer, best)
                if known is None:
                    continue  # on the same branch, and not as far
                theirs = await self._chain(known, manifest, values, peer)
            except (PeerFault, NetworkError) as error:
                self._log(f"{peer.short} can't help with the chain: {error}")
                continue
            if best is None or _better(best.links, theirs.links):
                best, donors = theirs, []
            if theirs.links[-1].digest == best.links[-1].digest:
                donors.append(peer)
        return None if best is None else (donors, best.links, best.records)

    async def _answering(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """Those of `peers` that answer, whoever claims to be furthest first; all, if none does."""
        rounds = await asyncio.gather(*(self.round_of(peer) for peer in peers), return_exceptions=True)
        found = [(peer, number) for peer, number in zip(peers, rounds, strict=True) if isinstance(number, int)]
        return [peer for peer, _ in sorted(found, key=lambda item: -item[1])] or list(peers)

    async def _common(self, peer: PeerId, ours: _Chain) -> _Chain | None:
        """What of our checked chain `peer` has as well, to be followed from there; None if it has nothing to add."""
        tip = ours.links[-1].round
        reply = await self._call(peer, "chain", ChainRequest(from_round=tip, most=1), ChainReply)
        if not reply.records and ours.links[0].round < reply.head < tip:
            reply = await self._call(peer, "chain", ChainRequest(from_round=reply.head, most=1), ChainReply)
        if not reply.records:
            return None if reply.head <= tip else _Chain(ours.links[:1], [])
        header = decode_record(reply.records[0]).header
        at = header.round - ours.links[0].round
        try:
            same = 0 <= at < len(ours.links) and state_digest(header) == ours.links[at].digest
        except ValueError as error:
            raise reject("record-form", str(error)) from None
        if not same:
            return _Chain(ours.links[:1], [])
        return _Chain(list(ours.links), list(ours.records)) if reply.head >= tip else None

    async def _chain(self, known: _Chain, manifest: RunManifest, values: int, peer: PeerId) -> _Chain:
        """`known`, continued with what `peer` has, each link checked against its parent."""
        links, records = list(known.links), list(known.records)
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
                return _Chain(links, records)

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
        return _decode(reply, await self._transport.call(peer, method, request.SerializeToString(), timeout=timeout))


def _better(ours: list[Link], theirs: list[Link]) -> bool:
    """Whether the chain `theirs` is to be followed instead of `ours`: the fork choice, else the longer one."""
    for mine, other in zip(ours, theirs, strict=False):
        if mine.digest != other.digest:
            return prefer(mine, other)
    return len(theirs) > len(ours)


def _header(raw: bytes, digest: bytes) -> StateHeader:
    header = _decode(StateHeader, raw)
    try:
        if state_digest(header) == digest:
            return header
    except ValueError:
        pass
    raise reject("state-header", "not the preimage of the checkpoint's digest")


def _decode(message_class: type[M], data: bytes) -> M:
    try:
        return message_class.FromString(data)
    except DecodeError:
        raise reject("request-form", f"not a {message_class.__name__}") from None
