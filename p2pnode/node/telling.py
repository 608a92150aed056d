"""What the node tells of itself and of its rounds, as events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from p2pnode.errors import StorageError
from p2pnode.exchange import Adopted, Paused, RoundOutcome
from p2pnode.home import Home
from p2pnode.invite import Invite
from p2pnode.node.finding import Run
from p2pnode.round.effects import Discarded, Rejected, Waiting
from p2pnode.round.evidence import Evidence
from p2pnode.transport.base import Transport
from p2pnode.ui.events import EventSink


def tell_started(sink: EventSink, run: Run, home: Home, transport: Transport, invite: Invite) -> None:
    """The node listens and can be joined."""
    manifest, privacy = run.manifest, run.manifest.privacy
    sink.emit(
        "started",
        peer_id=transport.peer_id.text,
        run_id=manifest.run_id,
        run=manifest.name,
        task=manifest.task.name,
        invite=invite.text,
        addresses=list(transport.addresses()),
        home=str(home.path),
        privacy=privacy.mode,
        epsilon_budget=privacy.epsilon if privacy.mode != "none" else None,
        delta=privacy.delta if privacy.mode != "none" else None,
        target_rounds=manifest.training.target_rounds or None,
    )


def tell_evidence(sink: EventSink, evidence: Evidence, save: Callable[[Evidence], Path]) -> None:
    """A peer signed what convicts it. save: keeps the evidence; its file."""
    try:
        file = str(save(evidence))
    except StorageError as error:
        sink.emit("notice", text=f"evidence can't be saved: {error}")
        file = ""
    accused, digest = evidence.accused.text, evidence.digest
    sink.emit("evidence", accused=accused, clause=evidence.clause, round=evidence.round, digest=digest, file=file)


def tell_outcome(sink: EventSink, outcome: RoundOutcome, round_number: int) -> None:
    """What came of an exchange, as far as it is for a person only. round_number: the one in progress."""
    match outcome:
        case Adopted():
            state, common = outcome.state, outcome.links[0].round - 1
            sink.emit("resync", round=state.round, common=common, lost=outcome.lost, state_digest=state.digest)
        case Discarded():
            sink.emit("discarded", round=outcome.round, attempt=outcome.attempt, reason=outcome.reason)
        case Rejected():
            sink.emit("rejected", clause=outcome.clause, peer=outcome.peer.text, round=round_number)
        case Waiting():
            sink.emit("waiting", round=round_number, reason=outcome.reason)
        case Paused():
            sink.emit("notice", text=f"this node was stopped, or its machine asleep, for {outcome.seconds:.0f} s")
        case _:
            pass
