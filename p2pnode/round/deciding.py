"""From a proposal to a certificate: contribute, reduce, close, vote, and commit what a quorum voted for."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

import numpy as np

from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.messages import CLOSING, COMMITMENT, OUTPUT, VOTE
from p2pnode.replica.chain import Certified, assemble
from p2pnode.replica.outer import outer_step, self_test
from p2pnode.replica.proposal import Group
from p2pnode.replica.state import GlobalState
from p2pnode.round.asking import GRACE_SECONDS, want_certificate, want_outputs
from p2pnode.round.auditing import audited
from p2pnode.round.context import Context, Past
from p2pnode.round.contribution import Contribution
from p2pnode.round.effects import Committed, Halt, Persist, Rejected
from p2pnode.round.frames import Kind, Send, frame
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.output import Output, output_tree
from p2pnode.round.pace import ROW_DOUBLINGS
from p2pnode.round.progress import Lock, encode_lock
from p2pnode.round.reduction import Reduction
from p2pnode.wire.round_pb2 import Vote, Want

HANDOVER: Final = 0.25  # of the time for outputs that a deputy waits for the reducer's, after the time for rows
DEPUTY: Final = 0.75  # by when, in the same measure, it aggregates what rows it got


def accept(c: Context, group: Group, now: float) -> None:
    """Act on a checked proposal: contribute, if our entry is in it."""
    r = c.round
    if group.proposal.sender != c.me and r.quorum_at is not None and group.attempt == r.attempt:
        c.pace.gather.saw(now - r.quorum_at)
    r.group, r.group_at = group, now
    exchange = r.exchange_for(group)
    if group.closing is not None:
        exchange.take_closing(group.closing)
    own = r.gathering.at(group.attempt).get(c.me)
    listed = group.entries.get(c.me)
    ours = own is not None and listed is not None and own.digest == listed.digest
    if group.base is None and ours and r.offer is not None and _may_sign(c, group):
        try:
            contribution = Contribution(c.rules, group, r.offer)
        except PeerFault as fault:  # a part's bounds depend on where the proposal cuts, so `offer` could not tell
            c.tell(Rejected(c.me, fault.clause, f"our own update: {fault.detail}"))
            c.changed = True
            return
        exchange.contribution = contribution
        commitment = exchange.commitments[c.me] = COMMITMENT.seal(c.identity, contribution.commitment(r.base))
        for part in group.parts:
            if part.reducer == c.me:
                exchange.reductions[part.index].open_row(commitment).fill(contribution.encoded[part.index])
            else:
                c.tell(Send((part.reducer,), contribution.row(part, commitment), bulk=True))
    c.changed = True


def _may_sign(c: Context, group: Group) -> bool:
    r = c.round
    return group.attempt >= r.promised and group.attempt > r.sealed and not r.barred


def exchange_step(c: Context, group: Group, now: float) -> None:
    """Do what our part in `group` asks for by now: reduce, close, vote, or ask for what is missing."""
    r = c.round
    exchange = r.exchange_for(group)
    if exchange.outputs_at is None and exchange.reduced_at is not None and exchange.complete:
        exchange.outputs_at = now
        c.pace.outputs.saw(now - exchange.reduced_at)
    if group.base is None and _may_sign(c, group):
        _deputize(c, group, exchange, now)
        for reduction in exchange.reductions.values():
            _reduce(c, group, exchange, reduction, now)
        if group.proposal.sender == c.me and exchange.closing is None and exchange.complete:
            closing = CLOSING.seal(c.identity, exchange.closing_message())
            exchange.take_closing(closing)
            c.send(c.audience(group), [frame(Kind.CLOSING, closing.raw)])
            r.next_want = now + GRACE_SECONDS
            c.changed = True
    try:
        if exchange.closed() and audited(c, group, exchange, now) and _may_vote(c, group, exchange):
            _vote(c, group, exchange)
    except PeerFault as fault:
        c.tell(Rejected(group.exchange.proposal.sender, fault.clause, fault.detail))
        return
    if exchange.closing is not None and not exchange.complete:
        want_outputs(c, exchange, now)


def _deputize(c: Context, group: Group, exchange: GroupExchange, now: float) -> None:
    """Take over the part whose deputy we are, if its reducer is gone, or its output late: ask for its rows."""
    part = group.deputized_to(c.me)
    if part is None or part.index in exchange.reductions or exchange.has(part) or exchange.closing is not None:
        return
    message = group.proposal.message
    late = now >= c.round.group_at + (message.contribute_ms + message.close_ms * HANDOVER) / 1000
    if not late and part.reducer not in c.gone:
        return
    reduction = exchange.take_over(part)
    if exchange.contribution is not None:
        reduction.open_row(exchange.commitments[c.me]).fill(exchange.contribution.encoded[part.index])
    want = Want(kind=Want.ROW, digest=group.digest, part=part.index)
    c.send(reduction.missing(), [frame(Kind.WANT, want.SerializeToString())])
    c.changed = True


def _reduce(c: Context, group: Group, exchange: GroupExchange, reduction: Reduction, now: float) -> None:
    """Sign a part's output once every row is settled, or the time for rows is up."""
    r, part, message = c.round, reduction.part, group.proposal.message
    if reduction.signed or c.me not in group.entries or exchange.closing is not None:
        return
    seconds = message.contribute_ms if part.reducer == c.me else message.contribute_ms + message.close_ms * DEPUTY
    overdue = now >= r.group_at + seconds / 1000
    if not overdue and not reduction.settled(c.gone | c.pace.unwaited(r.base.round)):
        return
    missing = set(reduction.missing())
    aggregated = reduction.aggregate()
    if aggregated is None:
        return
    if part.reducer == c.me:
        _measure_rows(c, reduction, missing, now - r.group_at, overdue=overdue)
        exchange.reduced_at = now
    header, data = aggregated
    header.slot.CopyFrom(r.base.at(group.attempt))
    header.group = group.digest
    header.root = output_tree(c.rules, part, data).root
    output = exchange.keep(Output.whole(c.rules, part, OUTPUT.seal(c.identity, header), data))
    r.come.add(output.header.digest)
    c.changed = True
    c.tell(Send(c.audience(group), output.frames(), bulk=True))


