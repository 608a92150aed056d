"""Inbound messages: each is checked and kept, and ends ACCEPT, IGNORE or REJECT with its clause's name.

What follows from a message is not decided here, but when the machine next looks what it can do.
"""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from p2pnode.envelope import Signed
from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.messages import (
    CLOSING,
    COMMITMENT,
    ENTRY,
    LEAVE,
    OUTPUT,
    PROPOSAL,
    VOTE,
    Equivocation,
    FutureRound,
    Ignored,
    NotYet,
    OtherBranch,
    StaleRound,
    check_slot,
    reject,
)
from p2pnode.replica.chain import Certified, check_record, decode_record
from p2pnode.replica.proposal import Group, check_entry, check_group, check_leave, check_not_excluded
from p2pnode.round.accusing import (
    convict,
    hand_out,
    in_entry,
    is_own,
    show_own,
    take_piece,
    unverified,
    want_evidence,
)
from p2pnode.round.asking import want_certificate_of
from p2pnode.round.attempts import send_entry
from p2pnode.round.auditing import answer_audit, take_audit_row, take_audited, take_reveal
from p2pnode.round.context import Context
from p2pnode.round.deciding import accept
from p2pnode.round.effects import Behind, Outcome, Rejected, Verdict
from p2pnode.round.frames import Kind, frame, unframe
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.reduction import row_of
from p2pnode.wire.round_pb2 import (
    Audited,
    AuditRow,
    Chunk,
    EvidencePiece,
    Leave,
    OutputChunk,
    Reveal,
    Vote,
    Want,
)

BEHIND_SECONDS: Final = 1.0  # between two Behind
DOUBT_SECONDS: Final = 2.0  # between two looks at one peer's other branch; doubles each time
DOUBT_MOST_SECONDS: Final = 60.0
KEPT_DOUBTS: Final = 256
FUTURE_BEFORE_BEHIND: Final = 2  # certificates of later rounds in answer to requests for ours

M = TypeVar("M", bound=Message)


def take(c: Context, sender: PeerId, data: bytes, now: float) -> Verdict:
    """One inbound frame from `sender`, whom the transport authenticated."""
    try:
        kind, payload = unframe(data, c.rules.manifest.limits.chunk_bytes)
        try:
            _dispatch(c, sender, kind, payload, now)
        except FutureRound:
            if kind in (Kind.ENTRY, Kind.PROPOSAL, Kind.LEAVE):
                c.future.add(c.account(sender), sender, data)
            want_certificate_of(c, sender, now)
            raise
        except NotYet as early:
            c.early.add(c.account(sender), sender, data, early.needs)
            raise
        except OtherBranch:
            _doubt(c, sender, now)
            raise
    except PeerFault as fault:
        if isinstance(fault, Equivocation):
            convict(c, fault)
        c.tell(Rejected(sender, fault.clause, fault.detail))
        return Verdict(Outcome.REJECT, fault.clause)
    except Ignored as ignored:
        return Verdict(Outcome.IGNORE, ignored.clause)
    return Verdict(Outcome.ACCEPT)


