"""Killing this process at one step of writing to the disk: before it, after it, or in the middle of a write."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

When = Literal["before", "amid", "after"]


@dataclass
class Guillotine:
    """Falls at the `count`-th time that `step` (such as "fsync lock") is done in `folder`; not at all without a step.

    told: called with each step's name, and with "killed" just before the end.
    """

    folder: Path
    told: Callable[[str], None]
    step: str = ""
    count: int = 1
    when: When = "before"
    _seen: int = field(default=0, init=False)

    def install(self) -> None:
        """Watch all writing from now on, for the rest of this process."""
        write, fsync, replace, ftruncate = os.write, os.fsync, os.replace, os.ftruncate

        def on_write(descriptor: int, data: Any) -> int:
            half = bytes(memoryview(data)[: len(data) // 2])
            return self._do(
                "write", opened(descriptor), lambda: write(descriptor, data), lambda: write(descriptor, half)
            )

        def on_replace(source: Any, target: Any, **options: Any) -> None:
            self._do("rename", Path(target), lambda: replace(source, target, **options))

        os.write = on_write  # type: ignore[assignment]
        os.replace = on_replace  # type: ignore[assignment]
        os.fsync = lambda file: self._do("fsync", opened(file), lambda: fsync(file))  # type: ignore[assignment]
        os.ftruncate = lambda file, size: self._do("cut", opened(file), lambda: ftruncate(file, size))

    def _do(self, what: str, path: Path, action: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        if self.folder != path and self.folder not in path.parents:
            return action()
        step = f"{what} {kind_of(path)}"
        self.told(step)
        self._seen += step == self.step
        here = step == self.step and self._seen == self.count
        if here and self.when == "amid" and half is not None:
            half()
        if here and self.when != "after":
            self._fall()
        result = action()
        if here:
            self._fall()
        return result

    def _fall(self) -> None:
        self.told("killed")
        os.kill(os.getpid(), signal.SIGKILL)


def opened(descriptor: int) -> Path:
    """The path of an open file."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def kind_of(path: Path) -> str:
    """What a file is, whatever its round; files that are not in place yet are "new"."""
    name = path.name
    new = name.startswith(".") and name.endswith(".new")
    if new:
        name = name[1:].rsplit(".", 2)[0]
    kind = name if path.is_dir() or "." not in name or name == "chain.log" else name.rsplit(".", 1)[1]
    return f"new {kind}" if new else kind
