"""Attempts: entering one, waiting for the others, convening, and giving up on a convener or a group that is stuck."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2pnode.envelope import Signed
from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.manifest import DeadlinesSection
from p2pnode.messages import ENTRY, MAX_ATTEMPT, PROPOSAL
from p2pnode.replica.proposal import Group, check_group, convener_of, least_contributors
from p2pnode.round.accusing import accusations, in_entry, unverified
from p2pnode.round.asking import ask, want_certificate
from p2pnode.round.audit import NONCE_BYTES
from p2pnode.round.auditing import suspect
from p2pnode.round.context import Context
from p2pnode.round.deciding import accept
from p2pnode.round.effects import Discarded, Persist
from p2pnode.round.frames import Kind, frame
from p2pnode.round.gathering import admit, make_proposal
from p2pnode.round.progress import others
from p2pnode.wire.journal_pb2 import PromiseRecord
from p2pnode.wire.round_pb2 import Leave, Relock, RoundEntry, Want

RESEND_SECONDS: Final = 1.5  # an entry that got no proposal yet is sent again
JUMP_SECONDS: Final = 0.5  # waited at an attempt before following others to a higher one
GRACE_SECONDS: Final = 2.0  # given to a convener beyond the gathering deadline
KEPT_NONCES: Final = 16  # attempts whose nonce we can still reveal
LOCK_SECONDS: Final = 3.0  # in which the holders of a lock are to show its Closing
MAX_JUMP: Final = 1024  # attempts skipped at once on the word of a few


def gather(c: Context, now: float) -> None:
    """Take our attempt a step further: enter, wait, propose, or give up and enter the next."""
    r = c.round
    if r.barred:
        c.say("for the certificate of a round that this node took part in before it was restarted")
        want_certificate(c, c.state.roster.members, now)
        return
    if r.group is not None:
        message = r.group.proposal.message
        deadline = r.group_at + (message.contribute_ms + message.close_ms + message.vote_ms) / 1000
        stuck = _stuck(c, r.group)
        if now < deadline and not stuck:
            c.say("for the exchange and the votes")
            return
        exchange = r.exchange_for(r.group)
        if exchange.closing is not None and not exchange.complete:
            r.barren.add(exchange.closing.digest)
        suspect(c, exchange)
        if not stuck:
            (c.pace.outputs if exchange.closing is None else c.pace.votes).missed()
        c.tell(Discarded(r.base.round, r.group.attempt, stuck or "no quorum of votes in time"))
        r.attempt = -1
        floor = r.floor()
        r.group = None
        _enter(c, _next(c, floor), now)
        return
    if r.attempt < 0:
        _enter(c, _next(c, r.floor()), now)
        return
    convener = convener_of(c.state.roster, r.base, r.attempt)
    absent = c.gone | c.convicted
    if convener != c.me and convener in absent and not absent.issuperset(c.state.roster.members):
        _enter(c, _next(c, r.attempt + 1), now)
        return
    entries = r.gathering.at(r.attempt)
    leavers = c.leavers(r.attempt).keys()
    members = [peer for peer in c.state.roster.members if peer in entries or peer in leavers]
    enough = len(members) >= c.state.roster.quorum
    if enough and r.quorum_at is None:
        r.quorum_at = now
    if _jump(c, now):
        return
    gather, company_wait = c.rules.manifest.deadlines.gather, c.rules.manifest.roster.company_wait
    patience = c.pace.gather.deadline(0.0, gather)
    provisional_at = max(r.started + c.rules.manifest.roster.provisional_after, r.entered_at + gather)
    if convener == c.me:
        # Whoever is at a higher attempt has promised to sign nothing for this one.
        expected = c.expected() - leavers - entries.keys()
        missing = [peer for peer in expected if r.gathering.highest((peer,)) <= r.attempt]
        if len(entries) == 1 and not missing and r.base.round > 1 and now < r.started + company_wait:
            c.say("for company: others join with the invite")
        elif enough and (not missing or now >= (r.quorum_at or now) + patience):
            if missing:
                c.pace.gather.missed()
            else:
                c.pace.gather.saw(now - (r.quorum_at or now))
            c.vain.update(missing)
            _propose(c, entries, now, provisional=False)
        elif not enough and now >= provisional_at:
            _propose(c, entries, now, provisional=True)
        else:
            c.say(_for_peers(len(missing)) if missing else "for a quorum of the roster")
    else:
        late = r.quorum_at is not None and now >= r.quorum_at + patience + GRACE_SECONDS
        if late or now >= provisional_at + gather + GRACE_SECONDS:
            c.tell(Discarded(r.base.round, r.attempt, f"its convener {convener.short} is silent"))
            c.gone.add(convener)
            _enter(c, _next(c, r.attempt + 1), now)
            return
        c.say("for the others to finish local work" if enough else "for a quorum of the roster")
    if now >= r.resend_at and r.group is None:
        r.resend_at = now + RESEND_SECONDS
        send_entry(c, c.state.roster.members)


def _for_peers(count: int) -> str:
    return f"for {count} more peer{'s' * (count != 1)} to finish local work"


def _seen(c: Context, supporters: int = 1) -> int:
    """The highest attempt that so many other roster members have reached."""
    return c.round.gathering.highest(others(c.state.roster.members, c.me), supporters)


def _supporters(c: Context) -> int:
    """Members of whom one is honest while liars are fewer than a quorum's rest."""
    roster = c.state.roster
    return len(roster.members) - roster.quorum + 1


