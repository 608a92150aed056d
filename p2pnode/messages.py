"""The signed messages of a run: their payload types, their size limits, and the slot that binds them.

A slot names what a message is for: protocol version, run, round, attempt, and the parent state. Two different messages
of one type by one sender for one slot are equivocation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from p2pnode.envelope import DIGEST_BYTES, Signed, open_envelope, seal
from p2pnode.errors import PeerFault
from p2pnode.identity import PeerIdentity
from p2pnode.manifest import PROTOCOL_VERSION
from p2pnode.wire import round_pb2

M = TypeVar("M", bound=Message)

KIB: Final = 1024
MAX_ATTEMPT: Final = 1_000_000
MAX_EVIDENCE: Final = 4  # accusations in an entry


@dataclass(frozen=True)
class MessageType(Generic[M]):
    """A signed message: payload type, protobuf class, most bytes of a payload."""

    name: str
    message_class: type[M]
    max_bytes: int

    def seal(self, identity: PeerIdentity, message: M) -> Signed[M]:
        """Sign `message`."""
        return seal(identity, self.name, message)

    def open(self, raw: bytes) -> Signed[M]:
        """Check and decode; raises EnvelopeFault. The slot and all else remain to be checked."""
        return open_envelope(raw, self.name, self.message_class, max_bytes=self.max_bytes)


ENTRY: Final = MessageType("round-entry", round_pb2.RoundEntry, 1 * KIB)
LEAVE: Final = MessageType("leave", round_pb2.Leave, 512)
COMMITMENT: Final = MessageType("commitment", round_pb2.Commitment, 512)
OUTPUT: Final = MessageType("output", round_pb2.OutputHeader, 6 * KIB)  # 64 rows of 70 bytes
CLOSING: Final = MessageType("closing", round_pb2.Closing, 4 * KIB)  # 32 outputs, 64 peers of 34 bytes
VOTE: Final = MessageType("vote", round_pb2.Vote, 512)
# 96 entries of up to 1.3 KiB with their envelopes, parts, leaves; with a relock, as much again for the older proposal
PROPOSAL: Final = MessageType("proposal", round_pb2.Proposal, 320 * KIB)


@dataclass(frozen=True)
class SlotBase:
    """The part of a slot that all messages of one round share: run, round and parent state digest."""

    run: bytes
    round: int
    parent: bytes

    def at(self, attempt: int) -> round_pb2.Slot:
        """The slot of one attempt."""
        return round_pb2.Slot(
            protocol=PROTOCOL_VERSION, run=self.run, round=self.round, attempt=attempt, parent=self.parent
        )


class Ignored(Exception):
    """A message is of no use to us, though nobody did wrong: it is dropped. `clause` names why."""

    def __init__(self, clause: str) -> None:
        super().__init__(clause)
        self.clause = clause


class StaleRound(Ignored):
    """The round is certified already."""


class FutureRound(Ignored):
    """We have not certified the round before: we are behind, or the sender lies."""


class OtherBranch(Ignored):
    """It is of another branch of the chain: the sender, or we, may have to change over."""


class NotYet(Ignored):
    """What the message needs (a proposal, a commitment, a header) has not come yet: it is kept for a while.

    needs: names what it waits for, as `round.progress.Early` is told when that comes.
    """

    def __init__(self, clause: str, needs: bytes) -> None:
        super().__init__(clause)
        self.needs = needs


class Equivocation(PeerFault):
    """Two different messages that one peer signed for one slot: each alone may be in order, both together convict."""

    def __init__(self, clause: str, first: Signed[Any], second: Signed[Any]) -> None:
        super().__init__(clause, f"{first.sender} signed two for one slot")
        self.first, self.second = first, second


def reject(clause: str, detail: str = "") -> PeerFault:
    """The error for a broken rule."""
    return PeerFault(clause, detail)


def check_slot(slot: round_pb2.Slot, base: SlotBase) -> int:
    """The attempt, after checking all else of `slot` against the round that is being made.

    REJECT slot-protocol, slot-run, slot-form, slot-attempt; IGNORE slot-stale, slot-future, slot-parent (an honest peer
    on another branch of a fork signs another parent).
    """
    if slot.protocol != PROTOCOL_VERSION:
        raise reject("slot-protocol", f"version {slot.protocol}")
    if slot.run != base.run:
        raise reject("slot-run", "signed for another run")
    if len(slot.parent) != DIGEST_BYTES:
        raise reject("slot-form")
    if slot.attempt > MAX_ATTEMPT:
        raise reject("slot-attempt", f"attempt {slot.attempt}")
    if slot.round < base.round:
        raise StaleRound("slot-stale")
    if slot.round > base.round:
        raise FutureRound("slot-future")
    if slot.parent != base.parent:
        raise OtherBranch("slot-parent")
    return int(slot.attempt)


def slot_key(signed: Signed[Any]) -> tuple[bytes, int, int]:
    """(sender, round, attempt) of a signed message with a slot."""
    slot = signed.message.slot
    return signed.sender.key, int(slot.round), int(slot.attempt)
