"""The transport over real hivemind: libp2p's daemon for connections and streams, hivemind's DHT for records.

What is ours here: the daemon is started by us (private sockets, key through a pipe, ends with us), channels run over
its raw streams with our own framing, and the DHT's protocol is narrowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from hivemind.dht.node import DHTNode
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, P2PHandlerError
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from p2pnode.errors import NetworkError, Unreachable
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import addresses, limits, presence
from p2pnode.transport.base import Traffic, TransportOptions
from p2pnode.transport.channels import Channels
from p2pnode.transport.core import TransportCore
from p2pnode.transport.hivemind.control import BINARY, Control, Rpc, hivemind_log
from p2pnode.transport.hivemind.dht import Storage, make_node
from p2pnode.transport.libp2p import DaemonLink
from p2pnode.transport.records import RecordStore
from p2pnode.transport.revival import Restarts
from p2pnode.transport.routes import WHERE, Routes
from p2pnode.transport.searches import Searches

_LAST_SECONDS: Final = 0.5  # for searches of the DHT to find their calls failed
_LAST_TURNS: Final = 50  # of the event loop, for hivemind's stray tasks to end


class HivemindTransport(TransportCore):
    """`base.Transport` over real hivemind."""

    def __init__(self, identity: PeerIdentity, run_digest: bytes, options: TransportOptions | None = None) -> None:
        """See `TransportCore`."""
        super().__init__(identity, run_digest, options)
        self._prefix = f"/p2pnode/{run_digest.hex()}/"
        self._storage = Storage(self._clock.now)
        self._control: Control | None = None
        self._dht: DHTNode | None = None
        self._addresses: Sequence[str] = ()
        self._keeper: asyncio.Task[Any] | None = None
        self._searches = Searches()
        self._link = DaemonLink(BINARY, p2pd_pb2, self._prefix)
        self._routes = Routes(self._call_plain, self._link.connected, self._dial)
        self._channels = Channels(self.instance, self._hooks, self._open, self._link.connected, self._on_probe)
        self._presence.listening, self._presence.learned = lambda: self._addresses, self._routes.learn
        self.on_call(WHERE, self._routes.answer_where)
        self.on_call(presence.IDENTITY, self._answer_identity)
        self.on_frame(presence.CHANNEL, self._presence.on_proof)
        hivemind_log.propagate = hivemind_log.propagate or self.options.debug

    # ---- coming and going

    async def _up(self) -> None:
        await self._link.up(self._identity, self.options, self._channels)
        self._channels.start()
        await self._begin()
        self._keeper = self._spawn(self._keep_daemon())

    async def _begin(self) -> None:
        """Everything over a daemon that has just started."""
        self._control = await Control.connect(self._link.control_path, self._link.listen_path)
        rpc = Rpc(self._control, self._gate, self._unary, self.peer_id)
        self._dht = await make_node(rpc, self._prefix, self._storage)
        await self._listen_for(list(self._hooks.frames))
        for method in self._methods:
            await self._serve(method)
        await self._look_up_addresses()

    def _end(self) -> None:
        """The opposite of `_begin`."""
        if self._control is not None:
            self._control.end()
        if self._dht is not None:
            self._dht.is_alive = False
        self._dht = None

    async def _keep_daemon(self) -> None:
        """Start the daemon again whenever it has ended, until that is needed too often."""
        restarts = Restarts()
        while True:
            await asyncio.sleep(limits.DAEMON_LOOK_SECONDS)
            if self._link.alive and self._control is not None and not self._control.ended:
                continue
            self.options.log(f"libp2p's daemon has ended ({self._link.ending}): starting it again")
            self._end()
            self._channels.lose_all()
            if not await self._start_again(restarts):
                self._link.trouble = (
                    f"libp2p's daemon was started again {limits.RESTARTS} times within "
                    f"{limits.RESTART_WINDOW / 60:.0f} minutes and does not stay ({self._link.ending}); "
                    "see whether this machine is short of memory, then stop this node and start it again"
                )
                self.options.log(self._link.trouble)
                return
            self.options.log("libp2p's daemon runs again")
            self._routes.forget_failures()
            with contextlib.suppress(NetworkError):
                await self._return()

    async def _start_again(self, restarts: Restarts) -> bool:
        while (pause := restarts.next(asyncio.get_running_loop().time())) is not None:
            await asyncio.sleep(pause)
            try:
                await self._link.restart(self._identity, self.options)
                async with asyncio.timeout(limits.RESTART_SECONDS):
                    await self._begin()
            except (NetworkError, P2PDaemonError, OSError, EOFError) as error:
                self._end()
                self.options.log(f"libp2p's daemon can't be started again yet: {error or 'it does not answer'}")
            else:
                return True
        return False

    async def _down(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.FLUSH_SECONDS + 1):
                await self._channels.stop(limits.FLUSH_SECONDS)
        self._channels.abort()
        self._end()
        await self._routes.stop()
        await self._searches.settle(_LAST_SECONDS)  # their calls have failed now
        await self._link.down()
        for _ in range(_LAST_TURNS):  # hivemind's stray tasks find their calls failed, and end
            await asyncio.sleep(0)

    async def _look_up_addresses(self) -> None:
        found = [str(Multiaddr(raw)) for raw in await self._link.identify()]
        self._addresses = addresses.order(self.options.announce or found)
        if not self.options.announce:  # else the daemon tells what is announced, not where it listens
            self._link.listen = addresses.settled(self.options.listen, found)

    async def _listen_for(self, channels: Sequence[str]) -> None:
        await self._link.listen_for(channels, Multiaddr(f"/unix{self._link.listen_path}").to_bytes())

    def _background(self) -> Iterable[Coroutine[Any, Any, Any]]:
        return (self._rejoin(), self._keep_clock(), self._keep_addresses(), self._keep_dht())

    def _registered(self, name: str, *, is_call: bool) -> None:
        self._spawn(self._serve(name) if is_call else self._listen_for([name]))

    def addresses(self) -> Sequence[str]:
        """See `base.Transport.addresses`."""
        return [f"{address}/p2p/{self.peer_id}" for address in self._addresses]

    async def _keep_addresses(self) -> None:
        while True:
            await asyncio.sleep(limits.MAINTAIN_SECONDS)
            try:
                await self._look_up_addresses()
            except NetworkError as error:
                self.options.log(str(error))

    async def _dial(self, peer: PeerId, some: Sequence[str]) -> None:
        try:
            known = [Multiaddr(address).to_bytes() for address in some]
        except (ValueError, TypeError, LookupError):
            raise Unreachable(f"{peer.short} has an address that can't be used") from None
        await self._link.connect(peer, known)
        self._routes.learn(peer, some)

    def _acquainted(self) -> Mapping[PeerId, Sequence[str]]:
        return self._routes.known()

    async def _connected(self) -> set[PeerId]:
        return await self._link.connected()

    # ---- channels

    async def _open(self, peer: PeerId, channel: str) -> socket.socket:
        return await self._routes.reach(peer, lambda: self._link.open_stream(peer, channel))

    async def send(self, peer: PeerId, channel: str, frame: bytes) -> None:
        """See `base.Transport.send`."""
        await self._channels.send(peer, channel, frame)

    def traffic(self) -> Traffic:
        """See `base.Transport.traffic`."""
        return Traffic(self._channels.sent + self._called_sent, self._channels.received + self._called_received)

    def bandwidth(self) -> int:
        """See `base.Transport.bandwidth`."""
        return self._channels.meter.rate()

    # ---- calls

    async def _serve(self, method: str) -> None:
        if self._control is None:
            return

        async def unary(request: bytes, remote: PeerID) -> bytes:
            return await self._answer(method, PeerId.from_bytes(remote.to_bytes()), request)

        with contextlib.suppress(P2PDaemonError):
            await self._control.add_unary_handler(self._link.protocol(method), unary)

    async def _ask(self, peer: PeerId, method: str, request: bytes) -> bytes:
        return await self._unary(peer, self._link.protocol(method), request)

    async def _unary(self, peer: PeerId, protocol: str, request: bytes) -> bytes:
        return await self._routes.reach(peer, lambda: self._unary_now(peer, protocol, request))

    async def _unary_now(self, peer: PeerId, protocol: str, request: bytes) -> bytes:
        if self._control is None:
            raise NetworkError("the transport is not running")
        try:
            return await self._control.call_unary_handler(PeerID(peer.to_bytes()), protocol, request)
        except P2PHandlerError:
            raise NetworkError(f"{peer.short} failed to answer") from None
        except P2PDaemonError as error:
            raise Unreachable(f"{peer.short} can't be reached: {str(error)[:200]}") from None

    async def _answer_identity(self, peer: PeerId, request: bytes) -> bytes:
        others = await self._connected()
        return await self._presence.answer_identity(self._channels, self._call_plain, others, peer, request)

    async def _identity_taken(self, peers: Sequence[PeerId]) -> bool:
        return await self._presence.taken(self._call_plain, peers)

    def _on_probe(self, peer: PeerId, challenge: bytes) -> None:
        if self._running:
            self._spawn(self._send_quietly(peer, self._presence.proof(challenge)))

    async def _send_quietly(self, peer: PeerId, frame: bytes) -> None:
        with contextlib.suppress(NetworkError):
            await self.send(peer, presence.CHANNEL, frame)

    # ---- records

    async def _met(self, peers: Sequence[PeerId]) -> None:
        for peer in peers:  # a stream that shows who we are, over which we can be asked whether we live
            self._spawn(self._send_quietly(peer, self._presence.proof(bytes(limits.CHALLENGE_BYTES))))
        if self._dht is not None:
            await asyncio.gather(*(self._dht.protocol.call_ping(PeerID(peer.to_bytes())) for peer in peers))
            self._searches.begin(self._dht.find_nearest_nodes([self._dht.node_id]))

    async def _keep_dht(self) -> None:
        while True:
            await asyncio.sleep(limits.CLOCK_SECONDS)
            self._storage.records.expire(self._clock.now())
            if self._dht is not None:
                with contextlib.suppress(NetworkError):
                    await self._searches.result(self._dht.find_nearest_nodes([self._dht.node_id]))

    def _kept(self) -> RecordStore:
        return self._storage.records

    async def _put(self, source: bytes, subkey: bytes, raw: bytes, expiration: float) -> bool:
        if self._dht is None:
            return False
        return bool(await self._searches.result(self._dht.store(source, raw, expiration, subkey=subkey)))

    async def _get(self, source: bytes) -> Iterable[tuple[bytes, bytes, float]]:
        found = await self._searches.result(self._dht.get(source, latest=True)) if self._dht is not None else None
        if found is None or not isinstance(found.value, dict):
            return ()
        return [(subkey, item.value, item.expiration_time) for subkey, item in found.value.items()]
