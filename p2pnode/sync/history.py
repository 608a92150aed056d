"""The chain as this node holds it: its start, and the record of each round since, on disk; and when each came."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from blake3 import blake3
from google.protobuf.message import DecodeError

from p2pnode.envelope import DIGEST_BYTES
from p2pnode.errors import PeerFault, StorageError
from p2pnode.manifest import RunManifest
from p2pnode.replica.chain import Link, check_record, decode_record
from p2pnode.replica.roster import Roster
from p2pnode.replica.state import state_digest
from p2pnode.sync.log import ChainLog
from p2pnode.wire.chain_pb2 import CheckpointRecord

CHECKED_ON_OPENING: Final = 32  # newest records of a log whose signatures are checked again


class History:
    """A `branches.Chain` from a start that is believed (round 0, or an invite's checkpoint) to the newest round."""

    def __init__(self, start: Link, log: ChainLog, manifest: RunManifest, values: int, now: float) -> None:
        """A history that begins now, in place of whatever the log's file holds.

        values: the model's parameters. now: seconds on a clock that all calls share, also those of later processes
        that open the log.
        """
        log.begin(_encode_start(manifest, start), now)
        self._set_up(start, log, manifest, values, now)

    def _set_up(self, start: Link, log: ChainLog, manifest: RunManifest, values: int, now: float) -> None:
        self._start = self._tip = start
        self._log = log
        self._manifest = manifest
        self._values = values
        self._digests = bytearray(start.digest)  # of all rounds, DIGEST_BYTES each
        self._times = array("d", [now])

    @classmethod
    def open(cls, log: ChainLog, manifest: RunManifest, values: int) -> tuple[History, list[str]]:
        """Take up the history that an earlier process left, and what a person should know of it.

        What is trusted: our own disk, against accidents, not against somebody who owns this machine. Every record
        has its checksum, and its header is the preimage of the digest that the next one names, back to the start;
        signatures and rosters, which were checked before the record was written, are checked again for the newest
        CHECKED_ON_OPENING rounds only. What fails is named and set aside with all that follows it.

        StorageError if the log can't be used at all.
        """
        history, told = cls.__new__(cls), log.open()
        notices = [told] if told else []
        while told := history._load(log, manifest, values):
            notices.append(told)
            log.open()
        return history, notices

    def _load(self, log: ChainLog, manifest: RunManifest, values: int) -> str:
        """Read all of an opened log; what was found wrong and set aside, or ""."""
        self._set_up(_decode_start(log, manifest), log, manifest, values, log.started)
        tip, frames = self.first, array("Q")  # where each round's frame begins
        for stored in log.stored():
            try:
                record = decode_record(stored.payload)
                header = record.header
                if header.run != manifest.digest or header.parent != self.digest_at(header.round - 1):
                    raise ValueError("does not follow from what is before it")
                if blake3(record.roster.SerializeToString(deterministic=True)).digest() != header.roster:
                    raise ValueError("its roster is not the one that it names")
                digest = state_digest(header)
            except (PeerFault, ValueError) as error:
                return f"{log.path}: the record after round {tip} is wrong ({error}); {log.set_aside(stored.start)}"
            kept = header.round - 1 - self.first  # fewer than so far: another branch was followed from there on
            self._cut(header.round - 1)
            log.cut(kept)
            del frames[kept:]
            log.take(stored)
            self._digests += digest
            self._times.append(stored.time)
            frames.append(stored.start)
            tip = header.round
        first = max(self.first, tip - CHECKED_ON_OPENING)
        link = self._bare(first)
        for number in range(first + 1, tip + 1):
            try:
                link = check_record(decode_record(self.record_at(number) or b""), link, manifest, values).link
            except PeerFault as fault:
                told = log.set_aside(frames[number - 1 - self.first])
                return f"{log.path}: the record of round {number} is wrong ({fault}); {told}"
        self._tip = link
        return ""

    @property
    def first(self) -> int:
        """The start's round."""
        return self._start.round

    @property
    def tip(self) -> Link:
        """The newest link."""
        return self._tip

    def append(self, link: Link, record: bytes, now: float) -> None:
        """The next round is certified: durable when this returns. StorageError; ValueError if it is not the next."""
        if link.round != self._tip.round + 1:
            raise ValueError(f"round {link.round} after round {self._tip.round}")
        self.follow(self._tip.round, (link,), (record,), now)

    def follow(self, common: int, links: Sequence[Link], records: Sequence[bytes], now: float) -> None:
        """Forget all rounds after `common`, and go on with these: on disk at once or not at all. StorageError."""
        if not links:
            return
        if not self.first <= common <= self._tip.round or links[0].round != common + 1:
            raise ValueError(f"round {links[0].round} after round {common} of {self.first} to {self._tip.round}")
        self._log.append(records, now, keep=common - self.first)
        self._cut(common)
        for link in links:
            self._digests += link.digest
            self._times.append(now)
        self._tip = links[-1]

    def digest_at(self, round_number: int) -> bytes | None:
        """A round's state digest; None before the start, or beyond the tip."""
        index = (round_number - self.first) * DIGEST_BYTES
        return bytes(self._digests[index : index + DIGEST_BYTES]) or None if index >= 0 else None

    def record_at(self, round_number: int) -> bytes | None:
        """A round's record; None up to the start, or beyond the tip."""
        index = round_number - self.first - 1
        return self._log.read(index) if 0 <= index < len(self._log) else None

    def link_at(self, round_number: int) -> Link:
        """A round's link, read from the log and checked anew. ValueError if it is not here."""
        if round_number == self.first:
            return self._start
        if round_number == self._tip.round:
            return self._tip
        record = self.record_at(round_number)
        if record is None:
            raise ValueError(f"round {round_number} is not between {self.first} and {self._tip.round}")
        return check_record(decode_record(record), self._bare(round_number - 1), self._manifest, self._values).link

    def waited(self, round_number: int, now: float) -> float:
        """Seconds since a round was certified here, or the start was taken up."""
        return max(0.0, now - self._times[round_number - self.first])

    def close(self) -> None:
        """Idempotent."""
        self._log.close()

    def _cut(self, round_number: int) -> None:
        count = round_number + 1 - self.first
        del self._digests[count * DIGEST_BYTES :], self._times[count:]

    def _bare(self, round_number: int) -> Link:
        """As much of a link as its children's check needs."""
        record = self.record_at(round_number)
        if record is None:
            return self._start
        decoded = decode_record(record)
        digest = self.digest_at(round_number) or b""
        return Link(round_number, digest, Roster.from_message(decoded.roster), decoded.header)


def _encode_start(manifest: RunManifest, start: Link) -> bytes:
    return CheckpointRecord(
        run=manifest.digest,
        round=start.round,
        state_digest=start.digest,
        roster=start.roster.to_message(),
        header=start.header,
    ).SerializeToString()


def _decode_start(log: ChainLog, manifest: RunManifest) -> Link:
    try:
        record = CheckpointRecord.FromString(log.start)
        header = record.header if record.HasField("header") else None
        roster = Roster.from_message(record.roster)
        if record.run != manifest.digest or len(record.state_digest) != DIGEST_BYTES:
            raise ValueError("of another run")
        if header is not None and (state_digest(header) != record.state_digest or header.roster != roster.digest):
            raise ValueError("its parts do not belong together")
    except (DecodeError, ValueError) as error:
        raise StorageError(f"{log.path}: its start can't be used ({error})") from None
    return Link(int(record.round), record.state_digest, roster, header)
