"""Deadlines follow what was measured: nobody's silence costs the others a fixed half minute, round after round."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.identity import PeerId
from p2pnode.manifest import DeadlinesSection, LimitsSection, RosterSection
from p2pnode.round.frames import Kind
from p2pnode.round.pace import FLOOR_SECONDS, Estimate, Pace
from tests.support.cluster import Cluster, identities, make_manifest

SECONDS = st.floats(0.001, 1000)


def cluster(count: int, seed: int = 1) -> Cluster:
    """With the deadlines that a manifest has by default."""
    manifest = make_manifest(
        identities(1)[0].peer_id,
        deadlines=DeadlinesSection(),
        roster=RosterSection(provisional_after=600, company_wait=0),
        limits=LimitsSection(chunk_bytes=1024),
    )
    return Cluster(count, seed=seed, manifest=manifest)


@given(samples=st.lists(SECONDS, max_size=30), missed=st.integers(0, 8), transfer=SECONDS, most=SECONDS)
def test_a_deadline_is_never_above_the_manifests(
    samples: list[float], missed: int, transfer: float, most: float
) -> None:
    estimate = Estimate()
    for seconds in samples:
        estimate.saw(seconds)
    for _ in range(missed):
        estimate.missed()
    assert 0 < estimate.deadline(transfer, most) <= most
    if not samples:
        assert estimate.deadline(transfer, most) == most


def test_a_deadline_follows_what_was_seen_and_backs_off() -> None:
    fast, slow = Estimate(), Estimate()
    for _ in range(20):
        fast.saw(0.1)
        slow.saw(12.0)
    assert fast.deadline(0, 600) < FLOOR_SECONDS + 1
    assert slow.deadline(0, 600) > 12
    assert fast.deadline(100.0, 600) > 200, "a slow line is given the time that its bytes take"
    before = fast.deadline(0, 600)
    fast.missed()
    assert fast.deadline(0, 600) == pytest.approx(2 * before)
    fast.saw(0.1)
    assert fast.deadline(0, 600) < before * 1.1


def test_who_stalls_is_waited_for_less_and_less_and_forgiven_at_once() -> None:
    pace, peer = Pace(), identities(1)[0].peer_id
    waited = []
    for number in range(64):
        if peer not in pace.unwaited(number):
            waited.append(number)
            pace.stalled(peer)
    assert 3 <= len(waited) <= 8
    pace.delivered(peer)
    assert not any(peer in pace.unwaited(number) for number in range(64))


def seconds_a_round(runs: Cluster, rounds: int) -> float:
    at, began = runs.lowest_round(), runs.now
    runs.run(600, until_round=at + rounds)
    assert runs.lowest_round() >= at + rounds
    return (runs.now - began) / rounds


def test_a_silent_sender_costs_one_short_deadline_and_is_then_not_waited_for() -> None:
    runs = cluster(5)
    runs.run(30, until_round=4)
    usual = seconds_a_round(runs, 10)
    liar = runs.genesis.roster.members[2]
    fired = []

    def silent(to: PeerId, data: bytes) -> Iterable[bytes]:
        if data[0] in (Kind.CHUNK, Kind.COMMITMENT):
            fired.append(data)
            return ()
        return (data,)

    runs.twist[liar] = silent
    first = seconds_a_round(runs, 5)
    later = seconds_a_round(runs, 30)
    assert fired
    assert first < 10, "not the manifest's 30 seconds"
    assert later < usual + 1.5, (usual, first, later)
    counted = [found.link.contributors for found in runs.nodes[liar].committed[-20:]]
    assert not any(liar in contributors for contributors in counted)
    del runs.twist[liar]
    seconds_a_round(runs, 70)
    assert liar in runs.nodes[liar].committed[-1].link.contributors, "back as soon as it delivers"


def test_a_silent_convener_costs_seconds_not_the_manifests_deadline() -> None:
    runs = cluster(4)
    runs.run(30, until_round=4)
    liar = runs.genesis.roster.members[1]
    fired = []

    def silent(to: PeerId, data: bytes) -> Iterable[bytes]:
        if data[0] == Kind.PROPOSAL:
            fired.append(data)
            return ()
        return (data,)

    runs.twist[liar] = silent
    average = seconds_a_round(runs, 12)
    assert fired
    assert average < 6, average


def test_a_slow_peer_still_counts() -> None:
    """Its rows take seconds, round after round: the others' deadlines follow, up to the manifest's."""
    runs = cluster(4)
    runs.run(30, until_round=3)
    slow = runs.genesis.roster.members[0]
    post = runs.post

    def delayed(sender: PeerId, to: PeerId, data: bytes) -> None:
        runs.faults.delay = (2.0, 4.0) if sender == slow and data[0] == Kind.CHUNK else (0.01, 0.05)
        post(sender, to, data)
        runs.faults.delay = (0.01, 0.05)

    runs.post = delayed  # type: ignore[method-assign]
    seconds_a_round(runs, 40)
    counted = [slow in found.link.contributors for found in runs.nodes[slow].committed[-12:]]
    assert sum(counted) >= 8, counted
