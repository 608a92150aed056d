"""The cases of round.json from commitments to certificates."""

from __future__ import annotations

from typing import Any

import numpy as np
from _vectors_plain import identity
from _vectors_round import NEWCOMER, STRANGER, Book, Stage
from _vectors_round_craft import FAKE, Craft, payload, step
from blake3 import blake3

from p2pnode.messages import CLOSING, COMMITMENT, OUTPUT
from p2pnode.replica.proposal import Group
from p2pnode.replica.tree import Tree
from p2pnode.round.contribution import Layout, row_leaf
from p2pnode.round.frames import Kind, frame
from p2pnode.wire.round_pb2 import (
    Chunk,
    Closing,
    Commitment,
    OutputChunk,
    OutputHeader,
)


def commitments(book: Book, craft: Craft, stage: Stage) -> None:
    """Commitments, as a reducer sees them."""
    c, _, m = craft.setup.order
    at = "member-listed"
    real = COMMITMENT.open(payload(stage.frames(Kind.COMMITMENT, m, c)[0]))

    def show(name: str, clause: str = "", sender: int = c, **fields: Any) -> None:
        message = Commitment.FromString(real.message.SerializeToString())
        for key, value in fields.items():
            getattr(message, key).CopyFrom(value) if hasattr(value, "CopyFrom") else setattr(message, key, value)
        data = frame(Kind.COMMITMENT, COMMITMENT.seal(identity(sender), message).raw)
        book.case(at, name, sender, data, clause)

    show("a contributor's commitment")
    data = frame(Kind.COMMITMENT, real.raw)
    book.case("member-gathered", "a commitment before its proposal", c, data, "group-unknown", ignore=True)
    book.case("newcomer-listed", "to one who reduces nothing", c, data, "commitment-not-reducer", ignore=True)
    show("of another attempt than the group's", "commitment-attempt", slot=craft.base.at(1))
    show("of one who is not in the group", "commitment-contributor", STRANGER)
    show("a root of 31 bytes", "commitment-form", root=FAKE[:31])
    show("fewer steps than the first band", "commitment-steps", steps=1)
    show("more steps than the manifest has", "commitment-steps", steps=6)
    show("the least steps that count", steps=2)
    declared = real.message.mechanism
    for name, fields in (
        ("a mechanism of another mode", {"mode": "none"}),
        ("less noise than the manifest asks for", {"noise_multiplier": declared.noise_multiplier - 0.5}),
        ("a larger clip than the manifest's", {"clip": declared.clip * 2}),
        ("no clip", {"clip": 0.0}),
        ("a higher sampling rate than the manifest's", {"sampling_rate": declared.sampling_rate * 2}),
    ):
        message = type(declared).FromString(declared.SerializeToString())
        for key, value in fields.items():
            setattr(message, key, value)
        show(name, "commitment-mechanism", mechanism=message)
    other = Commitment.FromString(real.message.SerializeToString())
    other.root = FAKE
    second = frame(Kind.COMMITMENT, COMMITMENT.seal(identity(c), other).raw)
    book.case("member-rows", "a second, different commitment for one slot", c, second, "commitment-equivocation")
    book.case("member-rows", "the same commitment again", c, data)
    book.case("member-reduced", "a commitment after the output is signed", c, data, "commitment-late", ignore=True)


