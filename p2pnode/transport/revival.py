"""How often, and how soon, what ended is started again. Pure: the time is an argument."""

from __future__ import annotations

from collections import deque

from p2pnode.transport import limits


class Restarts:
    """Tries to start our daemon again: each later than the one before, and at most RESTARTS in RESTART_WINDOW."""

    def __init__(self) -> None:
        self._tries: deque[float] = deque()

    def next(self, now: float) -> float | None:
        """Seconds to wait before another try; None when there were enough."""
        while self._tries and now - self._tries[0] > limits.RESTART_WINDOW:
            self._tries.popleft()
        count = len(self._tries)
        if count >= limits.RESTARTS:
            return None
        self._tries.append(now)
        return min(limits.BACKOFF_FIRST * 2 ** (count - 1), limits.BACKOFF_MOST) if count else 0.0
