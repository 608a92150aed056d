"""A rule breaker over real hivemind against two honest node processes: refused by name, and the model untouched."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from p2pnode.codec.plain import Float32Codec
from p2pnode.identity import PeerId
from p2pnode.messages import ENTRY
from p2pnode.round.frames import Kind
from p2pnode.round.rules import Rules
from p2pnode.swarm.process import NodeProcess
from p2pnode.training.parameters import schema_of
from p2pnode.training.registry import find_task
from p2pnode.wire.envelope_pb2 import Envelope
from p2pnode.wire.round_pb2 import Chunk
from tests.support.rogue import Rogue
from tests.support.swarm import QUICK, Swarm

pytestmark = pytest.mark.integration


def flip_chunk(kind: Kind, payload: bytes) -> bytes:
    if kind is not Kind.CHUNK:
        return payload
    chunk = Chunk.FromString(payload)
    data = bytearray(chunk.data)
    data[5] ^= 1
    chunk.data = bytes(data)
    return chunk.SerializeToString()


def forge_signature(kind: Kind, payload: bytes) -> bytes:
    if kind is not Kind.COMMITMENT:
        return payload
    envelope = Envelope.FromString(payload)
    signature = bytearray(envelope.signature)
    signature[10] ^= 1
    envelope.signature = bytes(signature)
    return envelope.SerializeToString(deterministic=True)


def model_size() -> int:
    return sum(spec.size for spec in schema_of(find_task("digits").model()))


async def assert_refused(node: NodeProcess, clause: str, rogue: Rogue, seconds: float = 45) -> None:
    me = rogue.identity.peer_id.text

    def ours(event: dict[str, object]) -> bool:
        return event["clause"] == clause and event["peer"] == me

    await asyncio.to_thread(node.wait_for, "rejected", seconds=seconds, where=ours)


def attack(folder: Path, fight: Callable[[Rogue, Swarm], Awaitable[None]]) -> None:
    """Two honest nodes, then the rogue; afterwards the honest ones must still agree, and go on."""
    with Swarm(folder, (*QUICK, "roster.start_with=2")) as swarm:
        honest = [swarm.start(), swarm.start()]
        for node in honest:
            node.wait_for("round", seconds=60, where=lambda event: event["voters"] == 2)

        async def go() -> None:
            async with Rogue(folder, honest[0].invite, model_size()) as rogue:
                await fight(rogue, swarm)
                await asyncio.sleep(0.5)
                assert not any(number in rogue.counted for number in rogue.counted[-1:] if rogue.transport.tamper)

        asyncio.run(asyncio.wait_for(go(), 120))
        at = max(node.last("round")["round"] for node in honest)
        for node in honest:
            node.wait_round(at + 3, seconds=30)
            assert not any(event["provisional"] for event in node.of("round"))
        swarm.assert_one_history()
        finite = [event["loss"] for node in honest for event in node.of("round")]
        assert all(loss is not None and loss < 10 for loss in finite)


@pytest.mark.parametrize(("tamper", "clause"), [(flip_chunk, "chunk-proof"), (forge_signature, "envelope-signature")])
def test_tampering_is_refused_by_name(tmp_path: Path, tamper: Callable[[Kind, bytes], bytes], clause: str) -> None:
    async def fight(rogue: Rogue, swarm: Swarm) -> None:
        rogue.transport.tamper = tamper
        await assert_refused(swarm.nodes[0], clause, rogue)
        assert rogue.transport.fired

    attack(tmp_path, fight)


@pytest.mark.parametrize(("value", "clause"), [(np.nan, "value-form"), (np.inf, "value-form"), (1e30, "value-bound")])
def test_bad_values_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, clause: str
) -> None:
    # The rogue's own checks are off: it signs and proves what no honest client would.
    monkeypatch.setattr(Rules, "check_update", lambda self, update: None)
    monkeypatch.setattr(Rules, "check_rms", lambda self, squares, count: None)
    monkeypatch.setattr(Float32Codec, "encode", lambda self, values: values.astype("<f4").tobytes())

    async def fight(rogue: Rogue, swarm: Swarm) -> None:
        rogue.update = np.full(rogue.values, value, dtype=np.float32)
        await assert_refused(swarm.nodes[0], clause, rogue)

    attack(tmp_path, fight)


def test_replays_and_foreign_runs_are_refused_by_name(tmp_path: Path) -> None:
    async def fight(rogue: Rogue, swarm: Swarm) -> None:
        victim = PeerId.from_text(swarm.nodes[0].last("started")["peer_id"])
        await rogue.counted_in(2)
        old = next(data for sender, data in rogue.heard if data[0] == Kind.VOTE and sender != victim)
        await rogue.send(victim, Kind.VOTE, old[1:])
        await assert_refused(swarm.nodes[0], "sender-mismatch", rogue)

        machine = rogue.exchange.machine
        entry = ENTRY.open(rogue.transport.last_entry)
        foreign = type(entry.message).FromString(entry.message.SerializeToString())
        foreign.slot.run = bytes(32)
        await rogue.send(victim, Kind.ENTRY, ENTRY.seal(rogue.identity, foreign).raw)
        await assert_refused(swarm.nodes[0], "slot-run", rogue)

        from p2pnode.round.effects import Outcome

        stale = type(entry.message).FromString(entry.message.SerializeToString())
        stale.slot.round = 1
        verdict = machine.receive(
            rogue.identity.peer_id, bytes((Kind.ENTRY,)) + ENTRY.seal(rogue.identity, stale).raw, 0.0
        )
        assert (verdict.outcome, verdict.clause) == (Outcome.IGNORE, "slot-stale")

    attack(tmp_path, fight)


def test_two_entries_for_one_slot_convict_and_exclude(tmp_path: Path) -> None:
    async def fight(rogue: Rogue, swarm: Swarm) -> None:
        victim = PeerId.from_text(swarm.nodes[0].last("started")["peer_id"])
        me = rogue.identity.peer_id
        while me not in rogue.exchange.machine.state.roster.known:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        proven = asyncio.create_task(
            asyncio.to_thread(
                swarm.nodes[0].wait_for, "evidence", seconds=45, where=lambda event: event["accused"] == me.text
            )
        )
        while not proven.done():  # until both of one slot meet at the victim
            entry = ENTRY.open(rogue.transport.last_entry)
            other = type(entry.message).FromString(entry.message.SerializeToString())
            other.bandwidth += 1
            await rogue.send(victim, Kind.ENTRY, ENTRY.seal(rogue.identity, other).raw)
            await asyncio.sleep(0.02)
        event = await proven
        assert event["clause"] == "entry-equivocation"
        command = [sys.executable, "-m", "p2pnode", "evidence", "verify", event["file"]]
        shown = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0 and me.text in shown.stdout, shown.stderr
        await assert_refused(swarm.nodes[1], "entry-excluded", rogue)
        await assert_refused(swarm.nodes[0], "entry-excluded", rogue)

    attack(tmp_path, fight)


def test_an_oversized_frame_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fight(rogue: Rogue, swarm: Swarm) -> None:
        victim = PeerId.from_text(swarm.nodes[0].last("started")["peer_id"])
        await rogue.send(victim, Kind.ENTRY, bytes(900_000))  # over its kind's limit, under the transport's
        await assert_refused(swarm.nodes[0], "frame-size", rogue)

    attack(tmp_path, fight)
