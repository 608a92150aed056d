"""Evidence: two signatures for one slot convict, travel, and exclude for all in the same round; it frames nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2pnode.cli.evidence import evidence as evidence_command
from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.messages import (
    CLOSING,
    COMMITMENT,
    ENTRY,
    OUTPUT,
    PROPOSAL,
    VOTE,
    Equivocation,
    MessageType,
    SlotBase,
)
from p2pnode.round.evidence import Evidence, open_file, to_file, two_signatures, verify
from p2pnode.round.frames import Kind, frame
from p2pnode.wire.evidence_pb2 import Misbehaviour, TwoSignatures
from p2pnode.wire.round_pb2 import Closing, Commitment, OutputHeader, Proposal, RoundEntry, Vote
from tests.support.cluster import Cluster, identities, make_manifest

KEYS = identities(3)
MANIFEST = make_manifest(KEYS[0].peer_id)
BASE = SlotBase(MANIFEST.digest, 7, b"\1" * 32)

CHANGES: list[tuple[MessageType[Any], Callable[..., Any], str]] = [
    (ENTRY, lambda n, **slot: RoundEntry(slot=slot["slot"], bandwidth=n), "entry-equivocation"),
    (PROPOSAL, lambda n, **slot: Proposal(slot=slot["slot"], vote_ms=n), "proposal-equivocation"),
    (COMMITMENT, lambda n, **slot: Commitment(slot=slot["slot"], steps=n), "commitment-equivocation"),
    (OUTPUT, lambda n, **slot: OutputHeader(slot=slot["slot"], weight=n), "output-equivocation"),
    (CLOSING, lambda n, **slot: Closing(slot=slot["slot"], group=bytes((n,))), "closing-equivocation"),
    (VOTE, lambda n, **slot: Vote(slot=slot["slot"], closing=bytes((n,))), "vote-equivocation"),
]


def proof(first: Any, second: Any) -> bytes:
    return two_signatures(Equivocation("x", first, second))


@pytest.mark.parametrize(("kind", "make", "clause"), CHANGES, ids=[kind.name for kind, _, _ in CHANGES])
def test_two_signatures_for_one_slot_convict_their_signer(
    kind: MessageType[Any], make: Callable[..., Any], clause: str
) -> None:
    one, other = (kind.seal(KEYS[0], make(n, slot=BASE.at(3))) for n in (1, 2))
    raw = proof(one, other)
    assert raw == proof(other, one), "the same evidence, whoever makes it"
    found = verify(raw, MANIFEST)
    assert (found.accused, found.clause, found.round) == (KEYS[0].peer_id, clause, 7)


def test_what_an_honest_peer_signs_never_convicts_it() -> None:
    vote = VOTE.seal(KEYS[0], Vote(slot=BASE.at(3), closing=b"\1"))
    elsewhere = SlotBase(BASE.run, 7, b"\2" * 32)
    harmless = [
        (VOTE.seal(KEYS[0], Vote(slot=BASE.at(3), closing=b"\1")), "evidence-form"),  # the same bytes
        (VOTE.seal(KEYS[0], Vote(slot=BASE.at(4), closing=b"\2")), "evidence-slot"),  # another attempt
        (VOTE.seal(KEYS[0], Vote(slot=elsewhere.at(3), closing=b"\2")), "evidence-slot"),  # another branch
        (VOTE.seal(KEYS[1], Vote(slot=BASE.at(3), closing=b"\2")), "evidence-slot"),  # another peer
    ]
    for other, clause in harmless:
        with pytest.raises(PeerFault) as fault:
            verify(proof(vote, other), MANIFEST)
        assert fault.value.clause == clause
    parts = [OUTPUT.seal(KEYS[0], OutputHeader(slot=BASE.at(3), part=part)) for part in (0, 1)]
    with pytest.raises(PeerFault, match="evidence-slot"):
        verify(proof(*parts), MANIFEST)
    foreign = SlotBase(b"\3" * 32, 7, BASE.parent)
    strangers = [VOTE.seal(KEYS[0], Vote(slot=foreign.at(3), closing=bytes((n,)))) for n in (1, 2)]
    with pytest.raises(PeerFault, match="evidence-slot"):
        verify(proof(*strangers), MANIFEST)


def test_evidence_that_was_tampered_with_convicts_nobody() -> None:
    pair = [VOTE.seal(KEYS[0], Vote(slot=BASE.at(3), closing=bytes((n,)))) for n in (1, 2)]
    raw = bytearray(proof(*pair))
    convicted = 0
    for at in range(len(raw)):
        changed = bytes(raw[:at]) + bytes((raw[at] ^ 1,)) + bytes(raw[at + 1 :])
        try:
            verify(changed, MANIFEST)
            convicted += 1
        except PeerFault:
            pass
    assert not convicted
    descending = Misbehaviour(two=TwoSignatures(first=max(p.raw for p in pair), second=min(p.raw for p in pair)))
    for bad in (b"", b"\xff", bytes(10_000_000), descending.SerializeToString()):
        with pytest.raises(PeerFault):
            verify(bad, MANIFEST)


def test_a_file_convicts_whoever_reads_it(tmp_path: Path) -> None:
    pair = [VOTE.seal(KEYS[0], Vote(slot=BASE.at(3), closing=bytes((n,)))) for n in (1, 2)]
    found = verify(proof(*pair), MANIFEST)
    file = tmp_path / "x.evidence"
    file.write_bytes(to_file(found, MANIFEST))
    assert open_file(file.read_bytes()) == (MANIFEST, found)
    shown = CliRunner().invoke(evidence_command, ["verify", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "vote-equivocation, in round 7" in shown.output and str(KEYS[0].peer_id) in shown.output
    for damaged in (b"", b"\xff", file.read_bytes()[:-1], bytes(20 << 20)):
        with pytest.raises(PeerFault):
            open_file(damaged)


def excluded(cluster: Cluster) -> dict[PeerId, list[int]]:
    """By node: the rounds in whose state somebody is newly excluded."""
    found: dict[PeerId, list[int]] = {}
    for peer, node in cluster.nodes.items():
        before = 0
        for certified in node.committed:
            count = len(certified.link.roster.excluded)
            if count > before:
                found.setdefault(peer, []).append(certified.link.round)
            before = count
    return found


def two_entries(cluster: Cluster, liar: PeerId, fired: list[int]) -> Callable[[PeerId, bytes], Iterable[bytes]]:
    """Signs another entry for half of the others."""
    deceived = set(sorted(set(cluster.nodes) - {liar})[::2])

    def twist(to: PeerId, data: bytes) -> Iterable[bytes]:
        if data[0] != Kind.ENTRY or to not in deceived:
            return (data,)
        fired.append(1)
        message = RoundEntry()
        message.CopyFrom(ENTRY.open(data[1:]).message)
        message.bandwidth += 1
        return (frame(Kind.ENTRY, ENTRY.seal(cluster.nodes[liar].identity, message).raw),)

    return twist


def test_an_equivocating_member_is_excluded_by_all_in_the_same_round() -> None:
    cluster = Cluster(5, seed=4)
    cluster.run(20, until_round=2)
    liar = cluster.genesis.roster.members[3]
    cluster.witness.liars.add(liar)
    fired: list[int] = []
    cluster.twist[liar] = two_entries(cluster, liar, fired)
    honest = [peer for peer in cluster.nodes if peer != liar]
    for _ in range(60):
        cluster.run(1.0)
        if all(cluster.machine(peer).state.roster.excluded for peer in honest):
            break
    rounds = {peer: numbers for peer, numbers in excluded(cluster).items() if peer != liar}
    assert fired, "the fault fired"
    assert len(rounds) == 4 and len({tuple(numbers) for numbers in rounds.values()}) == 1, rounds
    at = min(cluster.machine(peer).round for peer in honest)
    cluster.run(60, until_round=None)
    for peer in honest:
        state = cluster.machine(peer).state
        assert state.round > at + 3, "the others go on"
        assert state.roster.excluded == (liar,) and liar not in state.roster.known
    assert not any(kind == "fork" for kind, _ in cluster.witness.violations)
    clauses = {clause for clause in cluster.witness.clauses if "entry-excluded" in clause}
    assert clauses, "and it is refused by name"


def test_an_accusation_without_evidence_excludes_nobody_and_stops_nobody() -> None:
    cluster = Cluster(4, seed=6)
    cluster.run(20, until_round=2)
    liar, victim = cluster.genesis.roster.members[:2]
    cluster.witness.liars.add(liar)
    fired = []

    def accuse(to: PeerId, data: bytes) -> Iterable[bytes]:
        if data[0] != Kind.ENTRY:
            return (data,)
        fired.append(1)
        message = RoundEntry()
        message.CopyFrom(ENTRY.open(data[1:]).message)
        message.evidence.add(digest=b"\7" * 32, accused=victim.key)
        return (frame(Kind.ENTRY, ENTRY.seal(cluster.nodes[liar].identity, message).raw),)

    cluster.twist[liar] = accuse
    at = cluster.lowest_round()
    honest = [peer for peer in cluster.nodes if peer != liar]
    cluster.run(90)
    assert fired
    assert min(cluster.machine(peer).round for peer in honest) > at + 5
    # (Its own machine signs the entry without the accusation as well, so as a convener the liar convicts itself.)
    assert all(set(cluster.machine(peer).state.roster.excluded) <= {liar} for peer in honest)
    assert all(victim in cluster.machine(peer).state.roster.members for peer in honest)


def test_a_restored_backup_frames_nobody() -> None:
    """The disk of a node is put back to an older round: it must not sign what it signed since a second time."""
    cluster = Cluster(4, seed=8)
    cluster.run(20, until_round=2)
    victim = cluster.genesis.roster.members[1]
    node = cluster.nodes[victim]
    backup = dict(node.disk)
    others = [peer for peer in cluster.nodes if peer != victim]
    cluster.run(20, until_round=5)
    cluster.faults.drop = frozenset({Kind.CLOSING})  # the round stays in progress, and the victim has signed in it
    cluster.run(1.5)
    assert node.machine is not None and node.machine.attempt >= 0
    cluster.crash(victim)
    node.disk.clear()
    node.disk.update(backup)
    cluster.start(victim)
    cluster.faults.drop = frozenset()
    cluster.run(90, until_round=cluster.highest_round() + 3)
    assert not cluster.witness.violations, cluster.witness.violations
    assert not any(cluster.machine(peer)._c.evidence for peer in others)
    assert cluster.lowest_round() >= 6


def test_evidence_holds_what_was_signed_and_nothing_else() -> None:
    pair = [ENTRY.seal(KEYS[2], RoundEntry(slot=BASE.at(0), bandwidth=n)) for n in (1, 2)]
    found = verify(proof(*pair), MANIFEST)
    assert isinstance(found, Evidence)
    assert len(found.raw) < sum(len(one.raw) for one in pair) + 32
    assert len(found.digest) == 32
