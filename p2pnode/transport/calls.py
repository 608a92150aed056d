"""Calls: what a reply looks like, and how many a peer may make. The same for every transport.

A reply is one status byte and a body: OK + the answer, REFUSED + the name of the clause, or FAILED.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from p2pnode.errors import FrameTooLarge, NetworkError, PeerFault
from p2pnode.identity import PeerId
from p2pnode.transport import limits
from p2pnode.transport.base import MAX_CALL_BYTES, CallHandler
from p2pnode.transport.rates import Buckets

OK: Final = b"\x00"
REFUSED: Final = b"\x01"
FAILED: Final = b"\x02"
_CLAUSE_BYTES: Final = 64

logger = logging.getLogger("p2pnode.transport")


class CallGate:
    """How many calls are answered at once, and how often a peer may call."""

    def __init__(self, clock: Callable[[], float], refused: Callable[[PeerId, str], None]) -> None:
        """clock: monotonic seconds. refused: told of each call that was too many, with the clause."""
        self._rates = Buckets(limits.CALL_RATE, limits.CALL_BURST, clock)
        self._refused = refused
        self._running: dict[PeerId, int] = {}
        self._total = 0

    def enter(self, peer: PeerId) -> None:
        """Count a call in. PeerFault when it is one too many; else `leave` must follow."""
        self.charge(peer, 1)
        running = self._running.get(peer, 0)
        if running >= limits.CALLS_PER_PEER or self._total >= limits.CALLS_TOTAL:
            self._refuse(peer, "calls-at-once")
        self._running[peer] = running + 1
        self._total += 1

    def charge(self, peer: PeerId, calls: float) -> None:
        """Count a call that costs as much as several. PeerFault when that is too much."""
        if not self._rates.take(peer, calls):
            self._refuse(peer, "call-rate")

    def _refuse(self, peer: PeerId, clause: str) -> None:
        self._refused(peer, clause)
        raise PeerFault(clause)

    def leave(self, peer: PeerId) -> None:
        """Count a call out."""
        self._running[peer] -= 1
        if not self._running[peer]:
            del self._running[peer]
        self._total -= 1

    async def run(self, peer: PeerId, answer: Callable[[], Awaitable[bytes]]) -> bytes:
        """Await `answer` between `enter` and `leave`."""
        self.enter(peer)
        try:
            return await answer()
        finally:
            self.leave(peer)


async def answer(gate: CallGate, handler: CallHandler, peer: PeerId, method: str, request: bytes) -> bytes:
    """The whole reply to one call: never raises, but for cancellation."""
    try:
        if len(request) > MAX_CALL_BYTES:
            raise PeerFault("call-size")
        reply = await gate.run(peer, lambda: handler(peer, request))
        if len(reply) > MAX_CALL_BYTES:
            raise FrameTooLarge(f"a reply of {len(reply)} bytes")
    except PeerFault as fault:
        return REFUSED + fault.clause.encode()[:_CLAUSE_BYTES]
    except asyncio.CancelledError:
        raise
    except Exception:
        logger.exception("a call of %s could not be answered", method)
        return FAILED
    return OK + reply


def read_reply(peer: PeerId, method: str, reply: bytes) -> bytes:
    """The answer in a reply. Raises NetworkError when the peer refused or failed, FrameTooLarge."""
    if len(reply) > MAX_CALL_BYTES + 1:
        raise FrameTooLarge(f"{peer.short} answered {method} with {len(reply)} bytes; the limit is {MAX_CALL_BYTES}")
    if reply[:1] == OK:
        return reply[1:]
    if reply[:1] == REFUSED:
        clause = reply[1 : 1 + _CLAUSE_BYTES].decode("ascii", errors="replace")
        clause = "".join(c if c.isalnum() or c == "-" else "?" for c in clause)
        raise NetworkError(f"{peer.short} refused {method}: {clause}")
    raise NetworkError(f"{peer.short} failed to answer {method}")


def check_request(method: str, request: bytes) -> None:
    """FrameTooLarge for a request that nobody would accept."""
    if len(request) > MAX_CALL_BYTES:
        raise FrameTooLarge(f"a request of {len(request)} bytes to {method}; the limit is {MAX_CALL_BYTES}")
