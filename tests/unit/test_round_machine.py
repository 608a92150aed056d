"""The round machine over a simulated network."""

from __future__ import annotations

import numpy as np
import pytest

from p2pnode.replica.chain import Link, check_record, decode_record
from tests.support.cluster import VALUES, Cluster


def assert_one_history(cluster: Cluster) -> None:
    forks = {number: digests for number, digests in cluster.certificates.items() if len(digests) > 1}
    assert not forks
    assert not [node.halted for node in cluster.nodes.values() if node.halted]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_rounds_are_certified_on_the_first_attempt(count: int) -> None:
    cluster = Cluster(count)
    cluster.run(60, until_round=5)
    assert cluster.lowest_round() >= 5
    assert_one_history(cluster)
    for node in cluster.nodes.values():
        assert not node.discarded
        assert not node.rejected
        for certified in node.committed:
            assert len(certified.link.contributors) == count


def test_the_state_is_the_mean_of_the_updates() -> None:
    cluster = Cluster(3)
    cluster.run(60, until_round=1)
    updates = [cluster.update_of(peer, 1) for peer in sorted(cluster.nodes)]
    total = np.zeros(VALUES, dtype=np.float64)
    for update in updates:
        assert update is not None
        total += update.values.astype(np.float64)
    expected = (total / 3).astype(np.float32)
    for node in cluster.nodes.values():
        assert node.state is not None
        np.testing.assert_array_equal(node.state.parameters, expected)


def test_a_stranger_follows_the_chain() -> None:
    cluster = Cluster(4)
    cluster.run(60, until_round=4)
    node = next(iter(cluster.nodes.values()))
    link = Link.of(cluster.genesis)
    for certified in node.committed:
        link = check_record(decode_record(certified.record), link, cluster.manifest, VALUES).link
    assert node.state is not None
    assert link.digest == node.state.digest


def test_newcomers_contribute_first_and_vote_after_probation() -> None:
    cluster = Cluster(4, founders=1)
    cluster.run(200, until_round=8)
    assert_one_history(cluster)
    assert cluster.lowest_round() >= 8
    for node in cluster.nodes.values():
        assert node.state is not None
        assert len(node.state.roster.members) == 4


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_duplicates(seed: int) -> None:
    cluster = Cluster(4, seed=seed)
    cluster.faults.loss, cluster.faults.duplicate = 0.15, 0.1
    cluster.run(120)
    cluster.faults.loss = 0.0
    before = cluster.lowest_round()
    cluster.run(120, until_round=before + 3)
    assert cluster.lowest_round() >= before + 3
    assert_one_history(cluster)


def test_a_crashed_member_is_not_waited_for() -> None:
    cluster = Cluster(4)
    cluster.run(60, until_round=2)
    victim = sorted(cluster.nodes)[1]
    cluster.crash(victim)
    at = cluster.now
    target = cluster.lowest_round() + 5
    cluster.run(60, until_round=target)
    assert cluster.lowest_round() >= target
    assert cluster.now - at < 10
    assert_one_history(cluster)


def test_two_nodes_one_dies_the_other_goes_on_provisionally() -> None:
    from p2pnode.manifest import RosterSection
    from tests.support.cluster import identities, make_manifest

    manifest = make_manifest(identities(1)[0].peer_id, roster=RosterSection(provisional_after=20, company_wait=0))
    cluster = Cluster(2, manifest=manifest)
    cluster.run(60, until_round=2)
    first, second = sorted(cluster.nodes)
    cluster.crash(second)
    cluster.run(15)
    stuck_at = cluster.machine(first).round
    cluster.run(60, until_round=stuck_at + 2)
    committed = cluster.nodes[first].committed
    assert committed[-1].link.round >= stuck_at + 2
    provisional = [c.link.round for c in committed if c.link.provisional]
    assert provisional == [stuck_at]
    assert committed[-1].link.roster.members == (first,)
