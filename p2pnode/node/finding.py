"""Finding the run: in this home, by founding it, or by fetching its manifest from whoever the invite leads to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from p2pnode.config import DEFAULT_TASK, NodeConfig, RunChoice
from p2pnode.errors import InviteError, ManifestError
from p2pnode.founding import check_run, found_run, load_run
from p2pnode.home import Home, RunFiles
from p2pnode.identity import PeerIdentity
from p2pnode.invite import Invite
from p2pnode.manifest import RunManifest
from p2pnode.manifest_file import load_manifest, sign_manifest, verify_manifest
from p2pnode.node.checking import check_budget
from p2pnode.node.listening import same_port
from p2pnode.node.work import Worker
from p2pnode.replica.outer import buffers
from p2pnode.replica.roster import Roster
from p2pnode.replica.state import NO_PARENT, GlobalState
from p2pnode.sync import SyncClient
from p2pnode.transport.base import Transport, TransportOptions


@dataclass
class Run:
    """What is known once the node has found its run.

    invite: how we came into it; None if we founded it just now. ways: addresses at which others of it were, for a node
    that took part in it before; None else.
    """

    manifest: RunManifest
    signature: bytes
    files: RunFiles
    invite: Invite | None
    ways: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Way:
    """How to get into a run. bootstraps: one of them must answer. remembered: none has to."""

    run: bytes
    bootstraps: tuple[str, ...] = ()
    remembered: tuple[str, ...] = ()


def known_run(choice: RunChoice, home: Home) -> RunFiles | None:
    """The files of the run that is chosen, if this home has taken part in it. UsageError, MachineError."""
    if choice.resume is not None:
        return home.find(choice.resume)
    if choice.invite is not None:
        files = home.run(choice.invite.run_id)
        return files if files.taken_part and files.manifest.is_file() else None
    return None


def recall(files: RunFiles, home: Home, invite: Invite | None) -> Run:
    """A run of this home. invite: the one that was given just now; else the last one of our own. Blocks for seconds.

    Raises ManifestError.
    """
    manifest, signature = load_manifest(files.manifest)
    if signature is None or manifest.run_id != files.directory.name:
        raise ManifestError(f"{files.manifest}: not the signed manifest of this run any more")
    verify_manifest(manifest, signature)
    check_run(manifest)
    return _taken_up(Run(manifest, signature, files, invite), home)


def _taken_up(run: Run, home: Home) -> Run:
    """With all that is known of where others of the run were."""
    run.invite = run.invite or _own_invite(run.files)
    invited = run.invite.addresses if run.invite is not None else ()
    run.ways = tuple(dict.fromkeys((*invited, *_remembered(home, run.manifest.digest))))
    return run


def found(config: NodeConfig, home: Home, identity: PeerIdentity) -> Run:
    """The run of a manifest file, or a new one with a task's own values. Blocks for seconds.

    A run that was founded from this home before is taken up again: founding it anew would sign its first rounds a
    second time. BudgetSpent if this node could not train in it.
    """
    choice = config.run
    if choice.manifest is not None:
        manifest, signature = load_run(choice.manifest, identity, unsafe_no_privacy=choice.unsafe_no_privacy)
        check_run(manifest)
    else:
        manifest = found_run(
            choice.task or DEFAULT_TASK,
            identity.peer_id,
            unsafe_no_privacy=choice.unsafe_no_privacy,
            name=choice.name,
            data_dir=config.work.data_dir,
        )
        signature = sign_manifest(identity, manifest)
    run = Run(manifest, signature, home.run(manifest.run_id), None)
    before = run.files.taken_part or _remembered(home, manifest.digest)
    if before:
        return _taken_up(run, home)
    check_budget(manifest, home, config.work, identity.peer_id)
    return run


async def fetch(transport: Transport, invite: Invite, home: Home, log: Callable[[str], None]) -> Run:
    """The invite's run, checked against what is installed here."""
    manifest, signature = await SyncClient(transport, log).manifest(invite, invite.bootstraps)
    await asyncio.to_thread(check_run, manifest)
    run = Run(manifest, signature, home.run(manifest.run_id), invite)
    return _taken_up(run, home) if run.files.taken_part else run


def _own_invite(files: RunFiles) -> Invite | None:
    try:
        return Invite.parse(files.invite.read_text("ascii"))
    except (OSError, ValueError, InviteError):
        return None


def make_transport(
    config: NodeConfig, home: Home, identity: PeerIdentity, way: Way, log: Callable[[str], None]
) -> Transport:
    """The real transport, not started. Blocks for seconds: it imports hivemind."""
    from p2pnode.transport.hivemind import HivemindTransport

    options = TransportOptions(
        listen=same_port(config.network.listen, home.run(way.run.hex()).port),
        announce=config.network.announce,
        bootstraps=way.bootstraps,
        remembered=way.remembered or _remembered(home, way.run),
        log=log,
        debug=config.debug,
    )
    return HivemindTransport(identity, way.run, options)


def _remembered(home: Home, run_digest: bytes) -> tuple[str, ...]:
    try:
        known = json.loads(home.peers.read_text("utf-8"))[run_digest.hex()]
        return tuple(address for address in known if isinstance(address, str))[:32]
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def first_state(manifest: RunManifest, worker: Worker, identity: PeerIdentity) -> GlobalState:
    """Round 0: the founder's fresh model, its outer optimizer's buffers zero."""
    tensors = np.zeros(worker.values * (1 + buffers(manifest.training.outer)), dtype=np.float32)
    tensors[: worker.values] = worker.initial()
    roster = Roster.genesis(manifest, identity.peer_id)
    return GlobalState(manifest.digest, 0, NO_PARENT, roster, tensors, worker.values)
