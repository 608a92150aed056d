"""How fast this node can send, seen from what it sends anyway: no probing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

_SLICE_BYTES: Final = 512 << 10  # at least in one measurement, while there is more to send
_SLICE_SECONDS: Final = 0.05  # at least, likewise: bytes go in bursts
_LEAST_BYTES: Final = 64 << 10  # less than this shows how fast a buffer is, not a line
_SLICES: Final = 32  # measurements that count


class SendMeter:
    """The rate at which all writers of a node together get rid of bytes while at least one of them has to wait.

    As long as no writer waits, bytes only fill buffers, and their speed says nothing about the line. The rate is the
    median over bytes, not over time: a peer that takes its bytes slowly, or a buffer that takes some at once, moves it
    only with half of all bytes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds from any start."""
        self._clock = clock
        self._waiting = 0  # writers
        self._bytes = 0  # of the unfinished slice
        self._began = 0.0
        self._slices: deque[tuple[float, int]] = deque(maxlen=_SLICES)  # (rate, bytes)

    def wait(self) -> None:
        """A writer has more than its peer takes now."""
        if not self._waiting:
            self._begin()
        self._waiting += 1

    def sent(self, count: int) -> None:
        """A writer got rid of bytes."""
        if self._waiting:
            self._bytes += count
            if self._bytes >= _SLICE_BYTES and self._clock() - self._began >= _SLICE_SECONDS:
                self._end()
                self._begin()

    def go(self) -> None:
        """A writer that waited has nothing left, or has broken."""
        self._waiting -= 1
        if not self._waiting and self._bytes >= _LEAST_BYTES:
            self._end()

    def rate(self) -> int:
        """Bytes a second; 0 if that is not known yet."""
        half = sum(size for _, size in self._slices) / 2
        for rate, size in sorted(self._slices):
            half -= size
            if half <= 0:
                return int(rate)
        return 0

    def _begin(self) -> None:
        self._began, self._bytes = self._clock(), 0

    def _end(self) -> None:
        seconds = self._clock() - self._began
        if seconds > 0:
            self._slices.append((self._bytes / seconds, self._bytes))
