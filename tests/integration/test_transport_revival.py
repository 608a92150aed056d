"""The libp2p daemon dies under a living node, or everybody is lost: the node comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pnode.errors import NetworkError, Unreachable
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import limits
from p2pnode.transport.base import TransportOptions
from p2pnode.transport.hivemind import HivemindTransport
from tests.integration.test_transport_processes import RUN, Node, alive, gone_within
from tests.support.swarm import QUICK, Swarm

pytestmark = pytest.mark.integration


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as base:  # pytest's own is too long for a socket's address
        (Path(base) / "s").mkdir(mode=0o700)
        yield Path(base) / "s"


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    made: list[Node] = []
    yield made
    for node in made:
        left = daemons(node) if node.process.poll() is None else []
        node.end()
        for pid in left:
            gone_within(pid, 3)


def daemons(node: Node) -> list[int]:
    """The daemon of a node, if it has one now."""
    return children(node.process.pid)


def children(pid: int) -> list[int]:
    """The child processes of a process that started them from its first thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def kill(here: HivemindTransport) -> int:
    """Kill the daemon; its process id, once it is dead."""
    pid = here._link.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not alive(pid), 5)
    return pid


def takes(thief: socket.socket, port: int) -> bool:
    """Listen at a port; False while the dead daemon's threads still hold it."""
    with contextlib.suppress(OSError):
        thief.bind(("127.0.0.1", port))
        thief.listen()
        return True
    return False


class Here:
    """A node in this process, with what it heard and told."""

    def __init__(self, sockets: Path, **options: object) -> None:
        self.lines: list[str] = []
        self.gone: list[PeerId] = []
        self.echoes: asyncio.Queue[tuple[PeerId, bytes]] = asyncio.Queue()
        made = TransportOptions(socket_dir=sockets, log=self.lines.append, **options)  # type: ignore[arg-type]
        self.node = HivemindTransport(PeerIdentity.generate(), RUN, made)
        self.node.on_peer_gone(self.gone.append)
        self.node.on_frame("x", self.take)

    async def take(self, peer: PeerId, frame: bytes) -> None:
        await self.echoes.put((peer, frame))

    async def echo(self, peer: PeerId, body: bytes) -> float:
        """Seconds until a frame to `peer` and back went through; failures on the way are part of it."""
        began = time.monotonic()
        while True:
            try:
                await self.node.send(peer, "x", body)
                async with asyncio.timeout(2):
                    while await self.echoes.get() != (peer, body):
                        pass
                return time.monotonic() - began
            except (NetworkError, TimeoutError):
                assert time.monotonic() - began < 20, "frames do not go on"
                await asyncio.sleep(0.02)


def test_a_killed_daemon_is_started_again_and_everything_goes_on(sockets: Path, nodes: list[Node]) -> None:
    async def test() -> None:
        here = Here(sockets)
        node = here.node
        await node.start()
        pids = []
        try:
            before = list(node.addresses())
            nodes.extend(Node(sockets, before) for _ in range(2))
            for other in nodes:
                await asyncio.to_thread(other.wait_ready)
                await here.echo(other.identity.peer_id, b"hello")
            assert await node.store("k", b"before", lifetime=300)
            for turn in range(2):
                here.gone.clear()
                here.lines.clear()
                pids.append(await kill(node))
                assert await until(lambda: len(here.gone) == 2) < 2.5
                assert await until(lambda: "libp2p's daemon runs again" in here.lines) < 20
                assert node._link.pid != pids[-1] and alive(node._link.pid)
                assert "has ended (it was killed" in here.lines[0]
                await until(lambda: list(node.addresses()) == before)  # so that invites stay good
                for other in nodes:
                    assert await here.echo(other.identity.peer_id, b"again %d" % turn) < 10
                    await node.call(other.identity.peer_id, "hello", b"", timeout=10)
                assert (await node.fetch("k"))[node.peer_id].sender == node.peer_id
                assert await node.store("k", b"after %d" % turn, lifetime=300)
            # And the others find back to us, by what they knew, when it happens to them.
            for other in nodes:
                [pid] = daemons(other)
                pids.append(pid)
                os.kill(pid, signal.SIGKILL)
                await until(lambda: not alive(pids[-1]), 5)
                assert await here.echo(other.identity.peer_id, b"theirs") < 15
            # Somebody new comes in at the old address.
            nodes.append(Node(sockets, before))
            await asyncio.to_thread(nodes[-1].wait_ready)
            await here.echo(nodes[-1].identity.peer_id, b"new")
        finally:
            pids.append(node._link.pid)
            began = time.monotonic()
            await node.stop()
            assert time.monotonic() - began < 5
        for other in nodes:
            pids += daemons(other)
            other.process.send_signal(signal.SIGINT)
        for other in nodes:
            out, err = await asyncio.to_thread(other.process.communicate, timeout=30)
            assert (other.process.returncode, err) == (0, b"")
            assert json.loads(out)["stop"] < 5
        assert not any(map(alive, pids))

    asyncio.run(test())
    assert not sockets.exists(), "sockets are left"


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.3, 0.5, 1.0])
def test_told_to_leave_while_the_daemon_is_started_again(sockets: Path, nodes: list[Node], delay: float) -> None:
    nodes.append(Node(sockets, []).wait_ready())
    os.kill(nodes[0].daemon, signal.SIGKILL)
    gone_within(nodes[0].daemon, 3)
    time.sleep(delay)
    left = daemons(nodes[0])
    began = time.monotonic()
    nodes[0].process.send_signal(signal.SIGINT)
    _, err = nodes[0].process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert (nodes[0].process.returncode, err) == (0, b"")
    assert not any(map(alive, left))
    assert not sockets.exists()


