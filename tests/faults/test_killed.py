"""kill -9 at every step of writing to the disk: whatever was certified is there again, and the run goes on from it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from p2pnode.manifest import RosterSection
from p2pnode.round.effects import Committed
from p2pnode.transport.memory import MemoryNetwork
from tests.support.cluster import full_roster, genesis, identities, make_manifest
from tests.support.kills import Guillotine, When
from tests.support.lab import LabNode, until

ROUNDS = 4
ME = identities(1)[0]
MANIFEST = make_manifest(ME.peer_id, roster=RosterSection(company_wait=0))
FIRST = genesis(MANIFEST, full_roster([ME.peer_id]))


def atomically(kind: str, folder: str) -> list[str]:
    return [f"write new {kind}", f"fsync new {kind}", f"rename {kind}", f"fsync {folder}"]


STEPS = [
    *(step for kind in ("promise", "update", "lock") for step in atomically(kind, "journal")),
    *(step for kind in ("outputs", "state") for step in atomically(kind, "states")),
    *atomically("chain.log", "node"),
    "write chain.log",
    "fsync chain.log",
]


def live(folder: Path, rounds: int, told: Callable[[str], None]) -> list[str]:
    """A node alone on the roster certifies this many rounds, and tells each; what it said when it began."""

    async def run() -> list[str]:
        transport = MemoryNetwork().transport(ME, MANIFEST.digest)
        await transport.start()
        node = LabNode(folder / "node", ME, MANIFEST, transport, FIRST)
        node.work_seconds = 0.0
        async with node:
            link = node.history.tip
            told(json.dumps([link.round, link.digest.hex(), ""]))
            put = node.exchange.outcomes.put_nowait

            def tell(outcome: object) -> None:
                if isinstance(outcome, Committed):
                    link, record = outcome.certified.link, outcome.certified.record
                    told(json.dumps([link.round, link.digest.hex(), blake3(record).hexdigest()]))
                put(outcome)  # type: ignore[arg-type]

            node.exchange.outcomes.put_nowait = tell  # type: ignore[method-assign,assignment]
            at = node.state.round
            await until(lambda: node.state.round >= at + rounds, 30)
            for number in range(1, node.state.round + 1):
                record = node.history.record_at(number) or b""
                told(json.dumps([number, (node.history.digest_at(number) or b"").hex(), blake3(record).hexdigest()]))
        await transport.stop()
        return node.notices

    return asyncio.run(run())


def in_a_process(work: Callable[[Callable[[str], None]], object]) -> tuple[list[str], int]:
    """Run `work` in a process of its own; the lines that it told, and its wait status."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        write = os.write
        try:
            work(lambda line: write(writer, line.encode() + b"\n") and None)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        told = lines.read().splitlines()
    return told, os.waitpid(child, 0)[1]


def rounds_in(told: list[str]) -> list[tuple[int, str, str]]:
    return [(number, digest, record) for number, digest, record in map(json.loads, (t for t in told if t[0] == "["))]


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The digest of each round when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("reference")

    def work(told: Callable[[str], None]) -> None:
        Guillotine(folder, told).install()
        live(folder, 2 * ROUNDS, told)

    told, status = in_a_process(work)
    assert status == 0
    steps = {line for line in told if not line.startswith("[")}
    assert steps == set(STEPS), "these are all the steps there are"
    return {number: digest for number, digest, _ in rounds_in(told)}


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step(tmp_path: Path, committed: dict[int, str], step: str) -> None:
    moments: list[When] = ["before", "amid", "after"] if step.startswith("write") else ["before", "after"]
    counts = (1,) if step in atomically("chain.log", "node") else (1, 2)
    for when in moments:
        for count in counts:
            folder = tmp_path / f"{when}{count}"
            folder.mkdir()

            def work(told: Callable[[str], None], folder: Path = folder, count: int = count, when: When = when) -> None:
                Guillotine(folder, told, step, count, when).install()
                live(folder, 10 * ROUNDS, told)

            told, status = in_a_process(work)
            assert told[-1] == "killed" and os.WTERMSIG(status) == 9, "the fault fired"
            before = rounds_in(told)
            said: list[str] = []
            notices = live(folder, 2, said.append)
            after = rounds_in(said)
            at, digest, _ = after[0]
            last = max((number for number, _, _ in before), default=0)
            assert at in (last, last + 1), "nothing that was certified is lost"
            assert digest == committed[at], "it is a state that was certified"
            records = {number: record for number, _, record in after if record}
            for number, digest, record in before:
                assert committed[number] == digest
                assert number == 0 or records[number] == record, "no round was made a second time"
            assert all(committed[number] == digest for number, digest, _ in after if number in committed)
            torn = [notice for notice in notices if "torn" in notice]
            assert bool(torn) == (step == "write chain.log" and when == "amid"), notices
            assert not any("damaged" in notice or "missing" in notice for notice in notices)
