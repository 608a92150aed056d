"""Work that is left to finish by itself: hivemind's searches leave helpers behind when they are cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from p2pnode.errors import NetworkError

logger = logging.getLogger("hivemind.p2pnode")


class Searches:
    """Searches that run. Their requests time out, so each ends; none is ever cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, search: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it in the background."""
        task = asyncio.get_running_loop().create_task(search)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a search of the DHT failed", exc_info=task.exception())

    async def result(self, search: Coroutine[Any, Any, Any]) -> Any:
        """Run it and wait; a caller that is cancelled leaves it running. NetworkError when it fails."""
        task = self.begin(search)
        await asyncio.wait([task])
        if task.cancelled() or task.exception() is not None:
            raise NetworkError("the DHT does not answer")
        return task.result()

    async def settle(self, seconds: float) -> None:
        """Wait until all have ended, for at most `seconds`."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=seconds)
