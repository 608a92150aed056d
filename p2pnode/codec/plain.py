"""float32 and float16, little-endian."""

from __future__ import annotations

import numpy as np

from p2pnode.codec.base import FloatVector


class _PlainCodec:
    name: str
    largest: float
    _dtype: np.dtype[np.floating]

    def encoded_size(self, count: int) -> int:
        return count * self._dtype.itemsize

    def chunk_values(self, chunk_bytes: int) -> int:
        return chunk_bytes // self._dtype.itemsize

    def encode(self, values: FloatVector) -> bytes:
        # Comparing, unlike isfinite, also catches what is too large for the narrower type; NaN compares false.
        if not bool(np.all(np.abs(values) <= np.float32(self.largest))):
            raise ValueError(f"a value is not finite or above {self.largest:g}, the most that {self.name} can carry")
        return values.astype(self._dtype).tobytes()

    def decode(self, data: bytes | memoryview, count: int) -> FloatVector:
        if len(data) != self.encoded_size(count):
            raise ValueError(f"{len(data)} bytes where {count} {self.name} values take {self.encoded_size(count)}")
        values = np.frombuffer(data, dtype=self._dtype).astype(np.float32)
        if not bool(np.all(np.isfinite(values))):
            raise ValueError("a value is not finite")
        return values


class Float32Codec(_PlainCodec):
    """The values as they are, 4 bytes each."""

    name = "float32"
    largest = float(np.finfo(np.float32).max)
    _dtype = np.dtype("<f4")


class Float16Codec(_PlainCodec):
    """IEEE half precision, rounded to nearest even, 2 bytes each."""

    name = "float16"
    largest = 65504.0
    _dtype = np.dtype("<f2")
