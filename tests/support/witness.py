"""Sees all that is sent and committed in a simulated cluster, and knows what must never happen.

Violations are collected, not raised, so that a model check can count and name them:

    fork          two states certified for one round by regular certificates, or two that the fork choice can't order
    equivocation  two messages of one type by one honest sender for one slot
    record        a certificate that a stranger would refuse, or whose state does not follow from its outputs
    rejected      an honest peer's frame was refused as a fault
    halt          an honest node found its own replica wrong
    exception     a machine raised
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.manifest import RunManifest
from p2pnode.messages import CLOSING, COMMITMENT, ENTRY, OUTPUT, PROPOSAL, VOTE, Ignored, MessageType, SlotBase
from p2pnode.replica.branches import prefer
from p2pnode.replica.chain import Certified, Link, check_record, decode_record
from p2pnode.replica.outer import outer_step
from p2pnode.replica.state import GlobalState
from p2pnode.round.effects import Committed, Outcome, Verdict
from p2pnode.round.frames import Kind
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.output import Output
from p2pnode.round.rules import Rules

SLOTTED: dict[int, MessageType[Any]] = {
    Kind.ENTRY: ENTRY,
    Kind.PROPOSAL: PROPOSAL,
    Kind.COMMITMENT: COMMITMENT,
    Kind.OUTPUT: OUTPUT,
    Kind.CLOSING: CLOSING,
    Kind.VOTE: VOTE,
}


class Witness:
    """Judges one cluster."""

    def __init__(self, manifest: RunManifest, values: int, genesis: GlobalState) -> None:
        self.rules = Rules(manifest, values)
        self.liars: set[PeerId] = set()  # their equivocation is no violation
        self.only_digests = False  # for mutants whose certificates no stranger would accept: see forks only
        self.violations: list[tuple[str, str]] = []
        self.clauses: Counter[str] = Counter()  # of frames that were refused or ignored
        self.records = 0
        self.relocks = 0  # of those, certified in an attempt that proposed an older Closing again
        self.votes = 0  # signed so far
        self.last_voter: PeerId | None = None
        self._frames: set[bytes] = set()
        self._slots: dict[tuple[Any, ...], bytes] = {}
        self._states = {genesis.digest: genesis}
        self._links = {genesis.digest: Link.of(genesis)}
        self._checked: set[bytes] = set()
        self._children: dict[bytes, dict[bytes, Link]] = {}  # by parent, then by state digest

    def accuse(self, kind: str, detail: str) -> None:
        """Note a violation."""
        self.violations.append((kind, detail))

    def kinds(self) -> set[str]:
        """The kinds of violation so far."""
        return {kind for kind, _ in self.violations}

    def state(self, digest: bytes) -> GlobalState | None:
        """A certified state by its digest."""
        return self._states.get(digest)

    def verdict(self, sender: PeerId, to: PeerId, verdict: Verdict) -> None:
        """A machine's verdict on a frame."""
        if verdict.clause:
            self.clauses[f"{verdict.outcome.value} {verdict.clause}"] += 1
        if (verdict.outcome is Outcome.ACCEPT) != (verdict.clause == ""):
            self.accuse("rejected", f"verdict {verdict}")
        if verdict.outcome is Outcome.REJECT and not self.liars and not self.only_digests:
            self.accuse("rejected", f"{to.short} refused a frame of {sender.short}: {verdict.clause}")

    def frame(self, data: bytes) -> None:
        """A frame that somebody sent, whether it arrives or not."""
        message_type = SLOTTED.get(data[0])
        if message_type is None or data in self._frames:
            return
        self._frames.add(data)
        signed = message_type.open(data[1:])
        slot = signed.message.slot
        if message_type is VOTE:
            self.votes, self.last_voter = self.votes + 1, signed.sender
        # The parent is left out on purpose unless provisional rounds, whose losers change branch, can differ.
        parent = b"" if self.strict else slot.parent
        part = int(signed.message.part) if message_type is OUTPUT else 0
        key = (message_type.name, signed.sender, int(slot.round), int(slot.attempt), part, parent)
        if self._slots.setdefault(key, signed.digest) != signed.digest and signed.sender not in self.liars:
            self.accuse(
                "equivocation", f"{signed.sender.short}: two of {message_type.name} {slot.round}/{slot.attempt}"
            )

    @property
    def strict(self) -> bool:
        """Whether no provisional round can occur in the time that a check simulates."""
        return self.rules.manifest.roster.provisional_after > 3600

    def committed(self, peer: PeerId, effect: Committed) -> None:
        """A node committed a round."""
        certified = effect.certified
        header = certified.link.header
        if header is None:
            self.accuse("record", "a certified link without header")
            return
        self._siblings(header.parent, certified.link)
        if self.only_digests or certified.record in self._checked:
            return
        self._checked.add(certified.record)
        self.records += 1
        self.relocks += bool(decode_record(certified.record).reproposal)
        parent, state = self._links.get(header.parent), self._states.get(header.parent)
        if parent is None or state is None:
            self.accuse("record", f"{peer.short} committed a child of an unknown state")
            return
        try:
            checked = check_record(decode_record(certified.record), parent, self.rules.manifest, self.rules.values)
        except (PeerFault, Ignored) as fault:
            self.accuse("record", f"round {header.round} by {peer.short}: {fault}")
            return
        again = self._recomputed(checked, state, effect.outputs)
        if not checked.link.digest == again.digest == effect.state.digest:
            self.accuse("record", f"round {header.round} by {peer.short}: the state does not follow from its outputs")
        self._links[again.digest], self._states[again.digest] = checked.link, again

    def _recomputed(self, certified: Certified, state: GlobalState, outputs: tuple[bytes, ...]) -> GlobalState:
        """The state after a round, from its certificate, its outputs and the state before."""
        manifest = self.rules.manifest
        group = certified.group
        exchange = GroupExchange(self.rules, _base_of(certified), group, state.roster.members[0])
        for part, header, data in zip(group.parts, certified.outputs, outputs, strict=True):
            exchange.keep(Output.whole(self.rules, part, header, data))
        tensors = outer_step(manifest.training.outer, state.tensors, exchange.averaged())
        roster = state.roster.after(group.committed(exchange.base, certified.closing.message), manifest)
        return GlobalState(state.run, state.round + 1, state.digest, roster, tensors, state.parameter_count)

    def _siblings(self, parent: bytes, link: Link) -> None:
        children = self._children.setdefault(parent, {})
        known = children.get(link.digest)
        if known is None or known.provisional:  # a state is as good as its best certificate
            children[link.digest] = link
        for one, other in itertools.combinations(children.values(), 2):
            if prefer(one, other) == prefer(other, one):
                self.accuse("fork", f"round {link.round}: the fork choice can't order two states")
            if not one.provisional and not other.provisional:
                self.accuse("fork", f"round {link.round}: two regular certificates")
            if one.provisional != other.provisional and prefer(one, other) != one.provisional:
                self.accuse("fork", f"round {link.round}: a provisional state is preferred to a regular one")


def _base_of(certified: Certified) -> SlotBase:
    slot = certified.closing.message.slot
    return SlotBase(slot.run, slot.round, slot.parent)
