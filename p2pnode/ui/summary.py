"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from p2pnode.ui.text import (
    clean,
    count,
    format_budget,
    format_bytes,
    format_measure,
    format_seconds,
    measure_label,
    ordered_measures,
)
from p2pnode.ui.view import RunView

MAX_CLASSES_SHOWN: Final = 20


def summary_lines(view: RunView, now: float) -> list[str]:
    """What came out and what it cost, as aligned lines of plain text."""
    rows = list(_rows(view, now))
    name = clean(view.started.get("run") or "")
    lines = [f'Summary of run "{name}"' if name else "Summary", ""]
    lines += _aligned(rows)
    confusion = view.result.get("confusion")
    if confusion is not None:
        lines += ["", *confusion_lines(confusion)]
    return lines


class Measured(Protocol):
    """What is shown of an evaluation (`training.task.Evaluation`, which can't be imported here: it needs torch)."""

    @property
    def measures(self) -> Mapping[str, float]:
        """By name."""

    @property
    def examples(self) -> int:
        """How many it was measured on."""

    @property
    def confusion(self) -> Any:
        """[classes, classes] counts, or None."""


def evaluation_lines(about: Mapping[str, str], evaluation: Measured, classes: Sequence[str] = ()) -> list[str]:
    """A model's measures as aligned lines of plain text. about: label -> text, said first."""
    rows = [(label, clean(text)) for label, text in about.items()]
    rows += [("examples", str(evaluation.examples)), *measure_rows(evaluation.measures)]
    lines = _aligned(rows)
    if evaluation.confusion is not None:
        lines += ["", *confusion_lines(evaluation.confusion, classes)]
    return lines


def measure_rows(measures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and value of each measure, the usual ones first."""
    return [(measure_label(name), format_measure(name, measures[name])) for name in ordered_measures(measures)]


def confusion_lines(confusion: Sequence[Sequence[int]], classes: Sequence[str] = ()) -> list[str]:
    """The matrix with its labels: rows are what was true, columns what was predicted."""
    rows = [[int(value) for value in row] for row in confusion]
    if len(rows) > MAX_CLASSES_SHOWN:
        return [f"  The confusion matrix has {len(rows)} classes: see the result file."]
    labels = [clean(name) for name in classes] or [str(index) for index in range(len(rows))]
    side = max(len(label) for label in labels)
    cell = max([side, *(len(str(value)) for row in rows for value in row)])
    lines = ["  Confusion matrix (rows: true, columns: predicted)", ""]
    lines.append(" " * (side + 4) + " ".join(f"{label:>{cell}}" for label in labels))
    for label, row in zip(labels, rows, strict=True):
        lines.append(f"  {label:>{side}}  " + " ".join(f"{value if value else '.':>{cell}}" for value in row))
    return lines


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(label) for label, _ in rows)
    return [f"  {label:<{width}}  {value}" for label, value in rows]


def _rows(view: RunView, now: float) -> Iterator[tuple[str, str]]:
    measures = dict(view.result.get("measures") or view.last.get("measures") or {})
    for name in ("accuracy", "loss"):
        if name not in measures and view.last.get(name) is not None:
            measures[name] = view.last[name]
    yield from measure_rows(measures)
    if view.private is False:
        yield "privacy", "OFF: what this node sent was not noised"
    elif view.epsilon is not None or view.private:
        yield "privacy", format_budget(view.epsilon, view.started.get("epsilon_budget"), view.delta)
    last = view.result.get("round") if view.result.get("round") is not None else view.round
    rounds = count(view.rounds, "certified round")
    rounds += f", {view.contributed} with our update" + ("" if last is None else f"; the last is round {last}")
    yield "rounds", rounds + (f"; {count(view.discarded, 'attempt')} came to nothing" if view.discarded else "")
    if view.provisional:
        yield "history", "PROVISIONAL: it went on without a majority of the voters"
    if view.rejected:
        yield "refused", count(view.rejected, "message")
    yield "examples", f"{view.samples} drawn here"
    yield "traffic", f"{format_bytes(view.bytes_sent)} sent, {format_bytes(view.bytes_received)} received"
    yield "time", format_seconds(now - view.began)
    for label, value in (
        ("state", view.result.get("state_digest") or view.last.get("state_digest")),
        ("model", view.result.get("model")),
    ):
        if value:
            yield label, clean(value.hex() if isinstance(value, bytes) else value)
