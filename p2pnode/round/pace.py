"""How long to wait for others: by what was measured of them, never longer than the manifest allows.

Smoothed times and their deviations as in RFC 6298 (TCP's retransmission timer). A wait that was in vain doubles the
next one; one that was not ends the doubling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from p2pnode.identity import PeerId

FLOOR_SECONDS: Final = 3.0  # a busy machine may be silent for so long
MARGIN: Final = 2.0  # times what a transfer takes at the bandwidth that a peer states
ROW_DOUBLINGS: Final = 2  # of the wait for rows: who is slower than that says so by its bandwidth
MAX_STRIKES: Final = 6
KEPT_STRIKES: Final = 256


@dataclass
class Estimate:
    """One kind of wait: seconds, smoothed."""

    mean: float = 0.0
    deviation: float = 0.0
    samples: int = 0
    backoff: int = 0

    def saw(self, seconds: float) -> None:
        """It was over after so long."""
        self.backoff = 0
        if not self.samples:
            self.mean, self.deviation = seconds, seconds / 2
        else:
            self.deviation += (abs(seconds - self.mean) - self.deviation) / 4
            self.mean += (seconds - self.mean) / 8
        self.samples += 1

    def missed(self, doublings: int = 16) -> None:
        """It was given up. doublings: at most, of the next wait."""
        self.backoff = min(doublings, self.backoff + 1)

    def deadline(self, transfer: float, most: float) -> float:
        """Seconds to wait. transfer: what the bytes alone take, as far as is known. Without samples: the most."""
        if not self.samples:
            return most
        seconds = FLOOR_SECONDS + max(self.mean + 4 * self.deviation, MARGIN * transfer)
        return min(most, seconds * 2.0**self.backoff)


@dataclass
class Pace:
    """What one node measured of the others, over all rounds."""

    gather: Estimate = field(default_factory=Estimate)  # from a quorum of entries to the last that was expected
    rows: Estimate = field(default_factory=Estimate)  # from the proposal to the last row of our part
    outputs: Estimate = field(default_factory=Estimate)  # from our rows to the last part's output
    votes: Estimate = field(default_factory=Estimate)  # from the Closing to a quorum
    strikes: dict[PeerId, int] = field(default_factory=dict)

    def stalled(self, peer: PeerId) -> None:
        """Its row was waited for in vain."""
        self.strikes[peer] = min(MAX_STRIKES, self.strikes.pop(peer, 0) + 1)
        while len(self.strikes) > KEPT_STRIKES:
            del self.strikes[next(iter(self.strikes))]

    def delivered(self, peer: PeerId) -> None:
        """Its row came in time."""
        self.strikes.pop(peer, None)

    def unwaited(self, round_number: int) -> set[PeerId]:
        """Whose rows are not waited for in this round, though they count if they come before the others': a row that
        was waited for in vain n times in a row is waited for in one of 2^n rounds."""
        return {peer for peer, count in self.strikes.items() if round_number % 2**count}
