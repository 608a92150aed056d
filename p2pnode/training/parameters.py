"""The shared model as one flat float32 vector, and the schema that peers agree on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import torch
from blake3 import blake3

from p2pnode.errors import TaskError
from p2pnode.training.task import FloatVector, TensorSpec

_DOMAIN: Final = b"p2pnode/schema/1\0"


def trainable(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that are learned, in the order of the shared state. Raises TaskError if there are none or one
    isn't float32.
    """
    found = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    if not found:
        raise TaskError("the task's model has nothing to learn: no parameter requires a gradient")
    for name, value in found:
        if value.dtype != torch.float32:
            raise TaskError(f"the model's parameter {name} is {value.dtype}: all that is shared is float32")
    return found


def schema_of(model: torch.nn.Module) -> tuple[TensorSpec, ...]:
    """Name and shape of every trainable parameter, in `named_parameters()` order."""
    return tuple(TensorSpec(name, tuple(value.shape)) for name, value in trainable(model))


def schema_digest(schema: Iterable[TensorSpec]) -> str:
    """BLAKE3 (hex) over the schema in its order: count, then per tensor its name's length and UTF-8 bytes, rank, and
    sizes.

    Every number is 8 bytes, little-endian. The order counts, for it is the order of the flat vector.
    """
    tensors = tuple(schema)

    def number(value: int) -> bytes:
        return value.to_bytes(8, "little")

    hasher = blake3(_DOMAIN + number(len(tensors)))
    for tensor in tensors:
        name = tensor.name.encode()
        hasher.update(number(len(name)) + name + number(len(tensor.shape)))
        for size in tensor.shape:
            hasher.update(number(size))
    return hasher.hexdigest()


class FlatModel:
    """A model whose trainable parameters are views of one flat float32 tensor, `flat`, on `device`."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self.model = model.to(device)
        named = trainable(self.model)
        self.schema = tuple(TensorSpec(name, tuple(value.shape)) for name, value in named)
        self.parameters = [value for _, value in named]
        self.flat = torch.cat([value.detach().reshape(-1) for value in self.parameters])
        start = 0
        for value in self.parameters:
            value.data = self.flat[start : start + value.numel()].view(value.shape)
            start += value.numel()

    @property
    def size(self) -> int:
        """Values in the vector."""
        return self.flat.numel()

    def load(self, state: FloatVector) -> None:
        """Set all parameters. state: [size] float32, finite or not. Raises ValueError for another shape or type."""
        if state.shape != (self.size,) or state.dtype != np.float32:
            raise ValueError(
                f"the state has shape {state.shape} and type {state.dtype}, expected ({self.size},) float32"
            )
        source = state if state.flags.writeable and state.flags.c_contiguous else np.array(state)
        with torch.no_grad():
            self.flat.copy_(torch.from_numpy(source))

    def vector(self) -> FloatVector:
        """A copy of all parameters: [size] float32."""
        return np.array(self.flat.detach().cpu().numpy(), dtype=np.float32)

    def spread(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a vector of this size, shaped like the parameters, in their order."""
        pieces = torch.split(flat, [value.numel() for value in self.parameters])
        return [piece.view(value.shape) for piece, value in zip(pieces, self.parameters, strict=True)]
