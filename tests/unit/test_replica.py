"""The replicated state: trees, partition, roster, state digest, outer step; and the fork choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ArithmeticMismatch
from p2pnode.identity import PeerId
from p2pnode.manifest import LimitsSection, OuterSection, RosterSection, RunManifest
from p2pnode.messages import SlotBase
from p2pnode.replica import outer as outer_module
from p2pnode.replica.branches import prefer
from p2pnode.replica.chain import Link
from p2pnode.replica.outer import buffers, outer_step, self_test
from p2pnode.replica.proposal import UNIT_VALUES, convener_of, newcomer_order, partition
from p2pnode.replica.roster import MAX_ENTRIES, CommittedRound, Roster, RosterEntry, quorum_of, window_of
from p2pnode.replica.state import (
    STATE_CHUNK_BYTES,
    GlobalState,
    chunk_belongs,
    chunk_count,
    state_digest,
)
from p2pnode.replica.tree import Tree, leaf_hash, proves
from p2pnode.wire.chain_pb2 import StateHeader
from tests.support.cluster import full_roster, identities, make_manifest

PEERS = sorted(identity.peer_id for identity in identities(12))
A, B, C, D = PEERS[:4]

# --- trees

leaf_lists = st.integers(1, 70).map(lambda count: [leaf_hash(b"t", 0, i, bytes((i,))) for i in range(count)])


@given(leaf_lists, st.data())
def test_every_leaf_is_proven_and_only_in_its_place(leaves: list[bytes], data: st.DataObject) -> None:
    tree, count = Tree(leaves), len(leaves)
    index = data.draw(st.integers(0, count - 1))
    proof = tree.proof(index)
    assert proves(tree.root, leaves[index], index, count, proof)
    other = data.draw(st.integers(-2, count + 2).filter(lambda number: number != index))
    assert not proves(tree.root, leaves[index], other, count, proof)
    if 0 <= other < count:
        assert not proves(tree.root, leaves[other], index, count, proof)
    assert not proves(tree.root, leaves[index], index, count, [*proof, bytes(32)])
    if proof:
        assert not proves(tree.root, leaves[index], index, count, proof[:-1])
        at = data.draw(st.integers(0, len(proof) - 1))
        changed = [*proof[:at], bytes((proof[at][0] ^ 1,)) + proof[at][1:], *proof[at + 1 :]]
        assert not proves(tree.root, leaves[index], index, count, changed)
        short = [*proof[:at], proof[at][:-1], *proof[at + 1 :]]
        assert not proves(tree.root, leaves[index], index, count, short)


@given(st.integers(2, 70), st.data())
def test_a_count_of_another_shape_proves_nothing(count: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(b"t", 0, i, b"") for i in range(count)]
    index = data.draw(st.integers(0, count - 1))
    proof = Tree(leaves).proof(index)
    other = data.draw(st.integers(index + 1, 200))
    same_path = path(index, other) == path(index, count)
    assert proves(Tree(leaves).root, leaves[index], index, other, proof) == same_path


def path(index: int, count: int) -> list[str]:
    """The sides on which siblings stand, leaf upwards: all that a proof's shape depends on."""
    sides = []
    while count > 1:
        if index ^ 1 < count:
            sides.append("left" if index % 2 else "right")
        index, count = index // 2, (count + 1) // 2
    return sides


def test_leaves_bind_purpose_part_and_index() -> None:
    leaves = {
        leaf_hash(b"row", 0, 0, b"x"),
        leaf_hash(b"output", 0, 0, b"x"),
        leaf_hash(b"row", 1, 0, b"x"),
        leaf_hash(b"row", 0, 1, b"x"),
        leaf_hash(b"row", 0, 0, b"xx"),
        leaf_hash(b"ro", 0, 0, b"wx"),
    }
    assert len(leaves) == 6


def test_a_node_is_no_leaf() -> None:
    leaves = [leaf_hash(b"t", 0, i, b"") for i in range(4)]
    tree, pair = Tree(leaves), Tree(leaves[:2]).root
    assert not proves(tree.root, pair, 0, 4, [Tree(leaves[2:]).root])


def test_no_empty_tree() -> None:
    with pytest.raises(ValueError, match="at least one leaf"):
        Tree([])


# --- partition and order

bandwidth_maps = st.dictionaries(st.sampled_from(PEERS), st.integers(0, 2**45), min_size=1, max_size=12)


