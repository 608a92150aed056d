"""Noise and sampling: the right distribution, secret, and each check shown to catch its mutant."""

from __future__ import annotations

import copy
import math
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import PrivacyError
from p2pnode.privacy.noise import NoiseSource, UnsafeSeededNoise, add_noise, grid

COUNT = 1_000_000


def problems(noise: np.ndarray, deviation: float) -> list[str]:
    """What is wrong with values that claim to be N(0, deviation^2); every bound is near 5 standard errors."""
    x = noise.astype(np.float64) / deviation
    n = len(x)
    if x.std() == 0:
        return ["constant"]
    found = []
    if abs(x.mean()) > 5 / math.sqrt(n):
        found.append("mean")
    if abs(x.var() - 1) > max(5 * math.sqrt(2 / n), 0.005):
        found.append("variance")
    for order, expected, spread in ((3, 0.0, math.sqrt(15)), (4, 3.0, math.sqrt(96))):
        if not abs((x**order).mean() - expected) <= 5 * spread / math.sqrt(n):
            found.append(f"moment {order}")
    ordered = np.sort(x)
    normal = 0.5 * torch.erfc(-torch.from_numpy(ordered) / math.sqrt(2)).numpy()
    if np.abs(normal - (np.arange(n) + 0.5) / n).max() > 2.6 / math.sqrt(n):  # Kolmogorov and Smirnov: 1 in 400,000
        found.append("distribution")
    if abs(np.corrcoef(x[:-1], x[1:])[0, 1]) > 5 / math.sqrt(n):
        found.append("neighbours")
    half = n // 2
    if abs(np.corrcoef(x[:half], x[half : 2 * half])[0, 1]) > 5 / math.sqrt(half):
        found.append("pairs")
    return found


def correlated(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(abs(np.corrcoef(a, b)[0, 1]) > 5 / math.sqrt(len(a)))


def test_noise_is_normal_of_the_right_size_and_two_nodes_are_uncorrelated() -> None:
    deviation = 0.37
    one, two = NoiseSource(), NoiseSource()
    sent = torch.linspace(-1, 1, COUNT)
    a = (add_noise(sent, deviation, one).double() - sent).numpy()
    b = (add_noise(sent, deviation, two).double() - sent).numpy()
    again = (add_noise(sent, deviation, one).double() - sent).numpy()
    assert problems(a, deviation) == []
    assert problems(b, deviation) == []
    assert not correlated(a, b)
    assert not correlated(a, again)


@pytest.mark.parametrize("mutant", ["off", "halved", "uniform", "repeated"])
def test_wrong_noise_is_caught(mutant: str) -> None:
    right = NoiseSource().normals(COUNT).numpy()
    wrong = {
        "off": np.zeros(COUNT),
        "halved": right / 2,
        "uniform": (np.random.default_rng(1).random(COUNT) - 0.5) * math.sqrt(12),
        "repeated": np.tile(right[: COUNT // 2], 2),
    }[mutant]
    assert problems(wrong, 1.0)


def test_a_reused_seed_is_caught() -> None:
    a, b = UnsafeSeededNoise(7).normals(10_000).numpy(), UnsafeSeededNoise(7).normals(10_000).numpy()
    assert correlated(a, b)
    assert not UnsafeSeededNoise(7).secure
    assert NoiseSource().secure


@given(st.integers(0, 70_001))
def test_any_number_of_values(count: int) -> None:
    values = UnsafeSeededNoise(count).normals(count)
    assert values.shape == (count,)
    assert bool(torch.isfinite(values).all())


def test_noisy_values_lie_on_the_grid_whatever_the_data() -> None:
    deviation = 0.3
    step = grid(deviation)
    assert step <= deviation * 2**-20 < 2 * step
    source = NoiseSource()
    for data in (torch.zeros(10_000), torch.rand(10_000) * 1e-6, torch.randn(10_000)):
        cells = add_noise(data, deviation, source).double() / step
        assert bool((cells == cells.round()).all())


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf])
def test_no_noise_is_refused(deviation: float) -> None:
    with pytest.raises(PrivacyError):
        add_noise(torch.zeros(3), deviation, NoiseSource())


def test_sampling_takes_each_example_with_its_chance_and_apart() -> None:
    source, rate, draws, examples = NoiseSource(), 0.3, 2000, 500
    taken = np.stack([source.mask(examples, rate) for _ in range(draws)]).astype(np.float64)
    assert taken.mean() == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / taken.size))
    # Poisson sampling: the batch's size varies as a binomial does, and no example is favoured
    sizes = taken.sum(1)
    assert sizes.var() == pytest.approx(examples * rate * (1 - rate), rel=0.2)
    each = np.abs(taken.mean(0) - rate) / math.sqrt(rate * (1 - rate) / draws)
    assert each.max() < 5
    assert abs(np.corrcoef(taken[:, 0], taken[:, 1])[0, 1]) < 5 / math.sqrt(draws)
    assert source.mask(100, 1.0).all()
    assert not source.mask(100, 0.0).any()


def test_the_key_stays_inside() -> None:
    source = NoiseSource()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PrivacyError):
            attempt(source)
    assert repr(source) == "<NoiseSource>"


def _draw(source: NoiseSource, results: object) -> None:
    results.put(source.normals(100).numpy().tobytes())  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_child_draws_other_noise() -> None:
    context = multiprocessing.get_context("fork")
    source, results = NoiseSource(), context.Queue()
    child = context.Process(target=_draw, args=(source, results))
    child.start()
    theirs = results.get(timeout=30)
    child.join(30)
    assert theirs != source.normals(100).numpy().tobytes()
