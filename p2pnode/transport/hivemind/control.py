"""The daemon's RPC client: hivemind's, made to end cleanly, and gated. Also makes hivemind quiet, as it is imported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import hivemind
from hivemind.p2p import P2PContext, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient, DaemonConnector
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr

from p2pnode.errors import PeerFault
from p2pnode.identity import PeerId
from p2pnode.transport import calls
from p2pnode.transport.base import MAX_CALL_BYTES

BINARY: Final = Path(hivemind.__file__).parent / "hivemind_cli" / "p2pd"

# hivemind prints through a handler of its own; standard output and error are the node's.
use_hivemind_log_handler("nowhere")
hivemind_log = logging.getLogger("hivemind")
hivemind_log.addHandler(logging.NullHandler())
hivemind_log.propagate = False

Unary = Callable[[PeerId, str, bytes], Awaitable[bytes]]
"""(peer, protocol id, request) -> reply"""


class _Pending(dict[UUID, "asyncio.Future[bytes]"]):
    """Calls that wait. One that was just cancelled is not in it, or its late reply would break hivemind's reader."""

    def __contains__(self, key: object) -> bool:
        future = self.get(key)  # type: ignore[call-overload]
        return future is not None and not future.done()


class Control(ControlClient):  # type: ignore[misc]
    """hivemind's client of the daemon, for unary calls only; made to end cleanly."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pending_calls = _Pending()
        self.ended = False

    @classmethod
    async def connect(cls, control_path: str, listen_path: str) -> Control:
        """A client of the daemon that listens at `control_path`."""
        connector = DaemonConnector(Multiaddr(f"/unix{control_path}"))
        control: Control = await cls.create(connector, Multiaddr(f"/unix{listen_path}"))
        return control

    async def _read_from_persistent_conn(self, reader: asyncio.StreamReader) -> None:
        try:
            with contextlib.suppress(OSError):
                await super()._read_from_persistent_conn(reader)
        finally:
            self.end()

    async def _write_to_persistent_conn(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await super()._write_to_persistent_conn(writer)

    async def _handle_persistent_request(self, call_id: UUID, request: Any) -> None:
        try:
            await super()._handle_persistent_request(call_id, request)
        finally:
            self._handler_tasks.pop(call_id, None)

    async def add_unary_handler(self, proto: str, handler: Any, balanced: bool = False) -> None:
        if self.ended:
            raise P2PDaemonError("the daemon has ended")
        await super().add_unary_handler(proto, handler, balanced)

    async def call_unary_handler(self, peer_id: PeerID, proto: str, data: bytes) -> bytes:
        if self.ended:
            raise P2PDaemonError("the daemon has ended")
        reply: bytes = await super().call_unary_handler(peer_id, proto, data)
        return reply

    def end(self) -> None:
        """Fail what waits and stop the tasks. Idempotent."""
        if self.ended:
            return
        self.ended = True
        for future in self._pending_calls.values():
            if not future.done():
                future.set_exception(P2PDaemonError("the daemon has ended"))
        for task in self._handler_tasks.values():
            task.cancel()
        self.close()


class Rpc:
    """What hivemind's DHT needs of its P2P object, gated like all other calls."""

    def __init__(self, control: Control, gate: calls.CallGate, unary: Unary, peer_id: PeerId) -> None:
        self._control = control
        self._gate = gate
        self._unary = unary
        self.peer_id = PeerID(peer_id.to_bytes())

    async def add_protobuf_handler(self, name: str, handler: Any, input_type: Any, **kwargs: Any) -> None:
        async def unary(request: bytes, remote: PeerID) -> bytes:
            if len(request) > MAX_CALL_BYTES:
                raise PeerFault("call-size")

            async def reply() -> bytes:
                context = P2PContext(handle_name=name, local_id=self.peer_id, remote_id=remote)
                response: bytes = (await handler(input_type.FromString(request), context)).SerializeToString()
                return response

            return await self._gate.run(PeerId.from_bytes(remote.to_bytes()), reply)

        await self._control.add_unary_handler(name, unary)

    def charge(self, remote: PeerID, calls: int) -> None:
        """Count a request that costs as much as several calls. PeerFault when that is too much."""
        self._gate.charge(PeerId.from_bytes(remote.to_bytes()), calls)

    async def call_protobuf_handler(self, peer: PeerID, name: str, message: Any, output_type: Any) -> Any:
        reply = await self._unary(PeerId.from_bytes(peer.to_bytes()), name, message.SerializeToString())
        return output_type.FromString(reply)
