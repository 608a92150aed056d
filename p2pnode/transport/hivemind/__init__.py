"""The transport over real hivemind. Nothing outside this package imports hivemind."""

from p2pnode.transport.hivemind.transport import HivemindTransport

__all__ = ["HivemindTransport"]
