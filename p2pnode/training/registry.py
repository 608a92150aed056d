"""Finding a task by name: the built-in ones, and those that other packages install (entry point group `p2pnode.tasks`).

A manifest only names a task; what the name means is what this machine's owner has installed. A built-in name can't be
taken over by another package.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from p2pnode.errors import P2PNodeError, TaskError

if TYPE_CHECKING:  # importing it for real costs a second of torch, and names are listed without
    from p2pnode.training.task import Task

GROUP: Final = "p2pnode.tasks"
BUILT_IN: Final[Mapping[str, str]] = {
    "digits": "p2pnode.tasks.digits:Digits",
    "mnist-cnn": "p2pnode.tasks.mnist:MnistCnn",
    "mnist-cnn-private": "p2pnode.tasks.mnist:MnistCnnPrivate",
    "mnist-deep-cnn": "p2pnode.tasks.mnist:MnistDeepCnn",
    "mnist-mlp": "p2pnode.tasks.mnist:MnistMlp",
}

Value = TypeVar("Value", bool, int, float, str)


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in BUILT_IN}


def task_names() -> tuple[str, ...]:
    """Names of all installed tasks: the built-in ones first, then others by name. Imports none of them."""
    return (*BUILT_IN, *sorted(_installed()))


def find_task(name: str, parameters: Mapping[str, bool | int | float | str] | None = None) -> Task:
    """The task of this name, made with the manifest's task parameters.

    Raises TaskError: no such task is installed, it can't be imported, or it refuses its parameters.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        maker = getattr(importlib.import_module(module), attribute)
    else:
        entry = _installed().get(name)
        if entry is None:
            raise TaskError(f"no task is called {name!r} here; installed are {', '.join(task_names())}")
        try:
            maker = entry.load()
        except Exception as error:  # anything can go wrong in somebody else's module: the user needs its name
            raise TaskError(
                f"the task {name!r} of {entry.value} can't be loaded ({error}): reinstall its package"
            ) from error
    try:
        return cast("Task", maker(dict(parameters or {})))
    except P2PNodeError:
        raise
    except Exception as error:
        raise TaskError(f"the task {name!r} refused its parameters ({error})") from error


def summaries() -> dict[str, str]:
    """One line on each installed task, for people; for one that can't be loaded, why."""
    found = {}
    for name in task_names():
        try:
            found[name] = str(getattr(find_task(name), "summary", ""))
        except P2PNodeError as error:
            found[name] = f"can't be used: {error}"
    return found


def read_parameters(task: str, given: Mapping[str, Any], known: Mapping[str, Value]) -> dict[str, Value]:
    """`known` (names, with default values) updated by `given`. Raises TaskError for an unknown name or another type."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        allowed = f"it knows {', '.join(known)}" if known else "it has none"
        raise TaskError(f"the task {task!r} has no parameter {unknown[0]!r}: {allowed}")
    values = dict(known)
    for name, value in given.items():
        default = known[name]
        fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
        if not fits:
            kind = type(default).__name__
            raise TaskError(f"the parameter {name!r} of task {task!r} is of type {kind}, found {value!r}")
        values[name] = type(default)(value)
    return values
