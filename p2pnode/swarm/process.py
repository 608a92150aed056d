"""One real node as a process of its own, driven and watched through its JSON events."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from p2pnode.errors import P2PNodeError

Event = dict[str, Any]


class NodeFailed(P2PNodeError):
    """A node did not do what was waited for: it ended first, or time ran out."""


class NodeProcess:
    """`p2pnode join ARGUMENTS` in a process group of its own.

    on_event: called from a reading thread with each event, and at the end with {"event": "ended"}.
    """

    def __init__(
        self,
        home: Path,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.home = home
        self.events: list[Event] = []
        self.errors: list[str] = []
        self._on_event = on_event or (lambda event: None)
        self._news = threading.Condition()
        self._ended = False
        command = [sys.executable, "-m", "p2pnode", "join", *arguments, "--home", str(home), "--screen", "json"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        readers = ((self._read_events, self.process.stdout), (self._read_errors, self.process.stderr))
        self._readers = [threading.Thread(target=read, args=(stream,), daemon=True) for read, stream in readers]
        for reader in self._readers:
            reader.start()

    def _read_events(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "garbage", "line": line}
            with self._news:
                self.events.append(event)
                self._news.notify_all()
            self._on_event(event)
        with self._news:
            self._ended = True
            self._news.notify_all()
        self._on_event({"event": "ended"})

    def _read_errors(self, stream: IO[str]) -> None:
        for line in stream:
            self.errors.append(line.rstrip())

    def of(self, kind: str) -> list[Event]:
        """The events of one kind so far."""
        with self._news:
            return [event for event in self.events if event["event"] == kind]

    def last(self, kind: str) -> Event:
        """The newest event of a kind; {} if there is none."""
        return next(iter(reversed(self.of(kind))), {})

    def digests(self) -> dict[int, str]:
        """State digest of each round that the node told of."""
        return {event["round"]: event["state_digest"] for event in self.of("round")}

    def wait_for(
        self, kind: str, *, seconds: float, where: Callable[[Event], bool] = lambda event: True, after: int = 0
    ) -> Event:
        """The first event of a kind for which `where` holds, from number `after` on. NodeFailed if none comes."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                for event in self.events[after:]:
                    if event["event"] == kind and where(event):
                        return event
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    why = "the node ended" if self._ended else f"{seconds:g} s are over"
                    tail = "\n".join([*(json.dumps(event)[:300] for event in self.events[-12:]), *self.errors[-12:]])
                    raise NodeFailed(f"no {kind!r} event: {why}\n{tail}")
                self._news.wait(left)

    def wait_round(self, number: int, *, seconds: float) -> Event:
        """The event of a round of at least this number."""
        return self.wait_for("round", seconds=seconds, where=lambda event: event["round"] >= number)

    @property
    def invite(self) -> str:
        """The invite that the node printed when it started; waits for it."""
        return str(self.wait_for("started", seconds=60)["invite"])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the node's main process."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit status, once it has ended and all its output is read. NodeFailed if time runs out."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise NodeFailed(f"the node still runs after {seconds:g} s; last: {self.events[-3:]}") from None
        for reader in self._readers:
            reader.join(5)
        return status

    def stop(self, seconds: float = 10) -> int:
        """Ctrl-C, and its exit status."""
        self.signal(signal.SIGINT)
        return self.wait(seconds)

    def leftovers(self) -> bool:
        """Whether a process of the node's group, such as libp2p's daemon, is still alive."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, 0)
            return True
        return False

    def kill(self) -> None:
        """End the whole process group at once. Idempotent."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
