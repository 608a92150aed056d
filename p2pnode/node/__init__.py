"""The node: composition and lifecycle. `run_node` is what `p2pnode join` runs."""

from p2pnode.node.lifecycle import run_node

__all__ = ["run_node"]
