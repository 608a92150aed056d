"""What was answered lately, so that a few bytes of request can't have us send megabytes again and again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from p2pnode.identity import PeerId

FIRST_SECONDS: Final = 0.4  # until the same answer goes to the same peer again; doubles each time
LONGEST_SECONDS: Final = 4.0
KEPT: Final = 2048


@dataclass
class Answers:
    """By peer and what it asked for: when it may have that again, and how long it had to wait for it."""

    given: dict[tuple[PeerId, bytes], tuple[float, float]] = field(default_factory=dict)

    def allow(self, peer: PeerId, what: bytes, now: float) -> bool:
        """Whether to answer; if so it is counted."""
        again, wait = self.given.pop((peer, what), (now, FIRST_SECONDS / 2))
        if now < again:
            self.given[peer, what] = (again, wait)
            return False
        wait = min(2 * wait, LONGEST_SECONDS)
        self.given[peer, what] = (now + wait, wait)
        while len(self.given) > KEPT:
            del self.given[next(iter(self.given))]  # the one that was left alone longest
        return True
