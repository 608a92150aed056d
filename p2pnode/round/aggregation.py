"""Aggregators: from all accepted rows of a part to its output. They take all rows, so that robust rules fit as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from p2pnode.codec import FloatVector
from p2pnode.identity import PeerId
from p2pnode.messages import reject
from p2pnode.replica.proposal import PartRange
from p2pnode.round.contribution import Row
from p2pnode.round.rules import Rules
from p2pnode.wire.round_pb2 import OutputHeader
from p2pnode.wire.round_pb2 import Row as RowEntry


class Aggregator(Protocol):
    """Combines rows. Deterministic: an auditor must get the same bytes."""

    def aggregate(self, rows: Sequence[FloatVector], weights: Sequence[int]) -> FloatVector:
        """rows: n vectors of shape [k], ascending by contributor; weights: n positive integers -> [k] float32."""


class WeightedMean:
    """sum(weight * row) / sum(weight): float64 products, float64 sums in row order, one division, one rounding."""

    def aggregate(self, rows: Sequence[FloatVector], weights: Sequence[int]) -> FloatVector:
        """As Aggregator.aggregate."""
        total: npt.NDArray[np.float64] = np.zeros(rows[0].shape, dtype=np.float64)
        for row, weight in zip(rows, weights, strict=True):
            np.add(total, np.multiply(row.astype(np.float64), np.float64(weight)), out=total)
        return np.divide(total, np.float64(sum(weights))).astype(np.float32)


def aggregator_named(name: str) -> Aggregator:
    """The aggregator that a manifest names."""
    aggregators: dict[str, Aggregator] = {"mean": WeightedMean()}
    return aggregators[name]


def aggregate_chunk(rules: Rules, chunks: Sequence[bytes | memoryview], weights: Sequence[int], count: int) -> bytes:
    """One chunk of an output from the same chunk of all accepted rows. count: its values. ValueError as `Codec`."""
    values = [rules.codec.decode(chunk, count) for chunk in chunks]
    return rules.codec.encode(aggregator_named(rules.manifest.exchange.aggregation).aggregate(values, weights))


def reduce_part(rules: Rules, part: PartRange, rows: Sequence[tuple[PeerId, Row]]) -> tuple[OutputHeader, bytes]:
    """Aggregate the accepted rows of a part: (header without slot, group and root; encoded output).

    Works through the chunks one by one, so its extra memory is one chunk a row.
    """
    if not rows:
        raise reject("output-rows", "no row was accepted")
    weights = [rules.weight(int(row.commitment.message.steps)) for _, row in rows]
    encoded = []
    for index in range(rules.chunks(part)):
        first, last = rules.chunk_bounds(part, index)
        start, stop = rules.encoded_bounds(part, index)
        chunks = [memoryview(row.data)[start:stop] for _, row in rows]
        encoded.append(aggregate_chunk(rules, chunks, weights, last - first))
    header = OutputHeader(
        part=part.index,
        accepted=[RowEntry(contributor=peer.key, commitment=row.commitment.digest) for peer, row in rows],
        weight=sum(weights),
    )
    return header, b"".join(encoded)
