"""What is on a node's disk, torn, tampered with, or gone: found, said, never loaded; and the same state comes out."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from p2pnode.config import RunChoice, parse_run_prefix
from p2pnode.errors import MachineError, StorageError, UsageError
from p2pnode.exchange import Journal
from p2pnode.home import Home
from p2pnode.manifest import RosterSection
from p2pnode.node.listening import remember_port, same_port
from p2pnode.replica.chain import decode_record
from p2pnode.replica.state import GlobalState
from p2pnode.round.effects import Committed
from p2pnode.round.rules import Rules
from p2pnode.sync import ChainLog, History, StateStore
from p2pnode.sync.log import _FRAME, _frame
from p2pnode.transport.memory import MemoryNetwork
from tests.support.cluster import VALUES, full_roster, genesis, identities, make_manifest
from tests.support.lab import LabNode, until

ROUNDS, OLD = 12, 6
ME = identities(1)[0]
MANIFEST = make_manifest(ME.peer_id, roster=RosterSection(company_wait=0))
FIRST = genesis(MANIFEST, full_roster([ME.peer_id]))


def live(folder: Path, rounds: int) -> list[Committed]:
    """A node alone on the roster certifies at least so many rounds more."""
    committed: list[Committed] = []

    async def run() -> None:
        transport = MemoryNetwork().transport(ME, MANIFEST.digest)
        await transport.start()
        node = LabNode(folder, ME, MANIFEST, transport, FIRST)
        node.work_seconds = 0.0
        async with node:
            keep = node.exchange.on_certified

            def on_certified(outcome: Committed) -> None:
                keep(outcome)
                committed.append(outcome)

            node.exchange.on_certified = on_certified
            await until(lambda: len(committed) >= rounds, 30)
        await transport.stop()

    asyncio.run(run())
    return committed


def store(home: Path) -> StateStore:
    return StateStore(home / "states", Rules(MANIFEST, VALUES))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a node left. Of the states, those of rounds 0 and OLD are saved; the outputs of all rounds are there."""
    folder = tmp_path_factory.mktemp("lived")
    committed = live(folder, ROUNDS)
    shutil.rmtree(folder / "states")
    store(folder).write(FIRST)
    store(folder).write(committed[OLD - 1].state)
    for outcome in committed:
        store(folder).write_outputs(outcome.state, outcome.outputs)
    return folder


@pytest.fixture
def home(lived: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lived, tmp_path / "home"))


def open_history(home: Path) -> tuple[History, list[str]]:
    return History.open(ChainLog(home / "chain.log"), MANIFEST, VALUES)


def recover(home: Path, history: History) -> tuple[GlobalState | None, list[str]]:
    return store(home).recover(history)


def assert_recovers(home: Path, history: History) -> None:
    state, _ = recover(home, history)
    assert state is not None and state.digest == history.tip.digest


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def frames(path: Path) -> list[tuple[int, int]]:
    """[start, end) of each frame of a chain log, the start's first."""
    data, at, found = path.read_bytes(), 16, []
    while at < len(data):
        end = at + _FRAME + int.from_bytes(data[at : at + 4], "little")
        found.append((at, end))
        at = end
    return found


def test_a_history_is_the_same_when_it_is_opened_again(home: Path) -> None:
    history, notices = open_history(home)
    assert not notices
    assert history.first == 0 and history.tip.round >= ROUNDS
    assert history.digest_at(0) == FIRST.digest
    again, _ = open_history(home)
    for number in range(history.tip.round + 1):
        assert again.link_at(number) == history.link_at(number)
        assert again.record_at(number) == history.record_at(number)


@pytest.mark.parametrize("left", [1, _FRAME - 1, _FRAME, _FRAME + 1, -1])
def test_a_torn_end_is_cut_and_said(home: Path, left: int) -> None:
    whole, _ = open_history(home)
    log = home / "chain.log"
    start, end = frames(log)[-1]
    log.write_bytes(log.read_bytes()[: start + left if left > 0 else end + left])
    history, notices = open_history(home)
    assert len(notices) == 1 and "torn" in notices[0] and "cut off" in notices[0]
    assert history.tip.round == whole.tip.round - 1
    assert log.stat().st_size == start
    assert_recovers(home, history)
    assert open_history(home)[1] == []


