"""The cases of round.json: one machine, brought to a known point, is shown good and bad frames of every kind."""

from __future__ import annotations

from typing import Any

from _vectors_plain import identity, seal_bytes
from _vectors_round import IDENTITIES, NEWCOMER, STRANGER, VALUES, Book, Setup, Stage, run_manifest, setup
from _vectors_round_audits import audits
from _vectors_round_craft import FAKE, Craft, payload, step
from _vectors_round_exchange import chunks, closings, commitments, outputs
from _vectors_round_records import certificates, rest, votes
from blake3 import blake3

from p2pnode.envelope import Signed
from p2pnode.manifest import RosterSection
from p2pnode.messages import CLOSING, LEAVE, MAX_ATTEMPT, VOTE, Equivocation, SlotBase
from p2pnode.replica.proposal import newcomer_order
from p2pnode.round.evidence import two_signatures
from p2pnode.round.frames import Kind, frame, limit
from p2pnode.round.rules import Rules
from p2pnode.wire.envelope_pb2 import Envelope
from p2pnode.wire.round_pb2 import (
    Accusation,
    EvidencePiece,
    Leave,
    Lock,
    Relock,
    RoundEntry,
    Vote,
)


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
    audits(book, craft, stage)
    votes(book, craft, stage)
    certificates(book, craft, stage)
    rest(book, craft, stage)
    evidence(book, craft)
    excluded(book)


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
    scene("closed", "outputs", "has the Closing, and has revealed its nonce")
    stage.deliver(lambda sender, to, kind: to == m and kind == Kind.REVEAL)
    scene("auditing", "closed", "knows what it is to audit, and has asked for it")
    stage.deliver(lambda sender, to, kind: kind != Kind.VOTE)
    scene("voted", "auditing", "has audited, was told that the others have, and has voted")
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
    message = Vote(slot=slot, closing=FAKE, state_digest=FAKE, group=FAKE)
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
        sender = next(number for number in range(IDENTITIES) if identity(number).peer_id == entry.sender)
        book.case(at, name, sender, frame(Kind.ENTRY, entry.raw), clause, **more)

    good = craft.entry(d)
    show("a member's entry", good)
    show("a newcomer's entry", craft.entry(NEWCOMER))
    show("an entry for a later attempt", craft.entry(d, 4))
    known = [step(d, frame(Kind.ENTRY, good.raw), 0.2)]
    show("an entry that is here already", good, "entry-known", ignore=True, before=known)
    order = sorted(range(NEWCOMER, IDENTITIES), key=lambda who: newcomer_order(craft.base, identity(who).peer_id))
    first, crowd, last = order[0], order[1:-1], order[-1]
    steps = [step(who, frame(Kind.ENTRY, craft.entry(who).raw), 0.2) for who in crowd]
    show("a fifth stranger, the last in order", craft.entry(last), "entry-crowded", ignore=True, before=steps)
    show("a fifth stranger, the first in order", craft.entry(first), before=steps)
    show("a member among many strangers", good, before=steps)
    show("a second, different entry for one slot", craft.entry(d, bandwidth=1), "entry-equivocation", before=known)
    show("a nonce digest of 31 bytes", craft.entry(d, nonce_digest=FAKE[:31]), "entry-form")
    show("an exchange key of 33 bytes", craft.entry(d, exchange_key=FAKE + b"\0"), "entry-form")
    accusation = Accusation(digest=FAKE, accused=identity(STRANGER).peer_id.key)
    show("an accusation of one who is not on record", craft.entry(d, evidence=[accusation]))
    show("five accusations", craft.entry(d, evidence=[accusation] * 5), "entry-form")
    short = Accusation(digest=FAKE[:31], accused=FAKE)
    show("an accusation with a short digest", craft.entry(d, evidence=[short]), "entry-form")
    lock = Lock(attempt=0, closing=FAKE, state_digest=FAKE)
    show("a lock of an earlier attempt", craft.entry(d, 1, lock=lock))
    show("a lock of its own attempt", craft.entry(d, lock=lock), "entry-lock")
    torn = Lock(attempt=0, closing=FAKE[:31], state_digest=FAKE)
    show("a lock with a short digest", craft.entry(d, 1, lock=torn), "entry-lock")
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


def excluded(book: Book) -> None:
    """A run that has excluded somebody."""
    without = setup(run_manifest(), excluded=(NEWCOMER,))
    book.data["setups"]["excluding"] = without.json
    c = without.order[0]
    book.scene("excluding-entered", "excluding", c, [{"at": 0.1, "offer": True}], "", "a run that has excluded a peer")
    base = SlotBase(without.run.digest, 1, Stage(without, (c,)).replays[c].genesis.digest)
    craft = Craft(without, base, Rules(without.run, VALUES))
    entry = frame(Kind.ENTRY, craft.entry(NEWCOMER).raw)
    book.case("excluding-entered", "an entry of one who was excluded", NEWCOMER, entry, "entry-excluded")
    stale = SlotBase(base.run, 0, base.parent)
    entry = frame(Kind.ENTRY, craft.entry(NEWCOMER, base=stale).raw)
    book.case("excluding-entered", "a stale entry of one who was excluded", NEWCOMER, entry, "entry-excluded")


