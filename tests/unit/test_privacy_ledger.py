"""The ledger: charged before release, never less than what was released, whatever happens to process or file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pnode.errors import BudgetSpent, HomeInUse, LedgerBroken, StorageError
from p2pnode.privacy import accountant, ledger
from p2pnode.privacy.ledger import Ledger
from p2pnode.privacy.mechanism import SampledGaussian

STEPS = SampledGaussian(0.5, 2.831, 5)
LIMIT = (8.0, 1e-4)
PRINT = "ab" * 32
RUN, OTHER = "11" * 32, "22" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledgers" / PRINT


def cost(rounds: int) -> float:
    return accountant.epsilon([SampledGaussian(0.5, 2.831, 5 * rounds)], 1e-4)


def test_what_is_reserved_is_spent_and_stays_so(path: Path) -> None:
    with Ledger.open(path, PRINT) as first:
        assert first.spent(1e-4) == 0
        for number in range(1, 4):
            assert first.reserve(RUN, number, STEPS, LIMIT) == cost(number)
    assert path.stat().st_mode & 0o077 == 0
    with Ledger.open(path, PRINT, clock=lambda: 5.0) as again:
        assert again.spent(1e-4) == cost(3)
        assert [(entry.run, entry.round) for entry in again.reservations] == [(RUN, 1), (RUN, 2), (RUN, 3)]
        again.reserve(OTHER, 1, STEPS, LIMIT)
        assert again.reservations[-1].when == 5.0
        assert again.spent(1e-4) == cost(4)


def test_two_runs_on_the_same_data_add_up_and_the_error_says_so(path: Path) -> None:
    limit = (cost(4) + 1e-6, 1e-4)
    with Ledger.open(path, PRINT) as book:
        for number in range(1, 4):
            book.reserve(RUN, number, STEPS, limit)
        book.reserve(OTHER, 1, STEPS, limit)
        before = path.read_bytes()
        with pytest.raises(BudgetSpent, match=r"1 other run with the same data included.*total over all runs"):
            book.reserve(OTHER, 2, STEPS, limit)
        assert path.read_bytes() == before
        assert book.spent(1e-4) == cost(4)
        book.reserve(OTHER, 2, STEPS, LIMIT)  # refused once is not refused for ever: this limit has room


def test_a_plan_fits_its_own_budget_to_the_last_round(path: Path) -> None:
    with Ledger.open(path, PRINT) as book:
        spent = [book.reserve(RUN, number, STEPS, LIMIT) for number in range(1, 21)]
        assert spent == sorted(spent)
        assert spent[-1] <= 8.0
        with pytest.raises(BudgetSpent):
            book.reserve(RUN, 21, STEPS, LIMIT)


def test_one_process_at_a_time(path: Path) -> None:
    with Ledger.open(path, PRINT), pytest.raises(HomeInUse, match="another node"):
        Ledger.open(path, PRINT)
    Ledger.open(path, PRINT).close()


def test_a_closed_ledger_reserves_nothing(path: Path) -> None:
    book = Ledger.open(path, PRINT)
    book.close()
    book.close()
    with pytest.raises(StorageError, match="closed"):
        book.reserve(RUN, 1, STEPS, LIMIT)


def filled(path: Path, rounds: int = 3) -> bytes:
    with Ledger.open(path, PRINT) as book:
        for number in range(1, rounds + 1):
            book.reserve(RUN, number, STEPS, LIMIT)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (2, lambda line: line.replace(b'"steps": 5', b'"steps": 4').replace(b'"steps":5', b'"steps":4')),
        (3, lambda line: line.replace(b'"round":2', b'"round":9')),
        (3, lambda line: b""),
        (2, lambda line: b"not a line\n"),
        (1, lambda line: line.replace(PRINT.encode(), b"cd" * 32)),
        (1, lambda line: b""),
        (4, lambda line: line.replace(b'"round":3', b'"round":1')),
    ],
)
def test_an_edited_ledger_is_broken_with_its_line(path: Path, number: int, change: object) -> None:
    lines = filled(path).splitlines(keepends=True)
    edited = change(lines[number - 1])  # type: ignore[operator]
    assert edited != lines[number - 1]
    path.write_bytes(b"".join([*lines[: number - 1], edited, *lines[number:]]))
    with pytest.raises(LedgerBroken, match=rf"line {number}\b"):
        Ledger.open(path, PRINT)


def test_lines_in_another_order_and_another_data_sets_ledger_are_broken(path: Path) -> None:
    lines = filled(path).splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[2], lines[1], lines[3]]))
    with pytest.raises(LedgerBroken, match="line 2"):
        Ledger.open(path, PRINT)
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerBroken, match="other data"):
        Ledger.open(path, "cd" * 32)
    path.write_bytes(b"")
    with pytest.raises(LedgerBroken, match="line 1"):
        Ledger.open(path, PRINT)


def test_a_torn_last_line_counts_wherever_it_was_cut(path: Path) -> None:
    whole = filled(path)
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with Ledger.open(path, PRINT) as book:
            assert book.spent(1e-4) == cost(3), cut
            assert book.reservations[-1].torn
        kept = path.read_bytes()
        assert kept.startswith(whole[:cut])  # nothing is deleted
        with Ledger.open(path, PRINT) as book:  # and it stays counted, once
            assert book.spent(1e-4) == cost(3)
            assert book.reserve(RUN, 4, STEPS, LIMIT) == cost(4)


def test_a_crash_while_accounting_for_a_torn_line_is_accounted_for_too(path: Path) -> None:
    whole = filled(path)
    path.write_bytes(whole[:-20])
    Ledger.open(path, PRINT).close()
    repaired = path.read_bytes()
    for cut in range(len(whole) - 20, len(repaired)):
        path.write_bytes(repaired[:cut])
        with Ledger.open(path, PRINT) as book:
            assert book.spent(1e-4) >= cost(3), cut


def test_a_torn_line_of_which_nothing_is_known_costs_as_the_next(path: Path) -> None:
    Ledger.open(path, PRINT).close()
    with path.open("ab") as file:
        file.write(b'{"mech')
    with Ledger.open(path, PRINT) as book:
        assert book.reserve(RUN, 1, STEPS, LIMIT) == cost(2)
        assert book.spent(1e-4) >= cost(1)


def test_a_torn_line_of_other_size_is_read_from_its_own_bytes(path: Path) -> None:
    filled(path, 1)
    big = SampledGaussian(0.5, 2.831, 50)
    with Ledger.open(path, PRINT) as book:
        book.reserve(RUN, 2, big, LIMIT)
    path.write_bytes(path.read_bytes()[:-3])
    with Ledger.open(path, PRINT) as book:
        assert book.spent(1e-4) == cost(11)


def test_a_failed_write_releases_nothing_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(path, PRINT) as book:
        failed = []

        def full(descriptor: int) -> None:
            failed.append(descriptor)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ledger.os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            book.reserve(RUN, 1, STEPS, LIMIT)
        monkeypatch.undo()
        with pytest.raises(StorageError, match="restart"):
            book.reserve(RUN, 2, STEPS, LIMIT)
        assert failed


CHILD = """
import sys, time
from pathlib import Path
from p2pnode.privacy.ledger import Ledger
from p2pnode.privacy.mechanism import SampledGaussian
book = Ledger.open(Path(sys.argv[1]), sys.argv[2])
released = open(sys.argv[3], "ab", buffering=0)
number = len(book.reservations)
while True:
    number += 1
    book.reserve("33" * 32, number, SampledGaussian(0.001, 2.831, 1), (8.0, 1e-4))
    released.write(b"x")  # stands for the release: it comes only after reserve has returned
