"""How often a peer may do something: a burst at once, and a rate in the long run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from p2pnode.identity import PeerId

_PEERS_KEPT: Final = 4096
_PRUNE_SECONDS: Final = 1.0


class Buckets:
    """A bucket of tokens for each peer. Peers whose bucket is full again are forgotten."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        """rate: tokens a second. burst: what a full bucket holds. clock: seconds from any start."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._levels: dict[PeerId, tuple[float, float]] = {}  # (tokens, when that was)
        self._pruned = float("-inf")

    def take(self, peer: PeerId, cost: float = 1.0) -> bool:
        """Take tokens, all or none; whether there were enough."""
        now = self._clock()
        if len(self._levels) > _PEERS_KEPT and now - self._pruned > _PRUNE_SECONDS:
            self._pruned = now
            self._levels = {one: level for one, level in self._levels.items() if self._filled(level, now) < self._burst}
        tokens = self._filled(self._levels.get(peer, (self._burst, now)), now)
        enough = tokens >= cost
        self._levels[peer] = (tokens - cost if enough else tokens, now)
        return enough

    def _filled(self, level: tuple[float, float], now: float) -> float:
        tokens, when = level
        return min(self._burst, tokens + (now - when) * self._rate)
