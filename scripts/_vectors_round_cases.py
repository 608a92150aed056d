"""The cases of round.json: one machine, brought to a known point, is shown good and bad frames of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from _vectors_plain import identity, seal_bytes
from _vectors_round import NEWCOMER, STRANGER, VALUES, Book, Json, Setup, Stage, run_manifest, setup
from blake3 import blake3

from p2pnode.envelope import Signed
from p2pnode.manifest import RosterSection
from p2pnode.messages import CLOSING, COMMITMENT, ENTRY, LEAVE, MAX_ATTEMPT, OUTPUT, PROPOSAL, VOTE, SlotBase
from p2pnode.replica.proposal import Group, check_group
from p2pnode.replica.roster import Roster
from p2pnode.replica.state import state_digest
from p2pnode.replica.tree import Tree
from p2pnode.round.contribution import Layout, row_leaf
from p2pnode.round.frames import Kind, frame, limit
from p2pnode.round.gathering import make_proposal
from p2pnode.round.rules import Rules
from p2pnode.wire.chain_pb2 import ChainRecord
from p2pnode.wire.chain_pb2 import Roster as RosterMessage
from p2pnode.wire.envelope_pb2 import Envelope
from p2pnode.wire.round_pb2 import (
    Chunk,
    Closing,
    Commitment,
    Leave,
    Lock,
    OutputChunk,
    OutputHeader,
    Proposal,
    Relock,
    RoundEntry,
    Vote,
    Want,
)

FAKE = b"\x5a" * 32  # a digest of nothing


def payload(data: bytes) -> bytes:
    """What a frame carries."""
    return data[1:]


@dataclass
class Craft:
    """Signs anything in anybody's name."""

    setup: Setup
    base: SlotBase
    rules: Rules

    def entry(self, who: int, attempt: int = 0, *, base: SlotBase | None = None, **fields: Any) -> Signed[RoundEntry]:
        known: Json = {
            "slot": (base or self.base).at(attempt),
            "nonce_digest": blake3(b"nonce %d" % who).digest(),
            "bandwidth": 10_000_000,
            "exchange_key": blake3(b"key %d" % who).digest(),
            "contributes": True,
        }
        return ENTRY.seal(identity(who), RoundEntry(**(known | fields)))

    def proposal_message(self, entries: list[Signed[RoundEntry]], attempt: int = 0, **fields: Any) -> Proposal:
        leaves = fields.pop("leaves", [])
        known: Json = {"provisional": False, "relock": None}
        entries = sorted(entries, key=lambda item: item.sender)
        roster = self.roster
        return make_proposal(
            self.base, attempt, entries, leaves, roster, self.rules.manifest, VALUES, **(known | fields)
        )

    def proposal(self, entries: list[Signed[RoundEntry]], attempt: int = 0, **fields: Any) -> bytes:
        """A proposal's frame, signed by the attempt's convener."""
        who = fields.pop("who", self.setup.order[attempt % 3])
        message = self.proposal_message(entries, attempt, **fields)
        return self.seal_proposal(message, who)

    def seal_proposal(self, message: Proposal, who: int) -> bytes:
        return frame(Kind.PROPOSAL, PROPOSAL.seal(identity(who), message).raw)

    def group(self, data: bytes) -> Group:
        return check_group(PROPOSAL.open(payload(data)), self.base, self.roster, self.rules.manifest, VALUES)

    @property
    def roster(self) -> Roster:
        return Roster.from_message(RosterMessage.FromString(bytes.fromhex(self.setup.json["roster"])))

    def vote(self, who: int, closing: bytes, state: bytes, attempt: int = 0, *, base: SlotBase | None = None) -> bytes:
        slot = (base or self.base).at(attempt)
        return frame(Kind.VOTE, VOTE.seal(identity(who), Vote(slot=slot, closing=closing, state_digest=state)).raw)


