"""Round machines with one rule removed each, for checks of the check: the model check must find what the rule prevents.

They live here and nowhere else: the product has no switch for any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

from p2pnode.envelope import Signed
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.messages import ENTRY
from p2pnode.replica.chain import check_output
from p2pnode.replica.proposal import Group, PartRange, check_closing
from p2pnode.replica.roster import Roster, quorum_of
from p2pnode.round import attempts
from p2pnode.round.ballot import Ballot
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.output import Output
from p2pnode.wire.round_pb2 import Closing, OutputHeader, RoundEntry, Vote

# name: (the rule that is removed, what must be found then, whether a liar is needed to show it)
MUTANTS: Final = {
    "locks": ("the highest lock is carried over", "fork", False),
    "quorum": ("q of the roster, not of whoever is there", "fork", False),
    "closing": ("the Closing binds one output a part", "fork", True),
    "promises": ("a promise is durable", "equivocation", False),
    "votes": ("only votes of one attempt add up", "fork", False),
}


@contextmanager
def mutant(name: str) -> Iterator[None]:
    """Remove one rule; "" removes none. ("promises" is removed by the simulated disk: see chaos.play.)"""
    with ExitStack() as stack:
        if name == "locks":
            stack.enter_context(patch.object(attempts, "ENTRY", _LocklessEntry()))
        elif name == "quorum":
            stack.enter_context(patch.object(Roster, "quorum", property(lambda self: 1)))
            stack.enter_context(patch.object(Group, "quorum", property(_quorum_of_those_there, _ignore), create=True))
        elif name == "closing":
            stack.enter_context(patch.object(GroupExchange, "take_closing", _take_closing))
            stack.enter_context(patch.object(GroupExchange, "take_header", _take_header))
            stack.enter_context(patch.object(GroupExchange, "missing_outputs", _missing_outputs))
            stack.enter_context(patch.object(GroupExchange, "closed", _closed))
            stack.enter_context(patch.object(GroupExchange, "chosen", _chosen))
        elif name == "votes":
            stack.enter_context(patch.object(Ballot, "winner", _winner_over_attempts))
        elif name not in ("", "promises"):
            raise ValueError(f"no mutant {name!r}")
        yield


class _LocklessEntry:
    def seal(self, identity: PeerIdentity, message: RoundEntry) -> Signed[RoundEntry]:
        message.ClearField("lock")
        return ENTRY.seal(identity, message)


def _ignore(group: Group, value: int) -> None:
    """What the machine works out for itself is not kept."""


def _quorum_of_those_there(group: Group) -> int:
    return quorum_of(sum(peer in group.entries for peer in group.electorate))


def _take_closing(self: GroupExchange, closing: Signed[Closing]) -> None:
    check_closing(closing, self.group, self.base)
    self.closing = self.closing or closing


def _take_header(self: GroupExchange, header: Signed[OutputHeader]) -> Output:
    index = check_output(header, self.group, self.base)
    known = self.outputs_of(self.group.parts[index])
    return known[0] if known else self.keep(Output(self.rules, self.group.parts[index], header))


def _missing_outputs(self: GroupExchange) -> list[bytes]:
    if self.closing is None:
        return []
    named = zip(self.group.parts, self.closing.message.outputs, strict=True)
    return [digest for part, digest in named if not self.has(part)]


def _chosen(self: GroupExchange, part: PartRange) -> Output | None:
    return next(iter(self.outputs_of(part)), None)


def _closed(self: GroupExchange) -> bool:
    return self.closing is not None and self.complete


def _winner_over_attempts(self: Ballot, group: Group) -> tuple[Signed[Vote], ...]:
    tally: dict[Any, dict[PeerId, Signed[Vote]]] = {}
    for _, votes in sorted(self.by_attempt.items()):
        for peer, vote in votes.items():
            if peer in group.electorate:
                tally.setdefault((vote.message.closing, vote.message.state_digest), {})[peer] = vote
    for found in tally.values():
        if len(found) >= group.quorum:
            return tuple(vote for _, vote in sorted(found.items()))
    return ()
