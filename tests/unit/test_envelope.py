"""Envelopes: what was sealed opens, and nothing that differs from it does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.envelope import (
    _SIGNED_PREFIX,
    DOMAIN,
    EnvelopeBadSignature,
    EnvelopeFault,
    EnvelopeMalformed,
    EnvelopePayloadMalformed,
    EnvelopeTooLarge,
    EnvelopeWrongType,
    Signed,
    _signed_digest,
    envelope_digest,
    open_envelope,
    seal,
)
from p2pnode.errors import PeerFault
from p2pnode.identity import PeerIdentity
from p2pnode.wire.envelope_pb2 import Envelope
from p2pnode.wire.round_pb2 import Leave, Vote

ALICE = PeerIdentity.from_seed(b"a" * 32)
BOB = PeerIdentity.from_seed(b"b" * 32)
LIMIT = 512

votes = st.builds(Vote, closing=st.binary(max_size=40), state_digest=st.binary(max_size=40))


def opened(raw: bytes, payload_type: str = "vote", limit: int = LIMIT) -> Signed[Vote]:
    return open_envelope(raw, payload_type, Vote, max_bytes=limit)


def sealed() -> Signed[Vote]:
    return seal(ALICE, "vote", Vote(closing=b"\1" * 32, state_digest=b"\2" * 32))


@given(votes)
def test_round_trip(message: Vote) -> None:
    made = seal(ALICE, "vote", message)
    found = opened(made.raw)
    assert found == made
    assert found.sender == ALICE.peer_id
    assert found.message == message


@settings(max_examples=400)
@given(votes, st.data())
def test_a_mutation_is_never_accepted(message: Vote, data: st.DataObject) -> None:
    raw = seal(ALICE, "vote", message).raw
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "append"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    match kind:
        case "flip":
            changed = raw[:at] + bytes((raw[at] ^ (1 << data.draw(st.integers(0, 7))),)) + raw[at + 1 :]
        case "cut":
            changed = raw[:at]
        case "insert":
            changed = raw[:at] + data.draw(st.binary(min_size=1, max_size=8)) + raw[at:]
        case "drop":
            changed = raw[:at] + raw[at + 1 :]
        case _:
            changed = raw + data.draw(st.binary(min_size=1, max_size=8))
    if changed != raw:
        with pytest.raises(EnvelopeFault):
            opened(changed)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_bytes_from_anywhere_are_refused_by_name(raw: bytes) -> None:
    with pytest.raises(EnvelopeFault) as caught:
        opened(raw)
    assert caught.value.clause.startswith("envelope-")


@given(st.binary(max_size=12), st.binary(max_size=12), st.binary(max_size=12), st.binary(max_size=12))
def test_digests_of_different_things_differ(one: bytes, two: bytes, three: bytes, four: bytes) -> None:
    first = envelope_digest(ALICE.peer_id, one.hex(), two)
    second = envelope_digest(ALICE.peer_id, three.hex(), four)
    assert (first == second) == ((one, two) == (three, four))


def test_the_digest_binds_the_sender_and_not_the_signature() -> None:
    made = sealed()
    payload = Envelope.FromString(made.raw).payload
    assert made.digest == envelope_digest(ALICE.peer_id, "vote", payload)
    assert made.digest != envelope_digest(BOB.peer_id, "vote", payload)


def edited(**fields: object) -> bytes:
    envelope = Envelope.FromString(sealed().raw)
    for name, value in fields.items():
        setattr(envelope, name, value)
    return envelope.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (bytes(LIMIT + 2049), EnvelopeTooLarge),
        (edited(payload=bytes(LIMIT + 1)), EnvelopeTooLarge),
        (b"", EnvelopeMalformed),
        (edited(sender=b"short"), EnvelopeMalformed),
        (edited(signature=b""), EnvelopeMalformed),
        (sealed().raw + b"\x2a\x00", EnvelopeMalformed),
        (edited(type="closing"), EnvelopeWrongType),
        (edited(sender=BOB.peer_id.key), EnvelopeBadSignature),
        (edited(signature=bytes(64)), EnvelopeBadSignature),
    ],
)
def test_each_failure_has_its_own_error(raw: bytes, fault: type[EnvelopeFault]) -> None:
    with pytest.raises(EnvelopeFault) as caught:
        opened(raw)
    assert type(caught.value) is fault
    assert isinstance(caught.value, PeerFault)
    assert caught.value.clause == fault.name


def test_a_signed_payload_must_be_canonical() -> None:
    payload = Vote(closing=b"\1").SerializeToString() + b"\x7a\x00"  # an unknown field
    signature = ALICE.sign(_SIGNED_PREFIX + _signed_digest("vote", payload))
    envelope = Envelope(sender=ALICE.peer_id.key, type="vote", payload=payload, signature=signature)
    with pytest.raises(EnvelopePayloadMalformed):
        opened(envelope.SerializeToString(deterministic=True))


def test_a_signature_serves_one_type_only() -> None:
    leave = seal(ALICE, "leave", Leave())
    vote = Envelope.FromString(leave.raw)
    vote.type = "vote"
    with pytest.raises(EnvelopeBadSignature):
        opened(vote.SerializeToString(deterministic=True))
    with pytest.raises(EnvelopeWrongType):
        opened(leave.raw)


def test_what_is_signed_starts_as_nothing_that_libp2p_signs() -> None:
    made = sealed()
    envelope = Envelope.FromString(made.raw)
    assert not ALICE.peer_id.verifies(envelope.signature, envelope.payload)
    assert _SIGNED_PREFIX.startswith(b"p2pnode ")
    assert DOMAIN.startswith(b"p2pnode.")
