"""Screens: every event as documented, nothing raised into the node, nothing from a peer that moves the cursor."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.ui import text as words
from p2pnode.ui.events import EVENTS, RecordingSink, check_event
from p2pnode.ui.screens import Clocks, JsonScreen, PlainScreen, make_screen
from p2pnode.ui.summary import confusion_lines

PEER = "12D3KooWF7hGqLpkDEtrSjb957BJPhnxjeCxT5hs99AXMaGG3fbQ"
STARTED: dict[str, Any] = {
    "peer_id": PEER,
    "run_id": "ab" * 32,
    "run": "my run",
    "task": "digits",
    "invite": "p2pnode1:" + "a" * 375,
    "addresses": ["/ip4/192.0.2.1/tcp/1"],
    "home": Path("/home/ada"),
    "privacy": "example",
    "epsilon_budget": 8.0,
    "delta": 1e-4,
    "target_rounds": 20,
}
ROUND: dict[str, Any] = {
    "round": 3,
    "peers": 3,
    "voters": 2,
    "provisional": False,
    "state_digest": b"\xcd" * 32,
    "loss": 0.4125,
    "accuracy": np.float32(0.75),
    "samples": 240,
    "bytes_sent": 1_200_000,
    "bytes_received": 2_300_000,
    "epsilon": 1.25,
    "delta": 1e-4,
    "seconds": 0.5,
    "contributed": True,
    "attempt": 0,
    "measures": {"loss": 0.4125, "accuracy": 0.75},
}
RESULT: dict[str, Any] = {
    "measures": {"accuracy": 0.957, "f1": 0.93, "loss": 0.2},
    "confusion": np.array([[35, 1], [0, 20]]),
    "model": Path("/x/model.safetensors"),
    "round": 3,
    "state_digest": b"\xcd" * 32,
}
STOPPED: dict[str, Any] = {
    "reason": "3 rounds are done",
    "round": 3,
    "state_digest": b"\xcd" * 32,
    "epsilon": 1.25,
    "delta": 1e-4,
}


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clocks = Clocks(wall=lambda: self.now, monotonic=lambda: self.now)


def plain() -> tuple[PlainScreen, io.StringIO, Time]:
    stream, time = io.StringIO(), Time()
    return PlainScreen(stream, time.clocks), stream, time


def test_the_table_is_the_documented_one() -> None:
    documented = {}
    for line in (Path(__file__).parents[2] / "docs" / "events.md").read_text().splitlines():
        row = re.fullmatch(r"\| `([a-z]+)` \| [^|]* \| (.*) \|", line)
        if row:
            fields = re.sub(r"\([^)]*\)", "", row[2])  # what stands in brackets explains
            documented[row[1]] = tuple(re.findall(r"`([a-z_]+)`", fields))
    assert documented == dict(EVENTS)


def test_strict_where_it_is_recorded() -> None:
    sink = RecordingSink()
    sink.emit("round", **ROUND)
    assert sink.of("round") == [{"event": "round", **ROUND}]
    for event, fields in (
        ("rond", ROUND),
        ("round", {**ROUND, "extra": 1}),
        ("round", {name: value for name, value in ROUND.items() if name != "loss"}),
    ):
        with pytest.raises(ValueError, match=event):
            sink.emit(event, **fields)
        with pytest.raises(ValueError, match=event):
            check_event(event, fields)


def test_json_is_one_whole_object_a_line() -> None:
    stream, time = io.StringIO(), Time()
    screen = JsonScreen(stream, time.clocks)
    screen.emit("started", **STARTED)
    screen.emit("round", **{**ROUND, "loss": math.nan, "epsilon": math.inf, "measures": {"loss": float("-inf")}})
    screen.emit("notice", text="two\nlines")
    screen.emit("joined", round=3)
    screen.emit("result", **RESULT)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["started", "round", "notice", "joined", "result"]
    assert all(line["time"] == 1000.0 for line in lines)
    assert lines[0]["home"] == "/home/ada"
    assert lines[1]["loss"] is None
    assert lines[1]["epsilon"] is None
    assert lines[1]["measures"] == {"loss": None}
    assert lines[1]["accuracy"] == 0.75
    assert lines[1]["state_digest"] == "cd" * 32
    assert lines[3]["voters"] is None  # documented, not given
    assert lines[4]["confusion"] == [[35, 1], [0, 20]]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(EVENTS)),
    st.dictionaries(
        st.sampled_from(sorted({name for fields in EVENTS.values() for name in fields})),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.floats()),
    ),
)
def test_no_event_breaks_a_screen(event: str, fields: dict[str, Any]) -> None:
    for kind in ("json", "plain"):
        stream = io.StringIO()
        screen = make_screen(kind, stream)
        screen.emit(event, **fields)
        screen.emit("round", **ROUND)
        screen.close()
        for line in stream.getvalue().splitlines():
            if kind == "json":
                json.loads(line)


def test_a_reader_that_goes_away_does_not_reach_the_node() -> None:
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    screen = JsonScreen(stream)
    os.close(read)
    for _ in range(3):
        screen.emit("round", **ROUND)
    screen.close()
    assert isinstance(screen.failure, BrokenPipeError)
    screen.emit("round", **ROUND)
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_many_threads_write_whole_lines() -> None:
    stream = io.StringIO()
    screen = JsonScreen(stream)
    threads = [
        threading.Thread(target=lambda: [screen.emit("notice", text="x" * 500) for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len([json.loads(line) for line in stream.getvalue().splitlines()]) == 400


def test_plain_lines_tell_the_story() -> None:
    screen, stream, time = plain()
    screen.emit("started", **STARTED)
    screen.emit("joined", round=2, state_digest=b"", voters=1, provisional=True, seconds=1.5)
    screen.emit("training", round=3)
    screen.emit("round", **ROUND)
    screen.emit("rejected", clause="chunk-proof", peer=PEER, round=3)
    screen.emit("discarded", round=4, attempt=1, reason="no quorum")
    screen.emit("peer", peer=PEER, change="gone")
    time.now += 60
    screen.emit("result", **RESULT)
    screen.emit("stopped", **STOPPED)
    screen.close()
    shown = stream.getvalue()
    assert f"\np2pnode join {STARTED['invite']}\n" in shown  # one line of its own, to copy
    assert "privacy: example level, at most epsilon 8.00 at delta 0.0001" in shown
    assert "joined at round 2 after 1.5 s, in a history that is PROVISIONAL" in shown
    assert "round 3  3 peers  2 voters  loss 0.4125  accuracy 75.00%  sent 1.2 MB  received 2.3 MB" in shown
    assert f"refused what {PEER[-8:]} sent in round 3: chunk-proof" in shown
    assert "attempt 2 of round 4 came to nothing: no quorum" in shown
    assert "does not answer any more" in shown
    assert "stopped: 3 rounds are done" in shown
    for row in (
        "accuracy  95.70%",
        "F1        93.00%",
        "privacy   epsilon 1.25 of 8 at delta 0.0001",
        "time      1 min 0 s",
    ):
        assert row in shown
    assert "Confusion matrix" in shown
    assert shown.count("Summary") == 1
    assert screen.failure is None


def test_a_node_shows_its_label() -> None:
    stream = io.StringIO()
    screen = make_screen("plain", stream, label="Ada's laptop")
    screen.emit("started", **STARTED)
    screen.close()
    assert f'started run "my run" (abababababab) as Ada\'s laptop ({PEER[-8:]})' in stream.getvalue()
    assert "you are Ada's laptop" in full_screen([("started", STARTED)], label="Ada's laptop")


def test_no_summary_of_nothing() -> None:
    screen, stream, _ = plain()
    screen.emit("started", **STARTED)
    screen.emit("stopped", **{**STOPPED, "reason": "interrupted"})
    screen.close()
    assert stream.getvalue().endswith("stopped: interrupted\n")


def test_privacy_off_is_loud_on_every_screen() -> None:
    screen, stream, _ = plain()
    screen.emit("started", **{**STARTED, "privacy": "none", "epsilon_budget": None, "delta": None})
    screen.emit("round", **{**ROUND, "epsilon": None, "delta": None})
    screen.close()
    assert "*  PRIVACY IS OFF" in stream.getvalue()
    assert "privacy   OFF" in stream.getvalue()
    assert "PRIVACY IS OFF" in full_screen([("started", {**STARTED, "privacy": "none"}), ("round", ROUND)])


def test_what_peers_say_cannot_move_the_cursor() -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\r\n[red]x[/red]\u202e"
    events = [
        ("started", {**STARTED, "run": evil, "privacy": evil, "invite": evil}),
        ("notice", {"text": evil}),
        ("rejected", {"clause": evil, "peer": evil, "round": 1}),
        ("peer", {"peer": evil, "change": evil}),
        ("waiting", {"round": 1, "reason": evil}),
        ("round", {**ROUND, "measures": {evil: 1.0}, "state_digest": evil}),
        ("stopped", {**STOPPED, "reason": evil}),
    ]
    screen, stream, _ = plain()
    for event, fields in events:
        screen.emit(event, **fields)
    screen.close()
    assert all(character.isprintable() or character == "\n" for character in stream.getvalue())
    shown = full_screen(events)
    assert "\x1b[2J" not in shown
    assert "\x1b]0;" not in shown
    assert "\u202e" not in shown
    assert "[red]" in shown


def test_fast_rounds_share_a_line_and_none_is_lost() -> None:
    screen, stream, time = plain()
    for number in range(1, 11):
        screen.emit("round", **{**ROUND, "round": number})
        time.now += 0.3
    screen.tick()
    time.now += 2
    screen.tick()
    lines = [line for line in stream.getvalue().splitlines() if "  round " in line]
    assert [int(re.search(r"round (\d+)", line)[1]) for line in lines] == [1, 5, 9, 10]  # type: ignore[index]
    assert "(4 rounds since the last line)" in lines[1]
    assert "sent 12.0 MB" in lines[-1]


def test_a_long_wait_is_told_once_with_its_reason() -> None:
    screen, stream, time = plain()
    screen.emit("waiting", round=3, reason="for 2 of 3 entries")
    screen.tick()
    assert stream.getvalue() == ""
    time.now += 3.5
    screen.tick()
    time.now += 60
    screen.emit("waiting", round=3, reason="for 2 of 3 entries")
    screen.tick()
    assert stream.getvalue().count("round 3: waiting (for 2 of 3 entries)") == 1
    screen.emit("training", round=4)
    time.now += 60
    screen.tick()
    assert stream.getvalue().count("\n") == 1


def full_screen(events: list[tuple[str, dict[str, Any]]], label: str = "") -> str:
    """What a terminal of 100 columns gets."""
    master, slave = pty.openpty()
    shown = bytearray()

    def drain() -> None:
        while True:
            try:
                data = os.read(master, 65_536)
            except OSError:
                return
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        screen = make_screen("full", stream, label=label)
        for event, fields in events:
            screen.emit(event, **fields)
        screen.close()
        screen.close()
        assert screen.failure is None
    reader.join(10)
    os.close(master)
    return shown.decode("utf-8")


def test_the_full_screen_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    before = sys.stdout
    shown = full_screen([("started", STARTED), ("waiting", {"round": 3, "reason": "for entries"}), ("round", ROUND),
                         ("result", RESULT), ("stopped", STOPPED)])  # fmt: skip
    assert sys.stdout is before
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown again
    assert "\x1b[?1049h" not in shown  # what was on the terminal stays
    assert f"p2pnode join {STARTED['invite']}\r\n" in shown
    assert "epsilon 1.25 of 8" in shown
    assert "accuracy  95.70%" in shown


def test_events_from_many_threads_do_not_lock_up_the_full_screen() -> None:
    master, slave = pty.openpty()
    threading.Thread(target=lambda: _drain(master), daemon=True).start()
    stream = os.fdopen(slave, "w")
    screen = make_screen("full", stream)

    def work() -> None:
        for number in range(100):
            screen.emit("started" if number % 20 == 0 else "round", **(STARTED if number % 20 == 0 else ROUND))
            screen._live.refresh()  # type: ignore[attr-defined]

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    closer = threading.Thread(target=screen.close, daemon=True)
    closer.start()
    closer.join(10)
    assert not closer.is_alive()
    stream.close()


def _drain(master: int) -> None:
    while True:
        try:
            if not os.read(master, 65_536):
                return
        except OSError:
            return


def test_auto_is_plain_on_a_pipe_and_on_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = make_screen("auto", io.StringIO())
    assert isinstance(screen, PlainScreen)
    screen.close()
    monkeypatch.setenv("TERM", "dumb")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        screen = make_screen("auto", stream)
        assert isinstance(screen, PlainScreen)
        screen.close()
    os.close(master)
    with pytest.raises(ValueError, match="no such screen"):
        make_screen("neon", io.StringIO())


def test_a_stream_that_knows_only_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    screen = PlainScreen(stream)
    screen.emit("notice", text="é and 😀")
    screen.close()
    assert b"? and ?" in raw.getvalue()
    assert screen.failure is None


def test_numbers_as_people_read_them() -> None:
    assert [words.format_bytes(n) for n in (0, 999, 1000, 123_456, 99_960, 1.5e6, 3e9, 4e12, None)] == [
        "0 B", "999 B", "1.0 kB", "123 kB", "100 kB", "1.5 MB", "3.0 GB", "4.0 TB", "-",
    ]  # fmt: skip
    assert [words.format_seconds(n) for n in (0.313, 4.21, 48.2, 59.9, 200, 7500, None)] == [
        "0.31 s", "4.2 s", "48 s", "1 min 0 s", "3 min 20 s", "2 h 5 min", "-",
    ]  # fmt: skip
    assert words.sparkline([1, 2, 3], 2) == "▁█"
    assert words.sparkline([], 5) == ""
    assert words.sparkline([2, 2], 5) == "▅▅"
    assert "30 classes" in confusion_lines([[0] * 30] * 30)[0]
