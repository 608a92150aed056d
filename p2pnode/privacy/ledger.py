"""The privacy ledger: every private release of one data set, counted on disk before it is made, over all runs.

One file for each data set (named by the fingerprint of the node's own share), JSON lines, only ever appended to:

    {"kind":"ledger","version":1,"fingerprint":"...","when":1.7e9,"prev":"...","hash":"..."}
    {"mechanism":{...},"run":"...","round":7,"limit":[8.0,0.0001],"when":1.7e9,"kind":"reserve","prev":"...","hash":"..."}

`prev` is the hash of the line before (the first line's: a hash of the fingerprint), `hash` is BLAKE3 over this line
without it. The order of work is reserve, fsync, draw, release; nothing is ever refunded, not even if the release fails.
A line that a crash tore is kept in the file, hashed into the next line (`kind: torn`), and counts as spent. One process
at a time: the file is locked.

What it can't do: somebody who puts an older copy of the file back has a smaller count. And two shares that overlap (1/2
and 1/4 of one data set) are two data sets to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from blake3 import blake3

from p2pnode.errors import BudgetSpent, HomeInUse, LedgerBroken, PrivacyError, StorageError
from p2pnode.privacy import accountant
from p2pnode.privacy.mechanism import Mechanism, combine, from_fields, to_fields

LEDGER_VERSION: Final = 1
MAX_LEDGER_BYTES: Final = 256 << 20
_TORN_END: Final = (
    b"~\n"  # closes a torn line so that it can't be read as a whole one, even if only its end was missing
)
_TORN_KEPT: Final = 4096  # bytes of a torn line that its successor repeats in clear; all of them are in its hash


@dataclass(frozen=True)
class Reservation:
    """One line that spends. run and round are empty and 0 for a torn line; `when` is Unix time."""

    line: int
    run: str
    round: int
    mechanism: Mechanism | None  # None: a torn line that nothing is known of; it costs as much as the next reservation
    when: float
    torn: bool


def _hash(body: dict[str, Any]) -> str:
    return blake3(json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps({**body, "hash": _hash(body)}, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _salvage(torn: bytes) -> Mechanism | None:
    """The mechanism of a torn line, if its bytes still say it (it comes first in a line for this reason)."""
    text = torn.decode("ascii", "replace")
    start = '{"mechanism":'
    if not text.startswith(start):
        return None
    try:
        fields, _ = json.JSONDecoder().raw_decode(text[len(start) :])
        return from_fields(fields)
    except (ValueError, RecursionError, PrivacyError):
        return None


@dataclass(frozen=True)
class _History:
    reservations: tuple[Reservation, ...]
    head: str  # hash of the last good line, or the fingerprint's
    lines: int  # complete lines in the file, torn ones included
    torn: bytes  # all bytes after the last good line
    whole_lines: bool  # they end with a line's end


def _genesis(fingerprint: str) -> str:
    return blake3(b"p2pnode/ledger/1\0" + fingerprint.encode()).hexdigest()


def _broken(path: Path, number: int, why: str) -> LedgerBroken:
    return LedgerBroken(
        f"{path}, line {number}: {why}. The ledger was edited or damaged, so nothing more is released for this data; "
        "put back a copy that is not older"
    )


def _entry(fields: dict[str, Any], number: int) -> Reservation:
    """Raises KeyError, TypeError, ValueError or PrivacyError for a line that no version of ours wrote."""
    torn = fields["kind"] == "torn"
    mechanism = None if torn and fields["mechanism"] is None else from_fields(fields["mechanism"])
    run, turn = ("", 0) if torn else (fields["run"], fields["round"])
    if not (isinstance(run, str) and isinstance(turn, int)):
        raise TypeError("run or round")
    return Reservation(number, run, turn, mechanism, float(fields["when"]), torn)


def _replay(data: bytes, path: Path, fingerprint: str) -> _History:
    """Check every line against the chain. Raises LedgerBroken with the number of the first line that does not hold."""
    lines = data.split(b"\n")
    tail = lines.pop()
    head, kept, bad, bad_from = _genesis(fingerprint), [], b"", 0
    for number, raw in enumerate(lines, 1):
        fields = _parse(raw)
        if fields is None and number > 1:
            bad, bad_from = bad + raw + b"\n", bad_from or number
            continue
        if fields is None or (number == 1) != (fields.get("kind") == "ledger"):
            raise _broken(path, number, "a ledger has one first line, and it is this one's place or another's")
        claimed = fields.pop("hash", None)
        if bad and not (fields["kind"] == "torn" and fields.get("torn_hash") == blake3(bad).hexdigest()):
            raise _broken(path, bad_from, "it can't be read, and what follows does not account for it")
        if number == 1 and (fields.get("version") != LEDGER_VERSION or fields.get("fingerprint") != fingerprint):
            raise _broken(
                path, 1, f"it is for other data or of another version (expected fingerprint {fingerprint[:16]}...)"
            )
        if fields.get("prev") != head:
            raise _broken(path, number, "it does not follow from the line before it")
        if claimed != _hash(fields):
            raise _broken(path, number, "its hash does not match what it says")
        if number > 1:
            try:
                kept.append(_entry(fields, number))
            except (PrivacyError, KeyError, TypeError, ValueError) as error:
                raise _broken(path, number, f"it can't be understood ({error})") from None
        head, bad, bad_from = str(claimed), b"", 0
    if not lines:
        raise _broken(path, 1, "the file is empty or its first line is cut short")
    return _History(tuple(kept), head, len(lines), bad + tail, not tail)


class Ledger:
    """The open, locked ledger of one data set. Use `Ledger.open`; a context manager; safe over threads."""

    def __init__(self, path: Path, descriptor: int, history: _History, clock: Callable[[], float]) -> None:
        self.path = path
        self._descriptor = descriptor
        self._clock = clock
        self._reservations = list(history.reservations)
        self._head = history.head
        self._lines = history.lines
        self._guard = threading.Lock()
        self._failed = False
        self._closed = False

    @classmethod
    def open(cls, path: Path, fingerprint: str, *, clock: Callable[[], float] = time.time) -> Self:
        """Open or begin the ledger at `path` for the data with this fingerprint (hex), lock it, and check its chain.

        A torn last line is accounted for at once. Raises HomeInUse if another process has it, LedgerBroken (with the
        line's number) if the chain does not hold or it is another data set's, StorageError if the file can't be used.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _begin(path, fingerprint, clock())
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise StorageError(
                f"the privacy ledger {path} can't be opened ({error.strerror}): check the folder"
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise HomeInUse(
                    f"another node is using the privacy ledger {path}: stop it, or use another home"
                ) from None
            size = os.fstat(descriptor).st_size
            if size > MAX_LEDGER_BYTES:
                raise StorageError(f"the privacy ledger {path} has {size} bytes, more than {MAX_LEDGER_BYTES}")
            history = _replay(_read(descriptor, size), path, fingerprint)
            ledger = cls(path, descriptor, history, clock)
            if history.torn:
                ledger._account_for_torn(history)
            return ledger
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """All that was charged, oldest first."""
        return tuple(self._reservations)

    @property
    def head(self) -> tuple[int, str]:
        """(number of lines, hash of the last): what a peer may keep to notice a rollback."""
        return self._lines, self._head

    def _mechanisms(self, following: Mechanism | None = None) -> tuple[Mechanism, ...]:
        known = [entry.mechanism if entry.mechanism is not None else following for entry in self._reservations]
        return combine([mechanism for mechanism in [*known, following] if mechanism is not None])

    def spent(self, delta: float) -> float:
        """The epsilon at `delta` of all releases of this data so far, in all runs."""
        return accountant.epsilon(self._mechanisms(), delta)

    def with_one_more(self, mechanism: Mechanism, delta: float) -> float:
        """The epsilon at `delta` that it would be after one more release. Charges nothing."""
        return accountant.epsilon(self._mechanisms(mechanism), delta)

    def reserve(self, run_id: str, round: int, mechanism: Mechanism, limit: tuple[float, float]) -> float:
        """Charge `mechanism` before its noise is drawn; on return it is on disk. Returns the epsilon spent with it.

        limit: (epsilon, delta) of the run's manifest; it bounds this data's total over all runs. Raises BudgetSpent
        (and charges nothing) if the total would be above it, StorageError if the line can't be written safely.
        """
        most, delta = limit
        with self._guard:
            self._usable()
            total = accountant.epsilon(self._mechanisms(mechanism), delta)
            if not total <= most:
                before = accountant.epsilon(self._mechanisms(), delta)
                others = len({entry.run for entry in self._reservations if entry.run} - {run_id})
                also = f" ({others} other run{'s' if others > 1 else ''} with the same data included)" if others else ""
                raise BudgetSpent(
                    f"the privacy budget of this data is spent: epsilon {before:.4f} so far{also}, {total:.4f} with "
                    f"round {round}; the manifest's limit {most:g} at delta {delta:g} is for the total over all runs. "
                    "This node trains no more on it"
                )
            body = {
                "mechanism": to_fields(mechanism),
                "run": run_id,
                "round": round,
                "limit": [most, delta],
                "when": self._clock(),
                "kind": "reserve",
            }
            self._append(body, b"")
            return total

    def _account_for_torn(self, history: _History) -> None:
        mechanism = _salvage(history.torn)
        if mechanism is None:
            mechanism = next((entry.mechanism for entry in reversed(self._reservations) if entry.mechanism), None)
        ending = b"" if history.whole_lines else _TORN_END
        self._lines += ending.count(b"\n")
        torn = history.torn + ending
        body = {
            "mechanism": None if mechanism is None else to_fields(mechanism),
            "torn": torn[:_TORN_KEPT].hex(),
            "torn_hash": blake3(torn).hexdigest(),
            "when": self._clock(),
            "kind": "torn",
        }
        self._append(body, ending)

    def _append(self, fields: dict[str, Any], before: bytes) -> None:
        body = {**fields, "prev": self._head}
        data = before + _line(body)
        self._failed = True  # until it is on disk: after a failed write nobody knows what the file holds
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(28, "no space left")
            os.fsync(self._descriptor)
        except OSError as error:
            raise StorageError(
                f"the privacy ledger {self.path} can't be written ({error.strerror}): nothing is released; "
                "free space and restart"
            ) from None
        self._failed = False
        self._lines += 1
        self._head = _hash(body)
        self._reservations.append(_entry(body, self._lines))

    def _usable(self) -> None:
        if self._closed:
            raise StorageError(f"the privacy ledger {self.path} is closed")
        if self._failed:
            raise StorageError(f"the privacy ledger {self.path} could not be written before: restart the node")

    def close(self) -> None:
        """Unlock and close. Twice is fine."""
        with self._guard:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _begin(path: Path, fingerprint: str, now: float) -> None:
    """Put a ledger's first line in place, whole or not at all; if another process was quicker, leave its file."""
    body = {
        "kind": "ledger",
        "version": LEDGER_VERSION,
        "fingerprint": fingerprint,
        "when": now,
        "prev": _genesis(fingerprint),
    }
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, _line(body))
        os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        os.close(descriptor)
        fresh.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.pread(descriptor, min(size - len(data), 1 << 20), len(data))
        if not part:
            break
        data += part
    return bytes(data)
