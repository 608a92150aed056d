"""Per layer: squared norms of per-example parameter gradients, and their weighted sum.

Each class takes one call of a layer: its input `given` [n, ...] and its output's gradient `back` [n, ...], and offers

    squares()             [n], each example's squared L2 norm over all learned parameters of the layer
    add(factors, into)    into[id(parameter)] += sum over examples of factors[i] * gradient[i]

`Instances` holds the per-example gradients themselves; the others avoid that where they can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from p2pnode.errors import TaskError

HELD_VALUES: Final = (
    1 << 23
)  # per-example gradients of one layer are held up to this many values (32 MB), else made anew

Accumulators = Mapping[int, torch.Tensor]
"""By id of the parameter: where its summed gradient goes, in the parameter's shape."""


class LayerGradients(Protocol):
    """What the classes below offer."""

    def squares(self) -> torch.Tensor: ...

    def add(self, factors: torch.Tensor, into: Accumulators) -> None: ...


def learned(layer: nn.Module) -> list[nn.Parameter]:
    """The layer's own parameters that are learned."""
    return [value for value in layer.parameters(recurse=False) if value.requires_grad]


class Linear:
    """nn.Linear on [n, ..., in]. One position: the norm is a product. More: Gram matrices (ghost norm) or instances."""

    def __init__(self, layer: nn.Linear, given: torch.Tensor, back: torch.Tensor) -> None:
        self.layer = layer
        self.given = given.reshape(given.shape[0], -1, given.shape[-1])
        self.back = back.reshape(back.shape[0], -1, back.shape[-1])

    def instances(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(parameter, its gradient per example [n, *shape])."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        if self.layer.weight.requires_grad:
            found.append((self.layer.weight, torch.bmm(self.back.mT, self.given)))
        if self.layer.bias is not None and self.layer.bias.requires_grad:
            found.append((self.layer.bias, self.back.sum(1)))
        return found

    def squares(self) -> torch.Tensor:
        given, back = self.given, self.back
        count, positions, wide = given.shape
        high = back.shape[2]
        total = torch.zeros(count, device=given.device)
        if self.layer.weight.requires_grad:
            if positions == 1:
                total += given.square().sum((1, 2)) * back.square().sum((1, 2))
            elif positions * (wide + high) <= wide * high:
                total += (
                    (torch.bmm(given, given.mT) * torch.bmm(back, back.mT)).sum((1, 2)).clamp(min=0)
                )  # may round below
            else:
                total += _piecewise_squares(back.mT, given)
        if self.layer.bias is not None and self.layer.bias.requires_grad:
            total += back.sum(1).square().sum(1)
        return total

    def add(self, factors: torch.Tensor, into: Accumulators) -> None:
        back = (self.back * factors[:, None, None]).flatten(0, 1)
        if self.layer.weight.requires_grad:
            into[id(self.layer.weight)].addmm_(back.T, self.given.flatten(0, 1))
        if self.layer.bias is not None and self.layer.bias.requires_grad:
            into[id(self.layer.bias)].add_(back.sum(0))


def _piecewise_squares(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Squared norms of the products left[i] @ right[i], with at most HELD_VALUES values of them in memory."""
    rows = max(1, HELD_VALUES // (left.shape[1] * right.shape[2]))
    pieces = zip(torch.split(left, rows), torch.split(right, rows), strict=True)
    return torch.cat([torch.bmm(a, b).square().sum((1, 2)) for a, b in pieces])


class Conv2d:
    """nn.Conv2d with zero padding: unfolded, it is a linear layer over its positions."""

    def __init__(self, layer: nn.Conv2d, given: torch.Tensor, back: torch.Tensor) -> None:
        self.layer = layer
        self.given = given
        self.back = back
        self._held: torch.Tensor | None = None

    def _columns(self) -> torch.Tensor:
        """[n * groups, in channels per group * kernel, positions]."""
        layer = self.layer
        padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
        columns = F.unfold(self.given, layer.kernel_size, layer.dilation, padding, layer.stride)
        return columns.reshape(columns.shape[0] * layer.groups, -1, columns.shape[2])

    def _rows(self) -> torch.Tensor:
        """[n * groups, out channels per group, positions]."""
        return self.back.reshape(self.back.shape[0] * self.layer.groups, -1, self.back.shape[2] * self.back.shape[3])

    def instances(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(parameter, its gradient per example [n, *shape])."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        if self.layer.weight.requires_grad:
            each = torch.bmm(self._rows(), self._columns().mT)
            found.append((self.layer.weight, each.reshape(self.back.shape[0], *self.layer.weight.shape)))
        if self.layer.bias is not None and self.layer.bias.requires_grad:
            found.append((self.layer.bias, self.back.sum((2, 3))))
        return found

    def squares(self) -> torch.Tensor:
        count, groups = self.back.shape[0], self.layer.groups
        total = torch.zeros(count, device=self.back.device)
        if self.layer.weight.requires_grad:
            rows, columns = self._rows(), self._columns()
            positions = rows.shape[2]
            if positions * (rows.shape[1] + columns.shape[1]) <= rows.shape[1] * columns.shape[1]:
                each = (torch.bmm(rows.mT, rows) * torch.bmm(columns.mT, columns)).sum((1, 2)).clamp(min=0)
            elif rows.shape[0] * rows.shape[1] * columns.shape[1] <= HELD_VALUES:
                self._held = torch.bmm(rows, columns.mT)
                each = self._held.square().sum((1, 2))
            else:
                each = _piecewise_squares(rows, columns.mT)
            total += each.reshape(count, groups).sum(1)
        if self.layer.bias is not None and self.layer.bias.requires_grad:
            total += self.back.sum((2, 3)).square().sum(1)
        return total

    def add(self, factors: torch.Tensor, into: Accumulators) -> None:
        layer, count = self.layer, self.back.shape[0]
        if layer.weight.requires_grad and self._held is not None:
            summed = factors @ self._held.reshape(count, -1)
            into[id(layer.weight)].add_(summed.reshape(layer.weight.shape))
        elif layer.weight.requires_grad:
            padding = [0, 0] if isinstance(layer.padding, str) else list(layer.padding)
            back = self.back * factors[:, None, None, None]
            _, weight, _ = torch.ops.aten.convolution_backward(
                back, self.given, layer.weight, None, list(layer.stride), padding, list(layer.dilation), False, [0, 0],
                layer.groups, [False, True, False],
            )  # fmt: skip
            into[id(layer.weight)].add_(weight)
        if layer.bias is not None and layer.bias.requires_grad:
            into[id(layer.bias)].add_(factors @ self.back.sum((2, 3)))


class Instances:
    """Per-example gradients of any parameters, held: for other layers, layers called twice, and shared parameters."""

    def __init__(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.each: dict[int, torch.Tensor] = {}
        for parameter, gradients in parts:
            before = self.each.get(id(parameter))
            self.each[id(parameter)] = gradients if before is None else before + gradients

    def squares(self) -> torch.Tensor:
        return torch.stack([each.flatten(1).square().sum(1) for each in self.each.values()]).sum(0)

    def add(self, factors: torch.Tensor, into: Accumulators) -> None:
        for key, each in self.each.items():
            into[key].add_((factors @ each.flatten(1)).reshape(into[key].shape))


def own_rule(layer: nn.Module) -> type[Linear] | type[Conv2d] | None:
    """The class above that knows this layer, if one does. Subclasses aren't known: they may compute something else."""
    if type(layer) is nn.Linear:
        return Linear
    zero_padded = type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and layer.padding != "same"
    return Conv2d if zero_padded else None


def opacus_sampler(layer: nn.Module) -> Callable[..., dict[torch.Tensor, torch.Tensor]] | None:
    """Opacus' function for per-example gradients of this type of layer, if it has one."""
    from opacus.grad_sample import GradSampleModule

    found: Callable[..., dict[torch.Tensor, torch.Tensor]] | None = GradSampleModule.GRAD_SAMPLERS.get(type(layer))
    return found


def instances_of(layer: nn.Module, given: torch.Tensor, back: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per-example gradients of one call of any known layer. Raises TaskError if neither we nor opacus know it."""
    rule = own_rule(layer)
    if rule is not None:
        return rule(layer, given, back).instances()  # type: ignore[arg-type]
    sampler = opacus_sampler(layer)
    if sampler is None:
        raise TaskError(f"no rule for per-example gradients of {type(layer).__name__}")
    return list(sampler(layer, [given], back).items())
