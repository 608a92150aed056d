"""The exchange of one group: rows in, our part's output out, all outputs together, the Closing.

Pure bookkeeping: every method checks what it is given and keeps it; deciding when to sign what is the machine's.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from p2pnode.codec import FloatVector
from p2pnode.envelope import Signed
from p2pnode.identity import PeerId
from p2pnode.messages import Equivocation, Ignored, SlotBase, reject
from p2pnode.replica.chain import check_output, counted_contributors
from p2pnode.replica.proposal import Group, PartRange, check_closing
from p2pnode.round.contribution import Contribution, check_commitment
from p2pnode.round.output import Output
from p2pnode.round.reduction import Reduction
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import Chunk, Closing, Commitment, OutputChunk, OutputHeader

OUTPUT_SLACK: Final = 1 + 2.0**-10  # of the bound on rows: float16 rounds by at most 2^-11


class GroupExchange:
    """All that is known of one group's exchange, on one node."""

    def __init__(self, rules: Rules, base: SlotBase, group: Group, me: PeerId) -> None:
        self.rules, self.base, self.group = rules, base, group
        self.contribution: Contribution | None = None  # ours
        self.commitments: dict[PeerId, Signed[Commitment]] = {}
        self.reductions: dict[int, Reduction] = {}  # by part: ours, and one that we took over
        self.closing: Signed[Closing] | None = None
        self.reduced_at: float | None = None  # when our own part was
        self.outputs_at: float | None = None  # when all outputs were here
        self._me = me
        self._outputs: dict[int, dict[PeerId, Output]] = {}  # by part and signer: the reducer, or its deputy
        self._by_header: dict[bytes, Output] = {}
        self._miscounted = b""  # digest of a Closing that was found wrong: said once
        part = group.part_of(me)
        if part is not None:
            self.reductions[part.index] = Reduction(rules, group, part)

    # rows, on whoever aggregates a part

    def take_over(self, part: PartRange) -> Reduction:
        """Aggregate a part whose reducer stalls. Contributors are still to be asked for its rows."""
        reduction = self.reductions[part.index] = Reduction(self.rules, self.group, part)
        for commitment in self.commitments.values():
            reduction.open_row(commitment)
        return reduction

    def take_commitment(self, commitment: Signed[Commitment]) -> None:
        """A contributor's commitment: opens its rows. A second, different one is equivocation."""
        check_commitment(commitment, self.group, self.base, self.rules)
        known = self.commitments.setdefault(commitment.sender, commitment)
        if known.digest != commitment.digest:
            raise Equivocation("commitment-equivocation", known, commitment)
        if not self.reductions:
            raise Ignored("commitment-not-reducer")
        opened = False
        for reduction in self.reductions.values():
            if not reduction.signed:
                reduction.open_row(commitment)
                opened = True
        if not opened:
            raise Ignored("commitment-late")

    def take_chunk(self, sender: PeerId, chunk: Chunk) -> None:
        """A chunk of `sender`'s row of a part that we aggregate."""
        reduction = self.reductions.get(chunk.part)
        if reduction is None:
            raise reject("chunk-part", f"part {chunk.part} is not ours")
        reduction.take(sender, chunk)

    # outputs, on everybody

    def take_header(self, header: Signed[OutputHeader]) -> Output:
        """An output header, of a part's reducer or its deputy. With a Closing at hand, only the one that it names; a
        second, different one of one signer for a part is equivocation."""
        index = check_output(header, self.group, self.base)
        known = self._outputs.get(index, {}).get(header.sender)
        if known is not None and known.header.digest != header.digest:
            raise Equivocation("output-equivocation", known.header, header)
        if self.closing is not None and self.closing.message.outputs[index] != header.digest:
            raise Ignored("output-not-closed")
        return known or self.keep(Output(self.rules, self.group.parts[index], header))

    def keep(self, output: Output) -> Output:
        """Keep an output, whole or empty, in place of any other by its signer for its part."""
        of_part = self._outputs.setdefault(output.part.index, {})
        old = of_part.get(output.header.sender)
        if old is not None:
            self._by_header.pop(old.header.digest, None)
        of_part[output.header.sender] = output
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

    def outputs_of(self, part: PartRange) -> list[Output]:
        """What came for a part, the reducer's first."""
        found = self._outputs.get(part.index, {})
        return [found[peer] for peer in part.aggregators if peer in found]

    def chosen(self, part: PartRange) -> Output | None:
        """The output for a part that counts: what the Closing names; before it the reducer's if whole, else its
        deputy's if that is."""
        if self.closing is not None:
            return self._by_header.get(self.closing.message.outputs[part.index])
        found = self.outputs_of(part)
        return next((output for output in found if output.complete), found[0] if found else None)

    def outputs(self) -> list[Output]:
        """The chosen outputs in part order, once `complete`."""
        chosen = [self.chosen(part) for part in self.group.parts]
        return [output for output in chosen if output is not None]

    def has(self, part: PartRange) -> bool:
        """Whether a part's output is here, verified."""
        output = self.chosen(part)
        return output is not None and output.complete

    @property
    def complete(self) -> bool:
        """All parts' outputs are here, verified."""
        return all(self.has(part) for part in self.group.parts)

    # the Closing

    def closing_message(self) -> Closing:
        """What the convener is to sign, once `complete`."""
        headers = [output.header for output in self.outputs()]
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
            raise Equivocation("closing-equivocation", self.closing, closing)
        self.closing = closing
        for of_part in self._outputs.values():
            for signer, output in list(of_part.items()):
                if output.header.digest != closing.message.outputs[output.part.index]:
                    del of_part[signer]
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
        headers = [output.header.message for output in self.outputs()]
        if list(self.closing.message.counted) != counted_contributors(headers):
            self._miscounted = self.closing.digest
            raise reject("closing-counted", "not those accepted in every part")
        return True

    def averaged(self) -> FloatVector:
        """The averaged update, [P] float32, once `complete`.

        ValueError if a value is not finite, or above what a mean of rows within bounds can be, rounding included.
        """
        out = np.empty(self.rules.values, dtype=np.float32)
        for output in self.outputs():
            part = output.part
            out[part.start : part.stop] = self.rules.decode(part, output.data)
        if not bool(np.all(np.abs(out) <= np.float32(self.rules.manifest.exchange.max_abs * OUTPUT_SLACK))):
            raise ValueError("an output is beyond the bound of the rows that it was made of")
        return out
