"""A conversation with libp2p's daemon: connect, list, listen, open streams. Each request has a socket of its own.

Speaks the daemon's protobuf messages without knowing where they come from: `hivemind.transport` hands their module in.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from p2pnode.errors import NetworkError, Unreachable
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import addresses, limits
from p2pnode.transport.base import TransportOptions
from p2pnode.transport.daemon import Daemon, SocketDirectory, can_listen, make_way
from p2pnode.transport.framing import FrameReader

_REQUEST_SECONDS: Final = 5.0  # for our own daemon to answer
_ENDED: Final = "libp2p's daemon has ended; it is being started again"
_MESSAGE_BYTES: Final = 4 << 20  # of an answer of our own daemon


class Streams(Protocol):
    """Who takes the streams that peers open: see `channels.Channels`."""

    def accept(self, peer: PeerId, channel: str, reader: FrameReader) -> None:
        """A peer opened a stream."""

    def instance_read(self, peer: PeerId, reader: FrameReader, instance: bytes) -> None:
        """Its process showed which it is."""


class DaemonLink:
    """Our daemon, and what we ask of it. From `up` to `down`."""

    def __init__(self, binary: Path, messages: Any, prefix: str) -> None:
        """binary: `p2pd`. messages: its protobuf module. prefix: of all protocol ids, up to a channel's name."""
        self._binary = binary
        self._messages = messages
        self._prefix = prefix
        self._directory: SocketDirectory | None = None
        self._daemon: Daemon | None = None
        self._server: asyncio.Server | None = None
        self.trouble = _ENDED  # what a caller is told when the daemon does not live
        self.listen: Sequence[str] = ()  # to listen on after a restart: the ports that we got

    async def up(self, identity: PeerIdentity, options: TransportOptions, streams: Streams) -> None:
        """Start the daemon, and give peers' streams to `streams`. NetworkError or StorageError if it does not work."""
        self.listen = options.listen
        self._directory = SocketDirectory(options.socket_dir)
        self._daemon = await Daemon.start(self._binary, identity, self.control_path, _arguments(options, self.listen))
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: self._reader(streams), self.listen_path
        )

    async def restart(self, identity: PeerIdentity, options: TransportOptions) -> None:
        """Start another daemon in place of one that ended, on the same ports if they are free. NetworkError."""
        if self._daemon is not None:
            await self._daemon.stop()
        make_way(self.control_path)
        for number, (asked, got) in enumerate(zip(options.listen, self.listen, strict=True)):
            if asked != got and not can_listen(got):
                options.log(f"{got} was taken meanwhile: addresses and invites with it lead here no more")
                self.listen = [*self.listen[:number], asked, *self.listen[number + 1 :]]
        self._daemon = await Daemon.start(self._binary, identity, self.control_path, _arguments(options, self.listen))

    async def down(self) -> None:
        """End the daemon and remove its sockets. Idempotent."""
        if self._server is not None:
            self._server.close()
        if self._daemon is not None:
            await self._daemon.stop()
        if self._directory is not None:
            self._directory.remove()

    @property
    def pid(self) -> int:
        """The daemon's process id; 0 before `up`."""
        return self._daemon.pid if self._daemon is not None else 0

    @property
    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self._daemon is not None and self._daemon.alive

    @property
    def ending(self) -> str:
        """How the daemon ended, for a person."""
        return self._daemon.ending if self._daemon is not None else "it never ran"

    @property
    def control_path(self) -> str:
        """Where the daemon listens for us."""
        return self._path("d")

    @property
    def listen_path(self) -> str:
        """Where we listen for streams that the daemon hands us."""
        return self._path("c")

    def _path(self, name: str) -> str:
        if self._directory is None:
            raise NetworkError("the transport is not running")
        return str(self._directory.path / name)

    # ---- requests

    async def _connection(self) -> socket.socket:
        if self._daemon is None:
            raise NetworkError("the transport is not running")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, self.control_path)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise NetworkError(self.trouble) from None
            raise
        return sock

    async def _exchange(self, sock: socket.socket, kind: str, **parts: Any) -> Any:
        request = self._messages.Request(type=getattr(self._messages.Request, kind), **parts)
        data = request.SerializeToString()
        try:
            await asyncio.get_running_loop().sock_sendall(sock, _varint(len(data)) + data)
            response = self._messages.Response.FromString(await _read_message(sock))
        except OSError:
            raise NetworkError(self.trouble) from None
        if response.type == self._messages.Response.ERROR:
            raise Unreachable(str(response.error.msg)[:200])
        return response

    async def _request(self, kind: str, **parts: Any) -> Any:
        sock = await self._connection()
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                return await self._exchange(sock, kind, **parts)
        except TimeoutError:
            raise NetworkError("libp2p's daemon does not answer") from None
        finally:
            sock.close()

    async def connect(self, peer: PeerId, binary_addresses: Sequence[bytes]) -> None:
        """Connect to a peer. Unreachable if none of the addresses (binary multiaddrs) works."""
        connect = self._messages.ConnectRequest(peer=peer.to_bytes(), addrs=binary_addresses)
        await self._request("CONNECT", connect=connect)

    async def connected(self) -> set[PeerId]:
        """Peers with an open connection. NetworkError when the daemon has ended."""
        found = set()
        for info in (await self._request("LIST_PEERS")).peers:
            with contextlib.suppress(ValueError):  # not an Ed25519 peer: none of ours
                found.add(PeerId.from_bytes(info.id))
        return found

    async def identify(self) -> Sequence[bytes]:
        """The addresses that others may reach us at, binary multiaddrs."""
        return list((await self._request("IDENTIFY")).identify.addrs)

    async def listen_for(self, channels: Sequence[str], binary_listen_address: bytes) -> None:
        """Have the daemon hand us the streams of these channels."""
        names = [self.protocol(channel) for channel in channels]
        handler = self._messages.StreamHandlerRequest(addr=binary_listen_address, proto=names, balanced=False)
        await self._request("STREAM_HANDLER", streamHandler=handler)

    def protocol(self, name: str) -> str:
        """The protocol id of a channel or method."""
        return f"{self._prefix}{name}/1"

    async def open_stream(self, peer: PeerId, channel: str) -> socket.socket:
        """A stream to a peer: a connected non-blocking socket. Unreachable."""
        request = self._messages.StreamOpenRequest(peer=peer.to_bytes(), proto=[self.protocol(channel)])
        sock = await self._connection()
        try:
            await self._exchange(sock, "STREAM_OPEN", streamOpen=request)
        except Unreachable as error:
            sock.close()
            raise Unreachable(f"{peer.short} can't be reached in channel {channel}: {error}") from None
        except BaseException:
            sock.close()
            raise
        return sock

    # ---- streams that peers open

    def _reader(self, streams: Streams) -> FrameReader:
        opener: list[PeerId] = []

        def prefix(reader: FrameReader, view: memoryview) -> int:
            """[varint length][StreamInfo, by the daemon][instance, by the opener]"""
            length = shift = start = 0
            for start, byte in enumerate(view, 1):  # noqa: B007
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            else:
                return 0
            stop = start + length
            if len(view) < stop:
                return 0
            if not opener:
                info = self._messages.StreamInfo.FromString(bytes(view[start:stop]))
                opener.append(PeerId.from_bytes(info.peer))  # ValueError unless Ed25519: the stream is closed
                streams.accept(opener[0], str(info.proto).removeprefix(self._prefix).removesuffix("/1"), reader)
            if len(view) < stop + limits.INSTANCE_BYTES:
                return 0
            streams.instance_read(opener[0], reader, bytes(view[stop : stop + limits.INSTANCE_BYTES]))
            return stop + limits.INSTANCE_BYTES

        return FrameReader(prefix)


