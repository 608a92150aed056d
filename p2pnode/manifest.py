"""The manifest: all that the peers of a run must agree on. Its digest is the run id; its author signs it.

Nothing in it names code to run: a task is a name that the node has installed.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Final, Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field

PROTOCOL_VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 256 * 1024

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
    task: TaskSection
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection = PrivacySection()
    exchange: ExchangeSection = ExchangeSection()
    roster: RosterSection = RosterSection()
    limits: LimitsSection = LimitsSection()
    deadlines: DeadlinesSection = DeadlinesSection()

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
