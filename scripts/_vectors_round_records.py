"""The cases of round.json about votes, certificates, leaves and requests."""

from __future__ import annotations

from typing import Any

from _vectors_plain import identity
from _vectors_round import NEWCOMER, STRANGER, VALUES, Book, Json, Stage
from _vectors_round_craft import FAKE, Craft, payload, step

from p2pnode.messages import CLOSING, COMMITMENT, LEAVE, OUTPUT, PROPOSAL, VOTE, SlotBase
from p2pnode.replica.chain import Link, assemble
from p2pnode.replica.outer import outer_step
from p2pnode.replica.state import GlobalState, state_digest
from p2pnode.round.contribution import Contribution
from p2pnode.round.frames import Kind, frame
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.output import Output, output_tree
from p2pnode.wire.chain_pb2 import ChainRecord
from p2pnode.wire.envelope_pb2 import Envelope
from p2pnode.wire.round_pb2 import (
    Closing,
    Leave,
    Lock,
    Relock,
    Vote,
    Want,
)
from tests.support.vectors import vector_update


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

    def sealed(who: int, attempt: int = 0, **fields: bytes) -> bytes:
        said = {"closing": first.closing, "state": first.state_digest, "group": first.group, **fields}
        return payload(craft.vote(who, said["closing"], said["state"], attempt, group=said["group"]))

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
    show("votes cast under another proposal", "record-votes", votes=in_order(c, d, group=FAKE))
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
    under = PROPOSAL.open(again).digest
    show("certified in a later attempt", reproposal=again, votes=in_order(c, d, attempt=1, group=under))
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
    alone = provisional_alone(craft, stage)
    early = "record-provisional-early"
    book.case(at, "provisional, of one member, while a quorum may do without it", c, alone, early, ignore=True)
    book.case(at, "provisional, after a minute without a certificate", c, alone, at=61.0)
    if state_digest(real.header) != first.state_digest:
        raise SystemExit("the record's header is not what was voted for")


def provisional_alone(craft: Craft, stage: Stage) -> bytes:
    """A certificate that the first convener makes all by itself."""
    who = craft.setup.order[0]
    me, base, rules = identity(who), craft.base, craft.rules
    group = craft.group(craft.proposal([craft.entry(who)], provisional=True))
    exchange = GroupExchange(rules, base, group, me.peer_id)
    part = group.parts[0]
    contribution = Contribution(rules, group, vector_update(who, rules.manifest, VALUES))
    reduction = exchange.reductions[part.index]
    reduction.open_row(COMMITMENT.seal(me, contribution.commitment(base))).fill(contribution.encoded[0])
    aggregated = reduction.aggregate()
    if aggregated is None:
        raise SystemExit("nothing to aggregate")
    header, data = aggregated
    header.slot.CopyFrom(base.at(0))
    header.group, header.root = group.digest, output_tree(rules, part, data).root
    output = exchange.keep(Output.whole(rules, part, OUTPUT.seal(me, header), data))
    closing = CLOSING.seal(me, exchange.closing_message())
    genesis = stage.replays[who].genesis
    tensors = outer_step(rules.manifest.training.outer, genesis.tensors, exchange.averaged())
    roster = craft.roster.after(group.committed(base, closing.message), rules.manifest)
    state = GlobalState(base.run, base.round, base.parent, roster, tensors, VALUES)
    vote = VOTE.seal(me, Vote(slot=base.at(0), closing=closing.digest, state_digest=state.digest, group=group.digest))
    return frame(Kind.CERTIFICATE, assemble(Link.of(genesis), group, closing, [output.header], [vote], state).record)


def _sender(raw: bytes) -> bytes:
    return Envelope.FromString(raw).sender


