"""Round reports: evaluates certified states one after the other, beside training, and tells what came of each round."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from p2pnode.manifest import RunManifest
from p2pnode.replica.chain import Link
from p2pnode.replica.state import GlobalState
from p2pnode.transport.base import Traffic
from p2pnode.ui.events import EventSink
from p2pnode.work import Worker

Measured = Callable[[RunManifest, dict[str, float]], None]


@dataclass(frozen=True)
class RoundReport:
    """What is known of a certified round when it is. traffic: totals at that moment; epsilon: spent so far."""

    link: Link
    state: GlobalState
    contributed: bool
    samples: int
    traffic: Traffic
    epsilon: float | None


class Reporter:
    """Tells every certified round, in order."""

    def __init__(self, sink: EventSink, manifest: RunManifest, worker: Worker, measured: Measured) -> None:
        self._sink = sink
        self._manifest = manifest
        self._worker = worker
        self._measured = measured
        self._queue: asyncio.Queue[tuple[float, RoundReport]] = asyncio.Queue()
        self._last_at = time.monotonic()
        self._last_traffic = Traffic(0, 0)

    def put(self, report: RoundReport) -> None:
        """A round is certified."""
        self._queue.put_nowait((time.monotonic(), report))

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
        number = report.state.round
        measures: dict[str, float] = {}
        if number % training.evaluate_every == 0 or number == training.target_rounds:
            measures = dict((await self._worker.evaluate(report.state.parameters)).measures)
        seconds, self._last_at = at - self._last_at, at
        before, self._last_traffic = self._last_traffic, report.traffic
        self._sink.emit(
            "round",
            round=number,
            peers=len(report.link.contributors),
            voters=len(report.state.roster.members),
            provisional=report.link.provisional,
            state_digest=report.state.digest,
            loss=measures.get("loss"),
            accuracy=measures.get("accuracy"),
            samples=report.samples,
            bytes_sent=report.traffic.sent - before.sent,
            bytes_received=report.traffic.received - before.received,
            epsilon=report.epsilon,
            delta=privacy.delta if report.epsilon is not None else None,
            seconds=seconds,
            contributed=report.contributed,
            attempt=report.link.attempt,
            measures=measures,
        )
        if measures:
            self._measured(self._manifest, measures)
