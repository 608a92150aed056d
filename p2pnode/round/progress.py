"""The round in progress: all that one node knows of it. Replaced whole when the round is certified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from p2pnode.identity import PeerId
from p2pnode.messages import CLOSING, OUTPUT, PROPOSAL, SlotBase
from p2pnode.replica.chain import Certified, Link, check_outputs
from p2pnode.replica.proposal import Group, check_group
from p2pnode.replica.state import GlobalState
from p2pnode.round.audit import Audit
from p2pnode.round.ballot import Ballot
from p2pnode.round.contribution import Update
from p2pnode.round.gathering import Gathering
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.output import Output
from p2pnode.round.rules import Rules
from p2pnode.wire.journal_pb2 import LockRecord, PromiseRecord, UpdateRecord
from p2pnode.wire.round_pb2 import Lock as LockMessage
from p2pnode.wire.round_pb2 import Mechanism

KEPT_GROUPS: Final = 6
ANYTIME: Final = b""  # what frames of the next round need: that it begins
EARLY_FRAMES: Final = 512
EARLY_BYTES: Final = 2 << 20  # on top of two encoded states; half of it pays for the frames' number


@dataclass(frozen=True)
class Durable:
    """What was on disk at the start: the last `Persist` of each name, and the last certified round's record."""

    promise: bytes | None = None
    update: bytes | None = None
    lock: bytes | None = None
    record: bytes | None = None

    def left(self) -> dict[tuple[int, bytes], int]:
        """Attempts that were promised, by (round, parent): on branches that were left, and in the round at the end."""
        if not self.promise:
            return {}
        newest = PromiseRecord.FromString(self.promise)
        return {(int(one.round), one.parent): int(one.attempt) for one in (*newest.left, newest)}

    def tells_of(self, base: SlotBase) -> bool:
        """Whether the promise, and with it update and lock, are of this very round."""
        if not self.promise:
            return False
        newest = PromiseRecord.FromString(self.promise)
        return (int(newest.round), newest.parent) == (base.round, base.parent)


@dataclass(frozen=True)
class Lock:
    """Our last vote of this round."""

    attempt: int
    closing: bytes
    state_digest: bytes

    @property
    def message(self) -> LockMessage:
        """As entries and leaves carry it."""
        return LockMessage(attempt=self.attempt, closing=self.closing, state_digest=self.state_digest)


class Waiting(NamedTuple):
    """A frame that came too early, and what it needs."""

    needs: bytes
    sender: PeerId
    data: bytes


@dataclass
class Early:
    """Frames that came before what they need (a proposal, or our own certificate), bounded in number and bytes.

    Each frame is on somebody's account: its sender's, or one that all strangers share. When room lacks, whoever holds
    most gives way, so that nobody's flood pushes out what the others sent.
    """

    most_bytes: int
    accounts: dict[PeerId | None, list[Waiting]] = field(default_factory=dict)
    held: dict[PeerId | None, int] = field(default_factory=dict)
    needs: Counter[bytes] = field(default_factory=Counter)

    def __len__(self) -> int:
        return sum(map(len, self.accounts.values()))

    def _cost(self, data: bytes) -> int:
        return len(data) + self.most_bytes // EARLY_FRAMES

    def add(self, account: PeerId | None, sender: PeerId, data: bytes, needs: bytes = ANYTIME) -> None:
        """Keep a frame if there is room, or another account holds more than this one then would."""
        cost = self._cost(data)
        while sum(self.held.values()) + cost > self.most_bytes:
            heaviest = max(self.held, key=lambda other: self.held[other], default=account)
            if heaviest == account or self.held[heaviest] <= self.held.get(account, 0) + cost:
                return
            last = self.accounts[heaviest].pop()
            self._let_go(heaviest, last)
        self.accounts.setdefault(account, []).append(Waiting(needs, sender, data))
        self.held[account] = self.held.get(account, 0) + cost
        self.needs[needs] += 1

    def _let_go(self, account: PeerId | None, frame: Waiting) -> None:
        self.held[account] -= self._cost(frame.data)
        self.needs[frame.needs] -= 1
        if not self.needs[frame.needs]:
            del self.needs[frame.needs]

    def take(self, come: Set[bytes]) -> list[tuple[PeerId, bytes]]:
        """The frames whose needs have come, each sender's in order; they are kept no more."""
        if come.isdisjoint(self.needs):
            return []
        ready = []
        for account, items in self.accounts.items():
            mine = [item for item in items if item.needs in come]
            if mine:
                self.accounts[account] = [item for item in items if item.needs not in come]
                for item in mine:
                    self._let_go(account, item)
                ready += mine
        return [(item.sender, item.data) for item in ready]

    def clear(self) -> None:
        """Drop all."""
        for held in (self.accounts, self.held, self.needs):
            held.clear()