def rest(book: Book, craft: Craft, stage: Stage) -> None:
    """Leaves and requests."""
    c, d, m = craft.setup.order
    at = "member-entered"

    def leave(who: int, number: int, run: bytes = craft.base.run, **fields: Any) -> bytes:
        base = SlotBase(run, number, craft.base.parent)
        return frame(Kind.LEAVE, LEAVE.seal(identity(who), Leave(slot=base.at(1000), **fields)).raw)

    book.case(at, "a member's leave of the round that is being made", d, leave(d, 1))
    book.case(at, "a member's leave of an earlier round", d, leave(d, 0))
    book.case(at, "a leave that another peer passes on", c, leave(d, 1))
    known = [step(d, leave(d, 1), 0.2)]
    book.case(at, "a leave that is here already", d, leave(d, 1), "leave-known", ignore=True, before=known)
    book.case(at, "a leave older than one that is here", d, leave(d, 0), "leave-outdated", ignore=True, before=known)
    book.case(at, "a stranger's leave", STRANGER, leave(STRANGER, 1), "leave-outdated", ignore=True)
    book.case(at, "a leave of another run", d, leave(d, 1, FAKE), "slot-run")
    book.case(at, "a leave of the next round", d, leave(d, 2), "slot-future", ignore=True)
    nothing = Leave(slot=craft.base.at(0))
    book.case(
        at, "a leave that promises nothing", d, frame(Kind.LEAVE, LEAVE.seal(identity(d), nothing).raw), "leave-form"
    )
    late = Lock(attempt=1000, closing=FAKE, state_digest=FAKE)
    book.case(at, "a leave whose lock is not below it", d, leave(d, 1, lock=late), "leave-form")

    def want(scene: str, name: str, sender: int, clause: str = "", *, ignore: bool = False, **fields: Any) -> None:
        book.case(scene, name, sender, frame(Kind.WANT, Want(**fields).SerializeToString()), clause, ignore=ignore)

    group = craft.group(stage.frames(Kind.PROPOSAL, m)[0])
    part = group.part_of(identity(c).peer_id)
    if part is None:
        raise SystemExit("no part")
    own: Json = {"kind": Want.CHUNK, "digest": group.digest, "part": part.index}
    book.case(at, "no request", c, frame(Kind.WANT, b"\xff"), "want-form")
    want("member-listed", "a chunk of the asker's own part", c, **own)
    want("member-listed", "a chunk beyond the last", c, "want-form", index=99, **own)
    row: Json = {"kind": Want.ROW, "digest": group.digest, "part": part.index}
    outsider = next(who for who in (d, NEWCOMER) if identity(who).peer_id not in part.aggregators)
    want("member-listed", "a chunk, for one who does not aggregate its part", outsider, "want-form", **own)
    want("member-listed", "a row of the asker's own part", c, **row)
    want("member-listed", "a row, for one who does not aggregate its part", outsider, "want-form", **row)
    want("member-listed", "an output that nobody has", c, "want-unknown", ignore=True, kind=Want.OUTPUT, digest=FAKE)
    want("member-listed", "nothing", c, "want-unknown", ignore=True)
    want("member-certified", "the certificate", d, kind=Want.CERTIFICATE, round=1)
    closing = CLOSING.open(payload(stage.frames(Kind.CLOSING, m)[0]))
    want("member-voted", "a Closing with its proposal", d, kind=Want.CLOSING, digest=closing.digest)
    header = closing.message.outputs[part.index]
    want("member-voted", "a whole output", NEWCOMER, kind=Want.OUTPUT, digest=header)
    output = Want(kind=Want.OUTPUT, digest=header).SerializeToString()
    before = [step(NEWCOMER, frame(Kind.WANT, output), 1.5)]
    name = "a whole output, twice within a moment"
    book.case("member-voted", name, NEWCOMER, frame(Kind.WANT, output), "want-again", ignore=True, before=before)
    book.case("member-voted", "a whole output, again a while later", NEWCOMER, frame(Kind.WANT, output), at=2.0,
              before=before)  # fmt: skip
    want("member-certified", "an output of the last round", NEWCOMER, kind=Want.OUTPUT, digest=header)
