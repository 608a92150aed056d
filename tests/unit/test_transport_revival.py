"""Coming back: how often a daemon is started again, on which ports, and who is dialled."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest

from p2pnode.errors import Unreachable
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.transport import addresses, limits
from p2pnode.transport.daemon import can_listen
from p2pnode.transport.dialling import Dialler
from p2pnode.transport.revival import Restarts


def test_restarts_back_off_end_and_are_forgiven_with_time() -> None:
    restarts = Restarts()
    pauses = [restarts.next(100.0 + n) for n in range(limits.RESTARTS)]
    assert pauses[:4] == [0.0, 0.25, 0.5, 1.0]
    assert pauses == sorted(pauses) and max(pauses) <= limits.BACKOFF_MOST
    assert restarts.next(110.0) is None
    assert restarts.next(100.0 + limits.RESTART_WINDOW) is None
    assert restarts.next(100.5 + limits.RESTART_WINDOW) == limits.BACKOFF_MOST, "one try has grown old"
    assert restarts.next(110.0 + 2 * limits.RESTART_WINDOW) == 0.0


FOUND = [
    "/ip4/7.7.7.7/tcp/999",  # a router's mapping
    "/ip4/192.168.1.5/tcp/4001",
    "/ip4/127.0.0.1/tcp/4001",
    "/ip4/127.0.0.1/udp/4002/quic",
    "/ip6/::1/tcp/4003",
    "/ip4/9.9.9.9/tcp/5/p2p/12D3KooW/p2p-circuit",
]


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/tcp/4001"),
        ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/4001"),
        ("/ip4/0.0.0.0/udp/0/quic", "/ip4/0.0.0.0/udp/4002/quic"),
        ("/ip6/::/tcp/0", "/ip6/::/tcp/4003"),
        ("/ip4/10.0.0.1/tcp/0", "/ip4/10.0.0.1/tcp/0"),  # nothing shows it
        ("/ip4/0.0.0.0/tcp/31337", "/ip4/0.0.0.0/tcp/31337"),
        ("/unix/x", "/unix/x"),
    ],
)
def test_ports_that_were_got_are_asked_for_again(asked: str, got: str) -> None:
    assert addresses.settled([asked], FOUND) == [got]
    assert addresses.settled([asked], FOUND[::-1]) == [got]


def test_a_routers_port_is_not_ours() -> None:
    assert addresses.settled(["/ip4/0.0.0.0/tcp/0"], FOUND[:1]) == ["/ip4/0.0.0.0/tcp/0"]


def test_whether_a_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as libp2p does, which would share it
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        assert not can_listen(address)
        assert not can_listen(address.replace("127.0.0.1", "0.0.0.0"))
    assert can_listen(address)
    assert can_listen("/dns4/example/tcp/1") and can_listen("/unix/x")


def test_dialling_many_ends_soon_after_the_first_answer() -> None:
    near, far, none = (PeerIdentity.from_seed(bytes([n]) * 32).peer_id for n in range(3))
    ended: list[PeerId] = []

    async def dial(peer: PeerId, some: Sequence[str]) -> None:
        try:
            if peer == none:
                raise Unreachable("nobody")
            await asyncio.sleep(0.05 if peer == near else 60)
        finally:
            ended.append(peer)

    async def test() -> None:
        dialler = Dialler(dial)
        async with asyncio.timeout(2):
            assert await dialler.any_of({peer: ["/x"] for peer in (near, far, none)}) == [near]
            assert sorted(ended) == sorted([near, far, none]), "nothing goes on behind our back"
            assert await dialler.any_of({none: ["/x"]}) == []
            assert not await dialler.one(none, ["/x"])

    asyncio.run(test())
