"""The chain as this node holds it: its start, and the record of each round since, on disk; and when each came."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from p2pnode.errors import StorageError
from p2pnode.manifest import RunManifest
from p2pnode.replica.chain import Link, check_record, decode_record
from p2pnode.replica.roster import Roster


class ChainLog:
    """Records in a row, on disk; offsets in memory."""

    def __init__(self, path: Path) -> None:
        """Begin an empty log at `path`. StorageError if it can't be written."""
        self.path = path
        self._offsets: list[int] = [0]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("w+b")
        except OSError as error:
            raise StorageError(f"{path}: can't be written ({error.strerror})") from None

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, record: bytes) -> None:
        """Add a record."""
        try:
            self._file.seek(self._offsets[-1])
            self._file.write(record)
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self.path}: can't be written ({error.strerror})") from None
        self._offsets.append(self._offsets[-1] + len(record))

    def cut(self, count: int) -> None:
        """Keep the first `count` records."""
        del self._offsets[count + 1 :]

    def read(self, index: int) -> bytes:
        """One record."""
        start, stop = self._offsets[index : index + 2]
        return os.pread(self._file.fileno(), stop - start, start)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


class History:
    """A `branches.Chain` from a start that is believed (round 0, or an invite's checkpoint) to the newest round."""

    def __init__(self, start: Link, log: ChainLog, manifest: RunManifest, values: int, now: float) -> None:
        """log: empty. values: the model's parameters. now: seconds on any clock that `append` and `waited` share."""
        self._start = start
        self._log = log
        self._manifest = manifest
        self._values = values
        self._tip = start
        self._digests = [start.digest]
        self._times = [now]

    @property
    def first(self) -> int:
        """The start's round."""
        return self._start.round

    @property
    def tip(self) -> Link:
        """The newest link."""
        return self._tip

    def append(self, link: Link, record: bytes, now: float) -> None:
        """The next round is certified. ValueError if it is not the next one."""
        if link.round != self._tip.round + 1:
            raise ValueError(f"round {link.round} after round {self._tip.round}")
        self._log.append(record)
        self._tip = link
        self._digests.append(link.digest)
        self._times.append(now)

    def back_to(self, round_number: int) -> None:
        """Forget all rounds after this one: another branch is followed from there."""
        tip = self.link_at(round_number)
        count = round_number - self.first
        self._log.cut(count)
        del self._digests[count + 1 :], self._times[count + 1 :]
        self._tip = tip

    def digest_at(self, round_number: int) -> bytes | None:
        """A round's state digest; None before the start, or beyond the tip."""
        index = round_number - self.first
        return self._digests[index] if 0 <= index < len(self._digests) else None

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

    def _bare(self, round_number: int) -> Link:
        """As much of a link as its children's check needs."""
        record = self.record_at(round_number)
        if record is None:
            return self._start
        decoded = decode_record(record)
        digest = self._digests[round_number - self.first]
        return Link(round_number, digest, Roster.from_message(decoded.roster), decoded.header)

    def waited(self, round_number: int, now: float) -> float:
        """Seconds since a round was certified here, or the start was taken up."""
        return now - self._times[round_number - self.first]
