"""Certificates, and the chain of certified states that anyone can follow without the tensors.

A link is checked against its parent alone: the votes of a quorum of the parent's roster (or, in a provisional round, of
the members that it lists) for one Closing and one state, and a roster that follows from what the round committed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from p2pnode.envelope import Signed
from p2pnode.identity import PeerId
from p2pnode.manifest import RunManifest
from p2pnode.messages import CLOSING, OUTPUT, PROPOSAL, VOTE, Ignored, SlotBase, check_slot, reject
from p2pnode.replica.proposal import Group, check_closing, check_group
from p2pnode.replica.roster import Roster
from p2pnode.replica.state import GlobalState, state_digest
from p2pnode.wire.chain_pb2 import ChainRecord, StateHeader
from p2pnode.wire.round_pb2 import Closing, OutputHeader, Vote

MAX_RECORD_BYTES: Final = 1000 * 1024  # of a serialized ChainRecord


@dataclass(frozen=True)
class Link:
    """Where a verified chain has got to: enough to check the next record."""

    round: int
    digest: bytes
    roster: Roster
    header: StateHeader | None = None  # None for a checkpoint that was given from outside
    provisional: bool = False  # this very round
    votes: int = 0
    electorate_votes: int = 0  # of the parent's roster, for the fork choice
    contributors: tuple[PeerId, ...] = ()  # counted in the round
    attempt: int = 0

    @classmethod
    def of(cls, state: GlobalState) -> Link:
        """The link for a state that we hold."""
        return cls(state.round, state.digest, state.roster, state.header)


@dataclass(frozen=True)
class Certified:
    """A checked ChainRecord."""

    link: Link
    group: Group
    closing: Signed[Closing]
    outputs: tuple[Signed[OutputHeader], ...]
    votes: tuple[Signed[Vote], ...]
    record: bytes  # serialized, to store and pass on


def check_vote(vote: Signed[Vote], base: SlotBase) -> int:
    """The attempt of a vote for the round of `base`. REJECT vote-form; IGNORE by the slot."""
    attempt = check_slot(vote.message.slot, base)
    if any(len(digest) != 32 for digest in (vote.message.closing, vote.message.state_digest, vote.message.group)):
        raise reject("vote-form")
    return attempt


def check_outputs(
    raw: Sequence[bytes], closing: Signed[Closing], group: Group, base: SlotBase
) -> tuple[Signed[OutputHeader], ...]:
    """The output headers that a Closing names, in part order. REJECT closing-outputs, output-*."""
    headers = tuple(OUTPUT.open(item) for item in raw)
    if [header.digest for header in headers] != list(closing.message.outputs):
        raise reject("closing-outputs", "the headers are not those that the Closing names")
    for part, header in zip(group.parts, headers, strict=True):
        check_output(header, group, base)
        if header.message.part != part.index:
            raise reject("closing-outputs", "headers are not in part order")
    return headers


def check_output(header: Signed[OutputHeader], group: Group, base: SlotBase) -> int:
    """The part of an output header, after checking all but its weight.

    REJECT output-attempt, output-group, output-part, output-reducer, output-rows, output-root.
    """
    message = header.message
    if check_slot(message.slot, base) != group.attempt:
        raise reject("output-attempt")
    if message.group != group.digest:
        raise reject("output-group")
    if message.part >= len(group.parts):
        raise reject("output-part")
    if header.sender not in group.parts[message.part].aggregators:
        raise reject("output-reducer", f"{header.sender} does not reduce part {message.part}")
    keys = [row.contributor for row in message.accepted]
    if not keys or keys != sorted(set(keys)) or any(len(row.commitment) != 32 for row in message.accepted):
        raise reject("output-rows", "accepted rows ascend by contributor")
    contributors = {peer.key for peer in group.contributors}
    if not contributors.issuperset(keys):
        raise reject("output-rows", "of a peer that does not contribute")
    if len(message.root) != 32:
        raise reject("output-root")
    return int(message.part)


def counted_contributors(outputs: Sequence[OutputHeader]) -> list[bytes]:
    """Contributors accepted in every part, ascending."""
    sets = [{row.contributor for row in output.accepted} for output in outputs]
    return sorted(set.intersection(*sets)) if sets else []


def check_record(record: ChainRecord, parent: Link, manifest: RunManifest, values: int) -> Certified:
    """Check one certified round against its parent.

    values: number of the model's parameters. Raises PeerFault (REJECT record-*, and those of the messages inside).
    """
    header = record.header
    if header.run != manifest.digest:
        raise reject("record-run", "of another run")
    if header.round != parent.round + 1 or header.parent != parent.digest:
        raise reject("record-parent", f"round {header.round} does not follow from our round {parent.round}")
    base = SlotBase(manifest.digest, parent.round + 1, parent.digest)
    try:
        exchange = check_group(PROPOSAL.open(record.proposal), base, parent.roster, manifest, values)
        voted = exchange
        if record.reproposal:
            voted = check_group(PROPOSAL.open(record.reproposal), base, parent.roster, manifest, values)
            if voted.base is None or voted.base.digest != exchange.digest:
                raise reject("record-reproposal", "of another exchange")
        closing = CLOSING.open(record.closing)
        if voted.closing is not None and voted.closing.digest != closing.digest:
            raise reject("record-reproposal", "does not propose this Closing again")
        check_closing(closing, exchange, base)
        outputs = check_outputs(record.outputs, closing, exchange, base)
        if list(closing.message.counted) != counted_contributors([output.message for output in outputs]):
            raise reject("closing-counted", "not those accepted in every part")
        votes = _check_votes(record, base, voted, closing)
        roster = Roster.from_message(record.roster)
        digest = state_digest(header)
    except Ignored as ignored:
        raise reject("record-slot", ignored.clause) from None
    except ValueError as error:
        raise reject("record-roster", str(error)) from None
    if digest != votes[0].message.state_digest:
        raise reject("record-state", "the votes are for another state")
    follows = parent.roster.after(exchange.committed(base, closing.message), manifest)
    if roster != follows or header.roster != roster.digest:
        raise reject("record-roster", "does not follow from what the round committed")
    link = _link(parent, exchange, voted, closing, votes, digest, roster, header)
    return Certified(link, exchange, closing, outputs, votes, record.SerializeToString(deterministic=True))


def _check_votes(
    record: ChainRecord, base: SlotBase, voted: Group, closing: Signed[Closing]
) -> tuple[Signed[Vote], ...]:
    if not 1 <= len(record.votes) <= len(voted.electorate):
        raise reject("record-votes", f"{len(record.votes)} votes")
    votes = tuple(VOTE.open(raw) for raw in record.votes)
    senders = [vote.sender for vote in votes]
    if any(a >= b for a, b in itertools.pairwise(senders)):
        raise reject("record-votes", "votes ascend by sender")
    for vote in votes:
        if check_vote(vote, base) != voted.attempt:
            raise reject("record-votes", "of another attempt")
        if vote.message.group != voted.digest:
            raise reject("record-votes", "cast under another proposal")
        if vote.sender not in voted.electorate:
            raise reject("record-votes", f"{vote.sender} has no vote in this round")
        if vote.message.closing != closing.digest or vote.message.state_digest != votes[0].message.state_digest:
            raise reject("record-votes", "not all for one Closing and one state")
    if len(votes) < voted.quorum:
        raise reject("record-quorum", f"{len(votes)} votes, {voted.quorum} needed")
    return votes


def assemble(
    parent: Link,
    voted: Group,
    closing: Signed[Closing],
    outputs: Sequence[Signed[OutputHeader]],
    votes: Sequence[Signed[Vote]],
    state: GlobalState,
) -> Certified:
    """The record of a round from parts that were all checked already; `check_record` would accept it."""
    exchange = voted.exchange
    record = ChainRecord(
        header=state.header,
        votes=[vote.raw for vote in votes],
        roster=state.roster.to_message(),
        closing=closing.raw,
        proposal=exchange.proposal.raw,
        outputs=[output.raw for output in outputs],
        reproposal=voted.proposal.raw if voted.base is not None else b"",
    )
    return Certified(
        _link(parent, exchange, voted, closing, votes, state.digest, state.roster, state.header),
        exchange,
        closing,
        tuple(outputs),
        tuple(votes),
        record.SerializeToString(deterministic=True),
    )


def _link(
    parent: Link,
    exchange: Group,
    voted: Group,
    closing: Signed[Closing],
    votes: Sequence[Signed[Vote]],
    digest: bytes,
    roster: Roster,
    header: StateHeader,
) -> Link:
    return Link(
        parent.round + 1,
        digest,
        roster,
        header,
        exchange.provisional or voted.provisional,
        len(votes),
        sum(vote.sender in parent.roster for vote in votes),
        tuple(PeerId(key) for key in closing.message.counted),
        voted.attempt,
    )


def decode_record(raw: bytes) -> ChainRecord:
    """A ChainRecord from bytes, unchecked but for size and form. REJECT record-size, record-form."""
    if len(raw) > MAX_RECORD_BYTES:
        raise reject("record-size", f"{len(raw)} bytes")
    try:
        return ChainRecord.FromString(raw)
    except DecodeError:
        raise reject("record-form") from None
