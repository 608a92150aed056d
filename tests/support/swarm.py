"""Swarms of real node processes for integration tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from p2pnode.swarm.process import NodeProcess

QUICK = (
    "training.local_steps=1",
    "training.target_rounds=0",
    "roster.company_wait=0.2",
    "deadlines.gather=5",
    "deadlines.contribute=8",
    "deadlines.close=8",
    "deadlines.vote=8",
)


def create_manifest(home: Path, path: Path, settings: Iterable[str] = QUICK, *, private: bool = False) -> Path:
    """`p2pnode run create digits`, with settings."""
    command = [sys.executable, "-m", "p2pnode", "run", "create", "digits", "--home", str(home), "-o", str(path)]
    for setting in settings:
        command += ["--set", setting]
    if not private:
        command.append("--unsafe-no-privacy")
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path


class Swarm:
    """Real nodes of one run; the first founds it. A context manager that leaves no process behind."""

    def __init__(self, folder: Path, settings: Iterable[str] = QUICK, *, private: bool = False, shares: int = 6):
        self.folder = folder
        self.shares = shares
        self.private = private
        self.nodes: list[NodeProcess] = []
        self.commands: list[list[str]] = []
        self.manifest = create_manifest(folder / "1", folder / "run.toml", settings, private=private)

    def start(self, *arguments: str) -> NodeProcess:
        """Start the next node: the founder, or one that joins by the founder's invite."""
        number = len(self.nodes) + 1
        if number == 1:
            how = ["--manifest", str(self.manifest)]
            if not self.private:
                how.append("--unsafe-no-privacy")
        else:
            how = [self.nodes[0].invite]
        how += ["--share", f"{number}/{self.shares}", "--threads", "1", *arguments]
        node = NodeProcess(self.folder / str(number), how)
        self.nodes.append(node)
        self.commands.append(how)
        return node

    def restart(self, index: int) -> NodeProcess:
        """Start a node that has ended again, with the very command that started it first."""
        node = self.nodes[index] = NodeProcess(self.nodes[index].home, self.commands[index])
        return node

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()

    def assert_one_history(self) -> None:
        """No two nodes tell of different states for one round."""
        seen: dict[int, str] = {}
        for node in self.nodes:
            for number, digest in node.digests().items():
                assert seen.setdefault(number, digest) == digest, f"round {number}"
