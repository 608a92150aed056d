"""The transport over real hivemind: libp2p's daemon for connections and streams, hivemind's DHT for records.

The only file that imports hivemind. What is ours here: the daemon is started by us (private sockets, key through a
pipe, ends with us), channels run over its raw streams with our own framing, and the DHT's protocol is narrowed to
signed records (`protocols/records.md`) under protocol ids of this run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import hivemind
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2PContext, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient, DaemonConnector
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, P2PHandlerError
from hivemind.proto import dht_pb2, p2pd_pb2
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.timed_storage import ValueWithExpiration

from p2pnode.errors import NetworkError, PeerFault, Unreachable
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import addresses, calls, limits, presence, records
from p2pnode.transport.base import (
    MAX_SUBKEYS,
    Traffic,
    TransportOptions,
)
from p2pnode.transport.channels import Channels
from p2pnode.transport.core import TransportCore
from p2pnode.transport.libp2p import DaemonLink
from p2pnode.transport.routes import WHERE, Routes
from p2pnode.transport.searches import Searches

_REPLICAS: Final = 5  # nodes that keep a record
_RPC_SECONDS: Final = 3.0  # for one DHT request
_STORE_KEYS: Final = 64  # in one DHT request
_LAST_SECONDS: Final = 0.5  # for searches of the DHT to find their calls failed
_LAST_TURNS: Final = 50  # of the event loop, for hivemind's stray tasks to end
_BINARY: Final = Path(hivemind.__file__).parent / "hivemind_cli" / "p2pd"

# hivemind prints through a handler of its own; standard output and error are the node's.
use_hivemind_log_handler("nowhere")
_hivemind_log = logging.getLogger("hivemind")
_hivemind_log.addHandler(logging.NullHandler())
_hivemind_log.propagate = False


class _Pending(dict[UUID, "asyncio.Future[bytes]"]):
    """Calls that wait. One that was just cancelled is not in it, or its late reply would break hivemind's reader."""

    def __contains__(self, key: object) -> bool:
        future = self.get(key)  # type: ignore[call-overload]
        return future is not None and not future.done()


class _Control(ControlClient):  # type: ignore[misc]
    """hivemind's client of the daemon, for unary calls only; made to end cleanly."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pending_calls = _Pending()
        self.ended = False

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


_Unary = Callable[[PeerId, str, bytes], Awaitable[bytes]]
"""(peer, protocol id, request) -> reply"""


class _Rpc:
    """What hivemind's DHT needs of its P2P object, gated like all other calls."""

    def __init__(self, control: _Control, gate: calls.CallGate, unary: _Unary, peer_id: PeerId) -> None:
        self._control = control
        self._gate = gate
        self._unary = unary
        self.peer_id = PeerID(peer_id.to_bytes())

    async def add_protobuf_handler(self, name: str, handler: Any, input_type: Any, **kwargs: Any) -> None:
        async def unary(request: bytes, remote: PeerID) -> bytes:
            async def reply() -> bytes:
                context = P2PContext(handle_name=name, local_id=self.peer_id, remote_id=remote)
                response: bytes = (await handler(input_type.FromString(request), context)).SerializeToString()
                return response

            return await self._gate.run(PeerId.from_bytes(remote.to_bytes()), reply)

        await self._control.add_unary_handler(name, unary)

    async def call_protobuf_handler(self, peer: PeerID, name: str, message: Any, output_type: Any) -> Any:
        reply = await self._unary(PeerId.from_bytes(peer.to_bytes()), name, message.SerializeToString())
        return output_type.FromString(reply)


def _check(key: bytes, subkey: object, value: object, expiration: object) -> bool:
    """Clauses 1 to 9 of `protocols/records.md`, on what the DHT hands out."""
    if not (isinstance(subkey, bytes) and isinstance(value, bytes) and isinstance(expiration, float)):
        return False
    try:
        records.check_record(key, subkey, records.unpack(value), expiration)
    except (ValueError, PeerFault):
        return False
    return True


class _Validator(RecordValidatorBase):  # type: ignore[misc]
    def validate(self, record: DHTRecord) -> bool:
        try:
            subkey = records.unpack(record.subkey)  # a regular value or a dictionary has a subkey of another kind
        except ValueError:
            return False
        return _check(record.key, subkey, record.value, record.expiration_time)


