"""libp2p's daemon as a child process: started with our key, watched, ended, and nothing of it left.

Knows nothing of hivemind but where its `p2pd` lies.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Final

from p2pnode.errors import NetworkError, StorageError
from p2pnode.identity import PeerIdentity
from p2pnode.transport import lifeline

START_SECONDS: Final = 15.0
TERM_SECONDS: Final = 1.0  # for the daemon to end when asked, before it is killed
_PATH_BYTES: Final = 100  # what a Unix socket's address holds on every system, with room to spare
_POLL_SECONDS: Final = 0.005
_LINES_KEPT: Final = 20


class SocketDirectory:
    """A private directory for this process's sockets, locked as long as the process lives.

    The lock is the kernel's, so a killed process loses it, and the next start of any node sweeps what it left.
    """

    def __init__(self, base: Path | None = None) -> None:
        """Make the directory below `base` (default: the system's temporary directory). StorageError if it can't."""
        fallback = Path(tempfile.gettempdir()) / f"p2pnode-{os.getuid()}"
        base = fallback if base is None or len(os.fsencode(base.absolute())) > _PATH_BYTES - 16 else base.absolute()
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            if base.stat().st_uid != os.getuid():
                raise StorageError(f"{base}: belongs to somebody else; set another directory for sockets")
            sweep(base)
            self._lock_path, self._lock = _new_lock(base)
            self.path = self._lock_path.with_suffix("")
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError(f"{base}: can't hold sockets ({error.strerror})") from None

    def remove(self) -> None:
        """Remove the directory and its lock. Idempotent."""
        if self._lock < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()  # only when nobody else uses it


def _new_lock(base: Path) -> tuple[Path, int]:
    while True:
        path = base / f"{secrets.token_hex(6)}.lock"
        base.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return path, descriptor
        except OSError:
            pass  # a sweep came between: another name
        os.close(descriptor)


def sweep(base: Path) -> int:
    """Remove what killed processes left below `base`; how many directories that were."""
    swept = 0
    for path in base.glob("*.lock"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
            swept += 1
        except OSError:
            pass  # its process lives
        finally:
            os.close(descriptor)
    return swept


def can_listen(address: str) -> bool:
    """Whether nobody listens at a TCP multiaddr; True also where that can't be said. libp2p would share the port."""
    parts = address.split("/")
    if len(parts) < 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        return True
    with socket.socket(socket.AF_INET6 if parts[1] == "ip6" else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a dead daemon left is no hindrance
        try:
            probe.bind((parts[2], int(parts[4])))
            probe.listen(1)
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def make_way(control_path: str) -> None:
    """Remove the socket that a killed daemon left, or the next could not listen."""
    Path(control_path).unlink(missing_ok=True)


class Daemon:
    """One running daemon. Made by `start`; ends by `stop`, or with this process however that ends."""

    def __init__(self, process: subprocess.Popen[bytes], control_path: str) -> None:
        self._process = process
        self.control_path = control_path
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._partial = b""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @classmethod
    async def start(cls, binary: Path, identity: PeerIdentity, control_path: str, arguments: list[str]) -> Daemon:
        """Start `binary` with `arguments`; it listens at `control_path` when this returns.

        The key goes through a pipe, so that it never touches a disk. NetworkError when the daemon does not start.
        """
        daemon = cls(_spawn(binary, identity, control_path, arguments), control_path)
        loop = asyncio.get_running_loop()
        loop.add_reader(daemon._output, daemon._drain)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not any(line.startswith("Peer ID:") for line in daemon._lines):
                if not daemon.alive:
                    await asyncio.sleep(_POLL_SECONDS)
                    daemon._drain()
                    raise NetworkError(f"libp2p's daemon does not start: {daemon.last_words}")
                if time.monotonic() > deadline:
                    raise NetworkError(f"libp2p's daemon did not start within {START_SECONDS:.0f} s")
                await asyncio.sleep(_POLL_SECONDS)
        except BaseException:
            daemon._process.kill()
            await daemon.stop()
            raise
        return daemon

    @property
    def last_words(self) -> str:
        """The last line of the daemon's output, for an error message."""
        return next((line for line in reversed(self._lines) if line.strip()), "no output")[:500]

    @property
    def ending(self) -> str:
        """How it ended, for a person."""
        status = self._process.poll()
        if status is None:
            return "it still runs, but does not answer"
        if status == -signal.SIGKILL:
            return "it was killed, perhaps since memory was short"
        return f"exit status {status}: {self.last_words}"

    @property
    def _output(self) -> int:
        if self._process.stdout is None:
            raise NetworkError("libp2p's daemon has no output")
        return self._process.stdout.fileno()

    def _drain(self) -> None:
        """Read what the daemon says, or it would block on a full pipe."""
        try:
            data = os.read(self._output, 65536)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            data = b""
        if not data:
            self._detach()
            return
        *lines, self._partial = (self._partial + data)[-65536:].split(b"\n")
        self._lines.extend(line.decode(errors="replace") for line in lines)

    def _detach(self) -> None:
        if self._process.stdout is not None and not self._process.stdout.closed:
            asyncio.get_running_loop().remove_reader(self._process.stdout.fileno())
            self._process.stdout.close()

    async def stop(self) -> None:
        """End the daemon: asked first, killed after TERM_SECONDS. Idempotent."""
        deadline = time.monotonic() + TERM_SECONDS
        self._process.terminate()
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self._process.kill()
            await asyncio.sleep(_POLL_SECONDS)
        self._detach()


def _spawn(binary: Path, identity: PeerIdentity, control_path: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    reader, writer = os.pipe()
    try:
        os.write(writer, identity.to_libp2p())
        os.close(writer)
        environment = dict(os.environ, GOLOG_LOG_LEVEL="error", GOLOG_LOG_FMT="json")
        process = subprocess.Popen(
            lifeline.command([str(binary), f"-id=/dev/fd/{reader}", f"-listen=/unix{control_path}", *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(reader,),
            process_group=0,  # Ctrl-C in our terminal is for us: we take leave before the daemon ends
            env=environment,
        )
    except OSError as error:
        raise NetworkError(
            f"{binary}: libp2p's daemon can't be started ({error.strerror}); reinstall hivemind"
        ) from None
    finally:
        os.close(reader)
    if process.stdout is not None:
        os.set_blocking(process.stdout.fileno(), False)
    return process
