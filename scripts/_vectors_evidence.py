"""evidence.json: proofs that convict, and all kinds of things that look like them and do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _vectors_plain import identity
from _vectors_round import NEWCOMER, Json, Setup, Stage, run_manifest, setup
from _vectors_round_craft import FAKE

from p2pnode.envelope import Signed
from p2pnode.errors import PeerFault
from p2pnode.messages import COMMITMENT, ENTRY, LEAVE, OUTPUT, PROPOSAL, VOTE, Equivocation, SlotBase
from p2pnode.round.evidence import two_signatures, verify
from p2pnode.round.frames import Kind
from p2pnode.round.output import output_tree
from p2pnode.wire.evidence_pb2 import EvidenceRow, FalseOutput, Misbehaviour, TwoSignatures
from p2pnode.wire.round_pb2 import Commitment, Leave, OutputHeader, RoundEntry, Vote


def vectors() -> Json:
    """All cases, each checked at once."""
    plain = setup(run_manifest())
    cases: list[Json] = []

    def show(name: str, raw: bytes, clause: str = "") -> None:
        found: Json = {"name": name, "raw": raw.hex(), "refused": clause}
        try:
            evidence = verify(raw, plain.run)
            found |= {"accused": evidence.accused.key.hex(), "clause": evidence.clause, "digest": evidence.digest.hex()}
            got = ""
        except PeerFault as fault:
            got = fault.clause
        if got != clause:
            raise SystemExit(f"evidence: {name}: {got!r} where {clause!r} is due")
        cases.append(found)

    two(plain, show)
    outputs(plain, show)
    return {"manifest": plain.run.canonical.decode("ascii"), "cases": cases}


def two(plain: Setup, show: Callable[..., None]) -> None:
    """Two signatures."""
    base = SlotBase(plain.run.digest, 7, FAKE)

    def vote(number: int, who: int = 0, attempt: int = 3, at: SlotBase = base) -> Signed[Vote]:
        return VOTE.seal(identity(who), Vote(slot=at.at(attempt), closing=bytes((number,))))

    def pair(first: Signed[Any], second: Signed[Any]) -> bytes:
        return two_signatures(Equivocation("", first, second))

    good = pair(vote(1), vote(2))
    show("two votes for one slot", good)
    entries = [ENTRY.seal(identity(1), RoundEntry(slot=base.at(0), bandwidth=number)) for number in (1, 2)]
    show("two entries for one slot", pair(*entries))
    headers = [OUTPUT.seal(identity(2), OutputHeader(slot=base.at(0), part=1, weight=number)) for number in (1, 2)]
    show("two output headers for one part", pair(*headers))
    show("two votes of two attempts", pair(vote(1), vote(2, attempt=4)), "evidence-slot")
    show("two votes of two branches", pair(vote(1), vote(2, at=SlotBase(base.run, 7, bytes(32)))), "evidence-slot")
    show("two votes of two peers", pair(vote(1), vote(2, who=1)), "evidence-slot")
    foreign = SlotBase(FAKE, 7, FAKE)
    show("two votes in another run", pair(vote(1, at=foreign), vote(2, at=foreign)), "evidence-slot")
    parts = [OUTPUT.seal(identity(2), OutputHeader(slot=base.at(0), part=number)) for number in (0, 1)]
    show("output headers of two parts", pair(*parts), "evidence-slot")
    show("one vote, twice", Misbehaviour(two=TwoSignatures(first=vote(1).raw, second=vote(1).raw)).SerializeToString(),
         "evidence-form")  # fmt: skip
    low, high = sorted((vote(1).raw, vote(2).raw))
    show("two votes, descending", Misbehaviour(two=TwoSignatures(first=high, second=low)).SerializeToString(),
         "evidence-form")  # fmt: skip
    leaves = [LEAVE.seal(identity(0), Leave(slot=base.at(number))) for number in (1000, 2000)]
    show("two leaves, which are no misbehaviour", pair(*leaves), "evidence-form")
    commitment = COMMITMENT.seal(identity(0), Commitment(slot=base.at(3)))
    show("a vote and a commitment", pair(vote(1), commitment), "envelope-type")
    flipped = bytearray(good)
    flipped[-1] ^= 1
    show("two votes, one bit of a signature changed", bytes(flipped), "envelope-signature")
    show("nothing", b"", "evidence-form")
    show("no Misbehaviour", b"\xff\xff", "evidence-form")
    show("an unknown field behind it", good + b"\x7a\x01\x00", "evidence-form")


def outputs(plain: Setup, show: Callable[..., None]) -> None:
    """A signed output that is not what its rows give."""
    stage = Stage(plain, (0, 1, 2, NEWCOMER))
    for node in stage.nodes:
        stage.offer(node)
    stage.deliver(lambda sender, to, kind: kind not in (Kind.OUTPUT, Kind.OUTPUT_CHUNK))
    machines = {identity(node).peer_id: replay.machine for node, replay in stage.replays.items()}
    liar = plain.order[0]
    exchange = next(iter(machines[identity(liar).peer_id]._c.round.exchanges.values()))
    rules, group = exchange.rules, exchange.group
    part = group.part_of(identity(liar).peer_id)
    if part is None:
        raise SystemExit("no part")
    honest = exchange.outputs_of(part)[0]
    values = rules.decode(part, honest.data)
    values[5] += 1
    lie = rules.encode(part, values)

    def header(data: bytes, weight: int = 0) -> Signed[OutputHeader]:
        message = OutputHeader()
        message.CopyFrom(honest.header.message)
        message.root = output_tree(rules, part, data).root
        message.weight += weight
        return OUTPUT.seal(identity(liar), message)

    rows = []
    for accepted in honest.header.message.accepted:
        machine = next(found for peer, found in machines.items() if peer.key == accepted.contributor)
        theirs = next(iter(machine._c.round.exchanges.values()))
        contribution = theirs.contribution
        if contribution is None:
            raise SystemExit("no contribution")
        start, stop = rules.encoded_bounds(part, 0)
        first = contribution._layout.first_leaf[part.index]
        commitment = theirs.commitments[machine.peer_id]
        data = contribution.encoded[part.index][start:stop]
        rows.append(EvidenceRow(commitment=commitment.raw, data=data, proof=contribution.tree.proof(first)))

    def false(signed: Signed[OutputHeader], data: bytes, rows: list[EvidenceRow] = rows, **fields: Any) -> bytes:
        start, stop = rules.encoded_bounds(part, 0)
        known: Json = {"proposal": group.proposal.raw, "header": signed.raw, "index": 0, "data": data[start:stop]}
        known |= {"proof": output_tree(rules, part, data).proof(0), "rows": rows}
        return Misbehaviour(output=FalseOutput(**(known | fields))).SerializeToString(deterministic=True)

    signed = header(lie)
    show("a chunk that is not the aggregate of its rows", false(signed, lie))
    show("a weight that is not the sum of the rows'", false(header(bytes(honest.data), 1), bytes(honest.data)))
    show("an honest output", false(honest.header, bytes(honest.data)), "evidence-output")
    show("a chunk that its signer did not sign", false(honest.header, lie), "evidence-form")
    show("a row left out", false(signed, lie, rows[:-1]), "evidence-form")
    show("rows in another order", false(signed, lie, rows[::-1]), "evidence-form")
    bent = EvidenceRow()
    bent.CopyFrom(rows[0])
    bent.data = bytes((bent.data[0] ^ 1,)) + bent.data[1:]
    show("a row that was made up", false(signed, lie, [bent, *rows[1:]]), "evidence-form")
    show("a chunk that there is not", false(signed, lie, index=9), "evidence-form")
    message = group.proposal.message
    other = PROPOSAL.seal(identity(liar), type(message)(slot=message.slot))
    show("under another proposal", false(signed, lie, proposal=other.raw), "evidence-slot")