def step(sender: int, data: bytes, at: float, **expected: str) -> Json:
    """An inbound frame before a case."""
    return {"at": at, "from": sender, "frame": data.hex(), **expected}


def all_cases(book: Book) -> None:
    """Scenes and cases into `book`."""
    plain = setup(run_manifest())
    book.data["setups"]["plain"] = plain.json
    stage = play(book, plain)
    genesis = stage.replays[0].genesis
    craft = Craft(plain, SlotBase(plain.run.digest, 1, genesis.digest), Rules(plain.run, VALUES))
    frames_and_slots(book, craft)
    entries(book, craft)
    admission(book)
    proposals(book, craft, stage)
    relocks(book, craft, stage)
    commitments(book, craft, stage)
    chunks(book, craft, stage)
    outputs(book, craft, stage)
    closings(book, craft, stage)
    votes(book, craft, stage)
    certificates(book, craft, stage)
    rest(book, craft, stage)


def play(book: Book, plain: Setup) -> Stage:
    """One round of three members and a newcomer, cut into scenes for the third convener, `member`."""
    c, d, m = plain.order
    stage = Stage(plain, (0, 1, 2, NEWCOMER))
    cut = 0

    def scene(name: str, after: str, about: str, node: int = m) -> None:
        nonlocal cut
        book.scene(f"member-{name}", "plain", node, stage.steps[node][cut:], after and f"member-{after}", about)
        cut = len(stage.steps[node])

    stage.offer(m)
    scene("entered", "", "has offered its update and entered attempt 0")
    stage.offer(c)
    book.scene("convener-entered", "plain", c, stage.steps[c], "", "the convener of attempt 0 has entered")
    stage.offer(NEWCOMER)
    stage.deliver(lambda sender, to, kind: sender == NEWCOMER)
    stage.offer(d)
    stage.deliver(lambda sender, to, kind: kind == Kind.ENTRY)
    scene("gathered", "entered", "holds the others' entries")
    stage.deliver(lambda sender, to, kind: kind == Kind.PROPOSAL)
    scene("listed", "gathered", "has accepted the proposal of attempt 0 and sent its rows")
    book.scene("newcomer-listed", "plain", NEWCOMER, stage.steps[NEWCOMER], "", "a contributor that is no member")
    row = (Kind.COMMITMENT, Kind.CHUNK)
    stage.deliver(lambda sender, to, kind: sender == c and to == m and kind in row)
    stage.deliver(lambda sender, to, kind: sender == NEWCOMER and to == m and kind == Kind.COMMITMENT)
    scene("rows", "listed", "has the convener's whole row, and the newcomer's commitment")
    stage.deliver(lambda sender, to, kind: kind in row)
    scene("reduced", "rows", "has all rows, and has signed its output")
    stage.deliver(lambda sender, to, kind: sender == c and to == m and kind == Kind.OUTPUT)
    scene("header", "reduced", "has the convener's output header")
    stage.deliver(lambda sender, to, kind: kind in (Kind.OUTPUT, Kind.OUTPUT_CHUNK))
    scene("outputs", "header", "has all outputs")
    stage.deliver(lambda sender, to, kind: kind == Kind.CLOSING)
    scene("voted", "outputs", "has the Closing, and has voted")
    stage.deliver(lambda sender, to, kind: sender == c and to == m and kind == Kind.VOTE)
    scene("certified", "voted", "has a quorum of two votes: round 1 is certified")
    stage.deliver()
    return stage


