"""Asking other peers for what is missing, one at a time and not too often."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2pnode.identity import PeerId
from p2pnode.round.context import Context
from p2pnode.round.effects import Behind
from p2pnode.round.frames import Kind, frame
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.progress import others
from p2pnode.wire.round_pb2 import Want

WANT_SECONDS: Final = 0.5  # between requests for what is missing
GRACE_SECONDS: Final = 2.0  # in which outputs are expected to come by themselves
WANTS_BEFORE_BEHIND: Final = 4  # requests for a certified round's outputs, all in vain


def want_certificate(c: Context, peers: Iterable[PeerId], now: float) -> None:
    """Ask for the certificate of our round."""
    ask(c, Want(kind=Want.CERTIFICATE, round=c.round.base.round), peers, now)


def want_certificate_of(c: Context, peer: PeerId, now: float) -> None:
    """Ask a peer that speaks of a later round for our certificate: all strangers together no oftener than one."""
    account = c.account(peer)
    if now >= c.asked.get(account, now):
        c.asked[account] = now + WANT_SECONDS
        want = Want(kind=Want.CERTIFICATE, round=c.round.base.round)
        c.send([peer], [frame(Kind.WANT, want.SerializeToString())])


def want_outputs(c: Context, exchange: GroupExchange, now: float, peers: tuple[PeerId, ...] = ()) -> None:
    """Ask for the outputs that a Closing names and we miss: of `peers`, of voters, of those who hold a lock on it."""
    r = c.round
    if r.next_want == 0.0:
        r.next_want = now + (GRACE_SECONDS if exchange.contribution or exchange.reductions else 0.0)
    closing = exchange.closing
    holders = set(peers) | set(r.ballot.voted_for(closing.digest) if closing else ())
    holders.update(_holders(c, closing.digest if closing else b""))
    if not holders:
        aggregators = (peer for part in exchange.group.parts for peer in part.aggregators)
        holders = {exchange.group.proposal.sender, *aggregators}
    if r.certificate is not None and now >= r.next_want:
        r.output_wants += 1
        if r.output_wants % WANTS_BEFORE_BEHIND == 0:
            c.tell(Behind(others(holders, c.me)))
    for digest in exchange.missing_outputs():
        if not ask(c, Want(kind=Want.OUTPUT, digest=digest), sorted(holders), now, keep_turn=True):
            return
    r.next_want = now + WANT_SECONDS * 2


def _holders(c: Context, closing: bytes) -> list[PeerId]:
    """Entries that hold a lock on this Closing."""
    found = []
    for attempts in c.round.gathering.by_sender.values():
        found += [e.sender for e in attempts.values() if e.message.lock.closing == closing and closing]
    return found


def ask(c: Context, want: Want, peers: Iterable[PeerId], now: float, *, keep_turn: bool = False) -> bool:
    """Ask one of `peers`, a different one each time, not too often; whether it was time to."""
    r = c.round
    able = [peer for peer in others(peers, c.me) if peer not in c.gone] or list(others(peers, c.me))
    if not able or now < r.next_want:
        return False
    if not keep_turn:
        r.next_want = now + WANT_SECONDS
    peer = able[r.wants % len(able)]
    r.wants += 1
    c.send([peer], [frame(Kind.WANT, want.SerializeToString())])
    return True
