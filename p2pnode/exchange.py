"""The gradient exchange: runs the round machine over a transport and a disk, and tells what came of each round.

The machine decides; this file only carries out: it writes what must be durable before it sends what depends on it,
keeps one queue a peer so that a slow peer slows nobody else, and feeds time and frames back in.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from p2pnode.errors import NetworkError, StorageError
from p2pnode.home import write_atomically
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.replica.chain import Link
from p2pnode.replica.state import GlobalState
from p2pnode.round.contribution import Update
from p2pnode.round.effects import Behind, Committed, Convicted, Discarded, Halt, Persist, Rejected, Verdict, Waiting
from p2pnode.round.frames import Send
from p2pnode.round.machine import RoundMachine
from p2pnode.round.progress import Durable
from p2pnode.round.rules import Rules
from p2pnode.transport.base import Transport
from p2pnode.wire.journal_pb2 import LockRecord, PromiseRecord, UpdateRecord

TICK_SECONDS: Final = 0.1
PAUSE_SECONDS: Final = 5.0  # without a tick: this process was stopped, or the machine asleep
CONTROL: Final = "control"
BULK: Final = "bulk"
_RECORDS: Final[Mapping[str, type[PromiseRecord | UpdateRecord | LockRecord]]] = {
    "promise": PromiseRecord,
    "update": UpdateRecord,
    "lock": LockRecord,
}


@dataclass(frozen=True)
class Paused:
    """This process did not run for a while. What others did meanwhile was not theirs to wait for."""

    seconds: float


@dataclass(frozen=True)
class Adopted:
    """We went over to a state that others certified. links: of the rounds up to it, from where our own chain led to it;
    lost: how many rounds of ours they replace."""

    state: GlobalState
    links: tuple[Link, ...]
    lost: int


RoundOutcome = Committed | Discarded | Rejected | Waiting | Behind | Halt | Convicted | Paused | Adopted
"""What the exchange tells: a certified round, a discarded attempt, and what a person should know meanwhile."""


@dataclass(frozen=True)
class Journal:
    """The durable records of the round in progress, one file each."""

    directory: Path

    def read(self, record: bytes | None = None) -> Durable:
        """What an earlier process left, and the last certified round's record. StorageError if it is damaged."""
        found = {name: self._read(name) for name in _RECORDS}
        for name, data in found.items():
            self._round(name, data)
        return Durable(found["promise"], found["update"], found["lock"], record)

    def newest_round(self) -> int:
        """The last round in which this node offered or signed something; 0: none. StorageError if it is damaged."""
        return max(self._round(name, self._read(name)) for name in _RECORDS)

    def _read(self, name: str) -> bytes | None:
        path = self.directory / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path}: can't be read ({error.strerror})") from None

    def _round(self, name: str, data: bytes | None) -> int:
        try:
            return int(_RECORDS[name].FromString(data).round) if data else 0
        except DecodeError:
            raise StorageError(
                f"{self.directory / name}: is damaged, so what this node signed last is not known: go on without it "
                "only with a new identity"
            ) from None

    def write(self, persist: Persist) -> None:
        """Durably, whole or not at all. StorageError."""
        write_atomically(self.directory / persist.name, persist.data, mode=0o600)


class _Outbox:
    """What waits to be sent to one peer over one channel, in order."""

    def __init__(self, transport: Transport, peer: PeerId, channel: str, failed: Callable[[PeerId], None]) -> None:
        self._transport, self._peer, self._channel, self._failed = transport, peer, channel, failed
        self._waiting: deque[Iterator[bytes]] = deque()
        self._filled = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"outbox {channel} {peer.short}")

    def put(self, frames: Iterator[bytes]) -> None:
        self._waiting.append(frames)
        self._filled.set()

    async def _run(self) -> None:
        while True:
            while self._waiting:
                for data in self._waiting.popleft():
                    try:
                        await self._transport.send(self._peer, self._channel, data)
                    except NetworkError:
                        # The rest of this message is of no use to a peer that misses its start.
                        self._failed(self._peer)
                        break
            self._filled.clear()
            await self._filled.wait()


