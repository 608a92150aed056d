"""`digits`: 1,797 handwritten digits of 8 x 8 pixels, shipped in the package; learned in seconds, also in private."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from blake3 import blake3
from torch import nn

from p2pnode.errors import DataError
from p2pnode.training.evaluate import classification
from p2pnode.training.goals import CLASSIFICATION
from p2pnode.training.registry import read_parameters
from p2pnode.training.task import Dataset, Evaluation, Split

CLASSES: Final = tuple(str(digit) for digit in range(10))


def oriented_filters(size: int, orientations: int) -> torch.Tensor:
    """[2 * orientations, 1, size, size]: even and odd strokes (windowed cosine and sine), zero mean, L2 norm 1. Fixed,
    not learned.
    """
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    across, down = torch.meshgrid(axis, axis, indexing="xy")
    window = torch.exp(-(across.square() + down.square()) / (2 * (size / 3.5) ** 2))
    kernels = []
    for number in range(orientations):
        angle = math.pi * number / orientations
        phase = 2 * math.pi * (across * math.cos(angle) + down * math.sin(angle)) / (size - 1)
        for wave in (torch.cos(phase), torch.sin(phase)):
            kernel = window * (wave - (window * wave).sum() / window.sum())
            kernels.append(kernel / kernel.norm())
    return torch.stack(kernels)[:, None].to(torch.float32)


class DigitsNet(nn.Module):
    """Fixed oriented filters (5x5), rectified, pooled by 2, maps centred, all scaled to L2 norm 4; then a dense layer.

    [n, 1, 8, 8] -> [n, 10] logits. Only the dense layer is learned, from zero (1,290 values): few weights need little
    noise, and inputs of one length keep every example's gradient short, so clipping loses little.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", oriented_filters(5, 4), persistent=False)
        self.dense = nn.Linear(8 * 16, len(CLASSES))
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        strokes = F.conv2d(inputs, self.get_buffer("filters"), padding=2).abs()
        maps = F.avg_pool2d(strokes, 2)
        centred = (maps - maps.mean((2, 3), keepdim=True)).flatten(1)
        logits: torch.Tensor = self.dense(4.0 * F.normalize(centred, dim=1))
        return logits


class Digits:
    """The embedded default task. No parameters."""

    name = "digits"
    summary = "1,797 small handwritten digits, learned in seconds, also in private; downloads nothing"
    measured = CLASSIFICATION
    shares = 3  # equal parts that the training set is cut into, for a node that does not say which it holds

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        read_parameters(self.name, parameters, {})

    def model(self) -> nn.Module:
        return DigitsNet()

    def load(self, data_dir: Path | None) -> Dataset:
        """Inputs [n, 1, 8, 8], pixels (x/16 - 0.3)/0.37. `data_dir` is not needed: the data are in the package."""
        raw = resources.files("p2pnode.tasks").joinpath("data/digits.npz").read_bytes()
        try:
            with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
                images, labels, held_out = arrays["images"], arrays["labels"], arrays["held_out"]
        except (ValueError, KeyError, OSError) as error:
            raise DataError(f"the digits that come with the package are damaged ({error}): reinstall p2pnode") from None
        hasher = blake3(b"p2pnode/digits/1\0")
        for array in (images, labels, held_out):
            hasher.update(array.tobytes())
        inputs = torch.from_numpy(((images[:, None] / 16 - 0.3) / 0.37).astype(np.float32))
        targets = torch.from_numpy(labels.astype(np.int64))
        held = torch.from_numpy(held_out)
        return Dataset(
            Split(inputs[~held], targets[~held]), Split(inputs[held], targets[held]), hasher.hexdigest(), CLASSES
        )

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def measures(self, outputs: torch.Tensor, targets: torch.Tensor) -> Evaluation:
        return classification(outputs, targets, len(CLASSES))

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return inputs

    def defaults(self, *, private: bool) -> Mapping[str, Any]:
        """A new run's manifest values, for 3 nodes of 479 examples: 20 rounds of 5 steps."""
        training: dict[str, Any] = {"local_steps": 5, "batch_size": 64, "target_rounds": 20}
        if not private:
            return {
                "training": training | {"optimizer": "adam", "learning_rate": 0.1},
                "privacy": {"mode": "none"},
                "exchange": {"max_abs": 8.0, "max_rms": 2.0, "weights": [[1, 1]]},
            }
        return {
            "training": training | {"optimizer": "sgd", "learning_rate": 6.0},
            "privacy": {
                "mode": "example",
                "epsilon": 8.0,
                "delta": 1e-4,
                "clip": 1.0,
                "noise_multiplier": 2.831,  # epsilon 7.95 by PLD
                "sampling_rate": 0.5,
                "steps": 100,
            },
            "exchange": {"max_abs": 8.0, "max_rms": 2.0, "weights": [[1, 1]]},
        }
