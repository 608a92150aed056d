"""The round vectors: three members and a newcomer make two rounds; then one machine is shown all kinds of messages."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from _vectors_plain import identity, manifest

from p2pnode.manifest import (
    ExchangeSection,
    LimitsSection,
    PrivacySection,
    RosterSection,
    RunManifest,
    TrainingSection,
)
from p2pnode.replica.proposal import convener_of
from p2pnode.replica.roster import Roster, RosterEntry
from p2pnode.round.effects import Committed
from p2pnode.round.frames import Kind, Send
from tests.support.vectors import Json, Replay, check_case, frame_of, replay_to, steps_of

VALUES = 1000
NEWCOMER, STRANGER = 3, 4
IDENTITIES = 9


@dataclass
class Setup:
    """A run, and who is who: numbers of identities, members in the order in which they convene round 1."""

    run: RunManifest
    order: tuple[int, int, int]
    json: Json


def run_manifest(**sections: Any) -> RunManifest:
    """Small chunks, so that parts have several; tight limits, so that they are easily passed."""
    fields: Json = {
        "training": TrainingSection(
            local_steps=5, outer={"optimizer": "nesterov", "learning_rate": 0.7, "momentum": 0.9}
        ),
        "privacy": PrivacySection(epsilon=8.0, clip=0.5, noise_multiplier=2.5, sampling_rate=0.25, steps=100),
        "exchange": ExchangeSection(weights=((2, 1), (5, 5))),
        "roster": RosterSection(company_wait=0.0, provisional_after=60.0),
        "limits": LimitsSection(contributors=5, voters=3, newcomers=1, chunk_bytes=1024),
    }
    return manifest(**(fields | sections))


def setup(run: RunManifest, excluded: tuple[int, ...] = ()) -> Setup:
    """Members 0, 1, 2."""
    members = sorted(identity(number).peer_id for number in range(3))
    out = tuple(identity(number).peer_id for number in excluded)
    roster = Roster(tuple(RosterEntry(peer, 0, 0, True) for peer in members), out)
    made: Json = {
        "manifest": run.canonical.decode("ascii"),
        "values": VALUES,
        "seeds": [identity(number).seed.hex() for number in range(IDENTITIES)],
        "roster": roster.encoded.hex(),
    }
    base = Replay(made, 0).machine.base
    numbers = {identity(number).peer_id: number for number in range(3)}
    first, second, third = (numbers[convener_of(roster, base, attempt)] for attempt in range(3))
    return Setup(run, (first, second, third), made)


@dataclass
class Stage:
    """All nodes of a setup in one process, with every step that each one takes on record."""

    setup: Setup
    nodes: tuple[int, ...]
    now: float = 0.0
    replays: dict[int, Replay] = field(default_factory=dict)
    steps: dict[int, list[Json]] = field(default_factory=dict)
    flying: list[tuple[int, int, bytes]] = field(default_factory=list)  # from, to, frame
    records: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node in self.nodes:
            self.replays[node] = Replay(self.setup.json, node)
            self.steps[node] = []

    def step(self, node: int, step: Json) -> None:
        """Do it, record it, and collect what is sent."""
        self.now = round(self.now + 0.01, 2)
        step = {"at": self.now, **step}
        verdict = self.replays[node].apply(step)
        if verdict is not None and verdict.outcome.value != "accept":
            step |= {"outcome": verdict.outcome.value, "clause": verdict.clause}
        self.steps[node].append(step)
        numbers = {identity(number).peer_id: number for number in self.nodes}
        for effect in self.replays[node].machine.drain():
            if isinstance(effect, Send):
                self.flying += [
                    (node, numbers[to], data) for to in effect.peers if to in numbers for data in effect.frames
                ]
            elif isinstance(effect, Committed):
                self.records.append(effect.certified.record)

    def offer(self, node: int) -> None:
        """Local work is done."""
        self.step(node, {"offer": True})

    def deliver(self, wanted: Callable[[int, int, Kind], bool] = lambda sender, to, kind: True) -> None:
        """Deliver what is in flight and wanted, and what comes of it, in order."""
        while True:
            for index, (sender, to, data) in enumerate(self.flying):
                if wanted(sender, to, Kind(data[0])):
                    del self.flying[index]
                    self.step(to, {"from": sender, "frame": data.hex()})
                    break
            else:
                return

    def frames(self, kind: Kind, to: int, sender: int | None = None) -> list[bytes]:
        """Frames of `kind` that `to` has received."""
        return [
            bytes.fromhex(step["frame"])
            for step in self.steps[to]
            if step.get("frame", "").startswith(f"{kind:02x}") and sender in (None, step["from"])
        ]


class Book:
    """Setups, scenes and cases as they are written down."""

    def __init__(self) -> None:
        self.data: Json = {"setups": {}, "scenes": {}, "cases": []}

    def scene(
        self, name: str, setup_name: str, node: int, steps: Iterable[Json], after: str = "", about: str = ""
    ) -> None:
        """A machine's state, reached by steps."""
        steps = list(steps)
        scenes = self.data["scenes"]
        scenes[name] = {"about": about, "setup": setup_name, "node": node, "after": after, "steps": steps}
        replay = Replay(self.data["setups"][setup_name], node)
        for step in steps_of(scenes, name):
            replay.apply(step)
        machine = replay.machine
        scenes[name]["ends"] = {"round": machine.round, "parent": machine.state.digest.hex()}
        replay_to(self.data, name)

    def case(
        self,
        scene: str,
        name: str,
        sender: int,
        frame: bytes,
        clause: str = "",
        *,
        ignore: bool = False,
        before: Iterable[Json] = (),
        at: float | None = None,
    ) -> None:
        """One frame: accepted, or ignored or rejected with `clause`. Checked at once."""
        kinds = {kind.value: kind.name.lower().replace("_", "-") for kind in Kind}
        name = f"{kinds.get(frame[0], 'frame') if frame else 'frame'}: {name}"
        before = list(before)
        last = [*steps_of(self.data["scenes"], scene), *before][-1]["at"]
        case: Json = {
            "name": name,
            "scene": scene,
            "at": round(last + 0.01, 2) if at is None else at,
            "from": sender,
            "frame": frame.hex(),
            "outcome": "accept" if not clause else "ignore" if ignore else "reject",
            "clause": clause,
        }
        if before:
            case["before"] = before
        try:
            check_case(self.data, case)
        except AssertionError as error:
            raise SystemExit(str(error)) from None
        if any(other["name"] == name for other in self.data["cases"]):
            raise SystemExit(f"two cases are named {name!r}")
        self.data["cases"].append(self._short(case))

    def _short(self, case: Json) -> Json:
        """Written as another case's frame with some bytes replaced, where that saves much."""
        data = bytes.fromhex(case["frame"])
        best: Json | None = None
        for other in self.data["cases"]:
            like = bytes.fromhex(other.get("frame", ""))
            if like[:1] != data[:1]:
                continue
            start = _common(like, data)
            behind = _common(like[start:][::-1], data[start:][::-1])
            put = data[start : len(data) - behind]
            if best is None or 2 * len(put) < len(best["put"]):
                best = {"like": other["name"], "start": start, "stop": len(like) - behind, "put": put.hex()}
        if best is None or len(data) - len(best["put"]) // 2 < 500:
            return case
        short = {key: value for key, value in case.items() if key != "frame"} | {"splice": best}
        if frame_of(self.data, short) != case["frame"]:
            raise SystemExit("a splice went wrong")
        return short


def _common(one: bytes, other: bytes) -> int:
    """Bytes that both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def vectors() -> Json:
    """All of round.json."""
    from _vectors_round_cases import all_cases

    book = Book()
    all_cases(book)
    about = "See README.md beside this file for how to replay a case."
    return {"about": about, **book.data}
