"""A member's audits: reveal, fetch, check, tell, and only then vote."""

from __future__ import annotations

from typing import Final

from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.messages import Ignored, reject
from p2pnode.replica.proposal import Group
from p2pnode.round.accusing import hold
from p2pnode.round.audit import Audit
from p2pnode.round.context import SUSPECT_ROUNDS, Context
from p2pnode.round.evidence import verify
from p2pnode.round.frames import Kind, frame
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.wire.evidence_pb2 import EvidenceRow
from p2pnode.wire.round_pb2 import Audited, AuditRow, Reveal, Want

REVEAL: Final = 0.25  # of the time for votes: then whoever has not revealed is done without
COVER: Final = 0.5  # of it: then parts that nobody says he checked are checked by ourselves
RESEND_SECONDS: Final = 1.0
KEPT_EARLY: Final = 8  # Closings that are named by reveals and are not here yet
ASK_SECONDS: Final = 0.75  # between two requests for a row: first of its contributor, then of the part's signer


def audited(c: Context, group: Group, exchange: GroupExchange, now: float) -> bool:
    """Whether this exchange's outputs are checked as far as a vote needs; does what is to be done for that.

    The Closing and all outputs are here. Everybody reveals, also who does not vote. A Closing that is proposed again,
    and on which so many hold a lock that one of them must be honest, was audited before it was voted for.
    """
    roster = c.state.roster
    locked = sum(entry.message.lock.closing == _closing_of(exchange) for entry in group.entries.values())
    if group.base is not None and locked > len(roster.members) - roster.quorum:
        return True
    audit = _audit_of(c, exchange, now)
    seconds = group.proposal.message.vote_ms / 1000
    since = now - max(audit.began, c.round.group_at)
    if now >= audit.resend_at:
        audit.resend_at = now + RESEND_SECONDS
        _tell(c, group, audit)
    if c.me not in group.electorate or audit.false is not None:
        return False
    if audit.plan is None:
        awaited = set(exchange.group.entries) - c.gone - audit.nonces.keys()
        if awaited and since < seconds * REVEAL:
            return False
        audit.settle()
        c.changed = True
    for part, (auditors, _) in (audit.plan or {}).items():
        first = next((peer for peer in auditors if peer == c.me or peer not in c.gone), None)
        if first == c.me:
            audit.take_on(part)
    uncovered = audit.uncovered(c.me)
    if since >= seconds * COVER:
        for part in uncovered:
            audit.take_on(part)
    _fetch(c, audit, now)
    if audit.check():
        c.changed = True
        _tell(c, group, audit)
        uncovered = audit.uncovered(c.me)
    if _accuse(c, audit):
        return False
    return not uncovered


def _closing_of(exchange: GroupExchange) -> bytes:
    return exchange.closing.digest if exchange.closing is not None else b""


def suspect(c: Context, exchange: GroupExchange) -> None:
    """The attempt is over, and parts could not be checked: their signers are left out for a while."""
    audit = c.round.audits.get(_closing_of(exchange))
    if audit is None or audit.plan is None or not exchange.complete:
        return
    signers = {output.part.index: output.header.sender for output in exchange.outputs()}
    for part in audit.uncovered(c.me):
        if signers[part] != c.me:
            c.suspects[signers[part]] = c.round.base.round + SUSPECT_ROUNDS
            c.round.barren.add(audit.closing)


def _audit_of(c: Context, exchange: GroupExchange, now: float) -> Audit:
    r = c.round
    key = _closing_of(exchange)
    audit = r.audits.get(key)
    if audit is None:
        audit = r.audits[key] = Audit(exchange, now)
        nonce = r.nonces.get(exchange.group.attempt)
        own = exchange.group.entries.get(c.me)
        if nonce is not None and own is not None and own == r.gathering.at(exchange.group.attempt).get(c.me):
            audit.nonces[c.me] = nonce
        for peer, revealed in r.early_nonces.pop(key, {}).items():
            try:
                audit.take_nonce(peer, revealed)
            except PeerFault:
                continue
    return audit


def _tell(c: Context, group: Group, audit: Audit) -> None:
    frames = []
    if c.me in audit.nonces:
        reveal = Reveal(closing=audit.closing, nonce=audit.nonces[c.me])
        frames.append(frame(Kind.REVEAL, reveal.SerializeToString()))
    if audit.done:
        told = Audited(closing=audit.closing, parts=sorted(audit.done))
        frames.append(frame(Kind.AUDITED, told.SerializeToString()))
    if frames:
        c.send(group.electorate, frames)


