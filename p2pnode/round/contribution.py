"""Contributions: what a contributor commits to and sends, and how a reducer takes a row in, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from p2pnode.codec import FloatVector
from p2pnode.envelope import Signed
from p2pnode.errors import PeerFault
from p2pnode.messages import SlotBase, check_slot, reject
from p2pnode.replica.proposal import Group, PartRange
from p2pnode.replica.tree import Tree, leaf_hash, proves
from p2pnode.round.frames import Kind, frame
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import Chunk, Commitment, Mechanism

MAX_BAD_CHUNKS: Final = 3  # of a row: each is asked for again, then the row is put out of the part
_PURPOSE: Final = b"row"


def row_leaf(part: int, index: int, data: bytes | memoryview) -> bytes:
    """The commitment tree's leaf for one chunk: binds part and chunk, not who receives it."""
    return leaf_hash(_PURPOSE, part, index, data)


@dataclass(frozen=True)
class Layout:
    """Where each part's chunks stand among the leaves of a commitment's tree."""

    rules: Rules
    parts: tuple[PartRange, ...]

    @cached_property
    def first_leaf(self) -> tuple[int, ...]:
        """Leaf number of each part's first chunk, and at the end the number of leaves."""
        firsts = [0]
        for part in self.parts:
            firsts.append(firsts[-1] + self.rules.chunks(part))
        return tuple(firsts)

    @property
    def leaves(self) -> int:
        """Chunks of all parts."""
        return self.first_leaf[-1]


@dataclass(frozen=True)
class Update:
    """A privatized update, fixed for its round. values: [P] float32; steps: local steps done."""

    values: FloatVector
    steps: int
    mechanism: Mechanism


class Contribution:
    """Our update cut for one group: encoded parts and their tree."""

    def __init__(self, rules: Rules, group: Group, update: Update) -> None:
        """Raises PeerFault (value-rms, value-bound) if our own update breaks the run's bounds."""
        self._layout = Layout(rules, group.parts)
        self._group = group
        self._update = update
        self.encoded: list[bytes] = []
        leaves = []
        for part in group.parts:
            values = update.values[part.start : part.stop]
            rules.check_rms(_sum_of_squares(values), len(values))
            data = rules.encode(part, values)
            self.encoded.append(data)
            view = memoryview(data)
            for index in range(rules.chunks(part)):
                start, stop = rules.encoded_bounds(part, index)
                leaves.append(row_leaf(part.index, index, view[start:stop]))
        self.tree = Tree(leaves)

    def commitment(self, base: SlotBase) -> Commitment:
        """What is to be signed."""
        return Commitment(
            slot=base.at(self._group.attempt),
            group=self._group.digest,
            root=self.tree.root,
            steps=self._update.steps,
            mechanism=self._update.mechanism,
        )

    def chunk(self, part: PartRange, index: int) -> tuple[bytes, list[bytes]]:
        """A chunk's bytes, and their proof."""
        start, stop = self._layout.rules.encoded_bounds(part, index)
        return self.encoded[part.index][start:stop], self.tree.proof(self._layout.first_leaf[part.index] + index)

    def chunk_frame(self, part: PartRange, index: int) -> bytes:
        """The frame of one chunk with its proof."""
        data, proof = self.chunk(part, index)
        chunk = Chunk(group=self._group.digest, part=part.index, index=index, data=data, proof=proof)
        return frame(Kind.CHUNK, chunk.SerializeToString())

    def row(self, part: PartRange, commitment: Signed[Commitment]) -> RowFrames:
        """All frames for the reducer of `part`: the commitment, then the chunks."""
        return RowFrames(self, part, commitment, self._layout.rules.chunks(part))


@dataclass(frozen=True)
class RowFrames:
    """Frames made as they are sent: a whole row is never in memory twice."""

    contribution: Contribution
    part: PartRange
    commitment: Signed[Commitment]
    chunks: int

    def __iter__(self) -> Iterator[bytes]:
        yield frame(Kind.COMMITMENT, self.commitment.raw)
        for index in range(self.chunks):
            yield self.contribution.chunk_frame(self.part, index)


def _sum_of_squares(values: FloatVector) -> float:
    wide = values.astype(np.float64)
    return float(wide @ wide)


