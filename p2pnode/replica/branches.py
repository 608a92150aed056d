"""Branches of a chain: which of two to follow, and when a provisional one may be followed at all.

Pure: the chains are arguments, whether they are read from a disk, fetched from a peer, or simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2pnode.replica.chain import Link


class Chain(Protocol):
    """Certified links in a row, from a start that is believed on."""

    @property
    def first(self) -> int:
        """The start's round."""

    @property
    def tip(self) -> Link:
        """The newest link."""

    def digest_at(self, round_number: int) -> bytes | None:
        """A round's state digest; None before the start, or beyond the tip."""

    def link_at(self, round_number: int) -> Link:
        """A round's link, from `first` to `tip.round`."""


def prefer(ours: Link, theirs: Link) -> bool:
    """The fork choice at the first round that differs: whether `theirs` is to be followed instead of `ours`.

    Certified before provisional; then more voters of the common parent's roster; then the lower digest.
    """

    def rank(link: Link) -> tuple[bool, int, bytes]:
        return link.provisional, -link.electorate_votes, link.digest

    return rank(theirs) < rank(ours)


def better(ours: Chain, common: int, theirs: Sequence[Link]) -> bool:
    """Whether to follow `theirs`, the links of another chain after the last `common` round, instead of `ours`."""
    if not theirs:
        return False
    return ours.tip.round == common or prefer(ours.link_at(common + 1), theirs[0])


def credible(theirs: Sequence[Link], waited: float, provisional_after: float) -> bool:
    """Whether so many provisional links can have come about honestly in the seconds since the last common round was
    certified here: each takes `provisional_after` without a certificate. One member alone can make them up at once.
    """
    return sum(link.provisional for link in theirs) * provisional_after <= waited
