"""Which goals can be reached at all: measures that are known, values that they can have. Imports no task."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final

from p2pnode.config import Goal, parse_goal
from p2pnode.errors import UsageError
from p2pnode.training.registry import BUILT_IN, task_names

CLASSIFICATION: Final = ("loss", "accuracy", "precision", "recall", "f1")
MOST: Final[Mapping[str, float]] = {
    "loss": math.inf,
    "mse": math.inf,
    "mae": math.inf,
    "accuracy": 1.0,
    "precision": 1.0,
    "recall": 1.0,
    "f1": 1.0,
    "auc": 1.0,
}
"""The largest value of each usual measure; the smallest is 0."""


def parse_until(text: str) -> Goal:
    """A goal of this node's own, checked before it is known which task it is for. UsageError."""
    goal = parse_goal(text)
    others = len(task_names()) > len(BUILT_IN)  # tasks of other packages may have measures of their own
    check_goal(goal, None if others else CLASSIFICATION)
    return goal


def check_goal(goal: Goal, measures: Collection[str] | None) -> None:
    """UsageError if the goal can never be reached. measures: all that the task has; None if that is not known."""
    if measures is not None and goal.metric not in measures:
        raise UsageError(f'found "{goal}", no measure is called {goal.metric}; they are {", ".join(measures)}')
    most = MOST.get(goal.metric)
    if most is None:
        return
    if goal.operator == ">=" and goal.value > most:
        raise UsageError(f'found "{goal}", which can never hold: {goal.metric} is a fraction, from 0 to 1')
    if goal.operator == "<=" and goal.value < 0:
        raise UsageError(f'found "{goal}", which can never hold: {goal.metric} is never below 0')
