"""What a node does last: stays until the others have its last round too, and saves the result."""

from __future__ import annotations

import asyncio

from p2pnode.errors import NetworkError, PeerFault
from p2pnode.exchange import GradientExchange
from p2pnode.node.finding import Run
from p2pnode.node.work import Measured, Worker, as_lists
from p2pnode.replica.state import GlobalState
from p2pnode.results import Outcome, write_outcome
from p2pnode.sync import SyncClient
from p2pnode.transport.base import Transport
from p2pnode.ui.events import EventSink


async def linger(exchange: GradientExchange, transport: Transport, deadline: float) -> None:
    """All may leave at once: stay until whoever was with us in the last round has it too, or is gone.

    deadline: the event loop's time, at the latest.
    """
    client, machine = SyncClient(transport), exchange.machine
    state = machine.state
    waiting = {*machine.link.contributors, *state.roster.members} - {transport.peer_id}
    while waiting and asyncio.get_running_loop().time() < deadline:
        for peer in sorted(waiting):
            try:
                behind = peer not in machine.gone and (await client.status(peer)).round < state.round
            except (NetworkError, PeerFault):
                behind = False
            if not behind:
                waiting.discard(peer)
        if waiting:
            await asyncio.sleep(0.1)


async def save(
    sink: EventSink, run: Run, worker: Worker, state: GlobalState, measured: Measured, epsilon: float | None
) -> None:
    """Write the model and its measures, and tell them."""
    outcome = Outcome(
        run.manifest,
        run.signature,
        worker.tensors(state.parameters),
        state.round,
        state.digest,
        measured.measures,
        as_lists(measured.confusion),
        epsilon,
        run.manifest.privacy.delta if epsilon is not None else None,
    )
    await asyncio.to_thread(write_outcome, run.files, outcome)
    sink.emit(
        "result",
        measures=dict(measured.measures),
        confusion=as_lists(measured.confusion),
        model=str(run.files.model),
        round=state.round,
        state_digest=state.digest,
    )