def frames_and_slots(book: Book, craft: Craft) -> None:
    """What goes for every message."""
    c, d, _ = craft.setup.order
    at = "member-entered"
    good = craft.vote(c, FAKE, FAKE)
    book.case(at, "an empty frame", c, b"", "frame-kind")
    book.case(at, "a frame of a kind that there is not", c, b"\x63abc", "frame-kind")
    long = limit(Kind.VOTE, craft.rules.manifest.limits.chunk_bytes) + 1
    book.case(at, "a vote's frame over its limit", c, frame(Kind.VOTE, bytes(long)), "frame-size")
    book.case(at, "no envelope", c, frame(Kind.VOTE, b"\xff" * 20), "envelope-form")
    book.case(at, "an entry in a vote's frame", c, frame(Kind.VOTE, craft.entry(c).raw), "envelope-type")
    envelope = Envelope.FromString(payload(good))
    envelope.payload = bytes(VOTE.max_bytes + 1)
    book.case(at, "a payload over its limit", c, frame(Kind.VOTE, envelope.SerializeToString()), "envelope-size")
    envelope = Envelope.FromString(payload(good))
    envelope.sender = identity(d).peer_id.key
    book.case(
        at, "a vote under another's name", d, frame(Kind.VOTE, envelope.SerializeToString()), "envelope-signature"
    )
    odd = Envelope.FromString(VOTE.seal(identity(c), Vote(slot=craft.base.at(0))).raw)
    noise = seal_bytes(identity(c), odd.payload + b"\x7a\x01\x00", "vote")
    book.case(at, "a vote with an unknown field", c, frame(Kind.VOTE, noise), "envelope-payload")
    book.case(at, "a vote passed on by another member", d, good, "sender-mismatch")
    base = craft.base
    slot = base.at(0)
    slot.protocol = 2
    message = Vote(slot=slot, closing=FAKE, state_digest=FAKE)
    book.case(at, "of protocol version 2", c, frame(Kind.VOTE, VOTE.seal(identity(c), message).raw), "slot-protocol")
    other = [
        ("of another run", SlotBase(FAKE, 1, base.parent), 0, "slot-run", False),
        ("with a parent of 31 bytes", SlotBase(base.run, 1, FAKE[:31]), 0, "slot-form", False),
        ("of an attempt beyond the last", base, MAX_ATTEMPT + 1, "slot-attempt", False),
        ("of round 0", SlotBase(base.run, 0, base.parent), 0, "slot-stale", True),
        ("of the round after next", SlotBase(base.run, 2, base.parent), 0, "slot-future", True),
        ("of another branch", SlotBase(base.run, 1, FAKE), 0, "slot-parent", True),
    ]
    for name, changed, attempt, clause, ignore in other:
        book.case(at, f"a vote {name}", c, craft.vote(c, FAKE, FAKE, attempt, base=changed), clause, ignore=ignore)


def entries(book: Book, craft: Craft) -> None:
    """Entries, as the convener sees them."""
    _, d, _ = craft.setup.order
    at = "convener-entered"

    def show(name: str, entry: Signed[RoundEntry], clause: str = "", **more: Any) -> None:
        sender = next(number for number in range(5) if identity(number).peer_id == entry.sender)
        book.case(at, name, sender, frame(Kind.ENTRY, entry.raw), clause, **more)

    good = craft.entry(d)
    show("a member's entry", good)
    show("a newcomer's entry", craft.entry(NEWCOMER))
    show("an entry for a later attempt", craft.entry(d, 4))
    known = [step(d, frame(Kind.ENTRY, good.raw), 0.2)]
    show("an entry that is here already", good, "entry-known", ignore=True, before=known)
    show("a second, different entry for one slot", craft.entry(d, bandwidth=1), "entry-equivocation", before=known)
    show("a nonce digest of 31 bytes", craft.entry(d, nonce_digest=FAKE[:31]), "entry-form")
    show("an exchange key of 33 bytes", craft.entry(d, exchange_key=FAKE + b"\0"), "entry-form")
    show("nine digests of evidence", craft.entry(d, evidence=[FAKE] * 9), "entry-form")
    lock = Lock(attempt=0, closing=FAKE, state_digest=FAKE)
    show("a lock of an earlier attempt", craft.entry(d, 1, lock=lock))
    show("a lock of its own attempt", craft.entry(d, lock=lock), "entry-lock")
    short = Lock(attempt=0, closing=FAKE[:31], state_digest=FAKE)
    show("a lock with a short digest", craft.entry(d, 1, lock=short), "entry-lock")
    show("a lock of one who has no vote", craft.entry(NEWCOMER, 1, lock=lock), "entry-lock")
    show("a member that does not contribute", craft.entry(d, contributes=False))
    show("a stranger that does not contribute", craft.entry(STRANGER, contributes=False), "entry-idle")
    stale = SlotBase(craft.base.run, 0, craft.base.parent)
    show("an entry of a certified round", craft.entry(d, base=stale), "slot-stale", ignore=True)
    future = SlotBase(craft.base.run, 2, FAKE)
    show("an entry of the next round", craft.entry(d, base=future), "slot-future", ignore=True)