def _dictionary(items: Mapping[bytes, tuple[bytes, float]]) -> ValueWithExpiration | None:
    if not items:
        return None
    dictionary = DictionaryDHTValue()
    dictionary.frozen = True  # hivemind would evict by this machine's uncorrected clock
    for subkey, (value, expiration) in items.items():
        dictionary.store(subkey, value, expiration)
    return ValueWithExpiration(dictionary, dictionary.latest_expiration_time)


class _Storage:
    """`records.RecordStore` in the shape that hivemind's protocol expects of its storage."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.records = records.RecordStore()

    def get(self, key: DHTID) -> ValueWithExpiration | None:
        """All records under a key."""
        held = self.records.get(key.to_bytes(), self._now())
        pack = DHTProtocol.serializer.dumps
        return _dictionary({subkey: (pack(raw), record.expiration) for subkey, (record, raw) in held.items()})

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration]]:
        """Keys and what is under them."""
        for key in self.records.hashed_keys():
            held = self.get(DHTID.from_bytes(key))
            if held is not None:
                yield DHTID.from_bytes(key), held

    def store(self, key: DHTID, value: bytes, expiration: float, subkey: object = None) -> bool:
        """Keep a record; nothing without a subkey."""
        return subkey is not None and self.store_subkey(key, subkey, value, expiration)

    def store_subkey(self, key: DHTID, subkey: object, value: bytes, expiration: float) -> bool:
        """Keep a record."""
        if not _check(key.to_bytes(), subkey, value, expiration) or not isinstance(subkey, bytes):
            return False
        return self.records.put(key.to_bytes(), subkey, records.unpack(value), expiration, self._now())


class _NoCache:
    """In place of hivemind's cache, whose entries would hide the stored ones from a reader."""

    def get(self, key: DHTID) -> None:
        """Nothing."""

    def store(self, *args: Any, **kwargs: Any) -> bool:
        """Nothing is kept."""
        return False

    store_subkey = store

    def __contains__(self, key: object) -> bool:
        return False


def _dht_id(peer: PeerID) -> DHTID:
    """A node's place in the DHT follows from its key, so that nobody can choose it (but by making keys)."""
    return DHTID.generate(source=peer.to_bytes())


class _Protocol(DHTProtocol):  # type: ignore[misc]
    """hivemind's DHT protocol, narrowed: one bad item never hides the good ones beside it. One subclass per run."""

    prefix = ""

    @classmethod
    def of_run(cls, prefix: str) -> type[_Protocol]:
        """The protocol under this run's ids."""
        return type("RunProtocol", (cls,), {"prefix": prefix, "_rpc_handlers": None, "_stub_type": None})

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        return f"{cls.prefix}dht-{method_name.removeprefix('rpc_')}/1"

    def _validate_dictionary(self, key_bytes: bytes, dictionary: DictionaryDHTValue) -> bool:
        """Drop bad items instead of the whole dictionary, and don't believe what it says of itself."""
        data = dictionary.data
        if len(data) > MAX_SUBKEYS:
            return False
        good = {sub: item for sub, item in data.items() if _check(key_bytes, sub, item.value, item.expiration_time)}
        dictionary.clear()
        dictionary.frozen, dictionary.maxsize = True, math.inf
        dictionary.latest_expiration_time = -math.inf
        for subkey, item in good.items():
            dictionary.store(subkey, item.value, item.expiration_time)
        return True

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        if len(request.keys) > _STORE_KEYS or any(request.in_cache):
            raise PeerFault("record-request")
        return await super().rpc_store(request, context)

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        if len(request.keys) > _STORE_KEYS:
            raise PeerFault("record-request")
        return await super().rpc_find(request, context)

    async def call_find(self, peer: PeerID, keys: Collection[DHTID]) -> Any:
        found = await super().call_find(peer, keys)
        if not found:
            return found
        out = {}
        for key, (value, nearest) in found.items():
            if value is not None:  # the outer expiration is the answering peer's word only
                held = value.value if isinstance(value.value, DictionaryDHTValue) else {}
                value = _dictionary({sub: (item.value, item.expiration_time) for sub, item in held.items()})
            out[key] = (value, {node: other for node, other in nearest.items() if node == _dht_id(other)})
        return out

    async def update_routing_table(self, node_id: DHTID | None, peer_id: PeerID, responded: bool = True) -> None:
        if node_id is None or node_id == _dht_id(peer_id):
            if node_id is None and responded:
                return
            await super().update_routing_table(node_id, peer_id, responded)


