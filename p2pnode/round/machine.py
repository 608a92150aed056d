"""The round machine: one node's part in making a run's rounds, with no clock, network, disk or randomness inside.

Inputs are method calls with the time as an argument; what to do comes back from `drain` as effects, to be carried out
in order. The same machine runs over real hivemind, over the in-memory transport, and under the model checker.

Safety rests on four things (protocols/exchange.md): a promise is durable before an entry is sent; a lock is durable
before a vote is sent; the highest lock among a quorum's entries is proposed again; nothing is signed for an attempt
below a promise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.messages import LEAVE, MAX_ATTEMPT, SlotBase
from p2pnode.replica.chain import Link
from p2pnode.replica.state import GlobalState
from p2pnode.round.attempts import gather, promise
from p2pnode.round.context import Context, Past, first_progress
from p2pnode.round.contribution import Update
from p2pnode.round.deciding import accept, exchange_step, settle
from p2pnode.round.effects import Effect, Persist, Verdict
from p2pnode.round.frames import Kind, frame
from p2pnode.round.inbound import take
from p2pnode.round.progress import EARLY_BYTES, Durable, Early, encode_update
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import Leave, Want

OWN_SECONDS: Final = 1.0  # after a start, for the others to show what they have of our signatures
LEAVE_STEP: Final = 1000  # attempts of the round that a leave gives up; below MAX_JUMP, so that others can follow


class RoundMachine:
    """See the module's docstring. One instance follows a run over all its rounds."""

    def __init__(
        self,
        rules: Rules,
        identity: PeerIdentity,
        link: Link,
        state: GlobalState,
        durable: Durable,
        random: Callable[[int], bytes],
        now: float,
    ) -> None:
        """link: how `state` was verified. random: n -> n bytes from the system's secure source."""
        progress = first_progress(rules, identity.peer_id, state, link, now)
        early = Early(EARLY_BYTES + 2 * 4 * rules.values)
        self._c = Context(rules, identity, random, state, progress, early, durable=durable)
        if durable.record:
            self._c.past[state.round] = Past(durable.record, None)
        progress.restore(durable)
        self._c.left = durable.left()
        if not durable.tells_of(progress.base):
            progress.come_back(self._c.left.get((progress.base.round, progress.base.parent), -1))
        self._ask_for_own(now)

    def _ask_for_own(self, now: float) -> None:
        """A disk that was restored from a backup does not know what we signed since: ask, before we sign anything."""
        c = self._c
        others = [peer for peer in c.state.roster.members if peer != c.me]
        began = c.durable.promise is not None or c.state.round > 0
        if others and began and c.me in c.state.roster.known:
            c.hold_until = now + OWN_SECONDS
            want = Want(kind=Want.MINE, round=c.round.base.round)
            c.send(others, [frame(Kind.WANT, want.SerializeToString())])

    # what the driver asks

    def drain(self) -> list[Effect]:
        """The effects since the last call, in the order in which to carry them out."""
        effects, self._c.effects = self._c.effects, []
        return effects

    @property
    def peer_id(self) -> PeerId:
        """Ourselves."""
        return self._c.me

    @property
    def state(self) -> GlobalState:
        """The newest certified state."""
        return self._c.state

    @property
    def link(self) -> Link:
        """How it was verified."""
        return self._c.round.link

    @property
    def round(self) -> int:
        """The round that is being made."""
        return self._c.round.base.round

    @property
    def base(self) -> SlotBase:
        """What messages of this round are bound to."""
        return self._c.round.base

    @property
    def attempt(self) -> int:
        """The attempt of our last entry in this round; -1 if we have not entered."""
        return self._c.round.attempt

    @property
    def wants_update(self) -> bool:
        """Whether local work for this round is still to be offered."""
        return not self._c.round.offered

    @property
    def gone(self) -> frozenset[PeerId]:
        """Peers that are not waited for."""
        return frozenset(self._c.gone)

    def set_bandwidth(self, bytes_a_second: int) -> None:
        """What our entries say of our bandwidth from now on."""
        self._c.bandwidth = max(1, bytes_a_second)

    # inputs

    def offer(self, update: Update | None, now: float) -> None:
        """Our update for this round, or None to take part without one (roster members only).

        Raises PeerFault (value-*) if our own update breaks the run's bounds; nothing is offered then.
        """
        r = self._c.round
        if r.offered:
            return
        if update is not None:
            self._c.rules.check_update(update.values)
            self._c.tell(Persist("update", encode_update(r.base, update)))
        r.offer, r.offered = update, True
        self._advance(now)

    def receive(self, sender: PeerId, data: bytes, now: float) -> Verdict:
        """One inbound frame. Every one ends ACCEPT, IGNORE or REJECT, with the clause's name."""
        self._c.gone.discard(sender)
        verdict = take(self._c, sender, data, now)
        self._advance(now)
        return verdict

    def peer_gone(self, peer: PeerId, now: float) -> None:
        """The connection to `peer` is lost: it is not waited for until it is heard of again."""
        c = self._c
        if peer in c.state.roster.known or peer in c.hoped or peer in c.round.gathering.by_sender:
            c.gone.add(peer)
        self._advance(now)

    def tick(self, now: float) -> None:
        """Time has passed; call a few times a second."""
        self._advance(now)

    def prepare_to_leave(self) -> None:
        """Our entries say from now on that we leave once their round is certified."""
        self._c.leaving = True

    def leave(self) -> None:
        """Say goodbye: roster members put our leave into the next proposal."""
        c, r = self._c, self._c.round
        if r.barred or c.me not in c.state.roster.known or c.state.roster.members == (c.me,):
            return
        floor = (max(r.promised, 0) // LEAVE_STEP + 1) * LEAVE_STEP
        if floor > MAX_ATTEMPT:
            return
        leave = Leave(slot=r.base.at(floor))
        if r.lock is not None:
            leave.lock.CopyFrom(r.lock.message)
        r.promised = r.sealed = floor
        promise(c, floor)
        c.send(c.state.roster.members, [frame(Kind.LEAVE, LEAVE.seal(c.identity, leave).raw)])

    def adopt(self, state: GlobalState, link: Link, now: float) -> None:
        """Go on from another verified state (after a sync)."""
        self._c.leave_branch()
        self._c.state = state
        self._c.past.clear()
        self._c.begin(link, now)
        self._advance(now)

    def _advance(self, now: float) -> None:
        """Do whatever can be done, until nothing changes any more."""
        c = self._c
        c.changed = True
        while c.changed or c.round.come:
            c.changed = False
            if c.round.come:
                come, c.round.come = c.round.come, set()
                for sender, data in c.early.take(come):
                    take(c, sender, data, now)
            if settle(c, now):
                continue
            r = c.round
            if r.too_early is not None and now >= r.started + c.rules.manifest.roster.provisional_after:
                group, r.too_early = r.too_early, None
                if group.attempt >= r.promised and (r.group is None or group.attempt > r.group.attempt):
                    accept(c, group, now)
            if now < c.hold_until:
                continue
            if r.group is not None:
                exchange_step(c, r.group, now)
            if r.offered and not c.changed:
                gather(c, now)
