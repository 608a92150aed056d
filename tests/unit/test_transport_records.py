"""DHT records: the validator's clauses by name, the reader's choice, the store's bounds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.envelope import seal
from p2pnode.errors import FrameTooLarge, PeerFault
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import records
from p2pnode.transport.base import MAX_RECORD_BYTES, MAX_SUBKEYS, Record
from p2pnode.wire.records_pb2 import DhtRecord

ME, OTHER = PeerIdentity.from_seed(b"1" * 32), PeerIdentity.from_seed(b"2" * 32)
KEY = records.key_hash(bytes(32), "members")
NOW = 1_800_000_000.0


def make(by: PeerIdentity = ME, payload_type: str = records.RECORD_TYPE, **changes: object) -> bytes:
    fields = {
        "key": KEY,
        "subkey": ME.peer_id.key,
        "value": b"v",
        "expiration": NOW + 60,
        "issued": NOW,
        "sequence": 1,
        **changes,
    }
    return seal(by, payload_type, DhtRecord(**fields)).raw  # type: ignore[arg-type]


def test_a_good_record() -> None:
    record = records.check_record(KEY, ME.peer_id.key, make(), NOW + 60)
    assert record == Record(ME.peer_id, b"v", 1, NOW, NOW + 60)


CASES: dict[str, tuple[str, Callable[[], tuple[bytes, bytes, bytes, float]]]] = {
    "short subkey": ("record-subkey", lambda: (KEY, b"x", make(), NOW + 60)),
    "too long": ("record-size", lambda: (KEY, ME.peer_id.key, make(value=bytes(MAX_RECORD_BYTES)), NOW + 60)),
    "rubbish": ("envelope-form", lambda: (KEY, ME.peer_id.key, b"\xff\xff", NOW + 60)),
    "other type": ("envelope-type", lambda: (KEY, ME.peer_id.key, make(payload_type="vote"), NOW + 60)),
    "touched": ("envelope-signature", lambda: (KEY, ME.peer_id.key, make()[:-1] + b"\0", NOW + 60)),
    "other signer": ("record-sender", lambda: (KEY, ME.peer_id.key, make(by=OTHER), NOW + 60)),
    "other subkey": ("record-sender", lambda: (KEY, OTHER.peer_id.key, make(), NOW + 60)),
    "other subkey inside": ("record-sender", lambda: (KEY, ME.peer_id.key, make(subkey=b"x" * 32), NOW + 60)),
    "other key": ("record-key", lambda: (bytes(20), ME.peer_id.key, make(), NOW + 60)),
    "short key": ("record-key", lambda: (b"", ME.peer_id.key, make(key=b""), NOW + 60)),
    "other expiration": ("record-times", lambda: (KEY, ME.peer_id.key, make(), NOW + 61)),
    "before time": ("record-times", lambda: (KEY, ME.peer_id.key, make(issued=-1.0), NOW + 60)),
    "no number": ("record-times", lambda: (KEY, ME.peer_id.key, make(expiration=math.nan), math.nan)),
    "infinite issue": ("record-times", lambda: (KEY, ME.peer_id.key, make(issued=-math.inf), NOW + 60)),
    "forever": ("record-lifetime", lambda: (KEY, ME.peer_id.key, make(expiration=math.inf), math.inf)),
    "too long a life": (
        "record-lifetime",
        lambda: (KEY, ME.peer_id.key, make(expiration=NOW + records.MAX_LIFETIME + 1), NOW + records.MAX_LIFETIME + 1),
    ),
    "no life": ("record-lifetime", lambda: (KEY, ME.peer_id.key, make(expiration=NOW), NOW)),
}


@pytest.mark.parametrize("case", CASES)
def test_each_clause_by_its_name(case: str) -> None:
    clause, arguments = CASES[case]
    with pytest.raises(PeerFault) as caught:
        records.check_record(*arguments())
    assert caught.value.clause == clause


@given(st.binary(max_size=300), st.binary(max_size=40), st.floats())
def test_rubbish_is_refused_and_never_raises_anything_else(raw: bytes, subkey: bytes, expiration: float) -> None:
    with pytest.raises(PeerFault):
        records.check_record(KEY, subkey, raw, expiration)


@given(st.binary(max_size=70_000))
def test_unpacking_is_msgpack_bin_in_shortest_form(data: bytes) -> None:
    packed = msgpack.packb(data, use_bin_type=True)
    if len(data) < 1 << 16:
        assert records.unpack(packed) == data
    for bad in (packed + b"x", packed[:-1], b"\xc5" + len(data[:200]).to_bytes(2, "big") + data[:200], b""):
        with pytest.raises(ValueError):
            records.unpack(bad)


def test_a_record_that_does_not_fit_is_not_made() -> None:
    with pytest.raises(FrameTooLarge):
        records.seal_record(ME, KEY, bytes(MAX_RECORD_BYTES), issued=NOW, expiration=NOW + 1, sequence=1)


def test_keys_are_a_runs_own() -> None:
    assert records.key_hash(bytes(32), "a") != records.key_hash(b"1" * 32, "a")
    assert records.key_hash(bytes(32), "a") == hashlib.sha1(records.key_source(bytes(32), "a")).digest()


def record(peer: int, sequence: int = 1, issued: float = NOW, expiration: float = NOW + 60) -> Record:
    return Record(PeerId(peer.to_bytes(32, "big")), b"%d" % sequence, sequence, issued, expiration)


def test_a_reader_takes_the_timely_and_the_newest() -> None:
    found = [
        record(1, 5),
        record(1, 7),
        record(1, 6, expiration=NOW + 600),
        record(2, expiration=NOW - 1),
        record(3, issued=NOW + records.MAX_AHEAD + 1, expiration=NOW + 100),
        record(4, issued=NOW + records.MAX_AHEAD - 1, expiration=NOW + 100),
    ]
    for order in (found, found[::-1]):
        taken = records.choose(ME.peer_id, order, NOW)
        assert {(int.from_bytes(peer.key, "big"), one.sequence) for peer, one in taken.items()} == {(1, 7), (4, 1)}


def test_a_reader_caps_prefers_and_can_not_be_crowded_out_for_all() -> None:
    many = [record(n) for n in range(3 * MAX_SUBKEYS)]
    preferred = [many[n].sender for n in (5, 300, 700)]
    one = records.choose(ME.peer_id, many, NOW, preferred)
    other = records.choose(OTHER.peer_id, many, NOW, preferred)
    assert len(one) == len(other) == MAX_SUBKEYS
    assert set(preferred) <= set(one) & set(other)
    assert set(one) != set(other)
    assert dict(one) == dict(records.choose(ME.peer_id, many[::-1], NOW, preferred))


def test_numbers_and_expirations_only_grow() -> None:
    book = records.SequenceBook()
    numbers = [book.next(KEY, now, life) for now, life in ((NOW, 60), (NOW, 60), (NOW - 100, 1), (NOW + 1, 600))]
    assert [n for n, _ in numbers] == sorted({n for n, _ in numbers})
    assert [e for _, e in numbers] == sorted({e for _, e in numbers})
    assert book.next(bytes(20), NOW, 5) == (int(NOW * 1000), NOW + 5)


def sealed(
    by: PeerIdentity, key: bytes = KEY, sequence: int = 1, life: float = 60
) -> tuple[bytes, bytes, bytes, float]:
    raw = records.seal_record(by, key, b"v", issued=NOW, expiration=NOW + life, sequence=sequence)
    return key, by.peer_id.key, raw, NOW + life


def test_a_store_keeps_the_newest_and_forgets_the_expired() -> None:
    store = records.RecordStore()
    assert store.put(*sealed(ME, sequence=2), NOW)
    assert store.put(*sealed(ME, sequence=2), NOW), "again is no harm"
    assert not store.put(*sealed(ME, sequence=1, life=500), NOW)
    assert store.put(*sealed(ME, sequence=3, life=30), NOW)
    assert store.put(*sealed(OTHER), NOW)
    assert {r.sequence for r, _ in store.get(KEY, NOW).values()} == {1, 3}
    assert set(store.get(KEY, NOW + 40)) == {OTHER.peer_id.key}
    assert not store.put(*sealed(ME, sequence=9), NOW + 100)
    assert not store.put(*sealed(ME, sequence=9), NOW - 100), "not yet issued"
    store.expire(NOW + 100)
    assert len(store) == 0
    assert store._bytes == 0
    assert not store._keys_of


def test_a_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    store = records.RecordStore()
    for n in range(records.MAX_KEYS_PER_SENDER):
        assert store.put(*sealed(ME, key=n.to_bytes(20, "big")), NOW)
    assert not store.put(*sealed(ME, key=b"k" * 20), NOW)
    assert store.put(*sealed(ME, key=bytes(20), sequence=2), NOW), "what is there can be renewed"
    monkeypatch.setattr(records, "MAX_SUBKEYS", 2)
    assert store.put(*sealed(OTHER, key=bytes(20)), NOW)
    third = PeerIdentity.from_seed(b"3" * 32)
    assert not store.put(*sealed(third, key=bytes(20)), NOW)
    monkeypatch.setattr(records, "MAX_STORE_BYTES", store._bytes)
    assert not store.put(*sealed(third, key=b"k" * 20), NOW)
    assert store.put(*sealed(third, key=b"k" * 20), NOW + 59.9) is False
    store.expire(NOW + 61)
    assert store.put(*sealed(third, key=b"k" * 20, life=100), NOW + 61), "room again"


def flood(store: records.RecordStore, key: bytes, count: int, start: int = 0) -> int:
    """Strangers with valid records of their own; how many were kept."""
    strangers = (PeerIdentity.from_seed(hashlib.sha256(b"%d" % n).digest()) for n in range(start, start + count))
    return sum(store.put(*sealed(stranger, key=key), NOW) for stranger in strangers)


def test_who_is_preferred_finds_room_in_a_list_that_strangers_filled() -> None:
    store = records.RecordStore()
    assert store.put(*sealed(OTHER), NOW)
    assert flood(store, KEY, MAX_SUBKEYS + 20) == MAX_SUBKEYS - 1, "the list was full"
    assert not store.put(*sealed(ME), NOW)
    store.prefer([ME.peer_id.key, OTHER.peer_id.key])
    assert store.put(*sealed(ME), NOW)
    assert flood(store, KEY, 50, start=1000) == 0
    held = store.get(KEY, NOW)
    assert len(held) == MAX_SUBKEYS and {ME.peer_id.key, OTHER.peer_id.key} <= set(held)


def test_who_is_preferred_finds_room_among_keys_and_bytes_that_strangers_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "MAX_KEYS", 20)
    store = records.RecordStore()
    keys = [hashlib.sha1(b"%d" % n).digest() for n in range(30)]
    assert sum(flood(store, key, 2, start=2 * n) for n, key in enumerate(keys)) == 40, "all keys are taken"
    assert not store.put(*sealed(ME), NOW)
    store.prefer([ME.peer_id.key])
    assert store.put(*sealed(ME), NOW)
    assert len(list(store.hashed_keys())) == 20
    monkeypatch.setattr(records, "MAX_STORE_BYTES", store._bytes)
    assert not store.put(*sealed(OTHER, key=keys[0]), NOW)
    assert store.put(*sealed(ME, key=keys[0]), NOW)
    assert store._bytes <= records.MAX_STORE_BYTES
    for n in range(2, records.MAX_KEYS_PER_SENDER + 5):  # a preferred one may not fill it either
        store.put(*sealed(ME, key=hashlib.sha1(b"more %d" % n).digest()), NOW)
    assert store._keys_of[ME.peer_id.key] == records.MAX_KEYS_PER_SENDER
    before = len(store)
    assert not store.put(*sealed(ME, key=b"z" * 20), NOW) and len(store) == before, "nobody gave way in vain"


def test_what_is_replayed_brings_nothing_back() -> None:
    store = records.RecordStore()
    first, second = sealed(ME, sequence=1, life=60), sealed(ME, sequence=2, life=61)
    assert store.put(*first, NOW) and store.put(*second, NOW)
    assert not store.put(*first, NOW + 1), "while the newer one lives"
    store.expire(NOW + 62)
    assert not store.put(*first, NOW + 62) and not store.put(*second, NOW + 62), "and when both have expired"
    assert not store.get(KEY, NOW + 62)
    raw = records.seal_record(ME, KEY, b"another", issued=NOW, expiration=NOW + 61, sequence=2)
    assert store.put(*second, NOW)
    assert not store.put(KEY, ME.peer_id.key, raw, NOW + 61, NOW), "a number that was used is used"