def admission(book: Book) -> None:
    """A run with a list of peers."""
    peers = tuple(identity(number).peer_id.text for number in range(4))
    listed = setup(run_manifest(roster=RosterSection(admission="list", peers=peers, company_wait=0.0)))
    book.data["setups"]["listed"] = listed.json
    c = listed.order[0]
    book.scene("listed-entered", "listed", c, [{"at": 0.1, "offer": True}], "", "a run that only four peers may join")
    base = SlotBase(listed.run.digest, 1, Stage(listed, (c,)).replays[c].genesis.digest)
    craft = Craft(listed, base, Rules(listed.run, VALUES))
    for who, clause in ((NEWCOMER, ""), (STRANGER, "entry-admission")):
        name = "an entry of one who is not on the list" if clause else "an entry of one who is on the list"
        book.case("listed-entered", name, who, frame(Kind.ENTRY, craft.entry(who).raw), clause)


def proposals(book: Book, craft: Craft, stage: Stage) -> None:
    """Proposals of attempt 0."""
    c, d, m = craft.setup.order
    at = "member-gathered"
    real = stage.frames(Kind.PROPOSAL, m)[0]
    of = [craft.entry(who) for who in (c, d)]

    def show(name: str, data: bytes, clause: str = "", sender: int = c, **more: Any) -> None:
        book.case(more.pop("scene", at), name, sender, data, clause, **more)

    show("the proposal of attempt 0", real)
    show("a proposal that another member passes on", real, sender=d)
    show("a proposal that is here already", real, "proposal-known", scene="member-listed", ignore=True)
    show(
        "a second, different proposal for one slot", craft.proposal(of), "proposal-equivocation", scene="member-listed"
    )
    show("signed by one who does not convene attempt 0", craft.proposal(of, who=d), "proposal-convener", d)

    def changed(entries: list[Signed[RoundEntry]] = of, **fields: Any) -> bytes:
        message = craft.proposal_message(entries)
        for name, value in fields.items():
            setattr(message, name, value)
        return craft.seal_proposal(message, c)

    longest = round(craft.rules.manifest.deadlines.vote * 1000)
    show("a deadline beyond the manifest's", changed(vote_ms=longest + 1), "proposal-deadlines")
    show("shorter deadlines", changed(vote_ms=100))
    message = craft.proposal_message(of)
    message.entries.reverse()
    show("entries that do not ascend", craft.seal_proposal(message, c), "proposal-entries-order")
    show("an entry of another attempt", craft.proposal([of[0], craft.entry(d, 1)]), "proposal-entry-attempt")
    show("an entry that is none", craft.proposal([of[0], craft.entry(d, evidence=[FAKE[:5]])]), "entry-form")
    strangers = [craft.entry(who) for who in (NEWCOMER, STRANGER)]
    show("one newcomer", craft.proposal([*of, strangers[0]]))
    show("two newcomers where one is allowed", craft.proposal([*of, *strangers]), "proposal-newcomers")
    empty = craft.proposal_message(of)
    empty.ClearField("entries")
    show("no entry at all", craft.seal_proposal(empty, c), "proposal-contributors")
    idle = [craft.entry(who, contributes=False) for who in (c, d)]
    show("nobody contributes", craft.proposal(idle), "proposal-contributors")
    show("one member of three", craft.proposal(of[:1]), "proposal-quorum")
    message = craft.proposal_message(of)
    message.parts[0].stop += 64
    message.parts[1].start += 64
    show("parts that do not follow from the bandwidths", craft.seal_proposal(message, c), "proposal-partition")
    message = craft.proposal_message(of)
    message.parts[1].reducer = identity(m).peer_id.key
    show("a reducer that has no entry", craft.seal_proposal(message, c), "proposal-partition")
    run = craft.base.run

    def leaving(who: int, number: int, of_run: bytes = run) -> bytes:
        leave = LEAVE.seal(identity(who), Leave(run=of_run, round=number))
        return craft.proposal(of, leaves=[leave])

    show("with a member's leave", leaving(m, 0))
    show("with a leave of another run", leaving(m, 0, FAKE), "proposal-leaves")
    show("with a stranger's leave", leaving(STRANGER, 0), "proposal-leaves")
    show("with a leave of the round that is being made", leaving(m, 1), "proposal-leaves")
    alone = craft.proposal(of[:1], provisional=True)
    early = "proposal-provisional-early"
    show("provisional, before this node's clock allows it", alone, early, ignore=True)
    show("provisional, after a minute without a certificate", alone, at=61.0)
    nobody = craft.proposal_message(of, provisional=True)
    del nobody.entries[:]
    nobody.entries.append(strangers[0].raw)
    show("provisional, without a single member", craft.seal_proposal(nobody, c), "proposal-quorum")
    later = step(d, craft.proposal([craft.entry(who, 1) for who in (c, d)], 1), 0.4)
    show("of an attempt below one that was accepted", real, "proposal-promised", ignore=True, before=[later])


