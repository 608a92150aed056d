"""What all parts of the round machine share: who we are, the state, the round in progress, and the effects so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from p2pnode.envelope import Signed
from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.messages import Ignored, SlotBase
from p2pnode.replica.chain import Link
from p2pnode.replica.proposal import Group, check_leave
from p2pnode.replica.state import GlobalState
from p2pnode.round.answers import Answers
from p2pnode.round.effects import Effect, Waiting
from p2pnode.round.evidence import Evidence, Wanted
from p2pnode.round.frames import Send
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.pace import Pace
from p2pnode.round.progress import ANYTIME, EARLY_BYTES, Durable, Early, Progress, others
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import Leave

KEPT_RECORDS: Final = 16  # rounds whose certificate we answer with
KEPT_OUTPUTS: Final = 2  # rounds whose outputs we hand out
SUSPECT_ROUNDS: Final = 16  # that a reducer whose part could not be checked is left out for
KEPT_LEFT: Final = 16  # promises on branches that we left


@dataclass(frozen=True)
class Past:
    """A round that we certified: its record, and while it is recent its exchange."""

    record: bytes
    exchange: GroupExchange | None


@dataclass
class Context:
    """Mutable; belongs to one machine. `random`: n -> n bytes from the system's secure source."""

    rules: Rules
    identity: PeerIdentity
    random: Callable[[int], bytes]
    state: GlobalState
    round: Progress
    early: Early  # frames of this round that need a proposal, a commitment or a header first
    future: Early = field(default_factory=lambda: Early(EARLY_BYTES))  # frames of the next round
    durable: Durable = field(default_factory=Durable)  # what an earlier process left, until its round is past
    bandwidth: int = 10_000_000  # bytes a second; the driver sets what it measures
    leaving: bool = False
    gone: set[PeerId] = field(default_factory=set)
    hoped: set[PeerId] = field(default_factory=set)  # contributors that are expected though not on the roster
    vain: set[PeerId] = field(default_factory=set)  # waited for in vain: not again, until they enter a current round
    past: dict[int, Past] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)
    asked: dict[PeerId | None, float] = field(default_factory=dict)  # by account: not asked again before then
    next_behind: float = 0.0
    doubts: dict[PeerId | None, tuple[float, float]] = field(default_factory=dict)  # by account: not before; seconds
    leaves: dict[PeerId, Signed[Leave]] = field(
        default_factory=dict
    )  # of this round or earlier ones, not committed yet
    left: dict[tuple[int, bytes], int] = field(default_factory=dict)  # promises by (round, parent), on other branches
    changed: bool = False  # something was done: look again what can be done
    evidence: dict[bytes, Evidence] = field(default_factory=dict)  # verified, by digest
    wanted: dict[bytes, Wanted] = field(default_factory=dict)  # evidence that we asked for
    suspects: dict[PeerId, int] = field(default_factory=dict)  # no auditor could check its part: left out until a round
    hold_until: float = 0.0  # after a restart nothing is signed before the others could tell what we signed
    pace: Pace = field(default_factory=Pace)
    waiting: str = ""
    effects: list[Effect] = field(default_factory=list)

    @property
    def me(self) -> PeerId:
        """Ourselves."""
        return self.identity.peer_id

    def begin(self, link: Link, now: float) -> None:
        """Begin the round after `self.state`, which `link` attests."""
        self.round = first_progress(self.rules, self.me, self.state, link, now)
        # A node that restarted some rounds behind comes only now to the round that it has promises and votes in.
        if not self.round.restore(self.durable):
            self.durable = Durable()
        base = self.round.base
        if not self.durable.tells_of(base):
            self.round.come_back(self.left.get((base.round, base.parent), -1))
        self.early.clear()
        for sender, data in self.future.take({ANYTIME}):
            self.early.add(self.account(sender), sender, data)
        self.asked.clear()
        self.leaves = {peer: leave for peer, leave in self.leaves.items() if self.leave_binds(leave) is not None}
        near = self.state.roster.known | self.hoped
        self.gone &= near
        self.vain &= near
        self.waiting = ""
        self.changed = True

    def leave_binds(self, leave: Signed[Leave]) -> int | None:
        """The attempt below which a leave binds its sender in our round, 0 if it is of an earlier one; None if it is of
        no use any more."""
        try:
            return check_leave(leave, self.round.base, self.state.roster)
        except (Ignored, PeerFault):
            return None

    def leavers(self, attempt: int) -> dict[PeerId, Signed[Leave]]:
        """Members that have promised to take no part in this attempt."""
        members = self.state.roster.members
        return {
            p: leave for p, leave in self.leaves.items() if p in members and (self.leave_binds(leave) or 0) > attempt
        }

    def leave_branch(self) -> None:
        """We go elsewhere, and what we signed in this round will be forgotten: remember that we did."""
        if self.round.promised >= 0:
            self.left[self.round.base.round, self.round.base.parent] = self.round.promised
        while len(self.left) > KEPT_LEFT:
            del self.left[min(self.left)]

    def keep_past(self, number: int, past: Past) -> None:
        """Keep a certified round for those who ask, and let old ones go."""
        self.past[number] = past
        for old in list(self.past):
            if old <= number - KEPT_RECORDS:
                del self.past[old]
            elif old <= number - KEPT_OUTPUTS:
                self.past[old] = Past(self.past[old].record, None)

    def account(self, peer: PeerId) -> PeerId | None:
        """On whose account `peer`'s frames are kept: its own if it is on record, else one for all strangers."""
        return peer if peer in self.state.roster.known or peer in self.round.gathering.by_sender else None

    @property
    def convicted(self) -> set[PeerId]:
        """Peers on record that we hold evidence against: not excluded yet, but not worked with."""
        return {found.accused for found in self.evidence.values()} & self.state.roster.known

    def expected(self) -> set[PeerId]:
        """Whom a convener waits for, until the gathering deadline."""
        suspects = {peer for peer, until in self.suspects.items() if self.round.base.round < until}
        unwanted = self.gone | self.vain | self.convicted | suspects | {self.me}
        return (set(self.state.roster.members) | self.hoped) - unwanted

    def hope_for(self, peer: PeerId) -> None:
        """`peer` is trying to keep up: wait for it in this round and the next. A few strangers at most."""
        if peer in self.state.roster.excluded:
            return
        strangers = sum(other not in self.state.roster.known for other in self.hoped)
        if peer in self.state.roster.known or strangers < self.rules.manifest.limits.newcomers:
            self.hoped.add(peer)
            self.round.late.add(peer)

    def audience(self, group: Group) -> tuple[PeerId, ...]:
        """Who hears of a group's outcome: everybody in it, and the whole roster."""
        return others({*group.entries, *group.exchange.entries, *self.state.roster.members}, self.me)

    def tell(self, effect: Effect) -> None:
        """Add an effect."""
        self.effects.append(effect)

    def send(self, peers: Iterable[PeerId], frames: Iterable[bytes], *, bulk: bool = False) -> None:
        """Add a Send, to all of `peers` but ourselves. `frames` can be iterated more than once."""
        to = others(peers, self.me)
        if to:
            self.tell(Send(to, frames, bulk))

    def say(self, reason: str) -> None:
        """Tell what we wait for, once."""
        if reason != self.waiting:
            self.waiting = reason
            self.tell(Waiting(reason))


def first_progress(rules: Rules, me: PeerId, state: GlobalState, link: Link, now: float) -> Progress:
    """A round about to begin."""
    return Progress(rules, me, SlotBase(state.run, state.round + 1, state.digest), link, now)