def test_zeros_at_the_end_are_a_torn_end(home: Path) -> None:
    with (home / "chain.log").open("ab") as file:
        file.write(bytes(3_000_000))
    history, notices = open_history(home)
    assert len(notices) == 1 and "torn" in notices[0]
    assert_recovers(home, history)


def test_what_is_appended_at_once_is_torn_as_one(home: Path, tmp_path: Path) -> None:
    history, _ = open_history(home)
    links = [history.link_at(number) for number in range(6)]
    records = [history.record_at(number) or b"" for number in range(6)]
    log = tmp_path / "log"
    copy = History(links[0], ChainLog(log), MANIFEST, VALUES, 0.0)
    copy.append(links[1], records[1], 1.0)
    whole = log.stat().st_size
    copy.follow(1, links[2:], records[2:], 2.0)
    data = log.read_bytes()
    ends = [end for _, end in frames(log)]
    for cut in (*ends[2:-1], *(end - 1 for end in ends[2:]), whole + 1):
        log.write_bytes(data[:cut])
        again, notices = History.open(ChainLog(log), MANIFEST, VALUES)
        assert again.tip.round == 1 and "torn" in notices[0]
    log.write_bytes(data)
    assert History.open(ChainLog(log), MANIFEST, VALUES)[0].tip == links[5]


@pytest.mark.parametrize("where", ["length", "checksum", "payload"])
def test_a_tampered_record_is_named_and_set_aside_with_what_follows(home: Path, where: str) -> None:
    log = home / "chain.log"
    start, end = frames(log)[5]
    tail = log.read_bytes()[start:]
    damage(log, {"length": start + 1, "checksum": start + 20, "payload": end - 5}[where])
    history, notices = open_history(home)
    assert len(notices) == 1 and f"the entry at byte {start} is damaged" in notices[0]
    assert "set aside as chain.log.damaged" in notices[0]
    assert history.tip.round == 4
    kept = (home / "chain.log.damaged").read_bytes()
    assert len(kept) == len(tail) and sum(a != b for a, b in zip(kept, tail, strict=True)) == 1
    assert open_history(home)[1] == []
    assert_recovers(home, history)  # from the first state, with the outputs since