def relocks(book: Book, craft: Craft, stage: Stage) -> None:
    """The lock rule: the highest lock among the entries is proposed again, and nothing else is."""
    c, d, m = craft.setup.order
    at = "member-gathered"
    proposal = payload(stage.frames(Kind.PROPOSAL, m)[0])
    closing = payload(stage.frames(Kind.CLOSING, m)[0])
    vote = VOTE.open(payload(stage.frames(Kind.VOTE, m)[0])).message
    lock = Lock(attempt=0, closing=vote.closing, state_digest=vote.state_digest)
    relock = Relock(proposal=proposal, closing=closing)
    locked = [craft.entry(c, 1, lock=lock), craft.entry(d, 1)]
    free = [craft.entry(who, 1) for who in (c, d)]

    def show(name: str, data: bytes, clause: str = "", sender: int = d) -> None:
        book.case(at, name, sender, data, clause)

    show("a lock is proposed again", craft.proposal(locked, 1, relock=relock))
    show("a lock is not proposed again", craft.proposal(locked, 1), "proposal-lock")
    show("proposed again without any lock", craft.proposal(free, 1, relock=relock), "proposal-lock")
    higher = Lock(attempt=2, closing=FAKE, state_digest=FAKE)
    two = [craft.entry(c, 3, lock=lock), craft.entry(d, 3, lock=higher)]
    show("a lock that is not the highest", craft.proposal(two, 3, relock=relock), "proposal-lock", c)
    message = craft.proposal_message(free, 1)
    message.entries[:] = [entry.raw for entry in sorted(locked, key=lambda item: item.sender)]
    message.relock.CopyFrom(relock)
    show("a relock with parts of its own", craft.seal_proposal(message, d), "proposal-partition")
    again = payload(craft.proposal(locked, 1, relock=relock))
    third = [
        craft.entry(c, 3, lock=Lock(attempt=1, closing=vote.closing, state_digest=vote.state_digest)),
        craft.entry(d, 3),
    ]
    nested = Relock(proposal=again, closing=closing)
    show("a relock of a relock", craft.proposal(third, 3, relock=nested), "proposal-lock", c)
    show("a relock of the exchange, two attempts on", craft.proposal(third, 3, relock=relock), "", c)
    forged = CLOSING.open(closing).message
    stolen = CLOSING.seal(identity(d), forged)
    faked = Lock(attempt=0, closing=stolen.digest, state_digest=vote.state_digest)
    liar = [craft.entry(c, 1), craft.entry(d, 1, lock=faked)]
    data = craft.proposal(liar, 1, relock=Relock(proposal=proposal, closing=stolen.raw))
    show("a lock on a Closing that its convener did not sign", data, "closing-convener")


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

    def show(name: str, clause: str = "", signer: int = c, scene: str = at, rows: Any = None, **fields: Any) -> bytes:
        message = OutputHeader.FromString(real.message.SerializeToString())
        for key, value in fields.items():
            getattr(message, key).CopyFrom(value) if hasattr(value, "CopyFrom") else setattr(message, key, value)
        if rows is not None:
            rows(message.accepted)
        data = frame(Kind.OUTPUT, OUTPUT.seal(identity(signer), message).raw)
        book.case(scene, name, c, data, clause)
        return data

    show("a reducer's output header")
    book.case(at, "a header that another peer passes on", NEWCOMER, frame(Kind.OUTPUT, real.raw))
    early = frame(Kind.OUTPUT, real.raw)
    book.case("member-gathered", "a header before its proposal", c, early, "group-unknown", ignore=True)
    show("of another attempt than the group's", "output-attempt", slot=craft.base.at(1))
    show("of a part that there is not", "output-part", part=len(group.parts))
    show("of another's part", "output-reducer", signer=d)
    show("no accepted row", "output-rows", rows=lambda rows: rows.__delitem__(slice(None)))
    show("rows that do not ascend", "output-rows", rows=lambda rows: rows.reverse())

    def stranger(rows: Any) -> None:
        rows[0].contributor = bytes(32)

    show("a row of one who does not contribute", "output-rows", rows=stranger)
    show("a root of 31 bytes", "output-root", root=FAKE[:31])
    show("a second, different header for one part", "output-equivocation", scene="member-header", root=FAKE)
    show("a header that the Closing does not name", "output-not-closed", scene="member-voted", root=FAKE)
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


