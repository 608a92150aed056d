"""States on disk, so that a node that is started again, or a whole roster, goes on from its last certified round.

Every round leaves its outputs, encoded, before its record is written; every now and then a whole state is saved. So the
state of the last record is the newest saved one that the chain knows, and the outer steps since, done again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from blake3 import blake3
from google.protobuf.message import DecodeError

from p2pnode.errors import PeerFault
from p2pnode.home import set_aside, write_atomically
from p2pnode.replica.chain import Link, check_record, decode_record
from p2pnode.replica.outer import buffers, outer_step, self_test
from p2pnode.replica.roster import Roster
from p2pnode.replica.state import GlobalState
from p2pnode.round.rules import Rules
from p2pnode.sync.history import History
from p2pnode.wire.chain_pb2 import CheckpointRecord

KEPT_STATES: Final = 2
_MAGIC: Final = b"p2pnode state 1\n"
_LENGTH: Final = 4  # bytes of the head's length
_CHECKSUM: Final = 32
_NAME: Final = re.compile(r"([0-9]{1,20})-([0-9a-f]{16})\.(state|outputs)")


class _Damaged(Exception):
    """A file does not hold what its name says."""


@dataclass(frozen=True)
class _File:
    path: Path
    round: int
    digest: str  # the state digest's first 16 hexadecimal digits
    kind: Literal["state", "outputs"]

    def of(self, history: History) -> bool:
        """Whether it belongs to the chain as it is now."""
        digest = history.digest_at(self.round)
        return digest is not None and digest.hex().startswith(self.digest)


class StateStore:
    """The directory of one run's states. All methods block; only `write` takes long."""

    def __init__(self, directory: Path, rules: Rules) -> None:
        self._directory = directory
        self._rules = rules

    def write(self, state: GlobalState) -> None:
        """Save a whole state, durably. StorageError."""
        head = CheckpointRecord(
            run=state.run,
            round=state.round,
            state_digest=state.digest,
            roster=state.roster.to_message(),
            header=state.header,
        ).SerializeToString()
        tensors = state.tensors.astype("<f4", copy=False).data.cast("B")
        length = len(head).to_bytes(_LENGTH, "little")
        write_atomically(self._path(state.round, state.digest, "state"), _MAGIC, length, head, tensors)

    def write_outputs(self, state: GlobalState, outputs: Sequence[bytes]) -> None:
        """Keep what leads to `state` from the one before: its round's outputs, in part order, durably. StorageError."""
        checksum = blake3()
        for output in outputs:
            checksum.update(output)
        write_atomically(self._path(state.round, state.digest, "outputs"), checksum.digest(), *outputs)

    def recover(self, history: History) -> tuple[GlobalState | None, list[str]]:
        """The state of the history's tip, and what a person should know of it; None if it can't be had from here.

        Each damaged file is named and set aside, and the next older state tried.
        """
        for leftover in self._directory.glob(".*.new"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        notices: list[str] = []
        for file in self._files():
            if file.kind == "state" and file.of(history):
                at = file
                try:
                    state = self._read(file, history)
                    for number in range(file.round + 1, history.tip.round + 1):
                        at = _File(self._path_at(history, number), number, "", "outputs")
                        state = self._replay(at, state, history)
                except FileNotFoundError:
                    notices.append(f"{at.path}: is missing")
                except (OSError, _Damaged) as error:
                    notices.append(f"{at.path}: {error}; it is set aside as {set_aside(at.path).name}")
                else:
                    return state, notices
        return None, notices

    def prune(self, history: History) -> None:
        """Forget what the newest KEPT_STATES states of the chain make superfluous.

        What is newer, of another branch too, is left for later: we may be about to go over to it.
        """
        files = list(self._files())
        kept = [file.round for file in files if file.kind == "state" and file.of(history)][:KEPT_STATES]
        for file in files if kept else ():
            if file.round < kept[-1] or (file.round == kept[-1] and file.kind == "outputs"):
                with contextlib.suppress(OSError):
                    file.path.unlink()

    def _path(self, round_number: int, digest: bytes, kind: str) -> Path:
        return self._directory / f"{round_number}-{digest.hex()[:16]}.{kind}"

    def _path_at(self, history: History, round_number: int) -> Path:
        return self._path(round_number, history.digest_at(round_number) or b"", "outputs")

    def _files(self) -> Iterator[_File]:
        """The newest rounds first."""
        found = []
        for path in self._directory.glob("*"):
            match = _NAME.fullmatch(path.name)
            if match is not None:
                found.append(_File(path, int(match[1]), match[2], "state" if match[3] == "state" else "outputs"))
        return iter(sorted(found, key=lambda file: -file.round))

    def _read(self, file: _File, history: History) -> GlobalState:
        """A saved state, if it has the digest that the chain has for its round. OSError, _Damaged."""
        values = self._rules.values
        total = values * (1 + buffers(self._rules.manifest.training.outer))
        with file.path.open("rb") as opened:
            if opened.read(len(_MAGIC)) != _MAGIC:
                raise _Damaged("is not a saved state")
            length = int.from_bytes(opened.read(_LENGTH), "little")
            left = os.fstat(opened.fileno()).st_size - opened.tell()
            if left != length + total * 4:
                raise _Damaged(f"is damaged: it has {left} bytes where {length + total * 4} are due")
            try:
                record = CheckpointRecord.FromString(opened.read(length))
                roster = Roster.from_message(record.roster)
            except (DecodeError, ValueError) as error:
                raise _Damaged(f"is damaged ({error})") from None
            tensors = np.fromfile(opened, dtype="<f4", count=total).astype(np.float32, copy=False)
        state = GlobalState(record.run, int(record.round), record.header.parent, roster, tensors, values)
        attested = history.digest_at(file.round)
        if not (state.digest == record.state_digest == attested and state.header == record.header):
            raise _Damaged("is damaged: it is not the state that the chain attests")
        return state

    def _replay(self, file: _File, state: GlobalState, history: History) -> GlobalState:
        """The state after `state`, from its round's outputs and record. OSError, _Damaged."""
        manifest = self._rules.manifest
        data = file.path.read_bytes()
        if blake3(data[_CHECKSUM:]).digest() != data[:_CHECKSUM]:
            raise _Damaged("is damaged: it does not have its checksum")
        record = decode_record(history.record_at(file.round) or b"")
        try:
            certified = check_record(record, Link.of(state), manifest, self._rules.values)
            averaged = np.empty(self._rules.values, dtype=np.float32)
            at = _CHECKSUM
            for part in certified.group.parts:
                size = self._rules.encoded_size(part)
                averaged[part.start : part.stop] = self._rules.decode(part, data[at : at + size])
                at += size
        except (PeerFault, ValueError) as error:
            raise _Damaged(f"can't be replayed ({error})") from None
        self_test()
        tensors = outer_step(manifest.training.outer, state.tensors, averaged)
        found = GlobalState(state.run, file.round, state.digest, certified.link.roster, tensors, state.parameter_count)
        if found.digest != certified.link.digest:
            raise _Damaged("is damaged: it does not lead to the state that the chain attests")
        return found
