"""One node's local work: from the global state and its own share of data to the one vector that may leave it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from p2pnode.config import Share
from p2pnode.errors import DataError, MachineError, ManifestError, PrivacyError, UsageError
from p2pnode.manifest import RunManifest, TrainingSection
from p2pnode.privacy.accountant import check_promise
from p2pnode.privacy.ledger import Ledger
from p2pnode.privacy.mechanism import Mechanism, Released, of_round
from p2pnode.privacy.noise import NoiseSource, add_noise
from p2pnode.training.clipping import ClippedSum, clip_vector
from p2pnode.training.data import check_split, take_share
from p2pnode.training.optimizers import make_optimizer
from p2pnode.training.parameters import FlatModel, schema_digest
from p2pnode.training.task import Dataset, Evaluation, FloatVector, Split, Task, TensorSpec

_EVALUATED: Final = 1000  # examples at once


@dataclass(frozen=True)
class LocalUpdate:
    """One round's local work. Only `vector`, `steps` and `mechanism` may leave the node.

    vector: [size] float32, local state minus global state, clipped and noised as `mechanism` says. steps: local steps
    that it holds (fewer than asked if cancelled). samples, loss, gradient_norm: examples used, their mean loss, and
    their gradients' mean norm before clipping (0 without clipping): private, for the node's own screen only. epsilon:
    what the ledger shows as spent on this data in all runs, at the manifest's delta (0 in mode `none`). seconds: how
    long it took.
    """

    vector: FloatVector
    steps: int
    mechanism: Released
    samples: int
    loss: float
    gradient_norm: float
    epsilon: float
    seconds: float


def find_device(text: str = "auto") -> torch.device:
    """The device to train on: `auto` takes CUDA, else MPS, else the CPU. Raises MachineError if it isn't there."""
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise MachineError(
            f"the device {text!r} is not on this machine, or this torch can't use it: take --device auto or cpu"
        ) from None
    return device


def set_threads(count: int) -> None:
    """Processor threads for this process' arithmetic: at least 1. Raises UsageError otherwise."""
    if count < 1:
        raise UsageError(f"threads is at least 1, not {count}")
    torch.set_num_threads(count)


def learning_rate(training: TrainingSection, step: int, planned: int) -> float:
    """Of the global local step `step` (0, 1, ...) of `planned`: constant, or half a cosine from first to last."""
    if training.schedule == "constant":
        return training.learning_rate
    done = min(step / max(planned - 1, 1), 1.0)
    final = training.schedule_final
    return training.learning_rate * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


class _Order:
    """Endless shuffled epochs over `count` examples."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count = count
        self._generator = generator
        self._left = torch.empty(0, dtype=torch.int64)

    def take(self, size: int) -> torch.Tensor:
        """The next `size` examples' numbers; an epoch's last ones are followed by the next epoch's first."""
        while len(self._left) < size:
            self._left = torch.cat([self._left, torch.randperm(self._count, generator=self._generator)])
        taken, self._left = self._left[:size], self._left[size:]
        return taken


