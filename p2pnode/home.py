"""The home directory of a node: where everything lies, and the lock that keeps a second process out of it.

identity.key                private key, mode 0600
lock                        held while a node runs; holds its process id
current                     id of the run that was joined last
peers.json                  peers remembered from the last time
ledgers/                    privacy ledgers, one per data set
runs/<run id>/manifest.toml invite.txt model.safetensors result.json
              chain.log states/ journal/ port: what a node goes on from when it is started again
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from p2pnode.errors import HomeInUse, MachineError, StorageError, UsageError


def default_home() -> Path:
    """Where a node lives unless it is told otherwise, by the habits of the operating system."""
    import platformdirs

    return Path(platformdirs.user_data_dir("p2pnode", appauthor=False))


@dataclass(frozen=True)
class RunFiles:
    """The files of one run; `directory` need not exist yet."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """The signed manifest, TOML."""
        return self.directory / "manifest.toml"

    @property
    def invite(self) -> Path:
        """The newest invite, one line."""
        return self.directory / "invite.txt"

    @property
    def model(self) -> Path:
        """The shared model when the node left, safetensors."""
        return self.directory / "model.safetensors"

    @property
    def result(self) -> Path:
        """The final measures, JSON."""
        return self.directory / "result.json"

    @property
    def chain(self) -> Path:
        """The certified chain, as far as this node has followed it."""
        return self.directory / "chain.log"

    @property
    def states(self) -> Path:
        """The directory of saved states, and of the outputs that lead on from them."""
        return self.directory / "states"

    @property
    def journal(self) -> Path:
        """The directory of what was signed in the round in progress."""
        return self.directory / "journal"

    @property
    def port(self) -> Path:
        """The port on which the node listened, so that its invites and its peers still find it there."""
        return self.directory / "port"

    @property
    def taken_part(self) -> bool:
        """Whether a node of this home has, or had, a history of the run: then it never begins it anew."""
        return any(self.directory.glob("chain.log*")) or any(self.journal.glob("*"))


@dataclass(frozen=True)
class Home:
    """A node's home directory. Makes nothing until asked to."""

    path: Path

    @property
    def identity(self) -> Path:
        """The private key's file."""
        return self.path / "identity.key"

    @property
    def peers(self) -> Path:
        """Peers remembered from the last time, JSON."""
        return self.path / "peers.json"

    @property
    def ledgers(self) -> Path:
        """The directory of privacy ledgers."""
        return self.path / "ledgers"

    @property
    def runs(self) -> Path:
        """The directory of runs."""
        return self.path / "runs"

    def run(self, run_id: str) -> RunFiles:
        """The files of the run with this id (64 hexadecimal digits, else ValueError)."""
        if re.fullmatch(r"[0-9a-f]{64}", run_id) is None:
            raise ValueError(f"not a run id: {run_id[:80]!r}")
        return RunFiles(self.runs / run_id)

    def create(self) -> None:
        """Make the directory, for its owner only. StorageError if that fails."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"{self.path}: can't be used as a home ({error.strerror})") from None

    def set_current(self, run_id: str) -> None:
        """Remember the run that was joined last."""
        self.run(run_id)
        write_atomically(self.path / "current", run_id.encode() + b"\n")

    def current(self) -> RunFiles:
        """The run that was joined last. MachineError if there is none in this home."""
        try:
            return self.run((self.path / "current").read_text("ascii").strip())
        except (OSError, ValueError):
            raise MachineError(f"{self.path}: no run was joined from this home yet; `p2pnode join` does") from None

    def find(self, prefix: str) -> RunFiles:
        """The run of this home whose id begins with `prefix`; the one that was joined last if that is empty.

        UsageError if none does, or several do. MachineError if no run was joined yet.
        """
        if not prefix:
            return self.current()
        found = sorted(path.name for path in self.runs.glob("*") if path.name.startswith(prefix.lower()))
        ids = [name for name in found if re.fullmatch(r"[0-9a-f]{64}", name)]
        if len(ids) != 1:
            which = "several runs" if ids else "no run"
            raise UsageError(f"{which} of this home ({self.path}) begin{'' if ids else 's'} with {prefix[:64]!r}")
        return self.run(ids[0])

    def lock(self) -> HomeLock:
        """Take the home for this process. Raises HomeInUse, which names the other process."""
        self.create()
        return HomeLock(self.path / "lock")


class HomeLock:
    """Holds a home until `release`, the end of a `with` block, or the end of the process, however it ends."""

    def __init__(self, path: Path) -> None:
        import fcntl  # here, because it exists on POSIX only

        try:
            # Not inherited by programs that we start, so libp2p's daemon can't outlive us holding the lock.
            file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise StorageError(f"{path}: can't be opened ({error.strerror})") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read(20).decode("ascii", "replace").strip() or "unknown"
            file.close()
            raise HomeInUse(
                f"{path.parent}: a node runs here already (process {holder}); stop it, or use another --home"
            ) from None
        file.truncate(0)
        file.write(b"%d\n" % os.getpid())
        file.flush()
        self._file: IO[bytes] | None = file

    def release(self) -> None:
        """Let others have the home. Idempotent."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._file.close()
            self._file = None

    def __enter__(self) -> HomeLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def write_atomically(path: Path, *data: bytes | memoryview, mode: int = 0o644) -> None:
    """Write all of `data` to `path`, whole or not at all, and durably: write, fsync, rename, fsync the directory.

    Replaces an existing file; makes the directory. StorageError, which names the file, if it can't be done.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            for piece in data:
                write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(f"{path}: can't be written ({error.strerror})") from None


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data` at a file's position. OSError."""
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. OSError."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that nothing reads it again and a person can look at it; its new path. StorageError."""
    aside = free_name(path)
    try:
        path.replace(aside)
        sync_directory(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: is damaged, and can't be set aside ({error.strerror})") from None
    return aside


def free_name(path: Path) -> Path:
    """`path` with `.damaged` at its end, and a number if there is such a file already."""
    names = (f"{path.name}.damaged{f'.{n}' if n > 1 else ''}" for n in itertools.count(1))
    return next(found for name in names if not (found := path.with_name(name)).exists())


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to `path`, which must not exist yet (UsageError). StorageError if it can't be done."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except FileExistsError:
        raise UsageError(f"{path}: exists already; choose another name") from None
    except OSError as error:
        raise StorageError(f"{path}: can't be written ({error.strerror})") from None