@settings(max_examples=300)
@given(st.integers(1, 3_000_000), bandwidth_maps, st.randoms())
def test_parts_cover_all_and_nobody_has_too_much(values: int, bandwidths: dict[PeerId, int], random: object) -> None:
    parts = partition(values, bandwidths)
    assert parts[0].start == 0
    assert parts[-1].stop == values
    assert all(one.stop == two.start for one, two in itertools.pairwise(parts))
    assert [part.index for part in parts] == list(range(len(parts)))
    assert [part.reducer for part in parts] == sorted({part.reducer for part in parts})
    assert all(part.start % UNIT_VALUES == 0 and len(part) > 0 for part in parts)
    units, count = -(-values // UNIT_VALUES), len(bandwidths)
    cap = max(1, -(-2 * units // count))  # 2/n of the whole, in whole units, rounded up
    assert all(len(part) <= cap * UNIT_VALUES for part in parts)
    shuffled = list(bandwidths.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert partition(values, dict(shuffled)) == parts


@given(st.integers(6400, 1_000_000), st.integers(1, 12))
def test_equal_bandwidths_give_equal_parts(values: int, count: int) -> None:
    sizes = [len(part) for part in partition(values, dict.fromkeys(PEERS[:count], 7))]
    assert len(sizes) == count
    assert max(sizes) - min(sizes) < 2 * UNIT_VALUES


def test_more_bandwidth_more_values() -> None:
    parts = partition(640_000, {A: 1_000_000, B: 2_000_000, C: 3_000_000, D: 2_000_000})
    assert [len(part) for part in parts] == [80_000, 160_000, 240_000, 160_000]


@given(st.integers(1, 12), st.integers(1, 10**9), st.binary(min_size=32, max_size=32))
def test_conveners_take_turns(count: int, number: int, parent: bytes) -> None:
    base, roster = SlotBase(b"\1" * 32, number, parent), full_roster(PEERS[:count])
    turns = [convener_of(roster, base, attempt) for attempt in range(2 * count)]
    assert sorted(turns[:count]) == list(roster.members)
    assert turns[count:] == turns[:count]
    assert len({newcomer_order(base, peer) for peer in PEERS}) == len(PEERS)


# --- roster


def run(*, voters: int = 32, **rules: object) -> RunManifest:
    limits = LimitsSection(voters=voters, chunk_bytes=1024)
    return make_manifest(A, roster=RosterSection.model_validate(rules), limits=limits)


def after(
    roster: Roster,
    number: int,
    entrants: list[PeerId],
    manifest: RunManifest,
    *,
    counted: list[PeerId] | None = None,
    leaving: tuple[PeerId, ...] = (),
    provisional: bool = False,
) -> Roster:
    committed = CommittedRound(number, entrants, entrants if counted is None else counted, leaving, provisional)
    return roster.after(committed, manifest)


def test_genesis() -> None:
    assert Roster.genesis(run(), B).members == (B,)
    anchored = run(anchors=(C.text, A.text))
    assert Roster.genesis(anchored, B).members == tuple(sorted((A, C)))


@pytest.mark.parametrize("probation", [0, 1, 2, 5])
def test_probation(probation: int) -> None:
    manifest, roster = run(probation=probation), full_roster([A])
    for number in range(1, max(1, probation)):
        roster = after(roster, number, [A, B], manifest)
        assert B not in roster
        assert B in roster.known
    roster = after(roster, 10, [A, B], manifest)
    assert B in roster


def test_only_what_counted_brings_a_vote_nearer() -> None:
    manifest, roster = run(probation=2), full_roster([A])
    for number in range(1, 9):
        roster = after(roster, number, [A, B], manifest, counted=[A])
    assert B not in roster
    assert roster.entry(B) == RosterEntry(B, 0, 8, False)


@given(st.integers(1, 32), st.integers(2, 100))
def test_window(members: int, window: int) -> None:
    assert window_of(members, window) == min(window, 2 * members + 2)


@pytest.mark.parametrize(("count", "window"), [(2, 6), (3, 8), (7, 16), (12, 16)])
def test_who_is_not_seen_leaves(count: int, window: int) -> None:
    manifest, roster = run(), full_roster(PEERS[:count])
    dead, rest = PEERS[0], PEERS[1:count]
    for number in range(1, window):
        roster = after(roster, number, list(rest), manifest)
        assert dead in roster
    roster = after(roster, window, list(rest), manifest)
    assert dead not in roster.known
    assert roster.members == tuple(rest)


def test_being_seen_once_begins_the_window_anew() -> None:
    manifest, roster = run(window=3), full_roster([A, B, C])
    for number, entrants in enumerate(([A, B], [A, B], [A, B, C], [A, B], [A, B]), 1):
        roster = after(roster, number, entrants, manifest, counted=[A])
        assert C in roster
    assert C not in after(roster, 6, [A, B], manifest)


def test_a_leave_takes_effect_at_once_and_a_return_starts_anew() -> None:
    manifest, roster = run(), full_roster([A, B, C])
    roster = after(roster, 1, [A, B, C], manifest, leaving=(B,))
    assert roster.members == tuple(sorted((A, C)))
    assert B not in roster.known
    roster = after(roster, 2, [A, B, C], manifest)
    assert roster.entry(B) == RosterEntry(B, 1, 2, False)


def test_all_leave_at_once() -> None:
    manifest, roster = run(), full_roster([A, B])
    left = after(roster, 1, [A, B], manifest, leaving=(A, B))
    assert left.members == (A, B)
    assert left.entries == roster.entries


def test_a_provisional_round_leaves_the_members_that_it_lists() -> None:
    manifest, roster = run(), full_roster([A, B, C, D])
    found = after(roster, 1, [A, C], manifest, provisional=True)
    assert found.members == (A, C)
    assert found.quorum == 2


def test_anchors_are_the_roster_always() -> None:
    manifest = run(anchors=(A.text, B.text), probation=0, window=2)
    roster = Roster.genesis(manifest, A)
    for number in range(1, 30):
        roster = after(roster, number, [A, C], manifest, leaving=(A,), provisional=number % 2 == 0)
        assert roster.members == tuple(sorted((A, B)))
    for number in range(30, 40):
        roster = after(roster, number, [A], manifest)
    assert C not in roster.known


def test_room_for_voters() -> None:
    manifest, roster = run(voters=2, probation=1), full_roster([A])
    roster = after(roster, 1, [A, B, C], manifest, counted=[])
    roster = after(roster, 2, [A, B, C], manifest, counted=[C])
    assert roster.members == (A, C)
    roster = after(roster, 3, [A, B, C], manifest)
    assert roster.members == (A, C)
    roster = after(roster, 4, [A, B], manifest, leaving=(C,))
    assert roster.members == (A, B)


histories = st.lists(
    st.tuples(
        st.sets(st.sampled_from(PEERS), min_size=1),
        st.sets(st.sampled_from(PEERS)),
        st.sets(st.sampled_from(PEERS), max_size=3),
        st.booleans(),
    ),
    max_size=20,
)


@settings(max_examples=100, deadline=None)
@given(histories, st.integers(1, 6), st.integers(0, 3), st.integers(2, 6), st.integers(1, 4))
def test_whatever_is_committed_a_roster_is_a_roster(
    history: list[tuple[set[PeerId], set[PeerId], set[PeerId], bool]],
    founders: int,
    probation: int,
    window: int,
    voters: int,
) -> None:
    manifest = run(voters=max(voters, founders), probation=probation, window=window)
    roster = full_roster(PEERS[:founders])
    for number, (entrants, counted, leaving, provisional) in enumerate(history, 1):
        listed = set(roster.members) & entrants
        if len(listed) < (1 if provisional else roster.quorum):
            continue  # such a proposal is not valid
        args = (sorted(entrants), sorted(counted & entrants), sorted(leaving & (roster.known | entrants)))
        followed = roster.after(CommittedRound(number, *args, provisional), manifest)
        again = roster.after(CommittedRound(number, *(list(reversed(a)) for a in args), provisional), manifest)
        assert followed == again
        roster = followed
        assert roster.members
        assert len(roster.members) <= manifest.limits.voters
        assert list(roster.entries) == sorted(roster.entries, key=lambda entry: entry.peer)
        assert Roster.from_message(roster.to_message()) == roster


def test_a_roster_is_bounded() -> None:
    manifest = run(voters=2)
    crowd = [PeerId(bytes((number // 256, number % 256)) + bytes(30)) for number in range(MAX_ENTRIES + 50)]
    roster = after(full_roster([A]), 1, [A, *crowd], manifest, counted=[A, crowd[-1]])
    assert len(roster.entries) == MAX_ENTRIES
    assert A in roster
    assert crowd[-1] in roster.known


@given(st.integers(1, 64))
def test_two_quorums_share_a_member(members: int) -> None:
    assert members < 2 * quorum_of(members) <= members + 2


def test_malformed_rosters() -> None:
    good = full_roster([A, B]).to_message()
    for change in ("order", "double", "short", "nobody", "empty"):
        message = type(good).FromString(good.SerializeToString())
        if change == "order":
            message.entries.reverse()
        elif change == "double":
            message.entries.add().CopyFrom(message.entries[1])
        elif change == "short":
            message.entries[1].peer = message.entries[1].peer[:31]
        elif change == "nobody":
            for entry in message.entries:
                entry.member = False
        else:
            message.Clear()
        with pytest.raises(ValueError, match="roster"):
            Roster.from_message(message)


# --- state


def state(**changes: object) -> GlobalState:
    fields: dict[str, object] = {
        "run": b"\1" * 32,
        "round": 3,
        "parent": b"\2" * 32,
        "roster": full_roster([A, B]),
        "tensors": np.arange(100, dtype=np.float32),
        "parameter_count": 50,
    }
    return GlobalState(**(fields | changes))  # type: ignore[arg-type]


def test_the_digest_binds_everything() -> None:
    tensors = np.arange(100, dtype=np.float32)
    tensors[99] = -0.0
    others = [
        state(),
        state(run=b"\3" * 32),
        state(round=4),
        state(parent=b"\3" * 32),
        state(roster=full_roster([A])),
        state(tensors=tensors),
        state(tensors=np.arange(101, dtype=np.float32)),
    ]
    assert len({found.digest for found in others}) == len(others)
    assert state().digest == state().digest
    assert state_digest(state().header) == state().digest


@pytest.mark.parametrize("field", ["run", "parent", "roster", "tensors"])
def test_a_header_has_fixed_lengths(field: str) -> None:
    header = StateHeader(run=bytes(32), round=1, parent=bytes(32), roster=bytes(32), tensors=bytes(32))
    setattr(header, field, bytes(33))
    with pytest.raises(ValueError, match="wrong length"):
        state_digest(header)


@pytest.mark.parametrize("values", [1, STATE_CHUNK_BYTES // 4, STATE_CHUNK_BYTES // 4 + 1, 100_000])
def test_chunks_of_a_state(values: int) -> None:
    found = state(tensors=np.arange(values, dtype=np.float32), parameter_count=values)
    count = chunk_count(values)
    chunks = [bytes(found.chunk(index)) for index in range(count)]
    assert b"".join(chunks) == np.arange(values, dtype="<f4").tobytes()
    root = found.tree.root
    for index, chunk in enumerate(chunks):
        proof = found.tree.proof(index)
        assert chunk_belongs(root, values, index, chunk, proof)
        assert not chunk_belongs(root, values, index, chunk[:-1], proof)
        assert not chunk_belongs(root, values, index, chunk + b"\0", proof)
        assert not chunk_belongs(root, values, index + 1, chunk, proof)
        assert not chunk_belongs(root, values, index, bytes((chunk[0] ^ 1,)) + chunk[1:], proof)


def test_a_state_is_read_only_and_well_formed() -> None:
    found = state()
    with pytest.raises(ValueError, match="read-only"):
        found.tensors[0] = 1.0
    for tensors in (np.zeros(4), np.zeros((2, 2), dtype=np.float32), np.zeros(8, dtype=np.float32)[::2]):
        with pytest.raises(ValueError, match="contiguous float32"):
            state(tensors=tensors)


# --- outer step


@given(st.integers(1, 50), st.floats(0.01, 2), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_steps_are_the_formulas(size: int, rate: float, momentum: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    tensors, update = (random.normal(size=n).astype(np.float32) for n in (2 * size, size))
    plain = OuterSection(optimizer="plain", learning_rate=rate)
    np.testing.assert_allclose(outer_step(plain, tensors[:size], update), tensors[:size] + rate * update, rtol=1e-5)
    nesterov = OuterSection(optimizer="nesterov", learning_rate=rate, momentum=momentum)
    found = outer_step(nesterov, tensors, update)
    buffer = momentum * tensors[size:].astype(np.float64) + update
    np.testing.assert_allclose(found[size:], buffer, rtol=1e-4, atol=1e-5)
    due = tensors[:size] + rate * (update + momentum * buffer)
    np.testing.assert_allclose(found[:size], due, rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32
    assert (buffers(plain), buffers(nesterov)) == (0, 1)


def test_a_rate_of_one_takes_the_mean_as_it_is() -> None:
    update = np.array([1e-45, -0.0, 3.5], dtype=np.float32)
    found = outer_step(OuterSection(), np.zeros(3, dtype=np.float32), update)
    np.testing.assert_array_equal(found, update)


def test_the_self_test_holds_here_and_fails_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    self_test()
    monkeypatch.setattr(outer_module, "outer_step", lambda outer, tensors, update: tensors)
    with pytest.raises(ArithmeticMismatch, match="can't take part"):
        self_test()


# --- fork choice


def link(digest: int, *, provisional: bool = False, votes: int = 3) -> Link:
    return Link(5, bytes((digest,)) * 32, full_roster([A, B]), None, provisional, votes, votes)


links = st.builds(link, st.integers(0, 255), provisional=st.booleans(), votes=st.integers(0, 5))


def test_prefer() -> None:
    assert prefer(link(1, provisional=True, votes=5), link(9, votes=2))
    assert not prefer(link(9, votes=2), link(1, provisional=True, votes=5))
    assert prefer(link(1, votes=2), link(9, votes=3))
    assert prefer(link(9), link(1))
    assert not prefer(link(1), link(1))


@given(links, links, links)
def test_prefer_is_an_order(one: Link, two: Link, three: Link) -> None:
    assert not (prefer(one, two) and prefer(two, one))
    if prefer(one, two) and prefer(two, three):
        assert prefer(one, three)
