"""The local trainer: plain and private, what it charges, what it keeps, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from p2pnode.config import Share
from p2pnode.errors import BudgetSpent, DataError, MachineError, ManifestError, PrivacyError, UsageError
from p2pnode.manifest import PrivacySection, RunManifest, TaskSection, TrainingSection
from p2pnode.privacy.accountant import calibrate_gaussian
from p2pnode.privacy.ledger import Ledger
from p2pnode.privacy.mechanism import Gaussian, Released, SampledGaussian
from p2pnode.privacy.noise import UnsafeSeededNoise
from p2pnode.training import local
from p2pnode.training.data import fingerprint, take_share
from p2pnode.training.local import LocalTrainer, find_device, learning_rate
from p2pnode.training.parameters import FlatModel, schema_digest, schema_of
from p2pnode.training.registry import find_task
from p2pnode.training.task import Dataset, Split, TensorSpec

TASK = find_task("digits")
DATA = TASK.load(None)
SHARE = Share(1, 3)


def manifest(training: Mapping[str, Any] = {}, privacy: Mapping[str, Any] | None = None, **task: str) -> RunManifest:
    digests = {"data_digest": DATA.digest, "schema_digest": schema_digest(schema_of(TASK.model()))} | task
    return RunManifest(
        name="test",
        author="12D3KooW" + "A" * 44,
        task=TaskSection(name="digits", **digests),
        training=TrainingSection(**training),
        privacy=PrivacySection(**({"mode": "none"} if privacy is None else privacy)),
    )


EXAMPLE = dict(TASK.defaults(private=True)["privacy"])
NODE = {"mode": "node", "epsilon": 8.0, "delta": 1e-4, "clip": 0.5, "noise_multiplier": 4.6, "steps": 20}


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger", fingerprint(take_share(SHARE, DATA)))


def plain_pytorch(
    state: np.ndarray, batches: list[torch.Tensor], data: Split, make: Any
) -> tuple[np.ndarray, torch.optim.Optimizer]:
    """The same steps by the book, parameter by parameter."""
    model = TASK.model()
    torch.nn.utils.vector_to_parameters(torch.tensor(state), model.parameters())
    optimizer = make(model.parameters())
    for rows in batches:
        optimizer.zero_grad()
        TASK.loss(model(data.inputs[rows]), data.targets[rows]).mean().backward()
        optimizer.step()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy(), optimizer


@pytest.mark.parametrize(
    ("training", "make"),
    [
        (
            {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.9, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.01),
        ),
        ({"optimizer": "adam", "learning_rate": 0.01}, lambda p: torch.optim.Adam(p, lr=0.01)),
        (
            {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        ),
    ],
)
def test_local_steps_are_plain_pytorchs_and_moments_last_over_rounds(training: dict[str, Any], make: Any) -> None:
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest(training | {"local_steps": 3, "batch_size": 32}), device="cpu")
    taken: list[torch.Tensor] = []
    take = trainer._order.take
    trainer._order.take = lambda size: taken.append(take(size)) or taken[-1]  # type: ignore[func-returns-value]
    state = trainer.initial()
    for round in (1, 2):  # moved on by the update alone, so two rounds are six plain steps
        update = trainer.train(state, round)
        assert (update.steps, update.samples, update.mechanism) == (3, 96, Released("none"))
        state = state + update.vector
    expected, _ = plain_pytorch(trainer.initial(), taken, take_share(SHARE, DATA), make)
    assert np.abs(state - expected).max() < 1e-5
    assert np.abs(state - trainer.initial()).max() > 1e-2


def test_momentum_that_is_forgotten_would_be_seen() -> None:
    training = {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.9, "local_steps": 3, "batch_size": 479}
    one = LocalTrainer(TASK, DATA, SHARE, manifest(training), device="cpu")
    state = one.initial()
    state = state + one.train(state, 1).vector
    kept = one.train(state, 2).vector
    fresh = LocalTrainer(TASK, DATA, SHARE, manifest(training), device="cpu").train(state, 2).vector
    assert np.linalg.norm(kept) > 1.2 * np.linalg.norm(fresh)


def test_an_epoch_shows_each_example_once() -> None:
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest({"batch_size": 100}), device="cpu")
    seen = torch.cat([trainer._order.take(100) for _ in range(479)])
    assert torch.bincount(seen).tolist() == [100] * 479


def test_the_state_given_is_not_changed_and_the_vector_is_the_difference() -> None:
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest({"local_steps": 2}), device="cpu")
    state = trainer.initial()
    state.setflags(write=False)
    update = trainer.train(state, 1)
    assert update.vector.dtype == np.float32
    assert update.vector.shape == state.shape == (sum(spec.size for spec in trainer.schema),)
    assert (state == trainer.initial()).all()
    for wrong in (state[:-1], state.astype(np.float64)):
        with pytest.raises(ValueError, match="expected"):
            trainer.train(wrong, 1)
    with pytest.raises(ValueError, match="start at 1"):
        trainer.train(state, 0)


def test_a_cancelled_round_holds_the_steps_done(book: Ledger) -> None:
    calls = iter([False, False, True])
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest({"local_steps": 5}, EXAMPLE), device="cpu", ledger=book)
    update = trainer.train(trainer.initial(), 1, cancelled=lambda: next(calls))
    assert (update.steps, update.mechanism.steps) == (2, 2)
    assert book.reservations[0].mechanism == SampledGaussian(0.5, 2.831, 5)  # the charge stays whole


@pytest.mark.parametrize("steps", [0, 1, 57, 99])
def test_the_schedule_is_a_function_of_the_step_alone(steps: int) -> None:
    cosine = TrainingSection(schedule="cosine", schedule_final=0.1, learning_rate=2.0)
    expected = 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * steps / 99)))
    assert learning_rate(cosine, steps, 100) == pytest.approx(expected)
    assert learning_rate(TrainingSection(learning_rate=2.0), steps, 100) == 2.0
    assert learning_rate(cosine, 99, 100) == pytest.approx(0.2)
    assert learning_rate(cosine, 500, 100) == pytest.approx(0.2)


def test_the_schedule_goes_on_over_rounds() -> None:
    training = {"schedule": "cosine", "local_steps": 4, "target_rounds": 10, "learning_rate": 1.0}
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest(training), device="cpu")
    rates: list[float] = []
    step = trainer._optimizer.step
    trainer._optimizer.step = lambda values, gradient, rate: rates.append(rate) or step(values, gradient, rate)  # type: ignore[func-returns-value]
    trainer.train(trainer.initial(), 3)
    assert rates == pytest.approx([learning_rate(trainer.manifest.training, number, 40) for number in range(8, 12)])


def test_private_updates_carry_their_mechanism_and_are_charged_first(
    book: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest({"local_steps": 5}, EXAMPLE), device="cpu", ledger=book)
    charged_at_draw: list[int] = []
    mask, add = trainer._random.mask, local.add_noise
    monkeypatch.setattr(trainer._random, "mask", lambda *a: charged_at_draw.append(len(book.reservations)) or mask(*a))
    monkeypatch.setattr(local, "add_noise", lambda *a: charged_at_draw.append(len(book.reservations)) or add(*a))
    update = trainer.train(trainer.initial(), 1)
    assert charged_at_draw == [1] * 10  # five samplings and five noises, none before the charge
    assert update.mechanism == Released("example", 1.0, 2.831, 0.5, 5)
    assert update.epsilon == book.spent(1e-4) > 0


def test_a_spent_budget_draws_nothing(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest({"local_steps": 5}, EXAMPLE), device="cpu", ledger=book)
    book.reserve("00" * 32, 1, SampledGaussian(0.5, 2.831, 98), (100.0, 1e-4))
    draws: list[object] = []
    monkeypatch.setattr(trainer._random, "mask", lambda *a: draws.append(a))
    with pytest.raises(BudgetSpent):
        trainer.train(trainer.initial(), 1)
    assert draws == []


def test_the_noise_is_there_with_the_right_size(book: Ledger) -> None:
    """One step from one state, many times: what it sends beyond the clipped sum is noise of the stated size."""
    privacy = EXAMPLE | {"sampling_rate": 1.0, "noise_multiplier": 60.0, "steps": 100}
    training = {"local_steps": 1, "learning_rate": 2.0}
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest(training, privacy), device="cpu", ledger=book)
    state = trainer.initial()
    sent = np.stack([trainer.train(state, number).vector for number in range(1, 41)]).astype(np.float64)
    clean = np.zeros_like(state)
    model = FlatModel(TASK.model(), torch.device("cpu"))
    model.load(state)
    from p2pnode.training.clipping import ClippedSum

    total = torch.zeros_like(model.flat)
    mine = take_share(SHARE, DATA)
    ClippedSum(model, TASK.loss, 1.0).add(mine.inputs, mine.targets, total)
    clean = -2.0 * total.numpy() / 479
    noise = (sent - clean) * 479 / 2.0
    count = noise.size
    assert noise.std() == pytest.approx(60.0, rel=5 / math.sqrt(2 * count))
    assert abs(noise.mean()) < 5 * 60.0 / math.sqrt(count)
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 5 / math.sqrt(noise.shape[1])
    # the mutant: the same check on updates whose noise is off must fail
    assert abs((clean - clean).std() - 60.0) > 1


def test_an_empty_draw_still_releases_noise(book: Ledger) -> None:
    privacy = EXAMPLE | {"sampling_rate": 1e-7, "noise_multiplier": 1.0}
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest({"local_steps": 2}, privacy), device="cpu", ledger=book)
    update = trainer.train(trainer.initial(), 1)
    assert update.samples == 0
    assert np.isfinite(update.vector).all()
    assert (update.vector != 0).mean() > 0.99


def test_mode_node_clips_and_noises_the_whole_update_once_a_round(book: Ledger) -> None:
    assert calibrate_gaussian(20, 8.0, 1e-4) <= 4.6
    trainer = LocalTrainer(
        TASK, DATA, SHARE, manifest({"local_steps": 4, "learning_rate": 1.0}, NODE), device="cpu", ledger=book
    )
    state = trainer.initial()
    update = trainer.train(state, 1)
    assert update.mechanism == Released("node", 0.5, 4.6, 0.0, 1)
    assert book.reservations[0].mechanism == Gaussian(4.6, 1)
    assert update.vector.std() == pytest.approx(4.6 * 0.5, rel=0.1)


def test_what_does_not_fit_is_refused(tmp_path: Path, book: Ledger) -> None:
    def make(run: RunManifest, data: Dataset = DATA, **more: Any) -> LocalTrainer:
        return LocalTrainer(TASK, data, SHARE, run, **({"device": "cpu", "ledger": book} | more))

    with pytest.raises(PrivacyError, match="ledger"):
        make(manifest({}, EXAMPLE), ledger=None)
    with pytest.raises(PrivacyError, match="predictable"):
        make(manifest({}, EXAMPLE), randomness=UnsafeSeededNoise(1))
    with pytest.raises(ManifestError, match="too small"):
        make(manifest({}, EXAMPLE | {"noise_multiplier": 1.0}))
    with pytest.raises(ManifestError, match="schema_digest"):
        make(manifest(schema_digest="00" * 32))
    with pytest.raises(DataError, match="other data"):
        make(manifest(data_digest="00" * 32))
    broken = Split(torch.full_like(DATA.train.inputs, float("nan")), DATA.train.targets)
    with pytest.raises(DataError, match="not finite"):
        make(manifest(), Dataset(broken, DATA.test, DATA.digest, DATA.classes))
    with pytest.raises(MachineError, match="tpu"):
        find_device("tpu")
    with pytest.raises(UsageError, match="threads"):
        local.set_threads(0)


def test_a_fixed_seed_repeats_everything_without_privacy() -> None:
    def run() -> np.ndarray:
        trainer = LocalTrainer(
            TASK, DATA, SHARE, manifest({"local_steps": 3}), device="cpu", randomness=UnsafeSeededNoise(5)
        )
        return trainer.train(trainer.initial(), 1).vector

    assert run().tobytes() == run().tobytes()


def test_evaluation_has_all_measures_and_may_run_beside_training() -> None:
    trainer = LocalTrainer(TASK, DATA, SHARE, manifest(), device="cpu")
    before = trainer._worker.vector()
    found = trainer.evaluate(trainer.initial() + 1)
    assert (trainer._worker.vector() == before).all()  # another copy of the model
    assert set(found.measures) == {"loss", "accuracy", "precision", "recall", "f1"}
    assert found.examples == 360
    assert found.confusion is not None
    assert found.confusion.sum() == 360


def test_schema_digests_name_order_names_and_shapes() -> None:
    specs = (TensorSpec("a.weight", (2, 3)), TensorSpec("a.bias", (2,)))
    others = [
        specs[::-1],
        specs[:1],
        (TensorSpec("a.weight", (3, 2)), specs[1]),
        (TensorSpec("b.weight", (2, 3)), specs[1]),
        (TensorSpec("a.weight", (6,)), specs[1]),
    ]
    assert len({schema_digest(other) for other in [specs, *others]}) == 6
    # fixed vectors: a change would make every existing run another run
    assert schema_digest(specs) == "59f9c5fe623a531d91db801ff865e0d1fae86ebdff8fec00eb76fbc564777d47"
    assert schema_digest(()) == "2f2b99c316810ab10d9e3fcba7f73be87dae311671eceae09d81f5eb6837201b"
    assert schema_digest(schema_of(TASK.model())) == "0621209e85f0fb006f169c7c18c7e9a7dd58e7138742a0648fa05d74a3fd8565"
