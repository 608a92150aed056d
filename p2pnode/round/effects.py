"""What the round machine asks its driver to do, and tells it. The driver carries effects out in order.

A `Persist` must be on disk (fsync) before any later effect is carried out: signatures depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import Literal

from p2pnode.identity import PeerId
from p2pnode.replica.chain import Certified
from p2pnode.replica.state import GlobalState
from p2pnode.round.evidence import Evidence
from p2pnode.round.frames import Send


@dataclass(frozen=True)
class Persist:
    """Replace the durable record `name` by `data`, atomically, and fsync."""

    name: Literal["promise", "update", "lock"]
    data: bytes


@dataclass(frozen=True)
class Committed:
    """A round is certified, its outputs are verified, and the outer step is applied: `state` is the new global state.

    contributed: our update is in it. ours_expired: we had offered an update for this round that is not in it.
    """

    certified: Certified
    state: GlobalState
    contributed: bool
    outputs: tuple[bytes, ...]  # encoded, in part order


@dataclass(frozen=True)
class Discarded:
    """An attempt came to nothing; the next one follows by itself, with the same update."""

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class Rejected:
    """A peer broke a rule."""

    peer: PeerId
    clause: str
    detail: str


@dataclass(frozen=True)
class Waiting:
    """What the round waits for, in words for a person."""

    reason: str


@dataclass(frozen=True)
class Behind:
    """Others have certified rounds that we can't follow with what we hold: sync from one of `peers`."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True)
class Halt:
    """A quorum certified another state than we computed from the same bytes: our replica can't be trusted."""

    reason: str


@dataclass(frozen=True)
class Convicted:
    """We hold new evidence, verified, against a peer on record: the next rounds exclude it."""

    evidence: Evidence


Effect = Send | Persist | Committed | Discarded | Rejected | Waiting | Behind | Halt | Convicted


@unique
class Outcome(Enum):
    """How an inbound message ended."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    REJECT = "reject"


@dataclass(frozen=True)
class Verdict:
    """The outcome with its clause's name ("" for ACCEPT)."""

    outcome: Outcome
    clause: str = ""
