"""The built-in tasks and the registry that finds them."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from p2pnode.config import Share
from p2pnode.errors import DataError, TaskError
from p2pnode.identity import PeerId
from p2pnode.manifest import RunManifest, TaskSection
from p2pnode.privacy import accountant
from p2pnode.privacy.ledger import Ledger
from p2pnode.tasks.digits import Digits, oriented_filters
from p2pnode.tasks.mnist import shifted
from p2pnode.training import registry
from p2pnode.training.clipping import ClippedSum
from p2pnode.training.data import cache_folder, check_split, fingerprint, take_share
from p2pnode.training.local import LocalTrainer
from p2pnode.training.parameters import FlatModel, schema_digest, schema_of
from p2pnode.training.registry import find_task, read_parameters, task_names

MNIST = ("mnist-cnn", "mnist-cnn-private", "mnist-deep-cnn", "mnist-mlp")
SIZES = {
    "digits": 1_290,
    "mnist-cnn": 693_962,
    "mnist-cnn-private": 26_010,
    "mnist-deep-cnn": 93_322,
    "mnist-mlp": 648_010,
}


def manifest(name: str, data_digest: str, private: bool) -> RunManifest:
    task = find_task(name)
    section = TaskSection(name=name, data_digest=data_digest, schema_digest=schema_digest(schema_of(task.model())))
    return RunManifest(name="test", author=str(PeerId(bytes(32))), task=section, **task.defaults(private=private))


@pytest.mark.parametrize("name", SIZES)
def test_models_have_the_stated_size_and_train_per_example(name: str) -> None:
    task = find_task(name)
    shape = (6, 1, 8, 8) if name == "digits" else (6, 1, 28, 28)
    model = FlatModel(task.model(), torch.device("cpu"))
    assert model.size == SIZES[name]
    inputs, targets = torch.randn(shape), torch.randint(0, 10, (6,))
    summer = ClippedSum(model, task.loss, 0.1)
    summer.verify(inputs, targets)
    assert summer.method == "book-keeping"
    assert task.loss(model.model(inputs), targets).shape == (6,)
    assert task.name == name
    assert task.summary


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("private", [True, False])
def test_defaults_make_a_manifest_that_keeps_its_promise(name: str, private: bool) -> None:
    made = manifest(name, "00" * 32, private)
    assert made.training.target_rounds > 0
    if private:
        privacy = made.privacy
        assert accountant.check_promise(privacy) <= privacy.epsilon
        assert privacy.steps == made.training.target_rounds * made.training.local_steps
        # not more noise than needed either: within one percent of what the budget allows
        least = accountant.calibrate_noise(privacy.sampling_rate, privacy.steps, privacy.epsilon, privacy.delta)
        assert least <= privacy.noise_multiplier <= 1.01 * least
    else:
        assert made.privacy.mode == "none"


@pytest.mark.parametrize(("name", "examples"), [("digits", 479), *((name, 15_000) for name in MNIST)])
def test_honest_noise_stays_far_below_the_value_bounds(name: str, examples: int) -> None:
    made = manifest(name, "00" * 32, True)
    privacy, training = made.privacy, made.training
    each = privacy.noise_multiplier * privacy.clip / (privacy.sampling_rate * examples) * training.learning_rate
    # momentum m adds a step's noise up to 1/(1-m) times; steps of one round add as squares or, at worst, as they are
    rms = each / (1 - training.momentum) * training.local_steps**0.5
    assert made.exchange.max_rms >= 5 * rms
    assert made.exchange.max_abs >= 25 * rms  # the largest of 10^6 normal values is near 5


def test_digits_are_those_of_scikit_learn_and_the_split_is_fixed_and_stratified() -> None:
    data = find_task("digits").load(None)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert all(35 <= int((data.test.targets == label).sum()) <= 37 for label in range(10))
    assert data.digest == "0408ee524d0cd3f22cea505b5bfc50ee7e25d1c80834521c4a32536865236ace"
    for part in (data.train, data.test):
        check_split(part, 10, "any")
    assert data.train.inputs.shape[1:] == (1, 8, 8)
    pixels = (data.train.inputs * 0.37 + 0.3) * 16
    assert float((pixels - pixels.round()).abs().max()) < 1e-4
    assert (float(pixels.min()), float(pixels.max().round())) == pytest.approx((0, 16), abs=1e-4)
    assert {len(take_share(Share(number, 3), data)) for number in (1, 2, 3)} == {479}


def test_damaged_digits_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits.npz").write_bytes(b"not an archive")
    monkeypatch.setattr("p2pnode.tasks.digits.resources.files", lambda package: tmp_path)
    with pytest.raises(DataError, match="damaged"):
        Digits({}).load(None)


def test_the_filters_are_fixed_unit_and_blind_to_brightness() -> None:
    filters = oriented_filters(5, 4)
    assert filters.shape == (8, 1, 5, 5)
    assert float(filters.sum((1, 2, 3)).abs().max()) < 1e-5
    assert torch.allclose(filters.flatten(1).norm(dim=1), torch.ones(8))
    assert "filters" not in find_task("digits").model().state_dict()


def federation(folder: Path, private: bool) -> tuple[float, float]:
    """Three nodes' own trainers, updates averaged: (accuracy, epsilon)."""
    task = find_task("digits")
    data = task.load(None)
    run = manifest("digits", data.digest, private)
    trainers = []
    for number in (1, 2, 3):
        share = Share(number, 3)
        mark = fingerprint(take_share(share, data))
        book = Ledger.open(folder / mark, mark) if private else None
        trainers.append(LocalTrainer(task, data, share, run, device="cpu", ledger=book))
    state, epsilon = trainers[0].initial(), 0.0
    for number in range(1, 21):
        updates = [trainer.train(state, number) for trainer in trainers]
        for update in updates:
            assert np.abs(update.vector).max() < run.exchange.max_abs / 5
            assert np.sqrt(np.mean(update.vector**2)) < run.exchange.max_rms / 5
        state = state + np.mean([update.vector for update in updates], axis=0, dtype=np.float32)
        epsilon = max(epsilon, *(update.epsilon for update in updates))
    return trainers[0].evaluate(state).measures["accuracy"], epsilon


