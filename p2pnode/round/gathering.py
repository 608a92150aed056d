"""Gathering: entries as they come in, whom a convener waits for, and the proposal that it makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from p2pnode.envelope import Signed
from p2pnode.identity import PeerId
from p2pnode.manifest import DeadlinesSection, RunManifest
from p2pnode.messages import Equivocation, Ignored, SlotBase
from p2pnode.replica.proposal import newcomer_order, part_message, partition
from p2pnode.replica.roster import Roster
from p2pnode.wire.round_pb2 import Leave, Proposal, Relock, RoundEntry

KEPT_ATTEMPTS: Final = 3  # of one sender
KEPT_STRANGERS: Final = 4  # times the newcomers that a round admits


@dataclass
class Gathering:
    """The entries of one round, by sender and attempt: ours, those of peers on record, and a few strangers'.

    Of strangers those are kept that a convener would admit first, so that a flood of identities keeps out no more
    newcomers than the hash order would.
    """

    by_sender: dict[PeerId, dict[int, Signed[RoundEntry]]] = field(default_factory=dict)

    def make_room(self, peer: PeerId, me: PeerId, base: SlotBase, roster: Roster, manifest: RunManifest) -> None:
        """Before `peer`'s entry is added. IGNORE entry-crowded."""
        if peer in self.by_sender or peer in roster.known:
            return
        strangers = [other for other in self.by_sender if other not in roster.known and other != me]
        if len(strangers) < KEPT_STRANGERS * manifest.limits.newcomers:
            return
        last = max(strangers, key=lambda other: newcomer_order(base, other))
        if newcomer_order(base, peer) > newcomer_order(base, last):
            raise Ignored("entry-crowded")
        del self.by_sender[last]

    def add(self, entry: Signed[RoundEntry]) -> bool:
        """Keep an entry; False if we had it. REJECT entry-equivocation."""
        attempts = self.by_sender.setdefault(entry.sender, {})
        attempt = int(entry.message.slot.attempt)
        known = attempts.get(attempt)
        if known is not None:
            if known.digest != entry.digest:
                raise Equivocation("entry-equivocation", known, entry)
            return False
        attempts[attempt] = entry
        while len(attempts) > KEPT_ATTEMPTS:
            del attempts[min(attempts)]
        return True

    def at(self, attempt: int) -> dict[PeerId, Signed[RoundEntry]]:
        """The entries for one attempt, by sender."""
        return {peer: attempts[attempt] for peer, attempts in self.by_sender.items() if attempt in attempts}

    def highest(self, peers: Iterable[PeerId], supporters: int = 1) -> int:
        """The highest attempt that at least `supporters` of `peers` have entered, or passed; -1 if none."""
        reached = sorted((max(self.by_sender[peer]) for peer in peers if self.by_sender.get(peer)), reverse=True)
        return reached[supporters - 1] if len(reached) >= supporters else -1


def admit(
    entries: dict[PeerId, Signed[RoundEntry]], base: SlotBase, roster: Roster, manifest: RunManifest
) -> list[Signed[RoundEntry]]:
    """The entries that a proposal takes: all roster members, known contributors, a few newcomers by hash order."""
    members = [entry for peer, entry in entries.items() if peer in roster]
    known = [entry for peer, entry in sorted(entries.items()) if peer in roster.known and peer not in roster]
    strangers = sorted((p for p in entries if p not in roster.known), key=lambda p: newcomer_order(base, p))
    others = known + [entries[peer] for peer in strangers[: manifest.limits.newcomers]]
    room = manifest.limits.contributors - sum(entry.message.contributes for entry in members)
    chosen = members + [entry for entry in others if entry.message.contributes][: max(0, room)]
    return sorted(chosen, key=lambda entry: entry.sender)


def make_proposal(
    base: SlotBase,
    attempt: int,
    entries: list[Signed[RoundEntry]],
    leaves: Iterable[Signed[Leave]],
    roster: Roster,
    manifest: RunManifest,
    values: int,
    *,
    provisional: bool,
    relock: Relock | None,
    deadlines: DeadlinesSection | None = None,
) -> Proposal:
    """What the convener signs. `entries` ascend by sender. deadlines: default: the longest that the manifest allows."""
    deadlines = deadlines or manifest.deadlines
    proposal = Proposal(
        slot=base.at(attempt),
        entries=[entry.raw for entry in entries],
        provisional=provisional,
        leaves=[leave.raw for leave in sorted(leaves, key=lambda leave: leave.sender)],
        contribute_ms=round(deadlines.contribute * 1000),
        close_ms=round(deadlines.close * 1000),
        vote_ms=round(deadlines.vote * 1000),
    )
    if relock is not None:
        proposal.relock.CopyFrom(relock)
        return proposal
    bandwidths = {entry.sender: int(entry.message.bandwidth) for entry in entries if entry.sender in roster}
    for part in partition(values, bandwidths):
        proposal.parts.append(part_message(part))
    return proposal
