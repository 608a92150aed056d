"""The live screen of a terminal: one tidy area that is redrawn, and above it the lines that stay."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from p2pnode.ui.screens import Clocks, Screen, banner_lines
from p2pnode.ui.summary import summary_lines
from p2pnode.ui.text import (
    PRIVACY_OFF,
    clean,
    count,
    format_budget,
    format_bytes,
    format_measure,
    format_seconds,
    number,
    sparkline,
)
from p2pnode.ui.view import RunView

REFRESHES_A_SECOND: Final = 4
NOTICES_SHOWN: Final = 5
TREND_WIDTH: Final = 32
BAR_WIDTH: Final = 32
LONG_WAIT: Final = 2.0  # seconds before the screen counts them


def can_redraw(stream: TextIO) -> bool:
    """Whether `stream` is a terminal on which an area can be redrawn."""
    console = Console(file=stream)
    return console.is_terminal and not console.is_dumb_terminal


class FullScreen(Screen):
    """Redraws itself until closed, also when no event comes: the seconds of a wait go on."""

    def __init__(self, stream: TextIO, clocks: Clocks | None = None, label: str = "") -> None:
        super().__init__(stream, clocks)
        self._view = RunView(began=self._clocks.monotonic(), label=label)
        # rich draws in its own thread, holding rich's lock, and what we print takes that lock too: so nothing of rich
        # is ever called while this one is held.
        self._view_lock = threading.Lock()
        self._console = Console(file=_Unbreakable(stream), highlight=False, emoji=False, markup=False)  # type: ignore[arg-type]
        self._live = Live(
            get_renderable=self._draw,
            console=self._console,
            refresh_per_second=REFRESHES_A_SECOND,
            redirect_stdout=True,
            redirect_stderr=True,
        )
        self._guarded(self._live.start)

    def _show(self, event: str, fields: Mapping[str, Any]) -> None:
        with self._view_lock:
            self._view.apply(event, fields, self._clocks.monotonic())
        if event == "started":
            if fields.get("privacy") == "none":
                self._console.print(Text("\n".join(banner_lines()), style="bold white on red"))
            if fields.get("invite"):
                self._console.print(Text("Others join this run with one line:", style="bold"))
                # Unwrapped, so that the terminal's own wrapping keeps it one line when it is copied.
                self._console.print(Text(f"\np2pnode join {clean(fields['invite'])}\n"), soft_wrap=True)

    def _finish(self) -> None:
        self._live.transient = not self._view.started  # an error message follows: leave no empty frame above it
        self._live.stop()
        if self._view.rounds or self._view.result:
            for line in ["", *summary_lines(self._view, self._clocks.monotonic()), ""]:
                self._console.print(Text(line), soft_wrap=True)
        super()._finish()

    def _draw(self) -> RenderableType:
        # A picture that fails must not end rich's thread.
        with self._view_lock:
            try:
                return draw(self._view, self._clocks.monotonic())
            except Exception as error:
                self.failure = self.failure or error
                return Text("")


def draw(view: RunView, now: float) -> RenderableType:
    """The live area for what is known at `now`."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_row("now", _activity(view, now))
    table.add_row("round", _round(view))
    table.add_row("peers", _peers(view))
    table.add_row("loss", _trend("loss", view.losses))
    table.add_row("accuracy", _trend("accuracy", view.accuracies))
    table.add_row("traffic", _traffic(view))
    table.add_row("privacy", _privacy(view))
    notices = [Text(f"  {notice}", style="dim", overflow="ellipsis", no_wrap=True) for notice in view.notices]
    title = f'run "{clean(view.started.get("run"))}"' if view.started else "p2pnode"
    if view.started.get("task") and view.started["task"] != view.started.get("run"):
        title += f", {clean(view.started['task'])}"
    subtitle = Text(f"you are {view.me}" if view.me else "")
    return Group(
        Panel(table, title=Text(title, style="bold"), title_align="left", subtitle=subtitle, subtitle_align="right"),
        *notices[-NOTICES_SHOWN:],
    )


def _activity(view: RunView, now: float) -> Text:
    text = Text(view.activity, style="yellow" if view.waiting else "green")
    since = now - view.activity_since
    if since >= LONG_WAIT and not view.stopped:
        text.append(f"  {format_seconds(since)}", style="dim")
    return text


def _round(view: RunView) -> RenderableType:
    if view.round is None:
        return Text("-")
    target = number(view.started.get("target_rounds"))
    text = Text(str(view.round), style="bold")
    if target:
        text.append(f" of {target:.0f}", style="dim")
    if view.seconds_by_round:
        text.append(f"  {format_seconds(view.seconds_by_round[-1])} a round", style="dim")
    if view.discarded:
        text.append(f"  {count(view.discarded, 'attempt')} lost", style="dim")
    if view.provisional:
        text.append("  PROVISIONAL", style="bold yellow")
    return _with_bar(text, view.round, target) if target else text


def _peers(view: RunView) -> Text:
    known = view.last or view.joined
    text = Text()
    if number(view.last.get("peers")) is not None:
        text.append(f"{int(view.last['peers'])} in the last round")
    if number(known.get("voters")) is not None:
        text.append(("" if not text else ", ") + f"{int(known['voters'])} voting")
    if view.rejected:
        text.append(f"  {count(view.rejected, 'message')} refused", style="yellow")
    return text or Text("-")


def _trend(name: str, values: Any) -> Text:
    if not values:
        return Text("-")
    text = Text(f"{format_measure(name, values[-1]):<8}", style="bold")
    return text.append(f" {sparkline(list(values), TREND_WIDTH)}", style="cyan")


def _traffic(view: RunView) -> Text:
    return Text(f"{format_bytes(view.bytes_sent)} sent, {format_bytes(view.bytes_received)} received")


def _privacy(view: RunView) -> RenderableType:
    if view.private is None:
        return Text("-")
    if not view.private:
        return Text(f" {PRIVACY_OFF[0]} ", style="bold white on red")
    budget = number(view.started.get("epsilon_budget"))
    spent = view.epsilon or 0.0
    text = Text(format_budget(spent, budget, view.delta or view.started.get("delta")))
    return _with_bar(text, spent, budget) if budget else text


def _with_bar(text: Text, done: float, total: float) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    row.add_column(no_wrap=True)
    row.add_column(width=BAR_WIDTH)
    row.add_row(text, ProgressBar(total=total, completed=min(done, total), width=BAR_WIDTH))
    return row


class _Unbreakable:
    """A stream on which writing never fails: a terminal that was closed must not end rich's drawing thread loudly."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