@dataclass
class Progress:
    """One round, from the moment that its parent is certified."""

    rules: Rules
    me: PeerId
    base: SlotBase
    link: Link
    started: float
    gathering: Gathering = field(default_factory=Gathering)
    ballot: Ballot = field(default_factory=Ballot)
    groups: dict[bytes, Group] = field(default_factory=dict)
    exchanges: dict[bytes, GroupExchange] = field(default_factory=dict)
    shadows: dict[bytes, GlobalState | None] = field(default_factory=dict)  # by Closing digest; None: not finite
    offer: Update | None = None
    offered: bool = False
    attempt: int = -1  # of our last entry
    entered_at: float = 0.0
    quorum_at: float | None = None
    resend_at: float = 0.0
    group: Group | None = None  # whose proposal we act on
    group_at: float = 0.0
    too_early: Group | None = None  # a provisional proposal that our clock does not allow yet
    promised: int = -1
    sealed: int = -1  # after a restart: sign nothing but votes up to this attempt
    barred: bool = False  # we were further before a restart: what we signed in this round is not on record any more
    lock: Lock | None = None
    certificate: Certified | None = None  # checked, but its outputs are still missing
    nonces: dict[int, bytes] = field(default_factory=dict)  # ours, by attempt: revealed after a Closing
    early_nonces: dict[bytes, dict[PeerId, bytes]] = field(default_factory=dict)  # others', by Closing
    audits: dict[bytes, Audit] = field(default_factory=dict)  # by Closing
    barren: set[bytes] = field(default_factory=set)  # Closings whose outputs could not be had
    closings_asked: set[bytes] = field(default_factory=set)  # named by votes, other than ours
    locks_asked: dict[bytes, float] = field(default_factory=dict)  # Closings that we lack, and since when
    late: set[PeerId] = field(default_factory=set)  # entered too late for the group: expected in the next round
    next_want: float = 0.0
    wants: int = 0
    output_wants: int = 0
    future_certificates: int = 0
    come: set[bytes] = field(default_factory=lambda: {ANYTIME})  # what frames may have waited for, since last looked
    lone_jumps: int = 0  # attempts skipped on the word of fewer members than a majority of honest ones needs

    def learn(self, group: Group) -> None:
        """A group of this round is known now."""
        self.groups[group.digest] = group
        self.come.add(group.digest)

    def exchange_for(self, group: Group) -> GroupExchange:
        """The exchange that decides `group`'s outcome, made if need be."""
        group = group.exchange
        known = self.exchanges.get(group.digest)
        if known is None:
            known = self.exchanges[group.digest] = GroupExchange(self.rules, self.base, group, self.me)
            if group.digest not in self.groups:
                self.learn(group)
        return known

    def forget_old(self, newest: bytes) -> None:
        """Keep the last few groups, the newest, and whatever a lock, a certificate or the current group needs."""
        needed = {newest} | {group.exchange.digest for group in (self.group, self.too_early) if group is not None}
        needed |= {group.digest for group in (self.group, self.too_early) if group is not None}
        if self.certificate is not None:
            needed.add(self.certificate.group.digest)
        for digest, exchange in self.exchanges.items():
            if self.lock is not None and exchange.closing is not None and exchange.closing.digest == self.lock.closing:
                needed.add(digest)
        old = sorted((group.attempt, digest) for digest, group in self.groups.items() if digest not in needed)
        for _, digest in old[: max(0, len(self.groups) - KEPT_GROUPS)]:
            self.groups.pop(digest)
            self.exchanges.pop(digest, None)
        closed = {exchange.closing.digest for exchange in self.exchanges.values() if exchange.closing is not None}
        for closing in self.shadows.keys() - closed:  # each is as large as the model
            del self.shadows[closing]
        for closing in self.audits.keys() - closed:
            del self.audits[closing]

    def exchange_closed_by(self, closing: bytes) -> GroupExchange | None:
        """The exchange whose Closing has this digest."""
        for exchange in self.exchanges.values():
            if exchange.closing is not None and exchange.closing.digest == closing:
                return exchange
        return None

    def output_for(self, header: bytes) -> Output | None:
        """A complete output by its header's digest."""
        for exchange in self.exchanges.values():
            output = exchange.output_for(header)
            if output is not None and output.complete:
                return output
        return None

    def floor(self) -> int:
        """The lowest attempt that we may still enter."""
        taken = [self.promised, self.lock.attempt if self.lock else -1, self.group.attempt if self.group else -1]
        return max(taken) + 1

    def restore(self, durable: Durable) -> bool:
        """Take up what an earlier process of ours had promised, offered and voted in this very round.

        Returns whether some of it is of this round or a later one.
        """
        mine, last = (self.base.round, self.base.parent), 0
        if durable.promise:
            promise = PromiseRecord.FromString(durable.promise)
            last = max(last, promise.round)
            if (promise.round, promise.parent) == mine:
                self.promised = self.sealed = int(promise.attempt)
        if durable.update:
            update = UpdateRecord.FromString(durable.update)
            last = max(last, update.round)
            if (update.round, update.parent) == mine:
                self.offer = decode_update(update)
                self.offered = True
        if durable.lock:
            lock = LockRecord.FromString(durable.lock)
            last = max(last, lock.round)
            if (lock.round, lock.parent) == mine:
                self._restore_lock(lock)
        # Alone on the roster there is nobody to ask: the round is ours to make again.
        self.barred = last > self.base.round and self.link.roster.members != (self.me,)
        return last >= self.base.round

    def come_back(self, promised: int) -> None:
        """We were in this very round before, up to the attempt `promised` (-1: we were not), and then on another
        branch. What we signed is forgotten, so we sign nothing here; alone on the roster, nothing up to that attempt.
        """
        if promised < 0:
            return
        if self.link.roster.members == (self.me,):
            self.promised = self.sealed = max(self.promised, promised)
        else:
            self.barred = True

    def _restore_lock(self, record: LockRecord) -> None:
        closing = CLOSING.open(record.closing)
        manifest = self.rules.manifest
        group = check_group(PROPOSAL.open(record.proposal), self.base, self.link.roster, manifest, self.rules.values)
        exchange = self.exchange_for(group)
        exchange.take_closing(closing)
        check_outputs(record.headers, closing, group, self.base)
        for part, header, data in zip(group.parts, record.headers, record.outputs, strict=True):
            exchange.keep(Output.whole(self.rules, part, OUTPUT.open(header), data))
        self.lock = Lock(int(record.attempt), closing.digest, record.state_digest)
        self.promised = max(self.promised, self.lock.attempt)