def votes(book: Book, craft: Craft, stage: Stage) -> None:
    """Votes."""
    c, d, m = craft.setup.order
    real = stage.frames(Kind.VOTE, m, c)[0]
    vote = VOTE.open(payload(real)).message
    book.case("member-voted", "the vote that makes the quorum", c, real)
    book.case("member-entered", "a vote before anything else of its round", c, real)
    at = "member-outputs"
    book.case(at, "a digest of 31 bytes", c, craft.vote(c, FAKE[:31], FAKE), "vote-form")
    stranger = craft.vote(NEWCOMER, vote.closing, vote.state_digest)
    book.case(at, "a vote of one who has none", NEWCOMER, stranger, "vote-voter")
    before = [step(c, real, 0.9)]
    book.case(at, "a vote that is here already", c, real, "vote-known", ignore=True, before=before)
    other = craft.vote(c, vote.closing, FAKE)
    book.case(at, "a second, different vote for one slot", c, other, "vote-equivocation", before=before)
    book.case(at, "a vote of the same member in a later attempt", c, craft.vote(c, FAKE, FAKE, 1), before=before)
    book.case("member-certified", "a vote of a certified round", d, craft.vote(d, vote.closing, vote.state_digest),
              "slot-stale", ignore=True)  # fmt: skip


