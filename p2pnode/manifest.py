"""The manifest: all that the peers of a run must agree on. Its digest is the run id; its author signs it.

Nothing in it names code to run: a task is a name that the node has installed.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Final, Literal, Self

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from p2pnode.errors import ManifestError
from p2pnode.identity import PeerId

PROTOCOL_VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_PARAMETERS: Final = 64
MAX_PARAMETER_CHARS: Final = 500
MAX_INTEGER: Final = 2**53  # of a parameter: beyond, not every reader of JSON agrees
MAX_WEIGHT: Final = 1_000_000

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PeerText = Annotated[str, Field(pattern=r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0.1, le=86_400, allow_inf_nan=False)]


class Section(BaseModel):
    """Frozen; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class TaskSection(Section):
    """What is learned, from which data."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    data_digest: Digest  # of the whole data set, see training/data.py
    schema_digest: Digest  # of the model's tensor names and shapes, in canonical order
    parameters: dict[str, bool | int | Finite | str] = {}


class OuterSection(Section):
    """How the averaged update changes the global state (numpy only: replica/outer.py)."""

    optimizer: Literal["plain", "nesterov"] = "plain"
    learning_rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainingSection(Section):
    """Local work of one round."""

    local_steps: Annotated[int, Field(ge=1, le=100_000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64  # without privacy; with it, see sampling_rate
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of local sgd; its buffer stays on the node over rounds
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    schedule_final: Annotated[float, Field(ge=0, le=1)] = 0.1  # last learning rate over first
    target_rounds: Annotated[int, Field(ge=0, le=100_000_000)] = 0  # 0: no end
    target_metric: Annotated[str, Field(pattern=r"^$|^[a-z_0-9]+(>=|<=)[0-9.eE+-]+$")] = ""
    evaluate_every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    outer: OuterSection = OuterSection()


class PrivacySection(Section):
    """What each node promises to its own data. `none` must have been asked for with --unsafe-no-privacy."""

    mode: Literal["example", "node", "none"] = "example"
    epsilon: Annotated[float, Field(ge=0, le=1000)] = 8.0  # the most that a node spends in this run
    delta: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    clip: Annotated[float, Field(ge=0, le=1e6)] = 1.0  # L2 norm of one example's gradient (node: of the update)
    noise_multiplier: Annotated[float, Field(ge=0, le=1e6)] = 0.0  # standard deviation of the noise over clip
    sampling_rate: Annotated[float, Field(ge=0, le=1)] = 0.0  # Poisson sampling: each example's chance in a step
    steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0  # private steps planned for the whole run


class ExchangeSection(Section):
    """How updates are encoded, bounded, weighted and combined."""

    codec: Literal["float32", "float16"] = "float32"
    aggregation: Literal["mean"] = "mean"
    max_abs: Positive = 10.0  # beyond is REJECT
    max_rms: Positive = 1.0  # of a part
    # [least local steps, weight] in ascending order; fewer steps than the first row's: no contribution
    weights: Annotated[tuple[tuple[int, int], ...], Field(min_length=1, max_length=16)] = ((1, 1),)


class RosterSection(Section):
    """Who takes part, and who votes."""

    admission: Literal["open", "list"] = "open"
    peers: Annotated[tuple[PeerText, ...], Field(max_length=4096)] = ()  # with `list`: nobody else contributes
    anchors: Annotated[tuple[PeerText, ...], Field(max_length=32)] = ()  # with any: they are the roster, always
    probation: Annotated[int, Field(ge=0, le=10_000)] = 2  # rounds with accepted contributions before a vote
    window: Annotated[int, Field(ge=2, le=10_000)] = 16  # rounds without a committed entry before leaving
    provisional_after: Seconds = 60.0
    start_with: Annotated[int, Field(ge=1, le=64)] = 1  # contributors that round 1 waits for
    # Seconds that a node which is alone waits for company before each round but the first: or it would spend its
    # privacy budget, and the run's rounds, before anybody has had the time to join.
    company_wait: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 30.0


class LimitsSection(Section):
    """Bounds on every dimension that a peer can stretch."""

    contributors: Annotated[int, Field(ge=1, le=64)] = 64
    voters: Annotated[int, Field(ge=1, le=32)] = 32
    newcomers: Annotated[int, Field(ge=1, le=64)] = 4  # admitted a round
    chunk_bytes: Annotated[int, Field(ge=1024, le=128 * 1024, multiple_of=64)] = 128 * 1024


class DeadlinesSection(Section):
    """The longest waits of an attempt; peers that are known to be gone are not waited for."""

    gather: Seconds = 20.0
    contribute: Seconds = 30.0
    close: Seconds = 30.0
    vote: Seconds = 20.0


class RunManifest(Section):
    """A run. Immutable; two peers are in the same run if and only if their `run_id`s are equal."""

    protocol: Literal[1] = PROTOCOL_VERSION
    name: Annotated[str, Field(min_length=1, max_length=100)]
    author: PeerText
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""  # tells two runs apart that are else the same
    task: TaskSection
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection = PrivacySection()
    exchange: ExchangeSection = ExchangeSection()
    roster: RosterSection = RosterSection()
    limits: LimitsSection = LimitsSection()
    deadlines: DeadlinesSection = DeadlinesSection()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in inconsistencies(self):
            raise ValueError(problem)
        return self

    @classmethod
    def from_canonical(cls, data: bytes) -> RunManifest:
        """What a peer sent as a manifest: its size is checked first, and it must be the very bytes of `canonical`.

        Raises ManifestError. Whether it is the run that is wanted is for the caller to see: compare `digest`.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ManifestError(f"a manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
        try:
            manifest = cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise ManifestError(f"not a manifest: {where}: {first['msg']}"[:300]) from None
        if manifest.canonical != data:
            raise ManifestError("not a manifest in canonical form")
        return manifest

    @cached_property
    def canonical(self) -> bytes:
        """The bytes that are hashed, signed and sent: JSON, keys sorted, no spaces, ASCII."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        ).encode("ascii")

    @cached_property
    def digest(self) -> bytes:
        """BLAKE3 of `canonical`, 32 bytes: the run id."""
        return blake3(self.canonical).digest()

    @property
    def run_id(self) -> str:
        """`digest` in hexadecimal."""
        return self.digest.hex()


def inconsistencies(manifest: RunManifest) -> Iterator[str]:
    """What fields that are each allowed say wrongly together, as "field: found ..., must be ..."."""
    yield from _wrong_text(manifest)
    yield from _wrong_training(manifest.training, private_steps=manifest.privacy.steps)
    yield from _wrong_privacy(manifest.privacy)
    yield from _wrong_exchange(manifest.exchange, manifest.training.local_steps)
    yield from _wrong_roster(manifest.roster, manifest.limits, manifest.author)


def _wrong_text(manifest: RunManifest) -> Iterator[str]:
    if not manifest.name.isprintable() or manifest.name != manifest.name.strip():
        yield "name: found control characters or spaces at an end, must be printable text"
    yield from _wrong_peers("author", (manifest.author,))
    parameters = manifest.task.parameters
    if len(parameters) > MAX_PARAMETERS:
        yield f"task.parameters: found {len(parameters)}, at most {MAX_PARAMETERS} are allowed"
    for name, value in parameters.items():
        if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) is None:
            yield f"task.parameters: found the name {name[:64]!a}, must be lower-case letters, digits and _"
        if isinstance(value, str) and not (len(value) <= MAX_PARAMETER_CHARS and value.isprintable()):
            yield f"task.parameters.{name}: must be printable text of at most {MAX_PARAMETER_CHARS} characters"
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            yield f"task.parameters.{name}: found {value}, must be from -2^53 to 2^53"


def _wrong_training(training: TrainingSection, private_steps: int) -> Iterator[str]:
    if training.optimizer != "sgd" and training.momentum > 0:
        yield f'training.momentum: found {training.momentum}, must be 0 with optimizer "{training.optimizer}"'
    if training.schedule != "constant" and not training.target_rounds and not private_steps:
        yield 'training.target_rounds: found 0, schedule "cosine" needs an end: must be at least 1'
    if training.target_metric:
        try:
            float(re.split("[<>]=", training.target_metric)[1])
        except ValueError:
            yield f'training.target_metric: found "{training.target_metric}", must be like accuracy>=0.95'
    outer = training.outer
    if outer.optimizer == "plain" and outer.momentum > 0:
        yield f'training.outer.momentum: found {outer.momentum}, must be 0 with optimizer "plain"'
    if outer.optimizer == "nesterov" and outer.momentum == 0:
        yield 'training.outer.momentum: found 0, must be above 0 with optimizer "nesterov"'


def _wrong_privacy(privacy: PrivacySection) -> Iterator[str]:
    needed = ["epsilon", "delta", "clip", "noise_multiplier", "steps"]
    if privacy.mode == "example":
        needed.append("sampling_rate")
    if privacy.mode != "none":
        for name in needed:
            if not getattr(privacy, name) > 0:
                yield f'privacy.{name}: found {getattr(privacy, name)}, must be above 0 with mode "{privacy.mode}"'
    else:
        for name in ("noise_multiplier", "sampling_rate", "steps"):
            if getattr(privacy, name) > 0:
                yield f'privacy.{name}: found {getattr(privacy, name)}, must be 0 with mode "none"'


def _wrong_exchange(exchange: ExchangeSection, local_steps: int) -> Iterator[str]:
    if exchange.max_rms > exchange.max_abs:
        yield f"exchange.max_rms: found {exchange.max_rms}, must be at most max_abs ({exchange.max_abs})"
    rows = exchange.weights
    for steps, weight in rows:
        if steps < 1 or not 1 <= weight <= MAX_WEIGHT:
            yield f"exchange.weights: found [{steps}, {weight}], must be from 1, and weights up to {MAX_WEIGHT}"
    if any(later[0] <= row[0] or later[1] < row[1] for row, later in itertools.pairwise(rows)):
        yield f"exchange.weights: found {[list(row) for row in rows]}, must be in ascending order"
    if rows[0][0] > local_steps:
        yield f"exchange.weights: the first row asks for {rows[0][0]} steps, must be at most {local_steps}"


def _wrong_roster(roster: RosterSection, limits: LimitsSection, author: str) -> Iterator[str]:
    yield from _wrong_peers("roster.peers", roster.peers)
    yield from _wrong_peers("roster.anchors", roster.anchors)
    if len(roster.anchors) > limits.voters:
        yield f"roster.anchors: found {len(roster.anchors)}, must be at most limits.voters ({limits.voters})"
    if roster.start_with > limits.contributors:
        most = limits.contributors
        yield f"roster.start_with: found {roster.start_with}, must be at most limits.contributors ({most})"
    if limits.voters > limits.contributors:
        yield f"limits.voters: found {limits.voters}, must be at most limits.contributors ({limits.contributors})"
    if roster.admission == "list" and not roster.peers:
        yield 'roster.peers: found none, must name at least one with admission "list"'
    if roster.admission == "open" and roster.peers:
        yield f'roster.peers: found {len(roster.peers)}, must be empty with admission "open"'
    if roster.admission == "list":
        first = roster.anchors or (author,)  # who votes on the first round
        for peer in first:
            if peer not in roster.peers:
                yield f"roster.peers: {peer} is missing, must hold {'the anchors' if roster.anchors else 'the author'}"


def _wrong_peers(where: str, peers: tuple[str, ...]) -> Iterator[str]:
    if len(set(peers)) != len(peers):
        yield f"{where}: found a peer twice, must name each once"
    for peer in peers:
        try:
            PeerId.from_text(peer)
        except ValueError:
            yield f'{where}: found "{peer}", must be a peer id (12D3KooW...)'
