"""hivemind's DHT, narrowed to signed records (`protocols/records.md`) under protocol ids of one run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import ValueWithExpiration

from p2pnode.errors import PeerFault
from p2pnode.transport import limits, records
from p2pnode.transport.base import MAX_SUBKEYS
from p2pnode.transport.hivemind.control import Rpc

_REPLICAS: Final = 5  # nodes that keep a record
_RPC_SECONDS: Final = 3.0  # for one DHT request
_STORE_KEYS: Final = 64  # in one DHT request


def _check(key: bytes, subkey: object, value: object, expiration: object) -> bool:
    """Clauses 1 to 9 of `protocols/records.md`, on what the DHT hands out."""
    if not (isinstance(subkey, bytes) and isinstance(value, bytes) and isinstance(expiration, float)):
        return False
    try:
        records.check_record(key, subkey, records.unpack(value), expiration)
    except (ValueError, PeerFault):
        return False
    return True


class Validator(RecordValidatorBase):  # type: ignore[misc]
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


class Storage:
    """`records.RecordStore` in the shape that hivemind's protocol expects of its storage."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.records = records.RecordStore()

    def get(self, key: DHTID, most: int = MAX_SUBKEYS) -> ValueWithExpiration | None:
        """The records under a key, at most so many."""
        held = self.records.get(key.to_bytes(), self._now())
        pack = DHTProtocol.serializer.dumps
        some = itertools.islice(held.items(), most)
        return _dictionary({subkey: (pack(raw), record.expiration) for subkey, (record, raw) in some})

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration]]:
        """Keys and what is under them, for a new neighbour: as much as it will take in one request."""
        left = limits.HANDOVER_ITEMS
        for key in self.records.hashed_keys():
            held = self.get(DHTID.from_bytes(key), left)
            if held is not None:
                left -= len(held.value.data)
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


def dht_id(peer: PeerID) -> DHTID:
    """A node's place in the DHT follows from its key, so that nobody can choose it (but by making keys)."""
    return DHTID.generate(source=peer.to_bytes())


class NarrowProtocol(DHTProtocol):  # type: ignore[misc]
    """hivemind's DHT protocol, narrowed: one bad item never hides the good ones beside it. One subclass per run."""

    prefix = ""

    @classmethod
    def of_run(cls, prefix: str) -> type[NarrowProtocol]:
        """The protocol under this run's ids."""
        return type("RunNarrowProtocol", (cls,), {"prefix": prefix, "_rpc_handlers": None, "_stub_type": None})

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
        items = sum(map(self._items, request.subkeys, request.values))
        if items > limits.STORE_ITEMS:
            raise PeerFault("record-request")
        self.p2p.charge(context.remote_id, max(0, items - 1))  # each is a signature to check
        return await super().rpc_store(request, context)

    def _items(self, tag: bytes, value: bytes) -> int:
        """How many records a value in a store request holds."""
        if tag != self.IS_DICTIONARY:
            return 1
        try:
            dictionary = self.serializer.loads(value)
        except Exception:  # whatever msgpack makes of what a stranger wrote
            raise PeerFault("record-form") from None
        if not isinstance(dictionary, DictionaryDHTValue):
            raise PeerFault("record-form")
        return len(dictionary.data)

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        if len(request.keys) > limits.FIND_KEYS:
            raise PeerFault("record-request")
        self.p2p.charge(context.remote_id, max(0, len(request.keys) - 1))
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
            out[key] = (value, {node: other for node, other in nearest.items() if node == dht_id(other)})
        return out

    async def update_routing_table(self, node_id: DHTID | None, peer_id: PeerID, responded: bool = True) -> None:
        if node_id is None or node_id == dht_id(peer_id):
            if node_id is None and responded:
                return
            await super().update_routing_table(node_id, peer_id, responded)


async def make_node(rpc: Rpc, prefix: str, storage: Storage) -> DHTNode:
    """A node of the run's DHT; it knows nobody yet. prefix: of the run's protocol ids."""
    place = dht_id(rpc.peer_id)
    # Made as a client, which registers nothing; then given the narrowed protocol.
    node = await DHTNode.create(
        rpc, place, num_replicas=_REPLICAS, wait_timeout=_RPC_SECONDS, client_mode=True, cache_locally=False,
        cache_nearest=0, cache_on_store=False, cache_refresh_before_expiry=0, reuse_get_requests=False,
        record_validator=Validator(),
    )  # fmt: skip
    protocol = await NarrowProtocol.of_run(prefix).create(
        rpc, place, node.protocol.bucket_size, 5, _REPLICAS, _RPC_SECONDS, record_validator=Validator()
    )
    protocol.storage, protocol.cache = storage, _NoCache()
    node.protocol = protocol
    return node
