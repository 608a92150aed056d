"""The hivemind transport in real processes: killed, frozen, orphaned, started twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import IdentityTaken, NetworkError
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import daemon, lifeline
from p2pnode.transport.base import TransportOptions
from p2pnode.transport.hivemind import HivemindTransport

pytestmark = pytest.mark.integration

RUN = bytes(range(32))
ROOT = Path(__file__).resolve().parents[2]

NODE = """
import asyncio, json, os, signal, sys
from pathlib import Path
from p2pnode.identity import PeerIdentity
from p2pnode.transport import lifeline
from p2pnode.transport.base import TransportOptions
from p2pnode.transport.hivemind import HivemindTransport

async def main(seed, sockets, bootstraps, linger):
    parent = os.getppid()  # before anybody could have killed it
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    options = TransportOptions(bootstraps=bootstraps, socket_dir=Path(sockets))
    node = HivemindTransport(PeerIdentity.from_seed(bytes.fromhex(seed)), bytes(range(32)), options)
    async def echo(peer, frame):
        await node.send(peer, "x", frame)
    node.on_frame("x", echo)
    await node.start()
    print(json.dumps({"addresses": list(node.addresses()), "daemon": node._link.pid}), flush=True)
    if linger:
        await stop.wait()
    else:
        waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(lifeline.parent_gone(parent))]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    began = asyncio.get_running_loop().time()
    await node.stop()
    print(json.dumps({"stop": asyncio.get_running_loop().time() - began}), flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4] == "linger"))
"""


class Node:
    """A node in a process of its own."""

    def __init__(
        self, sockets: Path, bootstraps: list[str], seed: bytes | None = None, through: list[str] | None = None
    ):
        self.identity = PeerIdentity.from_seed(seed) if seed else PeerIdentity.generate()
        arguments = [sys.executable, "-c", NODE, self.identity.seed.hex(), str(sockets), json.dumps(bootstraps)]
        arguments.append("follow" if through else "linger")
        self.process = subprocess.Popen(
            [*(through or []), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.told: dict[str, Any] = {}

    def wait_ready(self) -> Node:
        """Block until it listens."""
        if self.process.stdout is None:
            raise AssertionError
        line = self.process.stdout.readline()
        assert line, self.errors()
        self.told = json.loads(line)
        return self

    @property
    def addresses(self) -> list[str]:
        return list(self.told["addresses"])

    @property
    def daemon(self) -> int:
        return int(self.told["daemon"])

    def errors(self) -> str:
        if self.process.stderr is None:
            raise AssertionError
        return self.process.stderr.read().decode()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)
        self.process.kill()
        self.process.communicate(timeout=10)


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
        node.end()
        if node.told:
            gone_within(node.daemon, 3)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def gone_within(pid: int, seconds: float) -> float:
    began = time.monotonic()
    while alive(pid):
        assert time.monotonic() - began < seconds, f"process {pid} is still there"
        time.sleep(0.01)
    return time.monotonic() - began


async def gone_or_timeout(gone: list[PeerId], seconds: float) -> float:
    began = time.monotonic()
    while not gone:
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def test_a_killed_node_leaves_no_daemon_and_its_directory_is_swept(sockets: Path, nodes: list[Node]) -> None:
    nodes.append(Node(sockets, []).wait_ready())
    os.kill(nodes[0].process.pid, signal.SIGKILL)
    assert gone_within(nodes[0].daemon, 2) < 1
    nodes[0].process.wait(5)
    assert any(sockets.iterdir()), "a killed process can't tidy up"
    assert daemon.sweep(sockets) == 1
    assert list(sockets.iterdir()) == []


def test_a_sweep_spares_the_living(sockets: Path, nodes: list[Node]) -> None:
    nodes.append(Node(sockets, []).wait_ready())
    before = sorted(path.name for path in sockets.rglob("*"))
    assert daemon.sweep(sockets) == 0
    assert sorted(path.name for path in sockets.rglob("*")) == before


def test_a_killed_peer_is_noticed_soon(sockets: Path, nodes: list[Node]) -> None:
    async def test() -> None:
        here = HivemindTransport(PeerIdentity.generate(), RUN)
        gone: list[PeerId] = []
        echoes: asyncio.Queue[bytes] = asyncio.Queue()
        here.on_peer_gone(gone.append)
        here.on_frame("x", lambda peer, frame: echoes.put(frame))
        await here.start()
        try:
            nodes.extend(Node(sockets, list(here.addresses())) for _ in range(2))
            for node in nodes:
                await asyncio.to_thread(node.wait_ready)
                await here.send(node.identity.peer_id, "x", b"hello")
                async with asyncio.timeout(10):
                    assert await echoes.get() == b"hello"
            os.kill(nodes[0].process.pid, signal.SIGKILL)
            assert await gone_or_timeout(gone, 5) < 2
            assert gone == [nodes[0].identity.peer_id]
            # The same identity again at once, while its old connections may linger: no false alarm.
            nodes.append(Node(sockets, list(here.addresses()), seed=nodes[0].identity.seed))
            await asyncio.to_thread(nodes[2].wait_ready)
            await here.send(nodes[2].identity.peer_id, "x", b"again")
            async with asyncio.timeout(10):
                assert await echoes.get() == b"again"
        finally:
            await here.stop()

    asyncio.run(test())


def test_two_processes_with_one_identity_through_different_bootstraps(sockets: Path, nodes: list[Node]) -> None:
    async def test() -> None:
        first = HivemindTransport(PeerIdentity.generate(), RUN)
        await first.start()
        second = HivemindTransport(PeerIdentity.generate(), RUN, TransportOptions(bootstraps=first.addresses()))
        await second.start()
        twin: HivemindTransport | None = None
        try:
            nodes.append(Node(sockets, list(first.addresses())))
            await asyncio.to_thread(nodes[0].wait_ready)
            twin = HivemindTransport(nodes[0].identity, RUN, TransportOptions(bootstraps=second.addresses()))
            began = time.monotonic()
            with pytest.raises(IdentityTaken):
                await twin.start()
            assert time.monotonic() - began < 2.5
            # Once the other is gone (no farewell), the identity is free at once.
            os.kill(nodes[0].process.pid, signal.SIGKILL)
            twin = HivemindTransport(nodes[0].identity, RUN, TransportOptions(bootstraps=second.addresses()))
            began = time.monotonic()
            await twin.start()
            assert time.monotonic() - began < 2.5
        finally:
            if twin is not None:
                await twin.stop()
            await second.stop()
            await first.stop()

    asyncio.run(test())


class Unchecked(HivemindTransport):
    """Comes back after a power cut: its old connection lingers, and can't be asked."""

    async def _identity_taken(self, peers: Sequence[PeerId]) -> bool:
        return False


