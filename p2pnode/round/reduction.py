"""Rows of one part, on whoever aggregates it: its reducer, or its deputy when the reducer stalls."""

from __future__ import annotations

from collections.abc import Iterable, Set

from p2pnode.envelope import Signed
from p2pnode.identity import PeerId
from p2pnode.messages import Ignored, NotYet
from p2pnode.replica.proposal import Group, PartRange
from p2pnode.round.aggregation import reduce_part
from p2pnode.round.contribution import Row
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import Chunk, Commitment, OutputHeader


def row_of(group: bytes, contributor: PeerId) -> bytes:
    """What a chunk needs: the commitment of its sender in its group."""
    return group + contributor.key


class Reduction:
    """The rows stay after the output is signed: auditors may ask for their chunks."""

    def __init__(self, rules: Rules, group: Group, part: PartRange) -> None:
        self.part = part
        self.rows: dict[PeerId, Row] = {}
        self.signed = False
        self._rules, self._group = rules, group

    def open_row(self, commitment: Signed[Commitment]) -> Row:
        """A contributor's row, to be filled chunk by chunk. IGNORE commitment-late."""
        row = self.rows.get(commitment.sender)
        if row is None:
            if self.signed:
                raise Ignored("commitment-late")
            row = self.rows[commitment.sender] = Row(self._rules, self._group, self.part, commitment)
        return row

    def take(self, sender: PeerId, chunk: Chunk) -> None:
        """A chunk of `sender`'s row. IGNORE chunk-late, chunk-uncommitted; REJECT as `Row.take`."""
        if self.signed:
            raise Ignored("chunk-late")
        row = self.rows.get(sender)
        if row is None:
            raise NotYet("chunk-uncommitted", row_of(self._group.digest, sender))
        row.take(chunk)

    def settled(self, gone: Set[PeerId]) -> bool:
        """Whether there is nothing to wait for: each contributor's row is complete, refused, or its sender gone."""
        return not any(True for peer in self.missing() if peer not in gone)

    def missing(self) -> Iterable[PeerId]:
        """Contributors whose rows may still come."""
        for peer in self._group.contributors:
            row = self.rows.get(peer)
            if row is None or not (row.complete or row.refused):
                yield peer

    def complete_rows(self) -> list[tuple[PeerId, Row]]:
        """Rows that can be aggregated, ascending by contributor."""
        return [(peer, row) for peer, row in sorted(self.rows.items()) if row.complete]

    def aggregate(self) -> tuple[OutputHeader, bytes] | None:
        """The part's output, to be signed: (header without slot, group and root; encoded output). None without rows."""
        rows = self.complete_rows()
        if not rows:
            return None
        self.signed = True
        return reduce_part(self._rules, self.part, rows)
