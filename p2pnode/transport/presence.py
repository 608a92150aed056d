"""Is another process alive under our identity? And what time is it in the swarm?

A peer that holds a stream from that other process asks it, over that very stream, to sign our challenge with the key
that it shares with us. So nobody can raise a false alarm, and a killed process of our own (whose connections may
linger) raises none: the dead don't sign.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from p2pnode.envelope import open_envelope, seal
from p2pnode.errors import NetworkError, PeerFault
from p2pnode.identity import KEY_BYTES, PeerId, PeerIdentity
from p2pnode.transport import limits
from p2pnode.transport.clock import SwarmClock
from p2pnode.wire.transport_pb2 import HelloReply, HelloRequest, IdentityProof, IdentityReply, IdentityRequest

HELLO: Final = "hello"
IDENTITY: Final = "identity"
CHANNEL: Final = "presence"
PROOF_TYPE: Final = "identity-proof"
_MAX_PROOF_BYTES: Final = 256

Call = Callable[[PeerId, str, bytes, float], Awaitable[bytes]]


class Streams(Protocol):
    """What is needed of `channels.Channels`."""

    def instances(self, peer: PeerId) -> set[bytes]:
        """The processes that hold streams to us under this identity."""

    def probe(self, peer: PeerId, instance: bytes, challenge: bytes) -> bool:
        """Ask one of them for a proof."""

    async def send(self, peer: PeerId, channel: str, frame: bytes) -> None:
        """Send a frame."""


class Presence:
    """The `hello` and `identity` calls, both sides, and the proofs."""

    def __init__(self, identity: PeerIdentity, run: bytes, instance: bytes, clock: SwarmClock) -> None:
        self.listening: Callable[[], Sequence[str]] = tuple  # our addresses, without /p2p/...
        self.learned: Callable[[PeerId, Sequence[str]], None] = lambda peer, some: None  # a peer told its own
        self._identity = identity
        self._run = run
        self._instance = instance
        self._clock = clock
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}

    def proof(self, challenge: bytes) -> bytes:
        """Our own proof, envelope bytes."""
        message = IdentityProof(run=self._run, instance=self._instance, challenge=challenge)
        return seal(self._identity, PROOF_TYPE, message).raw

    def proves(self, proof: bytes, peer: PeerId, instance: bytes, challenge: bytes) -> bool:
        """Whether a process of `peer` other than `instance` signed `challenge`."""
        try:
            signed = open_envelope(proof, PROOF_TYPE, IdentityProof, max_bytes=_MAX_PROOF_BYTES)
        except PeerFault:
            return False
        message = signed.message
        return (
            signed.sender == peer
            and message.run == self._run
            and message.challenge == challenge
            and len(message.instance) == limits.INSTANCE_BYTES
            and message.instance != instance
        )

    # ---- asking

    async def taken(self, call: Call, peers: Sequence[PeerId]) -> bool:
        """Whether one of `peers` knows another live process with our identity. Takes at most IDENTITY_SECONDS."""
        challenge = secrets.token_bytes(limits.CHALLENGE_BYTES)
        me = self._identity.peer_id
        request = IdentityRequest(peer=me.key, instance=self._instance, challenge=challenge, forward=True)

        async def ask(peer: PeerId) -> bytes:
            reply = await call(peer, IDENTITY, request.SerializeToString(), limits.IDENTITY_SECONDS)
            return IdentityReply.FromString(reply).proof

        accept = self._accepts(me, self._instance, challenge)
        return bool(await _first([ask(peer) for peer in peers], accept, limits.IDENTITY_SECONDS))

    def _accepts(self, peer: PeerId, instance: bytes, challenge: bytes) -> Callable[[bytes], bool]:
        return lambda proof: self.proves(proof, peer, instance, challenge)

    async def offsets(self, call: Call, peers: Collection[PeerId], timeout: float) -> list[float]:
        """How far each answering peer's clock is ahead of this machine's, in seconds."""

        request = HelloRequest(instance=self._instance, addresses=self.listening()).SerializeToString()

        async def ask(peer: PeerId) -> float:
            sent = self._clock.local()
            reply = await call(peer, HELLO, request, timeout)
            middle = (sent + self._clock.local()) / 2
            return HelloReply.FromString(reply).time - middle

        results = await asyncio.gather(*(ask(peer) for peer in peers), return_exceptions=True)
        return [result for result in results if isinstance(result, float) and abs(result) < float("inf")]

    # ---- answering

    async def answer_hello(self, peer: PeerId, request: bytes) -> bytes:
        """The swarm's time, as we know it; and we learn where the peer is."""
        try:
            self.learned(peer, HelloRequest.FromString(request).addresses)
        except DecodeError:
            raise PeerFault("hello-form") from None
        return HelloReply(instance=self._instance, time=self._clock.now()).SerializeToString()

    async def answer_identity(
        self, streams: Streams, call: Call, others: Collection[PeerId], peer: PeerId, raw: bytes
    ) -> bytes:
        """Look for another live process of the identity that is asked about. `others`: peers connected to us."""
        try:
            request = IdentityRequest.FromString(raw)
        except DecodeError:
            raise PeerFault("identity-form") from None
        if (
            len(request.peer) != KEY_BYTES
            or len(request.instance) != limits.INSTANCE_BYTES
            or len(request.challenge) != limits.CHALLENGE_BYTES
        ):
            raise PeerFault("identity-form")
        target = PeerId(request.peer)
        if request.forward and target != peer:
            raise PeerFault("identity-asker", "asks for somebody else")
        if target == self._identity.peer_id:
            return IdentityReply(proof=self.proof(request.challenge)).SerializeToString()
        searches: list[Coroutine[Any, Any, bytes]] = [
            self._probe(streams, target, instance, request.challenge)
            for instance in streams.instances(target) - {request.instance}
        ]
        if request.forward:
            onward = IdentityRequest(peer=target.key, instance=request.instance, challenge=request.challenge)
            asked = [other for other in others if other != peer][: limits.IDENTITY_FORWARDS]
            searches += [self._ask_on(call, other, onward.SerializeToString()) for other in asked]
        accept = self._accepts(target, request.instance, request.challenge)
        seconds = limits.IDENTITY_PROBE_SECONDS * (1.5 if request.forward else 1)
        return IdentityReply(proof=await _first(searches, accept, seconds)).SerializeToString()

    async def _ask_on(self, call: Call, peer: PeerId, request: bytes) -> bytes:
        reply = await call(peer, IDENTITY, request, limits.IDENTITY_PROBE_SECONDS * 1.5)
        return IdentityReply.FromString(reply).proof

    async def _probe(self, streams: Streams, peer: PeerId, instance: bytes, challenge: bytes) -> bytes:
        future = self._waiting.setdefault(challenge, asyncio.get_running_loop().create_future())
        try:
            if not streams.probe(peer, instance, challenge):
                return b""
            async with asyncio.timeout(limits.IDENTITY_PROBE_SECONDS):
                return await asyncio.shield(future)
        finally:
            self._waiting.pop(challenge, None)

    async def on_proof(self, peer: PeerId, frame: bytes) -> None:
        """A frame of CHANNEL: the answer to a probe."""
        try:
            signed = open_envelope(frame, PROOF_TYPE, IdentityProof, max_bytes=_MAX_PROOF_BYTES)
        except PeerFault:
            raise PeerFault("identity-proof") from None
        future = self._waiting.get(signed.message.challenge)
        if future is not None and not future.done():
            future.set_result(frame)


async def _first(
    searches: Sequence[Coroutine[Any, Any, bytes]], accept: Callable[[bytes], bool], seconds: float
) -> bytes:
    """The first acceptable result within `seconds`, or nothing."""
    if not searches:
        return b""
    tasks = {asyncio.ensure_future(search) for search in searches}
    try:
        async with asyncio.timeout(seconds):
            for done in asyncio.as_completed(list(tasks)):
                try:
                    result = await done
                except (NetworkError, DecodeError, TimeoutError):
                    continue
                if result and accept(result):
                    return result
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return b""