def certificates(book: Book, craft: Craft, stage: Stage) -> None:
    """Certificates: whole chain records."""
    c, d, m = craft.setup.order
    at = "member-entered"
    raw = stage.records[0]
    real = ChainRecord.FromString(raw)
    first = VOTE.open(real.votes[0]).message

    def show(name: str, clause: str = "", *, ignore: bool = False, before: Any = (), **fields: Any) -> None:
        record = ChainRecord.FromString(raw)
        for key, value in fields.items():
            if isinstance(value, list):
                getattr(record, key)[:] = value
            elif callable(value):
                value(getattr(record, key))
            else:
                setattr(record, key, value)
        data = frame(Kind.CERTIFICATE, record.SerializeToString(deterministic=True))
        book.case(at, name, d, data, clause, ignore=ignore, before=before)

    def header(**fields: Any) -> Any:
        def change(message: Any) -> None:
            for key, value in fields.items():
                setattr(message, key, value)

        return change

    def sealed(who: int, attempt: int = 0, closing: bytes = first.closing, state: bytes = first.state_digest) -> bytes:
        return payload(craft.vote(who, closing, state, attempt))

    def in_order(*whos: int, **more: Any) -> list[bytes]:
        return [sealed(who, **more) for who in sorted(whos, key=lambda who: identity(who).peer_id)]

    show("the certificate")
    show("a certificate with another quorum", votes=in_order(d, m))
    show("with all votes", votes=in_order(c, d, m))
    known = [step(c, frame(Kind.CERTIFICATE, raw), 0.2)]
    show("a certificate that is here already", "record-known", ignore=True, before=known)
    book.case(at, "no record", d, frame(Kind.CERTIFICATE, b"\xff\xff"), "record-form")
    show("of another run", "record-run", header=header(run=FAKE))
    show("of another branch", "record-fork", ignore=True, header=header(parent=FAKE))
    show("of the round after next", "slot-future", ignore=True, header=header(round=2))
    stale = frame(Kind.CERTIFICATE, raw)
    book.case("member-certified", "of a round that is certified here", d, stale, "slot-stale", ignore=True)
    show("one vote of three", "record-quorum", votes=real.votes[:1])
    show("no vote", "record-votes", votes=[])
    show("one vote twice", "record-votes", votes=[real.votes[0], real.votes[0]])
    show("votes that do not ascend", "record-votes", votes=list(real.votes)[::-1])
    show("a vote of one who has none", "record-votes", votes=in_order(c, NEWCOMER))
    show("votes for two states", "record-votes", votes=sorted([*in_order(c), *in_order(d, state=FAKE)], key=_sender))
    show("votes of two attempts", "record-votes", votes=sorted([*in_order(c), *in_order(d, attempt=1)], key=_sender))
    show("votes of another attempt than the proposal's", "record-votes", votes=in_order(c, d, attempt=1))
    show("votes for another Closing", "record-votes", votes=in_order(c, d, closing=FAKE))
    bad = bytearray(real.votes[0])
    bad[-1] ^= 1
    show("a vote with a bad signature", "envelope-signature", votes=[bytes(bad), *real.votes[1:]])
    show("other tensors than were voted for", "record-state", header=header(tensors=FAKE))
    show("another round number inside", "slot-future", ignore=True, header=header(round=7))

    def promote(roster: Any) -> None:
        for entry in roster.entries:
            entry.member = True

    show("a newcomer made a voter", "record-roster", roster=promote)
    show("a roster without anybody", "record-roster", roster=lambda roster: roster.Clear())
    show("outputs in another order", "closing-outputs", outputs=list(real.outputs)[::-1])
    show("an output missing", "closing-outputs", outputs=list(real.outputs)[:-1])
    message = CLOSING.open(real.closing).message
    wrong = Closing.FromString(message.SerializeToString())
    wrong.counted[:] = list(message.counted)[1:]
    show("a Closing that leaves one out", "closing-counted", closing=CLOSING.seal(identity(c), wrong).raw)
    proposal = craft.proposal([craft.entry(who) for who in (c, d)])
    show("a Closing of another group", "closing-group", proposal=payload(proposal))
    elsewhere = Craft(craft.setup, SlotBase(craft.base.run, 1, FAKE), craft.rules)
    foreign = elsewhere.proposal_message([elsewhere.entry(who) for who in (c, d)])
    show("a proposal of another branch", "record-slot", proposal=PROPOSAL.seal(identity(c), foreign).raw)
    lock = Lock(attempt=0, closing=first.closing, state_digest=first.state_digest)
    locked = [craft.entry(c, 1, lock=lock), craft.entry(d, 1)]
    relock = Relock(proposal=real.proposal, closing=real.closing)
    again = payload(craft.proposal(locked, 1, relock=relock))
    show("certified in a later attempt", reproposal=again, votes=in_order(c, d, attempt=1))
    show("votes of the first attempt for a later one", "record-votes", reproposal=again)
    fresh = payload(craft.proposal([craft.entry(who, 1) for who in (c, d)], 1))
    show("a reproposal that proposes anew", "record-reproposal", reproposal=fresh, votes=in_order(c, d, attempt=1))
    twin = Closing.FromString(message.SerializeToString())
    twin.outputs[0] = FAKE
    second = CLOSING.seal(identity(c), twin)
    lock = Lock(attempt=0, closing=second.digest, state_digest=FAKE)
    other = [craft.entry(c, 1, lock=lock), craft.entry(d, 1)]
    split = payload(craft.proposal(other, 1, relock=Relock(proposal=real.proposal, closing=second.raw)))
    show("a reproposal of the convener's other Closing", "record-reproposal", reproposal=split,
         votes=in_order(c, d, attempt=1))  # fmt: skip
    if state_digest(real.header) != first.state_digest:
        raise SystemExit("the record's header is not what was voted for")


