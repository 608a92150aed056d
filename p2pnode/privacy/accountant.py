"""What releases cost: epsilon at a given delta, of any list of mechanisms.

The figure that counts comes from privacy loss distributions (PLD; Koskela et al., arXiv 1906.03049; discretised
pessimistically as in Doroshenko et al., arXiv 2207.04380), computed by dp-accounting. Renyi accounting (RDP;
arXiv 1702.07476, 1908.10530) stands beside it as a cross-check: it is an upper bound too and a looser one, so a PLD
figure above it means that one of the two is wrong, and then nothing is released.

Neighbours differ by one example (or one node's data) being there or not ("add or remove one").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from p2pnode.errors import ManifestError, PrivacyError
from p2pnode.privacy.mechanism import Gaussian, Mechanism, NoMechanism, SampledGaussian

if TYPE_CHECKING:
    from p2pnode.manifest import PrivacySection

# Width of a PLD's cells. Every cell is rounded against us, so a coarse grid costs a little epsilon, never safety:
# at 300 steps 0.0001 of it, at 14,000 steps 0.009. The coarse grid answers in 20 ms, the fine one in 150 ms.
_COARSE: Final = 1e-3
_FINE: Final = 1e-4
_COARSE_STEPS: Final = 1000
_RDP_SLACK: Final = 1e-2  # relative, for the grids of both methods
_RDP_ORDERS: Final = (*range(2, 65), *range(72, 257, 8), 512, 1024)  # whole orders: exact finite sums, always converge
_MOST_NOISE: Final = 1e5


def _counted(events: Iterable[Mechanism]) -> tuple[tuple[float, float, int], ...] | None:
    """(sampling rate, noise multiplier, times) of each distinct mechanism, sorted; None if one promises nothing."""
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        match event:
            case SampledGaussian(rate, noise, steps):
                counts[(float(rate), float(noise))] += steps
            case Gaussian(noise, count):
                counts[(1.0, float(noise))] += count
            case NoMechanism():
                return None
    return tuple(sorted((rate, noise, times) for (rate, noise), times in counts.items() if times))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is above 0 and below 1, not {delta!r}")


@lru_cache(maxsize=64)
def _one(rate: float, noise: float, interval: float, pessimistic: bool) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise,
        pessimistic_estimate=pessimistic,
        value_discretization_interval=interval,
        sampling_prob=rate,
        use_connect_dots=pessimistic,  # dp-accounting has the tighter grid for the pessimistic side only
    )


@lru_cache(maxsize=256)
def _pld_epsilon(counted: tuple[tuple[float, float, int], ...], delta: float, pessimistic: bool) -> float:
    if not counted:
        return 0.0
    interval = _COARSE if sum(times for _, _, times in counted) <= _COARSE_STEPS else _FINE
    total: Any = None
    for rate, noise, times in counted:
        part = _one(rate, noise, interval, pessimistic).self_compose(times)
        total = part if total is None else total.compose(part)
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=256)
def _rdp_epsilon(counted: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if not counted:
        return 0.0
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_RDP_ORDERS)
    for rate, noise, times in counted:
        gaussian = GaussianDpEvent(noise)
        accountant.compose(gaussian if rate == 1.0 else PoissonSampledDpEvent(rate, gaussian), times)
    return float(accountant.get_epsilon(delta))


def epsilon(events: Iterable[Mechanism], delta: float) -> float:
    """The epsilon of all `events` together at `delta`, by PLD, rounded up everywhere. 0 for none, infinite for
    NoMechanism.

    Raises PrivacyError unless 0 < delta < 1.
    """
    _check_delta(delta)
    counted = _counted(events)
    return math.inf if counted is None else _pld_epsilon(counted, delta, True)


def rdp_epsilon(events: Iterable[Mechanism], delta: float) -> float:
    """The same by Renyi accounting: a looser upper bound, for cross-checks only."""
    _check_delta(delta)
    counted = _counted(events)
    return math.inf if counted is None else _rdp_epsilon(counted, delta)


def cross_check(events: Iterable[Mechanism], delta: float) -> tuple[float, float]:
    """(epsilon by PLD, epsilon by RDP). Raises PrivacyError if they stand to each other as theory forbids.

    PLD is nearly exact and RDP an upper bound, so PLD must not exceed RDP; and the optimistic PLD, a lower bound, must
    not exceed the pessimistic one.
    """
    kept = tuple(events)
    by_pld, by_rdp = epsilon(kept, delta), rdp_epsilon(kept, delta)
    if math.isinf(by_pld) and math.isinf(by_rdp):
        return by_pld, by_rdp
    counted = _counted(kept) or ()
    lower = _pld_epsilon(counted, delta, False)
    if by_pld > by_rdp * (1 + _RDP_SLACK) + 1e-3 or lower > by_pld + 1e-9:
        raise PrivacyError(
            f"two ways of accounting disagree (PLD {lower:.4f} to {by_pld:.4f}, RDP {by_rdp:.4f} at delta {delta:g}): "
            "nothing is released; please report this"
        )
    return by_pld, by_rdp


def _smallest_noise(make: Any, target: float, delta: float, what: str) -> float:
    """Least multiple of 0.0001 at which `make(noise)` costs at most `target`: bisection, for epsilon falls as noise
    grows.
    """
    _check_delta(delta)
    if not (math.isfinite(target) and target > 0):
        raise PrivacyError(f"a target epsilon is a finite number above 0, not {target!r}")

    def fits(ticks: int) -> bool:
        return epsilon([make(ticks / 10_000)], delta) <= target * (
            1 - 1e-6
        )  # other machines round a little differently

    high = 10_000
    while not fits(high):
        high *= 2
        if high > _MOST_NOISE * 10_000:
            raise PrivacyError(
                f"no noise up to {_MOST_NOISE:g} keeps {what} within epsilon {target:g}: plan fewer steps"
            )
    low = high // 2 if high > 10_000 else 1_000  # below 0.1 a Gaussian protects nothing worth the name
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high / 10_000


def calibrate_noise(sampling_rate: float, steps: int, epsilon: float, delta: float) -> float:
    """The least noise multiplier (in steps of 0.0001, at least 0.1) with which `steps` of DP-SGD cost at most `epsilon`
    at `delta`.

    Raises PrivacyError for values out of range, or if no noise is enough.
    """
    if steps < 1:
        raise PrivacyError(f"private steps planned is at least 1, not {steps}")
    what = f"{steps} steps at sampling rate {sampling_rate:g}"
    return _smallest_noise(lambda noise: SampledGaussian(sampling_rate, noise, steps), epsilon, delta, what)


def calibrate_gaussian(count: int, epsilon: float, delta: float) -> float:
    """The same for `count` whole updates in mode `node`."""
    if count < 1:
        raise PrivacyError(f"updates planned is at least 1, not {count}")
    return _smallest_noise(lambda noise: Gaussian(noise, count), epsilon, delta, f"{count} updates")


def planned(privacy: PrivacySection) -> Mechanism:
    """All that a manifest's privacy section plans to release, over the whole run.

    Raises ManifestError if a mode that needs noise lacks a figure.
    """
    if privacy.mode == "none":
        return NoMechanism()
    missing = [
        name
        for name, value in (
            ("clip", privacy.clip),
            ("noise_multiplier", privacy.noise_multiplier),
            ("sampling_rate", privacy.sampling_rate if privacy.mode == "example" else 1.0),
            ("steps", privacy.steps),
            ("epsilon", privacy.epsilon),
            ("delta", privacy.delta),
        )
        if not value
    ]
    if missing:
        raise ManifestError(f"privacy.{missing[0]} is 0 or missing: mode {privacy.mode!r} needs it above 0")
    if privacy.mode == "node":
        return Gaussian(privacy.noise_multiplier, privacy.steps)
    return SampledGaussian(privacy.sampling_rate, privacy.noise_multiplier, privacy.steps)


def check_promise(privacy: PrivacySection) -> float:
    """The epsilon that the planned steps cost (infinite in mode `none`). Raises ManifestError if it is above the
    promised one.
    """
    mechanism = planned(privacy)
    if isinstance(mechanism, NoMechanism):
        return math.inf
    cost, _ = cross_check([mechanism], privacy.delta)
    if cost > privacy.epsilon:
        times = "steps" if privacy.mode == "example" else "updates"
        raise ManifestError(
            f"privacy.noise_multiplier {privacy.noise_multiplier:g} is too small: {privacy.steps} planned {times} cost "
            f"epsilon {cost:.4f} at delta {privacy.delta:g}, and epsilon {privacy.epsilon:g} is promised"
        )
    return cost