class HivemindTransport(TransportCore):
    """`base.Transport` over real hivemind."""

    def __init__(self, identity: PeerIdentity, run_digest: bytes, options: TransportOptions | None = None) -> None:
        """See `TransportCore`."""
        super().__init__(identity, run_digest, options)
        self._prefix = f"/p2pnode/{run_digest.hex()}/"
        self._storage = _Storage(self._clock.now)
        self._control: _Control | None = None
        self._dht: DHTNode | None = None
        self._addresses: Sequence[str] = ()
        self._searches = Searches()
        self._link = DaemonLink(_BINARY, p2pd_pb2, self._prefix)
        self._routes = Routes(self._call_plain, self._link.connected, self._dial)
        self._channels = Channels(self.instance, self._hooks, self._open, self._link.connected, self._on_probe)
        self._presence.listening, self._presence.learned = lambda: self._addresses, self._routes.learn
        self.on_call(WHERE, self._routes.answer_where)
        self.on_call(presence.IDENTITY, self._answer_identity)
        self.on_frame(presence.CHANNEL, self._presence.on_proof)
        _hivemind_log.propagate = _hivemind_log.propagate or self.options.debug

    # ---- coming and going

    async def _up(self) -> None:
        await self._link.up(self._identity, self.options, self._channels)
        self._channels.start()
        connector = DaemonConnector(Multiaddr(f"/unix{self._link.control_path}"))
        self._control = await _Control.create(connector, Multiaddr(f"/unix{self._link.listen_path}"))
        rpc = _Rpc(self._control, self._gate, self._unary, self.peer_id)
        node_id = _dht_id(rpc.peer_id)
        # Made as a client, which registers nothing; then given the narrowed protocol.
        self._dht = await DHTNode.create(
            rpc, node_id, num_replicas=_REPLICAS, wait_timeout=_RPC_SECONDS, client_mode=True, cache_locally=False,
            cache_nearest=0, cache_on_store=False, cache_refresh_before_expiry=0, reuse_get_requests=False,
            record_validator=_Validator(),
        )  # fmt: skip
        protocol = await _Protocol.of_run(self._prefix).create(
            rpc, node_id, self._dht.protocol.bucket_size, 5, _REPLICAS, _RPC_SECONDS, record_validator=_Validator()
        )
        protocol.storage, protocol.cache = self._storage, _NoCache()
        self._dht.protocol = protocol
        await self._listen_for(list(self._hooks.frames))
        for method in self._methods:
            await self._serve(method)
        await self._look_up_addresses()

    async def _down(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.FLUSH_SECONDS + 1):
                await self._channels.stop(limits.FLUSH_SECONDS)
        self._channels.abort()
        if self._control is not None:
            self._control.end()
        if self._dht is not None:
            self._dht.is_alive = False
        await self._routes.stop()
        await self._searches.settle(_LAST_SECONDS)  # their calls have failed now
        await self._link.down()
        for _ in range(_LAST_TURNS):  # hivemind's stray tasks find their calls failed, and end
            await asyncio.sleep(0)

    async def _look_up_addresses(self) -> None:
        found = [str(Multiaddr(raw)) for raw in await self._link.identify()]
        self._addresses = addresses.order(self.options.announce or found)

    async def _listen_for(self, channels: Sequence[str]) -> None:
        await self._link.listen_for(channels, Multiaddr(f"/unix{self._link.listen_path}").to_bytes())

    def _background(self) -> Iterable[Coroutine[Any, Any, Any]]:
        return (self._rejoin(), self._keep_clock(), self._keep_addresses(), self._keep_dht())

    def _registered(self, name: str, *, is_call: bool) -> None:
        self._spawn(self._serve(name) if is_call else self._listen_for([name]))

    def addresses(self) -> Sequence[str]:
        """See `base.Transport.addresses`."""
        return [f"{address}/p2p/{self.peer_id}" for address in self._addresses]

    async def _keep_addresses(self) -> None:
        while True:
            await asyncio.sleep(limits.MAINTAIN_SECONDS)
            try:
                await self._look_up_addresses()
            except NetworkError as error:
                self.options.log(str(error))

    async def _dial(self, peer: PeerId, some: Sequence[str]) -> None:
        try:
            known = [Multiaddr(address).to_bytes() for address in some]
        except (ValueError, TypeError, LookupError):
            raise Unreachable(f"{peer.short} has an address that can't be used") from None
        await self._link.connect(peer, known)
        self._routes.learn(peer, some)

    async def _connected(self) -> set[PeerId]:
        return await self._link.connected()

    # ---- channels

    async def _open(self, peer: PeerId, channel: str) -> socket.socket:
        return await self._routes.reach(peer, lambda: self._link.open_stream(peer, channel))

    async def send(self, peer: PeerId, channel: str, frame: bytes) -> None:
        """See `base.Transport.send`."""
        await self._channels.send(peer, channel, frame)

    def traffic(self) -> Traffic:
        """See `base.Transport.traffic`."""
        return Traffic(self._channels.sent + self._called_sent, self._channels.received + self._called_received)

    # ---- calls

    async def _serve(self, method: str) -> None:
        if self._control is None:
            return

        async def unary(request: bytes, remote: PeerID) -> bytes:
            return await self._answer(method, PeerId.from_bytes(remote.to_bytes()), request)

        with contextlib.suppress(P2PDaemonError):
            await self._control.add_unary_handler(self._link.protocol(method), unary)

    async def _ask(self, peer: PeerId, method: str, request: bytes) -> bytes:
        return await self._unary(peer, self._link.protocol(method), request)

    async def _unary(self, peer: PeerId, protocol: str, request: bytes) -> bytes:
        return await self._routes.reach(peer, lambda: self._unary_now(peer, protocol, request))

    async def _unary_now(self, peer: PeerId, protocol: str, request: bytes) -> bytes:
        if self._control is None:
            raise NetworkError("the transport is not running")
        try:
            return await self._control.call_unary_handler(PeerID(peer.to_bytes()), protocol, request)
        except P2PHandlerError:
            raise NetworkError(f"{peer.short} failed to answer") from None
        except P2PDaemonError as error:
            raise Unreachable(f"{peer.short} can't be reached: {str(error)[:200]}") from None

    async def _answer_identity(self, peer: PeerId, request: bytes) -> bytes:
        others = await self._connected()
        return await self._presence.answer_identity(self._channels, self._call_plain, others, peer, request)

    async def _identity_taken(self, peers: Sequence[PeerId]) -> bool:
        return await self._presence.taken(self._call_plain, peers)

    def _on_probe(self, peer: PeerId, challenge: bytes) -> None:
        if self._running:
            self._spawn(self._send_quietly(peer, self._presence.proof(challenge)))

    async def _send_quietly(self, peer: PeerId, frame: bytes) -> None:
        with contextlib.suppress(NetworkError):
            await self.send(peer, presence.CHANNEL, frame)

    # ---- records

    async def _met(self, peers: Sequence[PeerId]) -> None:
        for peer in peers:  # a stream that shows who we are, over which we can be asked whether we live
            self._spawn(self._send_quietly(peer, self._presence.proof(bytes(limits.CHALLENGE_BYTES))))
        if self._dht is not None:
            await asyncio.gather(*(self._dht.protocol.call_ping(PeerID(peer.to_bytes())) for peer in peers))
            self._searches.begin(self._dht.find_nearest_nodes([self._dht.node_id]))

    async def _keep_dht(self) -> None:
        while self._dht is not None:
            await asyncio.sleep(limits.CLOCK_SECONDS)
            self._storage.records.expire(self._clock.now())
            with contextlib.suppress(NetworkError):
                await self._searches.result(self._dht.find_nearest_nodes([self._dht.node_id]))

    async def _put(self, source: bytes, subkey: bytes, raw: bytes, expiration: float) -> bool:
        if self._dht is None:
            return False
        return bool(await self._searches.result(self._dht.store(source, raw, expiration, subkey=subkey)))

    async def _get(self, source: bytes) -> Iterable[tuple[bytes, bytes, float]]:
        found = await self._searches.result(self._dht.get(source, latest=True)) if self._dht is not None else None
        if found is None or not isinstance(found.value, dict):
            return ()
        return [(subkey, item.value, item.expiration_time) for subkey, item in found.value.items()]