def test_a_peer_that_comes_back_while_its_old_streams_linger() -> None:
    async def test() -> None:
        here = HivemindTransport(PeerIdentity.generate(), RUN)
        gone: list[PeerId] = []
        frames: asyncio.Queue[bytes] = asyncio.Queue()
        here.on_peer_gone(gone.append)
        here.on_frame("x", lambda peer, frame: frames.put(frame))
        await here.start()
        one = PeerIdentity.generate()
        twins = [Unchecked(one, RUN, TransportOptions(bootstraps=here.addresses())) for _ in range(2)]
        try:
            for number, twin in enumerate(twins):
                await twin.start()
                await twin.send(here.peer_id, "x", bytes([number]))
                async with asyncio.timeout(5):
                    assert await frames.get() == bytes([number])
                assert gone == [one.peer_id] * number
        finally:
            await asyncio.gather(here.stop(), *(twin.stop() for twin in twins))

    asyncio.run(test())


def test_the_end_of_our_own_daemon_is_an_error_and_no_hang() -> None:
    async def test() -> None:
        here, there = (HivemindTransport(PeerIdentity.generate(), RUN) for _ in range(2))
        await here.start()
        await there.start()
        try:
            gone: list[PeerId] = []
            here.on_peer_gone(gone.append)
            assert await here.connect(there.addresses())
            await here.send(there.peer_id, "presence", here._presence.proof(bytes(32)))
            pending = asyncio.create_task(here.call(there.peer_id, "hello", b"", timeout=20))
            await pending
            here._keeper.cancel()
            os.kill(here._link.pid, signal.SIGKILL)
            assert await gone_or_timeout(gone, 5) < 3
            async with asyncio.timeout(3):
                for attempt in (
                    here.call(there.peer_id, "hello", b"", timeout=20),
                    here.send(there.peer_id, "presence", b""),
                    here.peers(),
                ):
                    with pytest.raises(NetworkError):
                        await attempt
                assert not await here.connect(there.addresses())
                assert await here.fetch("k") == {}
        finally:
            await asyncio.gather(here.stop(), there.stop())

    asyncio.run(test())


