"""What a node tells: kinds of events and their fields. `docs/events.md` says what they mean, and a test compares."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final, Protocol

EVENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "started": (
        "peer_id",
        "run_id",
        "run",
        "task",
        "invite",
        "addresses",
        "home",
        "privacy",
        "epsilon_budget",
        "delta",
        "target_rounds",
    ),
    "joined": ("round", "state_digest", "voters", "provisional", "seconds"),
    "training": ("round",),
    "waiting": ("round", "reason"),
    "round": (
        "round",
        "peers",
        "voters",
        "provisional",
        "state_digest",
        "loss",
        "accuracy",
        "samples",
        "bytes_sent",
        "bytes_received",
        "epsilon",
        "delta",
        "seconds",
        "contributed",
        "attempt",
        "measures",
    ),
    "resync": ("round", "common", "lost", "state_digest"),
    "discarded": ("round", "attempt", "reason"),
    "rejected": ("clause", "peer", "round"),
    "evidence": ("accused", "clause", "round", "digest", "file"),
    "peer": ("peer", "change"),
    "notice": ("text",),
    "result": ("measures", "confusion", "model", "round", "state_digest"),
    "stopped": ("reason", "round", "state_digest", "epsilon", "delta"),
}


class EventSink(Protocol):
    """Where events go. Any thread may emit; an emit never raises and never waits for a person."""

    def emit(self, event: str, **fields: Any) -> None:
        """Tell that something happened: a kind and its fields, as EVENTS has them."""

    def close(self) -> None:
        """Show what is still to be shown and give the terminal back. Idempotent."""


def check_event(event: str, fields: Mapping[str, Any]) -> None:
    """ValueError if the kind is unknown, or if fields are unknown or missing."""
    if event not in EVENTS:
        raise ValueError(f"no such event: {event}")
    unknown, missing = fields.keys() - set(EVENTS[event]), set(EVENTS[event]) - fields.keys()
    if unknown or missing:
        raise ValueError(f"event {event}: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")


class RecordingSink:
    """Keeps all events, and passes them on if there is where to. The one sink that is strict: it raises ValueError
    for what `docs/events.md` does not have. For tests, and for programs that run a node inside themselves."""

    def __init__(self, forward: EventSink | None = None) -> None:
        self._forward = forward
        self._lock = threading.Lock()
        self.events: list[dict[str, Any]] = []

    def emit(self, event: str, **fields: Any) -> None:
        """Check and keep."""
        check_event(event, fields)
        with self._lock:
            self.events.append({"event": event, **fields})
        if self._forward is not None:
            self._forward.emit(event, **fields)

    def close(self) -> None:
        """Pass it on."""
        if self._forward is not None:
            self._forward.close()

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind so far, in order."""
        with self._lock:
            return [found for found in self.events if found["event"] == event]
