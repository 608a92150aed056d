"""Promises and votes survive a restart, also when the node comes back some rounds behind; nobody pushes out votes."""

from __future__ import annotations

from typing import Any

from p2pnode.identity import PeerIdentity
from p2pnode.messages import VOTE, SlotBase
from p2pnode.replica.chain import Link
from p2pnode.round.ballot import KEPT_ATTEMPTS, Ballot
from p2pnode.round.machine import RoundMachine
from p2pnode.round.progress import Durable
from p2pnode.wire.journal_pb2 import LockRecord, PromiseRecord
from p2pnode.wire.round_pb2 import RoundEntry, Vote
from tests.support.cluster import Cluster, full_roster, identities


def cluster_with_a_vote(round_number: int) -> tuple[Cluster, PeerIdentity, LockRecord]:
    """A cluster in which one node has voted in `round_number` but does not know of a certificate yet."""
    cluster = Cluster(3)
    for _ in range(20_000):
        cluster.run(0.005)
        for peer, node in sorted(cluster.nodes.items()):
            if "lock" in node.disk:
                lock = LockRecord.FromString(node.disk["lock"])
                if lock.round == cluster.machine(peer).round == round_number:
                    return cluster, node.identity, lock
    raise AssertionError("never voted")


def restarted(cluster: Cluster, identity: PeerIdentity, *, behind: bool) -> RoundMachine:
    node = cluster.nodes[identity.peer_id]
    durable = Durable(node.disk.get("promise"), node.disk.get("update"), node.disk.get("lock"))
    assert node.state is not None
    state = cluster.genesis if behind else node.state
    machine = RoundMachine(cluster.rules, identity, Link.of(state), state, durable, cluster.random.randbytes, 0.0)
    if behind:
        machine.adopt(node.state, Link.of(node.state), 1.0)
    return machine


def test_a_vote_is_remembered_by_a_node_that_comes_back() -> None:
    for behind in (False, True):
        cluster, identity, lock = cluster_with_a_vote(3)
        machine = restarted(cluster, identity, behind=behind)
        assert machine.round == 3
        assert not machine.wants_update  # the noised update is fixed for the round
        machine.tick(2.0)
        entries = [RoundEntry.FromString(signed.payload) for signed in sealed(machine) if signed.type == "round-entry"]
        assert entries
        promised = PromiseRecord.FromString(cluster.nodes[identity.peer_id].disk["promise"])
        for entry in entries:
            assert entry.lock.attempt == lock.attempt
            assert entry.lock.state_digest == lock.state_digest
            assert entry.slot.attempt > max(lock.attempt, promised.attempt)


def sealed(machine: RoundMachine) -> list[Any]:
    from p2pnode.round.frames import Send
    from p2pnode.wire.envelope_pb2 import Envelope

    sends = [effect for effect in machine.drain() if isinstance(effect, Send)]
    return [Envelope.FromString(data[1:]) for send in sends for data in send.frames]


def test_one_voter_cannot_push_out_the_votes_of_others() -> None:
    honest, liar = identities(2)
    roster = full_roster([honest.peer_id, liar.peer_id])
    base = SlotBase(b"\1" * 32, 5, b"\2" * 32)
    ballot = Ballot()

    def vote(who: PeerIdentity, attempt: int) -> None:
        message = Vote(slot=base.at(attempt), closing=b"\3" * 32, state_digest=b"\4" * 32, group=b"\5" * 32)
        ballot.add(VOTE.seal(who, message), base, roster)

    vote(honest, 0)
    for attempt in range(1000, 1000 + 3 * KEPT_ATTEMPTS):
        vote(liar, attempt)
    assert honest.peer_id in ballot.by_attempt[0]
    assert sum(liar.peer_id in votes for votes in ballot.by_attempt.values()) == KEPT_ATTEMPTS