def test_digits_reach_their_bar_in_private(tmp_path: Path) -> None:
    accuracy, epsilon = federation(tmp_path, private=True)
    assert accuracy >= 0.94
    assert 7.0 < epsilon <= 8.0


def test_digits_reach_their_bar_without_privacy(tmp_path: Path) -> None:
    accuracy, _ = federation(tmp_path, private=False)
    assert accuracy >= 0.97


@pytest.mark.dataset
def test_mnist_is_read_from_the_cache() -> None:
    if not (cache_folder() / "mnist" / "train-images-idx3-ubyte").is_file():
        pytest.skip("MNIST is not in the cache: scripts/fetch-data")
    data = find_task("mnist-cnn").load(None)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert abs(float(data.train.inputs.mean())) < 0.01
    assert float(data.train.inputs.std()) == pytest.approx(1, abs=0.01)
    assert data.train.targets[:5].tolist() == [5, 0, 4, 1, 9]


def test_missing_mnist_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-dir"):
        find_task("mnist-mlp").load(tmp_path)


def test_shifts_move_each_image_by_its_own_draw() -> None:
    image = torch.zeros(200, 1, 9, 9)
    image[:, :, 4, 4] = 1
    moved = shifted(image, 2, torch.Generator().manual_seed(1))
    places = {tuple(torch.nonzero(one[0])[0].tolist()) for one in moved}
    assert moved.shape == image.shape
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    same = find_task("mnist-cnn").augment(image, torch.Generator())
    assert same is image


def test_parameters_are_checked_in_plain_words() -> None:
    assert read_parameters("t", {"a": 2}, {"a": 1.0, "b": 3}) == {"a": 2.0, "b": 3}
    with pytest.raises(TaskError, match="no parameter 'c': it knows a"):
        read_parameters("t", {"c": 1}, {"a": 1})
    with pytest.raises(TaskError, match="is of type int, found True"):
        read_parameters("t", {"a": True}, {"a": 1})
    with pytest.raises(TaskError, match="no parameter 'x': it has none"):
        find_task("digits", {"x": 1})
    with pytest.raises(TaskError, match="from 0 to 4 pixels"):
        find_task("mnist-mlp", {"shift": 9})


class Plugin:
    """A task as another package would bring it."""

    def __init__(self, parameters: dict[str, object]) -> None:
        if parameters.get("fail"):
            raise RuntimeError("no luck")
        self.name = "plugin"


def test_other_packages_tasks_are_found_and_built_in_names_are_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"{__name__}:Plugin"
    installed = [EntryPoint("plugin", here, registry.GROUP), EntryPoint("digits", here, registry.GROUP)]
    installed.append(EntryPoint("broken", "no.such.module:X", registry.GROUP))
    monkeypatch.setattr(registry, "entry_points", lambda group: importlib.metadata.EntryPoints(installed))
    assert task_names() == (*registry.BUILT_IN, "broken", "plugin")
    assert find_task("plugin").name == "plugin"
    assert isinstance(find_task("digits"), Digits)
    with pytest.raises(TaskError, match="no luck"):
        find_task("plugin", {"fail": True})
    with pytest.raises(TaskError, match="can't be loaded"):
        find_task("broken")
    with pytest.raises(TaskError, match=r"no task is called 'nonsense' here; installed are digits"):
        find_task("nonsense")


def test_names_and_accountant_are_imported_without_heavy_libraries() -> None:
    code = (
        "import sys; from p2pnode.privacy import accountant; from p2pnode.training.registry import task_names; "
        "assert 'digits' in task_names(); assert not {'torch', 'dp_accounting', 'opacus'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_models_forward_pass_is_finite_for_blank_images() -> None:
    for name in SIZES:
        size = 8 if name == "digits" else 28
        model: nn.Module = find_task(name).model()
        assert bool(torch.isfinite(model(torch.zeros(2, 1, size, size))).all())
