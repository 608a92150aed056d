"""State sync: serve, and fetch verified, the manifest, the chain of certificates, and the state.

And what lets a node go on by itself when it is started again: the log of the chain, and its states.

Nothing that comes from others is taken on trust: a manifest must hash to the run id, each link of the chain is checked
against its parent from the invite's checkpoint on, and each chunk of the state against the tree that the chain attests.
"""

from p2pnode.sync.client import Credible, Status, SyncClient, Synced
from p2pnode.sync.history import History
from p2pnode.sync.log import ChainLog
from p2pnode.sync.server import SyncServer
from p2pnode.sync.states import StateStore

__all__ = ["ChainLog", "Credible", "History", "StateStore", "Status", "SyncClient", "SyncServer", "Synced"]