def chunks(book: Book, craft: Craft, stage: Stage) -> None:
    """Chunks of rows, as a reducer sees them."""
    c, d, m = craft.setup.order
    at = "member-rows"
    real = [Chunk.FromString(payload(data)) for data in stage.frames(Kind.CHUNK, m, NEWCOMER)]

    def show(name: str, clause: str = "", number: int = 0, **fields: Any) -> None:
        message = Chunk.FromString(real[number].SerializeToString())
        for key, value in fields.items():
            setattr(message, key, value)
        book.case(at, name, NEWCOMER, frame(Kind.CHUNK, message.SerializeToString()), clause)

    show("a chunk of a row")
    show("its last chunk first", number=len(real) - 1)
    book.case(at, "a chunk that is here already", c, stage.frames(Kind.CHUNK, m, c)[0])
    book.case(at, "no chunk", c, frame(Kind.CHUNK, b"\xff\xff"), "chunk-form")
    show("a chunk of another part", "chunk-part", part=(real[0].part + 1) % 3)
    show("a chunk beyond the last", "chunk-index", index=len(real))
    show("a byte too few", "chunk-size", data=real[0].data[:-1])
    show("one bit changed", "chunk-proof", data=bytes((real[0].data[0] ^ 1,)) + real[0].data[1:])
    show("under another index of the same size", "chunk-size", index=1)
    uncommitted = stage.frames(Kind.CHUNK, m, d)[0]
    book.case(at, "a chunk before its commitment", d, uncommitted, "chunk-uncommitted", ignore=True)
    late = frame(Kind.CHUNK, real[0].SerializeToString())
    book.case("member-reduced", "a chunk after the output is signed", NEWCOMER, late, "chunk-late", ignore=True)
    unknown = Chunk.FromString(real[0].SerializeToString())
    unknown.group = FAKE
    data = frame(Kind.CHUNK, unknown.SerializeToString())
    book.case(at, "a chunk of an unknown group", NEWCOMER, data, "group-unknown", ignore=True)
    group = craft.group(stage.frames(Kind.PROPOSAL, m)[0])
    for name, clause, value in (
        ("a NaN that was committed to", "value-form", np.nan),
        ("an infinity that was committed to", "value-form", np.inf),
        ("a value beyond max_abs", "value-bound", -10.5),
        ("values whose RMS is beyond max_rms", "value-rms", 9.0),
        ("values whose RMS is just at max_rms", "", 1.0),
    ):
        commitment, chunk = hostile_row(craft, group, m, value, alone=clause != "value-rms" and bool(clause))
        book.case("member-listed", name, NEWCOMER, chunk, clause, before=[step(NEWCOMER, commitment, 0.5)])


def hostile_row(craft: Craft, group: Group, reducer: int, value: float, *, alone: bool) -> tuple[bytes, bytes]:
    """A newcomer's commitment to a first chunk of `value` (one, or all of it), and that chunk."""
    part = group.part_of(identity(reducer).peer_id)
    if part is None:
        raise SystemExit("no part")
    rules = craft.rules
    start, stop = rules.chunk_bounds(part, 0)
    values = np.zeros(stop - start, dtype="<f4")
    values[: 1 if alone else None] = value
    data = values.tobytes()
    layout = Layout(rules, group.parts)
    leaves = [blake3(b"%d" % number).digest() for number in range(layout.leaves)]
    at = layout.first_leaf[part.index]
    leaves[at] = row_leaf(part.index, 0, data)
    tree = Tree(leaves)
    privacy = rules.manifest.privacy
    message = Commitment(slot=craft.base.at(0), group=group.digest, root=tree.root, steps=5)
    message.mechanism.mode, message.mechanism.clip = privacy.mode, privacy.clip
    message.mechanism.noise_multiplier = privacy.noise_multiplier
    message.mechanism.sampling_rate, message.mechanism.steps = privacy.sampling_rate, 5
    chunk = Chunk(group=group.digest, part=part.index, index=0, data=data, proof=tree.proof(at))
    sealed = COMMITMENT.seal(identity(NEWCOMER), message)
    return frame(Kind.COMMITMENT, sealed.raw), frame(Kind.CHUNK, chunk.SerializeToString())