def _arguments(options: TransportOptions, listen: Sequence[str]) -> list[str]:
    relays = [*options.bootstraps, *options.remembered]
    arguments = [
        f"-hostAddrs={','.join(listen)}",
        "-b=0",  # we connect to the bootstraps ourselves: the daemon would give up after one attempt
        "-dhtServer=1",
        "-relay=1",
        "-autonat=1",
        "-natPortMap=1",
        "-connManager=1",
        f"-autoRelay={int(bool(relays))}",  # without addresses it would go to public servers
        "-idleTimeout=30s",
        f"-persistentConnMaxMsgSize={_MESSAGE_BYTES}",
    ]
    if relays:
        arguments.append(f"-bootstrapPeers={','.join(addresses.cleaned(relays))}")
    if options.announce:
        arguments.append(f"-announceAddrs={','.join(options.announce)}")
    return arguments


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


async def _read_message(sock: socket.socket) -> bytes:
    """One message with its length before it, and not a byte of what follows."""
    loop = asyncio.get_running_loop()
    length = shift = 0
    while True:
        byte = await loop.sock_recv(sock, 1)
        if not byte:
            raise ConnectionResetError
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
    if length > _MESSAGE_BYTES:
        raise NetworkError(f"libp2p's daemon answers with {length} bytes")
    data = b""
    while len(data) < length:
        more = await loop.sock_recv(sock, length - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data
