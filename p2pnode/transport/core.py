"""What every transport does alike: finding the swarm, calls, records, the clock, coming and going.

A transport derives from `TransportCore` and adds how bytes move: see the methods at the end of the class.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from p2pnode.envelope import DIGEST_BYTES
from p2pnode.errors import IdentityTaken, NetworkError, PeerFault, Unreachable, UsageError
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import addresses, calls, limits, presence, records
from p2pnode.transport.base import (
    CallHandler,
    FrameHandler,
    PeerGoneHandler,
    Record,
    Traffic,
    TransportOptions,
    ViolationHandler,
)
from p2pnode.transport.channels import Hooks
from p2pnode.transport.clock import SwarmClock
from p2pnode.transport.dialling import Dialler

_QUIET_SECONDS: Final = 4.0  # between lines that say that nobody answers
_DHT_SECONDS: Final = 10.0  # for a whole store or fetch


class TransportCore(ABC):
    """Half of a `base.Transport`."""

    def __init__(self, identity: PeerIdentity, run_digest: bytes, options: TransportOptions | None) -> None:
        """run_digest: 32 bytes, the run id; frames, calls and records of other runs never arrive.

        Raises UsageError when a bootstrap address can't be used.
        """
        if len(run_digest) != DIGEST_BYTES:
            raise ValueError(f"a run digest has {DIGEST_BYTES} bytes, not {len(run_digest)}")
        self.options = options or TransportOptions()
        self.instance = self.options.instance or secrets.token_bytes(limits.INSTANCE_BYTES)
        self._identity = identity
        self._run = run_digest
        self._clock = SwarmClock(self.options.clock)
        self._hooks = Hooks()
        self._methods: dict[str, CallHandler] = {}
        self._gate = calls.CallGate(lambda: asyncio.get_running_loop().time(), self._hooks.violated)
        self._book = records.SequenceBook()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running = False
        self._stopping: asyncio.Task[None] | None = None
        self._called_sent = self._called_received = 0
        self._dialler = Dialler(self._dial)
        try:
            self._bootstraps = addresses.by_peer(self.options.bootstraps)
            self._remembered = addresses.by_peer(self.options.remembered)
        except ValueError as error:
            raise UsageError(f"bootstrap address: {error}") from None
        for known in (self._bootstraps, self._remembered):
            known.pop(identity.peer_id, None)
        self._presence = presence.Presence(identity, run_digest, self.instance, self._clock)
        self.on_call(presence.HELLO, self._presence.answer_hello)

    @property
    def peer_id(self) -> PeerId:
        """Our own identity."""
        return self._identity.peer_id

    # ---- lifecycle

    async def start(self) -> None:
        """See `base.Transport.start`. A transport can be started once."""
        if self._running or self._stopping is not None:
            raise NetworkError("this transport was started before; make a new one")
        self._running = True
        try:
            await self._up()
            await self._find_swarm()
        except BaseException:
            await self.stop()
            raise
        for coroutine in self._background():
            self._spawn(coroutine)

    async def stop(self) -> None:
        """See `base.Transport.stop`."""
        if self._stopping is None:
            self._running = False
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=1.0)
        await self._down()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _check_running(self) -> None:
        if not self._running:
            raise NetworkError("the transport is not running")

    # ---- the swarm

    async def _find_swarm(self) -> None:
        if not self._bootstraps:
            self._clock.settle()
        if not self._bootstraps and not self._remembered:
            return
        reached = await self._reach_any()
        if not reached:
            return
        taken, offsets = await asyncio.gather(
            self._identity_taken(reached),
            self._presence.offsets(self._call_plain, reached, limits.IDENTITY_SECONDS),
        )
        if taken:
            raise IdentityTaken(
                f"another running node uses this identity ({self.peer_id}); "
                "stop it, or make a new identity for this node"
            )
        self._clock.correct(offsets)
        await self._met(reached)

    async def _reach_any(self) -> list[PeerId]:
        """Connect to the bootstraps and remembered peers: those that answered, once any did."""
        known = {**self._remembered, **self._bootstraps}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.start_deadline
        pause = limits.BACKOFF_FIRST
        silent_until = loop.time()
        while True:
            reached = await self._dialler.any_of(known)
            if reached or not self._bootstraps:
                return reached
            left = deadline - loop.time()
            if left <= 0:
                break
            if loop.time() >= silent_until:
                self.options.log(f"no answer yet from {_named(self._bootstraps)}; trying for {left:.0f} s more")
                silent_until = loop.time() + _QUIET_SECONDS
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, limits.BACKOFF_MOST)
        raise Unreachable(
            f"no bootstrap peer answered within {self.options.start_deadline:.0f} s (tried "
            f"{_named(self._bootstraps)}); check that one of them runs and can be reached, or ask for a newer invite"
        )

    async def connect(self, some: Sequence[str]) -> bool:
        """See `base.Transport.connect`. Addresses of one peer or of several; whether any was reached."""
        self._check_running()
        try:
            known = addresses.by_peer(some)
        except ValueError:
            return False
        known.pop(self.peer_id, None)
        reached = await self._dialler.any_of(known)
        await self._greet(reached)
        return bool(reached)

    async def _greet(self, reached: Sequence[PeerId]) -> None:
        if reached:
            self._spawn(self._presence.offsets(self._call_plain, reached, limits.CONNECT_SECONDS))  # tells where we are
            await self._met(reached)

    async def peers(self) -> Sequence[PeerId]:
        """See `base.Transport.peers`."""
        return sorted(await self._connected()) if self._running else []

    async def _rejoin(self) -> None:
        """Connect again when everybody is lost: the machine slept, or its network went away."""
        misses = 0
        while True:
            await asyncio.sleep(min(limits.ALONE_LOOK_SECONDS * 2**misses, limits.ALONE_MOST))
            try:
                alone = not await self._connected() and await self._return() is False
            except NetworkError:
                continue  # our daemon has ended: whoever starts it again finds the others
            if alone and misses == 1:
                self.options.log("nobody of the run can be reached any more: trying on until somebody can")
            elif not alone and misses > 1:
                self.options.log("connected to the others again")
            misses = min(misses + 1, 10) if alone else 0

    async def _return(self) -> bool | None:
        """Connect to those whom we know, and enter the DHT; whether anybody was reached, None if we know nobody."""
        known = {**self._bootstraps, **self._remembered}
        for peer, some in self._acquainted().items():
            if len(known) < limits.RETURN_PEERS:
                known[peer] = [*known.get(peer, ()), *some]
        if not known:
            return None
        reached = await self._dialler.any_of(known)
        await self._greet(reached)
        late = [peer for peer in known if peer not in reached] if reached else []
        answers = await asyncio.gather(*(self._dialler.one(peer, known[peer]) for peer in late))
        await self._greet([peer for peer, answer in zip(late, answers, strict=True) if answer])
        return bool(reached)

    async def _keep_clock(self) -> None:
        while True:
            await asyncio.sleep(limits.CLOCK_SECONDS)
            with contextlib.suppress(NetworkError):
                others = list(await self._connected())
                asked = random.sample(others, min(len(others), limits.CLOCK_PEERS))
                self._clock.correct(await self._presence.offsets(self._call_plain, asked, 5.0))

    def clock_offset(self) -> float:
        """See `base.Transport.clock_offset`."""
        return self._clock.offset

    # ---- channels and calls

    def on_frame(self, channel: str, handler: FrameHandler) -> None:
        """See `base.Transport.on_frame`."""
        self._check_name(channel)
        self._hooks.frames[channel] = handler
        if self._running:
            self._registered(channel, is_call=False)

    def on_call(self, method: str, handler: CallHandler) -> None:
        """See `base.Transport.on_call`."""
        self._check_name(method)
        self._methods[method] = handler
        if self._running:
            self._registered(method, is_call=True)

    def _check_name(self, name: str) -> None:
        if name in self._hooks.frames or name in self._methods:
            raise ValueError(f"{name!r} has a handler already")
        if not name or not name.replace("-", "").replace(".", "").isalnum():
            raise ValueError(f"{name!r} can't name a channel or method: letters, digits, - and . only")

    def on_peer_gone(self, handler: PeerGoneHandler) -> None:
        """See `base.Transport.on_peer_gone`."""
        self._hooks.gone.append(handler)

    def on_violation(self, handler: ViolationHandler) -> None:
        """See `base.Transport.on_violation`."""
        self._hooks.violations.append(handler)

    async def call(self, peer: PeerId, method: str, request: bytes, *, timeout: float) -> bytes:
        """See `base.Transport.call`."""
        self._check_running()
        calls.check_request(method, request)
        try:
            async with asyncio.timeout(timeout):
                reply = calls.read_reply(peer, method, await self._ask(peer, method, request))
        except TimeoutError:
            raise Unreachable(f"{peer.short} did not answer {method} within {timeout:g} s") from None
        self._called_sent += len(request)
        self._called_received += len(reply)
        return reply

    async def _call_plain(self, peer: PeerId, method: str, request: bytes, timeout: float) -> bytes:
        return await self.call(peer, method, request, timeout=timeout)

    async def _answer(self, method: str, peer: PeerId, request: bytes) -> bytes:
        """A whole reply to a call that came in."""
        handler = self._methods.get(method)
        if handler is None:
            return calls.REFUSED + b"call-method"
        reply = await calls.answer(self._gate, handler, peer, method, request)
        self._called_received += len(request)
        self._called_sent += len(reply) - 1
        return reply

    # ---- records

    async def store(self, key: str, value: bytes, *, lifetime: float) -> bool:
        """See `base.Transport.store`."""
        self._check_running()
        if not 0 < lifetime <= records.MAX_LIFETIME:
            raise ValueError(
                f"a lifetime of {lifetime} s; allowed is more than 0 and at most {records.MAX_LIFETIME:.0f} s"
            )
        now = self._clock.now()
        hashed = records.key_hash(self._run, key)
        sequence, expiration = self._book.next(hashed, now, lifetime)
        raw = records.seal_record(self._identity, hashed, value, issued=now, expiration=expiration, sequence=sequence)
        try:
            async with asyncio.timeout(_DHT_SECONDS):
                return await self._put(records.key_source(self._run, key), self.peer_id.key, raw, expiration)
        except (TimeoutError, NetworkError):
            return False

    async def fetch(self, key: str, *, prefer: Collection[PeerId] = ()) -> Mapping[PeerId, Record]:
        """See `base.Transport.fetch`."""
        self._check_running()
        hashed = records.key_hash(self._run, key)
        if prefer:  # what we keep for others must not be crowded out either
            self._kept().prefer(peer.key for peer in (self.peer_id, *prefer))
        try:
            async with asyncio.timeout(_DHT_SECONDS):
                found = list(await self._get(records.key_source(self._run, key)))
        except (TimeoutError, NetworkError):
            return {}
        good = []
        for subkey, raw, expiration in found:
            with contextlib.suppress(PeerFault):
                good.append(records.check_record(hashed, subkey, raw, expiration))
        return records.choose(self.peer_id, good, self._clock.now(), prefer)

    # ---- what a transport adds

    @abstractmethod
    async def _up(self) -> None:
        """Come up, alone. NetworkError or StorageError if it can't."""

    @abstractmethod
    async def _down(self) -> None:
        """Take everything down, also what came up half. Never raises."""

    @abstractmethod
    async def _dial(self, peer: PeerId, some: Sequence[str]) -> None:
        """Connect to a peer at one of these addresses (without `/p2p/...`). Unreachable if it can't."""

    @abstractmethod
    async def _connected(self) -> set[PeerId]:
        """Peers with an open connection."""

    @abstractmethod
    def _acquainted(self) -> Mapping[PeerId, Sequence[str]]:
        """Peers whose addresses we know beside bootstraps and remembered ones."""

    @abstractmethod
    async def _met(self, peers: Sequence[PeerId]) -> None:
        """We are connected to these: enter the DHT through them."""

    @abstractmethod
    async def _identity_taken(self, peers: Sequence[PeerId]) -> bool:
        """Whether another live process has our identity, as far as these peers can tell. Within IDENTITY_SECONDS."""

    @abstractmethod
    def _background(self) -> Iterable[Coroutine[Any, Any, Any]]:
        """What runs from start to stop."""

    @abstractmethod
    def _registered(self, name: str, *, is_call: bool) -> None:
        """A handler came while we run."""

    @abstractmethod
    async def _ask(self, peer: PeerId, method: str, request: bytes) -> bytes:
        """Call, and return the raw reply. Unreachable."""

    @abstractmethod
    async def _put(self, source: bytes, subkey: bytes, raw: bytes, expiration: float) -> bool:
        """Store a record in the DHT; whether anybody took it."""

    @abstractmethod
    async def _get(self, source: bytes) -> Iterable[tuple[bytes, bytes, float]]:
        """Records in the DHT: (subkey, envelope bytes, expiration)."""

    @abstractmethod
    def _kept(self) -> records.RecordStore:
        """What this node keeps for the DHT."""

    @abstractmethod
    def addresses(self) -> Sequence[str]:
        """See `base.Transport.addresses`."""

    @abstractmethod
    async def send(self, peer: PeerId, channel: str, frame: bytes) -> None:
        """See `base.Transport.send`."""

    @abstractmethod
    def traffic(self) -> Traffic:
        """See `base.Transport.traffic`."""

    @abstractmethod
    def bandwidth(self) -> int:
        """See `base.Transport.bandwidth`."""


def _named(known: Mapping[PeerId, object]) -> str:
    names = [peer.short for peer in known]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
