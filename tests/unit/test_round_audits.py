"""Reducers that lie about their part: found before anybody votes, convicted by what they signed, and excluded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import tests.support.cluster as simulation
from p2pnode.identity import PeerId
from p2pnode.manifest import ExchangeSection, LimitsSection
from p2pnode.replica.chain import Certified
from p2pnode.replica.proposal import partition
from p2pnode.round.audit import FREE_BYTES, audited_parts
from p2pnode.round.frames import Kind
from p2pnode.round.reduction import Reduction
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import OutputHeader, Want
from tests.support.cluster import Cluster, identities, make_manifest


@contextmanager
def lying(liar: PeerId, chunks: Callable[[int], set[int]], told: list[int]) -> Iterator[None]:
    """The liar adds one to each value of some chunks (number of chunks -> which) of its part, and signs that."""
    honest = Reduction.aggregate

    def aggregate(self: Reduction) -> tuple[OutputHeader, bytes] | None:
        found = honest(self)
        if found is None or self.part.reducer != liar:
            return found
        header, data = found
        rules, false = self._rules, bytearray(data)
        for index in chunks(rules.chunks(self.part)):
            first, last = rules.chunk_bounds(self.part, index)
            start, stop = rules.encoded_bounds(self.part, index)
            false[start:stop] = rules.codec.encode(rules.codec.decode(data[start:stop], last - first) + np.float32(1))
        told.append(1)
        return header, bytes(false)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reduction, "aggregate", aggregate)
        yield


def false_rounds(cluster: Cluster) -> list[int]:
    """Certified rounds whose averaged update is not the mean of the updates that counted in each part."""
    found = []
    longest = max((node.committed for node in cluster.nodes.values()), key=len)
    before = cluster.genesis.tensors
    for certified in longest:
        state = cluster.witness.state(certified.link.digest)
        assert state is not None
        due = before + _mean(cluster, certified)
        if not np.allclose(state.tensors, due, atol=1e-3):
            found.append(certified.link.round)
        before = state.tensors
    return found


def _mean(cluster: Cluster, certified: Certified) -> np.ndarray:
    mean = np.zeros(cluster.rules.values)
    for part, header in zip(certified.group.parts, certified.outputs, strict=True):
        peers = [PeerId(row.contributor) for row in header.message.accepted]
        rows = [cluster.update_of(peer, certified.link.round) for peer in peers]
        values = [row.values[part.start : part.stop] for row in rows if row is not None]
        mean[part.start : part.stop] = np.mean(values, axis=0)
    return mean


def run_until_excluded(cluster: Cluster, liar: PeerId, seconds: float = 200) -> bool:
    honest = [peer for peer in cluster.nodes if peer != liar]
    end = cluster.now + seconds
    while cluster.now < end:
        cluster.run(1.0)
        if all(liar in cluster.machine(peer).state.roster.excluded for peer in honest):
            return True
    return False


@pytest.mark.parametrize("count", [3, 4, 6])
def test_a_reducer_that_lies_about_its_whole_part_is_caught_before_anything_is_applied(count: int) -> None:
    cluster = Cluster(count, seed=count)
    cluster.run(20, until_round=2)
    liar = cluster.genesis.roster.members[1]
    told: list[int] = []
    with lying(liar, lambda chunks: set(range(chunks)), told):
        assert run_until_excluded(cluster, liar)
        at = max(node.machine.round for peer, node in cluster.nodes.items() if node.machine and peer != liar)
        cluster.run(60, until_round=None)
    assert told, "the fault fired"
    assert false_rounds(cluster) == [], "no lie was ever applied"
    honest = [peer for peer in cluster.nodes if peer != liar]
    assert all(cluster.machine(peer).round > at + 3 for peer in honest), "and the others go on"
    clauses = {e.clause for peer in honest for e in cluster.machine(peer)._c.evidence.values()}
    assert clauses == {"output-aggregate"}
    kinds = {kind for kind, _ in cluster.witness.violations}
    assert kinds <= {"rejected"}, cluster.witness.violations[:3]


def small_chunks(monkeypatch: pytest.MonkeyPatch, values: int, count: int, seed: int) -> Cluster:
    """Parts of several chunks."""
    monkeypatch.setattr(simulation, "VALUES", values)
    return Cluster(count, seed=seed)


def test_a_lie_about_one_chunk_is_caught_at_the_stated_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk of four, one of them audited: a quarter of the lies. Until then the harm is within the value bound."""
    lies = caught = 0
    for seed in range(8):
        cluster = small_chunks(monkeypatch, 4096, 4, seed)
        cluster.run(20, until_round=1)
        liar = cluster.genesis.roster.members[seed % 4]
        told: list[int] = []
        with lying(liar, lambda chunks: {chunks - 1}, told):
            assert run_until_excluded(cluster, liar, 400)
        applied = false_rounds(cluster)
        lies, caught = lies + len(applied) + 1, caught + 1
        largest = max(float(np.abs(node.state.tensors).max()) for node in cluster.nodes.values() if node.state)
        assert largest < cluster.manifest.exchange.max_abs * (cluster.highest_round() + 1)
    assert 0.1 <= caught / lies <= 0.5, (caught, lies)


