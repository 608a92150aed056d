"""The vectors that need no round: from the envelope to the codecs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from blake3 import blake3

from p2pnode.codec import FloatVector, codec_named
from p2pnode.envelope import EnvelopeFault, Signed, seal
from p2pnode.errors import InviteError, ManifestError
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.invite import PREFIX, Invite
from p2pnode.manifest import OuterSection, PrivacySection, RosterSection, RunManifest, TaskSection
from p2pnode.manifest_file import sign_manifest, verify_manifest
from p2pnode.messages import ENTRY, VOTE, SlotBase
from p2pnode.replica.outer import buffers, outer_step
from p2pnode.replica.proposal import convener_of, newcomer_order, partition
from p2pnode.replica.roster import CommittedRound, Roster, RosterEntry, window_of
from p2pnode.replica.state import STATE_CHUNK_BYTES, GlobalState, state_digest
from p2pnode.replica.tree import Tree, leaf_hash, proves
from p2pnode.round.aggregation import WeightedMean
from p2pnode.wire.chain_pb2 import StateHeader
from p2pnode.wire.envelope_pb2 import Envelope
from p2pnode.wire.invite_pb2 import InviteBody
from p2pnode.wire.manifest_pb2 import ManifestSignature
from p2pnode.wire.round_pb2 import RoundEntry, Vote

Json = dict[str, Any]


def identity(number: int) -> PeerIdentity:
    """Fixed identities: the seed is BLAKE3("p2pnode.vector.identity" + number as one byte)."""
    return PeerIdentity.from_seed(blake3(b"p2pnode.vector.identity" + bytes((number,))).digest())


def manifest(**sections: Any) -> RunManifest:
    """A small private run of identity 0."""
    fields: Json = {
        "name": "vectors",
        "author": identity(0).peer_id.text,
        "task": TaskSection(name="digits", data_digest="00" * 32, schema_digest="11" * 32),
        "privacy": PrivacySection(epsilon=8.0, clip=0.5, noise_multiplier=2.5, sampling_rate=0.25, steps=100),
    }
    return RunManifest.model_validate(fields | sections)


def all_vectors() -> Json:
    """File name -> content."""
    return {
        "envelope": envelope(),
        "manifest": manifests(),
        "invite": invites(),
        "tree": trees(),
        "partition": partitions(),
        "convener": conveners(),
        "roster": rosters(),
        "state": states(),
        "outer": outer_steps(),
        "codec": codecs(),
    }


# --- envelope ---------------------------------------------------------------------------------------------------


def _vote() -> Signed[Vote]:
    slot = SlotBase(b"\1" * 32, 7, b"\2" * 32).at(3)
    return VOTE.seal(identity(0), Vote(slot=slot, closing=b"\3" * 32, state_digest=b"\4" * 32))


def _changed(raw: bytes, **fields: Any) -> bytes:
    envelope = Envelope.FromString(raw)
    for name, value in fields.items():
        setattr(envelope, name, value)
    return envelope.SerializeToString(deterministic=True)


def seal_bytes(by: PeerIdentity, payload: bytes, payload_type: str) -> bytes:
    """A correctly signed envelope around bytes that need not be a message."""

    class Opaque:
        def SerializeToString(self, deterministic: bool = True) -> bytes:
            return payload

    return seal(by, payload_type, Opaque()).raw  # type: ignore[type-var]


def _sealed_bytes(payload: bytes, payload_type: str = "vote") -> bytes:
    return seal_bytes(identity(0), payload, payload_type)


def envelope() -> Json:
    """Accept, and each failure."""
    good = _vote()
    raw, payload = good.raw, Envelope.FromString(good.raw).payload
    flipped = bytearray(Envelope.FromString(raw).signature)
    flipped[10] ^= 1
    entry = ENTRY.seal(identity(0), RoundEntry(slot=good.message.slot))
    cases: list[tuple[str, bytes, str]] = [
        ("a vote", raw, ""),
        ("longer than the limit of its type and an envelope", raw + bytes(VOTE.max_bytes + 2048), "envelope-size"),
        (
            "payload longer than the limit of its type",
            _changed(raw, payload=bytes(VOTE.max_bytes + 1)),
            "envelope-size",
        ),
        ("nothing", b"", "envelope-form"),
        ("not protobuf", b"\xff" * 40, "envelope-form"),
        ("a sender of 31 bytes", _changed(raw, sender=bytes(31)), "envelope-form"),
        ("a signature of 63 bytes", _changed(raw, signature=bytes(63)), "envelope-form"),
        ("an unknown field after all others", raw + b"\x2a\x01\x00", "envelope-form"),
        ("fields in another order", _reordered(raw), "envelope-form"),
        ("a round-entry where a vote is due", entry.raw, "envelope-type"),
        ("a vote's envelope renamed to another type", _changed(raw, type="round-entry"), "envelope-type"),
        ("a signature with one bit changed", _changed(raw, signature=bytes(flipped)), "envelope-signature"),
        ("a payload with one bit changed", _changed(raw, payload=payload[:-1] + b"\5"), "envelope-signature"),
        ("another sender's name on it", _changed(raw, sender=identity(1).peer_id.key), "envelope-signature"),
        (
            "signed as another type, then renamed",
            _changed(_sealed_bytes(payload, "leave"), type="vote"),
            "envelope-signature",
        ),
        ("signed bytes that are no message", _sealed_bytes(b"\xff" * 20), "envelope-payload"),
        ("a signed vote with an unknown field", _sealed_bytes(payload + b"\x7a\x01\x00"), "envelope-payload"),
    ]
    made = []
    for name, data, clause in cases:
        found, digest = "", ""
        try:
            digest = VOTE.open(data).digest.hex()
        except EnvelopeFault as fault:
            found = fault.clause
        _same(found, clause, name)
        made.append({"name": name, "raw": data.hex(), "clause": clause, "digest": digest})
    return {
        "about": "Opened as payload type `vote`; clause is empty where the envelope is accepted.",
        "payload_type": VOTE.name,
        "max_bytes": VOTE.max_bytes,
        "seed": identity(0).seed.hex(),
        "payload": payload.hex(),
        "cases": made,
    }


def _reordered(raw: bytes) -> bytes:
    """The same fields with the signature first."""
    envelope = Envelope.FromString(raw)
    signature = Envelope(signature=envelope.signature).SerializeToString()
    envelope.ClearField("signature")
    return signature + envelope.SerializeToString()


# --- manifest and invite ----------------------------------------------------------------------------------------


def manifests() -> Json:
    """Canonical bytes, digest, signature; bytes that are no manifest."""
    plain = manifest(privacy=PrivacySection(mode="none"))
    rich = manifest(
        name="a run with äöü",
        roster=RosterSection(admission="list", peers=(identity(0).peer_id.text, identity(1).peer_id.text)),
        exchange={"codec": "float16", "weights": ((1, 1), (5, 4))},
        training={"local_steps": 5, "learning_rate": 0.1, "target_rounds": 20},
    )
    accepted = [
        {
            "name": name,
            "canonical": found.canonical.decode("ascii"),
            "run_id": found.run_id,
            "signature": sign_manifest(identity(0), found).hex(),
        }
        for name, found in (
            ("private, all else by default", manifest()),
            ("without privacy", plain),
            ("many fields", rich),
        )
    ]
    text = manifest().canonical.decode("ascii")
    fields = json.loads(text)

    def changed(path: str, value: object) -> str:
        copy = json.loads(text)
        at = copy
        *parents, last = path.split(".")
        for name in parents:
            at = at[name]
        at[last] = value
        return json.dumps(copy, sort_keys=True, separators=(",", ":"))

    without = {key: value for key, value in fields.items() if key != "limits"}
    rejected = [
        ("no JSON", "{"),
        ("a space too many", text.replace(":", ": ", 1)),
        ("keys in another order", json.dumps(dict(reversed(fields.items())), separators=(",", ":"))),
        ("a section left to its defaults", json.dumps(without, sort_keys=True, separators=(",", ":"))),
        ("an unknown field", changed("extra", 1)),
        ("protocol version 2", changed("protocol", 2)),
        ("a number as text", changed("training.local_steps", "5")),
        ("too many voters", changed("limits.voters", 33)),
        ("a chunk above 128 KiB", changed("limits.chunk_bytes", 131136)),
        ("privacy without noise", changed("privacy.noise_multiplier", 0.0)),
        ("an RMS bound above the bound of a value", changed("exchange.max_rms", 11.0)),
        ("a list of peers without the author", changed("roster", fields["roster"] | {"admission": "list"})),
    ]
    for name, data in rejected:
        _raises(ManifestError, lambda data=data: RunManifest.from_canonical(data.encode()), name)
    first = manifest()
    signatures = [
        ("by somebody else", seal(identity(1), "manifest", ManifestSignature(run=first.digest)).raw),
        ("of another manifest", sign_manifest(identity(0), plain)),
        ("of another payload type", _sealed_bytes(b"", "vote")),
    ]
    for name, raw in signatures:
        _raises(ManifestError, lambda raw=raw: verify_manifest(first, raw), name)
    return {
        "author_seed": identity(0).seed.hex(),
        "accept": accepted,
        "reject": [{"name": name, "bytes": data} for name, data in rejected],
        "reject_signatures": {
            "canonical": first.canonical.decode("ascii"),
            "cases": [{"name": name, "signature": raw.hex()} for name, raw in signatures],
        },
    }


def invites() -> Json:
    """Invites that are read, and damaged ones."""
    peers = [identity(number).peer_id for number in range(3)]
    one = Invite(b"\1" * 32, peers[0], 0, b"\2" * 32, b"\3" * 32, (f"/ip4/192.0.2.1/tcp/31337/p2p/{peers[0]}",))
    three = Invite(
        b"\1" * 32,
        peers[0],
        123456,
        b"\2" * 32,
        b"\3" * 32,
        (
            f"/ip4/192.0.2.1/tcp/31337/p2p/{peers[0]}",
            f"/ip6/2001:db8::1/tcp/4001/p2p/{peers[0]}",
            f"/dns4/node.example/tcp/4001/p2p/{peers[1]}",
            f"/ip4/192.0.2.9/tcp/1/p2p/{peers[1]}/p2p-circuit/p2p/{peers[2]}",
        ),
    )
    accepted = [
        ("one address", one, one.text),
        ("four addresses of three peers", three, three.text),
        ("in upper case", one, one.text.upper()),
        ("wrapped into lines, quoted", one, "> “" + one.text[:40] + "\n  " + one.text[40:] + "”"),
    ]
    text = one.text
    middle = len(text) // 2
    swapped = text[:middle] + ("a" if text[middle] != "a" else "b") + text[middle + 1 :]
    rejected = [
        ("empty", "", "not an invite"),
        ("something else", "https://example.org/", "not an invite"),
        ("of version 2", "p2pnode2:" + text.removeprefix(PREFIX), "version 2"),
        ("nothing after the prefix", PREFIX, "cut off"),
        ("truncated", text[:-7], "cut off"),
        ("truncated by one character", text[:-1], "cut off"),
        ("with text behind it", text + "abc", "too many"),
        ("one character mistyped", swapped, "damaged"),
        ("with a character that is not base32", text[:middle] + "1" + text[middle + 1 :], "damaged"),
        ("a body with an unknown field", _framed(_body(one) + b"\x3a\x00"), "canonical"),
        ("a body that is not protobuf", _framed(b"\xff\xff"), "can't be read"),
        ("a run id of 31 bytes", _framed(_edited(one, run=bytes(31))), "32 bytes"),
        ("without an address", _framed(_edited(one, bootstraps=())), "addresses"),
    ]
    for name, found, pasted in accepted:
        _same(Invite.parse(pasted), found, name)
    for name, pasted, word in rejected:
        message = _raises(InviteError, lambda pasted=pasted: Invite.parse(pasted), name)
        if word not in message:
            raise SystemExit(f"{name}: {message!r} does not say {word!r}")
    return {
        "accept": [
            {
                "name": name,
                "text": pasted,
                "run": found.run.hex(),
                "author": found.author.text,
                "round": found.round,
                "state_digest": found.state_digest.hex(),
                "roster_digest": found.roster_digest.hex(),
                "addresses": list(found.addresses),
            }
            for name, found, pasted in accepted
        ],
        "reject": [{"name": name, "text": pasted, "says": word} for name, pasted, word in rejected],
    }


def _body(invite: Invite) -> bytes:
    code = invite.text.removeprefix(PREFIX).upper()
    return base64.b32decode(code + "=" * (-len(code) % 8))[2:-5]


def _edited(invite: Invite, **fields: Any) -> bytes:
    body = InviteBody.FromString(_body(invite))
    for name in fields:
        body.ClearField(name)
    body.MergeFrom(InviteBody(**fields))
    return body.SerializeToString(deterministic=True)


def _framed(body: bytes) -> str:
    framed = len(body).to_bytes(2, "big") + body + blake3(b"p2pnode.invite.1:" + body).digest()[:5]
    return PREFIX + base64.b32encode(framed).decode().rstrip("=").lower()


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
                _same(proves(tree.root, leaf, index, of, siblings), False, name)
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
                "parts": [{"reducer": p.reducer.key.hex(), "start": p.start, "stop": p.stop} for p in parts],
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
        _raises(ValueError, lambda n=name, d=data, c=count: codec_named(n).decode(bytes.fromhex(d), c), what)
    unencodable = [
        ("float32", "NaN", "7fc00000"),
        ("float32", "infinity", "7f800000"),
        ("float16", "NaN", "7fc00000"),
        ("float16", "above 65504", "47800000"),
    ]
    for name, what, pattern in unencodable:
        _raises(ValueError, lambda n=name, p=pattern: codec_named(n).encode(_floats(p)), what)
    return {
        "about": "values: float32 bit patterns, big-endian; encoded: the codec's bytes.",
        "accept": made,
        "reject_decode": [
            {"codec": name, "name": what, "encoded": data, "count": count} for name, what, data, count in rejected
        ],
        "reject_encode": [{"codec": name, "name": what, "values": bits} for name, what, bits in unencodable],
    }


# --- small helpers ----------------------------------------------------------------------------------------------


def _same(found: object, due: object, name: str) -> None:
    if found != due:
        raise SystemExit(f"{name}: {found!r} where {due!r} is due")


def _raises(error: type[Exception], work: Callable[[], object], name: str) -> str:
    try:
        work()
    except error as found:
        return str(found)
    raise SystemExit(f"{name}: was not refused")