def rewrite(home: Path, number: int, change: str) -> None:
    """Change a round's record, and give it a good checksum."""
    log = home / "chain.log"
    history, _ = open_history(home)
    record = decode_record(history.record_at(number) or b"")
    match change:
        case "tensors":
            record.header.tensors = bytes(32)
        case "roster":
            record.roster.entries[0].accepted += 1
        case "votes":
            record.votes[0] = bytes(len(record.votes[0]))
    data, (start, end) = log.read_bytes(), frames(log)[number]
    payload = record.SerializeToString(deterministic=True)
    log.write_bytes(data[:start] + _frame(payload, 1.0, more=False) + data[end:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tensors", ["the record after round 5 is wrong (does not follow", "the record of round 5 is wrong"]),
        ("roster", ["the record after round 4 is wrong (its roster"]),
        ("votes", ["the record of round 5 is wrong"]),
    ],
)
def test_a_changed_record_with_a_good_checksum_is_not_loaded(home: Path, change: str, said: list[str]) -> None:
    rewrite(home, 5, change)
    history, notices = open_history(home)
    assert len(notices) == len(said)
    assert all(part in notice for part, notice in zip(said, notices, strict=True)), notices
    assert history.tip.round == 4
    assert_recovers(home, history)


def test_a_log_without_its_start_or_of_another_run_is_refused(home: Path) -> None:
    other = make_manifest(ME.peer_id, name="another")
    with pytest.raises(StorageError, match="of another run"):
        History.open(ChainLog(home / "chain.log"), other, VALUES)
    damage(home / "chain.log", 16 + _FRAME + 3)
    with pytest.raises(StorageError, match="first entry is damaged"):
        open_history(home)
    (home / "chain.log").write_bytes(b"something else")
    with pytest.raises(StorageError, match="not a chain log"):
        open_history(home)


def test_replay_gives_the_same_state(home: Path) -> None:
    history, _ = open_history(home)
    state, notices = recover(home, history)
    assert state is not None and not notices and state.digest == history.tip.digest
    next(home.glob(f"states/{OLD}-*.state")).unlink()
    older, _ = recover(home, history)
    assert older is not None and older.digest == state.digest
    assert np.array_equal(older.tensors, state.tensors) and older.roster == state.roster


@pytest.mark.parametrize("at", [3, 17, 60, -1])
def test_of_a_damaged_state_the_next_older_one_is_taken(home: Path, at: int) -> None:
    newest = next(home.glob(f"states/{OLD}-*.state"))
    damage(newest, at)
    history, _ = open_history(home)
    state, notices = recover(home, history)
    assert state is not None and state.digest == history.tip.digest
    assert len(notices) == 1 and newest.name in notices[0] and "set aside" in notices[0]
    assert newest.with_name(f"{newest.name}.damaged").exists() and not newest.exists()
    torn = next(home.glob("states/0-*.state"))
    torn.write_bytes(torn.read_bytes()[:-1])
    state, notices = recover(home, history)
    assert state is None and "is damaged" in notices[0]


def test_damaged_and_missing_outputs_are_named(home: Path) -> None:
    history, _ = open_history(home)
    damage(next(home.glob(f"states/{ROUNDS}-*.outputs")), 50)
    state, notices = recover(home, history)
    assert state is None
    assert all(f"{ROUNDS}-" in notice for notice in notices)
    assert "does not have its checksum" in notices[0] and "is missing" in notices[1]


def test_what_is_superfluous_is_forgotten_and_what_is_newer_is_not(home: Path) -> None:
    history, _ = open_history(home)
    state, _ = recover(home, history)
    assert state is not None
    store(home).write(state)
    far = GlobalState(state.run, state.round + 9, bytes(32), state.roster, state.tensors.copy(), VALUES)
    store(home).write(far)
    store(home).prune(history)
    kept = sorted(int(path.name.split("-")[0]) for path in home.glob("states/*.state"))
    assert kept == [OLD, state.round, far.round]
    assert min(int(path.name.split("-")[0]) for path in home.glob("states/*.outputs")) == OLD + 1
    assert_recovers(home, history)


def test_alone_a_node_does_not_go_on_behind_what_it_signed(home: Path) -> None:
    damage(home / "chain.log", frames(home / "chain.log")[5][1] - 5)
    for _ in range(2):
        with pytest.raises(MachineError, match="would sign rounds a second time"):
            live(home, 1)


def test_without_a_state_and_without_others_it_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnode.node.starting.MEET_SECONDS", 0.2)
    for path in home.glob("states/*.state"):
        damage(path, -1)
    for _ in range(2):
        with pytest.raises(MachineError, match="is not here any more"):
            live(home, 1)


def test_a_history_that_cannot_be_used_is_never_begun_anew(home: Path) -> None:
    (home / "chain.log").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(MachineError, match="took part in this run before"):
            live(home, 1)
    assert (home / "chain.log.damaged").exists()


def test_a_damaged_journal_is_said(home: Path) -> None:
    (home / "journal" / "promise").write_bytes(b"\xff\xff")
    with pytest.raises(StorageError, match="promise: is damaged"):
        Journal(home / "journal").read()
    with pytest.raises(StorageError, match="promise: is damaged"):
        live(home, 1)


def test_the_port_stays_the_same_if_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnode.node.listening.FREE_SECONDS", 0.2)
    file = tmp_path / "port"
    listen = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/4001")
    assert same_port(listen, file) == listen
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        remember_port(["/ip4/127.0.0.1/udp/1/quic/p2p/x", f"/ip4/127.0.0.1/tcp/{port}/p2p/x"], file)
        assert same_port(listen, file) == listen
    assert same_port(listen, file) == (f"/ip4/127.0.0.1/tcp/{port}", listen[1])


def test_a_run_of_this_home_is_found_by_the_first_digits_of_its_id(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(MachineError, match="no run was joined"):
        home.find("")
    ids = ["ab" * 32, "ac" * 32]
    for run_id in ids:
        home.run(run_id).directory.mkdir(parents=True)
    (home.runs / "abandoned").mkdir()
    home.set_current(ids[1])
    assert home.find("").directory.name == ids[1]
    assert home.find("AB").directory.name == ids[0]
    for prefix, said in (("a", "several runs of this home"), ("b", "no run of this home")):
        with pytest.raises(UsageError, match=said):
            home.find(prefix)
    assert parse_run_prefix(" AB ") == "ab"
    with pytest.raises(UsageError, match="hexadecimal"):
        parse_run_prefix("p2pnode1:abc")
    with pytest.raises(UsageError, match="--resume and --task"):
        RunChoice(resume="", task="digits")
