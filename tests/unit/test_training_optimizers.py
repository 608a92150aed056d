"""Our optimizers against torch.optim's: bit for bit, over many steps, with a rate that changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from p2pnode.manifest import TrainingSection
from p2pnode.training.optimizers import make_optimizer

STEPS = 50


def theirs(training: TrainingSection, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    rate, decay = training.learning_rate, training.weight_decay
    match training.optimizer:
        case "sgd":
            return torch.optim.SGD([parameter], lr=rate, momentum=training.momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam([parameter], lr=rate, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW([parameter], lr=rate, weight_decay=decay)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "weight_decay": 0.01},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adam"},
        {"optimizer": "adam", "weight_decay": 0.01},
        {"optimizer": "adamw"},
        {"optimizer": "adamw", "weight_decay": 0.1},
    ],
)
def test_every_step_has_torchs_bits(settings: Mapping[str, Any]) -> None:
    training = TrainingSection(learning_rate=0.3, **settings)
    generator = torch.Generator().manual_seed(3)
    parameter = torch.nn.Parameter(torch.randn(1290, generator=generator))
    values = parameter.detach().clone()
    reference, ours = theirs(training, parameter), make_optimizer(training)
    for step in range(STEPS):
        gradient = torch.randn(1290, generator=generator) * (step % 5)  # all zero at times
        rate = 0.3 * (1 - step / STEPS)
        for group in reference.param_groups:
            group["lr"] = rate
        parameter.grad = gradient.clone()
        reference.step()
        given = gradient.clone()
        ours.step(values, given, rate)
        assert torch.equal(values, parameter.detach()), f"step {step}"
        assert torch.equal(given, gradient), "the gradient is not changed"


def test_a_trainer_is_made_and_trains_without_torchs_compiler_and_opacus() -> None:
    # A second of processor time each, on every start of every node.
    code = (
        "import sys\n"
        "from tests.unit.test_training_local import DATA, EXAMPLE, SHARE, TASK, manifest\n"
        "from p2pnode.training.clipping import ClippedSum\n"
        "from p2pnode.training.local import LocalTrainer\n"
        "trainer = LocalTrainer(TASK, DATA, SHARE, manifest(), device='cpu')\n"
        "trainer.evaluate(trainer.initial() + trainer.train(trainer.initial(), 1).vector)\n"
        "clipped = ClippedSum(trainer._worker, TASK.loss, 1.0)\n"
        "clipped.verify(DATA.train.inputs[:4], DATA.train.targets[:4])\n"
        "print(*({'torch._dynamo', 'opacus'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120, cwd=root)
    assert found.stdout.split() == []
