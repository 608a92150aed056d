"""Real node processes over real hivemind: joining, agreeing, dying, leaving."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pnode.swarm.process import NodeProcess
from tests.support.swarm import QUICK, Swarm

pytestmark = pytest.mark.integration


def test_four_nodes_agree_and_a_fifth_that_comes_late_is_equal_one_round_later(tmp_path: Path) -> None:
    with Swarm(tmp_path, (*QUICK, "roster.start_with=4")) as swarm:
        for _ in range(4):
            swarm.start()
        for node in swarm.nodes:
            event = node.wait_round(4, seconds=60)
            assert event["peers"] == 4
        assert swarm.nodes[0].last("round")["voters"] == 4
        began = time.monotonic()
        late = swarm.start()
        joined = late.wait_for("joined", seconds=30)
        assert joined["round"] >= 4
        first = late.wait_round(joined["round"] + 1, seconds=15)
        assert time.monotonic() - began < 15, "first round certified within 15 s of join"
        reference = swarm.nodes[0].wait_round(first["round"], seconds=10)
        assert reference["round"] >= first["round"]
        late.wait_for("round", seconds=20, where=lambda event: event["contributed"])
        swarm.assert_one_history()
        assert not any(node.of("rejected") for node in swarm.nodes)


def test_a_peer_that_dies_in_a_round_does_not_stop_the_others(tmp_path: Path) -> None:
    with Swarm(tmp_path, (*QUICK, "roster.start_with=4")) as swarm:
        for _ in range(4):
            swarm.start()
        for node in swarm.nodes:
            node.wait_round(4, seconds=60)
        victim = swarm.nodes[2]
        victim.kill()
        at = max(node.last("round")["round"] for node in swarm.nodes)
        rest = [node for node in swarm.nodes if node is not victim]
        for node in rest:
            event = node.wait_round(at + 6, seconds=40)
            assert not event["provisional"]
            assert event["peers"] == 3
        swarm.assert_one_history()


def test_one_of_two_killed_the_other_goes_on_provisionally_and_says_so(tmp_path: Path) -> None:
    settings = (*QUICK, "roster.start_with=2", "roster.provisional_after=6", "deadlines.gather=2")
    with Swarm(tmp_path, settings) as swarm:
        first, second = swarm.start(), swarm.start()
        for node in (first, second):
            node.wait_for("round", seconds=60, where=lambda event: event["voters"] == 2)
        second.kill()
        event = first.wait_for("round", seconds=40, where=lambda event: event["provisional"])
        assert event["voters"] == 1
        following = first.wait_round(event["round"] + 2, seconds=20)
        assert not following["provisional"]


def test_a_node_that_was_frozen_comes_back_to_the_others_history(tmp_path: Path) -> None:
    settings = (*QUICK, "roster.start_with=2", "roster.provisional_after=6", "deadlines.gather=2")
    with Swarm(tmp_path, settings) as swarm:
        first, second = swarm.start(), swarm.start()
        for node in (first, second):
            node.wait_for("round", seconds=60, where=lambda event: event["voters"] == 2)
        second.signal(signal.SIGSTOP)
        event = first.wait_for("round", seconds=40, where=lambda event: event["provisional"])
        first.wait_round(event["round"] + 3, seconds=20)
        second.signal(signal.SIGCONT)
        second.wait_for("notice", seconds=20, where=lambda event: "stopped, or its machine asleep" in event["text"])
        at = len(second.events)
        second.wait_for("round", seconds=30, where=lambda event: event["contributed"], after=at)
        for node in (first, second):
            node.wait_for("round", seconds=30, where=lambda event: event["voters"] == 2 and event["round"] > at)
        assert not any(event["lost"] for event in second.of("resync")), "it had no rounds of its own"
        swarm.assert_one_history()


def test_two_that_were_cut_off_from_each_other_become_one_again(tmp_path: Path) -> None:
    settings = (*QUICK, "roster.start_with=2", "roster.provisional_after=6", "deadlines.gather=2")
    with Swarm(tmp_path, settings) as swarm:
        nodes = swarm.start(), swarm.start()
        for node in nodes:
            node.wait_for("round", seconds=60, where=lambda event: event["voters"] == 2)
        daemons = [daemon_of(node) for node in nodes]
        for pid in daemons:
            os.kill(pid, signal.SIGSTOP)
        for node in nodes:
            node.wait_for("round", seconds=60, where=lambda event: event["provisional"])
        assert nodes[0].digests() != nodes[1].digests(), "the fault fired: two branches"
        for pid in daemons:
            os.kill(pid, signal.SIGCONT)
        marks = [len(node.events) for node in nodes]
        deadline = time.monotonic() + 90
        while not any(event["lost"] for node in nodes for event in node.of("resync")):
            assert time.monotonic() < deadline, [node.events[-8:] for node in nodes]
            time.sleep(0.2)
        for node, mark in zip(nodes, marks, strict=True):
            node.wait_for("round", seconds=40, where=lambda event: event["voters"] == 2, after=mark)
        last = {number: digest for number, digest in nodes[0].digests().items() if number in nodes[1].digests()}
        newest = max(last)
        assert nodes[1].digests()[newest] == last[newest]
        losers = [node for node in nodes if any(event["lost"] for event in node.of("resync"))]
        assert len(losers) == 1, "the fork choice is the same on both sides"


def daemon_of(node: NodeProcess) -> int:
    """The process id of a node's libp2p daemon."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = stat.read_text().rsplit(")", 1)
            if name.endswith("(p2pd") and int(rest.split()[1]) == node.process.pid:
                return int(stat.parent.name)
    raise AssertionError("no daemon")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_leave_at_once_and_nothing_is_left(tmp_path: Path, number: signal.Signals) -> None:
    with Swarm(tmp_path, (*QUICK, "roster.start_with=3")) as swarm:
        for _ in range(3):
            swarm.start()
        for node in swarm.nodes:
            node.wait_round(3, seconds=60)
        began = time.monotonic()
        for node in swarm.nodes:
            node.signal(number)
        for node in swarm.nodes:
            assert node.wait(10) == 0, node.errors
            assert node.last("stopped")["reason"], node.events[-3:]
            assert not node.leftovers()
            assert not node.errors
        assert time.monotonic() - began < 10
        swarm.assert_one_history()


