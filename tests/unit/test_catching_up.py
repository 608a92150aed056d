"""Exchange, history, sync and catching up together, over the in-memory transport: splits that heal, chains that lie."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from p2pnode.manifest import DeadlinesSection, RosterSection, RunManifest
from p2pnode.replica.branches import credible
from p2pnode.replica.chain import decode_record
from p2pnode.replica.state import GlobalState
from p2pnode.round.effects import Committed
from p2pnode.sync import ChainLog, History, StateStore, SyncClient
from p2pnode.transport.base import TransportOptions
from p2pnode.transport.memory import MemoryNetwork, MemoryTransport
from tests.support.cluster import VALUES, full_roster, genesis, identities, make_manifest
from tests.support.lab import LabNode, until

Test = Callable[[list[LabNode], MemoryNetwork], Awaitable[None]]


def manifest(provisional_after: float = 1.0) -> RunManifest:
    return make_manifest(
        identities(1)[0].peer_id,
        roster=RosterSection(provisional_after=provisional_after, company_wait=0.1),
        deadlines=DeadlinesSection(gather=1, contribute=3, close=3, vote=3),
    )


def lab(
    tmp_path: Path, count: int, test: Test, *, founders: int | None = None, rules: RunManifest | None = None
) -> None:
    """Run `test` with so many nodes that all know each other. Afterwards each node's state can be had from its disk."""
    nodes: list[LabNode] = []
    run_manifest = manifest()

    async def run() -> None:
        network = MemoryNetwork(seed=1)
        keys = identities(count)
        first = genesis(run_manifest, full_roster(key.peer_id for key in keys))
        async with AsyncExitStack() as stack:
            near: tuple[str, ...] = ()
            for number, key in enumerate(keys):
                transport = network.transport(key, run_manifest.digest, TransportOptions(bootstraps=near))
                await transport.start()
                stack.push_async_callback(transport.stop)
                near = (*near, *transport.addresses())
                nodes.append(LabNode(tmp_path / str(number), key, run_manifest, transport, first))
            for node in nodes:
                await stack.enter_async_context(node)
            await test(nodes, network)

    asyncio.run(asyncio.wait_for(run(), 60))
    for node in nodes:
        history, notices = History.open(ChainLog(node.files.chain), run_manifest, VALUES)
        state, more = StateStore(node.files.states, node.exchange.rules).recover(history)
        assert not notices + more
        assert history.tip.digest == node.history.tip.digest
        assert state is not None and state.digest == history.tip.digest


def tips(nodes: list[LabNode]) -> set[bytes]:
    """The digests that the nodes have for the last round that all have."""
    lowest = min(node.history.tip.round for node in nodes)
    return {node.history.digest_at(lowest) or b"" for node in nodes}


async def meet(nodes: list[LabNode], network: MemoryNetwork) -> None:
    """The split is over, and the halves find each other again (as node/members.py sees to)."""
    network.heal()
    for node in nodes:
        for other in nodes:
            if other is not node:
                await node.transport.connect(other.transport.addresses())


def test_two_halves_that_went_on_apart_become_one(tmp_path: Path) -> None:
    async def test(nodes: list[LabNode], network: MemoryNetwork) -> None:
        await until(lambda: min(node.state.round for node in nodes) >= 3, 10)
        left, right = nodes[:2], nodes[2:]
        network.partition(*([node.identity.peer_id for node in half] for half in (left, right)))

        def provisional(node: LabNode) -> bool:
            return any(isinstance(o, Committed) and o.certified.link.provisional for o in node.outcomes)

        await until(lambda: all(provisional(node) for node in nodes), 20)
        assert len(tips(nodes)) == 2, "the fault fired: two branches"
        await meet(nodes, network)
        at = max(node.state.round for node in nodes)
        await until(lambda: len(tips(nodes)) == 1 and min(n.state.round for n in nodes) > at + 2, 40)
        await until(lambda: any(node.adopted() for node in nodes), 1)
        lost = [[any(adopted.lost for adopted in node.adopted()) for node in half] for half in (left, right)]
        assert [any(half) for half in lost].count(True) == 1, "one side lost rounds, the other none"
        # and the losers take part again, and vote after probation
        await until(lambda: all(len(node.state.roster.members) == 4 for node in nodes), 15)

    lab(tmp_path, 4, test)


def test_the_smaller_side_of_a_split_gives_way(tmp_path: Path) -> None:
    async def test(nodes: list[LabNode], network: MemoryNetwork) -> None:
        await until(lambda: min(node.state.round for node in nodes) >= 2, 10)
        many, one = nodes[:3], nodes[3:]
        network.partition(*([node.identity.peer_id for node in side] for side in (many, one)))
        await until(lambda: len(tips(nodes)) == 2, 15)
        await meet(nodes, network)
        await until(lambda: len(tips(nodes)) == 1 and bool(one[0].adopted()), 25)
        assert any(adopted.lost for adopted in one[0].adopted())
        assert not any(node.adopted() for node in many)
        assert not any(link.provisional for link in [node.history.tip for node in many])

    lab(tmp_path, 4, test)


async def client_of(network: MemoryNetwork, rules: RunManifest, near: list[str]) -> MemoryTransport:
    transport = network.transport(identities(9)[8], rules.digest, TransportOptions(bootstraps=near))
    await transport.start()
    return transport


def ahead(nodes: list[LabNode], rounds: int) -> Awaitable[None]:
    return until(lambda: min(node.state.round for node in nodes) >= rounds, 20)