def _next(c: Context, least: int) -> int:
    """The attempt to enter: where the others are, but not wherever a single liar says that it is."""
    return max(least, _seen(c, _supporters(c)), min(_seen(c), least + MAX_JUMP))


def _jump(c: Context, now: float) -> bool:
    """Follow others to a higher attempt; whether we did.

    At once if so many are there that one must be honest. On the word of fewer each time later after a quorum was here,
    up to the time that an attempt needs: a liar that runs ahead for ever leaves the others time to finish one.
    """
    r = c.round
    supported, highest = _seen(c, _supporters(c)), min(_seen(c), r.attempt + MAX_JUMP)
    patience = JUMP_SECONDS * 2 ** min(r.lone_jumps, 16)
    longest = c.rules.manifest.deadlines.gather + 2 * GRACE_SECONDS
    if supported > r.attempt and now >= r.entered_at + JUMP_SECONDS:
        _enter(c, supported, now)
        return True
    if highest > r.attempt and now >= (r.quorum_at or r.entered_at) + min(patience, longest):
        r.lone_jumps += 1
        _enter(c, highest, now)
        return True
    return False


def _stuck(c: Context, group: Group) -> str:
    """Why waiting for this group is pointless; "" if it is not."""
    exchange = c.round.exchange_for(group)
    if exchange.closing is None:
        if group.proposal.sender in c.gone:
            return "its convener is gone"
        gone = [part for part in exchange.group.parts if c.gone.issuperset(part.aggregators)]
        if not all(exchange.has(part) for part in gone):
            return "a reducer and its deputy are gone"
    return ""


def _enter(c: Context, attempt: int, now: float) -> None:
    """Promise, and sign an entry for `attempt` or the next one whose convener is not known to be gone."""
    r = c.round
    roster = c.state.roster
    if attempt > MAX_ATTEMPT:
        return  # nobody would accept it: only a certificate helps now
    for _ in roster.members:
        convener = convener_of(roster, r.base, attempt)
        if convener == c.me or convener not in c.gone | c.convicted:
            break
        attempt += 1
    r.attempt = r.promised = attempt
    r.entered_at, r.quorum_at, r.resend_at = now, None, now + RESEND_SECONDS
    promise(c, attempt)
    nonce = r.nonces[attempt] = c.random(NONCE_BYTES)
    while len(r.nonces) > KEPT_NONCES:
        del r.nonces[min(r.nonces)]
    key = X25519PrivateKey.from_private_bytes(c.random(32)).public_key()
    entry = RoundEntry(
        slot=r.base.at(attempt),
        nonce_digest=blake3(nonce).digest(),
        bandwidth=c.bandwidth,
        exchange_key=key.public_bytes_raw(),
        contributes=r.offer is not None,
        leaving=c.leaving,
        evidence=accusations(c),
    )
    if r.lock is not None:
        entry.lock.CopyFrom(r.lock.message)
    r.gathering.add(ENTRY.seal(c.identity, entry))
    send_entry(c, roster.members)
    c.changed = True


def promise(c: Context, attempt: int) -> None:
    """Durably: we sign nothing for a lower attempt of this round."""
    base = c.round.base
    record = PromiseRecord(round=base.round, parent=base.parent, attempt=attempt)
    for (number, parent), promised in c.left.items():
        record.left.add(round=number, parent=parent, attempt=promised)
    c.tell(Persist("promise", record.SerializeToString()))


def send_entry(c: Context, peers: Iterable[PeerId]) -> None:
    own = c.round.gathering.at(c.round.attempt).get(c.me)
    if own is not None:
        c.send(peers, [frame(Kind.ENTRY, own.raw)])


