"""This node's own work, off the event loop: task, data, ledger and trainer, built and run in one thread.

torch is imported here only when a `Worker` is made, so that the rest of the node starts at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from p2pnode.config import Share, WorkChoice
from p2pnode.errors import DataError
from p2pnode.home import Home
from p2pnode.identity import PeerId
from p2pnode.manifest import RunManifest
from p2pnode.node.checking import share_of
from p2pnode.round.contribution import Update
from p2pnode.wire.round_pb2 import Mechanism

if TYPE_CHECKING:
    from p2pnode.privacy.ledger import Ledger
    from p2pnode.training.local import LocalTrainer

T = TypeVar("T")


@dataclass(frozen=True)
class LocalResult:
    """One round's local work. samples: used by this node. epsilon: spent on this data so far; None without privacy."""

    update: Update
    samples: int
    epsilon: float | None
    complete: bool  # all local steps were done


@dataclass(frozen=True)
class Measured:
    """A state's measures on the held-out split."""

    measures: Mapping[str, float]
    confusion: npt.NDArray[np.int64] | None


class Worker:
    """The trainer of one run. Make it with `open`; every method runs in the worker's own threads."""

    def __init__(self, trainer: LocalTrainer, ledger: Ledger | None, manifest: RunManifest, share: Share) -> None:
        self.share = share
        self._trainer = trainer
        self._ledger = ledger
        self._manifest = manifest
        self._training = ThreadPoolExecutor(1, "p2pnode-train")
        self._evaluating = ThreadPoolExecutor(1, "p2pnode-evaluate")

    @classmethod
    def open(cls, manifest: RunManifest, home: Home, choice: WorkChoice, me: PeerId) -> Worker:
        """Load task and data, take this node's share, open its ledger. Blocks: call it in a thread.

        Raises TaskError, DataError, ManifestError, PrivacyError, HomeInUse, UsageError.
        """
        from p2pnode.privacy.ledger import Ledger
        from p2pnode.training.data import fingerprint, take_share
        from p2pnode.training.local import LocalTrainer, set_threads
        from p2pnode.training.registry import find_task

        if choice.threads is not None:
            set_threads(choice.threads)
        task = find_task(manifest.task.name, manifest.task.parameters)
        dataset = task.load(choice.data_dir)
        if dataset.digest != manifest.task.data_digest:
            raise DataError(
                f"the data set here is another one than the run's: its digest is {dataset.digest}, and the manifest "
                f"names {manifest.task.data_digest}; get the run's version of {manifest.task.name}'s data"
            )
        share = share_of(choice, me, task)
        ledger = None
        if manifest.privacy.mode != "none":
            name = fingerprint(take_share(share, dataset))
            ledger = Ledger.open(home.ledgers / f"{name}.jsonl", name)
        try:
            trainer = LocalTrainer(task, dataset, share, manifest, device=choice.device, ledger=ledger)
        except BaseException:
            if ledger is not None:
                ledger.close()
            raise
        return cls(trainer, ledger, manifest, share)

    @property
    def values(self) -> int:
        """The model's parameters."""
        return sum(spec.size for spec in self._trainer.schema)

    @property
    def examples(self) -> int:
        """Training examples in this node's share; for its own screen."""
        return self._trainer.examples

    def initial(self) -> npt.NDArray[np.float32]:
        """A fresh model's parameters, [values] float32."""
        return self._trainer.initial()

    def tensors(self, parameters: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """Parameters by tensor name."""
        out, at = {}, 0
        for spec in self._trainer.schema:
            out[spec.name] = parameters[at : at + spec.size].reshape(spec.shape)
            at += spec.size
        return out

    def spent(self) -> float | None:
        """Epsilon spent on this data so far at the manifest's delta; None without privacy."""
        return None if self._ledger is None else self._ledger.spent(self._manifest.privacy.delta)

    async def train(
        self, parameters: npt.NDArray[np.float32], round_number: int, cancelled: Callable[[], bool]
    ) -> LocalResult:
        """One round's local work. Raises BudgetSpent, LedgerBroken."""

        def work() -> LocalResult:
            found = self._trainer.train(parameters, round_number, cancelled=cancelled)
            released = found.mechanism
            mechanism = Mechanism(
                mode=released.mode,
                clip=released.clip,
                noise_multiplier=released.noise_multiplier,
                sampling_rate=released.sampling_rate,
                steps=released.steps,
            )
            epsilon = None if self._ledger is None else found.epsilon
            complete = found.steps >= self._manifest.training.local_steps
            return LocalResult(Update(found.vector, found.steps, mechanism), found.samples, epsilon, complete)

        return await _in(self._training, work)

    async def evaluate(self, parameters: npt.NDArray[np.float32]) -> Measured:
        """All measures of a state; may run beside `train`."""

        def work() -> Measured:
            found = self._trainer.evaluate(parameters)
            return Measured(dict(found.measures), found.confusion)

        return await _in(self._evaluating, work)

    def close(self) -> None:
        """Let the threads end when their work does, and close the ledger."""
        self._training.shutdown(wait=False, cancel_futures=True)
        self._evaluating.shutdown(wait=False, cancel_futures=True)
        if self._ledger is not None:
            self._ledger.close()


async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def as_lists(confusion: Any) -> Sequence[Sequence[int]] | None:
    """A confusion matrix as JSON can hold it."""
    return None if confusion is None else [[int(count) for count in row] for row in confusion]
