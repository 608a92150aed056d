"""Keeping an invite at hand: for the screen at the start, and in a file that `p2pnode invite` prints."""

from __future__ import annotations

from typing import Final

from p2pnode.home import write_atomically
from p2pnode.identity import PeerId
from p2pnode.invite import MAX_ADDRESSES, Invite
from p2pnode.node.finding import Run
from p2pnode.replica.state import GlobalState
from p2pnode.transport.base import Transport

WRITE_SECONDS: Final = 2.0  # between rewrites of the file


class Inviter:
    """Makes invites to the run that lead to this node, and to those who invited it."""

    def __init__(self, run: Run, transport: Transport) -> None:
        self._run = run
        self._transport = transport
        self._written = float("-inf")

    def at(self, round_number: int, state_digest: bytes, roster_digest: bytes) -> Invite:
        """An invite with this checkpoint."""
        addresses = tuple(self._transport.addresses())[:MAX_ADDRESSES]
        if self._run.invite is not None:  # the one that invited us is a second way in
            own = f"/p2p/{self._transport.peer_id}"  # what we said the last time may not hold any more
            others = (address for address in self._run.invite.addresses if not address.endswith(own))
            addresses = (*addresses, *others)[:MAX_ADDRESSES]
        manifest = self._run.manifest
        author = PeerId.from_text(manifest.author)
        return Invite(manifest.digest, author, round_number, state_digest, roster_digest, addresses)

    def write(self, state: GlobalState, now: float) -> None:
        """Write an invite with this state as its checkpoint, unless that was done moments ago."""
        if now - self._written >= WRITE_SECONDS:
            self._written = now
            invite = self.at(state.round, state.digest, state.roster.digest)
            write_atomically(self._run.files.invite, invite.text.encode() + b"\n")
