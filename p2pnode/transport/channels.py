"""Channels: one lasting stream out for each (peer, channel), streams in under caps, and who is gone.

Knows no network library: streams are opened and connected peers listed by two functions that it is given.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from p2pnode.errors import FrameTooLarge, NetworkError, PeerFault, Unreachable
from p2pnode.identity import PeerId
from p2pnode.transport import limits
from p2pnode.transport.bandwidth import SendMeter
from p2pnode.transport.base import MAX_FRAME_BYTES, FrameHandler, PeerGoneHandler, ViolationHandler
from p2pnode.transport.framing import DONE, PROBE, FrameReader, FrameWriter
from p2pnode.transport.rates import Buckets

Opener = Callable[[PeerId, str], Awaitable[socket.socket]]
"""(peer, channel) -> connected non-blocking socket. Raises Unreachable."""

Connected = Callable[[], Awaitable[set[PeerId]]]
ProbeHandler = Callable[[PeerId, bytes], None]
"""(peer who asks, challenge)"""

logger = logging.getLogger("p2pnode.transport")


class Hooks:
    """What the transport's user registered. One handler for a channel or method; any number of observers."""

    def __init__(self) -> None:
        self.frames: dict[str, FrameHandler] = {}
        self.gone: list[PeerGoneHandler] = []
        self.violations: list[ViolationHandler] = []

    def violated(self, peer: PeerId, clause: str) -> None:
        """Tell the observers."""
        for handler in self.violations:
            handler(peer, clause)


class Inbound:
    """A stream that a peer opened to us."""

    def __init__(self, peer: PeerId, channel: str, reader: FrameReader) -> None:
        self.peer = peer
        self.channel = channel
        self.reader = reader
        self.instance = b""
        self.task: asyncio.Task[None] | None = None