def _dispatch(c: Context, sender: PeerId, kind: Kind, payload: bytes, now: float) -> None:
    match kind:
        case Kind.ENTRY:
            _on_entry(c, sender, payload, now)
        case Kind.PROPOSAL:
            _on_proposal(c, sender, payload, now)
        case Kind.COMMITMENT:
            commitment = _own(sender, COMMITMENT.open(payload))
            check_slot(commitment.message.slot, c.round.base)
            _exchange(c, commitment.message.group).take_commitment(commitment)
            c.round.come.add(row_of(commitment.message.group, sender))
        case Kind.CHUNK:
            _on_chunk(c, sender, payload)
        case Kind.OUTPUT:
            header = OUTPUT.open(payload)
            check_slot(header.message.slot, c.round.base)
            _exchange(c, header.message.group).take_header(header)
            c.round.come.add(header.digest)
        case Kind.OUTPUT_CHUNK:
            _on_output_chunk(c, payload)
        case Kind.CLOSING:
            closing = CLOSING.open(payload)
            check_slot(closing.message.slot, c.round.base)
            _exchange(c, closing.message.group).take_closing(closing)
        case Kind.VOTE:
            _on_vote(c, sender, VOTE.open(payload))
        case Kind.CERTIFICATE:
            _on_certificate(c, sender, payload, now)
        case Kind.LEAVE:
            _on_leave(c, LEAVE.open(payload))
        case Kind.REVEAL:
            take_reveal(c, sender, _decode(Reveal, payload, "reveal-form"))
        case Kind.AUDITED:
            take_audited(c, sender, _decode(Audited, payload, "audited-form"))
        case Kind.AUDIT_ROW:
            take_audit_row(c, _decode(AuditRow, payload, "audit-row"))
        case Kind.EVIDENCE:
            take_piece(c, sender, _decode(EvidencePiece, payload, "evidence-piece"), now)
        case Kind.WANT:
            _on_want(c, sender, _decode(Want, payload, "want-form"), now)


def _on_leave(c: Context, leave: Signed[Leave]) -> None:
    check_leave(leave, c.round.base, c.state.roster)
    known = c.leaves.get(leave.sender)
    newer = leave.message.slot
    if known is not None:
        if known.digest == leave.digest:
            raise Ignored("leave-known")
        older = known.message.slot
        if (older.round, older.attempt) >= (newer.round, newer.attempt):
            raise Ignored("leave-outdated")
    c.leaves[leave.sender] = leave
    c.gone.add(leave.sender)  # until it is heard of again


def _exchange(c: Context, digest: bytes) -> GroupExchange:
    group = c.round.groups.get(digest)
    if group is None or group.base is not None:
        raise NotYet("group-unknown", digest)
    return c.round.exchange_for(group)


def _on_entry(c: Context, sender: PeerId, payload: bytes, now: float) -> None:
    r = c.round
    entry = ENTRY.open(payload)
    if is_own(c, sender, entry):
        return
    _own(sender, entry)
    try:
        attempt = check_slot(entry.message.slot, r.base)
    except StaleRound:
        _send_certificate(c, sender, int(entry.message.slot.round), now)
        check_not_excluded(sender, c.state.roster)  # it may follow the chain, but is refused by name
        c.hope_for(sender)
        raise
    check_entry(entry, c.state.roster, c.rules.manifest)
    r.gathering.make_room(sender, c.me, r.base, c.state.roster, c.rules.manifest)
    new = r.gathering.add(entry)
    c.vain.discard(sender)
    missing = unverified(c, in_entry(entry.message))
    if missing is not None:
        want_evidence(c, missing, sender, now)
    if r.group is not None and entry.sender not in r.group.entries:
        c.hope_for(sender)
    if attempt < r.attempt:
        send_entry(c, [sender])  # tells it which attempt we are at
    if not new:
        raise Ignored("entry-known")


def _on_proposal(c: Context, sender: PeerId, payload: bytes, now: float) -> None:
    r = c.round
    proposal = PROPOSAL.open(payload)
    if proposal.digest in r.groups:
        raise Ignored("proposal-known")
    attempt = check_slot(proposal.message.slot, r.base)
    # Before the hundreds of signatures in it are checked: a convener can make any number of these.
    for known in r.groups.values():
        if known.attempt == attempt and known.proposal.sender == proposal.sender:
            raise Equivocation("proposal-equivocation", known.proposal, proposal)
    group = check_group(proposal, r.base, c.state.roster, c.rules.manifest, c.rules.values)
    missing = unverified(c, group.accusations | group.exchange.accusations)
    if missing is not None:
        want_evidence(c, missing, sender, now)
        raise NotYet("proposal-unverified", missing)
    if proposal.sender in c.convicted:
        raise Ignored("proposal-convicted")
    _compare(c, group)
    r.learn(group)
    r.forget_old(proposal.digest)
    if group.attempt < r.promised or (r.group is not None and group.attempt <= r.group.attempt):
        raise Ignored("proposal-promised")
    if group.provisional and now < r.started + c.rules.manifest.roster.provisional_after:
        r.too_early = group
        raise Ignored("proposal-provisional-early")
    accept(c, group, now)


