"""Round reports: evaluates certified states one after the other, beside training, and tells what came of each round."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from p2pnode.manifest import RunManifest
from p2pnode.node.work import Measured, Worker
from p2pnode.replica.chain import Link
from p2pnode.replica.state import GlobalState
from p2pnode.transport.base import Traffic
from p2pnode.ui.events import EventSink

BACKLOG: Final = 2  # rounds that wait for their measures; with more, evaluation is too slow for every round

OnMeasured = Callable[[RunManifest, dict[str, float]], None]


@dataclass(frozen=True)
class RoundReport:
    """What is known of a certified round when it is. traffic: totals at that moment; epsilon: spent so far.

    state: None for a round that was skipped in a sync, so that only its certificate is known.
    """

    link: Link
    state: GlobalState | None
    contributed: bool
    samples: int
    traffic: Traffic
    epsilon: float | None


class Reporter:
    """Tells every certified round, in order."""

    def __init__(self, sink: EventSink, manifest: RunManifest, worker: Worker, measured: OnMeasured) -> None:
        self._sink = sink
        self._manifest = manifest
        self._worker = worker
        self._measured = measured
        self._queue: asyncio.Queue[tuple[float, RoundReport]] = asyncio.Queue()
        self._last_at = time.monotonic()
        self._last_traffic = Traffic(0, 0)
        self._newest: tuple[bytes, Measured] | None = None  # state digest

    def put(self, report: RoundReport) -> None:
        """A round is certified."""
        self._queue.put_nowait((time.monotonic(), report))

    async def measure(self, state: GlobalState) -> Measured:
        """A state's measures; the newest are kept."""
        if self._newest is None or self._newest[0] != state.digest:
            self._newest = (state.digest, await self._worker.evaluate(state.parameters))
        return self._newest[1]

    async def finish(self) -> None:
        """Until all rounds have been told."""
        await self._queue.join()

    async def run(self) -> None:
        """Forever."""
        while True:
            at, report = await self._queue.get()
            try:
                await self._tell(at, report)
            finally:
                self._queue.task_done()

    async def _tell(self, at: float, report: RoundReport) -> None:
        training, privacy = self._manifest.training, self._manifest.privacy
        link, state = report.link, report.state
        number = link.round
        measures: dict[str, float] = {}
        due = number % training.evaluate_every == 0 and self._queue.qsize() <= BACKLOG
        if state is not None and (due or number == training.target_rounds):
            measures = dict((await self.measure(state)).measures)
        seconds, self._last_at = at - self._last_at, at
        before, self._last_traffic = self._last_traffic, report.traffic
        self._sink.emit(
            "round",
            round=number,
            peers=len(link.contributors),
            voters=len(link.roster.members),
            provisional=link.provisional,
            state_digest=link.digest,
            loss=measures.get("loss"),
            accuracy=measures.get("accuracy"),
            samples=report.samples,
            bytes_sent=report.traffic.sent - before.sent,
            bytes_received=report.traffic.received - before.received,
            epsilon=report.epsilon,
            delta=privacy.delta if report.epsilon is not None else None,
            seconds=seconds,
            contributed=report.contributed,
            attempt=link.attempt,
            measures=measures,
        )
        if measures:
            self._measured(self._manifest, measures)