def test_stop_does_not_wait_for_the_frozen(sockets: Path, nodes: list[Node]) -> None:
    async def test() -> None:
        here = HivemindTransport(PeerIdentity.generate(), RUN)
        await here.start()
        nodes.extend(Node(sockets, list(here.addresses())) for _ in range(2))
        for node in nodes:
            await asyncio.to_thread(node.wait_ready)
            await here.send(node.identity.peer_id, "x", b"hello")
        for node in nodes:
            os.kill(node.process.pid, signal.SIGSTOP)
        stuck = asyncio.create_task(fill(here, nodes[0].identity.peer_id))
        searching = asyncio.create_task(here.fetch("k"))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await here.stop()
        assert time.monotonic() - began < 5
        with pytest.raises(NetworkError):
            await stuck
        await searching

    async def fill(here: HivemindTransport, peer: PeerId) -> None:
        while True:
            await here.send(peer, "x", bytes(1 << 20))

    asyncio.run(test())


def test_all_may_stop_at_once_and_say_nothing(sockets: Path, nodes: list[Node]) -> None:
    nodes.append(Node(sockets, []).wait_ready())
    nodes.extend(Node(sockets, nodes[0].addresses) for _ in range(3))
    for node in nodes[1:]:
        node.wait_ready()
    for number, node in enumerate(nodes):
        os.kill(node.process.pid, signal.SIGINT if number % 2 else signal.SIGTERM)
    for node in nodes:
        out, err = node.process.communicate(timeout=30)  # a busy machine takes long to end an interpreter
        assert (node.process.returncode, err) == (0, b"")
        assert json.loads(out)["stop"] < 5, "and nothing else on standard output"
    for node in nodes:
        assert not alive(node.daemon)
    assert not sockets.exists(), "the last one removes the directory"


def test_a_node_follows_its_killed_parent(sockets: Path, nodes: list[Node]) -> None:
    launcher = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    nodes.append(Node(sockets, [], through=launcher).wait_ready())
    os.kill(nodes[0].process.pid, signal.SIGKILL)
    gone_within(nodes[0].daemon, 6)
    deadline = time.monotonic() + 5
    while sockets.exists() and list(sockets.iterdir()):
        assert time.monotonic() < deadline, "the orphan did not tidy up"
        time.sleep(0.05)


@pytest.mark.parametrize("stay", [False, True], ids=["kernel", "looking"])
def test_a_lifeline_ends_the_child_of_a_killed_parent(stay: bool) -> None:
    script = (
        "import subprocess, sys, time\n"
        "from p2pnode.transport import lifeline\n"
        "line = lifeline.command(['/bin/sleep', '60'])\n"
        "at = line.index(lifeline.__file__) + 1\n"
        "line[at:at] = sys.argv[1:]\n"
        "child = subprocess.Popen(line)\n"
        "time.sleep(0.3)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *(["--stay"] if stay else [])],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        if parent.stdout is None:
            raise AssertionError
        child = int(parent.stdout.readline())
        children = [child]
        with contextlib.suppress(OSError):
            listed = Path(f"/proc/{child}/task/{child}/children").read_text().split()
            children += [int(pid) for pid in listed]
        assert all(map(alive, children)) and len(children) == 1 + stay
    finally:
        parent.kill()
        parent.communicate(timeout=5)
    for pid in children:
        gone_within(pid, 3)


def test_importing_and_running_says_nothing(sockets: Path) -> None:
    script = (
        "import asyncio\n"
        "from p2pnode.identity import PeerIdentity\n"
        "from p2pnode.transport.base import TransportOptions\n"
        "from p2pnode.transport.hivemind import HivemindTransport\n"
        "async def main():\n"
        "    a = HivemindTransport(PeerIdentity.generate(), bytes(32))\n"
        "    await a.start()\n"
        "    b = HivemindTransport(PeerIdentity.generate(), bytes(32), TransportOptions(bootstraps=a.addresses()))\n"
        "    await b.start()\n"
        "    await b.store('k', b'v', lifetime=5)\n"
        "    await a.fetch('k')\n"
        "    return a, b  # not stopped: an interrupted program\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(sockets)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert daemon.sweep(next(sockets.iterdir())) == 2


def test_lifeline_waits_as_long_as_the_parent_lives() -> None:
    async def test() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await lifeline.parent_gone()
        async with asyncio.timeout(2):
            await lifeline.parent_gone(parent=2**22 + 1)  # one that is not our parent

    asyncio.run(test())
