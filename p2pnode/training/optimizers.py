"""The local optimizers, over one flat vector: the same arithmetic in the same order as torch.optim's, to the bit.

torch.optim's own classes are slow to make: the first one that a process makes imports torch's compiler, a second of
processor time before a node can join.
"""

from __future__ import annotations

from typing import Final, Protocol

import torch

from p2pnode.manifest import TrainingSection

_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPSILON: Final = 1e-8


class Optimizer(Protocol):
    """Changes parameters by a gradient; keeps its moments from step to step."""

    def step(self, values: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """One step in place. values, gradient: [size], always of the same size; rate: this step's learning rate."""


class Sgd:
    """Stochastic gradient descent with momentum."""

    def __init__(self, momentum: float, weight_decay: float) -> None:
        self._momentum = momentum
        self._decay = weight_decay
        self._velocity: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, values: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        if self._decay:
            gradient = gradient.add(values, alpha=self._decay)
        if self._momentum:
            if self._velocity is None:
                self._velocity = gradient.clone()
            else:
                self._velocity.mul_(self._momentum).add_(gradient)
            gradient = self._velocity
        values.add_(gradient, alpha=-rate)


class Adam:
    """Adam (arXiv 1412.6980); with `decoupled` weight decay, AdamW (arXiv 1711.05101)."""

    def __init__(self, weight_decay: float, *, decoupled: bool) -> None:
        self._decay = weight_decay
        self._decoupled = decoupled
        self._steps = 0
        self._mean: torch.Tensor | None = None
        self._square: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, values: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        if self._mean is None or self._square is None:
            self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)
        self._steps += 1
        if self._decay and self._decoupled:
            values.mul_(1 - rate * self._decay)
        elif self._decay:
            gradient = gradient.add(values, alpha=self._decay)
        self._mean.lerp_(gradient, 1 - _BETA1)
        self._square.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        scale = (1 - _BETA2**self._steps) ** 0.5
        values.addcdiv_(
            self._mean, (self._square.sqrt() / scale).add_(_EPSILON), value=-rate / (1 - _BETA1**self._steps)
        )


def make_optimizer(training: TrainingSection) -> Optimizer:
    """The one that a manifest names."""
    if training.optimizer == "sgd":
        return Sgd(training.momentum, training.weight_decay)
    return Adam(training.weight_decay, decoupled=training.optimizer == "adamw")
