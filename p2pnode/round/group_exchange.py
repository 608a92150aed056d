"""The exchange of one group: rows in, our part's output out, all outputs together, the Closing.

Pure bookkeeping: every method checks what it is given and keeps it; deciding when to sign what is the machine's.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

import numpy as np

from p2pnode.codec import FloatVector
from p2pnode.envelope import Signed
from p2pnode.identity import PeerId
from p2pnode.messages import Ignored, NotYet, SlotBase, reject
from p2pnode.replica.chain import check_output, counted_contributors
from p2pnode.replica.proposal import Group, check_closing
from p2pnode.round.contribution import Contribution, Row, accepted_rows, check_commitment
from p2pnode.round.output import Output
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import Chunk, Closing, Commitment, OutputChunk, OutputHeader

OUTPUT_SLACK: Final = 1 + 2.0**-10  # of the bound on rows: float16 rounds by at most 2^-11


def row_of(group: bytes, contributor: PeerId) -> bytes:
    """What a chunk needs: the commitment of its sender in its group."""
    return group + contributor.key


class GroupExchange:
    """All that is known of one group's exchange, on one node."""

    def __init__(self, rules: Rules, base: SlotBase, group: Group, me: PeerId) -> None:
        self.rules, self.base, self.group = rules, base, group
        self.part = group.part_of(me)
        self.contribution: Contribution | None = None
        self.commitment: Signed[Commitment] | None = None  # ours
        self.rows: dict[PeerId, Row] = {}  # of our part
        self.reduced = False
        self.outputs: dict[int, Output] = {}  # by part
        self.closing: Signed[Closing] | None = None
        self._by_header: dict[bytes, Output] = {}
        self._miscounted = b""  # digest of a Closing that was found wrong: said once

    # rows, on the reducer of a part

    def take_commitment(self, commitment: Signed[Commitment]) -> None:
        """A contributor's commitment: opens its row. A second, different one is equivocation."""
        check_commitment(commitment, self.group, self.base, self.rules)
        if self.part is None:
            raise Ignored("commitment-not-reducer")
        if self.reduced:
            raise Ignored("commitment-late")
        row = self.rows.get(commitment.sender)
        if row is None:
            self.rows[commitment.sender] = Row(self.rules, self.group, self.part, commitment)
        elif row.commitment.digest != commitment.digest:
            raise reject("commitment-equivocation", f"{commitment.sender} signed two for one slot")

    def take_chunk(self, sender: PeerId, chunk: Chunk) -> None:
        """A chunk of `sender`'s row of our part."""
        if self.part is None or chunk.part != self.part.index:
            raise reject("chunk-part", f"part {chunk.part} is not ours")
        if self.reduced:
            raise Ignored("chunk-late")
        row = self.rows.get(sender)
        if row is None:
            raise NotYet("chunk-uncommitted", row_of(self.group.digest, sender))
        row.take(chunk)

    def rows_settled(self, gone: Set[PeerId]) -> bool:
        """Whether there is nothing to wait for: each contributor's row is complete, refused, or its sender gone."""
        for peer in self.group.contributors:
            row = self.rows.get(peer)
            if row is not None and (row.complete or row.refused):
                continue
            if peer not in gone:
                return False
        return True

    def complete_rows(self) -> list[tuple[PeerId, Row]]:
        """Rows that can be aggregated, ascending by contributor."""
        return list(accepted_rows(self.rows))

    # outputs, on everybody

    def take_header(self, header: Signed[OutputHeader]) -> Output:
        """A reducer's output header. With a Closing at hand, only the one that it names; a second, different one for
        a part is equivocation."""
        index = check_output(header, self.group, self.base)
        if self.closing is not None and self.closing.message.outputs[index] != header.digest:
            raise reject("output-not-closed", "the Closing names another output for this part")
        known = self.outputs.get(index)
        if known is not None and known.header.digest != header.digest:
            raise reject("output-equivocation", f"{header.sender} signed two for one slot")
        return known or self.keep(Output(self.rules, self.group.parts[index], header))

    def keep(self, output: Output) -> Output:
        """Keep an output, whole or empty, in place of any other for its part."""
        old = self.outputs.get(output.part.index)
        if old is not None:
            self._by_header.pop(old.header.digest, None)
        self.outputs[output.part.index] = output
        self._by_header[output.header.digest] = output
        return output

    def take_output_chunk(self, chunk: OutputChunk) -> None:
        """A chunk of an output whose header we have, from whomever."""
        output = self._by_header.get(chunk.header)
        if output is None:
            raise Ignored("output-chunk-headless")
        output.take(chunk)

    def output_for(self, digest: bytes) -> Output | None:
        """The output with this header digest."""
        return self._by_header.get(digest)

    @property
    def complete(self) -> bool:
        """All parts' outputs are here, verified."""
        return len(self.outputs) == len(self.group.parts) and all(o.complete for o in self.outputs.values())

    # the Closing

    def closing_message(self) -> Closing:
        """What the convener is to sign, once `complete`."""
        headers = [self.outputs[part.index].header for part in self.group.parts]
        return Closing(
            slot=self.base.at(self.group.attempt),
            group=self.group.digest,
            outputs=[header.digest for header in headers],
            counted=counted_contributors([header.message for header in headers]),
        )

    def take_closing(self, closing: Signed[Closing]) -> None:
        """The convener's Closing. Outputs that it does not name are dropped: it binds one output a part for all."""
        check_closing(closing, self.group, self.base)
        if self.closing is not None and self.closing.digest != closing.digest:
            raise reject("closing-equivocation", f"{closing.sender} signed two for one slot")
        self.closing = closing
        for index, digest in enumerate(closing.message.outputs):
            output = self.outputs.get(index)
            if output is not None and output.header.digest != digest:
                del self.outputs[index]
                self._by_header.pop(output.header.digest, None)

    def missing_outputs(self) -> list[bytes]:
        """Header digests, named by the Closing, whose outputs are not here yet."""
        if self.closing is None:
            return []
        here = {digest for digest, output in self._by_header.items() if output.complete}
        return [digest for digest in self.closing.message.outputs if digest not in here]

    def closed(self) -> bool:
        """Whether a Closing is here with all its outputs, and counts those that it should. REJECT closing-counted."""
        if self.closing is None or not self.complete or self.closing.digest == self._miscounted:
            return False
        headers = [self.outputs[part.index].header.message for part in self.group.parts]
        if list(self.closing.message.counted) != counted_contributors(headers):
            self._miscounted = self.closing.digest
            raise reject("closing-counted", "not those accepted in every part")
        return True

    def averaged(self) -> FloatVector:
        """The averaged update, [P] float32, once `complete`.

        ValueError if a value is not finite, or above what a mean of rows within bounds can be, rounding included.
        """
        out = np.empty(self.rules.values, dtype=np.float32)
        for part in self.group.parts:
            out[part.start : part.stop] = self.rules.decode(part, self.outputs[part.index].data)
        if not bool(np.all(np.abs(out) <= np.float32(self.rules.manifest.exchange.max_abs * OUTPUT_SLACK))):
            raise ValueError("an output is beyond the bound of the rows that it was made of")
        return out
