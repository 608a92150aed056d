"""Measuring a model that was saved: the same numbers as the node that saved it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from p2pnode.errors import DataError, UsageError
from p2pnode.results import SavedModel
from p2pnode.training.local import find_device
from p2pnode.training.parameters import FlatModel
from p2pnode.training.registry import find_task
from p2pnode.training.task import Evaluation

_EVALUATED = 1000  # examples at once


def evaluate_saved(saved: SavedModel, *, data_dir: Path | None, device: str) -> tuple[Evaluation, Sequence[str]]:
    """Measures on the held-out split of the manifest's data set, and the names of the classes.

    Raises TaskError (not installed), DataError (missing, or another data set), UsageError (tensors that are not the
    task's, no such device).
    """
    task = find_task(saved.manifest.task.name, saved.manifest.task.parameters)
    where = find_device(device)
    flat = FlatModel(task.model(), where)
    expected = {tensor.name: tensor.shape for tensor in flat.schema}
    found = {name: value.shape for name, value in saved.tensors.items()}
    if expected != found:
        odd = next(name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name))
        raise UsageError(
            f"the model is not one of task {task.name} with these parameters: tensor {odd} is "
            f"{found.get(odd, 'missing')}, must be {expected.get(odd, 'absent')}"
        )
    dataset = task.load(data_dir)
    if dataset.digest != saved.manifest.task.data_digest:
        raise DataError(
            f"the data here has digest {dataset.digest}, and the model's manifest names "
            f"{saved.manifest.task.data_digest}: measures would not be comparable"
        )
    flat.load(np.concatenate([saved.tensors[tensor.name].reshape(-1) for tensor in flat.schema]))
    flat.model.eval()
    with torch.no_grad():
        outputs = [flat.model(part.to(where)).to("cpu") for part in torch.split(dataset.test.inputs, _EVALUATED)]
    return task.measures(torch.cat(outputs), dataset.test.targets), dataset.classes
