"""p2pnode: train one shared model together, with no server.

Heavy libraries (torch, hivemind) are imported where they are used, so importing this package is cheap.
"""

from p2pnode._version import __version__

__all__ = ["__version__"]
