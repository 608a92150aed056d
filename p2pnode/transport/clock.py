"""The swarm's clock: our own, corrected by the median of what several peers say.

Peers report the swarm's time as they know it, not their machines', so that corrections agree and do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class SwarmClock:
    """This machine's clock and its offset to the swarm's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._corrected = False
        self.offset = 0.0  # seconds to add to this machine's clock

    def local(self) -> float:
        """This machine's time, seconds since the epoch."""
        return self._clock()

    def now(self) -> float:
        """The swarm's time, as far as we know it."""
        return self._clock() + self.offset

    def correct(self, offsets: Sequence[float]) -> None:
        """Take in offsets (peer's time minus ours, each measured over one call).

        A newcomer believes the peers' median; later our own time counts as one of the voices. Of two middle values
        the one that changes less is taken, so that a single peer can't move an established node.
        """
        if not offsets:
            return
        voices = sorted([*offsets, self.offset] if self._corrected else offsets)
        low, high = voices[(len(voices) - 1) // 2], voices[len(voices) // 2]
        self.offset = low if abs(low - self.offset) <= abs(high - self.offset) else high
        self._corrected = True

    def settle(self) -> None:
        """We founded the swarm: from now on our own time counts."""
        self._corrected = True
