"""Screens that only ever add lines: JSON for programs, plain text for a pipe or a log. And the choice of a screen."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TextIO

from p2pnode.ui.events import EVENTS
from p2pnode.ui.summary import summary_lines
from p2pnode.ui.text import (
    PRIVACY_OFF,
    clean,
    format_budget,
    format_bytes,
    format_measure,
    format_seconds,
    number,
)
from p2pnode.ui.view import (
    RunView,
    discarded_line,
    evidence_line,
    peer_line,
    rejected_line,
    resync_line,
    round_line,
    stopped_line,
)

QUIET_BETWEEN_ROUNDS: Final = 1.0  # seconds; rounds that come faster share a line
LONG_WAIT: Final = 3.0  # seconds; shorter waits are not worth a line


@dataclass(frozen=True)
class Clocks:
    """wall: seconds since the epoch. monotonic: seconds that never jump."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


class Screen:
    """What all screens share: one lock, and no failure of the screen ever reaches the node.

    failure: the first exception that a screen met, for `--debug`; BrokenPipeError when the reader went away.
    """

    def __init__(self, stream: TextIO, clocks: Clocks | None = None) -> None:
        self._stream = stream
        self._clocks = clocks or Clocks()
        self._lock = threading.RLock()
        self._closed = False
        self.failure: Exception | None = None

    def emit(self, event: str, **fields: Any) -> None:
        """Show one event. Never raises."""
        with self._lock:
            if not self._closed:
                self._guarded(lambda: self._show(event, fields))

    def close(self) -> None:
        """Idempotent. Never raises."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._guarded(self._finish)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, training goes on
            self.failure = self.failure or error

    def _show(self, event: str, fields: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        self._stream.flush()

    def _write(self, lines: Iterable[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode("ascii", "replace").decode("ascii"))
        self._stream.flush()


class JsonScreen(Screen):
    """One JSON object a line; every documented field is there, `null` when it is not known."""

    def _show(self, event: str, fields: Mapping[str, Any]) -> None:
        line: dict[str, Any] = {"event": event, "time": round(self._clocks.wall(), 3)}
        line.update(dict.fromkeys(EVENTS.get(event, ())))
        line.update({name: to_json(value) for name, value in fields.items()})
        self._write([json.dumps(line, ensure_ascii=True, allow_nan=False)])


def to_json(value: Any) -> Any:
    """What JSON can hold: NaN and infinities become None, bytes hexadecimal, arrays lists, the rest text."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, without importing numpy
        return to_json(value.tolist())
    return str(value)


