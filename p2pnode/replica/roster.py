"""The roster: who convenes, reduces and votes; computed from committed history only.

Everybody contributes; a contributor becomes a member after its contributions counted in `probation` rounds, and leaves
by a committed signed leave, or when none of its entries was committed for a while (`window_of`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from blake3 import blake3

from p2pnode.identity import KEY_BYTES, PeerId
from p2pnode.manifest import RunManifest
from p2pnode.wire import chain_pb2

MAX_ENTRIES = 128  # members and candidates kept
MAX_EXCLUDED = 128  # peers that may not come back; with more, the first are forgotten


@dataclass(frozen=True)
class RosterEntry:
    """What committed history says of one peer.

    accepted: rounds in which its contribution counted. last_seen: last round with a committed entry of it.
    """

    peer: PeerId
    accepted: int
    last_seen: int
    member: bool


@dataclass(frozen=True)
class CommittedRound:
    """What a certified round says about peers: its proposal's entries, who counted, who leaves, who is convicted."""

    round: int
    entrants: Sequence[PeerId]
    counted: Sequence[PeerId]
    leaving: Sequence[PeerId]
    provisional: bool
    accused: Sequence[PeerId] = ()  # by evidence that the voters verified


def window_of(members: int, window: int) -> int:
    """Rounds without a committed entry after which a member leaves: the manifest's window, shorter for small rosters.

    Two rounds for each member plus two: a small roster must shed the dead before too many more die, a large one can
    afford patience.
    """
    return min(window, 2 * members + 2)


@dataclass(frozen=True)
class Roster:
    """Members and candidates, ascending by peer id."""

    entries: tuple[RosterEntry, ...]
    excluded: tuple[PeerId, ...] = ()  # in the order in which they were

    @classmethod
    def genesis(cls, manifest: RunManifest, founder: PeerId) -> Roster:
        """The roster of round 0: the manifest's anchors, or else the founder."""
        peers = sorted(PeerId.from_text(text) for text in manifest.roster.anchors) or [founder]
        return cls(tuple(RosterEntry(peer, 0, 0, True) for peer in peers))

    @cached_property
    def members(self) -> tuple[PeerId, ...]:
        """Who votes, ascending."""
        return tuple(entry.peer for entry in self.entries if entry.member)

    def entry(self, peer: PeerId) -> RosterEntry | None:
        """What is known of `peer`."""
        return next((entry for entry in self.entries if entry.peer == peer), None)

    @cached_property
    def known(self) -> frozenset[PeerId]:
        """Members and candidates."""
        return frozenset(entry.peer for entry in self.entries)

    @property
    def quorum(self) -> int:
        """floor(n/2) + 1 of the members."""
        return quorum_of(len(self.members))

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self.members

    def after(self, committed: CommittedRound, manifest: RunManifest) -> Roster:
        """The roster that follows from one more certified round."""
        rules = manifest.roster
        window = window_of(len(self.members), rules.window)
        entrants, counted, leaving = set(committed.entrants), set(committed.counted), set(committed.leaving)
        convicted = set(committed.accused) & self.known
        if convicted.issuperset(self.members):
            convicted.clear()  # nobody would be left to go on
        before = {entry.peer: entry for entry in self.entries}
        updated: list[RosterEntry] = []
        for peer in sorted(before.keys() | entrants):
            old = before.get(peer) or RosterEntry(peer, 0, committed.round, False)
            entry = RosterEntry(
                peer,
                old.accepted + (peer in counted),
                committed.round if peer in entrants else old.last_seen,
                old.member,
            )
            if peer in convicted:
                gone = True
            elif rules.anchors:
                gone = not entry.member and committed.round - entry.last_seen >= window
            elif committed.provisional and old.member and peer not in entrants:
                gone = True  # a provisional round's roster is the members that it lists
            else:
                gone = peer in leaving or committed.round - entry.last_seen >= window
            if not gone:
                updated.append(entry)
        if not any(entry.member for entry in updated):
            # All members leave at once: they stay on record, so that any of them can take the run up again.
            stay = [e for e in self.entries if e.member and e.peer in (entrants | leaving) - convicted]
            merged = {entry.peer: entry for entry in updated} | {entry.peer: entry for entry in stay}
            updated = [merged[peer] for peer in sorted(merged)]
        excluded = [peer for peer in self.excluded if peer not in convicted] + sorted(convicted)
        return Roster(tuple(_promote(_bounded(updated), manifest)), tuple(excluded[-MAX_EXCLUDED:]))

    @cached_property
    def encoded(self) -> bytes:
        """Canonical bytes (chain.proto Roster)."""
        return self.to_message().SerializeToString(deterministic=True)

    @cached_property
    def digest(self) -> bytes:
        """BLAKE3 of `encoded`, 32 bytes."""
        return blake3(self.encoded).digest()

    def to_message(self) -> chain_pb2.Roster:
        """As chain.proto has it."""
        return chain_pb2.Roster(
            entries=[
                chain_pb2.RosterEntry(peer=e.peer.key, accepted=e.accepted, last_seen=e.last_seen, member=e.member)
                for e in self.entries
            ],
            excluded=[peer.key for peer in self.excluded],
        )

    @classmethod
    def from_message(cls, message: chain_pb2.Roster) -> Roster:
        """Check and convert. ValueError if it is not ascending, too long, without a member, or excludes wrongly."""
        if not 1 <= len(message.entries) <= MAX_ENTRIES:
            raise ValueError("a roster has 1 to 128 entries")
        keys = [entry.peer for entry in message.entries]
        if any(len(key) != KEY_BYTES for key in keys) or keys != sorted(set(keys)):
            raise ValueError("a roster's entries ascend by peer")
        out = list(message.excluded)
        if len(out) > MAX_EXCLUDED or any(len(key) != KEY_BYTES for key in out) or len({*out, *keys}) < len(out + keys):
            raise ValueError("a roster excludes at most 128 peers, each once, and none that is on it")
        entries = tuple(RosterEntry(PeerId(e.peer), e.accepted, e.last_seen, e.member) for e in message.entries)
        roster = cls(entries, tuple(PeerId(key) for key in out))
        if not roster.members:
            raise ValueError("a roster has a member")
        return roster


def quorum_of(members: int) -> int:
    """Votes that decide among `members` voters: more than half."""
    return members // 2 + 1


def _bounded(entries: Iterable[RosterEntry]) -> list[RosterEntry]:
    """At most MAX_ENTRIES: members first, then the candidates that counted most and were seen last."""
    ranked = sorted(entries, key=lambda e: (not e.member, -e.accepted, -e.last_seen, e.peer))
    return sorted(ranked[:MAX_ENTRIES], key=lambda e: e.peer)


def _promote(entries: list[RosterEntry], manifest: RunManifest) -> list[RosterEntry]:
    """Candidates past probation become members while there is room, those that counted most first."""
    if manifest.roster.anchors:
        return entries
    room = manifest.limits.voters - sum(entry.member for entry in entries)
    ready = [e for e in entries if not e.member and e.accepted >= max(1, manifest.roster.probation)]
    ready.sort(key=lambda e: (-e.accepted, e.peer))
    chosen = {entry.peer for entry in ready[: max(0, room)]}
    return [RosterEntry(e.peer, e.accepted, e.last_seen, e.member or e.peer in chosen) for e in entries]
