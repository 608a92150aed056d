"""The MNIST tasks: 60,000 handwritten digits of 28 x 28 pixels to learn from, 10,000 held out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import nn

from p2pnode.errors import TaskError
from p2pnode.training.data import DATASETS, find_files, read_idx
from p2pnode.training.evaluate import classification
from p2pnode.training.goals import CLASSIFICATION
from p2pnode.training.registry import read_parameters
from p2pnode.training.task import Dataset, Evaluation, Split

CLASSES: Final = tuple(str(digit) for digit in range(10))
_MEAN, _DEVIATION = 0.1307, 0.3081  # of all training pixels, from 0 to 1: public figures of a public data set


def load_mnist(data_dir: Path | None) -> Dataset:
    """MNIST with inputs [n, 1, 28, 28], standardised by fixed constants. Raises DataError if it isn't found whole."""
    source = DATASETS["mnist"]
    files = find_files(source, data_dir)

    def split(prefix: str) -> Split:
        images, labels = (
            read_idx(files[name], name) for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        )
        inputs = torch.tensor(images)[:, None].to(torch.float32)
        inputs.div_(255).sub_(_MEAN).div_(_DEVIATION)
        return Split(inputs, torch.tensor(labels).to(torch.int64))

    return Dataset(split("train"), split("t10k"), source.digest, CLASSES)


def shifted(inputs: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Each image [n, c, h, w] moved by up to `most` pixels in both directions, the edge repeated; each drawn apart."""
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, (most, most, most, most), mode="replicate")
    offsets = torch.randint(0, 2 * most + 1, (2, count), generator=generator)
    rows = (offsets[0][:, None] + torch.arange(height))[:, None, :, None]
    columns = (offsets[1][:, None] + torch.arange(width))[:, None, None, :]
    examples = torch.arange(count)[:, None, None, None]
    channels = torch.arange(inputs.shape[1])[None, :, None, None]
    return padded[examples, channels, rows, columns]


class _Mnist:
    """What the MNIST tasks have in common. parameters: `shift`, the largest random shift in training, in pixels (0 to
    4).
    """

    name: str = ""
    summary: str = ""
    measured: tuple[str, ...] = CLASSIFICATION
    shares: int = 4  # equal parts that the training set is cut into, for a node that does not say which it holds
    shift: ClassVar[int] = 0

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        values = read_parameters(self.name, parameters, {"shift": self.shift})
        if not 0 <= values["shift"] <= 4:
            raise TaskError(
                f"the parameter 'shift' of task {self.name!r} is from 0 to 4 pixels, found {values['shift']}"
            )
        self._shift = values["shift"]

    def load(self, data_dir: Path | None) -> Dataset:
        return load_mnist(data_dir)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def measures(self, outputs: torch.Tensor, targets: torch.Tensor) -> Evaluation:
        return classification(outputs, targets, len(CLASSES))

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return shifted(inputs, self._shift, generator) if self._shift else inputs

    def defaults(self, *, private: bool) -> Mapping[str, Any]:
        """A new run's manifest values, for 4 nodes of 15,000 examples: 10 epochs' worth, or epsilon 3 at delta 1e-5."""
        if private:
            return _private_defaults(local_steps=10, learning_rate=2.0)
        return {
            "training": {
                "local_steps": 10,
                "batch_size": 64,
                "optimizer": "adam",
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "target_rounds": 234,  # times 10 steps, 64 examples and 4 nodes: 599,040 examples, under 10 epochs
                "evaluate_every": 5,
            },
            "privacy": {"mode": "none"},
            "exchange": {"max_abs": 1.0, "max_rms": 0.25, "weights": [[1, 1]]},
        }


def _private_defaults(*, local_steps: int, learning_rate: float) -> dict[str, Any]:
    # sampling 1/30 of 15,000: 500 expected; 300 steps at this noise cost epsilon 3 (a test recalibrates)
    return {
        "training": {
            "local_steps": local_steps,
            "batch_size": 500,
            "optimizer": "sgd",
            "learning_rate": learning_rate,
            "momentum": 0.9,
            "schedule": "cosine",
            "schedule_final": 0.1,
            "target_rounds": 300 // local_steps,
        },
        "privacy": {
            "mode": "example",
            "epsilon": 3.0,
            "delta": 1e-5,
            "clip": 0.1,
            "noise_multiplier": 1.1225,
            "sampling_rate": 1 / 30,
            "steps": 300,
        },
        "exchange": {"max_abs": 4.0, "max_rms": 1.0, "weights": [[1, 1]]},
    }


class MnistCnn(_Mnist):
    """Conv 32 (3x3) - pool 2 - dense 128 - dense 10, ReLU; 693,962 parameters."""

    name = "mnist-cnn"
    summary = "MNIST digits with a small convolutional network, 98% and more in ten epochs; downloads MNIST, 12 MB"

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 13 * 13, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


class MnistDeepCnn(_Mnist):
    """Conv 32 - pool - conv 64 - pool - conv 64 (all 3x3) - dense 64 - dense 10, ReLU; 93,322 parameters."""

    name = "mnist-deep-cnn"
    summary = "MNIST digits with three convolutions, 98.63% and more in five epochs; downloads MNIST, 12 MB"

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(64 * 3 * 3, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip


class MnistMlp(_Mnist):
    """784 - 500 - 500 - 10, ReLU; 648,010 parameters. Random shifts of up to 2 pixels in training."""

    name = "mnist-mlp"
    summary = (
        "MNIST digits with a multilayer perceptron and shifted images, 98.7% in forty epochs; downloads MNIST, 12 MB"
    )
    shift = 2

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 10)
        )


class MnistCnnPrivate(_Mnist):
    """Conv 16 (8x8, stride 2, pad 3) - pool 2 stride 1 - conv 32 (4x4, stride 2) - pool 2 stride 1 - dense 32 - dense
    10.

    tanh throughout; 26,010 parameters; for private training (arXiv 2007.14191).
    """

    name = "mnist-cnn-private"
    summary = (
        "MNIST digits with a small tanh network for private training, 95% and more at epsilon 3; downloads MNIST, 12 MB"
    )

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.Tanh(), nn.MaxPool2d(2, stride=1),
            nn.Conv2d(16, 32, 4, stride=2), nn.Tanh(), nn.MaxPool2d(2, stride=1),
            nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.Tanh(), nn.Linear(32, 10),
        )  # fmt: skip

    def defaults(self, *, private: bool) -> Mapping[str, Any]:
        if private:
            return _private_defaults(local_steps=10, learning_rate=10.0)
        return super().defaults(private=private)