class Channels:
    """All streams of one node. Between `start` and `stop`."""

    def __init__(self, instance: bytes, hooks: Hooks, opener: Opener, connected: Connected, on_probe: ProbeHandler):
        self._instance = instance
        self._hooks = hooks
        self._opener = opener
        self._connected = connected
        self._on_probe = on_probe
        self._outgoing: dict[tuple[PeerId, str], FrameWriter] = {}
        self._opening: dict[tuple[PeerId, str], asyncio.Task[FrameWriter]] = {}
        self._inbound: dict[tuple[PeerId, str], list[Inbound]] = {}
        self._inbound_count: dict[PeerId, int] = {}
        self._instances: dict[PeerId, bytes] = {}
        self._known: set[PeerId] = set()  # had a channel with us, and is not gone
        self._checking: set[PeerId] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = True
        self._last_watch = 0.0
        self.sent = 0  # bytes of frames
        self.received = 0
        self.meter = SendMeter()
        self._openings = Buckets(limits.STREAM_RATE, limits.STREAM_BURST, time.monotonic)

    def start(self) -> None:
        """Begin to watch deadlines."""
        self._closed = False
        self._spawn(self._watch())

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- out

    async def send(self, peer: PeerId, channel: str, frame: bytes) -> None:
        """See `Transport.send`."""
        if len(frame) > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"a frame of {len(frame)} bytes; the limit is {MAX_FRAME_BYTES}")
        writer = self._outgoing.get((peer, channel))
        if writer is None or writer.broken:
            writer = await self._open(peer, channel)
        try:
            await writer.put(frame)
        except Unreachable:
            raise Unreachable(
                f"the channel {channel} to {peer.short} broke; it is opened anew by the next send"
            ) from None
        self.sent += len(frame)

    async def _open(self, peer: PeerId, channel: str) -> FrameWriter:
        if self._closed:
            raise NetworkError("the transport is not running")
        key = (peer, channel)
        task = self._opening.get(key)
        if task is None:
            task = self._opening[key] = self._spawn(self._open_now(peer, channel))
            task.add_done_callback(lambda done: (self._opening.pop(key, None), done.cancelled() or done.exception()))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise NetworkError("the transport is not running") from None
            raise

    async def _open_now(self, peer: PeerId, channel: str) -> FrameWriter:
        try:
            async with asyncio.timeout(limits.OPEN_SECONDS):
                sock = await self._opener(peer, channel)
        except TimeoutError:
            raise Unreachable(f"{peer.short} did not answer within {limits.OPEN_SECONDS:.0f} s") from None
        writer = FrameWriter(
            sock,
            self._instance,
            lambda challenge: self._on_probe(peer, challenge),
            lambda: self._broken(peer),
            self.meter,
        )
        self._outgoing[peer, channel] = writer
        self._known.add(peer)
        return writer

    # ---- in

    def accept(self, peer: PeerId, channel: str, reader: FrameReader) -> None:
        """Take a stream that `peer` opened, its instance not yet read. The caps count from here."""
        key = (peer, channel)
        if (
            self._closed
            or channel not in self._hooks.frames
            or not self._openings.take(peer)
            or self._inbound_count.get(peer, 0) >= limits.STREAMS_PER_PEER
            or not self._room_for(peer)
        ):
            reader.fail("streams")
            if not self._closed:
                self._hooks.violated(peer, "streams")
            return
        inbound = Inbound(peer, channel, reader)
        before = self._inbound.setdefault(key, [])
        earlier = before[-1] if before else None
        before.append(inbound)
        self._inbound_count[peer] = self._inbound_count.get(peer, 0) + 1
        self._known.add(peer)
        inbound.task = self._spawn(self._serve(inbound, earlier))

    def _room_for(self, peer: PeerId) -> bool:
        """Whether there is room in all for a stream of `peer`, at the cost of whoever has clearly more if need be."""
        if sum(self._inbound_count.values()) < limits.STREAMS_TOTAL:
            return True
        most = max(self._inbound_count, key=lambda one: self._inbound_count[one])
        if self._inbound_count[most] <= self._inbound_count.get(peer, 0) + 1:
            return False
        crowded = self._streams(most)[0]
        crowded.reader.fail("streams")  # its task tells of the violation
        self._forget(crowded)
        return True

    def instance_read(self, peer: PeerId, reader: FrameReader, instance: bytes) -> None:
        """The opener's instance has come. If it is another than before, the earlier process is gone."""
        for inbound in self._streams(peer):
            if inbound.reader is reader:
                inbound.instance = instance
        before = self._instances.get(peer)
        self._instances[peer] = instance
        if before is not None and before != instance and peer in self._known:
            self._close(peer, spared=instance)
            for handler in self._hooks.gone:
                handler(peer)

    async def _serve(self, inbound: Inbound, earlier: Inbound | None) -> None:
        peer, reader = inbound.peer, inbound.reader
        try:
            if earlier is not None:  # the peer opened this channel again: what it sent before comes first
                earlier.reader.close()
                if earlier.task is not None:
                    await asyncio.wait([earlier.task])
            handler = self._hooks.frames[inbound.channel]
            loop, began = asyncio.get_running_loop(), 0.0
            while (frame := await reader.next_frame()) is not None:
                self.received += len(frame)
                if loop.time() - began > limits.TURN_SECONDS:  # neither frames that wait nor most handlers let go
                    await asyncio.sleep(0)
                    began = loop.time()
                try:
                    await handler(peer, frame)
                except PeerFault as fault:
                    self._hooks.violated(peer, fault.clause)
                except Exception:
                    logger.exception("a frame of channel %s could not be handled", inbound.channel)
            if reader.ended:
                reader.reply(DONE)
            if reader.fault:
                self._hooks.violated(peer, reader.fault)
        finally:
            reader.close()
            self._forget(inbound)
        self._broken(peer)  # not when cancelled: the loop is about to close

    def _forget(self, inbound: Inbound) -> None:
        key = (inbound.peer, inbound.channel)
        streams = self._inbound.get(key, [])
        if inbound in streams:
            streams.remove(inbound)
            self._inbound_count[inbound.peer] -= 1
            if not self._inbound_count[inbound.peer]:
                del self._inbound_count[inbound.peer]
        if not streams:
            self._inbound.pop(key, None)

    def instances(self, peer: PeerId) -> set[bytes]:
        """The processes that hold streams to us under this peer's identity."""
        return {i.instance for i in self._streams(peer) if i.instance}

    def probe(self, peer: PeerId, instance: bytes, challenge: bytes) -> bool:
        """Ask a process that holds a stream to us to prove that it lives; whether there is one to ask."""
        for inbound in self._streams(peer):
            if inbound.instance == instance and not inbound.reader.closed:
                inbound.reader.reply(PROBE + challenge)
                return True
        return False

    def _streams(self, peer: PeerId) -> list[Inbound]:
        return [i for (owner, _), streams in self._inbound.items() if owner == peer for i in streams]

    # ---- gone

    def _broken(self, peer: PeerId) -> None:
        """A stream with `peer` ended: look whether the peer did."""
        if not self._closed and peer in self._known and peer not in self._checking:
            self._checking.add(peer)
            self._spawn(self._check_gone(peer))

    async def _check_gone(self, peer: PeerId) -> None:
        try:
            for pause in limits.GONE_CHECKS:
                await asyncio.sleep(pause)
                if self._closed:
                    return
                if peer not in await self._connected():
                    self._gone(peer)
                    return
        except NetworkError:
            self._gone(peer)  # our own daemon is gone, and all peers with it
        finally:
            self._checking.discard(peer)

    def _gone(self, peer: PeerId) -> None:
        if peer not in self._known:
            return
        self._known.discard(peer)
        self._instances.pop(peer, None)
        self._close(peer)
        for handler in self._hooks.gone:
            handler(peer)

    def lose_all(self) -> None:
        """Our own connection to all is lost: everybody with whom we had a channel is gone."""
        for peer in list(self._known):
            self._gone(peer)

    def _close(self, peer: PeerId, spared: bytes = b"") -> None:
        for key in [key for key in self._outgoing if key[0] == peer]:
            self._outgoing.pop(key).close()
        for inbound in self._streams(peer):
            if not spared or inbound.instance != spared:
                inbound.reader.close()

    # ---- deadlines

    async def _watch(self) -> None:
        try:
            while True:
                await asyncio.sleep(1.0)
                self._watch_deadlines(time.monotonic())
                if time.monotonic() - self._last_watch > limits.WATCH_SECONDS:
                    self._last_watch = time.monotonic()
                    await self._watch_silent()
        finally:
            self._closed = True  # also when the loop is closed without `stop`: nothing new begins

    def _watch_deadlines(self, now: float) -> None:
        for key, writer in list(self._outgoing.items()):
            if writer.broken:
                del self._outgoing[key]
            elif writer.blocked_since and now - writer.blocked_since > limits.WRITE_STALL_SECONDS:
                logger.debug("%s reads nothing in channel %s: closed", key[0].short, key[1])
                writer.close()
        for reader in [inbound.reader for streams in self._inbound.values() for inbound in streams]:
            if reader.paused or not reader.began:
                continue
            if now - reader.moved > limits.FRAME_STALL_SECONDS or now - reader.began > limits.FRAME_SECONDS:
                reader.fail("frame-stalled")

    async def _watch_silent(self) -> None:
        live = {key[0] for key in self._outgoing} | set(self._inbound_count)
        silent = self._known - live
        if silent:
            try:
                connected = await self._connected()
            except NetworkError:
                connected = set()
            for peer in silent - connected:
                self._gone(peer)

    # ---- the end

    async def stop(self, flush_seconds: float) -> None:
        """Send what is queued for at most `flush_seconds`, then close everything."""
        self._closed = True
        writers = [writer for writer in self._outgoing.values() if not writer.broken]
        if writers:
            await asyncio.gather(*(writer.finish(flush_seconds) for writer in writers))
        self.abort()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def abort(self) -> None:
        """Close everything at once."""
        self._closed = True
        for writer in self._outgoing.values():
            writer.close()
        self._outgoing.clear()
        for streams in list(self._inbound.values()):
            for inbound in streams:
                inbound.reader.close()
