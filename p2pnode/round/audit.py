"""Checking the reducers before a vote: chunks that nobody could foresee are recomputed from their signed rows.

Each entrant commits to a nonce in its entry and reveals it once the Closing is there. All nonces together seed which
parts and chunks are checked, and by whom (the idea of BTARD, arXiv 2106.11257). An auditor fetches those chunks row by
row with their proofs, aggregates them anew, and tells; a member votes once every part in question was checked by
somebody who did not make it. What does not match is evidence against who signed it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.messages import COMMITMENT, reject
from p2pnode.replica.proposal import PartRange
from p2pnode.replica.tree import proves
from p2pnode.round.aggregation import aggregate_chunk
from p2pnode.round.contribution import Layout, row_leaf
from p2pnode.round.group_exchange import GroupExchange
from p2pnode.round.rules import Rules
from p2pnode.wire.evidence_pb2 import EvidenceRow, FalseOutput, Misbehaviour
from p2pnode.wire.round_pb2 import AuditRow

CHUNKS: Final = 1  # of each audited part
NONCE_BYTES: Final = 32
SHARE: Final = 50  # audits cost at most one byte in so many that the exchange moves ...
FREE_BYTES: Final = 1 << 20  # ... or so much for each contributor: small models are checked in all parts
_SEED: Final = b"p2pnode.audit.1\0"


def audited_parts(rules: Rules, parts: tuple[PartRange, ...], contributors: int) -> int:
    """How many parts of an exchange are audited; at least one. Integers only: all nodes agree.

    One part's audit moves a chunk of each contributor. The exchange moves each update twice for each contributor.
    """
    chunk = min(rules.manifest.limits.chunk_bytes, max(rules.encoded_size(part) for part in parts))
    budget = max(2 * rules.encoded_bytes // SHARE, FREE_BYTES) * contributors
    return max(1, min(len(parts), budget // (contributors * chunk)))


@dataclass
class Audit:
    """One exchange's audit on one member, from its Closing on. Bookkeeping only: what is sent is the machine's."""

    exchange: GroupExchange
    began: float
    nonces: dict[PeerId, bytes] = field(default_factory=dict)
    plan: dict[int, tuple[tuple[PeerId, ...], tuple[int, ...]]] | None = None  # by part: auditors in turn; chunks
    told: dict[PeerId, frozenset[int]] = field(default_factory=dict)  # parts that peers say they checked
    mine: dict[int, set[int]] = field(default_factory=dict)  # by part: chunks that we are to check, and have not yet
    done: set[int] = field(default_factory=set)  # parts that we checked
    rows: dict[tuple[int, int], dict[PeerId, EvidenceRow]] = field(default_factory=dict)
    false: Misbehaviour | None = None  # found: nobody honest votes
    resend_at: float = 0.0
    ask_at: float = 0.0
    asks: int = 0

    @property
    def closing(self) -> bytes:
        """The Closing's digest."""
        return self.exchange.closing.digest if self.exchange.closing is not None else b""

    def take_nonce(self, sender: PeerId, nonce: bytes) -> None:
        """REJECT reveal-nonce: it is not what the sender's entry committed to."""
        entry = self.exchange.group.entries.get(sender)
        if entry is None or len(nonce) != NONCE_BYTES or blake3(nonce).digest() != entry.message.nonce_digest:
            raise reject("reveal-nonce", "not what its entry committed to")
        self.nonces[sender] = nonce

    def settle(self) -> None:
        """Fix the plan by the nonces that were revealed. A part whose signer did not reveal is checked whole."""
        exchange, rules = self.exchange, self.exchange.rules
        parts = exchange.group.parts
        revealed = b"".join(peer.key + nonce for peer, nonce in sorted(self.nonces.items()))
        seed = blake3(_SEED + self.closing + revealed).digest()
        members = [peer for peer in exchange.group.electorate if peer in exchange.group.entries]
        outputs = {output.part.index: output for output in exchange.outputs()}

        def order(part: PartRange) -> bytes:
            return blake3(seed + part.index.to_bytes(4, "big")).digest()

        count = audited_parts(rules, parts, len(exchange.group.contributors))
        plan = {}
        for place, part in enumerate(sorted(parts, key=order)):
            signer = outputs[part.index].header.sender
            auditors = sorted((p for p in members if p != signer), key=lambda p: blake3(order(part) + p.key).digest())
            chunks = rules.chunks(part)
            if signer not in self.nonces:
                chosen = tuple(range(chunks))
            elif place < count:
                start = int.from_bytes(order(part)[:8], "big")
                chosen = tuple(sorted({(start + step) % chunks for step in range(min(CHUNKS, chunks))}))
            else:
                continue
            if auditors:
                plan[part.index] = (tuple(auditors), chosen)
        self.plan = plan

    def take_on(self, part: int) -> None:
        """Check this part ourselves."""
        if self.plan is not None and part in self.plan and part not in self.done:
            self.mine.setdefault(part, set(self.plan[part][1]))

    def uncovered(self, me: PeerId) -> list[int]:
        """Parts of the plan that neither we nor anybody but their signers has checked."""
        signers = {output.part.index: output.header.sender for output in self.exchange.outputs()}
        open_parts = []
        for part in self.plan or {}:
            checked = any(part in parts for peer, parts in self.told.items() if peer not in (signers[part], me))
            if part not in self.done and not checked:
                open_parts.append(part)
        return open_parts

    def wanted(self) -> Iterable[tuple[int, int, PeerId]]:
        """(part, chunk, contributor) of rows that we still need."""
        for part, chunks in self.mine.items():
            for index in sorted(chunks):
                here = self.rows.get((part, index), {})
                for row in self._accepted(part):
                    if row not in here:
                        yield part, index, row

    def _accepted(self, part: int) -> dict[PeerId, bytes]:
        output = self.exchange.chosen(self.exchange.group.parts[part])
        rows = output.header.message.accepted if output is not None else ()
        return {PeerId(row.contributor): row.commitment for row in rows}

    def take_row(self, row: AuditRow) -> bool:
        """Check one row's chunk against its commitment and keep it; whether it was of use. REJECT audit-row."""
        part, index = int(row.part), int(row.index)
        if index not in self.mine.get(part, ()):
            return False
        commitment = COMMITMENT.open(row.commitment)
        if self._accepted(part).get(commitment.sender) != commitment.digest:
            raise reject("audit-row", "a commitment that the output's header does not name")
        layout = Layout(self.exchange.rules, self.exchange.group.parts)
        at = layout.first_leaf[part] + index
        leaf = row_leaf(part, index, row.data)
        if not proves(commitment.message.root, leaf, at, layout.leaves, row.proof):
            raise reject("audit-row", "not what was committed to")
        found = EvidenceRow(commitment=row.commitment, data=row.data, proof=row.proof)
        self.rows.setdefault((part, index), {})[commitment.sender] = found
        return True

    def check(self) -> bool:
        """Recompute what is complete; whether a part was finished, or found false."""
        changed = False
        for part, chunks in list(self.mine.items()):
            accepted = self._accepted(part)
            for index in sorted(chunks):
                here = self.rows.get((part, index), {})
                if len(here) < len(accepted):
                    continue
                rows = [here[peer] for peer in sorted(accepted)]
                if not self._agrees(part, index, rows):
                    self.false = self._evidence(part, index, rows)
                    return True
                chunks.discard(index)
                self.rows.pop((part, index), None)
            if not chunks:
                del self.mine[part]
                self.done.add(part)
                changed = True
        return changed

    def _agrees(self, part: int, index: int, rows: list[EvidenceRow]) -> bool:
        rules, place = self.exchange.rules, self.exchange.group.parts[part]
        output = self.exchange.chosen(place)
        if output is None:
            return True
        weights = [rules.weight(int(COMMITMENT.open(row.commitment).message.steps)) for row in rows]
        first, last = rules.chunk_bounds(place, index)
        start, stop = rules.encoded_bounds(place, index)
        try:
            for row in rows:
                rules.check_values(rules.codec.decode(row.data, last - first))
            due = aggregate_chunk(rules, [row.data for row in rows], weights, last - first)
        except (ValueError, PeerFault):
            return False  # no honest reducer accepts such rows
        return due == bytes(output.data[start:stop]) and output.header.message.weight == sum(weights)

    def _evidence(self, part: int, index: int, rows: list[EvidenceRow]) -> Misbehaviour:
        place = self.exchange.group.parts[part]
        output = self.exchange.chosen(place)
        if output is None:
            return Misbehaviour()
        data, proof = output.chunk(index)
        false = FalseOutput(
            proposal=self.exchange.group.proposal.raw,
            header=output.header.raw,
            index=index,
            data=data,
            proof=proof,
            rows=rows,
        )
        return Misbehaviour(output=false)
