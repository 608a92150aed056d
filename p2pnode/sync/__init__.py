"""State sync: serve, and fetch verified, the manifest, the chain of certificates, and the state.

Nothing is taken on trust: a manifest must hash to the run id, each link of the chain is checked against its parent from
the invite's checkpoint on, and each chunk of the state against the tree that the chain attests.
"""

from p2pnode.sync.client import Credible, Status, SyncClient, Synced
from p2pnode.sync.history import ChainLog, History
from p2pnode.sync.server import SyncServer

__all__ = ["ChainLog", "Credible", "History", "Status", "SyncClient", "SyncServer", "Synced"]
