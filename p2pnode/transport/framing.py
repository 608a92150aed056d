"""Frames over a byte stream: [4 bytes: length][frame], checked before anything is allocated for them.

A stream begins with the opener's 16-byte instance; then frames go one way, from the opener. Back to the opener go
single control messages: PROBE + 32 bytes ("prove that you live"), and DONE (all your frames were handled).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from p2pnode.errors import Unreachable
from p2pnode.transport.bandwidth import SendMeter
from p2pnode.transport.base import MAX_FRAME_BYTES
from p2pnode.transport.limits import CHALLENGE_BYTES, FRAME_COST, INSTANCE_BYTES, QUEUE_BYTES, READ_AHEAD_BYTES

HEADER_BYTES: Final = 4
END: Final = b"\xff\xff\xff\xff"  # in place of a length: the opener leaves, and waits for DONE
_END_LENGTH: Final = int.from_bytes(END, "big")
_PREFIX_BYTES: Final = 4096  # enough for what comes before the frames
PROBE: Final = b"\x01"
DONE: Final = b"\x02"
_BUFFER_BYTES: Final = 64 << 10  # of a stream; grows once a stream has filled it at one go
_BUSY_BUFFER_BYTES: Final = 384 << 10
_LOW_BYTES: Final = 32 << 10  # free in the buffer: move what is in it to the front
_FIRST_BYTES: Final = 256 << 10  # allocated for a frame before any of it has come
_BATCH_BUFFERS: Final = 64  # handed to the kernel in one call
_BATCH_BYTES: Final = 512 << 10
_PROMPT_BYTES: Final = 32 << 10  # queued: not worth waiting for more to send along


class FrameReader(asyncio.BufferedProtocol):
    """The receiving end of one stream. Stops reading while READ_AHEAD_BYTES wait to be handled.

    prefix: parses what comes before the frames; returns the number of bytes used, or 0 for "more is needed"; raising
    ValueError closes the stream. Frames are taken with `next_frame`.
    """

    def __init__(self, prefix: Callable[[FrameReader, memoryview], int]) -> None:
        self._prefix: Callable[[FrameReader, memoryview], int] | None = prefix
        self._buffer = bytearray(_BUFFER_BYTES)
        self._start = 0  # of what is not parsed yet
        self._used = 0  # one past it
        self._frame: bytearray | None = None  # a frame that does not fit in the buffer
        self._frame_bytes = 0
        self._filled = 0
        self._frames: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._paused = False
        self._transport: asyncio.Transport | None = None
        self.fault = ""  # clause that closed the stream
        self.ended = False  # END was read
        self.closed = False
        self.received = 0  # bytes of whole frames
        self.began = 0.0  # monotonic time when the unfinished frame began; 0: there is none
        self.moved = 0.0  # monotonic time of the last byte of it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._frame is not None:
            return memoryview(self._frame)[self._filled :]
        return memoryview(self._buffer)[self._used :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.fault or self.ended:
            self._start = self._used = 0
            return
        if self._frame is not None:
            self._filled += nbytes
            self._grow()
        else:
            self._used += nbytes
            busy = nbytes >= _BUFFER_BYTES == len(self._buffer)
            self._parse()
            self._make_room(busy)
        if self._frame is None and self._start == self._used:
            self.began = 0.0
        else:
            self.moved = time.monotonic()
            self.began = self.began or self.moved
        if self._waiting_bytes >= READ_AHEAD_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _make_room(self, busy: bool) -> None:
        left = self._used - self._start
        if not left:
            self._start = self._used = 0
        if busy or (left and len(self._buffer) - self._used < _LOW_BYTES):
            # A new buffer when growing: the event loop still holds the old one.
            buffer = bytearray(_BUSY_BUFFER_BYTES) if busy else self._buffer
            buffer[:left] = bytes(memoryview(self._buffer)[self._start : self._used])
            self._buffer, self._start, self._used = buffer, 0, left

    def _grow(self) -> None:
        frame = self._frame
        if frame is None or self._filled < len(frame):
            return
        if self._filled < self._frame_bytes:
            self._frame = bytearray(self._frame_bytes)  # the event loop still holds the old one: no resizing
            self._frame[: self._filled] = frame
            return
        self._frame = None
        self._deliver(bytes(frame))

    def _parse(self) -> None:
        view, at = memoryview(self._buffer), self._start
        if self._prefix is not None:
            try:
                used = self._prefix(self, view[at : self._used])
            except ValueError as error:
                self.fail(str(error))
                return
            if not used:
                if self._used - at >= _PREFIX_BYTES:
                    self.fail("stream-preamble")
                return
            at += used
            self._prefix = None
        while self._used - at >= HEADER_BYTES:
            length = int.from_bytes(view[at : at + HEADER_BYTES], "big")
            stop = at + HEADER_BYTES + length
            if length > MAX_FRAME_BYTES:
                if length == _END_LENGTH:
                    self.ended, at = True, self._used
                    self._wake.set()
                    break
                self.fail("frame-size")
                return
            if stop <= self._used:
                self._deliver(bytes(view[at + HEADER_BYTES : stop]))
                at = stop
            elif HEADER_BYTES + length + _LOW_BYTES <= len(self._buffer):
                break  # the rest comes into the buffer
            else:
                self._filled = self._used - at - HEADER_BYTES
                self._frame_bytes = length
                self._frame = bytearray(min(length, max(_FIRST_BYTES, self._filled)))
                self._frame[: self._filled] = view[at + HEADER_BYTES : self._used]
                self._grow()  # so much may have come that there is no room left: asyncio gives up a full reader
                at = self._used
                break
        self._start = at

    def _deliver(self, frame: bytes) -> None:
        self.began = 0.0
        self.received += len(frame)
        self._waiting_bytes += len(frame) + FRAME_COST
        self._frames.append(frame)
        self._wake.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._wake.set()

    async def next_frame(self) -> bytes | None:
        """The next frame, in order; None when the stream is over and all its frames were taken."""
        while not self._frames:
            if self.closed or self.ended or self.fault:
                return None
            self._wake.clear()
            await self._wake.wait()
        frame = self._frames.popleft()
        self._waiting_bytes -= len(frame) + FRAME_COST
        if self._paused and self._waiting_bytes < READ_AHEAD_BYTES and self._transport is not None:
            self._paused = False
            self.moved = time.monotonic()
            self.began = self.moved if self.began else 0.0
            if not self.closed:
                self._transport.resume_reading()
        return frame

    @property
    def paused(self) -> bool:
        """Whether it is us who do not read."""
        return self._paused

    def fail(self, clause: str) -> None:
        """Close the stream because of a broken rule; frames that came before are still delivered."""
        self.fault = self.fault or clause
        self.close()

    def close(self) -> None:
        """Close the stream."""
        if self._transport is not None:
            self._transport.abort() if self.fault else self._transport.close()
        self._wake.set()

    def reply(self, data: bytes) -> None:
        """Send a control message back to the opener."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


