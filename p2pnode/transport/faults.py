"""What can go wrong in the transport in memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Faults:
    """What befalls what is sent. delay: seconds, drawn evenly from this range. drop, duplicate: chances, of a frame.

    Real streams never lose or repeat a frame while they last; a round has to bear it all the same. A call that is
    dropped is never answered.
    """

    delay: tuple[float, float] = (0.0, 0.0)
    drop: float = 0.0
    duplicate: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.delay
        if not 0 <= low <= high or not 0 <= self.drop <= 1 or not 0 <= self.duplicate <= 1:
            raise ValueError(f"faults out of range: {self}")