class PlainScreen(Screen):
    """Lines for a pipe, a log file or a simple terminal. label: what the person calls this node."""

    def __init__(self, stream: TextIO, clocks: Clocks | None = None, label: str = "") -> None:
        super().__init__(stream, clocks)
        self._view = RunView(began=self._clocks.monotonic(), label=label)
        self._round_at = -math.inf
        self._held = 0  # rounds since the last line about one
        self._held_fields: Mapping[str, Any] = {}
        self._told_wait = ""
        self._summarised = False
        self._ended = threading.Event()

    def start(self) -> None:
        """Look every second whether there is something to say that no event brings: a long wait, held rounds."""
        threading.Thread(target=self._run, name="p2pnode-screen", daemon=True).start()

    def _run(self) -> None:
        while not self._ended.wait(1.0):
            self.tick()

    def tick(self) -> None:
        """Say what has been true for long enough. Never raises."""
        with self._lock:
            if not self._closed:
                self._guarded(self._tick)

    def _tick(self) -> None:
        now, view = self._clocks.monotonic(), self._view
        if self._held and now - self._round_at >= QUIET_BETWEEN_ROUNDS:
            self._flush_rounds()
            self._round_at = now
        if view.waiting and view.activity != self._told_wait and now - view.activity_since >= LONG_WAIT:
            self._told_wait = view.activity
            self._say(view.activity)

    def _show(self, event: str, fields: Mapping[str, Any]) -> None:
        now = self._clocks.monotonic()
        self._view.apply(event, fields, now)
        if event == "round":
            self._on_round(fields, now)
        elif event in ("result", "stopped"):
            self._flush_rounds()
        if event == "stopped":
            self._say(stopped_line(fields))
            self._summary(now)
        elif event == "started":
            self._on_started(fields)
        elif event == "joined":
            self._on_joined(fields)
        elif event == "resync":
            self._say(resync_line(fields))
        elif event == "evidence":
            self._say(evidence_line(fields))
        elif event == "discarded":
            self._say(discarded_line(fields))
        elif event == "rejected":
            self._say(rejected_line(fields))
        elif event == "peer":
            self._say(peer_line(fields))
        elif event == "notice":
            self._say(clean(fields.get("text")))
        elif event == "result" and fields.get("model"):
            self._say(f"the model is in {clean(fields['model'])}")

    def _finish(self) -> None:
        self._ended.set()
        self._flush_rounds()
        self._summary(self._clocks.monotonic())
        super()._finish()

    def _on_started(self, fields: Mapping[str, Any]) -> None:
        run = f'run "{clean(fields.get("run"))}" ({clean(fields.get("run_id"))[:12]})'
        self._say(f"started {run} as {self._view.me}; home {clean(fields.get('home'))}")
        if fields.get("privacy") == "none":
            self._write(banner_lines())
        elif fields.get("privacy"):
            budget = format_budget(fields.get("epsilon_budget"), None, fields.get("delta"))
            self._say(f"privacy: {clean(fields['privacy'])} level, at most {budget}")
        if fields.get("invite"):
            self._say("others join with this invite:")
            self._write(["", f"p2pnode join {clean(fields['invite'])}", ""])

    def _on_joined(self, fields: Mapping[str, Any]) -> None:
        line = f"joined at round {fields.get('round')} after {format_seconds(fields.get('seconds'))}"
        self._say(line + (", in a history that is PROVISIONAL" if fields.get("provisional") else ""))

    def _on_round(self, fields: Mapping[str, Any], now: float) -> None:
        self._told_wait = ""
        self._held += 1
        self._held_fields = fields
        if now - self._round_at >= QUIET_BETWEEN_ROUNDS:
            self._flush_rounds()
            self._round_at = now

    def _flush_rounds(self) -> None:
        if not self._held:
            return
        fields, view = self._held_fields, self._view
        parts = [round_line(fields)]
        parts += [
            f"{name} {format_measure(name, fields[name])}"
            for name in ("loss", "accuracy")
            if number(fields.get(name)) is not None
        ]
        parts.append(f"sent {format_bytes(view.bytes_sent)}  received {format_bytes(view.bytes_received)}")
        if number(fields.get("epsilon")) is not None:
            parts.append(format_budget(fields["epsilon"], view.started.get("epsilon_budget"), None))
        parts.append(format_seconds(fields.get("seconds")))
        if fields.get("contributed") is False:
            parts.append("followed only")
        if fields.get("provisional"):
            parts.append("PROVISIONAL")
        if self._held > 1:
            parts.append(f"({self._held} rounds since the last line)")
        self._say("  ".join(parts))
        self._held = 0

    def _summary(self, now: float) -> None:
        if self._summarised or not (self._view.rounds or self._view.result):
            return  # told already, or nothing happened
        self._summarised = True
        self._write(["", *summary_lines(self._view, now), ""])

    def _say(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S", time.localtime(self._clocks.wall()))
        self._write([f"{stamp}  {text}"])


def banner_lines() -> list[str]:
    """The warning that nobody can overlook."""
    width = max(len(line) for line in PRIVACY_OFF)
    edge = "*" * (width + 6)
    return ["", edge, *(f"*  {line:<{width}}  *" for line in PRIVACY_OFF), edge, ""]


def make_screen(kind: str, stream: TextIO, clocks: Clocks | None = None, label: str = "") -> Screen:
    """`json`, `plain`, `full`, or `auto`: full on a terminal that can, plain elsewhere. ValueError for another kind.

    label: what the person calls this node, for the screens that people read.
    """
    if kind == "json":
        return JsonScreen(stream, clocks)
    if kind == "plain" or (kind == "auto" and not stream.isatty()):
        plain = PlainScreen(stream, clocks, label)
        plain.start()
        return plain
    if kind in ("auto", "full"):
        from p2pnode.ui.full import FullScreen, can_redraw

        if kind == "auto" and not can_redraw(stream):
            return make_screen("plain", stream, clocks, label)
        return FullScreen(stream, clocks, label)
    raise ValueError(f"no such screen: {kind}")
