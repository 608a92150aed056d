"""DHT records: sealing, the validator, and a bounded store. Pure: no clock, no I/O. The spec is `protocols/records.md`.

The validator is a function of the record alone, so that every node judges a record alike, whenever it sees it. What
depends on the time or on the reader (expired, banned, not in the roster) is filtered after reading.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final

from blake3 import blake3

from p2pnode.envelope import open_envelope, seal
from p2pnode.errors import FrameTooLarge, PeerFault
from p2pnode.identity import KEY_BYTES, PeerId, PeerIdentity
from p2pnode.transport.base import MAX_RECORD_BYTES, MAX_SUBKEYS, Record
from p2pnode.wire.records_pb2 import DhtRecord

RECORD_TYPE: Final = "dht-record"
HASH_BYTES: Final = 20  # of a key, as hivemind's DHT has it
MAX_LIFETIME: Final = 3600.0  # seconds from issue to expiration
MAX_AHEAD: Final = 60.0  # seconds that a record's times may be ahead of a reader's or a store's clock
MAX_KEYS: Final = 1024  # in one node's store
MAX_KEYS_PER_SENDER: Final = 16
MAX_STORE_BYTES: Final = 64 << 20


def key_hash(run_digest: bytes, key: str) -> bytes:
    """The 20 bytes under which `key` of this run stands in the DHT: SHA-1 (hivemind's own) over BLAKE3."""
    return hashlib.sha1(key_source(run_digest, key)).digest()


def key_source(run_digest: bytes, key: str) -> bytes:
    """What hivemind's DHT is to hash to arrive at `key_hash`."""
    return blake3(b"p2pnode.dht-key.1" + run_digest + key.encode()).digest()


def unpack(data: bytes) -> bytes:
    """The bytes in a msgpack `bin`, as hivemind wraps subkeys and values. ValueError unless it is the shortest form."""
    if data[:1] == b"\xc4" and len(data) >= 2 and data[1] == len(data) - 2:
        return data[2:]
    if data[:1] == b"\xc5" and len(data) >= 3 and 255 < int.from_bytes(data[1:3], "big") == len(data) - 3:
        return data[3:]
    raise ValueError("not msgpack bytes")


def seal_record(
    identity: PeerIdentity, hashed_key: bytes, value: bytes, *, issued: float, expiration: float, sequence: int
) -> bytes:
    """A signed record, ready to store under (`hashed_key`, our public key). FrameTooLarge beyond MAX_RECORD_BYTES."""
    record = DhtRecord(
        key=hashed_key,
        subkey=identity.peer_id.key,
        value=value,
        expiration=expiration,
        issued=issued,
        sequence=sequence,
    )
    raw = seal(identity, RECORD_TYPE, record).raw
    if len(raw) > MAX_RECORD_BYTES:
        raise FrameTooLarge(f"a DHT record of {len(raw)} bytes; the limit is {MAX_RECORD_BYTES}")
    return raw


@lru_cache(maxsize=1024)
def check_record(hashed_key: bytes, subkey: bytes, raw: bytes, expiration: float) -> Record:
    """The validator: clauses 3 to 9 of `protocols/records.md`, in order.

    hashed_key: 20 bytes; subkey: the sender's public key; raw: envelope bytes; expiration: as the DHT has it, seconds
    since the epoch. Raises PeerFault with the name of the first clause that does not hold.
    """
    if len(subkey) != KEY_BYTES:
        raise PeerFault("record-subkey", f"{len(subkey)} bytes")
    if len(raw) > MAX_RECORD_BYTES:
        raise PeerFault("record-size", f"{len(raw)} bytes, limit {MAX_RECORD_BYTES}")
    signed = open_envelope(raw, RECORD_TYPE, DhtRecord, max_bytes=MAX_RECORD_BYTES)
    record = signed.message
    if signed.sender.key != subkey or record.subkey != subkey:
        raise PeerFault("record-sender", "signed by somebody else than its subkey names")
    if record.key != hashed_key or len(hashed_key) != HASH_BYTES:
        raise PeerFault("record-key", "signed for another key")
    if not (math.isfinite(record.issued) and record.issued >= 0 and record.expiration == expiration):
        raise PeerFault("record-times", "not the times that were signed")
    if not 0 < record.expiration - record.issued <= MAX_LIFETIME:
        raise PeerFault("record-lifetime", f"{record.expiration - record.issued:.0f} s, limit {MAX_LIFETIME:.0f} s")
    return Record(signed.sender, record.value, record.sequence, record.issued, record.expiration)


def timely(record: Record, now: float) -> bool:
    """Clauses 10 and 11: whether `record` is neither expired nor from the future at `now` (the swarm's clock)."""
    return record.expiration > now and record.issued <= now + MAX_AHEAD


def choose(
    reader: PeerId, records: Iterable[Record], now: float, prefer: Collection[PeerId] = ()
) -> Mapping[PeerId, Record]:
    """What a reader takes: timely records, the highest sequence of each sender, at most MAX_SUBKEYS (clauses 10 to 13).

    Where there are more, `prefer` comes first and the rest in an order of this reader's own, so that nobody can fill
    the list for all readers at once.
    """
    best: dict[PeerId, Record] = {}
    for record in records:
        known = best.get(record.sender)
        if timely(record, now) and (known is None or _newer(record, known)):
            best[record.sender] = record
    if len(best) <= MAX_SUBKEYS:
        return best
    preferred = frozenset(prefer)
    order = sorted(best, key=lambda peer: (peer not in preferred, blake3(reader.key + peer.key).digest()))
    return {peer: best[peer] for peer in order[:MAX_SUBKEYS]}


def _newer(one: Record, other: Record) -> bool:
    return (one.sequence, one.issued, one.expiration) > (other.sequence, other.issued, other.expiration)


class SequenceBook:
    """Sequence numbers and expirations of our own records: both only grow, over restarts too if the clock does."""

    def __init__(self) -> None:
        self._last: dict[bytes, tuple[int, float]] = {}

    def next(self, hashed_key: bytes, now: float, lifetime: float) -> tuple[int, float]:
        """(sequence, expiration) for a record that is issued at `now`.

        A DHT keeps the record that expires last, so a record that is to replace another must not expire before it.
        """
        sequence, expiration = self._last.get(hashed_key, (0, 0.0))
        sequence = max(sequence + 1, int(now * 1000))
        expiration = now + lifetime if now + lifetime > expiration else expiration + 0.001
        self._last[hashed_key] = (sequence, expiration)
        return sequence, expiration


class RecordStore:
    """What one node keeps for the DHT: checked records only, bounded in keys, senders and bytes."""

    def __init__(self) -> None:
        self._records: dict[bytes, dict[bytes, tuple[Record, bytes]]] = {}
        self._keys_of: dict[bytes, int] = {}
        self._bytes = 0
        self._preferred: frozenset[bytes] = frozenset()

    def prefer(self, subkeys: Iterable[bytes]) -> None:
        """Whose records take the place of others' when there is no room: from now on these."""
        self._preferred = frozenset(subkeys)

    def put(self, hashed_key: bytes, subkey: bytes, raw: bytes, expiration: float, now: float) -> bool:
        """Keep a record if it is valid, timely, newer than the one of its sender, and if there is room."""
        try:
            record = check_record(hashed_key, subkey, raw, expiration)
        except PeerFault:
            return False
        if not timely(record, now):
            return False
        shelf = self._records.get(hashed_key, {})
        known = shelf.get(subkey)
        if known is not None:
            if not _newer(record, known[0]):
                return known[1] == raw  # stored already
        elif not self._room(shelf, hashed_key, subkey, len(raw)):
            self.expire(now)
            while not self._room(self._records.get(hashed_key, {}), hashed_key, subkey, len(raw)):
                if not self._evict(hashed_key, subkey):
                    return False
            shelf = self._records.get(hashed_key, {})
        if known is not None:
            self._bytes -= len(known[1])
        else:
            self._keys_of[subkey] = self._keys_of.get(subkey, 0) + 1
        shelf[subkey] = (record, raw)
        self._records[hashed_key] = shelf
        self._bytes += len(raw)
        return True

    def _room(self, shelf: Mapping[bytes, object], hashed_key: bytes, subkey: bytes, size: int) -> bool:
        return (
            len(shelf) < MAX_SUBKEYS
            and (hashed_key in self._records or len(self._records) < MAX_KEYS)
            and self._keys_of.get(subkey, 0) < MAX_KEYS_PER_SENDER
            and self._bytes + size <= MAX_STORE_BYTES
        )

    def _evict(self, hashed_key: bytes, subkey: bytes) -> bool:
        """Drop the newest record that nobody prefers for one that is preferred; whether that may make room."""
        if subkey not in self._preferred or self._keys_of.get(subkey, 0) >= MAX_KEYS_PER_SENDER:
            return False
        full = len(self._records.get(hashed_key, ())) >= MAX_SUBKEYS
        for key in [hashed_key] if full else reversed(self._records):
            for other in reversed(self._records[key]):
                if other not in self._preferred:
                    self._drop(key, other)
                    return True
        return False

    def _drop(self, hashed_key: bytes, subkey: bytes) -> None:
        shelf = self._records[hashed_key]
        _, raw = shelf.pop(subkey)
        self._bytes -= len(raw)
        self._keys_of[subkey] -= 1
        if not self._keys_of[subkey]:
            del self._keys_of[subkey]
        if not shelf:
            del self._records[hashed_key]

    def expire(self, now: float) -> None:
        """Forget what has expired."""
        for hashed_key, shelf in list(self._records.items()):
            for subkey, (record, _) in list(shelf.items()):
                if record.expiration <= now:
                    self._drop(hashed_key, subkey)

    def get(self, hashed_key: bytes, now: float) -> Mapping[bytes, tuple[Record, bytes]]:
        """Unexpired records under a key, by subkey, with their envelope bytes."""
        shelf = self._records.get(hashed_key, {})
        return {subkey: item for subkey, item in shelf.items() if item[0].expiration > now}

    def hashed_keys(self) -> Iterator[bytes]:
        """The hashed keys that are held."""
        return iter(list(self._records))

    def __len__(self) -> int:
        return sum(len(shelf) for shelf in self._records.values())
