"""What a person types, and where a node lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import config
from p2pnode.config import Goal, RunChoice, Share
from p2pnode.errors import HomeInUse, MachineError, StorageError, UsageError
from p2pnode.home import Home, write_atomically, write_new
from p2pnode.identity import PeerIdentity
from p2pnode.invite import Invite

ALICE = PeerIdentity.from_seed(b"a" * 32).peer_id
INVITE = Invite(b"\1" * 32, ALICE, 0, b"\2" * 32, b"\3" * 32, (f"/ip4/192.0.2.1/tcp/1/p2p/{ALICE}",))


@pytest.mark.parametrize(
    ("parser", "text", "value"),
    [
        (config.parse_share, "2/4", Share(2, 4)),
        (config.parse_share, " 1 / 1 ", Share(1, 1)),
        (config.parse_goal, "accuracy>=0.95", Goal("accuracy", ">=", 0.95)),
        (config.parse_goal, " loss <= 1e-3 ", Goal("loss", "<=", 0.001)),
        (config.parse_duration, "90", 90.0),
        (config.parse_duration, "1h30m", 5400.0),
        (config.parse_duration, "1.5M", 90.0),
        (config.parse_duration, "2d1s", 172_801.0),
        (config.parse_rounds, "20", 20),
        (config.parse_threads, "1024", 1024),
        (config.parse_device, "CUDA:1", "cuda:1"),
        (config.parse_name, " Ada's run é ", "Ada's run é"),
        (config.parse_listen_address, "/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/tcp/0"),
        (config.parse_listen_address, "/ip6/::/udp/31337/quic", "/ip6/::/udp/31337/quic"),
        (config.parse_announce_address, "/dns4/a.example/tcp/443", "/dns4/a.example/tcp/443"),
    ],
)
def test_reads(parser: object, text: str, value: object) -> None:
    assert parser(text) == value  # type: ignore[operator]


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        *((config.parse_share, text) for text in ("", "2", "0/4", "5/4", "1/0", "a/b", "1/100001", "-1/4", "1//2")),
        *((config.parse_goal, text) for text in ("accuracy", "a>0.9", "a>=", ">=1", "a>=e", "a>=1e999", "a b>=1")),
        *((config.parse_duration, text) for text in ("", "0", "5x", "1m1h", "1h1h", "-5s", "367d", "1e9", "inf")),
        *((config.parse_rounds, text) for text in ("", "0", "-1", "1.5", "abc", "100000001", "1" * 100)),
        *((config.parse_device, text) for text in ("", "gpu", "cuda:", "cuda:x", "cpu:0")),
        *((config.parse_name, text) for text in ("", "  ", "a\nb", "a\x1b[0m", "x" * 101)),
        *(
            (config.parse_listen_address, text)
            for text in (
                "", "foo", "0.0.0.0:80", "/ip4/0.0.0.0", "/ip4/0.0.0.0/tcp/65536", "/ip4/::/tcp/1",
                "/ip6/1.2.3.4/tcp/1", "/ip4/300.1.1.1/tcp/1", "/ip4/1.2.3.4/tcp/01", "/ip4/1.2.3.4/sctp/1",
                "/dns4/a/tcp/1", "/ip4/1.2.3.4/tcp/1/", "/ip4/1.2.3.4/tcp/1\x1b", "/ip4/0.0.0.0/tcp/" + "1" * 300,
            )
        ),
        (config.parse_announce_address, "/ip4/1.2.3.4/tcp/0"),
    ],
)  # fmt: skip
def test_refuses_in_one_printable_line(parser: object, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parser(text)  # type: ignore[operator]
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("found ")
    assert len(str(caught.value)) < 250


@given(st.text(max_size=50))
def test_no_text_breaks_a_parser(text: str) -> None:
    for parser in (
        config.parse_share,
        config.parse_goal,
        config.parse_duration,
        config.parse_device,
        config.parse_name,
        config.parse_announce_address,
        config.parse_rounds,
    ):
        try:
            parser(text)
        except UsageError as error:
            assert str(error).isprintable()


def test_a_goal_is_never_reached_by_what_is_unknown() -> None:
    goal = Goal("accuracy", ">=", 0.9)
    assert goal.reached(0.9)
    assert not goal.reached(0.89)
    assert not goal.reached(None)
    assert not Goal("loss", "<=", 1).reached(float("nan"))
    assert not goal.reached(float("inf"))
    assert str(goal) == "accuracy>=0.9"


@pytest.mark.parametrize(
    "choice",
    [
        {"invite": INVITE, "task": "digits"},
        {"invite": INVITE, "manifest": Path("x")},
        {"invite": INVITE, "unsafe_no_privacy": True},
        {"manifest": Path("x"), "task": "digits"},
        {"manifest": Path("x"), "name": "n"},
    ],
)
def test_options_that_contradict_each_other_are_refused(choice: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        RunChoice(**choice)  # type: ignore[arg-type]


HOLD = """
import sys, time
from pathlib import Path
from p2pnode.home import Home
lock = Home(Path(sys.argv[1])).lock()
print("held", flush=True)
time.sleep(60)
"""


def test_a_home_has_one_process_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(home.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HomeInUse, match=f"process {holder.pid}") as caught:
            home.lock()
        assert len(str(caught.value).splitlines()) == 1
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    with home.lock():
        assert (home.path / "lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(HomeInUse):
            home.lock()
    home.lock().release()
    assert home.path.stat().st_mode & 0o077 == 0


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    home = Home(tmp_path)
    lock = home.lock()
    child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        lock.release()
        home.lock().release()
    finally:
        child.kill()
        child.wait(10)


def test_remembers_the_run(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(MachineError, match="no run was joined"):
        home.current()
    home.set_current("ab" * 32)
    assert home.current().manifest == tmp_path / "runs" / ("ab" * 32) / "manifest.toml"
    (tmp_path / "current").write_text("../../etc")
    with pytest.raises(MachineError):
        home.current()
    with pytest.raises(ValueError, match="not a run id"):
        home.run("../x")


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(UsageError, match="exists already"):
        write_new(path, b"three")
    with pytest.raises(StorageError):
        write_atomically(path / "below-a-file", b"x")
    with pytest.raises(StorageError):
        Home(path / "home").create()