def _fetch(c: Context, audit: Audit, now: float) -> None:
    """Ask for the rows that are missing; our own we have."""
    exchange = audit.exchange
    wanted = list(audit.wanted())
    for part, index, contributor in wanted:
        if contributor == c.me and exchange.contribution is not None:
            data, proof = exchange.contribution.chunk(exchange.group.parts[part], index)
            row = EvidenceRow(commitment=exchange.commitments[c.me].raw, data=data, proof=proof)
            audit.rows.setdefault((part, index), {})[c.me] = row
    if now < audit.ask_at:
        return
    audit.ask_at = now + ASK_SECONDS
    audit.asks += 1
    for part, index, contributor in wanted:
        if contributor == c.me:
            continue
        output = exchange.chosen(exchange.group.parts[part])
        signer = output.header.sender if output is not None else contributor
        from_signer = contributor in c.gone or audit.asks % 2 == 0
        want = Want(kind=Want.AUDIT, digest=exchange.group.digest, part=part, index=index, peer=contributor.key)
        c.send([signer if from_signer else contributor], [frame(Kind.WANT, want.SerializeToString())])


def _accuse(c: Context, audit: Audit) -> bool:
    """A signed output is not the aggregate of its signed rows: that convicts its signer, and we don't vote for it."""
    if audit.false is None:
        return False
    evidence = verify(audit.false.SerializeToString(deterministic=True), c.rules.manifest)
    if evidence.accused not in c.convicted:  # one proof is enough
        hold(c, evidence)
    c.round.barren.add(audit.closing)
    return True


def take_reveal(c: Context, sender: PeerId, reveal: Reveal) -> None:
    """REJECT reveal-nonce; IGNORE reveal-early: kept for when the Closing is here."""
    audit = c.round.audits.get(reveal.closing)
    if audit is not None:
        audit.take_nonce(sender, reveal.nonce)
        return
    if c.account(sender) is None or len(reveal.closing) != 32:
        raise Ignored("reveal-unknown")
    early = c.round.early_nonces.setdefault(reveal.closing, {})
    early[sender] = reveal.nonce[:64]
    while len(c.round.early_nonces) > KEPT_EARLY:
        del c.round.early_nonces[next(iter(c.round.early_nonces))]
    raise Ignored("reveal-early")


def take_audited(c: Context, sender: PeerId, told: Audited) -> None:
    """IGNORE audited-unknown; REJECT audited-form."""
    audit = c.round.audits.get(told.closing)
    if audit is None or sender not in audit.exchange.group.electorate:
        raise Ignored("audited-unknown")
    if len(told.parts) > len(audit.exchange.group.parts):
        raise reject("audited-form")
    audit.told[sender] = frozenset(told.parts)


def take_audit_row(c: Context, row: AuditRow) -> None:
    """IGNORE audit-row-unasked; REJECT audit-row."""
    for audit in c.round.audits.values():
        if audit.exchange.group.digest == row.group and audit.take_row(row):
            return
    raise Ignored("audit-row-unasked")


def answer_audit(c: Context, exchange: GroupExchange, sender: PeerId, want: Want) -> bool:
    """Send a contributor's chunk to an auditor, our own or one of a part that we aggregated; whether we could.

    Only once the Closing is here: before, nobody is to know what will be looked at.
    """
    group = exchange.group
    if exchange.closing is None or sender not in group.electorate or want.part >= len(group.parts):
        return False
    part = group.parts[want.part]
    if want.index >= c.rules.chunks(part):
        return False
    contributor = PeerId(want.peer) if len(want.peer) == 32 else c.me
    commitment = exchange.commitments.get(contributor)
    if contributor == c.me and exchange.contribution is not None:
        data, proof = exchange.contribution.chunk(part, int(want.index))
    else:
        reduction = exchange.reductions.get(part.index)
        row = reduction.rows.get(contributor) if reduction is not None else None
        found = row.chunk(int(want.index)) if row is not None else None
        if found is None:
            return False
        data, proof = found[0], list(found[1])
    if commitment is None:
        return False
    answer = AuditRow(
        group=group.digest, part=part.index, index=want.index, commitment=commitment.raw, data=data, proof=proof
    )
    c.send([sender], [frame(Kind.AUDIT_ROW, answer.SerializeToString())], bulk=True)
    return True
