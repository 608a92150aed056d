"""What a node releases, as values. What it costs is another matter: `accountant.py`.

The idea is dp-accounting's (`dp_event.py`): a frozen value says which noisy mechanism was applied and how often, and
knows nothing of epsilon. A new mechanism (say, noise that is split over peers under secure aggregation) is a new value
here and a new case in the accountant; ledger and trainer stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from p2pnode.errors import PrivacyError
from p2pnode.manifest import RunManifest

Mode = Literal["example", "node", "none"]


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**12:
        raise PrivacyError(f"a mechanism's {name} is a whole number from 0 to 10^12, not {value!r}")


def _multiplier(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise PrivacyError(f"a mechanism's noise_multiplier is a finite number above 0, not {value!r}")


@dataclass(frozen=True)
class SampledGaussian:
    """`steps` releases of a sum of vectors, one per example and each of L2 norm at most C, plus N(0, (noise_multiplier
    C)^2 I).

    In each step every example is taken by itself with chance `sampling_rate` (Poisson sampling, secret). Neighbours:
    data sets that differ by one example, there or not there. This is DP-SGD (arXiv 1607.00133, algorithm 1).

    Raises PrivacyError unless 0 < sampling_rate <= 1, noise_multiplier > 0 and steps >= 0.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        rate = self.sampling_rate
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise PrivacyError(f"a mechanism's sampling_rate is above 0 and at most 1, not {rate!r}")
        _multiplier(self.noise_multiplier)
        _whole("steps", self.steps)


@dataclass(frozen=True)
class Gaussian:
    """`count` releases of one vector of L2 norm at most C plus N(0, (noise_multiplier C)^2 I).

    Neighbours: a node's whole data set, there or not there (its vector is then zero). Raises PrivacyError unless
    noise_multiplier > 0 and count >= 0.
    """

    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        _multiplier(self.noise_multiplier)
        _whole("count", self.count)


@dataclass(frozen=True)
class NoMechanism:
    """A release without noise: promises nothing, and its epsilon is infinite."""


Mechanism = SampledGaussian | Gaussian | NoMechanism


@dataclass(frozen=True)
class Released:
    """What a contribution says of its own noise, under the sender's signature: the fields of `Mechanism` in
    round.proto.

    clip is the L2 bound; noise_multiplier the noise's standard deviation over it; steps the private steps that are in
    this contribution (mode `node`: 1). In mode `none` all numbers are 0.
    """

    mode: Mode
    clip: float = 0.0
    noise_multiplier: float = 0.0
    sampling_rate: float = 0.0
    steps: int = 0


def combine(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """The same releases with equal mechanisms counted together, in order of first appearance."""
    times: dict[Mechanism, int] = {}
    for mechanism in mechanisms:
        match mechanism:
            case SampledGaussian(rate, noise, steps):
                key: Mechanism = SampledGaussian(rate, noise, 0)
                times[key] = times.get(key, 0) + steps
            case Gaussian(noise, count):
                key = Gaussian(noise, 0)
                times[key] = times.get(key, 0) + count
            case NoMechanism():
                times[mechanism] = 1
    return tuple(
        SampledGaussian(key.sampling_rate, key.noise_multiplier, count)
        if isinstance(key, SampledGaussian)
        else Gaussian(key.noise_multiplier, count)
        if isinstance(key, Gaussian)
        else key
        for key, count in times.items()
    )


def to_fields(mechanism: Mechanism) -> dict[str, Any]:
    """A JSON object that `from_fields` reads back."""
    match mechanism:
        case SampledGaussian(rate, noise, steps):
            return {"kind": "sampled-gaussian", "sampling_rate": rate, "noise_multiplier": noise, "steps": steps}
        case Gaussian(noise, count):
            return {"kind": "gaussian", "noise_multiplier": noise, "count": count}
        case NoMechanism():
            return {"kind": "none"}


def from_fields(fields: object) -> Mechanism:
    """The inverse of `to_fields`. Raises PrivacyError for anything else, unknown or missing names included."""
    if not isinstance(fields, Mapping):
        raise PrivacyError(f"a mechanism is a JSON object, not {type(fields).__name__}")
    values = dict(fields)
    kinds: dict[object, type[SampledGaussian] | type[Gaussian] | type[NoMechanism]] = {
        "sampled-gaussian": SampledGaussian,
        "gaussian": Gaussian,
        "none": NoMechanism,
    }
    kind = values.pop("kind", None)
    maker = kinds.get(kind) if isinstance(kind, str) else None
    if maker is None:
        raise PrivacyError(f"no mechanism is called {kind!r}; known are {', '.join(map(str, kinds))}")
    try:
        return maker(**values)
    except TypeError:
        raise PrivacyError(f"a mechanism of kind {kind!r} has other fields than {sorted(values)}") from None


def of_round(manifest: RunManifest) -> Mechanism:
    """What one round of local work releases, as the manifest says it."""
    privacy = manifest.privacy
    if privacy.mode == "none":
        return NoMechanism()
    if privacy.mode == "node":
        return Gaussian(privacy.noise_multiplier, 1)
    return SampledGaussian(privacy.sampling_rate, privacy.noise_multiplier, manifest.training.local_steps)
