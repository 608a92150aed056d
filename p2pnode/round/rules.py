"""A run's rules for one model size: what shapes, sizes and bounds follow from the manifest. Never from a peer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from p2pnode.codec import Codec, FloatVector, codec_named
from p2pnode.errors import PeerFault
from p2pnode.manifest import RunManifest
from p2pnode.messages import reject
from p2pnode.replica.proposal import PartRange


@dataclass(frozen=True)
class Rules:
    """manifest, and the number of the model's parameters."""

    manifest: RunManifest
    values: int

    @cached_property
    def codec(self) -> Codec:
        """The run's codec."""
        return codec_named(self.manifest.exchange.codec)

    @cached_property
    def chunk_values(self) -> int:
        """Values in a full chunk."""
        return self.codec.chunk_values(self.manifest.limits.chunk_bytes)

    def chunks(self, part: PartRange) -> int:
        """Chunks of a part."""
        return -(-len(part) // self.chunk_values)

    def chunk_bounds(self, part: PartRange, index: int) -> tuple[int, int]:
        """[start, stop) of a chunk's values within its part."""
        start = index * self.chunk_values
        return start, min(len(part), start + self.chunk_values)

    def encoded_bounds(self, part: PartRange, index: int) -> tuple[int, int]:
        """[start, stop) of a chunk's bytes within its encoded part. Chunks are encoded one by one."""
        start, stop = self.chunk_bounds(part, index)
        before = index * self.codec.encoded_size(self.chunk_values)
        return before, before + self.codec.encoded_size(stop - start)

    def encoded_size(self, part: PartRange) -> int:
        """Bytes of an encoded part."""
        return self.encoded_bounds(part, self.chunks(part) - 1)[1]

    @cached_property
    def encoded_bytes(self) -> int:
        """Bytes of a whole encoded update, chunks' framing left out."""
        return self.codec.encoded_size(self.values)

    def encode(self, part: PartRange, values: FloatVector) -> bytes:
        """Encode a part's values, shape [len(part)], chunk by chunk."""
        bounds = (self.chunk_bounds(part, index) for index in range(self.chunks(part)))
        return b"".join(self.codec.encode(values[start:stop]) for start, stop in bounds)

    def decode(self, part: PartRange, data: bytes | bytearray) -> FloatVector:
        """The values of an encoded part, shape [len(part)]. ValueError as `Codec.decode`."""
        out = np.empty(len(part), dtype=np.float32)
        view = memoryview(data)
        for index in range(self.chunks(part)):
            start, stop = self.chunk_bounds(part, index)
            first, last = self.encoded_bounds(part, index)
            out[start:stop] = self.codec.decode(view[first:last], stop - start)
        return out

    def check_values(self, values: FloatVector) -> None:
        """REJECT value-bound if one exceeds the manifest's bound. (NaN compares false, so it is caught too.)"""
        if not bool(np.all(np.abs(values) <= np.float32(self.manifest.exchange.max_abs))):
            raise reject("value-bound", f"a value is above {self.manifest.exchange.max_abs:g} or not finite")

    def check_rms(self, sum_of_squares: float, count: int) -> None:
        """REJECT value-rms if a part's root mean square exceeds the manifest's bound."""
        bound = self.manifest.exchange.max_rms
        if not sum_of_squares <= bound * bound * count:
            raise reject("value-rms", f"above {bound:g}")

    def weight(self, steps: int) -> int:
        """The weight of a contribution after `steps` local steps; 0 if below the table's first band."""
        weight = 0
        for least, value in self.manifest.exchange.weights:
            if steps >= least:
                weight = value
        return weight

    def check_update(self, update: FloatVector) -> None:
        """REJECT value-shape, value-bound: whether our own update may be offered at all."""
        if update.shape != (self.values,) or update.dtype != np.float32:
            raise PeerFault("value-shape", f"an update of shape {update.shape}, {update.dtype}")
        self.check_values(update)
