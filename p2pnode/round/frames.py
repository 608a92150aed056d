"""Frames: one kind byte and a payload. What round messages travel in between two nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Final

from p2pnode.identity import PeerId
from p2pnode.messages import CLOSING, COMMITMENT, ENTRY, KIB, LEAVE, OUTPUT, PROPOSAL, VOTE, reject
from p2pnode.replica.chain import MAX_RECORD_BYTES

ENVELOPE_BYTES: Final = 2 * KIB  # around a payload, generously
EVIDENCE_PIECE: Final = 512 * KIB  # of a serialized Misbehaviour in one frame
PROOF_BYTES: Final = 2 * KIB  # around a chunk's data: indices and at most 32 sibling hashes


@unique
class Kind(IntEnum):
    """The first byte of a frame."""

    ENTRY = 1
    PROPOSAL = 2
    COMMITMENT = 3
    CHUNK = 4
    OUTPUT = 5
    OUTPUT_CHUNK = 6
    CLOSING = 7
    VOTE = 8
    CERTIFICATE = 9
    LEAVE = 10
    WANT = 11
    EVIDENCE = 12
    REVEAL = 13
    AUDITED = 14
    AUDIT_ROW = 15


# These share the bulk channel, in order: a commitment precedes its chunks. All else goes ahead of them, on "control".
BULK: Final = frozenset({Kind.COMMITMENT, Kind.CHUNK, Kind.OUTPUT, Kind.OUTPUT_CHUNK, Kind.EVIDENCE, Kind.AUDIT_ROW})


def limit(kind: Kind, chunk_bytes: int) -> int:
    """The most bytes of a payload of `kind`."""
    limits = {
        Kind.ENTRY: ENTRY.max_bytes + ENVELOPE_BYTES,
        Kind.PROPOSAL: PROPOSAL.max_bytes + ENVELOPE_BYTES,
        Kind.COMMITMENT: COMMITMENT.max_bytes + ENVELOPE_BYTES,
        Kind.CHUNK: chunk_bytes + PROOF_BYTES,
        Kind.OUTPUT: OUTPUT.max_bytes + ENVELOPE_BYTES,
        Kind.OUTPUT_CHUNK: chunk_bytes + PROOF_BYTES,
        Kind.CLOSING: CLOSING.max_bytes + ENVELOPE_BYTES,
        Kind.VOTE: VOTE.max_bytes + ENVELOPE_BYTES,
        Kind.CERTIFICATE: MAX_RECORD_BYTES,
        Kind.LEAVE: LEAVE.max_bytes + ENVELOPE_BYTES,
        Kind.WANT: 192,
        Kind.REVEAL: 128,
        Kind.AUDITED: 512,
        Kind.AUDIT_ROW: chunk_bytes + PROOF_BYTES + COMMITMENT.max_bytes + ENVELOPE_BYTES,
        Kind.EVIDENCE: EVIDENCE_PIECE + 128,
    }
    return limits[kind]


def frame(kind: Kind, payload: bytes) -> bytes:
    """The frame's bytes."""
    return bytes((kind,)) + payload


def unframe(data: bytes, chunk_bytes: int) -> tuple[Kind, bytes]:
    """Kind and payload. REJECT frame-kind, frame-size."""
    if not data:
        raise reject("frame-kind", "empty")
    try:
        kind = Kind(data[0])
    except ValueError:
        raise reject("frame-kind", str(data[0])) from None
    if len(data) - 1 > limit(kind, chunk_bytes):
        raise reject("frame-size", f"{kind.name.lower()} of {len(data) - 1} bytes")
    return kind, data[1:]


@dataclass(frozen=True)
class Send:
    """Send frames, in order, to each of `peers` (never ourselves). `frames` can be iterated more than once."""

    peers: tuple[PeerId, ...]
    frames: Iterable[bytes]
    bulk: bool