def _measure_rows(c: Context, reduction: Reduction, missing: Set[PeerId], seconds: float, *, overdue: bool) -> None:
    if not missing:
        c.pace.rows.saw(seconds)
    elif overdue:
        c.pace.rows.missed(ROW_DOUBLINGS)  # it may have needed longer: the next wait is, but comes later
    for peer in missing if overdue else ():
        c.pace.stalled(peer)
    for peer, _ in reduction.complete_rows():
        c.pace.delivered(peer)


def _may_vote(c: Context, group: Group, exchange: GroupExchange) -> bool:
    r = c.round
    closing = exchange.closing
    voted = r.lock is not None and r.lock.attempt >= group.attempt
    if closing is None or voted or r.barred or c.me not in group.electorate or group.attempt < r.promised:
        return False
    # A relock obliges to its Closing; that we hold another one of the same group is equivocation.
    return group.closing is None or group.closing.digest == closing.digest


def _vote(c: Context, group: Group, exchange: GroupExchange) -> None:
    r = c.round
    closing = exchange.closing
    if closing is None:
        return
    state = _shadow(c, exchange)
    if state is None:
        return
    r.lock = Lock(group.attempt, closing.digest, state.digest)
    r.promised = max(r.promised, group.attempt)
    c.tell(Persist("lock", encode_lock(r.base, group.attempt, state.digest, exchange)))
    ballot = Vote(slot=r.base.at(group.attempt), closing=closing.digest, state_digest=state.digest, group=group.digest)
    vote = VOTE.seal(c.identity, ballot)
    r.ballot.add(vote, r.base, c.state.roster)
    c.changed = True
    c.send(c.audience(group), [frame(Kind.VOTE, vote.raw)])


def _shadow(c: Context, exchange: GroupExchange) -> GlobalState | None:
    """The state that a closed exchange leads to, on a shadow copy; None if it is not finite, or out of bounds."""
    r = c.round
    closing = exchange.closing
    if closing is None:
        return None
    if closing.digest not in r.shadows:
        self_test()
        manifest = c.rules.manifest
        try:
            tensors = outer_step(manifest.training.outer, c.state.tensors, exchange.averaged())
        except ValueError:
            tensors = np.full(1, np.nan, dtype=np.float32)
        state = None
        if bool(np.all(np.isfinite(tensors))):
            committed = exchange.group.committed(r.base, closing.message)
            roster = c.state.roster.after(committed, manifest)
            state = GlobalState(c.state.run, r.base.round, r.base.parent, roster, tensors, c.state.parameter_count)
        r.shadows[closing.digest] = state
    return r.shadows[closing.digest]


def settle(c: Context, now: float) -> bool:
    """Commit the round if it is certified and all outputs are here; whether it did."""
    r = c.round
    if r.certificate is not None:
        exchange = r.exchange_for(r.certificate.group)
        if exchange.complete:
            return _commit(c, r.certificate, exchange, now)
        want_outputs(c, exchange, now, tuple(vote.sender for vote in r.certificate.votes))
        return False
    for group in list(r.groups.values()):
        votes = r.ballot.winner(group)
        if not votes:
            continue
        exchange = r.exchange_for(group)
        closing = exchange.closing
        if closing is None or closing.digest != votes[0].message.closing:
            want_certificate(c, [vote.sender for vote in votes], now)
        elif not exchange.complete:
            want_outputs(c, exchange, now, tuple(vote.sender for vote in votes))
        else:
            state = _shadow(c, exchange)
            if state is None or state.digest != votes[0].message.state_digest:
                return _halt(c)
            headers = [output.header for output in exchange.outputs()]
            return _commit(c, assemble(r.link, group, closing, headers, votes, state), exchange, now)
        return False
    voters = r.ballot.voters_elsewhere(c.state.roster)
    if voters:
        want_certificate(c, voters, now)
    return False


def _halt(c: Context) -> bool:
    c.tell(Halt("a quorum certified another state than this node computed from the same outputs"))
    c.round.groups.clear()
    return False


def _commit(c: Context, certified: Certified, exchange: GroupExchange, now: float) -> bool:
    r = c.round
    if exchange.outputs_at is not None and certified.link.attempt == exchange.group.attempt:
        c.pace.votes.saw(now - exchange.outputs_at)
    state = _shadow(c, exchange)
    if state is None or state.digest != certified.link.digest:
        r.certificate = None
        return _halt(c)
    voted = [group for group in r.groups.values() if group.attempt == certified.link.attempt]
    if any(group.proposal.sender == c.me for group in voted):
        c.send(r.late - set(certified.group.entries), [frame(Kind.CERTIFICATE, certified.record)])
    outputs = tuple(bytes(output.data) for output in exchange.outputs())
    contributed = c.me in certified.link.contributors
    c.keep_past(r.base.round, Past(certified.record, exchange))
    c.hoped = (set(certified.link.contributors) | r.late) - {c.me}
    c.state = state
    c.tell(Committed(certified, state, contributed, outputs))
    c.begin(certified.link, now)
    return True
