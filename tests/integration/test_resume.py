"""Real nodes that are stopped or killed, all of them, and started again: the run goes on from their disks."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from p2pnode.swarm.process import NodeProcess
from tests.support.swarm import QUICK, Swarm

pytestmark = pytest.mark.integration


def one_history(nodes: Iterable[NodeProcess]) -> dict[int, str]:
    """The digests of all rounds that any of these processes told; no two tell of different ones."""
    seen: dict[int, str] = {}
    for node in nodes:
        for number, digest in node.digests().items():
            assert seen.setdefault(number, digest) == digest, f"round {number}"
    return seen


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_founder_alone_goes_on_with_the_same_command(tmp_path: Path, how: signal.Signals) -> None:
    with Swarm(tmp_path) as swarm:
        first = swarm.start()
        first.wait_round(3, seconds=60)
        first.signal(how)
        first.wait(15)
        again = swarm.restart(0)
        joined = again.wait_for("joined", seconds=60)
        told = first.last("round")
        assert joined["round"] in (told["round"], told["round"] + 1), "at most the last one was not told any more"
        if joined["round"] == told["round"]:
            assert joined["state_digest"] == told["state_digest"]
        assert again.last("started")["invite"] != first.last("started")["invite"], "it names the state now"
        again.wait_round(joined["round"] + 3, seconds=30)
        numbers = sorted(again.digests())
        assert numbers[0] == joined["round"] + 1, "no round is made twice"
        one_history([first, again])
        # and whoever was invited before can still come
        member = NodeProcess(tmp_path / "late", [first.invite, "--share", "2/6", "--threads", "1"])
        swarm.nodes.append(member)
        member.wait_for("round", seconds=60, where=lambda event: event["contributed"])
        one_history([first, again, member])


def test_a_founder_goes_on_by_its_own_invite_and_by_resume(tmp_path: Path) -> None:
    with Swarm(tmp_path) as swarm:
        first = swarm.start()
        first.wait_round(2, seconds=60)
        first.stop()
        at = first.last("stopped")["round"]
        seen = [first]
        for how in ([(first.home / "runs" / first.last("started")["run_id"] / "invite.txt").read_text()], ["--resume"]):
            again = NodeProcess(first.home, [*how, "--share", "1/6", "--threads", "1"])
            swarm.nodes.append(again)
            assert again.wait_for("joined", seconds=60)["round"] == at
            again.wait_round(at + 1, seconds=30)
            again.stop()
            at = again.last("stopped")["round"]
            seen.append(again)
        one_history(seen)


def test_three_that_are_killed_at_once_go_on_with_one_history(tmp_path: Path) -> None:
    with Swarm(tmp_path, (*QUICK, "roster.start_with=3")) as swarm:
        for _ in range(3):
            swarm.start()
        for node in swarm.nodes:
            node.wait_for("round", seconds=60, where=lambda event: event["voters"] == 3 and event["round"] >= 5)
        before = list(swarm.nodes)
        for node in before:
            node.signal(signal.SIGKILL)
        for node in before:
            node.wait(10)
        last = max(max(node.digests()) for node in before)
        for index in range(3):
            swarm.restart(index)
        for node in swarm.nodes:
            assert node.wait_for("joined", seconds=60)["round"] >= last - 1
        for node in swarm.nodes:
            event = node.wait_for("round", seconds=60, where=lambda event: event["round"] >= last + 4)
            assert event["voters"] == 3 and not event["provisional"]
        one_history([*before, *swarm.nodes])
        assert not any(node.of("rejected") for node in swarm.nodes)
        assert not any(event["lost"] for node in swarm.nodes for event in node.of("resync"))


def test_one_that_is_killed_comes_back_to_the_others_who_went_on(tmp_path: Path) -> None:
    with Swarm(tmp_path, (*QUICK, "roster.start_with=3")) as swarm:
        for _ in range(3):
            swarm.start()
        for node in swarm.nodes:
            node.wait_for("round", seconds=60, where=lambda event: event["voters"] == 3)
        before = swarm.nodes[1]
        before.signal(signal.SIGKILL)
        before.wait(10)
        last = max(before.digests())
        swarm.nodes[0].wait_round(last + 5, seconds=40)
        again = swarm.restart(1)
        joined = again.wait_for("joined", seconds=60)
        assert joined["round"] >= last + 5, "it follows the others' chain, not its own disk's end"
        again.wait_for("round", seconds=40, where=lambda event: event["contributed"])
        one_history([*swarm.nodes, before])
