"""The serving side of state sync: manifest, chain, states, status. Bounded work a call."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from p2pnode.identity import PeerId
from p2pnode.manifest import RunManifest
from p2pnode.replica.chain import MAX_RECORD_BYTES
from p2pnode.replica.state import GlobalState, chunk_count
from p2pnode.sync.calls import CHUNKS_A_CALL, RECORDS_A_CALL, decode
from p2pnode.sync.history import History
from p2pnode.transport.base import MAX_CALL_BYTES, Transport
from p2pnode.wire.sync_pb2 import (
    ChainReply,
    ChainRequest,
    ManifestReply,
    StateProof,
    StateReply,
    StateRequest,
    StatusReply,
)

KEPT_STATES: Final = 3  # newest states that are served
_REPLY_ROOM: Final = MAX_CALL_BYTES - MAX_RECORD_BYTES  # of a reply before its last record is added


class SyncServer:
    """Answers what newcomers ask: the manifest at once, the rest from when there is a history and a state."""

    def __init__(self, manifest: RunManifest, signature: bytes) -> None:
        self._manifest = ManifestReply(manifest=manifest.canonical, signature=signature).SerializeToString()
        self._history: History | None = None
        self._states: OrderedDict[int, GlobalState] = OrderedDict()

    def register(self, transport: Transport) -> None:
        """Answer calls on `transport`."""
        transport.on_call("manifest", self._on_manifest)
        transport.on_call("chain", self._on_chain)
        transport.on_call("state", self._on_state)
        transport.on_call("status", self._on_status)

    def serve(self, history: History) -> None:
        """Serve this chain's records from now on."""
        self._history = history

    def add(self, state: GlobalState) -> None:
        """A new certified state. Those of its round and later ones, of another branch, are dropped."""
        for stale in [number for number in self._states if number >= state.round]:
            del self._states[stale]
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
        asked = decode(ChainRequest, request)
        head = self.head
        reply = ChainReply(head=head.round if head else 0)
        size = 0
        for number in range(asked.from_round, asked.from_round + min(asked.most, RECORDS_A_CALL)):
            record = self._history.record_at(number) if self._history is not None else None
            if record is None or size > _REPLY_ROOM - len(record):
                break
            reply.records.append(record)
            size += len(record)
        return reply.SerializeToString()

    async def _on_state(self, sender: PeerId, request: bytes) -> bytes:
        asked = decode(StateRequest, request)
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