def test_who_does_not_reveal_is_checked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = small_chunks(monkeypatch, 4096, 4, 3)
    cluster.run(20, until_round=1)
    liar = cluster.genesis.roster.members[2]
    hidden = []

    def withhold(to: PeerId, data: bytes) -> Iterable[bytes]:
        if data[0] == Kind.REVEAL:
            hidden.append(data)
            return ()
        return (data,)

    cluster.twist[liar] = withhold
    told: list[int] = []
    with lying(liar, lambda chunks: {chunks - 1}, told):
        assert run_until_excluded(cluster, liar)
    assert hidden and told
    assert false_rounds(cluster) == [], "the one false chunk was found the first time"


def test_a_contributor_that_shows_no_auditor_its_row_stops_nothing() -> None:
    cluster = Cluster(4, seed=9)
    cluster.run(20, until_round=2)
    silent = cluster.genesis.roster.members[0]
    refused = []

    def mute(to: PeerId, data: bytes) -> Iterable[bytes]:
        if data[0] == Kind.AUDIT_ROW:
            refused.append(data)
            return ()
        return (data,)

    cluster.twist[silent] = mute
    before = cluster.lowest_round()
    cluster.run(120, until_round=before + 6)
    assert refused
    assert cluster.lowest_round() >= before + 6
    assert not cluster.witness.violations
    # Of other parts the signer shows it instead; its own part nobody can check, so it is left out for a while.
    assert any(silent in cluster.machine(peer)._c.suspects for peer in cluster.nodes if peer != silent)
    assert not any(cluster.machine(peer)._c.evidence for peer in cluster.nodes), "silence convicts nobody"
    attempts = [found.link.attempt for found in cluster.nodes[silent].committed[before:]]
    assert sum(attempts) <= 3


def test_an_auditor_that_says_nothing_is_done_without() -> None:
    cluster = Cluster(4, seed=10)
    cluster.run(20, until_round=2)
    silent = cluster.genesis.roster.members[3]
    held = []

    def mute(to: PeerId, data: bytes) -> Iterable[bytes]:
        if data[0] == Kind.AUDITED:
            held.append(data)
            return ()
        return (data,)

    cluster.twist[silent] = mute
    before = cluster.lowest_round()
    cluster.run(120, until_round=before + 6)
    assert held
    assert cluster.lowest_round() >= before + 6
    assert not cluster.witness.violations


def test_a_row_is_shown_to_members_only_and_only_after_the_closing() -> None:
    cluster = Cluster(4, seed=12, founders=3)
    shown: list[tuple[PeerId, PeerId]] = []
    stranger = cluster.genesis.roster.members[0]
    deliver = cluster.deliver

    def watch(sender: PeerId, to: PeerId, data: bytes) -> None:
        if data[0] == Kind.AUDIT_ROW:
            shown.append((sender, to))
        deliver(sender, to, data)

    cluster.deliver = watch  # type: ignore[method-assign]
    cluster.run(3)
    group = next(iter(cluster.machine(stranger)._c.round.groups), bytes(32))
    shown.clear()
    asked = Want(kind=Want.AUDIT, digest=group, part=0, index=0).SerializeToString()
    outsider = identities(9)[8].peer_id
    cluster.machine(stranger).receive(outsider, bytes((Kind.WANT,)) + asked, cluster.now)
    cluster._carry_out(stranger)
    assert not [pair for pair in shown if pair[1] == outsider]


@pytest.mark.parametrize(
    ("values", "contributors"), [(25_000_000, 16), (5_000_000, 16), (700_000, 16), (25_000_000, 64)]
)
def test_audits_cost_at_most_two_percent_or_a_mebibyte(values: int, contributors: int) -> None:
    """Of what the exchange moves, for each contributor (the framing of chunks left out)."""
    peers = sorted(key.peer_id for key in identities(16))
    manifest = make_manifest(peers[0], limits=LimitsSection(), exchange=ExchangeSection())
    rules = Rules(manifest, values)
    parts = partition(values, dict.fromkeys(peers, 10_000_000))
    count = audited_parts(rules, parts, contributors)
    assert 1 <= count <= len(parts)
    chunk = min(manifest.limits.chunk_bytes, max(rules.encoded_size(part) for part in parts))
    for_each = count * chunk * contributors / contributors
    moved = 2 * rules.encoded_bytes
    assert for_each <= max(0.02 * moved, FREE_BYTES)
    if values == 25_000_000 and contributors == 16:
        assert count == len(parts), "a large model is checked in all parts"
        assert for_each / moved < 0.02