class Row:
    """One contributor's values for our part, taken in chunk by chunk; every chunk is checked on arrival."""

    def __init__(self, rules: Rules, group: Group, part: PartRange, commitment: Signed[Commitment]) -> None:
        self.commitment = commitment
        self.data = bytearray(rules.encoded_size(part))
        self.refused: str | None = None  # the clause that put this row out of the part, for good
        self._rules, self._part = rules, part
        self._layout = Layout(rules, group.parts)
        self._missing = set(range(rules.chunks(part)))
        self._proofs: dict[int, tuple[bytes, ...]] = {}
        self._sum_of_squares = 0.0
        self._bad_chunks = 0

    @property
    def complete(self) -> bool:
        """All chunks are in and within bounds."""
        return self.refused is None and not self._missing

    def take(self, chunk: Chunk) -> None:
        """Check a chunk and keep it; a duplicate is dropped.

        REJECT chunk-index, chunk-size, chunk-proof (the chunk is asked for again, a few times), and value-form,
        value-bound, value-rms (these put the row out of the part).
        """
        rules, part, index = self._rules, self._part, int(chunk.index)
        if index >= rules.chunks(part):
            raise reject("chunk-index", f"{index} of {rules.chunks(part)}")
        if index not in self._missing or self.refused:
            return
        start, stop = rules.encoded_bounds(part, index)
        if len(chunk.data) != stop - start:
            raise reject("chunk-size", f"{len(chunk.data)} bytes where {stop - start} are due")
        leaf = row_leaf(part.index, index, chunk.data)
        at = self._layout.first_leaf[part.index] + index
        if not proves(self.commitment.message.root, leaf, at, self._layout.leaves, chunk.proof):
            self._bad_chunks += 1
            if self._bad_chunks > MAX_BAD_CHUNKS:
                raise self._refuse("chunk-proof", "too many chunks that are not what was committed to")
            raise reject("chunk-proof", f"chunk {index} is not what was committed to")
        first, last = rules.chunk_bounds(part, index)
        try:
            values = rules.codec.decode(chunk.data, last - first)
        except ValueError as error:
            raise self._refuse("value-form", str(error)) from None
        try:
            rules.check_values(values)
            self._sum_of_squares += _sum_of_squares(values)
            rules.check_rms(self._sum_of_squares, len(part))  # it only grows, so refuse as soon as it is too large
        except PeerFault as fault:
            raise self._refuse(fault.clause, fault.detail) from None
        self.data[start:stop] = chunk.data
        self._proofs[index] = tuple(chunk.proof)
        self._missing.discard(index)

    def chunk(self, index: int) -> tuple[bytes, tuple[bytes, ...]] | None:
        """A chunk that came in, with its proof: for an auditor."""
        if index not in self._proofs:
            return None
        start, stop = self._rules.encoded_bounds(self._part, index)
        return bytes(self.data[start:stop]), self._proofs[index]

    def fill(self, data: bytes) -> None:
        """Our own row: encoded and checked by `Contribution` already."""
        self.data[:] = data
        self._missing.clear()

    def _refuse(self, clause: str, detail: str) -> PeerFault:
        self.refused = clause
        return reject(clause, detail)


def check_commitment(commitment: Signed[Commitment], group: Group, base: SlotBase, rules: Rules) -> None:
    """REJECT commitment-attempt, -contributor, -form, -steps, -mechanism, -group."""
    message = commitment.message
    if check_slot(message.slot, base) != group.attempt:
        raise reject("commitment-attempt")
    if message.group != group.digest:
        raise reject("commitment-group", "for another group in the same attempt")
    if commitment.sender not in group.contributors:
        raise reject("commitment-contributor", f"{commitment.sender} does not contribute")
    if len(message.root) != 32:
        raise reject("commitment-form")
    if rules.weight(message.steps) <= 0 or message.steps > rules.manifest.training.local_steps:
        raise reject("commitment-steps", f"{message.steps} steps")
    _check_mechanism(message.mechanism, rules)


def _check_mechanism(mechanism: Mechanism, rules: Rules) -> None:
    """The declared mechanism is as private as the manifest asks for. (That the noise is there can't be seen.)"""
    privacy = rules.manifest.privacy
    if mechanism.mode != privacy.mode:
        raise reject("commitment-mechanism", f"mode {mechanism.mode[:20]!r} in a run with mode {privacy.mode!r}")
    if privacy.mode == "none":
        return
    enough = mechanism.noise_multiplier >= privacy.noise_multiplier and 0 < mechanism.clip <= privacy.clip
    if not enough or mechanism.sampling_rate > privacy.sampling_rate:
        raise reject("commitment-mechanism", "less private than the manifest asks for")