class FrameWriter:
    """The sending end of one stream, over a connected non-blocking socket. No task: the event loop calls it.

    Holds at most QUEUE_BYTES; frames that are queued in one turn of the loop leave in one system call.
    """

    def __init__(
        self,
        sock: socket.socket,
        instance: bytes,
        on_probe: Callable[[bytes], None],
        on_broken: Callable[[], None],
        meter: SendMeter,
    ) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._queue: deque[memoryview | bytes] = deque([instance])
        self._queued = len(instance)
        self._scheduled = False
        self._blocked = False
        self._space = asyncio.Event()
        self._turn = asyncio.Lock()
        self._putting = 0
        self._control = b""
        self._on_probe = on_probe
        self._on_broken = on_broken
        self._meter = meter
        self._done = asyncio.Event()
        self.blocked_since = 0.0  # monotonic time since when the peer has taken nothing; 0: it takes what comes
        self.broken = False
        self.sent = 0  # bytes of frames queued
        self._loop.add_reader(sock, self._readable)
        self._flush()

    @property
    def queued(self) -> int:
        """Bytes that wait to be sent."""
        return self._queued

    async def put(self, frame: bytes) -> None:
        """Queue a frame; waits while the queue is full. Unreachable when the stream breaks."""
        if self._putting or self._full(frame):
            self._putting += 1  # who comes later must not overtake
            try:
                async with self._turn:
                    while self._full(frame):
                        self._space.clear()
                        await self._space.wait()
            finally:
                self._putting -= 1
        if self.broken:
            raise Unreachable("the channel broke")
        self.sent += len(frame)
        self._queue.append(len(frame).to_bytes(HEADER_BYTES, "big"))
        if frame:  # an empty buffer would never leave the queue
            self._queue.append(frame)
        self._queued += HEADER_BYTES + len(frame)
        if self._blocked:
            return
        if self._queued >= _PROMPT_BYTES:
            self._flush()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _full(self, frame: bytes) -> bool:
        return self._queued + len(frame) > QUEUE_BYTES and self._queued > 0 and not self.broken

    def _flush(self) -> None:
        self._scheduled = False
        if self.broken:
            return
        try:
            while self._queue:
                self._send_batch()
        except (BlockingIOError, InterruptedError):
            if not self._blocked:
                self._blocked = True
                self._meter.wait()
                self._loop.add_writer(self._socket, self._flush)
            self.blocked_since = self.blocked_since or time.monotonic()
            return
        except OSError:
            self.close()
            return
        finally:
            if self._queued < QUEUE_BYTES:
                self._space.set()
        self.blocked_since = 0.0
        self._unblock()

    def _unblock(self) -> None:
        if self._blocked:
            self._blocked = False
            self._meter.go()
            self._loop.remove_writer(self._socket)

    def _send_batch(self) -> None:
        batch: list[memoryview | bytes] = []
        size = 0
        for buffer in self._queue:
            batch.append(buffer)
            size += len(buffer)
            if len(batch) >= _BATCH_BUFFERS or size >= _BATCH_BYTES:
                break
        sent = self._socket.sendmsg(batch)
        self._queued -= sent
        self._meter.sent(sent)
        self.blocked_since = 0.0
        while sent:
            first = self._queue.popleft()
            if len(first) > sent:
                self._queue.appendleft(memoryview(first)[sent:])
                break
            sent -= len(first)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._control += data
        while self._control:
            if self._control.startswith(PROBE):
                if len(self._control) <= CHALLENGE_BYTES:
                    return
                challenge = self._control[1 : 1 + CHALLENGE_BYTES]
                self._control = self._control[1 + CHALLENGE_BYTES :]
                self._on_probe(challenge)
            elif self._control.startswith(DONE):
                self._control = self._control[1:]
                self._done.set()
            else:
                self.close()
                return

    async def finish(self, seconds: float) -> None:
        """Let what is queued be read, for at most `seconds`, then close."""
        if not self.broken:
            self._queue.append(END)
            self._queued += len(END)
            self._flush()
            try:
                async with asyncio.timeout(seconds):
                    await self._done.wait()
            except TimeoutError:
                pass
        self.close()

    def close(self) -> None:
        """Close at once; what is queued is lost. Idempotent."""
        if self.broken:
            return
        self.broken = True
        self._loop.remove_reader(self._socket)
        self._unblock()
        self._socket.close()
        self._queue.clear()
        self._queued = 0
        self._space.set()
        self._done.set()
        self._on_broken()


def read_instance(view: memoryview) -> bytes:
    """The instance at the beginning of a stream, or nothing yet."""
    return bytes(view[:INSTANCE_BYTES]) if len(view) >= INSTANCE_BYTES else b""
