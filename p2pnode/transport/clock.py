"""The swarm's clock: our own, corrected by the median of what several peers say.

Peers report the swarm's time as they know it, not their machines', so that corrections agree and do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pnode.transport import limits


class SwarmClock:
    """This machine's clock and its offset to the swarm's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._corrected = False
        self._others: list[float] = []  # estimates in a row that are off ours, and agree
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
        the one that changes less is taken, so that a single peer can't move an established node. Nor is it moved by
        less than CLOCK_NEAR, since small errors would add up while all follow one another; nor by one estimate alone,
        since liars may by chance be the most of those that were asked.
        """
        if not offsets:
            return
        voices = sorted([*offsets, self.offset] if self._corrected else offsets)
        low, high = voices[(len(voices) - 1) // 2], voices[len(voices) // 2]
        estimate = low if abs(low - self.offset) <= abs(high - self.offset) else high
        if self._corrected and not self._confirmed(estimate):
            return
        self._others.clear()
        self.offset = estimate
        self._corrected = True

    def _confirmed(self, estimate: float) -> bool:
        if any(abs(estimate - other) > limits.CLOCK_NEAR for other in (*self._others[:1], *self._others[-1:])):
            self._others.clear()
        if abs(estimate - self.offset) <= limits.CLOCK_NEAR:
            self._others.clear()
            return False
        self._others.append(estimate)
        return len(self._others) >= limits.CLOCK_CONFIRM

    def settle(self) -> None:
        """We founded the swarm: from now on our own time counts."""
        self._corrected = True
