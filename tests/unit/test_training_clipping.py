"""Clipped per-example gradients: equal to brute force and to opacus, whatever the layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from p2pnode.errors import PrivacyError, TaskError
from p2pnode.training import layers
from p2pnode.training.clipping import ClippedSum, clip_vector
from p2pnode.training.parameters import FlatModel

CPU = torch.device("cpu")


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


class Tied(nn.Module):
    """One matrix in two layers, and one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x.flatten(1)).tanh()).tanh()
        return self.out(self.a(x).tanh())


class Loose(nn.Module):
    """A parameter that no layer owns, and a weight that is used outside of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((6,), 1.5))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1) * self.scale
        return self.fc(x) + F.linear(x.square(), self.fc.weight)


class Mixing(nn.Module):
    """Subtracts the batch's mean: no layer type gives it away."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.fc(x - x.mean(0))


class Tokens(nn.Module):
    """Embedding, LayerNorm and a dense layer over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.fc = nn.Embedding(9, 12), nn.LayerNorm(12), nn.Linear(12, 20)
        self.out = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.fc(self.norm(self.embed(x)))).mean(1))


CASES = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4)), (3, 8, 8)),
    "conv, wide and few positions": (
        lambda: nn.Sequential(nn.Conv2d(16, 24, 3, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(24 * 4, 4)),
        (16, 8, 8),
    ),
    "conv, stride padding dilation groups": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4)
        ),
        (4, 9, 9),
    ),
    "conv without bias, in place": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(180, 4)),
        (3, 8, 8),
    ),
    "same padding": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Tanh(), nn.Flatten(), nn.Linear(256, 4)),
        (3, 8, 8),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)),
        (3, 8, 8),
    ),
    "frozen part": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 6).requires_grad_(False), nn.Tanh(), nn.Linear(6, 4)),
        (6,),
    ),
    "tied": (Tied, (6,)),
    "loose": (Loose, (6,)),
    "tokens": (Tokens, None),
}


def build(case: str, count: int = 7) -> tuple[FlatModel, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    make, shape = CASES[case]
    model = make()
    inputs = torch.randint(0, 9, (count, 11)) if shape is None else torch.randn(count, *shape)
    model(inputs)  # lets lazy layers find their size
    return FlatModel(model, CPU), inputs, torch.randint(0, 4, (count,))


def one_by_one(model: FlatModel, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[n, size]: each example's gradient, by plain autograd."""
    rows = []
    for row in range(len(inputs)):
        value = loss(model.model(inputs[row : row + 1]), targets[row : row + 1]).sum()
        found = torch.autograd.grad(value, model.parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)


def clipped(each: torch.Tensor, clip: float) -> torch.Tensor:
    return (each * (clip / each.norm(dim=1)).clamp(max=1)[:, None]).sum(0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("held", [layers.HELD_VALUES, 1])
def test_equal_to_brute_force(case: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "HELD_VALUES", held)
    model, inputs, targets = build(case)
    each = one_by_one(model, inputs, targets)
    clip = float(each.norm(dim=1).median())  # some are clipped, some are not
    summer = ClippedSum(model, loss, clip, microbatch=3)
    summer.verify(inputs, targets)
    assert summer.method == ("torch.func" if case == "loose" else "book-keeping")
    total = torch.full_like(model.flat, 0.25)  # adds to what is there
    losses, norms = summer.add(inputs, targets, total)
    expected = clipped(each, clip)
    assert float((total - 0.25 - expected).norm()) <= 2e-5 * float(expected.norm())
    assert losses == pytest.approx(float(loss(model.model(inputs), targets).sum().detach()), rel=1e-5)
    assert norms == pytest.approx(float(each.norm(dim=1).sum()), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("case", ["conv", "conv, stride padding dilation groups", "group norm"])
def test_equal_to_opacus(case: str) -> None:
    from opacus.grad_sample import GradSampleModule

    model, inputs, targets = build(case, 12)
    clip = 0.5
    total = torch.zeros_like(model.flat)
    summer = ClippedSum(model, loss, clip)
    summer.verify(inputs, targets)
    summer.add(inputs, targets, total)
    torch.manual_seed(3)
    oracle = CASES[case][0]()
    oracle(inputs)
    oracle.load_state_dict(model.model.state_dict())
    wrapped = GradSampleModule(oracle, loss_reduction="sum")
    loss(wrapped(inputs), targets).sum().backward()
    each = torch.cat([value.grad_sample.flatten(1) for value in wrapped.parameters()], dim=1)
    expected = clipped(each, clip)
    assert float((total - expected).norm()) <= 2e-5 * float(expected.norm())


def test_no_clipped_gradient_is_longer_than_the_bound() -> None:
    model, inputs, targets = build("conv", 40)
    summer = ClippedSum(model, loss, 0.01)
    for row in range(len(inputs)):
        total = torch.zeros_like(model.flat)
        summer.add(inputs[row : row + 1], targets[row : row + 1], total)
        assert float(total.double().norm()) <= 0.01


def test_an_empty_batch_adds_nothing() -> None:
    model, inputs, targets = build("conv")
    total = torch.zeros_like(model.flat)
    assert ClippedSum(model, loss, 1.0).add(inputs[:0], targets[:0], total) == (0.0, 0.0)
    assert not bool(total.any())


@pytest.mark.parametrize("case", ["conv", "loose"])
def test_an_example_that_is_not_finite_counts_as_zero(case: str) -> None:
    model, inputs, targets = build(case)
    summer = ClippedSum(model, loss, 0.5)
    summer.verify(inputs, targets)
    kept = torch.ones(len(inputs), dtype=torch.bool)
    kept[2] = False
    expected, found = torch.zeros_like(model.flat), torch.zeros_like(model.flat)
    summer.add(inputs[kept], targets[kept], expected)
    inputs[2] = float("nan")
    summer.add(inputs, targets, found)
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def test_layers_that_mix_examples_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(TaskError, match=r"the layer 1 \(BatchNorm2d\) mixes.*GroupNorm"):
        ClippedSum(FlatModel(model, CPU), loss, 1.0)
    tracking = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(TaskError, match="track_running_stats=False"):
        ClippedSum(FlatModel(tracking, CPU), loss, 1.0)


def test_a_model_that_mixes_examples_without_saying_so_is_found_out() -> None:
    model = FlatModel(Mixing(), CPU)
    inputs, targets = torch.randn(8, 6), torch.randint(0, 4, (8,))
    with pytest.raises(TaskError, match="changes with the others"):
        ClippedSum(model, loss, 1.0).verify(inputs, targets)


def test_dropout_is_allowed_and_left_on() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 4))
    summer = ClippedSum(FlatModel(model, CPU), loss, 1.0)
    summer.verify(torch.randn(8, 6), torch.randint(0, 4, (8,)))
    assert summer.method == "book-keeping"
    assert model[2].training


def test_a_whole_update_is_clipped() -> None:
    long, short = torch.full((100,), 3.0), torch.full((100,), 0.01)
    assert float(clip_vector(long, 2.0).double().norm()) == pytest.approx(2.0, rel=1e-5)
    assert float(clip_vector(long, 2.0).double().norm()) <= 2.0
    assert bool((clip_vector(short, 2.0) == short).all())
    assert not bool(clip_vector(torch.zeros(5), 2.0).any())
    with pytest.raises(PrivacyError, match="not finite"):
        clip_vector(torch.tensor([1.0, float("nan")]), 2.0)
