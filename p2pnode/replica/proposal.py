"""What a proposal says, checked: who is in the group, who reduces which part, and what the round commits about peers.

Used both by a round in progress and by whoever follows the chain later, so that both apply the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from blake3 import blake3

from p2pnode.envelope import DIGEST_BYTES, Signed
from p2pnode.identity import KEY_BYTES, PeerId
from p2pnode.manifest import RunManifest
from p2pnode.messages import CLOSING, ENTRY, LEAVE, MAX_EVIDENCE, PROPOSAL, Ignored, SlotBase, check_slot, reject
from p2pnode.replica.roster import CommittedRound, Roster, quorum_of
from p2pnode.wire.round_pb2 import Closing, Leave, Lock, Part, Proposal, RoundEntry

UNIT_VALUES: Final = 64  # parts start and stop at multiples of this, for blockwise codecs
MAX_BANDWIDTH: Final = 1 << 40  # bytes a second; also keeps the partition's integers small
_ORDER: Final = b"p2pnode.convener.1\0"
_NEWCOMER: Final = b"p2pnode.newcomer.1\0"


def _order(prefix: bytes, base: SlotBase, peer: PeerId) -> bytes:
    return blake3(prefix + base.run + base.round.to_bytes(8, "big") + base.parent + peer.key).digest()


def convener_of(roster: Roster, base: SlotBase, attempt: int) -> PeerId:
    """The roster member that convenes `attempt`: they rotate in the order of BLAKE3(run, round, parent, peer)."""
    order = sorted(roster.members, key=lambda peer: _order(_ORDER, base, peer))
    return order[attempt % len(order)]


def least_contributors(base: SlotBase, manifest: RunManifest) -> int:
    """Contributors without which there is no exchange: in round 1 those that the run starts with, later one."""
    return manifest.roster.start_with if base.round == 1 else 1


def newcomer_order(base: SlotBase, peer: PeerId) -> bytes:
    """Sort key in which unknown contributors are admitted; nobody can choose it long before the round."""
    return _order(_NEWCOMER, base, peer)


@dataclass(frozen=True)
class PartRange:
    """One reducer's part: values [start, stop). deputy: who takes it over if the reducer stalls."""

    index: int
    reducer: PeerId
    start: int
    stop: int
    deputy: PeerId | None = None

    @property
    def aggregators(self) -> tuple[PeerId, ...]:
        """Who may sign its output."""
        return (self.reducer,) if self.deputy is None else (self.reducer, self.deputy)

    def __len__(self) -> int:
        return self.stop - self.start