"""


def test_kill_9_at_any_moment_never_leaves_less_spent_than_released(path: Path, tmp_path: Path) -> None:
    released = tmp_path / "released"
    released.touch()
    for attempt in range(4):
        before = released.stat().st_size
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), PRINT, str(released)])
        try:
            deadline = time.monotonic() + 60
            while released.stat().st_size < before + 3 and time.monotonic() < deadline and child.poll() is None:
                time.sleep(0.001)
            time.sleep(0.0007 * attempt)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            assert child.wait(30) == -signal.SIGKILL  # it was alive until then: the fault fired
        with Ledger.open(path, PRINT) as book:
            charged = sum(1 for entry in book.reservations)
            assert released.stat().st_size >= before + 3
            assert released.stat().st_size <= charged <= released.stat().st_size + attempt + 1


AT_A_POINT = """
import os, signal, sys
from pathlib import Path
from p2pnode.privacy import ledger
from p2pnode.privacy.mechanism import SampledGaussian
book = ledger.Ledger.open(Path(sys.argv[1]), sys.argv[2])
point, write, fsync = sys.argv[3], os.write, os.fsync
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def wrote(descriptor, data):
    if point == "before write":
        die()
    if point == "half written":
        write(descriptor, data[: len(data) // 2])
        die()
    return write(descriptor, data)
def synced(descriptor):
    if point == "before fsync":
        die()
    fsync(descriptor)
    if point == "after fsync":
        die()
ledger.os.write, ledger.os.fsync = wrote, synced
book.reserve("33" * 32, 4, SampledGaussian(0.5, 2.831, 5), (8.0, 1e-4))
if point == "before release":
    die()
"""


@pytest.mark.parametrize(
    ("point", "rounds"),
    [("before write", 3), ("half written", 4), ("before fsync", 4), ("after fsync", 4), ("before release", 4)],
)
def test_kill_9_at_each_step(path: Path, point: str, rounds: int) -> None:
    filled(path, 3)
    done = subprocess.run([sys.executable, "-c", AT_A_POINT, str(path), PRINT, point], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL  # the fault fired
    with Ledger.open(path, PRINT) as book:
        assert book.spent(1e-4) == cost(rounds)  # "before write" alone costs nothing: nothing was drawn either
        assert book.reserve(RUN, 5, STEPS, LIMIT) == cost(rounds + 1)


def test_lines_are_json_that_a_person_can_read(path: Path) -> None:
    lines = [json.loads(line) for line in filled(path, 1).splitlines()]
    assert lines[0]["fingerprint"] == PRINT
    assert lines[1]["mechanism"] == {
        "kind": "sampled-gaussian",
        "sampling_rate": 0.5,
        "noise_multiplier": 2.831,
        "steps": 5,
    }
    assert (lines[1]["run"], lines[1]["round"], lines[1]["limit"]) == (RUN, 1, [8.0, 1e-4])
    assert lines[1]["prev"] == lines[0]["hash"]
