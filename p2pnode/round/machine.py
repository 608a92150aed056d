"""The round machine: one node's part in making a run's rounds, with no clock, network, disk or randomness inside.

Inputs are method calls with the time as an argument; what to do comes back from `drain` as effects, to be carried out in
order. The same machine runs over real hivemind, over the in-memory transport, and under the model checker.

Safety rests on four things (protocols/round.md): a promise is durable before an entry is sent; a lock is durable before a
vote is sent; the highest lock among a quorum's entries is proposed again; nothing is signed for an attempt below a promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.messages import (
    CLOSING,
    COMMITMENT,
    ENTRY,
    LEAVE,
    OUTPUT,
    PROPOSAL,
    VOTE,
    FutureRound,
    Ignored,
    NotYet,
    SlotBase,
    StaleRound,
    check_slot,
    reject,
)
from p2pnode.replica.chain import Certified, Link, assemble, check_record, decode_record
from p2pnode.replica.outer import outer_step, self_test
from p2pnode.replica.proposal import Group, check_entry, check_group, convener_of, least_contributors
from p2pnode.replica.state import GlobalState
from p2pnode.round.aggregation import reduce_part
from p2pnode.round.contribution import Contribution, Update
from p2pnode.round.effects import (
    Behind,
    Committed,
    Discarded,
    Effect,
    Halt,
    Outcome,
    Persist,
    Rejected,
    Verdict,
    Waiting,
)
from p2pnode.round.frames import Kind, Send, frame, unframe
from p2pnode.round.gathering import admit, make_proposal, valid_leave
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.output import Output, output_tree
from p2pnode.round.progress import EARLY_BYTES, Durable, Early, Lock, Progress, encode_lock, encode_update, others
from p2pnode.round.rules import Rules
from p2pnode.wire.journal_pb2 import PromiseRecord
from p2pnode.wire.round_pb2 import (
    Chunk,
    Leave,
    OutputChunk,
    Relock,
    RoundEntry,
    Vote,
    Want,
)
from p2pnode.wire.round_pb2 import Lock as LockMessage

RESEND_SECONDS: Final = 1.5  # an entry that got no proposal yet is sent again
JUMP_SECONDS: Final = 0.5  # waited at an attempt before following others to a higher one
WANT_SECONDS: Final = 0.5  # between requests for what is missing
GRACE_SECONDS: Final = 2.0  # given to a convener beyond the gathering deadline
KEPT_RECORDS: Final = 16  # rounds whose certificate we answer with
KEPT_OUTPUTS: Final = 2  # rounds whose outputs we hand out
WANTS_BEFORE_BEHIND: Final = 4  # requests for a certified round's outputs, all in vain
FUTURE_BEFORE_BEHIND: Final = 2  # certificates of later rounds in answer to requests for ours


@dataclass(frozen=True)
class Past:
    """A round that we certified: its record, and while it is recent its exchange."""

    record: bytes
    exchange: GroupExchange | None


class RoundMachine:
    """See the module's docstring. One instance follows a run over all its rounds."""

    def __init__(
        self,
        rules: Rules,
        identity: PeerIdentity,
        state: GlobalState,
        link: Link,
        durable: Durable,
        random: Callable[[int], bytes],
        now: float,
    ) -> None:
        """link: how `state` was verified. random: n -> n bytes from the system's secure source (seeded in simulations)."""
        self.rules = rules
        self.state = state
        self.bandwidth = 10_000_000  # bytes a second; the driver sets what it measures
        self.leaving = False
        self._identity = identity
        self._me = identity.peer_id
        self._random = random
        self._effects: list[Effect] = []
        self._gone: set[PeerId] = set()
        self._hoped: set[PeerId] = set()  # contributors that are expected though not on the roster
        self._past: dict[int, Past] = {}
        if durable.record:
            self._past[state.round] = Past(durable.record, None)
        self._waiting = ""
        self._changed = False
        self._future = Early(EARLY_BYTES)
        self._early = Early(EARLY_BYTES + 2 * 4 * rules.values)
        self._round = self._begin(link, now)
        self._round.restore(durable)

    # what the driver asks

    def drain(self) -> list[Effect]:
        """The effects since the last call, in the order in which to carry them out."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def round(self) -> int:
        """The round that is being made."""
        return self._round.base.round

    @property
    def link(self) -> Link:
        """How the current state was verified."""
        return self._round.link

    @property
    def base(self) -> SlotBase:
        """What messages of this round are bound to."""
        return self._round.base

    @property
    def wants_update(self) -> bool:
        """Whether local work for this round is still to be offered."""
        return not self._round.offered

    @property
    def gone(self) -> frozenset[PeerId]:
        """Peers that are not waited for."""
        return frozenset(self._gone)

    # inputs

    def offer(self, update: Update | None, now: float) -> None:
        """Our update for this round, or None to take part without one (roster members only).

        Raises PeerFault (value-*) if our own update breaks the run's bounds; nothing is offered then.
        """
        r = self._round
        if r.offered:
            return
        if update is not None:
            self.rules.check_update(update.values)
            self._effects.append(Persist("update", encode_update(r.base, update)))
        r.offer, r.offered = update, True
        self._advance(now)

    def receive(self, sender: PeerId, data: bytes, now: float) -> Verdict:
        """One inbound frame. Every one ends ACCEPT, IGNORE or REJECT, with the clause's name."""
        self._gone.discard(sender)
        verdict = self._take(sender, data, now)
        self._advance(now)
        return verdict

    def peer_gone(self, peer: PeerId, now: float) -> None:
        """The connection to `peer` is lost: it is not waited for until it is heard of again."""
        self._gone.add(peer)
        self._advance(now)

    def tick(self, now: float) -> None:
        """Time has passed; call a few times a second."""
        self._advance(now)

    def leave(self) -> None:
        """Say goodbye: roster members put our leave into the next proposal."""
        leave = LEAVE.seal(self._identity, Leave(run=self.state.run, round=self.state.round))
        self._send(self.state.roster.members, [frame(Kind.LEAVE, leave.raw)])

    def adopt(self, state: GlobalState, link: Link, now: float) -> None:
        """Go on from another verified state (after a sync)."""
        self.state = state
        self._past.clear()
        self._round = self._begin(link, now)
        self._replay(self._future, now)
        self._advance(now)

    # inbound messages

    def _take(self, sender: PeerId, data: bytes, now: float) -> Verdict:
        try:
            kind, payload = unframe(data, self.rules.manifest.limits.chunk_bytes)
            try:
                self._dispatch(sender, kind, payload, now)
            except FutureRound:
                if kind in (Kind.ENTRY, Kind.PROPOSAL):
                    self._future.add(sender, data)
                self._catch_up(sender, now)
                raise
            except NotYet:
                self._early.add(sender, data)
                raise
        except PeerFault as fault:
            self._effects.append(Rejected(sender, fault.clause, fault.detail))
            return Verdict(Outcome.REJECT, fault.clause)
        except Ignored as ignored:
            return Verdict(Outcome.IGNORE, ignored.clause)
        return Verdict(Outcome.ACCEPT)

    def _dispatch(self, sender: PeerId, kind: Kind, payload: bytes, now: float) -> None:
        match kind:
            case Kind.ENTRY:
                self._on_entry(sender, payload)
            case Kind.PROPOSAL:
                self._on_proposal(payload, now)
            case Kind.COMMITMENT:
                signed = COMMITMENT.open(payload)
                check_slot(signed.message.slot, self.base)
                self._exchange(signed.message.group).take_commitment(signed)
                self._replay(self._early, now)
            case Kind.CHUNK:
                self._on_chunk(sender, payload)
            case Kind.OUTPUT:
                header = OUTPUT.open(payload)
                check_slot(header.message.slot, self.base)
                self._exchange(header.message.group).take_header(header)
                self._replay(self._early, now)
            case Kind.OUTPUT_CHUNK:
                self._on_output_chunk(payload)
            case Kind.CLOSING:
                closing = CLOSING.open(payload)
                check_slot(closing.message.slot, self.base)
                self._exchange(closing.message.group).take_closing(closing)
            case Kind.VOTE:
                self._round.ballot.add(VOTE.open(payload), self.base, self.state.roster)
            case Kind.CERTIFICATE:
                self._on_certificate(sender, payload, now)
            case Kind.LEAVE:
                leave = LEAVE.open(payload)
                if not valid_leave(leave, self.base, self.state.roster):
                    raise Ignored("leave-outdated")
                self._round.gathering.leaves[leave.sender] = leave
            case Kind.WANT:
                self._on_want(sender, _decode(Want, payload, "want-form"))

    def _on_entry(self, sender: PeerId, payload: bytes) -> None:
        r = self._round
        entry = ENTRY.open(payload)
        try:
            attempt = check_slot(entry.message.slot, r.base)
        except StaleRound:
            if sender == entry.sender:
                self._send_certificate(sender, int(entry.message.slot.round))
                self._hoped.add(sender)
            raise
        check_entry(entry, self.state.roster, self.rules.manifest)
        new = r.gathering.add(entry)
        if r.group is not None and entry.sender not in r.group.entries:
            r.late.add(entry.sender)
        if attempt < r.attempt and sender == entry.sender:
            self._send_entry([sender])  # tells it which attempt we are at
        if not new:
            raise Ignored("entry-known")

    def _on_proposal(self, payload: bytes, now: float) -> None:
        r = self._round
        proposal = PROPOSAL.open(payload)
        if proposal.digest in r.groups:
            raise Ignored("proposal-known")
        group = check_group(proposal, r.base, self.state.roster, self.rules.manifest, self.rules.values)
        if any(known.attempt == group.attempt for known in r.groups.values()):
            raise reject("proposal-equivocation", f"{proposal.sender} signed two for one slot")
        r.groups[proposal.digest] = group
        r.forget_old()
        if group.attempt < r.promised or (r.group is not None and group.attempt <= r.group.attempt):
            raise Ignored("proposal-promised")
        if group.provisional and now < r.started + self.rules.manifest.roster.provisional_after:
            r.too_early = group
            raise Ignored("proposal-provisional-early")
        self._accept(group, now)

    def _on_chunk(self, sender: PeerId, payload: bytes) -> None:
        chunk = _decode(Chunk, payload, "chunk-form")
        exchange = self._exchange(chunk.group)
        try:
            exchange.take_chunk(sender, chunk)
        except PeerFault as fault:
            if fault.clause == "chunk-proof":  # it convicts nobody: ask for the right one
                want = Want(kind=Want.CHUNK, digest=chunk.group, part=chunk.part, index=chunk.index)
                self._send([sender], [frame(Kind.WANT, want.SerializeToString())])
            raise

    def _on_output_chunk(self, payload: bytes) -> None:
        chunk = _decode(OutputChunk, payload, "output-chunk-form")
        for exchange in self._round.exchanges.values():
            if exchange.output_for(chunk.header) is not None:
                exchange.take_output_chunk(chunk)
                return
        raise NotYet("output-chunk-headless")

    def _on_certificate(self, sender: PeerId, payload: bytes, now: float) -> None:
        r = self._round
        record = decode_record(payload)
        if record.header.round < r.base.round:
            raise StaleRound("slot-stale")
        if record.header.round > r.base.round:
            r.future_certificates += 1
            if r.future_certificates >= FUTURE_BEFORE_BEHIND:
                r.future_certificates = 0
                self._effects.append(Behind((sender,)))
            raise FutureRound("slot-future")
        if record.header.parent != r.base.parent:
            raise Ignored("record-fork")
        if r.certificate is None:
            certified = check_record(record, r.link, self.rules.manifest, self.rules.values)
            exchange = r.exchange_for(certified.group)
            exchange.closing = None  # what is certified overrules a Closing that was not
            exchange.take_closing(certified.closing)
            for header in certified.outputs:
                exchange.take_header(header)
            r.certificate, r.next_want = certified, 0.0

    def _on_want(self, sender: PeerId, want: Want) -> None:
        if want.kind == Want.CERTIFICATE:
            self._send_certificate(sender, int(want.round))
            return
        exchanges = list(self._round.exchanges.values())
        exchanges += [past.exchange for past in self._past.values() if past.exchange is not None]
        for exchange in exchanges:
            if want.kind == Want.CHUNK and want.digest == exchange.group.digest and exchange.contribution is not None:
                part = next((p for p in exchange.group.parts if p.index == want.part and p.reducer == sender), None)
                if part is None or want.index >= self.rules.chunks(part):
                    raise reject("want-form", "no such chunk for you")
                self._send([sender], [exchange.contribution.chunk_frame(part, int(want.index))], bulk=True)
                return
            closing = exchange.closing
            if want.kind == Want.CLOSING and closing is not None and closing.digest == want.digest:
                proposal = frame(Kind.PROPOSAL, exchange.group.proposal.raw)
                self._send([sender], [proposal, frame(Kind.CLOSING, closing.raw)])
                return
            output = exchange.output_for(want.digest) if want.kind == Want.OUTPUT else None
            if output is not None and output.complete:
                self._effects.append(Send(others([sender], self._me), output.frames(), bulk=True))
                return
        raise Ignored("want-unknown")

    def _send_certificate(self, peer: PeerId, round_number: int) -> None:
        """That round's certificate; if we have it no more, our newest, which tells how far the run has got."""
        past = self._past.get(round_number) or self._past.get(self.state.round)
        if past is not None and self.state.round >= round_number:
            self._send([peer], [frame(Kind.CERTIFICATE, past.record)])

    def _exchange(self, digest: bytes) -> GroupExchange:
        group = self._round.groups.get(digest)
        if group is None or group.base is not None:
            raise NotYet("group-unknown")
        return self._round.exchange_for(group)

    # progress

    def _advance(self, now: float) -> None:
        """Do whatever can be done, until nothing changes any more."""
        self._changed = True
        while self._changed:
            self._changed = False
            if self._settle(now):
                continue
            r = self._round
            if r.too_early is not None and now >= r.started + self.rules.manifest.roster.provisional_after:
                group, r.too_early = r.too_early, None
                if r.group is None or group.attempt > r.group.attempt:
                    self._accept(group, now)
            if r.group is not None:
                self._exchange_step(r.group, now)
            if r.offered and not self._changed:
                self._gather(now)

    def _gather(self, now: float) -> None:
        r = self._round
        if r.group is not None:
            message = r.group.proposal.message
            deadline = r.group_at + (message.contribute_ms + message.close_ms + message.vote_ms) / 1000
            stuck = self._stuck(r.group)
            if now < deadline and not stuck:
                self._say("for the exchange and the votes")
                return
            self._effects.append(Discarded(r.base.round, r.group.attempt, stuck or "no quorum of votes in time"))
            r.attempt = -1
            floor = r.floor()
            r.group = None
            self._enter(max(floor, self._seen()), now)
            return
        if r.attempt < 0:
            self._enter(max(r.floor(), self._seen()), now)
            return
        convener = convener_of(self.state.roster, r.base, r.attempt)
        if convener != self._me and convener in self._gone and not self._gone.issuperset(self.state.roster.members):
            self._enter(max(r.attempt + 1, self._seen()), now)
            return
        seen = self._seen()
        if seen > r.attempt and now >= r.entered_at + JUMP_SECONDS:
            self._enter(seen, now)
            return
        entries = r.gathering.at(r.attempt)
        members = [peer for peer in self.state.roster.members if peer in entries]
        enough = len(members) >= self.state.roster.quorum
        if enough and r.quorum_at is None:
            r.quorum_at = now
        gather = self.rules.manifest.deadlines.gather
        provisional_at = max(r.started + self.rules.manifest.roster.provisional_after, r.entered_at + gather)
        if convener == self._me:
            expected = (set(self.state.roster.members) | self._hoped) - self._gone - {self._me}
            missing = [peer for peer in expected if peer not in entries]
            if enough and (not missing or now >= (r.quorum_at or now) + gather):
                self._propose(entries, now, provisional=False)
            elif not enough and now >= provisional_at:
                self._propose(entries, now, provisional=True)
            else:
                self._say(f"for {len(missing)} more peer{'s' * (len(missing) != 1)} to finish local work")
        else:
            late = r.quorum_at is not None and now >= r.quorum_at + gather + GRACE_SECONDS
            if late or now >= provisional_at + gather + GRACE_SECONDS:
                self._effects.append(Discarded(r.base.round, r.attempt, f"its convener {convener.short} is silent"))
                self._enter(max(r.attempt + 1, self._seen()), now)
                return
            self._say("for the others to finish local work" if enough else "for a quorum of the roster")
        if now >= r.resend_at and r.group is None:
            r.resend_at = now + RESEND_SECONDS
            self._send_entry(self.state.roster.members)

    def _seen(self) -> int:
        """The highest attempt that another roster member entered."""
        return self._round.gathering.highest(others(self.state.roster.members, self._me))

    def _stuck(self, group: Group) -> str:
        """Why waiting for this group is pointless; "" if it is not."""
        exchange = self._round.exchange_for(group)
        if exchange.closing is None:
            if group.proposal.sender in self._gone:
                return "its convener is gone"
            gone = [p for p in exchange.group.parts if p.reducer in self._gone]
            if any(p.index not in exchange.outputs or not exchange.outputs[p.index].complete for p in gone):
                return "a reducer is gone"
        return ""

    def _enter(self, attempt: int, now: float) -> None:
        """Promise, and sign an entry for `attempt` or the next one whose convener is not known to be gone."""
        r = self._round
        roster = self.state.roster
        for _ in roster.members:
            convener = convener_of(roster, r.base, attempt)
            if convener == self._me or convener not in self._gone:
                break
            attempt += 1
        r.attempt = r.promised = attempt
        r.entered_at, r.quorum_at, r.resend_at = now, None, now + RESEND_SECONDS
        promise = PromiseRecord(round=r.base.round, parent=r.base.parent, attempt=attempt)
        self._effects.append(Persist("promise", promise.SerializeToString()))
        key = X25519PrivateKey.from_private_bytes(self._random(32)).public_key()
        entry = RoundEntry(
            slot=r.base.at(attempt),
            nonce_digest=blake3(self._random(32)).digest(),
            bandwidth=self.bandwidth,
            exchange_key=key.public_bytes_raw(),
            contributes=r.offer is not None,
            leaving=self.leaving,
        )
        if r.lock is not None:
            entry.lock.CopyFrom(
                LockMessage(attempt=r.lock.attempt, closing=r.lock.closing, state_digest=r.lock.state_digest)
            )
        r.gathering.add(ENTRY.seal(self._identity, entry))
        self._send_entry(roster.members)
        self._changed = True

    def _send_entry(self, peers: Iterable[PeerId]) -> None:
        own = self._round.gathering.at(self._round.attempt).get(self._me)
        if own is not None:
            self._send(peers, [frame(Kind.ENTRY, own.raw)])

    def _propose(self, entries: dict[PeerId, object], now: float, *, provisional: bool) -> None:
        r = self._round
        chosen = admit(r.gathering.at(r.attempt), r.base, self.state.roster, self.rules.manifest)
        relock = None
        locks = [entry.message.lock for entry in chosen if entry.message.HasField("lock")]
        if locks:
            highest = max(locks, key=lambda lock: lock.attempt)
            exchange = r.exchange_closed_by(highest.closing)
            if exchange is None or exchange.closing is None:
                holders = [e.sender for e in chosen if e.message.lock.closing == highest.closing]
                self._want(Want(kind=Want.CLOSING, digest=highest.closing), holders, now)
                return
            relock = Relock(proposal=exchange.group.proposal.raw, closing=exchange.closing.raw)
        else:
            missing = least_contributors(r.base, self.rules.manifest) - sum(e.message.contributes for e in chosen)
            if missing > 0:
                self._say(f"for {missing} more contributor{'s' * (missing != 1)}")
                return
        leaves = [leave for leave in r.gathering.leaves.values() if valid_leave(leave, r.base, self.state.roster)]
        message = make_proposal(
            r.base,
            r.attempt,
            chosen,
            leaves,
            self.state.roster,
            self.rules.manifest,
            self.rules.values,
            provisional=provisional,
            relock=relock,
        )
        proposal = PROPOSAL.seal(self._identity, message)
        group = check_group(proposal, r.base, self.state.roster, self.rules.manifest, self.rules.values)
        r.groups[proposal.digest] = group
        for peer in entries:
            if peer not in group.entries:
                r.late.add(peer)
        self._send(self._audience(group), [frame(Kind.PROPOSAL, proposal.raw)])
        self._accept(group, now)

    def _accept(self, group: Group, now: float) -> None:
        """Act on a checked proposal: contribute, if our entry is in it."""
        r = self._round
        r.group, r.group_at = group, now
        exchange = r.exchange_for(group)
        if group.closing is not None:
            exchange.take_closing(group.closing)
        own = r.gathering.at(group.attempt).get(self._me)
        listed = group.entries.get(self._me)
        ours = own is not None and listed is not None and own.digest == listed.digest
        if group.base is None and ours and r.offer is not None and self._may_sign(group):
            contribution = exchange.contribution = Contribution(self.rules, group, r.offer)
            exchange.commitment = COMMITMENT.seal(self._identity, contribution.commitment(r.base))
            for part in group.parts:
                if part.reducer == self._me:
                    exchange.take_commitment(exchange.commitment)
                    exchange.rows[self._me].fill(contribution.encoded[part.index])
                else:
                    row = contribution.row(part, exchange.commitment)
                    self._effects.append(Send((part.reducer,), row, bulk=True))
        self._changed = True
        self._replay(self._early, now)

    def _may_sign(self, group: Group) -> bool:
        r = self._round
        return group.attempt >= r.promised and group.attempt > r.sealed

    def _exchange_step(self, group: Group, now: float) -> None:
        r = self._round
        exchange = r.exchange_for(group)
        if group.base is None and self._may_sign(group):
            self._reduce(group, exchange, now)
            if group.proposal.sender == self._me and exchange.closing is None and exchange.complete:
                closing = CLOSING.seal(self._identity, exchange.closing_message())
                exchange.take_closing(closing)
                self._send(self._audience(group), [frame(Kind.CLOSING, closing.raw)])
                r.next_want = now + GRACE_SECONDS
                self._changed = True
        try:
            if exchange.closed():
                self._vote(group, exchange)
        except PeerFault as fault:
            self._effects.append(Rejected(group.exchange.proposal.sender, fault.clause, fault.detail))
            return
        if exchange.closing is not None and not exchange.complete:
            self._want_outputs(exchange, now)

    def _reduce(self, group: Group, exchange: GroupExchange, now: float) -> None:
        """Sign our part's output once every row is settled, or the time for rows is up."""
        r = self._round
        if exchange.part is None or exchange.reduced or self._me not in group.entries:
            return
        rows = exchange.complete_rows()
        overdue = now >= r.group_at + group.proposal.message.contribute_ms / 1000
        if not rows or not (overdue or exchange.rows_settled(self.gone)):
            return
        header, data = reduce_part(self.rules, exchange.part, rows)
        exchange.reduced = True
        header.slot.CopyFrom(r.base.at(group.attempt))
        header.group = group.digest
        header.root = output_tree(self.rules, exchange.part, data).root
        output = exchange.keep(Output.whole(self.rules, exchange.part, OUTPUT.seal(self._identity, header), data))
        exchange.rows.clear()
        self._changed = True
        self._effects.append(Send(self._audience(group), output.frames(), bulk=True))

    def _vote(self, group: Group, exchange: GroupExchange) -> None:
        r = self._round
        closing = exchange.closing
        voted = r.lock is not None and r.lock.attempt >= group.attempt
        if closing is None or voted or self._me not in group.electorate or group.attempt < r.promised:
            return
        state = self._shadow(exchange)
        if state is None:
            return
        r.lock = Lock(group.attempt, closing.digest, state.digest)
        r.promised = max(r.promised, group.attempt)
        self._effects.append(Persist("lock", encode_lock(r.base, group.attempt, state.digest, exchange)))
        vote = VOTE.seal(
            self._identity, Vote(slot=r.base.at(group.attempt), closing=closing.digest, state_digest=state.digest)
        )
        r.ballot.add(vote, r.base, self.state.roster)
        self._changed = True
        self._send(self._audience(group), [frame(Kind.VOTE, vote.raw)])

    def _shadow(self, exchange: GroupExchange) -> GlobalState | None:
        """The state that a closed exchange leads to, on a shadow copy; None if it is not finite."""
        r = self._round
        closing = exchange.closing
        if closing is None:
            return None
        if closing.digest not in r.shadows:
            self_test()
            manifest = self.rules.manifest
            try:
                tensors = outer_step(manifest.training.outer, self.state.tensors, exchange.averaged())
            except ValueError:
                tensors = np.full(1, np.nan, dtype=np.float32)
            state = None
            if bool(np.all(np.isfinite(tensors))):
                committed = exchange.group.committed(r.base, closing.message)
                roster = self.state.roster.after(committed, manifest)
                state = GlobalState(
                    self.state.run, r.base.round, r.base.parent, roster, tensors, self.state.parameter_count
                )
            r.shadows[closing.digest] = state
        return r.shadows[closing.digest]

    # certificates

    def _settle(self, now: float) -> bool:
        """Commit the round if it is certified and all outputs are here; whether it did."""
        r = self._round
        if r.certificate is not None:
            exchange = r.exchange_for(r.certificate.group)
            if exchange.complete:
                return self._commit(r.certificate, exchange, now)
            self._want_outputs(exchange, now, tuple(vote.sender for vote in r.certificate.votes))
            return False
        for group in list(r.groups.values()):
            votes = r.ballot.winner(group)
            if not votes:
                continue
            exchange = r.exchange_for(group)
            closing = exchange.closing
            if closing is None or closing.digest != votes[0].message.closing:
                self._want_certificate([vote.sender for vote in votes], now)
            elif not exchange.complete:
                self._want_outputs(exchange, now, tuple(vote.sender for vote in votes))
            else:
                state = self._shadow(exchange)
                if state is None or state.digest != votes[0].message.state_digest:
                    return self._halt()
                headers = [exchange.outputs[part.index].header for part in exchange.group.parts]
                return self._commit(assemble(r.link, group, closing, headers, votes, state), exchange, now)
            return False
        voters = r.ballot.voters_elsewhere(self.state.roster)
        if voters:
            self._want_certificate(voters, now)
        return False

    def _halt(self) -> bool:
        self._effects.append(Halt("a quorum certified another state than this node computed from the same outputs"))
        self._round.groups.clear()
        return False

    def _commit(self, certified: Certified, exchange: GroupExchange, now: float) -> bool:
        r = self._round
        state = self._shadow(exchange)
        if state is None or state.digest != certified.link.digest:
            r.certificate = None
            return self._halt()
        voted = [group for group in r.groups.values() if group.attempt == certified.link.attempt]
        if any(group.proposal.sender == self._me for group in voted):
            self._send(r.late - set(certified.group.entries), [frame(Kind.CERTIFICATE, certified.record)])
        outputs = tuple(bytes(exchange.outputs[part.index].data) for part in exchange.group.parts)
        contributed = self._me in certified.link.contributors
        self._past[r.base.round] = Past(certified.record, exchange)
        for number in list(self._past):
            if number <= r.base.round - KEPT_RECORDS:
                del self._past[number]
            elif number <= r.base.round - KEPT_OUTPUTS:
                self._past[number] = Past(self._past[number].record, None)
        self._hoped = (set(certified.link.contributors) | r.late) - {self._me}
        self.state = state
        self._effects.append(Committed(certified, state, contributed, outputs))
        self._round = self._begin(certified.link, now)
        self._changed = True
        self._replay(self._future, now)
        return True

    def _begin(self, link: Link, now: float) -> Progress:
        self._early.take()
        self._waiting = ""
        base = SlotBase(self.state.run, self.state.round + 1, self.state.digest)
        return Progress(self.rules, self._me, base, link, now)

    def _replay(self, early: Early, now: float) -> None:
        for sender, data in early.take():
            self._take(sender, data, now)

    # asking for what is missing

    def _catch_up(self, sender: PeerId, now: float) -> None:
        """Somebody is ahead of us: ask for the certificate of our round."""
        self._want_certificate([sender], now)

    def _want_certificate(self, peers: Iterable[PeerId], now: float) -> None:
        self._want(Want(kind=Want.CERTIFICATE, round=self._round.base.round), peers, now)

    def _want_outputs(self, exchange: GroupExchange, now: float, peers: tuple[PeerId, ...] = ()) -> None:
        r = self._round
        if r.next_want == 0.0:
            r.next_want = now + (GRACE_SECONDS if exchange.contribution or exchange.part else 0.0)
        closing = exchange.closing
        holders = set(peers) | set(r.ballot.voted_for(closing.digest) if closing else ())
        holders |= {entry.sender for entry in self._holders(closing.digest if closing else b"")}
        if not holders:
            holders = {exchange.group.proposal.sender} | {part.reducer for part in exchange.group.parts}
        if r.certificate is not None and now >= r.next_want:
            r.output_wants += 1
            if r.output_wants % WANTS_BEFORE_BEHIND == 0:
                self._effects.append(Behind(others(holders, self._me)))
        for digest in exchange.missing_outputs():
            if not self._want(Want(kind=Want.OUTPUT, digest=digest), sorted(holders), now, keep_turn=True):
                return
        r.next_want = now + WANT_SECONDS * 2

    def _holders(self, closing: bytes) -> list[_Sender]:
        """Entries that hold a lock on this Closing."""
        found = []
        for attempts in self._round.gathering.by_sender.values():
            found += [_Sender(e.sender) for e in attempts.values() if e.message.lock.closing == closing and closing]
        return found

    def _want(self, want: Want, peers: Iterable[PeerId], now: float, *, keep_turn: bool = False) -> bool:
        """Ask one of `peers`, a different one each time, not too often; whether it was time to."""
        r = self._round
        able = [peer for peer in others(peers, self._me) if peer not in self._gone] or list(others(peers, self._me))
        if not able or now < r.next_want:
            return False
        if not keep_turn:
            r.next_want = now + WANT_SECONDS
        peer = able[r.wants % len(able)]
        r.wants += 1
        self._send([peer], [frame(Kind.WANT, want.SerializeToString())])
        return True

    # sending

    def _audience(self, group: Group) -> tuple[PeerId, ...]:
        """Who hears of a group's outcome: everybody in it, and the whole roster."""
        return others({*group.entries, *group.exchange.entries, *self.state.roster.members}, self._me)

    def _send(self, peers: Iterable[PeerId], frames: list[bytes], *, bulk: bool = False) -> None:
        to = others(peers, self._me)
        if to:
            self._effects.append(Send(to, frames, bulk))

    def _say(self, reason: str) -> None:
        if reason != self._waiting:
            self._waiting = reason
            self._effects.append(Waiting(reason))


@dataclass(frozen=True)
class _Sender:
    sender: PeerId


def _decode(message_class: type, payload: bytes, clause: str):  # type: ignore[no-untyped-def]
    try:
        return message_class.FromString(payload)
    except DecodeError:
        raise reject(clause) from None