@pytest.mark.parametrize("count", [2, 3])
def test_one_leaves_and_the_others_go_on_at_once(tmp_path: Path, count: int) -> None:
    with Swarm(tmp_path, (*QUICK, f"roster.start_with={count}")) as swarm:
        for _ in range(count):
            swarm.start()
        for node in swarm.nodes:
            node.wait_for("round", seconds=60, where=lambda event: event["voters"] == count)
        assert swarm.nodes[1].stop() == 0
        rest = [node for node in swarm.nodes if node is not swarm.nodes[1]]
        left = count - 1
        for node in rest:
            node.wait_for("round", seconds=20, where=lambda event: event["voters"] == left and event["peers"] == left)
        assert not any(event["provisional"] for node in rest for event in node.of("round"))


def test_nodes_that_stop_after_as_many_rounds_as_asked(tmp_path: Path) -> None:
    with Swarm(tmp_path, (*QUICK, "roster.start_with=2", "training.target_rounds=6")) as swarm:
        swarm.start(), swarm.start()
        for node in swarm.nodes:
            assert node.wait(60) == 0, node.errors
            assert node.last("round")["round"] == 6
            assert node.last("result")["measures"]["accuracy"] > 0.5
            assert Path(node.last("result")["model"]).is_file()
        swarm.assert_one_history()
        model = swarm.nodes[1].last("result")["model"]
        command = [sys.executable, "-m", "p2pnode", "evaluate", model]
        shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        assert f"{swarm.nodes[1].last('result')['measures']['accuracy']:.4f}"[:5] in shown or "%" in shown


def test_a_second_process_on_one_home_says_so_and_stops(tmp_path: Path) -> None:
    with Swarm(tmp_path) as swarm:
        first = swarm.start()
        first.wait_round(1, seconds=60)
        second = NodeProcess(first.home, ["--task", "digits"])
        try:
            assert second.wait(20) == 1
            assert any("runs here already" in line for line in second.errors)
        finally:
            second.kill()


def test_a_node_does_not_outlive_its_launcher(tmp_path: Path) -> None:
    launcher = (
        "import subprocess, sys, time\n"
        f"node = subprocess.Popen([sys.executable, '-m', 'p2pnode', 'join', '--home', {str(tmp_path / '1')!r},"
        " '--screen', 'json', '--share', '1/3'], stdout=open(sys.argv[1], 'w'))\n"
        "print(node.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", launcher, str(log)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    node = int(parent.stdout.readline())
    try:
        deadline = time.monotonic() + 30
        while '"joined"' not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        parent.kill()
        parent.wait(5)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{node}").exists() and "State:\tZ" not in Path(f"/proc/{node}/status").read_text():
            assert time.monotonic() < deadline, "it lingers"
            time.sleep(0.1)
    finally:
        parent.kill()
