"""A log of chain records: one file, appended to durably, whose damage is found, said, and never loaded.

    "p2pnode chain 1\n"  frame  frame ...
    frame: payload's length (4 bytes, little-endian), flags (1), time (float64), BLAKE3 of the payload (32), the first
           4 bytes of BLAKE3 over all those, payload

The first frame's payload is where the chain starts, the others' are records. What is appended at once is there at once
or not at all: all its frames but the last have the flag MORE, and at the end of the file such frames are torn.
"""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from blake3 import blake3

from p2pnode.errors import StorageError
from p2pnode.home import free_name, write_all, write_atomically

_MAGIC: Final = b"p2pnode chain 1\n"
_HEAD: Final = struct.Struct("<IBd32s")
_CHECK: Final = 4
_FRAME: Final = _HEAD.size + _CHECK  # bytes of a frame before its payload
_MORE: Final = 1
MAX_PAYLOAD: Final = 2 << 20


@dataclass(frozen=True)
class Stored:
    """One record as it stands in the file. start: where its frame begins. time: as it was given to `append`."""

    start: int
    payload: bytes
    time: float


class ChainLog:
    """Records in a row, on disk; where they are, in memory. Nothing is read or written before `begin` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._at = array("Q")  # offsets of the payloads of the records that count
        self._sizes = array("I")
        self._end = 0  # of what is whole
        self.start = b""
        self.started = 0.0

    def __len__(self) -> int:
        return len(self._at)

    def begin(self, start: bytes, now: float) -> None:
        """A new log with this start, in place of whatever is at `path`. StorageError."""
        frame = _frame(start, now, more=False)
        write_atomically(self.path, _MAGIC + frame)
        self.close()
        self.cut(0)
        self.start, self.started, self._end = start, now, len(_MAGIC) + len(frame)

    def open(self) -> str:
        """Take up the log at `path`. What was cut off its end, and why, for a person; "" if it was whole.

        A torn end (the last thing written, not all of it) is cut. From a damaged frame on, everything is set aside in
        a file of its own. StorageError if it is no such log, or its start is damaged.
        """
        self.close()
        size = os.fstat(self._opened()).st_size
        with self._reader() as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise StorageError(f"{self.path}: not a chain log of this version of p2pnode")
            end, whole, torn = len(_MAGIC), len(_MAGIC), False
            while end < size:
                head = file.read(_FRAME)
                read = _read_frame(head, file)
                if read is None:
                    torn = _is_torn(head, file, end, size)
                    break
                payload, time, more = read
                if whole == len(_MAGIC):
                    self.start, self.started = payload, time
                end += _FRAME + len(payload)
                if not more:
                    whole = end
                torn = more
        self.cut(0)
        if whole == len(_MAGIC):
            raise StorageError(f"{self.path}: its first entry is damaged")
        self._end = whole
        if whole == size:
            return ""
        if torn:
            self._truncate(whole)
            return f"{self.path}: its last entry was torn when this node ended, and is cut off"
        return f"{self.path}: the entry at byte {end} is damaged; {self.set_aside(whole)}"

    def set_aside(self, start: int) -> str:
        """Move everything from byte `start` on to another file; says so. StorageError."""
        aside = free_name(self.path)
        with self._reader() as file:
            file.seek(start)
            write_atomically(aside, file.read())
        self._truncate(start)
        return f"it and all that follows are set aside as {aside.name}"

    def stored(self) -> Iterator[Stored]:
        """The records in the file, in the order in which they came."""
        with self._reader() as file:
            file.seek(len(_MAGIC))
            at = len(_MAGIC)
            while at < self._end:
                read = _read_frame(file.read(_FRAME), file)
                if read is None:
                    raise StorageError(f"{self.path}: changed while it was read")
                payload, time, _ = read
                if at > len(_MAGIC):
                    yield Stored(at, payload, time)
                at += _FRAME + len(payload)

    def take(self, record: Stored) -> None:
        """This one counts, after those that do so far."""
        self._at.append(record.start + _FRAME)
        self._sizes.append(len(record.payload))

    def append(self, records: Sequence[bytes], now: float, *, keep: int) -> None:
        """Add records after the first `keep` of those that count, all or none, durably. StorageError.

        The others count no more; whoever opens the file later finds that out from the new ones' rounds.
        """
        frames = [_frame(record, now, more=n < len(records)) for n, record in enumerate(records, 1)]
        file = self._opened()
        try:
            os.lseek(file, self._end, os.SEEK_SET)
            write_all(file, b"".join(frames))
            os.fsync(file)
        except OSError as error:
            with contextlib.suppress(StorageError):
                self._truncate(self._end)
            raise StorageError(f"{self.path}: can't be written ({error.strerror})") from None
        self.cut(keep)
        for frame in frames:
            self._at.append(self._end + _FRAME)
            self._sizes.append(len(frame) - _FRAME)
            self._end += len(frame)

    def cut(self, count: int) -> None:
        """From now on only the first `count` records count."""
        del self._at[count:], self._sizes[count:]

    def read(self, index: int) -> bytes:
        """One record."""
        return os.pread(self._opened(), self._sizes[index], self._at[index])

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _opened(self) -> int:
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise StorageError(f"{self.path}: can't be opened ({error.strerror})") from None
        return self._descriptor

    def _reader(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise StorageError(f"{self.path}: can't be read ({error.strerror})") from None

    def _truncate(self, end: int) -> None:
        try:
            os.ftruncate(self._opened(), end)
            os.fsync(self._opened())
        except OSError as error:
            raise StorageError(f"{self.path}: can't be written ({error.strerror})") from None
        self._end = end


def _frame(payload: bytes, now: float, *, more: bool) -> bytes:
    if not 0 < len(payload) <= MAX_PAYLOAD:
        raise ValueError(f"a record of {len(payload)} bytes")
    head = _HEAD.pack(len(payload), _MORE if more else 0, now, blake3(payload).digest())
    return head + blake3(head).digest()[:_CHECK] + payload


def _checked(head: bytes) -> bool:
    return blake3(head[: _HEAD.size]).digest()[:_CHECK] == head[_HEAD.size :]


def _read_frame(head: bytes, file: BinaryIO) -> tuple[bytes, float, bool] | None:
    """Payload, time and MORE of the frame whose first bytes were just read from `file`; None if it is not whole."""
    if len(head) < _FRAME or not _checked(head):
        return None
    size, flags, time, digest = _HEAD.unpack_from(head)
    if not 0 < size <= MAX_PAYLOAD:
        return None
    payload = file.read(size)
    if len(payload) != size or blake3(payload).digest() != digest:
        return None
    return payload, time, bool(flags & _MORE)


def _is_torn(head: bytes, file: BinaryIO, start: int, size: int) -> bool:
    """Whether a bad frame is what a crash leaves: less of it than there should be, or zeros up to the file's end."""
    if len(head) < _FRAME:
        return True
    if _checked(head):
        return start + _FRAME + int(_HEAD.unpack_from(head)[0]) > size
    file.seek(start)
    while piece := file.read(1 << 20):
        if piece.strip(b"\0"):
            return False
    return True
