"""Certificates of a simulated cluster: accepted as they are, and refused by name when anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import PeerFault
from p2pnode.manifest import RosterSection
from p2pnode.messages import CLOSING, PROPOSAL, VOTE
from p2pnode.replica.chain import MAX_RECORD_BYTES, Certified, Link, check_record, decode_record
from p2pnode.wire.chain_pb2 import ChainRecord
from p2pnode.wire.round_pb2 import Vote
from tests.support.cluster import VALUES, Cluster, identities, make_manifest

ROUNDS = 4


@cache
def history() -> tuple[Cluster, list[Certified], list[Link]]:
    """Three founders and a newcomer, four rounds; certificates, and the links before them."""
    cluster = Cluster(4, founders=3)
    cluster.run(60, until_round=ROUNDS)
    records = next(iter(cluster.nodes.values())).committed[:ROUNDS]
    links = [Link.of(cluster.genesis), *(certified.link for certified in records)]
    return cluster, records, links


def check(record: ChainRecord, number: int) -> Certified:
    cluster, _, links = history()
    return check_record(record, links[number - 1], cluster.manifest, VALUES)


def test_what_machines_assemble_is_accepted_as_it_is() -> None:
    cluster, records, links = history()
    assert [certified.link.round for certified in records] == list(range(1, ROUNDS + 1))
    for number, certified in enumerate(records, 1):
        found = check(decode_record(certified.record), number)
        assert found.link == certified.link
        assert found.record == certified.record
        assert found.closing == certified.closing
        assert found.outputs == certified.outputs
        assert found.votes == certified.votes
    states = {node.state.digest for node in cluster.nodes.values() if node.state and node.state.round == ROUNDS}
    assert states <= {links[-1].digest}


def test_all_nodes_certify_one_state_a_round() -> None:
    cluster, _, links = history()
    for link in links[1:]:
        assert cluster.certificates[link.round] == {link.digest}


def record(number: int = 2) -> ChainRecord:
    return decode_record(history()[1][number - 1].record)


def refused(found: ChainRecord, *clauses: str, number: int = 2) -> None:
    with pytest.raises(PeerFault) as caught:
        check(found, number)
    assert caught.value.clause in clauses


Change = Callable[[ChainRecord], object]


def flip_in(raw: bytes) -> bytes:
    return raw[:-1] + bytes((raw[-1] ^ 1,))


def swap_votes(found: ChainRecord) -> None:
    found.votes.reverse()


def promote(found: ChainRecord) -> None:
    for entry in found.roster.entries:
        entry.accepted += 1


def set_header(**fields: object) -> Change:
    def change(found: ChainRecord) -> None:
        for name, value in fields.items():
            setattr(found.header, name, value)

    return change


def set_field(name: str, value: object) -> Change:
    return lambda found: setattr(found, name, value)


def from_round(name: str, number: int) -> Change:
    def change(found: ChainRecord) -> None:
        value = getattr(record(number), name)
        if isinstance(value, bytes):
            setattr(found, name, value)
        else:
            getattr(found, name)[:] = value

    return change


@pytest.mark.parametrize(
    ("change", "clauses"),
    [
        (set_header(run=bytes(32)), ["record-run"]),
        (set_header(round=3), ["record-parent"]),
        (set_header(parent=bytes(32)), ["record-parent"]),
        (set_header(tensors=bytes(32)), ["record-state"]),
        (set_header(roster=bytes(32)), ["record-state"]),
        (set_header(tensors=b"short"), ["record-roster"]),
        (lambda found: found.votes.__delitem__(slice(1, None)), ["record-quorum"]),
        (lambda found: found.votes.__delitem__(slice(None)), ["record-votes"]),
        (swap_votes, ["record-votes"]),
        (lambda found: found.votes.append(found.votes[-1]), ["record-votes"]),
        (lambda found: found.votes.__setitem__(0, flip_in(found.votes[0])), ["envelope-signature"]),
        (from_round("votes", 1), ["record-slot"]),
        (promote, ["record-roster"]),
        (lambda found: found.roster.entries.__delitem__(0), ["record-roster"]),
        (lambda found: found.roster.Clear(), ["record-roster"]),
        (set_field("closing", b""), ["envelope-form"]),
        (from_round("closing", 1), ["record-slot"]),
        (from_round("proposal", 3), ["record-slot"]),
        (lambda found: found.outputs.reverse(), ["closing-outputs"]),
        (lambda found: found.outputs.__delitem__(0), ["closing-outputs"]),
        (from_round("outputs", 1), ["closing-outputs"]),
        (lambda found: found.MergeFrom(ChainRecord(reproposal=found.proposal)), ["record-reproposal"]),
        (lambda found: found.MergeFrom(ChainRecord(reproposal=found.closing)), ["envelope-type"]),
    ],
)
def test_a_changed_record_is_refused_by_name(change: Change, clauses: list[str]) -> None:
    found = record()
    change(found)
    refused(found, *clauses)


def test_a_record_of_another_round_or_run() -> None:
    cluster, _, links = history()
    refused(record(3), "record-parent", number=2)
    other = make_manifest(identities(1)[0].peer_id, name="another")
    with pytest.raises(PeerFault, match="record-run"):
        check_record(record(), links[1], other, VALUES)
    with pytest.raises(PeerFault, match="proposal-partition"):
        check_record(record(), links[1], cluster.manifest, VALUES + 64)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_record_with_any_byte_changed_attests_nothing_else(data: st.DataObject) -> None:
    raw = history()[1][1].record
    at = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[:at] + bytes((raw[at] ^ data.draw(st.integers(1, 255)),)) + raw[at + 1 :]
    try:
        found = check(decode_record(changed), 2)
    except PeerFault:
        return
    assert found.link.digest == history()[2][2].digest
    assert found.link.roster == history()[2][2].roster


def test_votes_of_those_who_have_none() -> None:
    _, _, links = history()
    found = record()
    link = links[1]
    stranger = next(key for key in identities(6) if key.peer_id not in link.roster.members)
    real = VOTE.open(found.votes[0]).message
    mine = VOTE.seal(
        stranger, Vote(slot=real.slot, closing=real.closing, state_digest=real.state_digest, group=real.group)
    )
    votes = [VOTE.open(raw) for raw in found.votes[: link.roster.quorum - 1]] + [mine]
    found.votes[:] = [vote.raw for vote in sorted(votes, key=lambda vote: vote.sender)]
    refused(found, "record-votes")


def test_votes_for_two_states_are_no_quorum() -> None:
    cluster, _, _ = history()
    found = record()
    real = VOTE.open(found.votes[0])
    other = Vote(slot=real.message.slot, closing=real.message.closing, state_digest=bytes(32), group=real.message.group)
    found.votes[0] = VOTE.seal(cluster.nodes[real.sender].identity, other).raw
    refused(found, "record-votes")


def test_a_convener_cannot_leave_a_contributor_out_of_the_count() -> None:
    cluster, _, _ = history()
    found = record()
    closing = CLOSING.open(found.closing)
    message = type(closing.message).FromString(closing.message.SerializeToString())
    del message.counted[0]
    found.closing = CLOSING.seal(cluster.nodes[closing.sender].identity, message).raw
    refused(found, "closing-counted")


def test_a_provisional_mark_stays_in_the_record() -> None:
    manifest = make_manifest(identities(1)[0].peer_id, roster=RosterSection(provisional_after=20, company_wait=0))
    cluster = Cluster(2, manifest=manifest)
    cluster.run(60, until_round=1)
    first, second = sorted(cluster.nodes)
    cluster.crash(second)
    cluster.run(60, until_round=cluster.machine(first).round + 1)
    link = Link.of(cluster.genesis)
    marks = []
    for certified in cluster.nodes[first].committed:
        found = check_record(decode_record(certified.record), link, manifest, VALUES)
        assert PROPOSAL.open(decode_record(certified.record).proposal).message.provisional == found.link.provisional
        marks.append(found.link.provisional)
        link = found.link
    assert marks.count(True) == 1
    assert link.roster.members == (first,)


def test_size_and_form() -> None:
    with pytest.raises(PeerFault, match="record-size"):
        decode_record(bytes(MAX_RECORD_BYTES + 1))
    with pytest.raises(PeerFault, match="record-form"):
        decode_record(b"\xff\xff\xff")
