"""A node's first state: that of a new run, that of others, or the one that its own disk holds from the last time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import MachineError, NetworkError, PeerFault, StorageError, Unreachable
from p2pnode.exchange import Journal
from p2pnode.home import set_aside
from p2pnode.identity import PeerId
from p2pnode.invite import Invite
from p2pnode.node.catching_up import credible_to
from p2pnode.node.finding import Run
from p2pnode.replica.chain import Link
from p2pnode.replica.state import GlobalState
from p2pnode.round.rules import Rules
from p2pnode.sync import ChainLog, History, StateStore, SyncClient
from p2pnode.transport.base import Transport

MEET_SECONDS: Final = 6.0  # in which a node that is started again waits for somebody to answer

Tell = Callable[[int, bytes, bytes], None]
"""(round, state digest, roster digest): the node can be joined from here on."""


@dataclass(frozen=True)
class Voices:
    """Whom to tell what. say: lines for people. debug: lines for whoever debugs."""

    tell: Tell
    say: Callable[[str], None]
    debug: Callable[[str], None]


@dataclass(frozen=True)
class Begun:
    """Where a node begins. provisional: whether a round that it followed to get there is."""

    state: GlobalState
    history: History
    provisional: bool = False


class Beginning:
    """One node's beginning in one run. Whatever it ends in is on disk."""

    def __init__(self, run: Run, rules: Rules, transport: Transport, journal: Journal, voices: Voices) -> None:
        self.states = StateStore(run.files.states, rules)
        self._run = run
        self._rules = rules
        self._transport = transport
        self._journal = journal
        self._voices = voices
        self._client = SyncClient(transport, voices.debug)

    async def begin(self, first: Callable[[], GlobalState]) -> Begun:
        """Whichever it is. first: makes a new run's first state. NetworkError, StorageError, MachineError."""
        if self._run.ways is not None:
            return await self.resume()
        return await (self.found(first()) if self._run.invite is None else self.join(self._run.invite))

    async def found(self, state: GlobalState) -> Begun:
        """A new run, from its first state on."""
        await asyncio.to_thread(self.states.write, state)
        history = self._new_history(Link.of(state))
        self._voices.tell(state.round, state.digest, state.roster.digest)
        return Begun(state, history)

    async def join(self, invite: Invite) -> Begun:
        """The others' newest state, with the chain from the invite's checkpoint to it. Unreachable."""
        self._voices.tell(invite.round, invite.state_digest, invite.roster_digest)
        known = [*invite.bootstraps, *await self._transport.peers()]
        peers = [peer for peer in dict.fromkeys(known) if peer != self._transport.peer_id]
        start = await self._client.checkpoint(invite, self._run.manifest, peers)
        history = self._new_history(start)
        synced = await self._client.follow(history, self._run.manifest, self._rules.values, peers, tip_missing=True)
        if synced is None:
            raise Unreachable("no peer could show a valid chain of certificates from the invite's checkpoint on")
        await asyncio.to_thread(self.states.write, synced.state)
        history.follow(synced.common, synced.links, synced.records, time.time())
        return Begun(synced.state, history, any(link.provisional for link in synced.links))

    async def resume(self) -> Begun:
        """Go on from this home's disk, or from others' better chain if some of them can be reached.

        Never anew, so that no slot is signed twice. MachineError if that is not possible.
        """
        history = await self._open()
        if history is None:
            return await self._join_again()
        state, notices = await asyncio.to_thread(self.states.recover, history)
        for notice in notices:
            self._voices.say(notice)
        if state is None and history.tip.round == history.first and self._run.invite is not None:
            history.close()  # it was never more than a beginning
            return await self._join_again()
        tip = history.tip
        self._voices.tell(tip.round, tip.digest, tip.roster.digest)
        # Alone on the roster there is nobody who could have gone on.
        peers = await self._meet(0 if state is not None and self._alone(history) else MEET_SECONDS)
        begun = await self._follow(history, state, peers)
        if begun is None:
            raise MachineError(
                f"{self._run.files.directory}: the state of round {tip.round} is not here any more, and nobody who has "
                "it can be reached: try again when others of the run are online"
            )
        signed = await asyncio.to_thread(self._journal.newest_round)
        if self._alone(begun.history) and signed > begun.state.round + 1:
            raise MachineError(
                f"{self._run.files.directory}: what is left of the chain ends with round {begun.state.round}, and "
                f"this node signed round {signed}: alone it would sign rounds a second time, so it does not go on"
            )
        met = "" if peers else "; nobody else of the run can be reached yet"
        self._voices.say(f"going on from round {begun.state.round} of this node's own disk{met}")
        return begun

    def _new_history(self, start: Link) -> History:
        files, manifest = self._run.files, self._run.manifest
        return History(start, ChainLog(files.chain), manifest, self._rules.values, time.time())

    def _alone(self, history: History) -> bool:
        return history.tip.roster.members == (self._transport.peer_id,)

    async def _open(self) -> History | None:
        """The history on disk; None if there is none that can be used."""
        log = ChainLog(self._run.files.chain)
        try:
            history, notices = await asyncio.to_thread(History.open, log, self._run.manifest, self._rules.values)
        except StorageError as error:
            log.close()
            if log.path.exists():
                self._voices.say(f"{error}; it is set aside as {set_aside(log.path).name}")
            return None
        for notice in notices:
            self._voices.say(notice)
        return history

    async def _join_again(self) -> Begun:
        if self._run.invite is None or not await self._meet(MEET_SECONDS):
            raise MachineError(
                "this home took part in this run before, its history of it can't be used, and nobody of the run can be "
                "reached now: try again when they are online, or make a new run with `p2pnode run create`"
            )
        return await self.join(self._run.invite)

    async def _meet(self, seconds: float) -> list[PeerId]:
        """Whoever answers at the addresses that we know, or is there already."""
        deadline = time.monotonic() + seconds
        while True:
            peers = [peer for peer in await self._transport.peers() if peer != self._transport.peer_id]
            left = deadline - time.monotonic()
            if peers or left <= 0:
                return peers
            await self._transport.connect(self._run.ways or ())
            await asyncio.sleep(min(0.5, left))

    async def _follow(self, history: History, state: GlobalState | None, peers: list[PeerId]) -> Begun | None:
        """Our own state, or the one of a better chain of others; None if there is neither."""
        manifest = self._run.manifest
        found = None
        if peers:
            try:
                found = await self._client.follow(
                    history,
                    manifest,
                    self._rules.values,
                    peers,
                    credible=lambda common, links: credible_to(history, manifest, common, links),
                    tip_missing=state is None,
                )
            except (NetworkError, PeerFault) as error:
                self._voices.say(f"others are ahead, or on another branch, and can't be followed yet: {error}")
        if found is not None:
            await asyncio.to_thread(self.states.write, found.state)
            history.follow(found.common, found.links, found.records, time.time())
            return Begun(found.state, history, any(link.provisional for link in found.links))
        return None if state is None else Begun(state, history)
