"""The transport interface: authenticated peers, capped frames, a DHT. No trust beyond "these bytes came from that key".

Two implementations, `hivemind.HivemindTransport` and `memory.MemoryTransport`, pass one conformance suite
(`tests/conformance/test_transport.py`).

Every method is called from one asyncio event loop. Foreign exceptions never leave a transport: they become
`errors.NetworkError` or a subclass.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from p2pnode.identity import PeerId

MAX_FRAME_BYTES: Final = (
    1 << 20
)  # of a message in a channel: a chunk with its proof, or a proposal with all its entries
MAX_CALL_BYTES: Final = 2 << 20  # of a request or a reply
MAX_RECORD_BYTES: Final = 4096  # of a DHT record's value, envelope included
MAX_SUBKEYS: Final = 256  # that a reader takes from one DHT key

FrameHandler = Callable[[PeerId, bytes], Awaitable[None]]
"""(sender, frame): awaited before the next frame of this channel is read, so a slow handler slows its sender."""

CallHandler = Callable[[PeerId, bytes], Awaitable[bytes]]
"""(sender, request) -> reply. Raising PeerFault refuses: the caller gets NetworkError with the clause's name."""

PeerGoneHandler = Callable[[PeerId], None]

ViolationHandler = Callable[[PeerId, str], None]
"""(peer, clause): a peer broke a rule of the transport, see `protocols/transport.md`. Its channel has been closed."""


@dataclass(frozen=True)
class TransportOptions:
    """This machine's own choices.

    listen, announce: multiaddrs to listen on, and (if any) to tell others in place of what was found.
    bootstraps: multiaddrs with `/p2p/`; one of them must answer. remembered: tried as well, but none has to answer.
    socket_dir: for the sockets to the libp2p daemon; default: in the system's temporary directory.
    start_deadline: seconds of trying the bootstraps. instance: 16 random bytes that tell this process from another
    with the same identity; made if empty. log: gets lines for people about what is waited for.
    clock: this machine's wall clock, seconds since the epoch. debug: let the library's own log through.
    """

    listen: Sequence[str] = ("/ip4/0.0.0.0/tcp/0",)
    announce: Sequence[str] = ()
    bootstraps: Sequence[str] = ()
    remembered: Sequence[str] = ()
    socket_dir: Path | None = None
    start_deadline: float = 60.0
    instance: bytes = b""
    log: Callable[[str], None] = lambda line: None
    clock: Callable[[], float] = time.time
    debug: bool = False


@dataclass(frozen=True)
class Record:
    """A DHT record that passed the validator: signed by `sender`, unexpired when read."""

    sender: PeerId
    value: bytes
    sequence: int
    issued: float
    expiration: float


@dataclass(frozen=True)
class Traffic:
    """Payload bytes since start, over channels and calls; the DHT's own upkeep is not counted."""

    sent: int
    received: int


class Transport(Protocol):
    """One node's connection to the swarm."""

    @property
    def peer_id(self) -> PeerId:
        """Our own identity; valid before `start`."""

    async def start(self) -> None:
        """Listen, and connect to the bootstrap addresses if there are any.

        Raises Unreachable when bootstraps were given and none answered within the start deadline, after retries with
        backoff; IdentityTaken when another process in the swarm uses our identity.
        """

    async def stop(self) -> None:
        """Close everything within 5 seconds, whatever peers do. Idempotent. Nothing of ours is left: no process,
        no socket, no file, no task."""

    def addresses(self) -> Sequence[str]:
        """Multiaddrs with `/p2p/<peer id>` under which others can reach us, most reachable first."""

    async def connect(self, addresses: Sequence[str]) -> bool:
        """Try to connect to a peer known by its multiaddrs; whether it worked."""

    async def peers(self) -> Sequence[PeerId]:
        """Peers with an open connection now."""

    def on_frame(self, channel: str, handler: FrameHandler) -> None:
        """Receive frames of `channel`. Before or after `start`; once for a channel."""

    async def send(self, peer: PeerId, channel: str, frame: bytes) -> None:
        """Queue one frame for `peer`: in order within (peer, channel), at most once.

        Waits while the peer's queue is full (its limit is bytes, not frames). Returns when queued, not when read: what
        was queued is lost if the peer goes away. Raises FrameTooLarge, or Unreachable when the channel can't be opened
        or broke (the next send tries to open it anew).
        """

    def on_call(self, method: str, handler: CallHandler) -> None:
        """Answer `method`. Before or after `start`; once for a method."""

    async def call(self, peer: PeerId, method: str, request: bytes, *, timeout: float) -> bytes:
        """Ask `peer`. Raises Unreachable (no answer within `timeout` seconds), FrameTooLarge, or NetworkError when the
        peer refused."""

    def on_peer_gone(self, handler: PeerGoneHandler) -> None:
        """Called once each time that a peer with whom we had a channel is found to be gone (its connection closed)."""

    def on_violation(self, handler: ViolationHandler) -> None:
        """Called each time that a peer breaks a rule of the transport, with the clause's name."""

    async def store(self, key: str, value: bytes, *, lifetime: float) -> bool:
        """Sign and store `value` in the DHT under (key, our peer id) for `lifetime` seconds; whether anybody took it.

        The key is this run's alone: the same key in another run is another place. Raises FrameTooLarge when the
        record would not fit in MAX_RECORD_BYTES, ValueError when `lifetime` is not in (0, records.MAX_LIFETIME].
        """

    async def fetch(self, key: str, *, prefer: Collection[PeerId] = ()) -> Mapping[PeerId, Record]:
        """The valid records under `key`, the highest sequence of each sender, at most MAX_SUBKEYS. Empty if none.

        Where there are more, those of `prefer` are kept first.
        """

    def clock_offset(self) -> float:
        """Seconds to add to our clock to agree with the median of the peers that were asked; 0.0 if unknown."""

    def traffic(self) -> Traffic:
        """Counters since start."""

    def bandwidth(self) -> int:
        """Bytes a second at which we recently could send frames, to all peers together; 0 if that is not known yet.

        Measured on what is sent anyway, and only while peers take less than we have for them.
        """
