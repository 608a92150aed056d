"""The vectors that need no round: from the envelope to the codecs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from p2pnode.envelope import EnvelopeFault, Signed, seal
from p2pnode.errors import InviteError, ManifestError
from p2pnode.identity import PeerIdentity
from p2pnode.invite import PREFIX, Invite
from p2pnode.manifest import PrivacySection, RosterSection, RunManifest, TaskSection
from p2pnode.manifest_file import sign_manifest, verify_manifest
from p2pnode.messages import ENTRY, VOTE, SlotBase
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


# --- envelope ---------------------------------------------------------------------------------------------------


def _vote() -> Signed[Vote]:
    slot = SlotBase(b"\1" * 32, 7, b"\2" * 32).at(3)
    return VOTE.seal(identity(0), Vote(slot=slot, closing=b"\3" * 32, state_digest=b"\4" * 32, group=b"\6" * 32))


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
        same(found, clause, name)
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
        raises(ManifestError, lambda data=data: RunManifest.from_canonical(data.encode()), name)
    first = manifest()
    signatures = [
        ("by somebody else", seal(identity(1), "manifest", ManifestSignature(run=first.digest)).raw),
        ("of another manifest", sign_manifest(identity(0), plain)),
        ("of another payload type", _sealed_bytes(b"", "vote")),
    ]
    for name, raw in signatures:
        raises(ManifestError, lambda raw=raw: verify_manifest(first, raw), name)
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
        same(Invite.parse(pasted), found, name)
    for name, pasted, word in rejected:
        message = raises(InviteError, lambda pasted=pasted: Invite.parse(pasted), name)
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


# --- small helpers ----------------------------------------------------------------------------------------------


def same(found: object, due: object, name: str) -> None:
    """Exit unless both are equal."""
    if found != due:
        raise SystemExit(f"{name}: {found!r} where {due!r} is due")


def raises(error: type[Exception], work: Callable[[], object], name: str) -> str:
    """The error's message; exit if `work` is not refused."""
    try:
        work()
    except error as found:
        return str(found)
    raise SystemExit(f"{name}: was not refused")
