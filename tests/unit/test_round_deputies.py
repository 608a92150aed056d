"""A reducer that stalls: its deputy takes the part over in the same attempt, from the same noised rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from p2pnode.identity import PeerId
from p2pnode.messages import OUTPUT
from p2pnode.round.frames import Kind
from p2pnode.wire.round_pb2 import OutputChunk
from tests.support.cluster import Cluster

Twist = Callable[[PeerId, bytes], Iterable[bytes]]


def withhold(cluster: Cluster, liar: PeerId, kinds: set[Kind], fired: list[bytes]) -> Twist:
    """Sends nothing of these kinds that is of its own part."""

    def twist(to: PeerId, data: bytes) -> Iterable[bytes]:
        if data[0] in kinds and (data[0] != Kind.OUTPUT or OUTPUT.open(data[1:]).sender == liar):
            fired.append(data)
            return ()
        return (data,)

    return twist


def signers(cluster: Cluster, number: int) -> set[PeerId]:
    node = next(node for node in cluster.nodes.values() if len(node.committed) >= number)
    return {header.sender for header in node.committed[number - 1].outputs}


@pytest.mark.parametrize(
    "kinds", [{Kind.OUTPUT, Kind.OUTPUT_CHUNK}, {Kind.OUTPUT_CHUNK}], ids=["silent", "stalls in its part"]
)
def test_a_silent_reducers_part_goes_to_its_deputy_in_the_same_attempt(kinds: set[Kind]) -> None:
    cluster = Cluster(4, seed=2)
    cluster.run(20, until_round=1)
    liar = cluster.genesis.roster.members[1]
    fired: list[bytes] = []
    cluster.twist[liar] = withhold(cluster, liar, kinds, fired)
    before = cluster.lowest_round()
    cluster.run(120, until_round=before + 5)
    assert fired, "the fault fired"
    others = [found for found in cluster.nodes[liar].committed[before:] if found.group.proposal.sender != liar]
    assert len(others) >= 3
    for certified in [found for found in others if found.link.attempt == 0][1:]:
        assert liar not in {header.sender for header in certified.outputs}
        deputies = {part.index: part.deputy for part in certified.group.parts if part.reducer == liar}
        assert {certified.outputs[index].sender for index in deputies} == set(deputies.values())
        assert len(certified.link.contributors) == 4, "its own rows still count"
    assert sum(found.link.attempt == 0 for found in others) >= 2
    assert cluster.lowest_round() >= before + 5, "as convener it costs an attempt, and no more"
    assert not cluster.witness.violations


def test_a_reducer_that_dies_in_the_exchange_is_replaced_at_once() -> None:
    cluster = Cluster(4, seed=5)
    cluster.run(20, until_round=1)
    victim = cluster.genesis.roster.members[2]
    fired: list[bytes] = []
    cluster.twist[victim] = withhold(cluster, victim, {Kind.OUTPUT, Kind.OUTPUT_CHUNK}, fired)
    while not fired:
        cluster.run(0.1)
    at = cluster.machine(victim).round
    cluster.crash(victim)
    began = cluster.now
    cluster.run(20, until_round=at)
    rest = [node for peer, node in cluster.nodes.items() if peer != victim]
    assert all(node.committed[at - 1].link.attempt == 0 for node in rest)
    assert cluster.now - began < 2, "nobody waited for a deadline"
    assert victim not in signers(cluster, at)


def test_a_deputy_asks_for_rows_and_gets_what_was_committed_to() -> None:
    cluster = Cluster(3, seed=7)
    cluster.run(20, until_round=1)
    liar = cluster.genesis.roster.members[0]
    fired: list[bytes] = []
    cluster.twist[liar] = withhold(cluster, liar, {Kind.OUTPUT, Kind.OUTPUT_CHUNK}, fired)
    before = cluster.lowest_round()
    cluster.run(30, until_round=before + 2)
    assert fired
    assert all(OutputChunk.FromString(data[1:]).header for data in fired if data[0] == Kind.OUTPUT_CHUNK)
    for node in cluster.nodes.values():
        certified = node.committed[before + 1]
        commitments = {row.commitment for header in certified.outputs for row in header.message.accepted}
        assert len(commitments) == 3, "one commitment a contributor, for reducers and deputies alike"
