"""Option types and options that several commands share. Whatever is heavy is imported when a value is read."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])


class Parsed(click.ParamType[Any]):
    """A value that a function of `p2pnode.config` (or another module) reads; its UsageError becomes click's."""

    def __init__(self, metavar: str, parser: str, module: str = "p2pnode.config") -> None:
        self.name = metavar
        self._parser = parser
        self._module = module

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        from p2pnode.errors import UsageError

        try:
            return getattr(importlib.import_module(self._module), self._parser)(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class InviteType(click.ParamType[Any]):
    """An invite, as pasted."""

    name = "INVITE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        from p2pnode.errors import InviteError
        from p2pnode.invite import Invite

        try:
            return Invite.parse(value)
        except InviteError as error:
            # Its message stands for itself: "Invalid value for '[INVITE]'" adds nothing.
            raise click.UsageError(str(error), ctx) from None


class TaskName(click.ParamType[str]):
    """The name of an installed task."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        import difflib

        from p2pnode.training.registry import task_names

        names = task_names()
        if value not in names:
            near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"? ' if near else ""
            self.fail(f'no task is called "{value}"; {hint}Installed: {", ".join(names)}', param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from p2pnode.training.registry import task_names

        return [CompletionItem(name) for name in task_names() if name.startswith(incomplete)]


class PathType(click.Path):
    """A path; an empty one is a mistake, such as a variable that is not set, and never "here"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("found an empty path, must name a file or directory", param, ctx)
        return super().convert(value, param, ctx)


PATH = PathType(path_type=Path)
FOLDER = PathType(exists=True, file_okay=False, path_type=Path)

home_option = click.option(
    "--home",
    type=PATH,
    envvar="P2PNODE_HOME",
    metavar="DIR",
    help="Where this node keeps its identity and its runs (also P2PNODE_HOME; default: your data directory).",
)
data_dir_option = click.option(
    "--data-dir", type=FOLDER, metavar="DIR", help="Folder that holds the data set; else the cache, else a download."
)
device_option = click.option(
    "--device",
    type=Parsed("DEVICE", "parse_device"),
    default="auto",
    help="auto (default), cpu, cuda, cuda:N or mps.",
)
threads_option = click.option(
    "--threads", type=Parsed("N", "parse_threads"), help="Processor threads for the arithmetic."
)


def common(command: F) -> F:
    """Options of every command. `main` looks for --debug itself, so that it works for errors of any kind."""
    return click.option("--debug", is_flag=True, help="Show where an error came from.")(command)


def home_at(path: Path | None) -> Any:
    """The home that was asked for, or the default one."""
    from p2pnode.home import Home, default_home

    return Home(default_home() if path is None else path.expanduser())
