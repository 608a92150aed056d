"""Signed envelopes: the one way in which anything signed is made, sent, checked and read.

What is signed is a digest of domain, payload type and payload, each length-prefixed, so that a signature made for
one purpose can never be read as another's (idea: libp2p RFC 0002). Opening verifies and decodes in one call: there
is no way to read a payload without checking it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from blake3 import blake3
from google.protobuf.message import DecodeError, Message

from p2pnode.errors import PeerFault
from p2pnode.identity import KEY_BYTES, SIGNATURE_BYTES, PeerId, PeerIdentity
from p2pnode.wire.envelope_pb2 import Envelope

DIGEST_BYTES: Final = 32
DOMAIN: Final = b"p2pnode.envelope.1"
# Starts with text, so that it can't be mistaken for what libp2p signs with the same key ("libp2p-tls-handshake:",
# "noise-libp2p-static-key:", protobuf peer records).
_SIGNED_PREFIX: Final = b"p2pnode signs:"
_OVERHEAD: Final = 2048  # of an envelope around its payload, generously


class EnvelopeFault(PeerFault):
    """An envelope can't be opened; `clause` names why. Base of one class for each reason."""

    name = "envelope"

    def __init__(self, detail: str = "") -> None:
        super().__init__(self.name, detail)


class EnvelopeTooLarge(EnvelopeFault):
    """More bytes than the limit for its type."""

    name = "envelope-size"


class EnvelopeMalformed(EnvelopeFault):
    """Not an envelope, or one of its fields has the wrong length."""

    name = "envelope-form"


class EnvelopeWrongType(EnvelopeFault):
    """Opened as one payload type, sealed as another."""

    name = "envelope-type"


class EnvelopeBadSignature(EnvelopeFault):
    """The signature is not the sender's over these bytes."""

    name = "envelope-signature"


class EnvelopePayloadMalformed(EnvelopeFault):
    """The payload is signed, but is not the canonical form of its type."""

    name = "envelope-payload"


def _prefixed(part: bytes) -> bytes:
    return len(part).to_bytes(8, "big") + part


def envelope_digest(sender: PeerId, payload_type: str, payload: bytes) -> bytes:
    """What names an envelope: 32 bytes, over all but the signature (so a second valid signature changes nothing)."""
    parts = (b"p2pnode.digest.1", sender.key, _signed_digest(payload_type, payload))
    return blake3(b"".join(_prefixed(part) for part in parts)).digest()


def _signed_digest(payload_type: str, payload: bytes) -> bytes:
    return blake3(_prefixed(DOMAIN) + _prefixed(payload_type.encode()) + _prefixed(payload)).digest()


M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Signed(Generic[M]):
    """A message whose signature has been checked.

    message: treat as frozen. raw: the envelope's bytes, to pass on. digest: 32 bytes, names it in other messages.
    """

    sender: PeerId
    message: M
    raw: bytes
    digest: bytes


def seal(identity: PeerIdentity, payload_type: str, message: M) -> Signed[M]:
    """Sign `message` as `payload_type`."""
    payload = message.SerializeToString(deterministic=True)
    signature = identity.sign(_SIGNED_PREFIX + _signed_digest(payload_type, payload))
    envelope = Envelope(sender=identity.peer_id.key, type=payload_type, payload=payload, signature=signature)
    return Signed(
        identity.peer_id,
        message,
        envelope.SerializeToString(deterministic=True),
        envelope_digest(identity.peer_id, payload_type, payload),
    )


def open_envelope(raw: bytes, payload_type: str, message_class: type[M], *, max_bytes: int) -> Signed[M]:
    """Check and decode `raw` as an envelope of `payload_type` with a payload of at most `max_bytes` bytes.

    The order of checks is: size, form, type, signature, payload. Raises the subclass of EnvelopeFault that names the
    first one that fails. A payload must be in canonical form (what `seal` writes), with no unknown fields.
    """
    if len(raw) > max_bytes + _OVERHEAD:
        raise EnvelopeTooLarge(f"{len(raw)} bytes, limit {max_bytes + _OVERHEAD}")
    try:
        envelope = Envelope.FromString(raw)
    except DecodeError:
        raise EnvelopeMalformed("not a protobuf Envelope") from None
    if len(envelope.sender) != KEY_BYTES or len(envelope.signature) != SIGNATURE_BYTES:
        raise EnvelopeMalformed("sender or signature has the wrong length")
    envelope.DiscardUnknownFields()  # or they would be written back, and compare equal
    if envelope.SerializeToString(deterministic=True) != raw:
        raise EnvelopeMalformed("not in canonical form")
    if envelope.type != payload_type:
        raise EnvelopeWrongType(f"{envelope.type[:40]!r} where {payload_type!r} is due")
    if len(envelope.payload) > max_bytes:
        raise EnvelopeTooLarge(f"payload of {len(envelope.payload)} bytes, limit {max_bytes}")
    sender = PeerId(envelope.sender)
    if not sender.verifies(envelope.signature, _SIGNED_PREFIX + _signed_digest(payload_type, envelope.payload)):
        raise EnvelopeBadSignature(f"of {sender}")
    try:
        message = message_class.FromString(envelope.payload)
    except DecodeError:
        raise EnvelopePayloadMalformed(f"not a {payload_type}") from None
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != envelope.payload:
        raise EnvelopePayloadMalformed("not in canonical form")
    return Signed(sender, message, raw, envelope_digest(sender, payload_type, envelope.payload))
