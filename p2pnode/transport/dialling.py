"""Dialling several peers at once, to find anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from p2pnode.errors import NetworkError
from p2pnode.identity import PeerId
from p2pnode.transport import limits

_SETTLE_SECONDS: Final = 0.25  # for more peers to answer once one has


class Dialler:
    """Tries addresses; `dial` raises NetworkError when a peer can't be reached."""

    def __init__(self, dial: Callable[[PeerId, Sequence[str]], Awaitable[None]]) -> None:
        self._dial = dial

    async def any_of(self, known: Mapping[PeerId, Sequence[str]]) -> list[PeerId]:
        """Dial all at once: those that answered, soon after the first did."""
        tasks = {asyncio.ensure_future(self.one(peer, some)): peer for peer, some in known.items()}
        try:
            pending = set(tasks)
            while pending and not any(_succeeded(task) for task in tasks):
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                await asyncio.wait(pending, timeout=_SETTLE_SECONDS)
            return [peer for task, peer in tasks.items() if _succeeded(task)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def one(self, peer: PeerId, some: Sequence[str]) -> bool:
        """Dial one; whether it answered within CONNECT_SECONDS."""
        try:
            async with asyncio.timeout(limits.CONNECT_SECONDS):
                await self._dial(peer, some)
        except (NetworkError, TimeoutError):
            return False
        return True


def _succeeded(task: asyncio.Future[bool]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None and task.result()