def outputs(book: Book, craft: Craft, stage: Stage) -> None:
    """Output headers and chunks, as everybody sees them."""
    c, d, m = craft.setup.order
    at = "member-reduced"
    real = OUTPUT.open(payload(stage.frames(Kind.OUTPUT, m, c)[0]))
    group = craft.group(stage.frames(Kind.PROPOSAL, m)[0])

    def show(
        name: str, clause: str = "", signer: int = c, scene: str = at, rows: Any = None, ignore: bool = False,
        **fields: Any,
    ) -> bytes:  # fmt: skip
        message = OutputHeader.FromString(real.message.SerializeToString())
        for key, value in fields.items():
            getattr(message, key).CopyFrom(value) if hasattr(value, "CopyFrom") else setattr(message, key, value)
        if rows is not None:
            rows(message.accepted)
        data = frame(Kind.OUTPUT, OUTPUT.seal(identity(signer), message).raw)
        book.case(scene, name, c, data, clause, ignore=ignore)
        return data

    show("a reducer's output header")
    book.case(at, "a header that another peer passes on", NEWCOMER, frame(Kind.OUTPUT, real.raw))
    early = frame(Kind.OUTPUT, real.raw)
    book.case("member-gathered", "a header before its proposal", c, early, "group-unknown", ignore=True)
    show("of another attempt than the group's", "output-attempt", slot=craft.base.at(1))
    show("of a part that there is not", "output-part", part=len(group.parts))
    aggregators = group.parts[real.message.part].aggregators
    outsider, deputy = (d, m) if identity(m).peer_id in aggregators else (m, d)
    show("of another's part", "output-reducer", signer=outsider)
    show("by the part's deputy", signer=deputy)
    show("no accepted row", "output-rows", rows=lambda rows: rows.__delitem__(slice(None)))
    show("rows that do not ascend", "output-rows", rows=lambda rows: rows.reverse())

    def stranger(rows: Any) -> None:
        rows[0].contributor = bytes(32)

    show("a row of one who does not contribute", "output-rows", rows=stranger)
    show("a root of 31 bytes", "output-root", root=FAKE[:31])
    show("a second, different header for one part", "output-equivocation", scene="member-header", root=FAKE)
    show("two for one part, one of them closed", "output-equivocation", scene="member-voted", root=FAKE)
    late = "the deputy's, after a Closing that names the reducer's"
    show(late, "output-not-closed", signer=deputy, scene="member-voted", ignore=True)
    pieces = [OutputChunk.FromString(payload(data)) for data in stage.frames(Kind.OUTPUT_CHUNK, m, c)]
    pieces = [piece for piece in pieces if piece.header == real.digest]

    def chunk(name: str, clause: str = "", sender: int = c, ignore: bool = False, **fields: Any) -> None:
        message = OutputChunk.FromString(pieces[0].SerializeToString())
        for key, value in fields.items():
            setattr(message, key, value)
        data = frame(Kind.OUTPUT_CHUNK, message.SerializeToString())
        book.case("member-header", name, sender, data, clause, ignore=ignore)

    chunk("a chunk of an output")
    chunk("a chunk of an output that another peer passes on", sender=NEWCOMER)
    book.case("member-header", "no chunk of an output", c, frame(Kind.OUTPUT_CHUNK, b"\xff"), "output-chunk-form")
    chunk("a chunk of an output before its header", "output-chunk-headless", ignore=True, header=FAKE)
    chunk("a chunk of an output beyond the last", "output-chunk-index", index=len(pieces))
    chunk("a chunk of an output with a byte too few", "output-chunk-size", data=pieces[0].data[:-1])
    changed = bytes((pieces[0].data[0] ^ 1,)) + pieces[0].data[1:]
    chunk("a chunk of an output with one bit changed", "output-chunk-proof", data=changed)


def closings(book: Book, craft: Craft, stage: Stage) -> None:
    """Closings."""
    c, d, m = craft.setup.order
    real = CLOSING.open(payload(stage.frames(Kind.CLOSING, m)[0]))

    def show(name: str, clause: str = "", signer: int = c, scene: str = "member-outputs", **fields: Any) -> None:
        message = Closing.FromString(real.message.SerializeToString())
        for key, value in fields.items():
            if key == "slot":
                message.slot.CopyFrom(value)
            else:
                getattr(message, key)[:] = value
        data = frame(Kind.CLOSING, CLOSING.seal(identity(signer), message).raw)
        book.case(scene, name, c, data, clause)

    show("the convener's Closing")
    book.case("member-outputs", "a Closing that another peer passes on", d, frame(Kind.CLOSING, real.raw))
    raw = frame(Kind.CLOSING, real.raw)
    book.case("member-gathered", "a Closing before its proposal", c, raw, "group-unknown", ignore=True)
    show("of another attempt than the group's", "closing-attempt", slot=craft.base.at(1))
    show("by one who is not the convener", "closing-convener", signer=d)
    show("an output missing", "closing-form", outputs=list(real.message.outputs)[:-1])
    show("a digest of 31 bytes", "closing-form", outputs=[*list(real.message.outputs)[:-1], FAKE[:31]])
    show("counted peers that do not ascend", "closing-form", counted=list(real.message.counted)[::-1])
    show("a counted peer that does not contribute", "closing-form", counted=[bytes(32)])
    show("a second, different Closing for one slot", "closing-equivocation", scene="member-voted",
         outputs=[*list(real.message.outputs)[:-1], FAKE])  # fmt: skip
