"""Enemies in the real DHT: they answer and ask what hivemind's own nodes never would. Honest records stay found."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hivemind.dht import DHTID
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import ValueWithExpiration

from p2pnode.errors import NetworkError
from p2pnode.identity import PeerIdentity
from p2pnode.transport import limits, records
from p2pnode.transport.base import MAX_SUBKEYS, TransportOptions
from p2pnode.transport.hivemind import HivemindTransport
from p2pnode.transport.hivemind.dht import Validator

pytestmark = pytest.mark.integration

RUN = bytes(range(32))
KEY = "members"
HASHED = records.key_hash(RUN, KEY)
PLACE = DHTID.from_bytes(HASHED)
pack = DHTProtocol.serializer.dumps


def sealed(identity: PeerIdentity, value: bytes = b"v", life: float = 60.0, ago: float = 0.0) -> tuple[bytes, float]:
    """(value as the DHT has it, expiration)"""
    now = time.time() - ago
    raw = records.seal_record(identity, HASHED, value, issued=now, expiration=now + life, sequence=int(now * 1000))
    return pack(raw), now + life


def dictionary(*items: tuple[object, bytes, float]) -> DictionaryDHTValue:
    made = DictionaryDHTValue()
    made.frozen = True
    for subkey, value, expiration in items:
        made.store(subkey, value, expiration)
    return made


class Liar:
    """In place of an enemy's storage: answers each question about any key with the same lie."""

    def __init__(self, answer: object, expiration: float) -> None:
        self.answer = ValueWithExpiration(answer, expiration)
        self.told = 0

    def get(self, key: DHTID) -> ValueWithExpiration:
        self.told += 1
        return self.answer

    def items(self) -> list[Any]:
        return []

    def store(self, *args: Any, **kwargs: Any) -> bool:
        return False

    store_subkey = store


@asynccontextmanager
async def swarm() -> AsyncIterator[tuple[HivemindTransport, HivemindTransport, HivemindTransport]]:
    """Two honest nodes and an enemy, all acquainted."""
    nodes: list[HivemindTransport] = []
    try:
        for _ in range(3):
            near = [address for node in nodes for address in node.addresses()]
            nodes.append(HivemindTransport(PeerIdentity.generate(), RUN, TransportOptions(bootstraps=near)))
            await nodes[-1].start()
        deadline = time.monotonic() + 10
        while any(len(node._dht.protocol.routing_table.uid_to_peer_id) < 2 for node in nodes):
            assert time.monotonic() < deadline, "they did not get acquainted"
            await asyncio.sleep(0.02)
        yield nodes[0], nodes[1], nodes[2]
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


async def ask_to_store(enemy: HivemindTransport, to: HivemindTransport, **fields: Any) -> list[bool]:
    """A store request as the enemy likes it."""
    request = dht_pb2.StoreRequest(keys=[HASHED], peer=enemy._dht.protocol.node_info, **fields)
    stub = enemy._dht.protocol.get_stub(PeerID(to.peer_id.to_bytes()))
    with contextlib.suppress(Exception):  # hivemind's callers get whatever the other side raised
        return list((await stub.rpc_store(request, timeout=5)).store_ok)
    return [False]


