"""The task interface: what is learned, from what data, and how well it goes.

A task is installed on a node (entry point group `p2pnode.tasks`); a manifest only names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

FloatVector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the shared model: name and shape. All are float32."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Values in it."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Split:
    """Examples in memory. inputs: [n, ...] float32 as the model takes them; targets: [n] int64 (classes) or [n, k]
    float32.
    """

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return int(self.inputs.shape[0])


@dataclass(frozen=True)
class Dataset:
    """A data set with a fixed held-out split.

    digest: BLAKE3 (hex) over what it was read from, the same on every machine: what a manifest's `data_digest` names.
    classes: names by label; empty for regression.
    """

    train: Split
    test: Split
    digest: str
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Evaluation:
    """Measures of one state on the held-out split: at least `loss`, and `accuracy` for classification.

    confusion: [classes, classes] counts, rows true, columns predicted; None for regression.
    """

    measures: Mapping[str, float]
    examples: int
    confusion: npt.NDArray[np.int64] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """What a plugin implements. Constructed with the manifest's task parameters; raises TaskError for bad ones."""

    name: str
    summary: str  # one line, for people

    def model(self) -> torch.nn.Module:
        """A new model, freshly initialised. Its trainable parameters, in `named_parameters()` order, are the shared
        state.
        """

    def load(self, data_dir: Path | None) -> Dataset:
        """The data set: from `data_dir` if given, else from the cache, else from its registry. DataError if neither has
        it.
        """

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Per-example losses, shape [n]: never mixes examples, so it can be clipped per example."""

    def measures(self, outputs: torch.Tensor, targets: torch.Tensor) -> Evaluation:
        """All measures over the whole held-out split's outputs."""

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A random variation of a training batch; returns `inputs` itself if the task has none."""

    def defaults(self, *, private: bool) -> Mapping[str, Any]:
        """Values for a new run's manifest: {"training": {...}, "privacy": {...}, "exchange": {...}}, as in TOML."""