def test_a_daemon_that_does_not_stay_is_given_up_with_plain_words(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESTARTS", 2)

    async def test() -> None:
        here = Here(sockets)
        await here.node.start()
        try:
            for turn in range(2):
                await kill(here.node)
                await until(lambda: here.lines.count("libp2p's daemon runs again") == turn + 1)  # noqa: B023
            pid = await kill(here.node)
            await until(lambda: any("stop this node and start it again" in line for line in here.lines), 5)
            assert here.node._link.pid == pid, "it was started once more"
            with pytest.raises(NetworkError, match="stop this node and start it again"):
                await here.node.peers()
        finally:
            await here.node.stop()

    asyncio.run(test())
    assert not sockets.exists()


def test_a_daemon_that_does_not_start_is_tried_with_growing_pauses(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESTARTS", 4)

    async def test() -> None:
        here = Here(sockets)
        await here.node.start()
        tries: list[float] = []

        async def fails(*_: object) -> None:
            tries.append(time.monotonic())
            raise NetworkError("no memory")

        here.node._link.restart = fails  # type: ignore[method-assign]
        try:
            await kill(here.node)
            await until(lambda: any("stop this node" in line for line in here.lines), 20)
            assert len(tries) == 4
            pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
            assert pauses[0] < pauses[1] < pauses[2]
        finally:
            await here.node.stop()

    asyncio.run(test())


def test_a_port_that_was_taken_meanwhile_is_given_up(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DAEMON_LOOK_SECONDS", 1.0)

    async def test() -> None:
        here = Here(sockets, listen=("/ip4/127.0.0.1/tcp/0",))
        await here.node.start()
        try:
            [before] = here.node.addresses()
            port = int(before.split("/")[4])
            await kill(here.node)
            with socket.socket() as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                await until(lambda: takes(thief, port), 0.8)
                await until(lambda: "libp2p's daemon runs again" in here.lines)
            assert any(f"tcp/{port} was taken" in line for line in here.lines)
            await until(lambda: list(here.node.addresses()) != [before])
        finally:
            await here.node.stop()

    asyncio.run(test())


def test_who_lost_everybody_finds_back(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ALONE_LOOK_SECONDS", 0.5)

    async def test() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        listen = (f"/ip4/127.0.0.1/tcp/{port}",)
        here = Here(sockets)
        await here.node.start()
        there = Here(sockets, listen=listen, bootstraps=here.node.addresses())
        await there.node.start()
        try:
            await there.node.send(here.node.peer_id, "x", b"hello")
            await until(lambda: not here.echoes.empty())
            # All connections break, as when a cable is pulled; nobody sends anything.
            request = here.node._link._messages.DisconnectRequest(peer=there.node.peer_id.to_bytes())
            await here.node._link._request("DISCONNECT", disconnect=request)
            await until(lambda: here.gone == [there.node.peer_id] or not here.gone, 5)
            for side, other in ((here, there), (there, here)):
                await until_connected(side.node, other.node.peer_id)
            # It is away for longer, and comes back where it was.
            await there.node.stop()
            await until(lambda: any("nobody of the run can be reached" in line for line in here.lines))
            with pytest.raises(Unreachable):
                await here.node.send(there.node.peer_id, "x", b"?")
            await asyncio.sleep(2)
            again = Here(sockets, listen=listen)
            again.node = HivemindTransport(there.node._identity, RUN, TransportOptions(listen=listen))
            await again.node.start()
            try:
                await until_connected(here.node, again.node.peer_id)
                await until(lambda: "connected to the others again" in here.lines)
            finally:
                await again.node.stop()
        finally:
            await asyncio.gather(here.node.stop(), there.node.stop())

    asyncio.run(test())


async def until_connected(node: HivemindTransport, peer: PeerId) -> None:
    async with asyncio.timeout(45):
        while peer not in await node.peers():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("count", [2, 3])
def test_rounds_go_on_when_a_members_daemon_is_killed(tmp_path: Path, count: int) -> None:
    with Swarm(tmp_path, (*QUICK, f"roster.start_with={count}")) as swarm:
        for _ in range(count):
            swarm.start()
        for node in swarm.nodes:
            node.wait_for("round", seconds=60, where=lambda event: event["voters"] == count)
        for victim in (swarm.nodes[0], swarm.nodes[-1]):
            [pid] = children(victim.process.pid)
            os.kill(pid, signal.SIGKILL)
            gone_within(pid, 3)
            at = max(node.last("round")["round"] for node in swarm.nodes)
            for node in swarm.nodes:
                node.wait_for(
                    "round",
                    seconds=60,
                    where=lambda event: event["round"] > at + 2 and event["peers"] == count,  # noqa: B023
                )
            notices = [event["text"] for event in victim.of("notice")]
            assert "libp2p's daemon runs again" in notices
        assert not any(event["provisional"] for node in swarm.nodes for event in node.of("round"))
        left = [pid for node in swarm.nodes for pid in children(node.process.pid)]
        assert len(left) == count
        for node in swarm.nodes:
            node.signal(signal.SIGINT)
        for node in swarm.nodes:
            assert node.wait(10) == 0, node.errors
            assert not node.leftovers()
        assert not any(map(alive, left))
        swarm.assert_one_history()