LIES = {
    "one bad item, far expiration": lambda me, them: (
        dictionary((them.peer_id.key, b"junk", 4e9), (me.peer_id.key, *sealed(me))),
        4e9,
    ),
    "empty, far expiration": lambda me, them: (dictionary(), 4e9),
    "a value without subkey": lambda me, them: (pack(b"the members are: me"), 4e9),
    "odd subkeys": lambda me, them: (dictionary((5, b"x", 4e9), (None, b"y", 5e9), (b"", b"z", 6e9)), 6e9),
    "too many items": lambda me, them: (
        dictionary(*((n.to_bytes(32, "big"), b"x", 4e9) for n in range(MAX_SUBKEYS + 1))),
        4e9,
    ),
    "what it said before, expired": lambda me, them: (
        dictionary((them.peer_id.key, *sealed(them, b"expired", ago=100))),
        time.time() + 60,
    ),
    "what it said before": lambda me, them: (
        dictionary((them.peer_id.key, *sealed(them, b"replaced", life=60, ago=10))),
        time.time() + 3000,
    ),
    "an old dictionary": lambda me, them: (dictionary((me.peer_id.key, *sealed(me))), 1.0),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_answer_hides_nothing(lie: str) -> None:
    async def test() -> None:
        async with swarm() as (a, b, enemy):
            assert await b.store(KEY, b"honest", lifetime=60)
            # The enemy and b alone answer: a's own copy would make it too easy.
            a._storage.records = records.RecordStore()
            liar = Liar(*LIES[lie](enemy._identity, b._identity))
            enemy._dht.protocol.storage = liar
            for _ in range(3):
                found = await a.fetch(KEY)
                assert found[b.peer_id].value == b"honest"
                assert set(found) <= {b.peer_id, enemy.peer_id}
            assert liar.told, "the lie was never told"

    asyncio.run(test())


def test_stores_that_would_hide_or_replace() -> None:
    async def test() -> None:
        async with swarm() as (a, b, enemy):
            assert await b.store(KEY, b"honest", lifetime=60)
            mine = enemy._identity
            good, expiration = sealed(mine)
            far = 4e9
            regular, whole = DHTProtocol.IS_REGULAR_VALUE, DHTProtocol.IS_DICTIONARY
            poison = pack(dictionary((b.peer_id.key, b"junk", far), (mine.peer_id.key, good, expiration)))

            def fields(tag: bytes, value: bytes, until: float, cache: bool = False) -> dict[str, Any]:
                return {"subkeys": [tag], "values": [value], "expiration_time": [until], "in_cache": [cache]}

            refused = {
                "no subkey": fields(regular, good, far),
                "no subkey, cached": fields(regular, good, far, True),
                "cached": fields(pack(mine.peer_id.key), good, expiration, True),
                "another's subkey": fields(pack(b.peer_id.key), good, expiration),
                "not msgpack": fields(b"\xc1", good, expiration),
                "infinite": fields(pack(mine.peer_id.key), good, float("inf")),
                "not a number": fields(pack(mine.peer_id.key), good, float("nan")),
            }
            for what, request in refused.items():
                assert not any(await ask_to_store(enemy, a, **request)), what
            await ask_to_store(enemy, a, **fields(whole, poison, far))
            await ask_to_store(enemy, a, subkeys=[whole] * 2, values=[poison] * 2, expiration_time=[far], in_cache=[])
            for node in (a, b):
                found = await node.fetch(KEY)
                assert found[b.peer_id].value == b"honest"
                assert found[mine.peer_id].value == b"v", "the good item of the poisoned dictionary was kept"
            assert await b.store(KEY, b"newer", lifetime=60)
            assert (await a.fetch(KEY))[b.peer_id].value == b"newer"

    asyncio.run(test())


def test_requests_that_cost_much_are_rationed() -> None:
    async def test() -> None:
        async with swarm() as (a, b, enemy):
            refused: list[str] = []
            a.on_violation(lambda peer, clause: refused.append(clause))
            whole, far = DHTProtocol.IS_DICTIONARY, time.time() + 600
            forged = sealed(enemy._identity)[0][:-1] + b"?"  # a signature to check, in vain

            def heap(count: int) -> dict[str, Any]:
                rows = ((n.to_bytes(32, "big"), forged, far) for n in range(count))
                return {
                    "subkeys": [whole],
                    "values": [pack(dictionary(*rows))],
                    "expiration_time": [far],
                    "in_cache": [False],
                }

            checked = 0
            check = records.check_record

            def count(*arguments: Any) -> records.Record:
                nonlocal checked
                checked += 1
                return check(*arguments)

            records.check_record = count
            try:
                await ask_to_store(enemy, a, **heap(limits.STORE_ITEMS + 1))
                assert checked == 0, "too many for one request"
                await ask_to_store(enemy, a, **heap(limits.STORE_ITEMS))
                assert checked == limits.STORE_ITEMS, "the attack reaches the signatures"
                began, sent = time.monotonic(), 0
                while time.monotonic() - began < 3:
                    await ask_to_store(enemy, a, **heap(limits.STORE_ITEMS))
                    sent += 1
                spent = time.monotonic() - began
            finally:
                records.check_record = check
            assert sent * limits.STORE_ITEMS > 2 * checked, "there was a flood"
            assert checked <= limits.CALL_BURST + limits.CALL_RATE * (spent + 2)
            assert set(refused) == {"call-rate"}
            stub = enemy._dht.protocol.get_stub(PeerID(a.peer_id.to_bytes()))
            many = [n.to_bytes(20, "big") for n in range(limits.FIND_KEYS + 1)]
            with pytest.raises(NetworkError):
                await stub.rpc_find(dht_pb2.FindRequest(keys=many, peer=enemy._dht.protocol.node_info), timeout=5)
            assert await b.store(KEY, b"honest", lifetime=60)
            assert (await a.fetch(KEY))[b.peer_id].value == b"honest"

    asyncio.run(test())


def test_a_new_neighbour_is_handed_as_much_as_it_takes() -> None:
    async def test() -> None:
        async with swarm() as (a, b, _):
            now = time.time()
            for n in range(limits.HANDOVER_ITEMS + 50):
                one = PeerIdentity.from_seed(hashlib.sha256(b"%d" % n).digest())
                raw = records.seal_record(one, HASHED, b"v", issued=now, expiration=now + 600, sequence=1)
                assert a._storage.records.put(HASHED, one.peer_id.key, raw, now + 600, now)
            refused: list[str] = []
            b.on_violation(lambda peer, clause: refused.append(clause))
            b._storage.records = records.RecordStore()
            keys, values = zip(*a._storage.items(), strict=True)  # as hivemind does when it meets a node
            packed, expirations = zip(*values, strict=True)
            taken = await a._dht.protocol.call_store(
                PeerID(b.peer_id.to_bytes()), keys, packed, expirations, in_cache=False
            )
            assert taken == [True] and not refused
            assert len(b._storage.records) == limits.HANDOVER_ITEMS

    asyncio.run(test())


def test_nobody_chooses_a_place_in_the_dht() -> None:
    async def test() -> None:
        async with swarm() as (a, b, enemy):
            protocol = enemy._dht.protocol
            protocol.node_info = dht_pb2.NodeInfo(node_id=PLACE.to_bytes())  # right on top of the key
            await protocol.call_ping(PeerID(a.peer_id.to_bytes()))
            await protocol.call_find(PeerID(a.peer_id.to_bytes()), [PLACE])
            await asyncio.sleep(0.2)
            assert PLACE not in a._dht.protocol.routing_table

            async def lie(request: Any, context: Any) -> Any:
                result = dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
                result.nearest_node_ids.append(PLACE.to_bytes())
                result.nearest_peer_ids.append(enemy.peer_id.to_bytes())
                return dht_pb2.FindResponse(results=[result], peer=protocol.node_info)

            found = await a._dht.protocol.call_find(PeerID(b.peer_id.to_bytes()), [PLACE])
            assert found is not None
            handlers = enemy._control.unary_handlers
            name = a._dht.protocol._get_handle_name(None, "rpc_find")

            async def unary(request: bytes, remote: PeerID) -> bytes:
                return bytes((await lie(request, remote)).SerializeToString())

            handlers[name] = unary
            [(_, nearest)] = (await a._dht.protocol.call_find(PeerID(enemy.peer_id.to_bytes()), [PLACE])).values()
            assert nearest == {}

    asyncio.run(test())


def test_why_hivemind_alone_is_not_enough() -> None:
    """The stock protocol with our validator drops the whole dictionary: the reason for narrowing it."""
    stock = DHTProtocol(_initialized_with_create=True)
    stock.record_validator = Validator()
    me, them = PeerIdentity.generate(), PeerIdentity.generate()
    assert stock._validate_dictionary(HASHED, dictionary((me.peer_id.key, *sealed(me))))
    mixed = dictionary((me.peer_id.key, *sealed(me)), (them.peer_id.key, b"junk", 4e9))
    assert not stock._validate_dictionary(HASHED, mixed)