def _compare(c: Context, group: Group) -> None:
    """The entries that a proposal lists may be others than their signers sent to us."""
    known = c.round.gathering.at(group.attempt)
    for peer, entry in group.entries.items():
        if peer in known and known[peer].digest != entry.digest:
            convict(c, Equivocation("entry-equivocation", known[peer], entry))


def _on_vote(c: Context, sender: PeerId, vote: Signed[Vote]) -> None:
    r = c.round
    if is_own(c, sender, vote):
        return
    r.ballot.add(_own(sender, vote), r.base, c.state.roster)
    group = r.groups.get(vote.message.group)
    closing = r.exchange_for(group).closing if group is not None else None
    if closing is not None and closing.digest != vote.message.closing and vote.message.closing not in r.closings_asked:
        # One of two Closings for one group: both together convict the convener.
        r.closings_asked.add(vote.message.closing)
        want = Want(kind=Want.CLOSING, digest=vote.message.closing)
        c.send([sender], [frame(Kind.WANT, want.SerializeToString())])


def _on_chunk(c: Context, sender: PeerId, payload: bytes) -> None:
    chunk = _decode(Chunk, payload, "chunk-form")
    exchange = _exchange(c, chunk.group)
    try:
        exchange.take_chunk(sender, chunk)
    except PeerFault as fault:
        # A bad chunk convicts nobody: it is asked for again.
        if fault.clause == "chunk-proof" and not exchange.reductions[chunk.part].rows[sender].refused:
            again = Want(kind=Want.CHUNK, digest=chunk.group, part=chunk.part, index=chunk.index)
            c.send([sender], [frame(Kind.WANT, again.SerializeToString())])
        raise


def _on_output_chunk(c: Context, payload: bytes) -> None:
    chunk = _decode(OutputChunk, payload, "output-chunk-form")
    for exchange in c.round.exchanges.values():
        if exchange.output_for(chunk.header) is not None:
            exchange.take_output_chunk(chunk)
            return
    raise NotYet("output-chunk-headless", chunk.header)


def _on_certificate(c: Context, sender: PeerId, payload: bytes, now: float) -> None:
    r = c.round
    record = decode_record(payload)
    if record.header.round < r.base.round:
        raise StaleRound("slot-stale")
    if record.header.round > r.base.round:
        r.future_certificates += 1
        if r.future_certificates >= FUTURE_BEFORE_BEHIND:
            r.future_certificates = 0
            _look_at(c, sender, now)
        raise FutureRound("slot-future")
    if record.header.parent != r.base.parent:
        raise OtherBranch("record-fork")
    if r.certificate is not None:
        raise Ignored("record-known")
    certified = check_record(record, r.link, c.rules.manifest, c.rules.values)
    if certified.link.provisional and _could_do_better(c, certified, now):
        raise Ignored("record-provisional-early")
    exchange = r.exchange_for(certified.group)
    exchange.closing = None  # what is certified overrules a Closing that was not
    exchange.take_closing(certified.closing)
    for header in certified.outputs:
        exchange.take_header(header)
        r.come.add(header.digest)
    r.certificate, r.next_want = certified, 0.0


def _look_at(c: Context, peer: PeerId, now: float) -> None:
    """Have the driver compare chains. Anybody can claim to be elsewhere: it is not sent after each claim."""
    if now >= c.next_behind:
        c.next_behind = now + BEHIND_SECONDS
        c.tell(Behind((peer,)))


def _doubt(c: Context, sender: PeerId, now: float) -> None:
    """`sender` is on another branch: theirs may be the better one. Looked at, less and less often, on its account."""
    account = c.account(sender)
    again, wait = c.doubts.pop(account, (now, DOUBT_SECONDS / 2))
    if now >= again:
        wait = min(2 * wait, DOUBT_MOST_SECONDS)
        again = now + wait
        _look_at(c, sender, now)
    c.doubts[account] = (again, wait)
    while len(c.doubts) > KEPT_DOUBTS:
        del c.doubts[next(iter(c.doubts))]