class LocalTrainer:
    """Trains one task on one share of its data, as a run's manifest says.

    ledger: of this share's fingerprint; needed unless the privacy mode is `none`. randomness: for noise, sampling,
    order and first weights; a `NoiseSource` of its own if None. Raises ManifestError (the plan costs more than it
    promises, or the model is another one), DataError (bad data, or other data than the manifest's), PrivacyError (no
    ledger, or predictable noise), TaskError (a model that mixes examples), MachineError (no such device). Not for two
    threads at once, but `evaluate` may run beside `train`.
    """

    def __init__(
        self,
        task: Task,
        dataset: Dataset,
        share: Share,
        manifest: RunManifest,
        *,
        device: str = "auto",
        ledger: Ledger | None = None,
        randomness: NoiseSource | None = None,
    ) -> None:
        self.task = task
        self.manifest = manifest
        self.device = find_device(device)
        self._random = randomness if randomness is not None else NoiseSource()
        self._ledger = ledger
        self._private = manifest.privacy.mode != "none"
        if self._private:
            check_promise(manifest.privacy)
            if ledger is None:
                raise PrivacyError("private training needs a ledger for this data: open one before training")
            if not self._random.secure:
                raise PrivacyError(
                    "the noise is predictable (a fixed seed): a private run needs the system's randomness"
                )
        if dataset.digest != manifest.task.data_digest:
            raise DataError(
                f"the data here has digest {dataset.digest}, and the manifest names {manifest.task.data_digest}: "
                "this run trains on other data"
            )
        self._data = take_share(share, dataset)
        self._test = dataset.test
        check_split(self._data, len(dataset.classes), "training")
        check_split(self._test, len(dataset.classes), "test")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._random.seed())
            self._worker = FlatModel(task.model(), self.device)
            self._judge = FlatModel(task.model(), self.device)
        self.schema: tuple[TensorSpec, ...] = self._worker.schema
        found = schema_digest(self.schema)
        if found != manifest.task.schema_digest:
            raise ManifestError(
                f"task.schema_digest is {manifest.task.schema_digest}, and the installed task {task.name!r} has "
                f"{found}: install the version of the task that this run was made with"
            )
        self._first = self._worker.vector()
        self._plan = self._planned_steps()
        generator = torch.Generator().manual_seed(self._random.seed())
        self._order = _Order(len(self._data), generator)
        self._augmenting = torch.Generator().manual_seed(self._random.seed())
        self._clipped: ClippedSum | None = None
        if manifest.privacy.mode == "example":
            self._clipped = ClippedSum(self._worker, task.loss, manifest.privacy.clip)
            self._clipped.verify(self._data.inputs[:4].to(self.device), self._data.targets[:4].to(self.device))
        self._gradient = torch.zeros_like(self._worker.flat)
        self._optimizer = make_optimizer(manifest.training)

    def _planned_steps(self) -> int:
        training, privacy = self.manifest.training, self.manifest.privacy
        planned = training.target_rounds * training.local_steps
        if not planned and self._private:
            planned = privacy.steps * (training.local_steps if privacy.mode == "node" else 1)
        return planned

    @property
    def examples(self) -> int:
        """Training examples in this node's share. Private."""
        return len(self._data)

    def initial(self) -> FloatVector:
        """The state that this node's fresh model has: what a founder begins with. [size] float32."""
        return self._first.copy()

    def train(self, state: FloatVector, round: int, *, cancelled: Callable[[], bool] = lambda: False) -> LocalUpdate:
        """`local_steps` local steps from the global `state`; round numbers start at 1.

        state: [size] float32, not changed. cancelled: asked before each step; once true, the update holds the steps
        done so far. The ledger is charged for the whole round before the first draw, and keeps the charge whatever
        happens. Raises BudgetSpent or LedgerBroken: nothing was drawn, and nothing may be sent.
        """
        if round < 1:
            raise ValueError(f"round numbers start at 1, not {round}")
        began = time.perf_counter()
        training, privacy = self.manifest.training, self.manifest.privacy
        self._worker.load(state)
        self._worker.model.train()
        spent = 0.0
        if privacy.mode == "example":
            spent = self._charge(round, of_round(self.manifest))
        steps = samples = 0
        losses = norms = 0.0
        for _ in range(training.local_steps):
            if cancelled():
                break
            count, loss, norm = self._plain_step() if self._clipped is None else self._private_step(self._clipped)
            rate = learning_rate(training, (round - 1) * training.local_steps + steps, self._plan)
            self._optimizer.step(self._worker.flat, self._gradient, rate)
            steps, samples, losses, norms = steps + 1, samples + count, losses + loss, norms + norm
        change = self._worker.vector() - state
        if privacy.mode == "node" and steps:
            spent = self._charge(round, of_round(self.manifest))
            change = self._noised(change)
        used = max(samples, 1)
        released = self._released(steps)
        return LocalUpdate(
            change, steps, released, samples, losses / used, norms / used, spent, time.perf_counter() - began
        )

    def _charge(self, round: int, mechanism: Mechanism) -> float:
        if self._ledger is None:
            raise PrivacyError("private training needs a ledger for this data")
        privacy = self.manifest.privacy
        return self._ledger.reserve(self.manifest.run_id, round, mechanism, (privacy.epsilon, privacy.delta))

    def _released(self, steps: int) -> Released:
        privacy = self.manifest.privacy
        if privacy.mode == "none":
            return Released("none")
        rate = privacy.sampling_rate if privacy.mode == "example" else 0.0
        count = steps if privacy.mode == "example" else min(steps, 1)
        return Released(privacy.mode, privacy.clip, privacy.noise_multiplier, rate, count)

    def _batch(self, rows: torch.Tensor) -> Split:
        inputs = self._data.inputs[rows]
        if len(rows):
            inputs = self.task.augment(inputs, self._augmenting)
        return Split(inputs.to(self.device), self._data.targets[rows].to(self.device))

    def _plain_step(self) -> tuple[int, float, float]:
        batch = self._batch(self._order.take(min(self.manifest.training.batch_size, len(self._data))))
        loss = self.task.loss(self._worker.model(batch.inputs), batch.targets).mean()
        found = torch.autograd.grad(loss, self._worker.parameters, materialize_grads=True)
        for piece, gradient in zip(self._worker.spread(self._gradient), found, strict=True):
            piece.copy_(gradient)
        return len(batch), float(loss.detach()) * len(batch), 0.0

    def _private_step(self, clipped: ClippedSum) -> tuple[int, float, float]:
        """One step of DP-SGD (arXiv 1607.00133): the sum is divided by the expected batch, never by the secret real
        one.
        """
        privacy = self.manifest.privacy
        taken = self._random.mask(len(self._data), privacy.sampling_rate)
        batch = self._batch(torch.from_numpy(np.flatnonzero(taken)))
        total = torch.zeros_like(self._gradient)
        loss, norm = clipped.add(batch.inputs, batch.targets, total)
        noisy = add_noise(total, privacy.noise_multiplier * privacy.clip, self._random)
        torch.div(noisy, privacy.sampling_rate * len(self._data), out=self._gradient)
        return len(batch), loss, norm

    def _noised(self, change: FloatVector) -> FloatVector:
        privacy = self.manifest.privacy
        clipped = clip_vector(torch.from_numpy(change), privacy.clip)
        noisy = add_noise(clipped, privacy.noise_multiplier * privacy.clip, self._random)
        return np.asarray(noisy.numpy(), dtype=np.float32)

    def evaluate(self, state: FloatVector) -> Evaluation:
        """All of the task's measures of a global state on the held-out split."""
        self._judge.load(state)
        self._judge.model.eval()
        with torch.no_grad():
            outputs = [
                self._judge.model(part.to(self.device)).to("cpu") for part in torch.split(self._test.inputs, _EVALUATED)
            ]
        return self.task.measures(torch.cat(outputs), self._test.targets)
