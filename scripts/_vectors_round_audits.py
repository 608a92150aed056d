"""The cases of audits: nonces, what auditors say, and the rows that they are sent."""

from __future__ import annotations

from typing import Any

from _vectors_round import NEWCOMER, STRANGER, Book, Stage
from _vectors_round_craft import FAKE, Craft, payload

from p2pnode.messages import CLOSING
from p2pnode.round.frames import Kind, frame
from p2pnode.wire.round_pb2 import Audited, AuditRow, Reveal, Want


def audits(book: Book, craft: Craft, stage: Stage) -> None:
    """As the member sees them that is about to vote."""
    c, d, m = craft.setup.order
    closing = CLOSING.open(payload(stage.frames(Kind.CLOSING, m)[0])).digest
    nonce = Reveal.FromString(payload(stage.frames(Kind.REVEAL, m, c)[0])).nonce

    def reveal(name: str, clause: str = "", who: int = c, scene: str = "member-closed", **fields: Any) -> None:
        message = Reveal(**({"closing": closing, "nonce": nonce} | fields))
        data = frame(Kind.REVEAL, message.SerializeToString())
        ignore = clause in ("reveal-early", "reveal-unknown")
        book.case(scene, name, who, data, clause, ignore=ignore)

    reveal("the nonce of an entry")
    reveal("another nonce", "reveal-nonce", nonce=FAKE)
    reveal("a nonce of 31 bytes", "reveal-nonce", nonce=FAKE[:31])
    reveal("another peer's nonce", "reveal-nonce", who=d)
    reveal("a nonce of one who has no entry", "reveal-nonce", who=STRANGER)
    reveal("a nonce before its Closing", "reveal-early", scene="member-outputs")
    reveal("a stranger's nonce before its Closing", "reveal-unknown", who=STRANGER, scene="member-outputs")
    book.case("member-closed", "no nonce", c, frame(Kind.REVEAL, b"\xff"), "reveal-form")

    def told(name: str, clause: str = "", who: int = c, **fields: Any) -> None:
        message = Audited(**({"closing": closing, "parts": [0]} | fields))
        data = frame(Kind.AUDITED, message.SerializeToString())
        book.case("member-closed", name, who, data, clause, ignore=clause == "audited-unknown")

    told("a part")
    told("of a Closing that is not here", "audited-unknown", closing=FAKE)
    told("by one who does not vote", "audited-unknown", who=NEWCOMER)
    told("more parts than there are", "audited-form", parts=list(range(9)))

    real = [AuditRow.FromString(payload(data)) for data in stage.frames(Kind.AUDIT_ROW, m)]
    if not real:
        raise SystemExit("the member audits nothing in this round: choose another one")

    def row(name: str, clause: str = "", scene: str = "member-auditing", **fields: Any) -> None:
        message = AuditRow.FromString(real[0].SerializeToString())
        for key, value in fields.items():
            setattr(message, key, value)
        data = frame(Kind.AUDIT_ROW, message.SerializeToString())
        book.case(scene, name, c, data, clause, ignore=clause == "audit-row-unasked")

    row("a chunk of a row")
    row("a chunk of a row that nobody asked for", "audit-row-unasked", scene="member-closed")
    row("a chunk of a row of another group", "audit-row-unasked", group=FAKE)
    changed = bytes((real[0].data[0] ^ 1,)) + real[0].data[1:]
    row("a chunk of a row with one bit changed", "audit-row", data=changed)
    other = next(found.commitment for found in real if found.commitment != real[0].commitment)
    row("a chunk of a row under another's commitment", "audit-row", commitment=other)
    book.case("member-auditing", "no chunk of a row", c, frame(Kind.AUDIT_ROW, b"\xff"), "audit-row")

    group = real[0].group

    def want(scene: str, name: str, who: int, *, ignore: bool = False) -> None:
        asked = Want(kind=Want.AUDIT, digest=group, part=0, index=0)
        data = frame(Kind.WANT, asked.SerializeToString())
        book.case(scene, name, who, data, "want-unknown" if ignore else "", ignore=ignore)

    want("member-closed", "a chunk of our row, for an auditor", d)
    want("member-closed", "a chunk of our row, for one who does not vote", NEWCOMER, ignore=True)
    want("member-outputs", "a chunk of our row, before there is a Closing", d, ignore=True)
