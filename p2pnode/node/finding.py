"""Finding the run: founding it, or fetching its manifest from whoever the invite leads to."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from p2pnode.config import DEFAULT_TASK, NodeConfig
from p2pnode.errors import InviteError, MachineError, Unreachable
from p2pnode.founding import check_run, found_run, load_run
from p2pnode.home import Home, RunFiles
from p2pnode.identity import PeerIdentity
from p2pnode.invite import Invite
from p2pnode.manifest import RunManifest
from p2pnode.manifest_file import sign_manifest
from p2pnode.node.work import Worker
from p2pnode.replica.outer import buffers
from p2pnode.replica.roster import Roster
from p2pnode.replica.state import NO_PARENT, GlobalState
from p2pnode.sync import ChainLog, History, SyncClient
from p2pnode.transport.base import Transport, TransportOptions


@dataclass
class Run:
    """What is known once the node has found its run. invite: None if we founded it."""

    manifest: RunManifest
    signature: bytes
    files: RunFiles
    invite: Invite | None


def found(config: NodeConfig, home: Home, identity: PeerIdentity) -> Run:
    """A new run: from a manifest file, or a task's own values. Blocks for seconds."""
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
    return Run(manifest, signature, home.run(manifest.run_id), None)


async def fetch(transport: Transport, invite: Invite, home: Home, log: Callable[[str], None]) -> Run:
    """The invite's run, checked against what is installed here."""
    manifest, signature = await SyncClient(transport, log).manifest(invite, invite.bootstraps)
    await asyncio.to_thread(check_run, manifest)
    return Run(manifest, signature, home.run(manifest.run_id), invite)


async def sync_up(
    run: Run, invite: Invite, log: ChainLog, values: int, transport: Transport, debug: Callable[[str], None]
) -> tuple[GlobalState, History, bool]:
    """The newest state, the history from the invite's checkpoint to it, and whether a round of it is provisional."""
    client = SyncClient(transport, debug)
    known = [*invite.bootstraps, *await transport.peers()]
    peers = [peer for peer in dict.fromkeys(known) if peer != transport.peer_id]
    start = await client.checkpoint(invite, run.manifest, peers)
    history = History(start, log, run.manifest, values, time.monotonic())
    synced = await client.follow(history, run.manifest, values, peers, tip_missing=True)
    if synced is None:
        raise Unreachable("no peer could show a valid chain of certificates from the invite's checkpoint on")
    for link, record in zip(synced.links, synced.records, strict=True):
        history.append(link, record, time.monotonic())
    return synced.state, history, any(link.provisional for link in synced.links)


async def take_up(run: Run, home: Home, transport: Transport) -> Invite | None:
    """For a run that was founded from this home before, with others: our own last invite, to join it again.

    Founding it anew would sign its first rounds a second time. MachineError if nobody of it can be reached.
    """
    if not _remembered(home, run.manifest.digest):
        return None
    try:
        invite = Invite.parse(run.files.invite.read_text("ascii"))
    except (OSError, ValueError, InviteError):
        return None
    if not await transport.peers():
        raise MachineError(
            "this run was founded from this home before, and nobody of it can be reached now: "
            "try again when they are online, or make a new run with `p2pnode run create`"
        )
    return invite


def make_transport(
    config: NodeConfig,
    home: Home,
    identity: PeerIdentity,
    run_digest: bytes,
    bootstraps: tuple[str, ...],
    log: Callable[[str], None],
) -> Transport:
    """The real transport, not started. Blocks for seconds: it imports hivemind."""
    from p2pnode.transport.hivemind import HivemindTransport

    options = TransportOptions(
        listen=config.network.listen,
        announce=config.network.announce,
        bootstraps=bootstraps,
        remembered=_remembered(home, run_digest),
        log=log,
        debug=config.debug,
    )
    return HivemindTransport(identity, run_digest, options)


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
