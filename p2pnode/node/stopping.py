"""When and why the node stops: a signal, a closed terminal, its launcher's death, the clock, or the run's end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from p2pnode.transport.lifeline import parent_gone

GRACE_SECONDS: Final = 9.0  # from the signal to the end, whatever the others do


class Stopping:
    """A request to stop, made once; the first reason counts."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""
        self.by_itself = True  # the run or an option ended it, not a signal

    def requested(self) -> bool:
        """Whether to stop. May be asked from any thread."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Until a stop is requested."""
        await self._event.wait()

    def request(self, reason: str, *, by_itself: bool = True) -> None:
        """Ask to stop; from the event loop's thread."""
        if not self._event.is_set():
            self.reason, self.by_itself = reason, by_itself
            self._event.set()


@asynccontextmanager
async def watch_for_stop(
    stopping: Stopping, for_seconds: float | None, launcher: int | None = None
) -> AsyncIterator[None]:
    """Turn signals, the parent's death and the time limit into requests to stop.

    A second signal ends the process at once; the libp2p daemon ends with it.
    """
    loop = asyncio.get_running_loop()
    handled = []

    def on_signal(number: signal.Signals) -> None:
        if stopping.requested() and not stopping.by_itself:
            _end_now(130)
        reason = "stopped by Ctrl-C" if number == signal.SIGINT else f"told to by {number.name}"
        stopping.request(reason, by_itself=False)
        # A hung disk or thread must not keep a person waiting; everything durable is fsynced before it is relied on.
        timer = threading.Timer(GRACE_SECONDS, _end_now, (0,))
        timer.daemon = True
        timer.start()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A launcher like nohup ignores SIGHUP for us: that choice stands, also for the launcher's own death.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal, number)
            handled.append(number)
    tasks = []
    if signal.SIGHUP in handled:
        tasks.append(asyncio.create_task(_watch_parent(stopping, launcher)))
    if for_seconds is not None:
        tasks.append(asyncio.create_task(_watch_clock(stopping, for_seconds)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number in handled:
            loop.remove_signal_handler(number)


async def _watch_parent(stopping: Stopping, launcher: int | None) -> None:
    await parent_gone(launcher)
    stopping.request("the process that started it has ended", by_itself=False)


async def _watch_clock(stopping: Stopping, seconds: float) -> None:
    await asyncio.sleep(seconds)
    stopping.request(f"{seconds:g} second{' is' if seconds == 1 else 's are'} over, as asked with --for")


def _end_now(status: int) -> None:
    sys.stdout.flush()
    os._exit(status)