class GradientExchange:
    """One node's part in a run's exchanges, from `start` to `stop`.

    `outcomes` yields everything in order. All methods belong to one asyncio event loop.
    """

    def __init__(self, rules: Rules, identity: PeerIdentity, transport: Transport, journal: Journal) -> None:
        """`on_certified` may be set before `start`: called with each certified round before anything of the next."""
        self.on_certified: Callable[[Committed], None] = lambda outcome: None
        self.rules = rules
        self.outcomes: asyncio.Queue[RoundOutcome] = asyncio.Queue()
        self._identity = identity
        self._transport = transport
        self._journal = journal
        self._machine: RoundMachine | None = None
        self._outboxes: dict[tuple[PeerId, str], _Outbox] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._last = 0.0  # the loop's time when it was last looked at
        self._paused = 0.0  # seconds in all
        transport.on_frame(CONTROL, self._on_frame)
        transport.on_frame(BULK, self._on_frame)
        transport.on_peer_gone(self._on_peer_gone)

    def start(self, state: GlobalState, link: Link, record: bytes | None) -> None:
        """Take part from a verified `state` on. `record` is its round's, if we have it."""
        self._last = asyncio.get_running_loop().time()
        now = self._now()
        durable = self._journal.read(record)
        self._machine = RoundMachine(self.rules, self._identity, link, state, durable, secrets.token_bytes, now)
        self._ticker = asyncio.create_task(self._tick(), name="round clock")
        self._carry_out()

    async def stop(self) -> None:
        """Take no further part. Idempotent."""
        tasks = [box.task for box in self._outboxes.values()]
        if self._ticker is not None:
            tasks.append(self._ticker)
        self._outboxes.clear()
        self._ticker = self._machine = None
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def ticking(self) -> None:
        """Until `stop`. Raises what ended the round's clock otherwise: without it a round could stand still unseen."""
        ticker = self._ticker
        if ticker is not None:
            await asyncio.wait([ticker])
            if not ticker.cancelled():
                ticker.result()

    @property
    def machine(self) -> RoundMachine:
        """The round machine; after `start`."""
        if self._machine is None:
            raise RuntimeError("the exchange has not started")
        return self._machine

    @property
    def running(self) -> bool:
        """Between `start` and `stop`."""
        return self._machine is not None

    def offer(self, update: Update | None) -> None:
        """Our update for the round in progress, fixed from now on; or None to vote without contributing.

        Raises PeerFault (value-*) if it breaks the run's bounds.
        """
        self.machine.offer(update, self._now())
        self._carry_out()

    def adopt(self, state: GlobalState, links: Sequence[Link], *, lost: int) -> None:
        """Go on from another verified state, that of the last of `links`. See `Adopted`."""
        self.outcomes.put_nowait(Adopted(state, tuple(links), lost))
        self.machine.adopt(state, links[-1], self._now())
        self._carry_out()

    async def leave(self, seconds: float) -> None:
        """Say goodbye to the roster, and wait at most `seconds` until it is sent."""
        self.machine.leave()
        self._carry_out()
        await asyncio.sleep(min(seconds, 2 * TICK_SECONDS))

    def _now(self) -> float:
        """The round's clock: the loop's, without the time in which this process did not run. A node that wakes up has
        not been waiting for the others, so no deadline of the round is over for it."""
        now = asyncio.get_running_loop().time()
        gap, self._last = now - self._last, now
        if gap > PAUSE_SECONDS:
            self._paused += gap
            self.outcomes.put_nowait(Paused(gap))
        return now - self._paused

    async def _tick(self) -> None:
        while self._machine is not None:
            bandwidth = self._transport.bandwidth()
            if bandwidth > 0:
                self._machine.set_bandwidth(bandwidth)
            self._machine.tick(self._now())
            self._carry_out()
            await asyncio.sleep(TICK_SECONDS)

    async def _on_frame(self, sender: PeerId, data: bytes) -> None:
        if self._machine is not None:
            self.receive(sender, data)

    def receive(self, sender: PeerId, data: bytes) -> Verdict:
        """One inbound frame."""
        verdict = self.machine.receive(sender, data, self._now())
        self._carry_out()
        return verdict

    def _on_peer_gone(self, peer: PeerId) -> None:
        if self._machine is not None:
            self._machine.peer_gone(peer, self._now())
            self._carry_out()

    def _carry_out(self) -> None:
        while self._machine is not None:
            effects = self._machine.drain()
            if not effects:
                return
            for effect in effects:
                try:
                    if isinstance(effect, Persist):
                        self._journal.write(effect)
                    elif isinstance(effect, Committed):
                        self.on_certified(effect)
                except StorageError as error:
                    # Nothing that depends on this record may be sent.
                    self._machine = None
                    self.outcomes.put_nowait(Halt(str(error)))
                    return
                if isinstance(effect, Send):
                    channel = BULK if effect.bulk else CONTROL
                    for peer in effect.peers:
                        self._outbox(peer, channel).put(iter(effect.frames))
                elif not isinstance(effect, Persist):
                    self.outcomes.put_nowait(effect)

    def _outbox(self, peer: PeerId, channel: str) -> _Outbox:
        box = self._outboxes.get((peer, channel))
        if box is None or box.task.done():
            box = self._outboxes[peer, channel] = _Outbox(self._transport, peer, channel, self._on_peer_gone)
        return box