def evidence(book: Book, craft: Craft) -> None:
    """Accusations in a proposal, and evidence that travels."""
    c, d, m = craft.setup.order
    at = "member-gathered"
    pair = [VOTE.seal(identity(d), Vote(slot=craft.base.at(7), closing=bytes((n,)))) for n in (1, 2)]
    raw = two_signatures(Equivocation("", *pair))
    digest = blake3(raw).digest()

    def accusing(accused: int, what: bytes = digest) -> bytes:
        accusation = Accusation(digest=what, accused=identity(accused).peer_id.key)
        return craft.proposal([craft.entry(c, evidence=[accusation]), craft.entry(NEWCOMER)], provisional=True)

    unverified = "an accusation whose evidence is not here"
    book.case(at, unverified, c, accusing(d), "proposal-unverified", ignore=True, at=61.0)

    def piece(data: bytes = raw, **fields: Any) -> bytes:
        known = {"digest": digest, "size": len(raw), "offset": 0, "data": data}
        return frame(Kind.EVIDENCE, EvidencePiece(**(known | fields)).SerializeToString())

    asked = [step(c, accusing(d), 61.0, outcome="ignore", clause="proposal-unverified")]
    book.case(at, "unasked", c, piece(), "evidence-unasked", ignore=True)
    book.case(at, "all of it, as it was asked for", c, piece(), before=asked)
    book.case(at, "of one who was not asked", d, piece(), "evidence-unasked", ignore=True, before=asked)
    book.case(at, "too large", c, piece(size=1 << 40), "evidence-size", before=asked)
    book.case(at, "not its beginning", c, piece(offset=5, data=raw[5:]), "evidence-piece", before=asked)
    book.case(at, "no piece", c, frame(Kind.EVIDENCE, b"\xff"), "evidence-piece", before=asked)
    book.case(at, "other bytes", c, piece(b"\xff" * len(raw)), "evidence-form", before=asked)
    held = [*asked, step(c, piece(), 61.1)]
    book.case(at, "an accusation whose evidence is here", c, accusing(d), "proposal-known", ignore=True, before=held)
    book.case(at, "an accusation of another than the evidence convicts", c, accusing(m), "proposal-evidence",
              before=[step(d, piece(), 61.0, outcome="ignore", clause="evidence-unasked"),
                      step(c, frame(Kind.ENTRY, craft.entry(c, 5, evidence=[
                          Accusation(digest=digest, accused=identity(d).peer_id.key)]).raw), 61.0),
                      step(c, piece(), 61.1)])  # fmt: skip
    theirs = [VOTE.seal(identity(c), Vote(slot=craft.base.at(7), closing=bytes((n,)))) for n in (1, 2)]
    proof = two_signatures(Equivocation("", *theirs))
    accusation = Accusation(digest=blake3(proof).digest(), accused=identity(c).peer_id.key)
    convicts = [
        step(d, frame(Kind.ENTRY, craft.entry(d, 5, evidence=[accusation]).raw), 0.9),
        step(d, piece(proof, digest=blake3(proof).digest(), size=len(proof)), 0.91),
    ]
    of = craft.proposal([craft.entry(c), craft.entry(d)])
    book.case(
        at, "of a convener that we hold evidence against", c, of, "proposal-convicted", ignore=True, before=convicts
    )
    mine = craft.entry(m, 3)
    book.case(at, "our own, shown to us after a restart", c, frame(Kind.ENTRY, mine.raw))


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
    show("an entry that is none", craft.proposal([of[0], craft.entry(d, nonce_digest=FAKE[:5])]), "entry-form")
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

    def leaving(
        who: int, number: int, of_run: bytes = run, attempt: int = 1000, listed: list[Signed[RoundEntry]] = of
    ) -> bytes:
        slot = SlotBase(of_run, number, craft.base.parent).at(attempt)
        return craft.proposal(listed, leaves=[LEAVE.seal(identity(who), Leave(slot=slot))])

    show("with a member's leave of an earlier round", leaving(m, 0))
    show("with a member's leave of this round", leaving(m, 1))
    show("of one member of three, and the leave of another", leaving(d, 1, listed=of[:1]))
    show("of one member of three, and an older leave", leaving(d, 0, listed=of[:1]), "proposal-quorum")
    show("with a leave of another run", leaving(m, 1, FAKE), "slot-run")
    show("with a stranger's leave", leaving(STRANGER, 0), "proposal-leaves")
    show("with a leave of one who is listed", leaving(d, 1), "proposal-leaves")
    show("with a leave that promises nothing", leaving(m, 1, attempt=0), "leave-form")
    others = [craft.entry(who, 1) for who in (c, d)]
    past = LEAVE.seal(identity(m), Leave(slot=craft.base.at(1)))
    show("with a leave that does not reach its attempt", craft.proposal(others, 1, leaves=[past]), "proposal-leaves", d)
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
