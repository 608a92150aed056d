"""The outer step: how an averaged update changes the global state, with the same bits everywhere.

numpy only, one ufunc an operation, constants cast to float32, no reductions, BLAS or transcendental functions: these
were measured to give the same bits with and without SIMD. torch, and fused or transcendental forms, do not.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from blake3 import blake3

from p2pnode.codec.base import FloatVector
from p2pnode.errors import ArithmeticMismatch
from p2pnode.manifest import OuterSection


def buffers(outer: OuterSection) -> int:
    """Vectors of the parameters' size that the outer optimizer keeps in the global state."""
    return 1 if outer.optimizer == "nesterov" else 0


def outer_step(outer: OuterSection, tensors: FloatVector, update: FloatVector) -> FloatVector:
    """New tensors from the averaged update.

    tensors: [P * (1 + buffers)], parameters first. update: [P], local minus global parameters.
    plain: p + rate * u. nesterov (DiLoCo, arXiv 2311.08105, outer gradient g = -u): b' = m * b + u;
    p' = p + rate * (u + m * b').
    """
    size = update.shape[0]
    rate = np.float32(outer.learning_rate)
    with np.errstate(all="ignore"):  # a result that is not finite is found by the caller and gets no vote
        if outer.optimizer == "plain":
            return np.add(tensors, np.multiply(update, rate))
        momentum = np.float32(outer.momentum)
        buffer = np.add(np.multiply(tensors[size:], momentum), update)
        step = np.multiply(np.add(update, np.multiply(buffer, momentum)), rate)
        return np.concatenate([np.add(tensors[:size], step), buffer])


_SELF_TEST: Final = "72f399918774f7a911c7020e26454248f75940669ff723795f6cb52c7fd1b2f8"


def _self_test_digest() -> bytes:
    """Digest of outer steps and codec casts over inputs with denormals, ties and large values."""
    # A linear congruential generator in integers: exact everywhere.
    seeds = np.arange(1, 4097, dtype=np.uint64)
    bits = (seeds * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)) >> np.uint64(32)
    exponents = (bits % np.uint64(40)).astype(np.int64) - 30
    values = ((bits & np.uint64(0xFFFFFF)).astype(np.float32) - np.float32(0x800000)) * np.float32(2.0**-23)
    values = np.ldexp(values, exponents.astype(np.int32)).astype(np.float32)
    denormal = np.arange(1, 4097, dtype=np.uint32).view(np.float32)  # the smallest 4096 positive float32 numbers
    out = blake3()
    plain = OuterSection(optimizer="plain", learning_rate=0.7)
    nesterov = OuterSection(optimizer="nesterov", learning_rate=0.7, momentum=0.9)
    for update in (values, denormal):
        out.update(outer_step(plain, values[::-1].copy(), update).tobytes())
        out.update(outer_step(nesterov, np.concatenate([denormal, values]), update).tobytes())
        out.update(np.sqrt(np.abs(update)).tobytes())
        out.update(np.rint(update * np.float32(1024)).tobytes())
        out.update(np.divide(update, np.float32(3)).tobytes())
        out.update(update.astype(np.float16).astype(np.float32).tobytes())
        mean = (update.astype(np.float64) * 3.0 + values.astype(np.float64) * 2.0) / 5.0
        out.update(mean.astype(np.float32).tobytes())
    return out.digest()


def self_test() -> None:
    """Check, on the calling thread, that this machine computes the bits that all replicas must have.

    Raises ArithmeticMismatch, for example when denormals are flushed to zero on this thread.
    """
    if _self_test_digest().hex() != _SELF_TEST:
        raise ArithmeticMismatch(
            "this machine's float32 arithmetic differs from what all replicas must compute (are denormals flushed to "
            "zero, or is numpy built with fast-math?): it can't take part"
        )
