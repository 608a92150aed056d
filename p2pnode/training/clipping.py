"""The sum of clipped per-example gradients, exactly and fast: what DP-SGD needs before its noise.

Book-keeping (arXiv 2210.00038): one forward pass that keeps each layer's input, one backward pass for the gradients of
the layers' outputs only, from both the norm of every example's gradient, and then the weighted sum of gradients
directly. Per layer the norm comes from whichever is cheaper: Gram matrices of inputs and output gradients ("ghost
norm", arXiv 2110.05679, section 3), or the per-example gradient itself. Opacus' samplers serve other layers, one by
one; a model that uses its parameters outside of its layers is done by `torch.func`, slower. On its first examples the
result is compared with plain autograd, one example at a time: a layer that mixes examples, or one that we compute
wrongly, stops the node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from p2pnode.errors import PrivacyError, TaskError
from p2pnode.training import layers
from p2pnode.training.parameters import FlatModel

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_SHRINK: Final = 1 - 1e-6  # so that rounding never leaves a clipped gradient longer than the bound
_CHECKED: Final = 3  # examples in the comparison with plain autograd
_TOLERANCE: Final = 1e-3
_FUNC_VALUES: Final = 1 << 25  # per-example gradients that torch.func holds at once (128 MB)


def refuse_mixing_layers(model: nn.Module) -> None:
    """Raises TaskError, naming layer and replacement, if a layer makes one example's gradient depend on the others'."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise TaskError(
                f"the layer {name or 'model'} ({type(module).__name__}) mixes the examples of a batch, so one "
                "example's influence can't be bounded: use GroupNorm in its place"
            )
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            raise TaskError(
                f"the layer {name or 'model'} ({type(module).__name__}) keeps running statistics of private data: "
                "set track_running_stats=False"
            )


@dataclass
class _Call:
    """One call of one layer in the forward pass."""

    layer: nn.Module
    given: torch.Tensor
    version: int  # of `given`: changed in place since, it is no longer what the layer saw
    edge: Any  # where the output's gradient arrives; unlike the output itself it survives changes in place


