"""Where peers are: what they said of themselves, and asking others.

libp2p's own routing finds a peer by its id only most of the time (measured: in a fresh swarm of three, one in four was
never found), so nodes tell each other their addresses, and ask around for an address they lack. What others say is a
hint: dialling checks the identity.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from p2pnode.errors import NetworkError, PeerFault, Unreachable
from p2pnode.identity import KEY_BYTES, PeerId
from p2pnode.transport import limits
from p2pnode.wire.transport_pb2 import WhereReply, WhereRequest

WHERE: Final = "where"
_RETRY_SECONDS: Final = 2.0  # before the same peer is looked for again

T = TypeVar("T")


class Routes:
    """Addresses of peers, without `/p2p/...`, and the `where` call, both sides."""

    def __init__(
        self,
        call: Callable[[PeerId, str, bytes, float], Awaitable[bytes]],
        connected: Callable[[], Awaitable[set[PeerId]]],
        dial: Callable[[PeerId, Sequence[str]], Awaitable[None]],
    ) -> None:
        self._call = call
        self._connected = connected
        self._dial = dial
        self._known: dict[PeerId, Sequence[str]] = {}
        self._looking: dict[PeerId, asyncio.Task[bool]] = {}
        self._failed: dict[PeerId, float] = {}  # loop time when a peer was not found

    def learn(self, peer: PeerId, some: Iterable[str]) -> None:
        """`peer` can be reached at these, as far as is known. Long lists and long addresses are cut."""
        kept = [address for address in some if address.startswith("/") and len(address) <= limits.ADDRESS_BYTES]
        if not kept:
            return
        self._known.pop(peer, None)
        self._known[peer] = kept[: limits.ADDRESSES_PER_PEER]
        while len(self._known) > limits.ADDRESSES_PEERS:
            del self._known[next(iter(self._known))]

    def known(self) -> Mapping[PeerId, Sequence[str]]:
        """Whose addresses we know, those learned last first."""
        return dict(reversed(self._known.items()))

    def forget_failures(self) -> None:
        """What was not found may be found now."""
        self._failed.clear()

    async def answer_where(self, peer: PeerId, raw: bytes) -> bytes:
        """What we know of a peer."""
        try:
            request = WhereRequest.FromString(raw)
        except DecodeError:
            raise PeerFault("where-form") from None
        if len(request.peer) != KEY_BYTES:
            raise PeerFault("where-form")
        return WhereReply(addresses=self._known.get(PeerId(request.peer), ())).SerializeToString()

    async def reach(self, peer: PeerId, attempt: Callable[[], Awaitable[T]]) -> T:
        """Do `attempt`; if the peer is unreachable, look for it and try once more."""
        try:
            return await attempt()
        except Unreachable:
            if not await self._locate(peer):
                raise
            return await attempt()

    async def _locate(self, peer: PeerId) -> bool:
        """Look for a peer that we are not connected to; whether we are now. Everybody shares one search."""
        now = asyncio.get_running_loop().time()
        task = self._looking.get(peer)
        if task is None:
            if now - self._failed.get(peer, -_RETRY_SECONDS) < _RETRY_SECONDS:
                return False
            task = self._looking[peer] = asyncio.get_running_loop().create_task(self._look(peer))
            task.add_done_callback(lambda _: self._looking.pop(peer, None))
        await asyncio.wait([task])
        found = not task.cancelled() and task.exception() is None and task.result()
        if not found:
            self._failed = {one: when for one, when in self._failed.items() if now - when < _RETRY_SECONDS}
            self._failed[peer] = asyncio.get_running_loop().time()
        return found

    async def _look(self, peer: PeerId) -> bool:
        with contextlib.suppress(NetworkError, TimeoutError):
            async with asyncio.timeout(limits.CONNECT_SECONDS):
                others = await self._connected()
                if peer in others:
                    return False  # what failed was not the way
                if peer in self._known and await self._try(peer, self._known[peer]):
                    return True
                asked = sorted(others)[: limits.WHERE_PEERS]
                request = WhereRequest(peer=peer.key).SerializeToString()
                answers = await asyncio.gather(*(self._ask(other, request) for other in asked))
                hints = list(dict.fromkeys(address for answer in answers for address in answer))
                return bool(hints) and await self._try(peer, hints[: 2 * limits.ADDRESSES_PER_PEER])
        return False

    async def _try(self, peer: PeerId, some: Sequence[str]) -> bool:
        try:
            await self._dial(peer, some)
        except NetworkError:
            return False
        self.learn(peer, some)
        return True

    async def _ask(self, other: PeerId, request: bytes) -> Sequence[str]:
        try:
            reply = WhereReply.FromString(await self._call(other, WHERE, request, limits.WHERE_SECONDS))
        except (NetworkError, DecodeError):
            return ()
        good = [
            address for address in reply.addresses if address.startswith("/") and len(address) <= limits.ADDRESS_BYTES
        ]
        return good[: limits.ADDRESSES_PER_PEER]

    async def stop(self) -> None:
        """End all searches."""
        tasks = list(self._looking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
