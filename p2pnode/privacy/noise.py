"""Randomness that privacy rests on: Gaussian noise and secret Poisson sampling, from a key that never leaves this
object.

Construction
    key          32 bytes from the system (`os.urandom`), anew for each `NoiseSource` and after a fork
    bits         AES-256 in counter mode from block 0, never twice the same block (NIST SP 800-90A's idea, without
    reseeding:
                 one key serves at most 2^48 bytes, far below the birthday bound of 2^68)
    uniform      u = (k + 1/2) / 2^53 with k the upper 53 bits of a 64-bit word: in (0, 1), never 0 or 1
    Gaussian     Box-Muller on pairs: sqrt(-2 ln u1) times cos and sin of 2 pi u2, in float64 (largest value 8.6)
    sampling     an example is taken when its 64-bit word is below floor(rate 2^64)

Floating point: a generator with finitely many values leaves holes, and the low bits of a noisy value can tell what
was added to it (Mironov, "On significance of the least significant bits", CCS 2012). So the sum is made in float64
and then rounded to a multiple of about 2^-20 of the standard deviation, a step that is fixed beforehand and the
same whatever the data: every cell near the middle collects very many of the generator's values (2^106 pairs), and
the low bits are gone. This narrows the leak; it is not a discrete Gaussian with a proof. Beyond about 7 standard
deviations (a chance of 2^-38) the radii are few, so chances there are only roughly right, and nothing is ever
beyond 8.6.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from p2pnode.errors import PrivacyError

_CHUNK: Final = 1 << 15  # words a time: the working set stays in the second-level cache
_ZEROS: Final = bytes(8 * _CHUNK)
GRID_BITS: Final = 20  # a noisy value is a multiple of about 2^-20 standard deviations


class NoiseSource:
    """A keyed generator for one trainer. Safe over threads; after a fork the child draws a key of its own.

    It can't be copied, pickled or printed, for whoever has its key can take the noise off.
    """

    secure: bool = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._stream = self._new_stream()
        self._buffer = bytearray(8 * _CHUNK + 15)

    def _new_stream(self) -> CipherContext:
        return Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def _refuse(self, *_: object) -> NoReturn:
        raise PrivacyError("a noise source can't be copied or stored: its key must stay where it is")

    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __getstate__ = _refuse

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def _words(self, count: int) -> npt.NDArray[np.int64]:
        """Up to _CHUNK fresh words, in a buffer that the next call overwrites. The lock is held."""
        if os.getpid() != self._process:
            self._stream, self._process = self._new_stream(), os.getpid()
        self._stream.update_into(memoryview(_ZEROS)[: 8 * count], self._buffer)
        return np.frombuffer(self._buffer, dtype=np.int64, count=count)

    def fill(self, out: torch.Tensor) -> torch.Tensor:
        """Fill `out` (float64, contiguous, CPU, any shape) with independent N(0, 1) values, and return it."""
        if out.dtype != torch.float64 or not out.is_contiguous() or out.device.type != "cpu":
            raise ValueError("noise is drawn into contiguous float64 memory on the CPU")
        flat = out.view(-1)
        with self._lock, torch.no_grad():
            for start in range(0, flat.numel(), _CHUNK):
                self._piece(flat[start : start + _CHUNK])
        return out

    def _piece(self, piece: torch.Tensor) -> None:
        """Fill at most _CHUNK values. The lock is held."""
        half = (piece.numel() + 1) // 2
        words = torch.from_numpy(self._words(2 * half)).bitwise_right_shift(11)
        # the shift keeps the sign, so k runs from -2^52 to 2^52 - 1: add 2^52 and a half
        uniform = words.to(torch.float64).add_(2.0**52 + 0.5).mul_(2.0**-53)
        radius = uniform[:half].log_().mul_(-2.0).sqrt_()
        angle = uniform[half:].mul_(2 * math.pi)
        torch.mul(radius, angle.cos(), out=piece[:half])
        rest = piece.numel() - half
        torch.mul(radius[:rest], angle[:rest].sin_(), out=piece[half:])

    def normals(self, count: int) -> torch.Tensor:
        """`count` independent N(0, 1) values: float64, CPU."""
        return self.fill(torch.empty(count, dtype=torch.float64))

    def seed(self) -> int:
        """A 63-bit number to seed an ordinary generator with, for what privacy doesn't rest on (order, weights)."""
        with self._lock:
            return int(self._words(1)[0]) & (2**63 - 1)

    def mask(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        """Whether each of `count` examples is taken: independent, with chance `rate` (0 to 1), to within 2^-64."""
        if not 0 <= rate <= 1:
            raise ValueError(f"a sampling rate is from 0 to 1, not {rate!r}")
        taken = np.empty(count, dtype=np.bool_)
        if rate == 1:
            taken.fill(True)
            return taken
        bound = np.uint64(math.floor(rate * 2.0**64))
        with self._lock:
            for start in range(0, count, _CHUNK):
                piece = taken[start : start + _CHUNK]
                np.less(self._words(len(piece)).view(np.uint64), bound, out=piece)
        return taken


class UnsafeSeededNoise(NoiseSource):
    """The same numbers every time, for tests and simulations. Protects nothing: private runs refuse it."""

    secure = False

    def __init__(self, seed: int) -> None:
        self._seed = seed
        super().__init__()

    def _new_stream(self) -> CipherContext:
        key = self._seed.to_bytes(32, "big", signed=True)
        return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def grid(deviation: float) -> float:
    """The step that values with noise of this deviation are rounded to: a power of two, at most 2^-20 of it."""
    return 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)


def add_noise(total: torch.Tensor, deviation: float, source: NoiseSource) -> torch.Tensor:
    """`total` (float32, any device) + N(0, deviation^2), added in float64, rounded to the grid, as float32 on its
    device.

    deviation: in the units of `total`, above 0.
    """
    if not (math.isfinite(deviation) and deviation > 0):
        raise PrivacyError(f"noise needs a finite standard deviation above 0, not {deviation!r}")
    given = total.detach().reshape(-1).to("cpu")
    noisy = torch.empty_like(given)
    step = grid(deviation)
    scratch = torch.empty(min(_CHUNK, given.numel()), dtype=torch.float64)
    for start in range(0, given.numel(), _CHUNK):  # piece by piece, so that all passes are in the processor's cache
        part = given[start : start + _CHUNK]
        piece = source.fill(scratch[: part.numel()]).mul_(deviation / step)  # step is a power of two: exact
        piece.add_(part, alpha=1.0 / step).round_().mul_(step)
        noisy[start : start + _CHUNK] = piece
    return noisy.to(total.device).view_as(total)
