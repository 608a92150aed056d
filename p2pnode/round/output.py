"""Outputs: one signed byte string a part, the same for everybody, so that any peer can pass on what another missed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from p2pnode.envelope import Signed
from p2pnode.messages import reject
from p2pnode.replica.proposal import PartRange
from p2pnode.replica.tree import Tree, leaf_hash, proves
from p2pnode.round.frames import Kind, frame
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import OutputChunk, OutputHeader

_PURPOSE: Final = b"output"


def output_leaf(part: int, index: int, data: bytes | memoryview) -> bytes:
    """The output tree's leaf for one chunk."""
    return leaf_hash(_PURPOSE, part, index, data)


def output_tree(rules: Rules, part: PartRange, data: bytes | bytearray) -> Tree:
    """The tree over an encoded output."""
    view = memoryview(data)
    leaves = []
    for index in range(rules.chunks(part)):
        start, stop = rules.encoded_bounds(part, index)
        leaves.append(output_leaf(part.index, index, view[start:stop]))
    return Tree(leaves)


class Output:
    """One part's output as it comes in, or whole."""

    def __init__(self, rules: Rules, part: PartRange, header: Signed[OutputHeader]) -> None:
        self.header = header
        self.part = part
        self.data = bytearray(rules.encoded_size(part))
        self._rules = rules
        self._missing = set(range(rules.chunks(part)))
        self._tree: Tree | None = None

    @classmethod
    def whole(cls, rules: Rules, part: PartRange, header: Signed[OutputHeader], data: bytes) -> Output:
        """An output that we hold already, and checked."""
        output = cls(rules, part, header)
        output.data[:] = data
        output._missing.clear()
        return output

    @property
    def complete(self) -> bool:
        """All chunks are in, verified against the header."""
        return not self._missing

    def take(self, chunk: OutputChunk) -> None:
        """Check a chunk and keep it; a duplicate is dropped. REJECT output-chunk-index, -size, -proof, value-form."""
        rules, part, index = self._rules, self.part, int(chunk.index)
        if index >= rules.chunks(part):
            raise reject("output-chunk-index", f"{index} of {rules.chunks(part)}")
        if index not in self._missing:
            return
        start, stop = rules.encoded_bounds(part, index)
        if len(chunk.data) != stop - start:
            raise reject("output-chunk-size", f"{len(chunk.data)} bytes where {stop - start} are due")
        leaf = output_leaf(part.index, index, chunk.data)
        if not proves(self.header.message.root, leaf, index, rules.chunks(part), chunk.proof):
            raise reject("output-chunk-proof", f"chunk {index} is not what the reducer signed")
        self.data[start:stop] = chunk.data
        self._missing.discard(index)

    def chunk(self, index: int) -> tuple[bytes, list[bytes]]:
        """A chunk's bytes, and their proof; once `complete`."""
        start, stop = self._rules.encoded_bounds(self.part, index)
        return bytes(self.data[start:stop]), self.frames().tree.proof(index)

    def frames(self) -> OutputFrames:
        """The header, then all chunks with their proofs."""
        if self._tree is None:
            self._tree = output_tree(self._rules, self.part, self.data)
        return OutputFrames(self._rules, self, self._tree)


@dataclass(frozen=True)
class OutputFrames:
    """Frames made as they are sent."""

    rules: Rules
    output: Output
    tree: Tree

    def __iter__(self) -> Iterator[bytes]:
        yield frame(Kind.OUTPUT, self.output.header.raw)
        view = memoryview(self.output.data)
        for index in range(self.rules.chunks(self.output.part)):
            start, stop = self.rules.encoded_bounds(self.output.part, index)
            chunk = OutputChunk(
                header=self.output.header.digest,
                index=index,
                data=bytes(view[start:stop]),
                proof=self.tree.proof(index),
            )
            yield frame(Kind.OUTPUT_CHUNK, chunk.SerializeToString())
