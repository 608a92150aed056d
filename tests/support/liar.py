"""A roster member that signs two outputs for its part, and votes for whatever it is told: at most one in a cluster.

It shows half of the others one output and the other half another; to a machine that takes any signed output header,
both look right. It votes twice as well, for both results, so that each half may believe that it has a quorum. But it
signs only one Closing, votes for that alone, and keeps its promises: a convener that signs two Closings, or a voter
that votes below what it promised, can split a round, as in any protocol whose quorums are majorities.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.messages import OUTPUT, VOTE
from p2pnode.round.frames import Kind, frame
from p2pnode.round.output import Output, output_tree
from p2pnode.wire.round_pb2 import OutputChunk, OutputHeader, Vote
from tests.support.cluster import Cluster


class EquivocatingReducer:
    """Takes `me`'s sending over; the machine behind it is an honest one."""

    def __init__(self, cluster: Cluster, me: PeerId) -> None:
        self._cluster, self._me = cluster, me
        others = [peer for peer in sorted(cluster.nodes) if peer != me]
        self._deceived = frozenset(others[: (len(others) + 1) // 2])
        self._hidden: set[bytes] = set()  # digests of headers that the deceived don't get
        self._heard: list[Vote] = []  # votes of the deceived that we have not echoed
        self.lies = 0
        cluster.witness.liars.add(me)
        cluster.twist[me] = self._send
        cluster.overhear[me] = self._hear

    def _send(self, to: PeerId, data: bytes) -> Iterable[bytes]:
        if to not in self._deceived:
            return (data,)
        if data[0] == Kind.VOTE:
            return ()
        if data[0] == Kind.OUTPUT_CHUNK and OutputChunk.FromString(data[1:]).header in self._hidden:
            return ()
        if data[0] == Kind.OUTPUT:
            return self._other_output(data) or (data,)
        return (data,)

    def _other_output(self, data: bytes) -> tuple[bytes, ...]:
        cluster, header = self._cluster, OUTPUT.open(data[1:])
        machine = cluster.nodes[self._me].machine
        if header.sender != self._me or machine is None:
            return ()
        exchange = machine._c.round.exchanges.get(header.message.group)
        output = exchange.output_for(header.digest) if exchange is not None else None
        if exchange is None or output is None or not output.complete:
            return ()
        rules, part = cluster.rules, output.part
        lie = rules.encode(part, rules.decode(part, output.data) + 1)
        message = OutputHeader()
        message.CopyFrom(header.message)
        message.root = output_tree(rules, part, lie).root
        sealed = OUTPUT.seal(cluster.nodes[self._me].identity, message)
        self._hidden.add(header.digest)
        self.lies += 1
        return tuple(Output.whole(rules, part, sealed, lie).frames())

    def _hear(self, sender: PeerId, data: bytes) -> None:
        if data[0] == Kind.VOTE and sender in self._deceived:
            try:
                heard = VOTE.open(data[1:])
            except PeerFault:
                return
            if heard.sender == sender:
                self._heard = [*self._heard[-20:], heard.message]
        self._echo()

    def _echo(self) -> None:
        machine = self._cluster.nodes[self._me].machine
        lock = machine._c.round.lock if machine is not None else None
        if lock is None:
            return
        for heard in list(self._heard):
            if (heard.slot.attempt, heard.closing) == (lock.attempt, lock.closing):
                self._heard.remove(heard)
                message = Vote()
                message.CopyFrom(heard)
                vote = VOTE.seal(self._cluster.nodes[self._me].identity, message)
                for to in self._deceived:
                    self._cluster.deliver(self._me, to, frame(Kind.VOTE, vote.raw))
