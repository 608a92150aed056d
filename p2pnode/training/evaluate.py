"""Measures of a model on a held-out split. Plain numpy; no class gets a special weight."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from p2pnode.training.task import Evaluation


def confusion_matrix(truth: npt.NDArray[np.int64], found: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """[classes, classes] counts: rows are true classes, columns are predicted ones. Labels are 0 to classes - 1."""
    counted = np.bincount(truth * classes + found, minlength=classes * classes)
    return counted.reshape(classes, classes).astype(np.int64)


def macro_scores(confusion: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """(precision, recall, F1), each the plain mean over classes; a class with nothing to divide by scores 0."""
    right = np.diag(confusion).astype(np.float64)
    named, true = confusion.sum(axis=0), confusion.sum(axis=1)
    precision = np.divide(right, named, out=np.zeros_like(right), where=named > 0)
    recall = np.divide(right, true, out=np.zeros_like(right), where=true > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(right), where=both > 0)
    return float(precision.mean()), float(recall.mean()), float(f1.mean())


def classification(outputs: torch.Tensor, targets: torch.Tensor, classes: int) -> Evaluation:
    """From logits [n, classes] and labels [n]: loss (cross entropy, nats), accuracy, macro precision, recall and f1.

    A prediction that isn't finite counts as wrong: it is taken as class 0 only where that is not the truth.
    """
    truth = targets.detach().cpu().numpy().astype(np.int64)
    logits = outputs.detach().to("cpu", torch.float64)
    loss = float(torch.nn.functional.cross_entropy(logits, targets.detach().cpu()))
    finite = torch.isfinite(logits).all(dim=1).numpy()
    found = np.where(finite, logits.argmax(dim=1).numpy(), (truth == 0).astype(np.int64))
    confusion = confusion_matrix(truth, found, classes)
    precision, recall, f1 = macro_scores(confusion)
    accuracy = float(np.trace(confusion) / max(len(truth), 1))
    measures = {"loss": loss, "accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    return Evaluation(measures, len(truth), confusion)


def regression(outputs: torch.Tensor, targets: torch.Tensor) -> Evaluation:
    """From predictions and targets of one shape [n, k]: loss and mse (mean square), mae (mean absolute error)."""
    wrong = outputs.detach().to("cpu", torch.float64) - targets.detach().to("cpu", torch.float64)
    mse, mae = float(wrong.square().mean()), float(wrong.abs().mean())
    return Evaluation({"loss": mse, "mse": mse, "mae": mae}, int(targets.shape[0]))
