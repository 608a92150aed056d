"""What a screen knows of the node: the events so far, folded into one value. No clock, no output."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pnode.ui.text import clean, count, number

HISTORY = 512
NOTICES = 200


@dataclass
class RunView:
    """Updated by `apply` only. Times are seconds of the caller's monotonic clock."""

    began: float
    label: str = ""  # what the person calls this node
    started: dict[str, Any] = field(default_factory=dict)  # fields of the event
    joined: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)  # fields of the last `round`
    result: dict[str, Any] = field(default_factory=dict)
    stopped: dict[str, Any] = field(default_factory=dict)
    activity: str = "starting"
    activity_since: float = 0.0
    waiting: bool = False  # the activity is a wait for others
    rounds: int = 0  # certified while we watched
    contributed: int = 0
    discarded: int = 0
    rejected: int = 0
    samples: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    epsilon: float | None = None
    delta: float | None = None
    seconds_by_round: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    accuracies: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    notices: deque[str] = field(default_factory=lambda: deque(maxlen=NOTICES))

    def __post_init__(self) -> None:
        self.activity_since = self.began

    def apply(self, event: str, fields: Mapping[str, Any], now: float) -> None:
        """Take in one event. Unknown kinds, and fields that are missing or None, change nothing."""
        handler = getattr(self, f"_on_{event}", None)
        if handler is not None:
            handler(fields, now)
        if event in ("started", "joined", "training", "waiting", "round", "result", "stopped"):
            self.waiting = event == "waiting"

    @property
    def round(self) -> int | None:
        """The last certified round that we know of."""
        for fields in (self.last, self.joined):
            if fields.get("round") is not None:
                return int(fields["round"])
        return None

    @property
    def me(self) -> str:
        """This node, by its label and the end of its peer id."""
        peer = short_peer(self.started.get("peer_id") or "")
        return f"{clean(self.label)} ({peer})" if self.label else peer

    @property
    def provisional(self) -> bool:
        """Whether the history that the node follows holds a provisional round, as far as it said so last."""
        return bool((self.last or self.joined).get("provisional"))

    @property
    def private(self) -> bool | None:
        """Whether the run promises privacy; None while unknown."""
        mode = self.started.get("privacy")
        return None if mode is None else mode != "none"

    def _do(self, activity: str, now: float) -> None:
        if activity != self.activity:
            self.activity, self.activity_since = activity, now

    def _on_started(self, fields: Mapping[str, Any], now: float) -> None:
        self.started = dict(fields)
        self._do("looking for the run's state", now)

    def _on_joined(self, fields: Mapping[str, Any], now: float) -> None:
        self.joined = dict(fields)
        self._do("ready for the next round", now)

    def _on_training(self, fields: Mapping[str, Any], now: float) -> None:
        self._do(f"training for round {fields.get('round')}", now)

    def _on_waiting(self, fields: Mapping[str, Any], now: float) -> None:
        self._do(f"round {fields.get('round')}: waiting ({clean(fields.get('reason'))})", now)

    def _on_round(self, fields: Mapping[str, Any], now: float) -> None:
        self.last = dict(fields)
        self.rounds += 1
        self.contributed += bool(fields.get("contributed"))
        self.samples += int(number(fields.get("samples")) or 0)
        self.bytes_sent += int(number(fields.get("bytes_sent")) or 0)
        self.bytes_received += int(number(fields.get("bytes_received")) or 0)
        for name, values in (
            ("loss", self.losses),
            ("accuracy", self.accuracies),
            ("seconds", self.seconds_by_round),
        ):
            value = number(fields.get(name))
            if value is not None:
                values.append(value)
        self._spent(fields)
        self._do(f"round {fields.get('round')} is certified", now)

    def _on_resync(self, fields: Mapping[str, Any], now: float) -> None:
        self.notices.append(resync_line(fields))

    def _on_discarded(self, fields: Mapping[str, Any], now: float) -> None:
        self.discarded += 1
        self.notices.append(discarded_line(fields))

    def _on_rejected(self, fields: Mapping[str, Any], now: float) -> None:
        self.rejected += 1
        self.notices.append(rejected_line(fields))

    def _on_evidence(self, fields: Mapping[str, Any], now: float) -> None:
        self.notices.append(evidence_line(fields))

    def _on_peer(self, fields: Mapping[str, Any], now: float) -> None:
        self.notices.append(peer_line(fields))

    def _on_notice(self, fields: Mapping[str, Any], now: float) -> None:
        self.notices.append(clean(fields.get("text")))

    def _on_result(self, fields: Mapping[str, Any], now: float) -> None:
        self.result = dict(fields)
        self._do("leaving", now)

    def _on_stopped(self, fields: Mapping[str, Any], now: float) -> None:
        self.stopped = dict(fields)
        self._spent(fields)
        self._do(stopped_line(fields), now)

    def _spent(self, fields: Mapping[str, Any]) -> None:
        epsilon, delta = number(fields.get("epsilon")), number(fields.get("delta"))
        self.epsilon = self.epsilon if epsilon is None else epsilon
        self.delta = self.delta if delta is None else delta


def short_peer(peer: object) -> str:
    """A peer id's last eight characters: enough to tell peers apart on a screen."""
    return clean(peer)[-8:]


def discarded_line(fields: Mapping[str, Any]) -> str:
    """A `discarded` event in words."""
    attempt = number(fields.get("attempt"))
    which = f"attempt {attempt + 1:.0f} of round" if attempt is not None else "round"
    return f"{which} {fields.get('round')} came to nothing: {clean(fields.get('reason'))}"


def resync_line(fields: Mapping[str, Any]) -> str:
    """A `resync` event in words."""
    line = f"went over to the others' state of round {fields.get('round')}"
    lost = int(number(fields.get("lost")) or 0)
    if lost:
        line += f": {count(lost, 'round')} of ours since round {fields.get('common')} {_are(lost)} lost"
    return line


def _are(amount: int) -> str:
    return "is" if amount == 1 else "are"


def rejected_line(fields: Mapping[str, Any]) -> str:
    """A `rejected` event in words."""
    where = "" if fields.get("round") is None else f" in round {fields['round']}"
    return f"refused what {short_peer(fields.get('peer'))} sent{where}: {clean(fields.get('clause'))}"


def evidence_line(fields: Mapping[str, Any]) -> str:
    """An `evidence` event in words."""
    peer, clause = short_peer(fields.get("accused")), clean(fields.get("clause"))
    return f"peer {peer} broke the protocol in round {fields.get('round')}, and it is proven: {clause}"


def peer_line(fields: Mapping[str, Any]) -> str:
    """A `peer` event in words."""
    words = {"joined": "joined", "left": "left", "gone": "does not answer any more"}
    return f"peer {short_peer(fields.get('peer'))} {words.get(str(fields.get('change')), clean(fields.get('change')))}"


def stopped_line(fields: Mapping[str, Any]) -> str:
    """A `stopped` event in words."""
    reason = clean(fields.get("reason"))
    return reason if reason.startswith("stopped") else f"stopped: {reason}"


def round_line(fields: Mapping[str, Any]) -> str:
    """A `round` event's first words: which, and with whom."""
    peers, voters = number(fields.get("peers")), number(fields.get("voters"))
    line = f"round {fields.get('round')}"
    if peers is not None:
        line += f"  {count(int(peers), 'peer')}"
    if voters is not None:
        line += f"  {count(int(voters), 'voter')}"
    return line
