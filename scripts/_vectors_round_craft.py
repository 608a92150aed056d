"""Makes and signs any message of a round in anybody's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from _vectors_plain import identity
from _vectors_round import VALUES, Json, Setup
from blake3 import blake3

from p2pnode.envelope import Signed
from p2pnode.messages import ENTRY, PROPOSAL, VOTE, SlotBase
from p2pnode.replica.proposal import Group, check_group
from p2pnode.replica.roster import Roster
from p2pnode.round.frames import Kind, frame
from p2pnode.round.gathering import make_proposal
from p2pnode.round.rules import Rules
from p2pnode.wire.chain_pb2 import Roster as RosterMessage
from p2pnode.wire.round_pb2 import (
    Proposal,
    RoundEntry,
    Vote,
)

FAKE = b"\x5a" * 32  # a digest of nothing


def payload(data: bytes) -> bytes:
    """What a frame carries."""
    return data[1:]


@dataclass
class Craft:
    """Signs anything in anybody's name."""

    setup: Setup
    base: SlotBase
    rules: Rules

    def entry(self, who: int, attempt: int = 0, *, base: SlotBase | None = None, **fields: Any) -> Signed[RoundEntry]:
        known: Json = {
            "slot": (base or self.base).at(attempt),
            "nonce_digest": blake3(b"nonce %d" % who).digest(),
            "bandwidth": 10_000_000,
            "exchange_key": blake3(b"key %d" % who).digest(),
            "contributes": True,
        }
        return ENTRY.seal(identity(who), RoundEntry(**(known | fields)))

    def proposal_message(self, entries: list[Signed[RoundEntry]], attempt: int = 0, **fields: Any) -> Proposal:
        leaves = fields.pop("leaves", [])
        known: Json = {"provisional": False, "relock": None}
        entries = sorted(entries, key=lambda item: item.sender)
        roster = self.roster
        return make_proposal(
            self.base, attempt, entries, leaves, roster, self.rules.manifest, VALUES, **(known | fields)
        )

    def proposal(self, entries: list[Signed[RoundEntry]], attempt: int = 0, **fields: Any) -> bytes:
        """A proposal's frame, signed by the attempt's convener."""
        who = fields.pop("who", self.setup.order[attempt % 3])
        message = self.proposal_message(entries, attempt, **fields)
        return self.seal_proposal(message, who)

    def seal_proposal(self, message: Proposal, who: int) -> bytes:
        return frame(Kind.PROPOSAL, PROPOSAL.seal(identity(who), message).raw)

    def group(self, data: bytes) -> Group:
        return check_group(PROPOSAL.open(payload(data)), self.base, self.roster, self.rules.manifest, VALUES)

    @property
    def roster(self) -> Roster:
        return Roster.from_message(RosterMessage.FromString(bytes.fromhex(self.setup.json["roster"])))

    def vote(
        self,
        who: int,
        closing: bytes,
        state: bytes,
        attempt: int = 0,
        *,
        base: SlotBase | None = None,
        group: bytes = FAKE,
    ) -> bytes:
        slot = (base or self.base).at(attempt)
        vote = Vote(slot=slot, closing=closing, state_digest=state, group=group)
        return frame(Kind.VOTE, VOTE.seal(identity(who), vote).raw)


def step(sender: int, data: bytes, at: float, **expected: str) -> Json:
    """An inbound frame before a case."""
    return {"at": at, "from": sender, "frame": data.hex(), **expected}