def test_a_newcomer_follows_the_chain_from_its_start(tmp_path: Path) -> None:
    async def test(nodes: list[LabNode], network: MemoryNetwork) -> None:
        await ahead(nodes, 5)
        rules = nodes[0].exchange.rules.manifest
        near = [address for node in nodes for address in node.transport.addresses()]
        transport = await client_of(network, rules, near)
        try:
            client = SyncClient(transport)
            start = nodes[0].history.link_at(0)
            history = History(start, ChainLog(tmp_path / "log"), rules, VALUES, 0.0)
            peers = [node.identity.peer_id for node in nodes]
            found = await client.follow(history, rules, VALUES, peers, tip_missing=True)
            assert found is not None
            assert found.common == 0
            assert found.state.digest == found.link.digest == nodes[0].history.digest_at(found.link.round)
            for link, record in zip(found.links, found.records, strict=True):
                history.append(link, record, 1.0)
            again = await client.follow(history, rules, VALUES, peers)
            assert again is None or again.common >= found.link.round, "only what is new is fetched"
        finally:
            await transport.stop()

    lab(tmp_path, 3, test)


def test_a_chain_with_a_forged_link_is_not_followed(tmp_path: Path) -> None:
    async def test(nodes: list[LabNode], network: MemoryNetwork) -> None:
        await ahead(nodes, 4)
        rules = nodes[0].exchange.rules.manifest
        liar = nodes[0]
        read = liar.history.record_at
        fired = []

        def forged(number: int) -> bytes | None:
            record = read(number)
            if number != 3 or record is None:
                return record
            fired.append(number)
            changed = decode_record(record)
            del changed.votes[1:]
            return changed.SerializeToString(deterministic=True)

        liar.history.record_at = forged  # type: ignore[method-assign]
        transport = await client_of(network, rules, list(liar.transport.addresses()))
        try:
            said: list[str] = []
            client = SyncClient(transport, said.append)
            history = History(liar.history.link_at(0), ChainLog(tmp_path / "log"), rules, VALUES, 0.0)
            found = await client.follow(history, rules, VALUES, [liar.identity.peer_id], tip_missing=True)
            assert fired and found is None
            assert any("record-quorum" in line for line in said)
        finally:
            await transport.stop()

    lab(tmp_path, 3, test)


def test_made_up_provisional_rounds_are_not_followed_before_our_clock_allows(tmp_path: Path) -> None:
    """One member alone can make up any number of provisional rounds at once."""

    async def test(nodes: list[LabNode], network: MemoryNetwork) -> None:
        await ahead(nodes, 2)
        one, rest = nodes[0], nodes[1:]
        network.partition([one.identity.peer_id, identities(9)[8].peer_id], [node.identity.peer_id for node in rest])
        await until(lambda: one.history.tip.provisional or len(one.history.tip.roster.members) == 1, 20)
        rules = one.exchange.rules.manifest
        observer = History(rest[0].history.link_at(1), ChainLog(tmp_path / "log"), rules, VALUES, 100.0)
        transport = await client_of(network, rules, list(one.transport.addresses()))
        try:
            client = SyncClient(transport)
            peers = [one.identity.peer_id]

            def after(seconds: float):  # type: ignore[no-untyped-def]
                return lambda common, links: credible(links, seconds, rules.roster.provisional_after)

            assert await client.follow(observer, rules, VALUES, peers, credible=after(0.5)) is None
            found = await client.follow(observer, rules, VALUES, peers, credible=after(60))
            assert found is not None and any(link.provisional for link in found.links)
        finally:
            await transport.stop()

    lab(tmp_path, 3, test)


def test_history_goes_back_and_on(tmp_path: Path) -> None:
    async def test(nodes: list[LabNode], network: MemoryNetwork) -> None:
        await ahead(nodes, 6)
        history = nodes[0].history
        links = [history.link_at(number) for number in range(7)]
        records = [history.record_at(number) for number in range(7)]
        rules = nodes[0].exchange.rules.manifest
        copy = History(links[0], ChainLog(tmp_path / "log"), rules, VALUES, 0.0)
        for number in range(1, 6):
            copy.append(links[number], records[number] or b"", float(number))
        with pytest.raises(ValueError, match="round 5 after round 5"):
            copy.append(links[5], b"", 9.0)
        assert copy.link_at(3) == links[3]
        assert copy.waited(3, 10.0) == 7.0
        with pytest.raises(ValueError, match="round 4 after round 2"):
            copy.follow(2, links[4:5], [records[4] or b""], 20.0)
        copy.follow(2, links[3:4], [records[3] or b""], 20.0)
        assert copy.tip == links[3]
        assert copy.digest_at(4) is None and copy.record_at(4) is None
        with pytest.raises(ValueError, match="not between"):
            copy.link_at(4)
        assert copy.record_at(3) == records[3]
        assert copy.record_at(2) == records[2]
        again, notices = History.open(ChainLog(tmp_path / "log"), rules, VALUES)
        assert not notices
        assert again.tip == links[3] and again.digest_at(4) is None
        assert again.waited(3, 21.0) == 1.0 and again.waited(2, 21.0) == 19.0

    lab(tmp_path, 2, test)


def test_states_of_another_branch_are_not_served(tmp_path: Path) -> None:
    async def test(nodes: list[LabNode], network: MemoryNetwork) -> None:
        await ahead(nodes, 3)
        server, state = nodes[0].server, nodes[0].state
        older = GlobalState(
            state.run, state.round - 1, bytes(32), state.roster, state.tensors.copy(), state.parameter_count
        )
        server.add(older)
        assert server.head is older

    lab(tmp_path, 1, test)