def _trusted(c: Context) -> dict[PeerId, Signed[RoundEntry]]:
    """The entries of our attempt, without those that accuse by evidence we have not verified; and, as far as the others
    are a quorum, without peers that we hold evidence against, locks that lead nowhere, and parts that can't be checked.

    A liar can hold a lock on a Closing that nobody has, or on outputs that it keeps to itself. If the Closing was
    certified after all, each quorum of entries has an honest lock on it.
    """
    entries, roster = c.round.gathering.at(c.round.attempt), c.state.roster
    entries = {peer: entry for peer, entry in entries.items() if _verified(c, entry.message)}
    suspects = {peer for peer, until in c.suspects.items() if c.round.base.round < until}
    unwanted: list[Callable[[PeerId], bool]] = [
        lambda peer: peer in c.convicted,
        lambda peer: entries[peer].message.lock.closing in c.round.barren,
        lambda peer: peer in suspects,
    ]
    for leave_out in unwanted:  # the first matters most
        rest = {peer: entry for peer, entry in entries.items() if peer == c.me or not leave_out(peer)}
        if sum(peer in roster for peer in rest) >= roster.quorum:
            entries = rest
    return entries


def _verified(c: Context, entry: RoundEntry) -> bool:
    try:
        return unverified(c, in_entry(entry)) is None
    except PeerFault:
        return False


def _leaves(c: Context) -> dict[PeerId, Signed[Leave]]:
    """Whose leaves a proposal of our attempt carries: of earlier rounds, and of members that left in this one, unless
    their lock leads nowhere."""
    earlier = {peer: leave for peer, leave in c.leaves.items() if c.leave_binds(leave) == 0}
    now = {p: e for p, e in c.leavers(c.round.attempt).items() if e.message.lock.closing not in c.round.barren}
    return earlier | now


def _deadlines(c: Context, chosen: Iterable[Signed[RoundEntry]]) -> DeadlinesSection:
    """What was measured of these peers, and what their stated bandwidth asks for; the manifest's at most."""
    longest, pace = c.rules.manifest.deadlines, c.pace
    slowest = min((max(1, entry.message.bandwidth) for entry in chosen), default=1)
    transfer = c.rules.encoded_bytes / slowest
    rows, outputs = (wait.deadline(transfer, longest.contribute) for wait in (pace.rows, pace.outputs))
    return longest.model_copy(
        update={
            "contribute": max(rows, outputs),  # others' rows may take longer than ours: then their outputs come late
            "close": pace.outputs.deadline(transfer, longest.close),
            "vote": pace.votes.deadline(0.0, longest.vote),
        }
    )


def _propose(c: Context, entries: Iterable[PeerId], now: float, *, provisional: bool) -> None:
    r = c.round
    leaves = _leaves(c)
    entries_by = _trusted(c)
    chosen = admit({p: e for p, e in entries_by.items() if p not in leaves}, r.base, c.state.roster, c.rules.manifest)
    relock = None
    promises: list[RoundEntry | Leave] = [entry.message for entry in chosen]
    promises += [leave.message for leave in leaves.values()]
    locks = [found.lock for found in promises if found.HasField("lock")]
    if locks:
        highest = max(locks, key=lambda lock: lock.attempt)
        exchange = r.exchange_closed_by(highest.closing)
        if exchange is None or exchange.closing is None:
            if now >= r.locks_asked.setdefault(highest.closing, now) + LOCK_SECONDS:
                r.barren.add(highest.closing)
            holders = [e.sender for e in chosen if e.message.lock.closing == highest.closing]
            ask(c, Want(kind=Want.CLOSING, digest=highest.closing), holders, now)
            return
        relock = Relock(proposal=exchange.group.proposal.raw, closing=exchange.closing.raw)
    else:
        missing = least_contributors(r.base, c.rules.manifest) - sum(e.message.contributes for e in chosen)
        if missing > 0:
            c.say(f"for {missing} more contributor{'s' * (missing != 1)}")
            return
    here = {entry.sender for entry in chosen} | leaves.keys() & c.leavers(r.attempt).keys()
    if not provisional and len(here.intersection(c.state.roster.members)) < c.state.roster.quorum:
        return
    message = make_proposal(
        r.base,
        r.attempt,
        chosen,
        leaves.values(),
        c.state.roster,
        c.rules.manifest,
        c.rules.values,
        provisional=provisional,
        relock=relock,
        deadlines=_deadlines(c, chosen),
    )
    proposal = PROPOSAL.seal(c.identity, message)
    group = check_group(proposal, r.base, c.state.roster, c.rules.manifest, c.rules.values)
    r.learn(group)
    r.forget_old(proposal.digest)
    for peer in entries:
        if peer not in group.entries:
            r.late.add(peer)
    c.send(c.audience(group), [frame(Kind.PROPOSAL, proposal.raw)])
    accept(c, group, now)
