"""The vectors of the replicated state and of numbers: from trees to codecs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from _vectors_plain import Json, identity, manifest, raises, same
from blake3 import blake3

from p2pnode.codec import FloatVector, codec_named
from p2pnode.identity import PeerId
from p2pnode.manifest import OuterSection, RosterSection
from p2pnode.messages import SlotBase
from p2pnode.replica.outer import buffers, outer_step
from p2pnode.replica.proposal import convener_of, newcomer_order, partition
from p2pnode.replica.roster import CommittedRound, Roster, RosterEntry, window_of
from p2pnode.replica.state import STATE_CHUNK_BYTES, GlobalState, state_digest
from p2pnode.replica.tree import Tree, leaf_hash, proves
from p2pnode.round.aggregation import WeightedMean
from p2pnode.wire.chain_pb2 import StateHeader

# --- replica ----------------------------------------------------------------------------------------------------


def trees() -> Json:
    """Leaves, roots, and every proof of small trees; proofs that prove nothing."""
    made, wrong = [], []
    for count in (1, 2, 3, 4, 5, 7, 8, 9):
        chunks = [bytes((n, count)) * 3 for n in range(count)]
        leaves = [leaf_hash(b"row", 2, index, chunk) for index, chunk in enumerate(chunks)]
        tree = Tree(leaves)
        made.append(
            {
                "purpose": "row",
                "part": 2,
                "chunks": [chunk.hex() for chunk in chunks],
                "leaves": [leaf.hex() for leaf in leaves],
                "root": tree.root.hex(),
                "proofs": [[sibling.hex() for sibling in tree.proof(index)] for index in range(count)],
            }
        )
        if count == 5:
            proof = tree.proof(2)
            cases: list[tuple[str, bytes, int, int, list[bytes]]] = [
                ("another index", leaves[2], 3, 5, proof),
                ("an index beyond the end", leaves[2], 5, 5, proof),
                ("another count", leaves[2], 2, 8, proof[:-1]),
                ("a sibling missing", leaves[2], 2, 5, proof[:-1]),
                ("a sibling too many", leaves[2], 2, 5, [*proof, bytes(32)]),
                ("a short sibling", leaves[2], 2, 5, [proof[0][:31], *proof[1:]]),
                ("another leaf", leaves[1], 2, 5, proof),
                ("an inner node as a leaf", Tree(leaves[:2]).root, 0, 5, [Tree(leaves[2:4]).root, leaves[4]]),
            ]
            for name, leaf, index, of, siblings in cases:
                same(proves(tree.root, leaf, index, of, siblings), False, name)
                wrong.append(
                    {
                        "name": name,
                        "root": tree.root.hex(),
                        "leaf": leaf.hex(),
                        "index": index,
                        "count": of,
                        "siblings": [sibling.hex() for sibling in siblings],
                    }
                )
    return {"trees": made, "not_proofs": wrong}


def partitions() -> Json:
    """The integer rule over bandwidths."""
    peers = sorted(identity(number).peer_id for number in range(8))
    cases: list[tuple[str, int, Sequence[int]]] = [
        ("one reducer", 1000, [5]),
        ("two, very unequal: the cap is the whole", 100_000, [1, 10_000]),
        ("three equal", 1000, [7, 7, 7]),
        ("three, one very fast: capped at two thirds", 96_000, [1000, 1, 1]),
        ("four, no bandwidth measured", 4096, [0, 0, 0, 0]),
        ("more reducers than units", 200, [3, 1, 2, 9, 9, 9, 9, 9]),
        ("one value", 1, [1, 2]),
        ("beyond the largest bandwidth that counts", 64_000, [1 << 50, 1 << 40, 1 << 40]),
        ("mixed", 693_962, [12_000_000, 3_500_000, 900_000, 25_000_000, 1_250_000]),
    ]
    made = []
    for name, values, bandwidths in cases:
        parts = partition(values, dict(zip(peers, bandwidths, strict=False)))
        made.append(
            {
                "name": name,
                "values": values,
                "reducers": [
                    {"peer": peer.key.hex(), "bandwidth": bandwidth}
                    for peer, bandwidth in zip(peers, bandwidths, strict=False)
                ],
                "parts": [
                    {
                        "reducer": p.reducer.key.hex(),
                        "start": p.start,
                        "stop": p.stop,
                        "deputy": p.deputy.key.hex() if p.deputy is not None else "",
                    }
                    for p in parts
                ],
            }
        )
    return {"about": "Reducers ascend by peer.", "cases": made}


def _plain_roster(peers: Sequence[PeerId]) -> Roster:
    return Roster(tuple(RosterEntry(peer, 0, 0, True) for peer in sorted(peers)))


def conveners() -> Json:
    """Who convenes which attempt; in which order unknown contributors are admitted."""
    made = []
    for number, count in ((1, 1), (1, 3), (2, 3), (77, 5)):
        peers = [identity(index).peer_id for index in range(count)]
        base = SlotBase(blake3(b"run").digest(), number, blake3(b"parent %d" % number).digest())
        roster = _plain_roster(peers)
        order = [convener_of(roster, base, attempt) for attempt in range(count + 1)]
        made.append(
            {
                "run": base.run.hex(),
                "round": number,
                "parent": base.parent.hex(),
                "members": [peer.key.hex() for peer in roster.members],
                "conveners": [peer.key.hex() for peer in order],
                "newcomers": [peer.key.hex() for peer in sorted(peers, key=lambda p, b=base: newcomer_order(b, p))],
            }
        )
    return {"about": "conveners: of attempts 0, 1, 2, ...; newcomers: the same peers as strangers.", "cases": made}


def rosters() -> Json:
    """Rosters through sequences of committed rounds."""
    sequences = [
        _sequence("a newcomer votes after two rounds that counted", RosterSection(), [0], [
            ([0, 1], [0, 1], [], False), ([0, 1], [0, 1], [], False), ([0, 1], [0, 1], [], False),
        ]),
        _sequence("an entry without a counted contribution does not bring a vote nearer", RosterSection(), [0], [
            ([0, 1], [0], [], False), ([0, 1], [0, 1], [], False), ([0, 1], [0], [], False),
            ([0, 1], [0, 1], [], False),
        ]),
        _sequence("probation of five", RosterSection(probation=5), [0], [([0, 1], [0, 1], [], False)] * 6),
        _sequence("an unseen member leaves: window 16, shortened to six rounds for two members", RosterSection(),
                  [0, 1], [([0], [0], [], False)] * 7),
        _sequence("a window of three", RosterSection(window=3), [0, 1, 2], [([0, 1], [0, 1], [], False)] * 4),
        _sequence("a committed leave", RosterSection(), [0, 1, 2], [([0, 1, 2], [0, 1, 2], [1], False)]),
        _sequence("all leave at once: they stay on record", RosterSection(), [0, 1], [([0, 1], [0, 1], [0, 1], False)]),
        _sequence("a provisional round: the roster is the members that it lists", RosterSection(), [0, 1, 2, 3], [
            ([0, 2], [0, 2], [], True), ([0, 2, 3], [0, 2, 3], [], False), ([0, 2, 3], [0, 2, 3], [], False),
        ]),
        _sequence("anchors are the roster, always", RosterSection(anchors=(identity(0).peer_id.text,
                  identity(1).peer_id.text), probation=0), [0, 1], [([0, 2], [0, 2], [0], False)] * 8),
        _sequence("room for two voters: those that counted most first", RosterSection(probation=1), [0], [
            ([0, 1, 2], [0, 2], [], False), ([0, 1, 2], [0, 1, 2], [], False),
        ], voters=2),
    ]  # fmt: skip
    windows = [{"members": members, "window": 16, "is": window_of(members, 16)} for members in (1, 2, 3, 7, 8, 32)]
    return {"about": "Peers are numbers of `peers`.", "peers": _keys(8), "windows": windows, "sequences": sequences}


def _keys(count: int) -> list[str]:
    return [identity(number).peer_id.key.hex() for number in range(count)]


def _sequence(
    name: str,
    rules: RosterSection,
    members: Sequence[int],
    rounds: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int], bool]],
    voters: int = 32,
) -> Json:
    run = manifest(roster=rules, limits={"voters": voters})
    number_of = {identity(number).peer_id: number for number in range(8)}
    roster = _plain_roster([identity(number).peer_id for number in members])
    steps = []
    for number, (entrants, counted, leaving, provisional) in enumerate(rounds, 1):
        people = [[identity(index).peer_id for index in group] for group in (entrants, counted, leaving)]
        roster = roster.after(CommittedRound(number, *people, provisional), run)
        steps.append(
            {
                "round": number,
                "entrants": list(entrants),
                "counted": list(counted),
                "leaving": list(leaving),
                "provisional": provisional,
                "after": [[number_of[e.peer], e.accepted, e.last_seen, e.member] for e in roster.entries],
                "digest": roster.digest.hex(),
            }
        )
    return {"name": name, "manifest": run.canonical.decode("ascii"), "members": list(members), "steps": steps}


def states() -> Json:
    """State digests, and the chunk tree over tensors."""
    headers = []
    for number in (0, 1, 2**40):
        header = StateHeader(run=b"\1" * 32, round=number, parent=b"\2" * 32, roster=b"\3" * 32, tensors=b"\4" * 32)
        headers.append(
            {"header": header.SerializeToString(deterministic=True).hex(), "digest": state_digest(header).hex()}
        )
    tensors = []
    roster = _plain_roster([identity(0).peer_id, identity(1).peer_id])
    for count in (1, 10, STATE_CHUNK_BYTES // 4, STATE_CHUNK_BYTES // 4 + 1, 3 * STATE_CHUNK_BYTES // 4):
        values = (np.arange(count) % 1000).astype(np.float32) / np.float32(8)
        state = GlobalState(b"\1" * 32, 5, b"\2" * 32, roster, values, count)
        tensors.append(
            {
                "values": count,
                "chunks": len(state.tree),
                "root": state.tree.root.hex(),
                "roster": roster.encoded.hex(),
                "roster_digest": roster.digest.hex(),
                "digest": state.digest.hex(),
            }
        )
    about = "tensors[j] = (j mod 1000) / 8; run 01.., round 5, parent 02.."
    return {"headers": headers, "about_tensors": about, "tensors": tensors}


# --- numbers ----------------------------------------------------------------------------------------------------


def _bits(values: FloatVector) -> str:
    return values.astype(">f4").tobytes().hex(" ", 4)


def _floats(bits: str) -> FloatVector:
    return np.frombuffer(bytes.fromhex(bits), dtype=">f4").astype(np.float32)


TRICKY = "00000000 80000000 00000001 807fffff 3f800000 bf800001 3eaaaaab 33800000 7f7fffff 41200000 00800000 3dcccccd"


def outer_steps() -> Json:
    """Bit patterns in and out (big-endian float32), and the weighted mean."""
    made = []
    ones = OuterSection(optimizer="plain", learning_rate=1.0)
    slow = OuterSection(optimizer="plain", learning_rate=0.7)
    nesterov = OuterSection(optimizer="nesterov", learning_rate=0.7, momentum=0.9)
    update = _floats(TRICKY)
    for outer in (ones, slow, nesterov):
        size = len(update)
        tensors = np.concatenate([update[::-1]] + [np.roll(update, 3)] * buffers(outer))
        with np.errstate(all="ignore"):
            result = outer_step(outer, tensors, update)
        made.append(
            {
                "optimizer": outer.optimizer,
                "learning_rate": outer.learning_rate,
                "momentum": outer.momentum,
                "parameters": size,
                "tensors": _bits(tensors),
                "update": _bits(update),
                "result": _bits(result),
            }
        )
    rows = [update[:8], np.roll(update, 5)[:8], np.roll(update, 2)[:8]]
    weights = [1, 4, 3]
    mean = WeightedMean().aggregate(rows, weights)
    return {
        "about": "float32 bit patterns, big-endian, in hexadecimal.",
        "steps": made,
        "means": [{"rows": [_bits(row) for row in rows], "weights": weights, "result": _bits(mean)}],
    }


def codecs() -> Json:
    """Values to bytes and back."""
    made = []
    patterns = {
        "float32": TRICKY,
        # ties, the smallest denormal of float16 (2^-24), half of it, a float16 denormal, its largest value
        "float16": "00000000 80000000 3f800000 3f801000 3f803000 33800000 "
        "33000000 33000001 38000000 477fe000 c77fe000 3dcccccd",
    }
    for name, pattern in patterns.items():
        codec = codec_named(name)
        values = _floats(pattern)
        data = codec.encode(values)
        made.append(
            {
                "codec": name,
                "values": _bits(values),
                "encoded": data.hex(),
                "decoded": _bits(codec.decode(data, len(values))),
            }
        )
    rejected: list[tuple[str, str, str, int]] = [
        ("float32", "NaN", "0000c07f", 1),
        ("float32", "infinity", "0000807f", 1),
        ("float32", "a byte missing", "000080", 1),
        ("float32", "a value too many", "0000803f0000803f", 1),
        ("float16", "NaN", "007e", 1),
        ("float16", "minus infinity", "00fc", 1),
        ("float16", "a byte too many", "003c00", 1),
    ]
    for name, what, data, count in rejected:
        raises(ValueError, lambda n=name, d=data, c=count: codec_named(n).decode(bytes.fromhex(d), c), what)
    unencodable = [
        ("float32", "NaN", "7fc00000"),
        ("float32", "infinity", "7f800000"),
        ("float16", "NaN", "7fc00000"),
        ("float16", "above 65504", "47800000"),
    ]
    for name, what, pattern in unencodable:
        raises(ValueError, lambda n=name, p=pattern: codec_named(n).encode(_floats(p)), what)
    return {
        "about": "values: float32 bit patterns, big-endian; encoded: the codec's bytes.",
        "accept": made,
        "reject_decode": [
            {"codec": name, "name": what, "encoded": data, "count": count} for name, what, data, count in rejected
        ],
        "reject_encode": [{"codec": name, "name": what, "values": bits} for name, what, bits in unencodable],
    }
