"""Mechanisms as values, and what they cost."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ManifestError, PrivacyError
from p2pnode.manifest import PrivacySection
from p2pnode.privacy import accountant
from p2pnode.privacy.mechanism import (
    Gaussian,
    Mechanism,
    NoMechanism,
    SampledGaussian,
    combine,
    from_fields,
    to_fields,
)

positive = st.floats(min_value=1e-3, max_value=1e3)
mechanisms = st.one_of(
    st.builds(SampledGaussian, st.floats(min_value=1e-6, max_value=1.0), positive, st.integers(0, 10**6)),
    st.builds(Gaussian, positive, st.integers(0, 10**6)),
    st.just(NoMechanism()),
)


@given(mechanisms)
def test_a_mechanism_survives_json(mechanism: Mechanism) -> None:
    assert from_fields(to_fields(mechanism)) == mechanism


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["kind", "steps", "count", "noise_multiplier", "x"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_anything_else_is_refused_by_name(value: object) -> None:
    try:
        from_fields(value)
    except PrivacyError:
        return
    assert value == {"kind": "none"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: SampledGaussian(0.0, 1.0, 1),
        lambda: SampledGaussian(1.5, 1.0, 1),
        lambda: SampledGaussian(math.nan, 1.0, 1),
        lambda: SampledGaussian(0.5, 0.0, 1),
        lambda: SampledGaussian(0.5, math.inf, 1),
        lambda: SampledGaussian(0.5, 1.0, -1),
        lambda: Gaussian(1.0, True),
        lambda: Gaussian(-1.0, 1),
    ],
)
def test_values_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(PrivacyError):
        make()  # type: ignore[operator]


def test_combining_adds_equal_mechanisms_only() -> None:
    a, b = SampledGaussian(0.5, 2.0, 3), SampledGaussian(0.5, 2.5, 4)
    assert combine([a, b, a, Gaussian(2.0, 1), Gaussian(2.0, 2)]) == (
        SampledGaussian(0.5, 2.0, 6),
        b,
        Gaussian(2.0, 3),
    )


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert accountant.epsilon([], 1e-5) == 0
    assert accountant.epsilon([SampledGaussian(0.1, 1.0, 0)], 1e-5) == 0
    assert accountant.epsilon([Gaussian(1.0, 1), NoMechanism()], 1e-5) == math.inf


@pytest.mark.parametrize(
    ("rate", "noise", "epochs", "published"),
    # TF-Privacy's MNIST tutorial: 60,000 examples, 256 expected, delta 1e-5
    [(256 / 60000, 1.3, 15, 0.86), (256 / 60000, 1.1, 60, 2.38)],
)
def test_published_figures(rate: float, noise: float, epochs: int, published: float) -> None:
    steps = round(epochs / rate)
    assert accountant.epsilon([SampledGaussian(rate, noise, steps)], 1e-5) == pytest.approx(published, abs=0.01)


def test_one_gaussian_against_its_closed_form() -> None:
    # Balle and Wang, arXiv 1805.06083, theorem 8
    noise, delta = 1.7, 1e-5
    cost = accountant.epsilon([Gaussian(noise, 1)], delta)

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    exact = phi(0.5 / noise - cost * noise) - math.exp(cost) * phi(-0.5 / noise - cost * noise)
    assert exact == pytest.approx(delta, rel=2e-2)
    assert exact <= delta * 1.001  # the figure is never below the truth


def test_pld_and_renyi_agree_as_theory_says() -> None:
    by_pld, by_rdp = accountant.cross_check([SampledGaussian(1 / 30, 1.1225, 300)], 1e-5)
    assert by_pld <= 3.0
    assert by_pld < by_rdp < 1.3 * by_pld


def test_a_disagreement_beyond_theory_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountant, "rdp_epsilon", lambda events, delta: 0.5)
    with pytest.raises(PrivacyError, match="disagree"):
        accountant.cross_check([SampledGaussian(1 / 30, 1.1225, 300)], 1e-5)


def test_calibration_is_tight_and_on_the_safe_side() -> None:
    noise = accountant.calibrate_noise(0.5, 100, 8.0, 1e-4)
    assert noise == pytest.approx(2.8175, abs=2e-3)
    assert accountant.epsilon([SampledGaussian(0.5, noise, 100)], 1e-4) <= 8.0
    assert accountant.epsilon([SampledGaussian(0.5, noise - 1e-4, 100)], 1e-4) > 8.0
    count_noise = accountant.calibrate_gaussian(20, 4.0, 1e-5)
    assert accountant.epsilon([Gaussian(count_noise, 20)], 1e-5) <= 4.0


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_calibration_refuses_nonsense(target: float) -> None:
    with pytest.raises(PrivacyError):
        accountant.calibrate_noise(0.5, 100, target, 1e-4)


def test_a_manifests_promise_is_checked_with_figures() -> None:
    good = PrivacySection(epsilon=8.0, delta=1e-4, noise_multiplier=2.831, sampling_rate=0.5, steps=100)
    assert accountant.check_promise(good) == pytest.approx(7.95, abs=0.01)
    with pytest.raises(ManifestError, match=r"2\.5 is too small: 100 planned steps cost epsilon 9\..* 8 is promised"):
        accountant.check_promise(good.model_copy(update={"noise_multiplier": 2.5}))
    with pytest.raises(ManifestError, match="sampling_rate is 0 or missing"):
        accountant.check_promise(good.model_copy(update={"sampling_rate": 0.0}))
    node = PrivacySection(mode="node", epsilon=8.0, delta=1e-4, noise_multiplier=3.0, steps=20)
    assert accountant.check_promise(node) == accountant.epsilon([Gaussian(3.0, 20)], 1e-4)
    assert accountant.check_promise(PrivacySection(mode="none")) == math.inf


def test_epsilon_can_be_shown_every_round() -> None:
    accountant.epsilon([SampledGaussian(0.02, 1.0, 1)], 1e-5)
    began = time.perf_counter()
    for done in range(10, 1000, 100):
        accountant.epsilon([SampledGaussian(0.02, 1.0, done)], 1e-5)
    assert (time.perf_counter() - began) / 10 < 0.2