def _could_do_better(c: Context, certified: Certified, now: float) -> bool:
    """Whether a quorum may still certify this round without those who stand behind a provisional certificate.

    One member alone can make such a certificate up at any time, so before our own clock allows provisional rounds
    it counts only if too few others are left.
    """
    others_left = set(c.state.roster.members) - c.gone - {vote.sender for vote in certified.votes}
    early = now < c.round.started + c.rules.manifest.roster.provisional_after
    return early and len(others_left) >= c.state.roster.quorum


def _on_want(c: Context, sender: PeerId, want: Want, now: float) -> None:
    if want.kind == Want.CERTIFICATE:
        _send_certificate(c, sender, int(want.round), now)
        return
    asked = want.SerializeToString(deterministic=True)
    if want.kind == Want.EVIDENCE and want.digest in c.evidence:
        _once_in_a_while(c, sender, asked, now)
        hand_out(c, sender, c.evidence[want.digest])
        return
    if want.kind == Want.MINE:
        _once_in_a_while(c, sender, asked, now)
        show_own(c, sender)
        return
    exchanges = list(c.round.exchanges.values())
    exchanges += [past.exchange for past in c.past.values() if past.exchange is not None]
    for exchange in exchanges:
        if want.kind in (Want.CHUNK, Want.ROW) and want.digest == exchange.group.digest and exchange.contribution:
            part = next((p for p in exchange.group.parts if p.index == want.part and sender in p.aggregators), None)
            if part is None or (want.kind == Want.CHUNK and want.index >= c.rules.chunks(part)):
                raise reject("want-form", "no such chunk for you")
            _once_in_a_while(c, sender, asked, now)
            if want.kind == Want.CHUNK:
                c.send([sender], [exchange.contribution.chunk_frame(part, int(want.index))], bulk=True)
            else:
                c.send([sender], exchange.contribution.row(part, exchange.commitments[c.me]), bulk=True)
            return
        if want.kind == Want.AUDIT and want.digest == exchange.group.digest:
            _once_in_a_while(c, sender, asked, now)
            if answer_audit(c, exchange, sender, want):
                return
        closing = exchange.closing
        if want.kind == Want.CLOSING and closing is not None and closing.digest == want.digest:
            _once_in_a_while(c, sender, asked, now)
            proposal = frame(Kind.PROPOSAL, exchange.group.proposal.raw)
            c.send([sender], [proposal, frame(Kind.CLOSING, closing.raw)])
            return
        output = exchange.output_for(want.digest) if want.kind == Want.OUTPUT else None
        if output is not None and output.complete:
            _once_in_a_while(c, sender, asked, now)
            c.send([sender], output.frames(), bulk=True)
            return
    raise Ignored("want-unknown")


def _once_in_a_while(c: Context, peer: PeerId, asked: bytes, now: float) -> None:
    """IGNORE want-again: the same was answered to the same peer a moment ago."""
    if not c.answers.allow(peer, asked, now):
        raise Ignored("want-again")


def _send_certificate(c: Context, peer: PeerId, round_number: int, now: float) -> None:
    """That round's certificate; if we have it no more, our newest, which tells how far the run has got."""
    past = c.past.get(round_number) or c.past.get(c.state.round)
    if past is None or c.state.round < round_number:
        return
    if c.answers.allow(peer, b"certificate of %d" % min(round_number, c.state.round), now):
        c.send([peer], [frame(Kind.CERTIFICATE, past.record)])


def _own(sender: PeerId, signed: Signed[M]) -> Signed[M]:
    """What only its signer sends: from anybody else it is a replay. REJECT sender-mismatch."""
    if signed.sender != sender:
        raise reject("sender-mismatch", f"signed by {signed.sender.short}, who did not send it")
    return signed


def _decode(message_class: type[M], payload: bytes, clause: str) -> M:
    try:
        return message_class.FromString(payload)
    except DecodeError:
        raise reject(clause) from None
