"""The global state of a run: float32 tensors and the roster, named by a digest that chains it to its parent.

state_digest(r) = BLAKE3 over (manifest digest, r, state_digest(r-1), roster digest, root of the chunk tree)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from blake3 import blake3

from p2pnode.codec import FloatVector
from p2pnode.envelope import DIGEST_BYTES
from p2pnode.replica.roster import Roster
from p2pnode.replica.tree import Tree, leaf_hash, proves
from p2pnode.wire.chain_pb2 import StateHeader

STATE_CHUNK_BYTES: Final = 128 * 1024
NO_PARENT: Final = bytes(DIGEST_BYTES)
_PURPOSE: Final = b"state"
_DIGEST_PREFIX: Final = b"p2pnode.state.1\0"


def state_digest(header: StateHeader) -> bytes:
    """32 bytes. All fields have fixed lengths, so their concatenation is unambiguous. ValueError if one has not."""
    fields = (header.run, header.parent, header.roster, header.tensors)
    if any(len(field) != DIGEST_BYTES for field in fields):
        raise ValueError("a digest in a state header has the wrong length")
    return blake3(
        _DIGEST_PREFIX + header.run + header.round.to_bytes(8, "big") + header.parent + header.roster + header.tensors
    ).digest()


def chunk_count(values: int) -> int:
    """Chunks of a state of `values` float32 values (at least one)."""
    return max(1, -(-values * 4 // STATE_CHUNK_BYTES))


def chunk_hash(index: int, data: bytes | memoryview) -> bytes:
    """The tree's leaf for chunk number `index`."""
    return leaf_hash(_PURPOSE, 0, index, data)


def chunk_belongs(root: bytes, values: int, index: int, data: bytes, siblings: Sequence[bytes]) -> bool:
    """Whether `data` is chunk number `index` of the state of `values` values under `root`."""
    count = chunk_count(values)
    size = min(STATE_CHUNK_BYTES, values * 4 - index * STATE_CHUNK_BYTES)
    return len(data) == size and proves(root, chunk_hash(index, data), index, count, siblings)


@dataclass(frozen=True)
class GlobalState:
    """One state of the chain. tensors: [P * (1 + outer buffers)] float32, read-only, parameters first."""

    run: bytes
    round: int
    parent: bytes
    roster: Roster
    tensors: FloatVector
    parameter_count: int

    def __post_init__(self) -> None:
        if self.tensors.dtype != np.float32 or self.tensors.ndim != 1 or not self.tensors.flags.c_contiguous:
            raise ValueError("tensors are one contiguous float32 vector")
        self.tensors.flags.writeable = False

    @property
    def parameters(self) -> FloatVector:
        """The model, [P] float32, read-only."""
        return self.tensors[: self.parameter_count]

    @cached_property
    def _bytes(self) -> memoryview:
        return self.tensors.astype("<f4", copy=False).data.cast("B")

    def chunk(self, index: int) -> memoryview:
        """Chunk number `index` of the tensors' little-endian bytes."""
        return self._bytes[index * STATE_CHUNK_BYTES : (index + 1) * STATE_CHUNK_BYTES]

    @cached_property
    def tree(self) -> Tree:
        """The chunk tree."""
        return Tree([chunk_hash(i, self.chunk(i)) for i in range(chunk_count(len(self.tensors)))])

    @cached_property
    def header(self) -> StateHeader:
        """The digest's preimage."""
        return StateHeader(
            run=self.run, round=self.round, parent=self.parent, roster=self.roster.digest, tensors=self.tree.root
        )

    @cached_property
    def digest(self) -> bytes:
        """The state digest, 32 bytes."""
        return state_digest(self.header)