def partition(values: int, bandwidths: dict[PeerId, int]) -> tuple[PartRange, ...]:
    """Cut `values` into one part for each reducer, in proportion to bandwidth, none over 2/n of the whole.

    Integers only. Reducers in ascending order; parts in whole units of UNIT_VALUES (but the last); a reducer that would
    get none has no part. What the cap cuts off is shared out among the others again, largest remainder first. A part's
    deputy is the reducer after its own in that order, cyclically, be it one without a part.
    """
    reducers = sorted(bandwidths)
    units = -(-values // UNIT_VALUES)
    cap = max(1, -(-2 * units // len(reducers)))
    share = dict.fromkeys(reducers, 0)
    open_ones = list(reducers)
    left = units
    while left and open_ones:
        weights = {peer: max(1, min(bandwidths[peer], MAX_BANDWIDTH)) for peer in open_ones}
        total = sum(weights.values())
        granted = {peer: min(left * weights[peer] // total, cap - share[peer]) for peer in open_ones}
        if not any(granted.values()):
            by_remainder = sorted(open_ones, key=lambda peer: (-(left * weights[peer] % total), peer))
            granted = dict.fromkeys(by_remainder[:left], 1)
        for peer, grant in granted.items():
            share[peer] += grant
            left -= grant
        open_ones = [peer for peer in open_ones if share[peer] < cap]
    parts: list[PartRange] = []
    start = 0
    for place, peer in enumerate(reducers):
        stop = min(values, start + share[peer] * UNIT_VALUES)
        deputy = reducers[(place + 1) % len(reducers)]
        if stop > start:
            parts.append(PartRange(len(parts), peer, start, stop, deputy if deputy != peer else None))
        start = stop
    return tuple(parts)


@dataclass(frozen=True)
class Group:
    """A checked proposal. `base_proposal` is what ran (or runs) the exchange: with a relock, the older one."""

    proposal: Signed[Proposal]
    attempt: int
    entries: dict[PeerId, Signed[RoundEntry]]
    contributors: tuple[PeerId, ...]
    parts: tuple[PartRange, ...]
    electorate: tuple[PeerId, ...]
    provisional: bool
    leaving: tuple[PeerId, ...]
    base: Group | None
    closing: Signed[Closing] | None
    quorum: int  # votes that certify

    @property
    def digest(self) -> bytes:
        """The group id."""
        return self.proposal.digest

    @property
    def exchange(self) -> Group:
        """The group whose exchange decides the round's outcome: this one, or with a relock the older one."""
        return self.base or self

    @cached_property
    def participants(self) -> tuple[PeerId, ...]:
        """Everybody with an entry."""
        return tuple(sorted(self.entries))

    def part_of(self, peer: PeerId) -> PartRange | None:
        """The part that `peer` reduces."""
        return next((part for part in self.parts if part.reducer == peer), None)

    def deputized_to(self, peer: PeerId) -> PartRange | None:
        """The part that `peer` takes over if its reducer stalls."""
        return next((part for part in self.parts if part.deputy == peer), None)

    def committed(self, base: SlotBase, closing: Closing) -> CommittedRound:
        """What the round says of peers if `closing`, of this group, is certified."""
        return CommittedRound(
            base.round,
            self.participants,
            tuple(PeerId(key) for key in closing.counted),
            self.leaving,
            self.provisional,
            tuple(sorted({accused for accused, _ in self.accusations})),
        )

    @cached_property
    def accusations(self) -> frozenset[tuple[PeerId, bytes]]:
        """Whom the entries accuse, with the evidence's digest. Nobody votes on a group before it has verified them."""
        found = (item for entry in self.entries.values() for item in entry.message.evidence)
        return frozenset((PeerId(item.accused), item.digest) for item in found)


def check_group(
    proposal: Signed[Proposal],
    base: SlotBase,
    roster: Roster,
    manifest: RunManifest,
    values: int,
    *,
    nested: bool = False,
) -> Group:
    """Check everything about a proposal that doesn't depend on who looks, or when.

    `values` is the number of parameters. Raises PeerFault (REJECT) or Ignored, with the clauses named here.
    """
    message = proposal.message
    attempt = check_slot(message.slot, base)
    if proposal.sender != convener_of(roster, base, attempt):
        raise reject("proposal-convener", f"{proposal.sender} does not convene attempt {attempt}")
    longest = manifest.deadlines
    stated_ms = (message.contribute_ms, message.close_ms, message.vote_ms)
    most_seconds = (longest.contribute, longest.close, longest.vote)
    if any(ms > round(most * 1000) for ms, most in zip(stated_ms, most_seconds, strict=True)):
        raise reject("proposal-deadlines", "longer than the manifest allows")
    entries = _check_entries(message, base, attempt, roster, manifest)
    leaves = _check_leaves(message, base, roster, entries, attempt)
    leaving = {peer for peer, entry in entries.items() if entry.message.leaving} | leaves.keys()
    members = tuple(peer for peer in roster.members if peer in entries)
    leavers = {peer for peer, leave in leaves.items() if leave.message.slot.round == base.round and peer in roster}
    electorate, quorum = electorate_of(roster, leavers)
    if message.provisional:
        if not members:
            raise reject("proposal-quorum", "no roster member is listed")
        electorate, quorum = members, quorum_of(len(members))
    elif len(members) + len(leavers) < roster.quorum:
        promised = len(members) + len(leavers)
        raise reject("proposal-quorum", f"{promised} roster members listed or leaving, {roster.quorum} needed")
    contributors = tuple(peer for peer, entry in sorted(entries.items()) if entry.message.contributes)
    locks = [found.lock for found in _promises(entries, leaves) if found.HasField("lock")]
    older, closing = _check_relock(message, base, roster, manifest, values, locks, attempt, nested=nested)
    if older is not None:
        if message.parts:
            raise reject("proposal-partition", "a relock has no parts of its own")
        parts: tuple[PartRange, ...] = ()
    else:
        if len(contributors) < least_contributors(base, manifest):
            raise reject("proposal-contributors", f"only {len(contributors)} contribute")
        parts = partition(values, {peer: int(entries[peer].message.bandwidth) for peer in members})
        if list(message.parts) != [part_message(part) for part in parts]:
            raise reject("proposal-partition", "not what the entries' bandwidths give")
    return Group(
        proposal,
        attempt,
        entries,
        contributors,
        parts,
        electorate,
        message.provisional,
        tuple(sorted(leaving)),
        older,
        closing,
        quorum,
    )


def electorate_of(roster: Roster, leavers: Set[PeerId]) -> tuple[tuple[PeerId, ...], int]:
    """Who votes on a proposal that holds the leaves of `leavers` for this very round, and how many votes certify.

    A leave is a promise like an entry: entries and leaves of a proposal together are a quorum of the roster. Whoever
    left does not vote; of the others a majority must, and at least so many that any quorum of a later attempt shares
    one with them (as flexible Paxos has it, arXiv 1608.06696). Too many leavers for that: all are waited for.
    """
    staying = tuple(peer for peer in roster.members if peer not in leavers)
    needed = max(quorum_of(len(staying)), len(roster.members) + 1 - roster.quorum)
    if not leavers or len(staying) < needed:
        return roster.members, roster.quorum
    return staying, needed


def _promises(
    entries: Mapping[PeerId, Signed[RoundEntry]], leaves: Mapping[PeerId, Signed[Leave]]
) -> list[RoundEntry | Leave]:
    """What carries locks: entries, and the leaves of this round."""
    return [*(entry.message for entry in entries.values()), *(leave.message for leave in leaves.values())]


def part_message(part: PartRange) -> Part:
    """As a proposal states it."""
    deputy = part.deputy.key if part.deputy is not None else b""
    return Part(reducer=part.reducer.key, start=part.start, stop=part.stop, deputy=deputy)


def _check_entries(
    message: Proposal, base: SlotBase, attempt: int, roster: Roster, manifest: RunManifest
) -> dict[PeerId, Signed[RoundEntry]]:
    limits = manifest.limits
    if not 1 <= len(message.entries) <= limits.contributors + limits.voters:
        raise reject("proposal-contributors", f"{len(message.entries)} entries")
    entries: dict[PeerId, Signed[RoundEntry]] = {}
    last: PeerId | None = None
    for raw in message.entries:
        entry = ENTRY.open(raw)
        if last is not None and entry.sender <= last:
            raise reject("proposal-entries-order")
        if check_slot(entry.message.slot, base) != attempt:
            raise reject("proposal-entry-attempt")
        check_entry(entry, roster, manifest)
        entries[entry.sender] = entry
        last = entry.sender
    if sum(peer not in roster.known for peer in entries) > limits.newcomers:
        raise reject("proposal-newcomers", f"over {limits.newcomers}")
    if sum(entry.message.contributes for entry in entries.values()) > limits.contributors:
        raise reject("proposal-contributors", f"over {limits.contributors}")
    return entries


def check_not_excluded(peer: PeerId, roster: Roster) -> None:
    """REJECT entry-excluded."""
    if peer in roster.excluded:
        raise reject("entry-excluded", f"{peer} broke the protocol, and it was proven")


def check_entry(entry: Signed[RoundEntry], roster: Roster, manifest: RunManifest) -> None:
    """Check an entry but for its slot. REJECT entry-form, entry-excluded, entry-lock, entry-admission, entry-idle."""
    message = entry.message
    lengths = [message.nonce_digest, message.exchange_key]
    lengths += [field for found in message.evidence for field in (found.digest, found.accused)]
    if any(len(field) != DIGEST_BYTES for field in lengths) or len(message.evidence) > MAX_EVIDENCE:
        raise reject("entry-form")
    check_not_excluded(entry.sender, roster)
    if message.HasField("lock"):
        lock = message.lock
        if len(lock.closing) != DIGEST_BYTES or len(lock.state_digest) != DIGEST_BYTES:
            raise reject("entry-lock", "malformed")
        if lock.attempt >= message.slot.attempt:
            raise reject("entry-lock", "of this attempt or a later one")
        if entry.sender not in roster:
            raise reject("entry-lock", "only roster members vote")
    admitted = manifest.roster.admission == "open" or entry.sender.text in manifest.roster.peers
    if not admitted and entry.sender not in roster and entry.sender.text != manifest.author:
        raise reject("entry-admission", f"{entry.sender} is not on the run's list")
    if not message.contributes and entry.sender not in roster:
        raise reject("entry-idle", "only a roster member may enter without contributing")


def check_leave(leave: Signed[Leave], base: SlotBase, roster: Roster) -> int:
    """The attempt below which a leave binds its sender in the round of `base`; 0 if it is of an earlier round.

    REJECT leave-form, and by the slot; IGNORE leave-outdated. One who came back in a later round is not thrown out by a
    replay.
    """
    slot, lock = leave.message.slot, leave.message.lock
    earlier = slot.round < base.round
    attempt = check_slot(slot, SlotBase(base.run, int(slot.round), slot.parent) if earlier else base)
    if attempt < 1:
        raise reject("leave-form", "promises nothing")
    if leave.message.HasField("lock") and (
        len(lock.closing) != DIGEST_BYTES or len(lock.state_digest) != DIGEST_BYTES or lock.attempt >= attempt
    ):
        raise reject("leave-form", "a malformed lock")
    known = roster.entry(leave.sender)
    if known is None or known.last_seen > slot.round:
        raise Ignored("leave-outdated")
    return 0 if earlier else attempt


def _check_leaves(
    message: Proposal, base: SlotBase, roster: Roster, entries: dict[PeerId, Signed[RoundEntry]], attempt: int
) -> dict[PeerId, Signed[Leave]]:
    if len(message.leaves) > len(roster.entries):
        raise reject("proposal-leaves")
    leaves: dict[PeerId, Signed[Leave]] = {}
    last: PeerId | None = None
    for raw in message.leaves:
        leave = LEAVE.open(raw)
        if last is not None and leave.sender <= last:
            raise reject("proposal-leaves", "leaves ascend by sender")
        try:
            binds = check_leave(leave, base, roster)
        except Ignored as ignored:
            raise reject("proposal-leaves", ignored.clause) from None
        if leave.message.slot.round == base.round and (leave.sender in entries or binds <= attempt):
            raise reject("proposal-leaves", "of one who is here, or may be")
        leaves[leave.sender] = leave
        last = leave.sender
    return leaves


def _check_relock(
    message: Proposal,
    base: SlotBase,
    roster: Roster,
    manifest: RunManifest,
    values: int,
    locks: Sequence[Lock],
    attempt: int,
    *,
    nested: bool,
) -> tuple[Group | None, Signed[Closing] | None]:
    """The lock rule: the highest lock among entries and leaves is proposed again, and nothing else is."""
    if not message.HasField("relock"):
        if locks:
            raise reject("proposal-lock", "entries hold a lock that is not proposed again")
        return None, None
    if nested:
        raise reject("proposal-lock", "an exchange can't itself be a relock")
    if not locks:
        raise reject("proposal-lock", "no entry holds a lock")
    highest = max(lock.attempt for lock in locks)
    closing = CLOSING.open(message.relock.closing)
    if closing.digest not in {lock.closing for lock in locks if lock.attempt == highest}:
        raise reject("proposal-lock", "not the lock of the highest attempt")
    older = check_group(PROPOSAL.open(message.relock.proposal), base, roster, manifest, values, nested=True)
    if older.attempt > highest or older.attempt >= attempt:
        raise reject("proposal-lock", "a Closing of a later attempt")
    check_closing(closing, older, base)
    return older, closing


def check_closing(closing: Signed[Closing], group: Group, base: SlotBase) -> None:
    """Check a Closing against its group. REJECT closing-attempt, closing-convener, closing-group, closing-form."""
    message = closing.message
    if check_slot(message.slot, base) != group.attempt:
        raise reject("closing-attempt")
    if closing.sender != group.proposal.sender:
        raise reject("closing-convener")
    if message.group != group.digest:
        raise reject("closing-group")
    if len(message.outputs) != len(group.parts) or any(len(digest) != DIGEST_BYTES for digest in message.outputs):
        raise reject("closing-form", "one output a part")
    counted = list(message.counted)
    if counted != sorted(set(counted)) or any(
        len(key) != KEY_BYTES or PeerId(key) not in group.contributors for key in counted
    ):
        raise reject("closing-form", "counted peers are contributors, ascending")