def encode_update(base: SlotBase, update: Update) -> bytes:
    """The durable form of an update."""
    return UpdateRecord(
        round=base.round,
        parent=base.parent,
        steps=update.steps,
        mechanism=update.mechanism.SerializeToString(deterministic=True),
        values=update.values.astype("<f4").tobytes(),
    ).SerializeToString()


def decode_update(record: UpdateRecord) -> Update:
    """The reverse of `encode_update`."""
    values = np.frombuffer(record.values, dtype="<f4").astype(np.float32)
    return Update(values, int(record.steps), Mechanism.FromString(record.mechanism))


def encode_lock(base: SlotBase, attempt: int, state_digest: bytes, exchange: GroupExchange) -> bytes:
    """The durable form of a vote for `exchange`'s Closing."""
    outputs = exchange.outputs()
    closing = exchange.closing
    return LockRecord(
        round=base.round,
        parent=base.parent,
        attempt=attempt,
        state_digest=state_digest,
        proposal=exchange.group.proposal.raw,
        closing=closing.raw if closing is not None else b"",
        headers=[output.header.raw for output in outputs],
        outputs=[bytes(output.data) for output in outputs],
    ).SerializeToString()


def others(peers: Iterable[PeerId], me: PeerId) -> tuple[PeerId, ...]:
    """`peers` without ourselves, ascending."""
    return tuple(sorted(set(peers) - {me}))