class ClippedSum:
    """Sums of clipped per-example gradients of one model.

    model: trained through `FlatModel`. loss: per-example losses [n] from outputs and targets. clip: the L2 bound, above
    0. microbatch: examples at once, which bounds memory. Raises TaskError for a model that mixes examples.
    """

    def __init__(self, model: FlatModel, loss: Loss, clip: float, *, microbatch: int = 512) -> None:
        refuse_mixing_layers(model.model)
        self.model = model
        self.loss = loss
        self.clip = clip
        self.microbatch = microbatch
        self._layers = [module for module in model.model.modules() if layers.learned(module)]
        self._calls: list[_Call] | None = None
        for layer in self._layers:
            layer.register_forward_hook(self._keep)
        known = all(layers.own_rule(layer) or layers.opacus_sampler(layer) for layer in self._layers)
        self.method = "book-keeping" if known else "torch.func"

    def _keep(self, layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if self._calls is None:
            return
        if len(given) != 1 or not isinstance(given[0], torch.Tensor) or not isinstance(output, torch.Tensor):
            raise TaskError(f"a layer of type {type(layer).__name__} takes or returns more than one tensor")
        edge = torch.autograd.graph.get_gradient_edge(output)
        self._calls.append(_Call(layer, given[0].detach(), given[0]._version, edge))

    @contextmanager
    def _listening(self) -> Iterator[list[_Call]]:
        self._calls = []
        try:
            yield self._calls
        finally:
            self._calls = None

    def verify(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Compare with plain autograd, one example at a time, on the first few of these examples; dropout is off
        meanwhile.

        If book-keeping is wrong for this model, torch.func takes over. Raises TaskError if that is wrong too, or if the
        examples influence each other.
        """
        few, labels = inputs[:_CHECKED], targets[:_CHECKED]
        dropping = [
            m for m in self.model.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training
        ]
        for module in dropping:
            module.eval()
        try:
            expected, alone = self._one_by_one(few, labels)
            with torch.no_grad():
                together = self.loss(self.model.model(few), labels)
            if not torch.allclose(together, alone, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
                raise TaskError(
                    "the model's loss of one example changes with the others in its batch, so one example's influence "
                    "can't be bounded: find the layer that mixes examples, or use privacy mode 'node'"
                )
            for method in dict.fromkeys((self.method, "torch.func")):
                self.method = method
                found = torch.zeros_like(expected)
                try:
                    self.add(few, labels, found)
                except (TaskError, RuntimeError, NotImplementedError):
                    continue
                if float((found - expected).norm()) <= _TOLERANCE * max(float(expected.norm()), 1e-3 * self.clip):
                    return
        finally:
            for module in dropping:
                module.train()
        raise TaskError(
            "per-example gradients of this model can't be computed (they differ from each example's by itself): use "
            "another model, or privacy mode 'node'"
        )

    def _one_by_one(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of clipped gradients, losses [n]), each example by itself."""
        total = torch.zeros_like(self.model.flat)
        alone = []
        for row in range(inputs.shape[0]):
            losses = self.loss(self.model.model(inputs[row : row + 1]), targets[row : row + 1])
            found = torch.autograd.grad(losses.sum(), self.model.parameters, materialize_grads=True)
            each = torch.cat([gradient.flatten() for gradient in found])
            alone.append(losses.detach())
            total += each * self._factors(each.norm()[None])
        return total, torch.cat(alone)

    def _factors(self, norms: torch.Tensor) -> torch.Tensor:
        """What each example's gradient is multiplied with: at most 1, and 0 where the norm is not finite."""
        factors = (self.clip * _SHRINK / norms.clamp(min=1e-30)).clamp(max=1.0)
        return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))

    def add(self, inputs: torch.Tensor, targets: torch.Tensor, into: torch.Tensor) -> tuple[float, float]:
        """into ([size], flat) += the sum of the clipped gradients of these examples; none is fine.

        Returns (sum of losses, sum of unclipped norms), which are private: they must not leave the node. An example
        whose gradient is not finite counts as zero.
        """
        losses = norms = 0.0
        pieces = -(-inputs.shape[0] // self.microbatch)
        for examples, labels in zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True) if pieces else ():
            step = self._bookkeeping if self.method == "book-keeping" else self._by_func
            loss, norm = step(examples, labels, into)
            finite = torch.isfinite(norm)
            losses += float(loss[finite].sum())
            norms += float(norm[finite].sum())
        return losses, norms

    def _bookkeeping(
        self, inputs: torch.Tensor, targets: torch.Tensor, into: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self._listening() as calls:
            losses = self.loss(self.model.model(inputs), targets)
        if not calls:
            raise TaskError("no layer of the model was called: its parameters are used elsewhere")
        backs = torch.autograd.grad(losses.sum(), [call.edge for call in calls], allow_unused=True)
        with torch.no_grad():
            found = self._gradients(calls, list(backs))
            norms = torch.stack([each.squares() for each in found]).sum(0).sqrt()
            factors = self._factors(norms)
            if not bool(torch.isfinite(norms).all()):  # 0 times NaN is NaN: leave those examples out altogether
                kept = torch.isfinite(norms)
                if bool(kept.any()):
                    with torch.enable_grad():
                        self._bookkeeping(inputs[kept], targets[kept], into)
                return losses.detach(), norms
            into_layers = dict(zip(map(id, self.model.parameters), self.model.spread(into), strict=True))
            for each in found:
                each.add(factors, into_layers)
        return losses.detach(), norms

    def _gradients(self, calls: list[_Call], backs: list[torch.Tensor | None]) -> list[layers.LayerGradients]:
        times = Counter(id(parameter) for call in calls for parameter in layers.learned(call.layer))
        found: list[layers.LayerGradients] = []
        shared: list[tuple[torch.Tensor, torch.Tensor]] = []
        for call, back in zip(calls, backs, strict=True):
            if back is None:
                continue
            if call.given._version != call.version:
                raise TaskError(f"the input of a {type(call.layer).__name__} layer is changed in place after its use")
            rule = layers.own_rule(call.layer)
            if rule is not None and all(times[id(value)] == 1 for value in layers.learned(call.layer)):
                found.append(rule(call.layer, call.given, back))  # type: ignore[arg-type]
            else:
                shared += layers.instances_of(call.layer, call.given, back)
        if shared:
            found.append(layers.Instances(shared))
        return found

    def _by_func(
        self, inputs: torch.Tensor, targets: torch.Tensor, into: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model = self.model.model
        names = [spec.name for spec in self.model.schema]
        learned = {name: value.detach() for name, value in zip(names, self.model.parameters, strict=True)}
        fixed = {name: value.detach() for name, value in model.named_parameters() if name not in learned}
        fixed |= dict(model.named_buffers())

        def one(values: dict[str, torch.Tensor], example: torch.Tensor, target: torch.Tensor) -> Any:
            outputs = torch.func.functional_call(model, {**fixed, **values}, (example[None],))
            loss = self.loss(outputs, target[None]).sum()
            return loss, loss

        each = torch.func.vmap(torch.func.grad(one, has_aux=True), in_dims=(None, 0, 0), randomness="different")
        rows = max(1, _FUNC_VALUES // self.model.size)
        all_losses, all_norms = [], []
        for examples, labels in zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True):
            gradients, losses = each(learned, examples, labels)
            flat = torch.cat([gradients[name].flatten(1) for name in names], dim=1)
            norms = flat.norm(dim=1)
            kept = torch.isfinite(norms)
            into += self._factors(norms)[kept] @ flat[kept]
            all_losses.append(losses.detach())
            all_norms.append(norms)
        return torch.cat(all_losses), torch.cat(all_norms)


def clip_vector(vector: torch.Tensor, clip: float) -> torch.Tensor:
    """A whole update scaled down to L2 norm `clip` if it is longer. Raises PrivacyError if it is not finite."""
    norm = float(vector.double().norm())
    if not norm < float("inf"):
        raise PrivacyError(
            "the local update is not finite, so it can't be clipped: nothing is released; lower the learning rate"
        )
    return vector * min(1.0, clip * _SHRINK / norm) if norm > 0 else vector