def _sender(raw: bytes) -> bytes:
    return Envelope.FromString(raw).sender


def rest(book: Book, craft: Craft, stage: Stage) -> None:
    """Leaves and requests."""
    c, d, m = craft.setup.order
    at = "member-entered"

    def leave(who: int, number: int, run: bytes = craft.base.run) -> bytes:
        return frame(Kind.LEAVE, LEAVE.seal(identity(who), Leave(run=run, round=number)).raw)

    book.case(at, "a member's leave", d, leave(d, 0))
    book.case(at, "a leave that another peer passes on", c, leave(d, 0))
    book.case(at, "a stranger's leave", STRANGER, leave(STRANGER, 0), "leave-outdated", ignore=True)
    book.case(at, "a leave of another run", d, leave(d, 0, FAKE), "leave-outdated", ignore=True)
    book.case(at, "a leave of the round that is being made", d, leave(d, 1), "leave-outdated", ignore=True)

    def want(scene: str, name: str, sender: int, clause: str = "", *, ignore: bool = False, **fields: Any) -> None:
        book.case(scene, name, sender, frame(Kind.WANT, Want(**fields).SerializeToString()), clause, ignore=ignore)

    group = craft.group(stage.frames(Kind.PROPOSAL, m)[0])
    part = group.part_of(identity(c).peer_id)
    if part is None:
        raise SystemExit("no part")
    own: Json = {"kind": Want.CHUNK, "digest": group.digest, "part": part.index}
    book.case(at, "no request", c, frame(Kind.WANT, b"\xff"), "want-form")
    want("member-listed", "a chunk of the asker's own part", c, **own)
    want("member-listed", "a chunk of another's part", d, "want-form", **own)
    want("member-listed", "a chunk beyond the last", c, "want-form", index=99, **own)
    want("member-listed", "an output that nobody has", c, "want-unknown", ignore=True, kind=Want.OUTPUT, digest=FAKE)
    want("member-listed", "nothing", c, "want-unknown", ignore=True)
    want("member-certified", "the certificate", d, kind=Want.CERTIFICATE, round=1)
    closing = CLOSING.open(payload(stage.frames(Kind.CLOSING, m)[0]))
    want("member-voted", "a Closing with its proposal", d, kind=Want.CLOSING, digest=closing.digest)
    header = closing.message.outputs[part.index]
    want("member-voted", "a whole output", NEWCOMER, kind=Want.OUTPUT, digest=header)
    want("member-certified", "an output of the last round", NEWCOMER, kind=Want.OUTPUT, digest=header)
