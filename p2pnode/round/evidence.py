"""Evidence: that a peer broke the protocol, shown by nothing but what it signed itself. Verified offline, by anyone.

Two kinds. Two different signed messages for one slot. Or a signed output of which one chunk is not the aggregate of
signed rows that it says it accepted. What an accuser could have made up convicts nobody: a bad chunk, a late one, a
missing one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from blake3 import blake3
from google.protobuf.message import DecodeError

from p2pnode.errors import ManifestError, PeerFault
from p2pnode.identity import PeerId
from p2pnode.manifest import RunManifest
from p2pnode.messages import CLOSING, COMMITMENT, ENTRY, OUTPUT, PROPOSAL, VOTE, Equivocation, MessageType, reject
from p2pnode.replica.proposal import PartRange
from p2pnode.replica.tree import proves
from p2pnode.round.aggregation import aggregate_chunk
from p2pnode.round.contribution import Layout, row_leaf
from p2pnode.round.frames import PROOF_BYTES
from p2pnode.round.output import output_leaf
from p2pnode.round.rules import Rules
from p2pnode.wire.envelope_pb2 import Envelope
from p2pnode.wire.evidence_pb2 import EvidenceFile, FalseOutput, Misbehaviour, TwoSignatures
from p2pnode.wire.round_pb2 import Proposal

SLOTTED: Final[dict[str, MessageType[Any]]] = {
    kind.name: kind for kind in (ENTRY, PROPOSAL, COMMITMENT, OUTPUT, CLOSING, VOTE)
}
_ENVELOPE_BYTES: Final = 2048
MAX_FILE_BYTES: Final = 16 << 20  # above the largest evidence of any run


@dataclass(frozen=True)
class Evidence:
    """Verified: `accused` broke the rule `clause`. raw: the serialized Misbehaviour."""

    accused: PeerId
    clause: str
    round: int
    raw: bytes

    @property
    def digest(self) -> bytes:
        """Its name, 32 bytes."""
        return blake3(self.raw).digest()


@dataclass
class Wanted:
    """Evidence that we asked a peer for, as far as it is here."""

    peer: PeerId
    until: float
    data: bytearray = field(default_factory=bytearray)


def most_bytes(manifest: RunManifest) -> int:
    """The largest evidence of a run: two proposals, or one with a chunk of each contributor's row and of the output."""
    two = 2 * (PROPOSAL.max_bytes + _ENVELOPE_BYTES)
    chunk = manifest.limits.chunk_bytes + PROOF_BYTES + COMMITMENT.max_bytes + _ENVELOPE_BYTES
    return max(two, two // 2 + OUTPUT.max_bytes + chunk * (manifest.limits.contributors + 1)) + _ENVELOPE_BYTES


def two_signatures(found: Equivocation) -> bytes:
    """The Misbehaviour that an equivocation amounts to; the same bytes whoever makes it of these two."""
    first, second = sorted((found.first.raw, found.second.raw))
    return Misbehaviour(two=TwoSignatures(first=first, second=second)).SerializeToString(deterministic=True)


def verify(raw: bytes, manifest: RunManifest) -> Evidence:
    """Check evidence from anywhere. REJECT evidence-size, evidence-form, evidence-slot, evidence-same, evidence-output,
    and the envelopes' own clauses."""
    if len(raw) > most_bytes(manifest):
        raise reject("evidence-size", f"{len(raw)} bytes")
    try:
        found = Misbehaviour.FromString(raw)
    except DecodeError:
        raise reject("evidence-form", "not a Misbehaviour") from None
    found.DiscardUnknownFields()  # or they would be written back, and compare equal
    if found.SerializeToString(deterministic=True) != raw or found.HasField("two") == found.HasField("output"):
        raise reject("evidence-form", "not one kind of misbehaviour in canonical form")
    if found.HasField("two"):
        return _verify_two(found.two, manifest, raw)
    return _verify_output(found.output, manifest, raw)


def to_file(evidence: Evidence, manifest: RunManifest) -> bytes:
    """What is saved, so that anyone can verify it."""
    file = EvidenceFile(manifest=manifest.canonical, misbehaviour=evidence.raw)
    return file.SerializeToString(deterministic=True)


def open_file(raw: bytes) -> tuple[RunManifest, Evidence]:
    """Check what `to_file` made, or somebody says it did. REJECT as `verify`, and evidence-manifest."""
    if len(raw) > MAX_FILE_BYTES:
        raise reject("evidence-size", f"more than {MAX_FILE_BYTES} bytes")
    try:
        file = EvidenceFile.FromString(raw)
        manifest = RunManifest.from_canonical(file.manifest)
    except DecodeError:
        raise reject("evidence-form", "not a file of evidence") from None
    except ManifestError as error:
        raise reject("evidence-manifest", str(error)) from None
    return manifest, verify(file.misbehaviour, manifest)


def _verify_two(two: TwoSignatures, manifest: RunManifest, raw: bytes) -> Evidence:
    try:
        kind = SLOTTED[Envelope.FromString(two.first).type]
    except (DecodeError, KeyError):
        raise reject("evidence-form", "messages of that type have no slot") from None
    first, second = kind.open(two.first), kind.open(two.second)
    if two.first >= two.second:
        raise reject("evidence-form", "the two ascend")
    slot = first.message.slot
    if first.sender != second.sender or slot != second.message.slot or slot.run != manifest.digest:
        raise reject("evidence-slot", "not of one peer, for one slot of this run")
    if kind is OUTPUT and first.message.part != second.message.part:
        raise reject("evidence-slot", "outputs of two parts")
    if first.message == second.message:
        raise reject("evidence-same", "the same message twice")
    return Evidence(first.sender, f"{kind.name.removeprefix('round-')}-equivocation", int(slot.round), raw)


def _verify_output(output: FalseOutput, manifest: RunManifest, raw: bytes) -> Evidence:
    """The header names the group, and with it the parts, and the rows: all that is used is what its signer signed."""
    header, proposal = OUTPUT.open(output.header), PROPOSAL.open(output.proposal)
    message = header.message
    if message.slot.run != manifest.digest or proposal.digest != message.group:
        raise reject("evidence-slot", "the header is of another run or group")
    parts = _parts(proposal.message)
    if message.part >= len(parts):
        raise reject("evidence-form", "no such part")
    part = parts[message.part]
    rules = Rules(manifest, parts[-1].stop)
    index = int(output.index)
    if index >= rules.chunks(part) or len(output.rows) != len(message.accepted):
        raise reject("evidence-form", "no such chunk, or not all rows")
    leaf = output_leaf(part.index, index, output.data)
    if not proves(message.root, leaf, index, rules.chunks(part), output.proof):
        raise reject("evidence-form", "the chunk is not what the header's signer signed")
    layout = Layout(rules, parts)
    chunks, weights = [], []
    for accepted, row in zip(message.accepted, output.rows, strict=True):
        commitment = COMMITMENT.open(row.commitment)
        if commitment.digest != accepted.commitment or commitment.sender.key != accepted.contributor:
            raise reject("evidence-form", "a commitment that the header does not name")
        at = layout.first_leaf[part.index] + index
        leaf = row_leaf(part.index, index, row.data)
        if not proves(commitment.message.root, leaf, at, layout.leaves, row.proof):
            raise reject("evidence-form", "a row's chunk is not what its contributor committed to")
        chunks.append(row.data)
        weights.append(rules.weight(int(commitment.message.steps)))
    start, stop = rules.chunk_bounds(part, index)
    try:
        for chunk in chunks:
            rules.check_values(rules.codec.decode(chunk, stop - start))
        due = aggregate_chunk(rules, chunks, weights, stop - start)
    except (ValueError, PeerFault):
        due = b""  # no honest reducer accepts such rows
    if due == output.data and message.weight == sum(weights):
        raise reject("evidence-output", "the output is the aggregate of these rows")
    return Evidence(header.sender, "output-aggregate", int(message.slot.round), raw)


def _parts(proposal: Proposal) -> tuple[PartRange, ...]:
    """The parts as the proposal states them, in a form that can be calculated with. REJECT evidence-form."""
    parts: list[PartRange] = []
    at = 0
    for index, part in enumerate(proposal.parts):
        if part.start != at or part.stop <= at or len(part.reducer) != 32:
            raise reject("evidence-form", "no partition")
        at = int(part.stop)
        parts.append(PartRange(index, PeerId(part.reducer), int(part.start), at))
    if not parts:
        raise reject("evidence-form", "no partition")
    return tuple(parts)
