"""Evidence on its way: held once verified, named in entries, asked for, handed out in pieces; never believed unseen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

from p2pnode.envelope import Signed
from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.messages import MAX_EVIDENCE, Equivocation, Ignored, check_slot, reject
from p2pnode.round.context import Context
from p2pnode.round.effects import Convicted
from p2pnode.round.evidence import Evidence, Wanted, most_bytes, two_signatures, verify
from p2pnode.round.frames import EVIDENCE_PIECE, Kind, frame
from p2pnode.wire.round_pb2 import Accusation, EvidencePiece, RoundEntry, Vote, Want

KEPT_EVIDENCE: Final = 64
KEPT_WANTED: Final = 8  # each may be as large as the largest evidence
ASK_SECONDS: Final = 5.0  # before somebody else is asked


def convict(c: Context, found: Equivocation) -> None:
    """Two signatures for one slot came together here: hold them as evidence."""
    if found.first.sender in c.convicted:
        return  # one proof is enough
    with contextlib.suppress(PeerFault):  # the two may differ in nothing that was signed
        hold(c, verify(two_signatures(found), c.rules.manifest))


def hold(c: Context, evidence: Evidence) -> None:
    """Keep verified evidence against a peer on record, and tell of it."""
    if evidence.digest in c.evidence or evidence.accused not in c.state.roster.known or evidence.accused == c.me:
        return
    c.evidence[evidence.digest] = evidence
    while len(c.evidence) > KEPT_EVIDENCE:
        del c.evidence[next(iter(c.evidence))]
    c.round.come.add(evidence.digest)
    c.changed = True
    c.tell(Convicted(evidence))


def accusations(c: Context) -> list[Accusation]:
    """What our entry says: one for each peer on record that we hold evidence against."""
    by_peer = {found.accused: found for found in c.evidence.values() if found.accused in c.state.roster.known}
    chosen = [by_peer[peer] for peer in sorted(by_peer)][:MAX_EVIDENCE]
    return [Accusation(digest=found.digest, accused=found.accused.key) for found in chosen]


def unverified(c: Context, found: Iterable[tuple[PeerId, bytes]]) -> bytes | None:
    """The first evidence that we don't hold, of what accuses peers on record. REJECT proposal-evidence: it accuses
    somebody else."""
    for accused, digest in sorted(found):
        if accused not in c.state.roster.known:
            continue  # it changes nothing
        evidence = c.evidence.get(digest)
        if evidence is None:
            return digest
        if evidence.accused != accused:
            raise reject("proposal-evidence", f"against {evidence.accused.short}, not {accused.short}")
    return None


def in_entry(entry: RoundEntry) -> list[tuple[PeerId, bytes]]:
    """What an entry that was checked accuses of."""
    return [(PeerId(item.accused), item.digest) for item in entry.evidence]


def want_evidence(c: Context, digest: bytes, peer: PeerId, now: float) -> None:
    """Ask `peer`, unless somebody was asked a moment ago."""
    known = c.wanted.get(digest)
    if known is not None and now < known.until:
        return
    c.wanted.pop(digest, None)
    if len(c.wanted) >= KEPT_WANTED:
        oldest = min(c.wanted, key=lambda one: c.wanted[one].until)
        if now < c.wanted[oldest].until:
            return
        del c.wanted[oldest]
    c.wanted[digest] = Wanted(peer, now + ASK_SECONDS)
    c.send([peer], [frame(Kind.WANT, Want(kind=Want.EVIDENCE, digest=digest).SerializeToString())])


def hand_out(c: Context, peer: PeerId, evidence: Evidence) -> None:
    """All pieces, in order."""
    frames = []
    for offset in range(0, len(evidence.raw), EVIDENCE_PIECE):
        piece = EvidencePiece(
            digest=evidence.digest,
            size=len(evidence.raw),
            offset=offset,
            data=evidence.raw[offset : offset + EVIDENCE_PIECE],
        )
        frames.append(frame(Kind.EVIDENCE, piece.SerializeToString()))
    c.send([peer], frames, bulk=True)


def take_piece(c: Context, sender: PeerId, piece: EvidencePiece, now: float) -> None:
    """A piece of evidence that we asked `sender` for. IGNORE evidence-unasked; REJECT evidence-size, evidence-piece,
    and what `verify` refuses."""
    wanted = c.wanted.get(piece.digest)
    if wanted is None or wanted.peer != sender:
        raise Ignored("evidence-unasked")
    if piece.size > most_bytes(c.rules.manifest):
        del c.wanted[piece.digest]
        raise reject("evidence-size", f"{piece.size} bytes")
    if piece.offset != len(wanted.data) or not piece.data or piece.offset + len(piece.data) > piece.size:
        del c.wanted[piece.digest]
        raise reject("evidence-piece", "not the next one")
    wanted.data += piece.data
    wanted.until = now + ASK_SECONDS
    if len(wanted.data) < piece.size:
        return
    del c.wanted[piece.digest]
    evidence = verify(bytes(wanted.data), c.rules.manifest)
    if evidence.digest != piece.digest:
        raise reject("evidence-piece", "together they are other evidence")
    hold(c, evidence)


def is_own(c: Context, sender: PeerId, signed: Signed[RoundEntry] | Signed[Vote]) -> bool:
    """Whether it is of our own hand, shown to us after a restart. If we don't know of it, our disk is older than it:
    then we sign nothing more in this round, or it could be told against us."""
    if signed.sender != c.me or sender == c.me:
        return False
    r = c.round
    attempt = check_slot(signed.message.slot, r.base)
    known = max(r.promised, r.lock.attempt if r.lock else -1)
    if attempt > known and c.state.roster.members != (c.me,):
        r.barred = True
    return True


def show_own(c: Context, peer: PeerId) -> None:
    """The highest entry and vote of `peer` in our round: it was restarted, and asks."""
    entries = c.round.gathering.by_sender.get(peer, {})
    votes = {attempt: by[peer] for attempt, by in c.round.ballot.by_attempt.items() if peer in by}
    frames = [frame(Kind.ENTRY, entries[max(entries)].raw)] if entries else []
    frames += [frame(Kind.VOTE, votes[max(votes)].raw)] if votes else []
    c.send([peer], frames)
