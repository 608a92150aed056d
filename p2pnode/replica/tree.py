"""BLAKE3 hash trees over chunks, so that one chunk can be proven to belong to a signed root.

Shape: leaves in order; each level pairs neighbours, an odd last node moves up unchanged (as in RFC 6962). Leaves and
inner nodes are hashed under different prefixes, and a leaf binds its tree's purpose and its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from blake3 import blake3

MAX_DEPTH: Final = 32
_LEAF: Final = b"p2pnode.leaf.1\0"
_NODE: Final = b"p2pnode.node.1\0"


def leaf_hash(purpose: bytes, part: int, index: int, data: bytes | memoryview) -> bytes:
    """Hash of one chunk: `purpose` names the tree's kind; `part` and `index` its place in it."""
    head = _LEAF + len(purpose).to_bytes(1, "big") + purpose + part.to_bytes(4, "big") + index.to_bytes(8, "big")
    return blake3(head).update(data).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return blake3(_NODE + left + right).digest()


class Tree:
    """A tree over leaf hashes (at least one)."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not leaves:
            raise ValueError("a tree has at least one leaf")
        self._levels: list[list[bytes]] = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            level = [_node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
            if len(below) % 2:
                level.append(below[-1])
            self._levels.append(level)

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self._levels[-1][0]

    def __len__(self) -> int:
        return len(self._levels[0])

    def proof(self, index: int) -> list[bytes]:
        """Sibling hashes from the leaf upwards; empty for a tree of one leaf."""
        siblings = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                siblings.append(level[sibling])
            index //= 2
        return siblings


def proves(root: bytes, leaf: bytes, index: int, count: int, siblings: Sequence[bytes]) -> bool:
    """Whether `siblings` lead from `leaf`, number `index` of `count`, to `root`."""
    if not 0 <= index < count or len(siblings) > MAX_DEPTH:
        return False
    at, node, width = 0, leaf, count
    while width > 1:
        if index ^ 1 < width:
            if at == len(siblings) or len(siblings[at]) != 32:
                return False
            node = _node_hash(siblings[at], node) if index % 2 else _node_hash(node, siblings[at])
            at += 1
        index //= 2
        width = (width + 1) // 2
    return at == len(siblings) and node == root
