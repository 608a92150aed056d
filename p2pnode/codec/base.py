"""The codec interface."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatVector = npt.NDArray[np.float32]


class Codec(Protocol):
    """Encodes blocks of float32 values. Decoding is numpy only and gives the same bits on every machine."""

    @property
    def name(self) -> str:
        """As in the manifest."""

    @property
    def largest(self) -> float:
        """The largest absolute value that can be encoded."""

    def encoded_size(self, count: int) -> int:
        """Bytes that `count` values take."""

    def chunk_values(self, chunk_bytes: int) -> int:
        """The most values whose encoding fits in `chunk_bytes` bytes."""

    def encode(self, values: FloatVector) -> bytes:
        """Encode values, shape [n]. ValueError if one is not finite or above `largest`."""

    def decode(self, data: bytes | memoryview, count: int) -> FloatVector:
        """Decode `count` values into a new array, shape [count]. ValueError if `data` has another size than
        `encoded_size(count)`, or a value is not finite."""
