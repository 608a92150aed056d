"""Replays the round vectors (protocols/vectors/round.json) on real round machines. See protocols/vectors/README.md.

Used by the tests, and by `scripts/make-vectors` to make sure that what it writes is so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from blake3 import blake3

from p2pnode.identity import PeerIdentity
from p2pnode.manifest import RunManifest
from p2pnode.replica.chain import Link
from p2pnode.replica.outer import buffers
from p2pnode.replica.roster import Roster
from p2pnode.replica.state import NO_PARENT, GlobalState
from p2pnode.round.contribution import Update
from p2pnode.round.effects import Verdict
from p2pnode.round.machine import RoundMachine
from p2pnode.round.progress import Durable
from p2pnode.round.rules import Rules
from p2pnode.wire.chain_pb2 import Roster as RosterMessage
from p2pnode.wire.round_pb2 import Mechanism

Json = dict[str, Any]


def vector_update(node: int, manifest: RunManifest, values: int) -> Update:
    """What node number `node` offers: values[j] = (((37 j + 101 node) mod 129) - 64) / 1024, all local steps done."""
    numbers = (np.arange(values) * 37 + 101 * node) % 129 - 64
    privacy = manifest.privacy
    mechanism = Mechanism(mode=privacy.mode)
    if privacy.mode != "none":
        mechanism = Mechanism(
            mode=privacy.mode,
            clip=privacy.clip,
            noise_multiplier=privacy.noise_multiplier,
            sampling_rate=privacy.sampling_rate,
            steps=manifest.training.local_steps,
        )
    return Update(numbers.astype(np.float32) / np.float32(1024), manifest.training.local_steps, mechanism)


def vector_random(node: int) -> Callable[[int], bytes]:
    """The n-th call for k bytes gives k bytes of BLAKE3("p2pnode.vector" + node (1 byte) + n (8 bytes))."""
    calls = 0

    def draw(count: int) -> bytes:
        nonlocal calls
        seed = b"p2pnode.vector" + bytes((node,)) + calls.to_bytes(8, "big")
        calls += 1
        return blake3(seed).digest(length=count)

    return draw


class Replay:
    """One machine of a setup, brought somewhere step by step."""

    def __init__(self, setup: Json, node: int) -> None:
        self.manifest = RunManifest.from_canonical(setup["manifest"].encode())
        self.values = int(setup["values"])
        self.identities = [PeerIdentity.from_seed(bytes.fromhex(seed)) for seed in setup["seeds"]]
        roster = Roster.from_message(RosterMessage.FromString(bytes.fromhex(setup["roster"])))
        size = self.values * (1 + buffers(self.manifest.training.outer))
        zeros = np.zeros(size, dtype=np.float32)
        self.genesis = GlobalState(self.manifest.digest, 0, NO_PARENT, roster, zeros, self.values)
        self.node = node
        self.machine = RoundMachine(
            Rules(self.manifest, self.values),
            self.identities[node],
            Link.of(self.genesis),
            self.genesis,
            Durable(),
            vector_random(node),
            0.0,
        )

    def apply(self, step: Json) -> Verdict | None:
        """One step of a scene or a case; the verdict if it is an inbound frame."""
        machine, at = self.machine, float(step["at"])
        if "offer" in step:
            update = vector_update(self.node, self.manifest, self.values) if step["offer"] else None
            machine.offer(update, at)
            return None
        if "frame" in step:
            sender = self.identities[step["from"]].peer_id
            return machine.receive(sender, bytes.fromhex(step["frame"]), at)
        machine.tick(at)
        return None


def steps_of(scenes: Json, name: str) -> list[Json]:
    """All steps to a scene, with those of the scenes that it comes after."""
    scene = scenes[name]
    before = steps_of(scenes, scene["after"]) if scene.get("after") else []
    return before + scene["steps"]


def replay_to(data: Json, name: str) -> Replay:
    """A machine in the scene `name`. AssertionError if a step on the way ends otherwise than it should."""
    scene = data["scenes"][name]
    replay = Replay(data["setups"][scene["setup"]], scene["node"])
    for step in steps_of(data["scenes"], name):
        check(replay, step, f"scene {name}")
    ends = scene["ends"]
    found = (replay.machine.round, replay.machine.state.digest.hex())
    assert found == (ends["round"], ends["parent"]), f"scene {name} ends in {found}"
    return replay


def check(replay: Replay, step: Json, where: str) -> None:
    """Apply a step and compare its verdict, if it has one."""
    verdict = replay.apply(step)
    if verdict is not None:
        found = (verdict.outcome.value, verdict.clause)
        due = (step.get("outcome", "accept"), step.get("clause", ""))
        assert found == due, f"{where}: {found} where {due} is due"


def frame_of(data: Json, case: Json) -> str:
    """A case's frame in hexadecimal: written out, or as another case's with some bytes replaced."""
    if "splice" not in case:
        return str(case["frame"])
    splice = case["splice"]
    like = next(other["frame"] for other in data["cases"] if other["name"] == splice["like"])
    return str(like[: 2 * splice["start"]] + splice["put"] + like[2 * splice["stop"] :])


def check_case(data: Json, case: Json) -> None:
    """Replay one case. AssertionError if it ends otherwise than it should."""
    case = case | {"frame": frame_of(data, case)}
    replay = replay_to(data, case["scene"])
    for step in case.get("before", []):
        check(replay, step, f"before {case['name']}")
    check(replay, case, case["name"])
