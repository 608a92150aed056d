"""Votes, counted: one a sender and attempt; a certificate is a quorum for one attempt, one Closing and one state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from p2pnode.envelope import Signed
from p2pnode.identity import PeerId
from p2pnode.messages import Equivocation, Ignored, SlotBase, reject
from p2pnode.replica.chain import check_vote
from p2pnode.replica.proposal import Group
from p2pnode.replica.roster import Roster
from p2pnode.wire.round_pb2 import Vote

KEPT_ATTEMPTS: Final = 8  # of one sender, so that nobody can push out the votes of others


@dataclass
class Ballot:
    """The votes of one round, by attempt."""

    by_attempt: dict[int, dict[PeerId, Signed[Vote]]] = field(default_factory=dict)

    def add(self, vote: Signed[Vote], base: SlotBase, roster: Roster) -> None:
        """Keep a vote. REJECT vote-voter, vote-equivocation; IGNORE vote-known."""
        attempt = check_vote(vote, base)
        if vote.sender not in roster:
            raise reject("vote-voter", f"{vote.sender} is not on the roster")
        votes = self.by_attempt.setdefault(attempt, {})
        known = votes.get(vote.sender)
        if known is not None:
            if known.digest != vote.digest:
                raise Equivocation("vote-equivocation", known, vote)
            raise Ignored("vote-known")
        votes[vote.sender] = vote
        kept = sorted(number for number, by_peer in self.by_attempt.items() if vote.sender in by_peer)
        for old in kept[:-KEPT_ATTEMPTS]:
            del self.by_attempt[old][vote.sender]
            if not self.by_attempt[old]:
                del self.by_attempt[old]

    def winner(self, group: Group) -> tuple[Signed[Vote], ...]:
        """The votes, ascending by sender, that certify this group; empty without a quorum."""
        tally: dict[tuple[bytes, bytes], list[Signed[Vote]]] = {}
        for peer, vote in sorted(self.by_attempt.get(group.attempt, {}).items()):
            if peer in group.electorate and vote.message.group == group.digest:
                tally.setdefault((vote.message.closing, vote.message.state_digest), []).append(vote)
        return next((tuple(votes) for votes in tally.values() if len(votes) >= group.quorum), ())

    def voters_elsewhere(self, roster: Roster) -> tuple[PeerId, ...]:
        """Members whose votes agree and reach the roster's quorum in some attempt: the round is certified, even if we
        miss what it takes to see that for ourselves."""
        for votes in self.by_attempt.values():
            tally: dict[tuple[bytes, bytes, bytes], list[PeerId]] = {}
            for peer, vote in votes.items():
                found = vote.message
                tally.setdefault((found.group, found.closing, found.state_digest), []).append(peer)
            for peers in tally.values():
                if len(peers) >= roster.quorum:
                    return tuple(sorted(peers))
        return ()

    def voted_for(self, closing: bytes) -> tuple[PeerId, ...]:
        """Who voted for this Closing, in any attempt: they hold its outputs."""
        votes = [item for by_peer in self.by_attempt.values() for item in by_peer.items()]
        return tuple(sorted({peer for peer, vote in votes if vote.message.closing == closing}))
