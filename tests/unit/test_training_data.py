"""Data: shares, checks, files with sums, IDX."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import Share
from p2pnode.errors import DataError
from p2pnode.identity import PeerId
from p2pnode.training.data import (
    DataFile,
    Source,
    check_split,
    find_files,
    fingerprint,
    read_idx,
    share_indices,
    take_share,
)
from p2pnode.training.task import Dataset, Split

DIGEST = "5a" * 32


@given(st.integers(1, 40), st.integers(0, 500))
def test_shares_of_one_count_are_disjoint_equal_and_cover_all(count: int, more: int) -> None:
    examples = count + more
    parts = [share_indices(Share(number, count), examples, DIGEST) for number in range(1, count + 1)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(examples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shares_are_the_same_on_every_machine_and_differ_with_the_data() -> None:
    assert share_indices(Share(2, 3), 12, DIGEST).tolist() == share_indices(Share(2, 3), 12, DIGEST).tolist()
    assert share_indices(Share(1, 2), 1000, DIGEST).tolist() != share_indices(Share(1, 2), 1000, "00" * 32).tolist()
    # a fixed vector: changing the shuffle would move every node's data
    assert share_indices(Share(1, 3), 12, DIGEST).tolist() == [1, 3, 6, 11]


def test_peers_fall_evenly_on_shares() -> None:
    fallen = [Share.of_peer(PeerId(number.to_bytes(32, "big")), 4).number for number in range(4000)]
    assert set(fallen) == {1, 2, 3, 4}
    assert max(np.bincount(fallen)[1:]) < 1150
    assert Share.of_peer(PeerId(b"\1" * 32), 4) == Share.of_peer(PeerId(b"\1" * 32), 4)


def test_too_few_examples_for_the_shares() -> None:
    with pytest.raises(DataError, match="3 training examples"):
        share_indices(Share(1, 4), 3, DIGEST)


def make(count: int = 6) -> Split:
    return Split(torch.arange(count * 2, dtype=torch.float32).reshape(count, 2), torch.arange(count) % 3)


def test_a_share_is_a_copy_and_has_its_own_fingerprint() -> None:
    dataset = Dataset(make(), make(), DIGEST, ("a", "b", "c"))
    one, two = (take_share(Share(number, 2), dataset) for number in (1, 2))
    assert len(one) == len(two) == 3
    assert fingerprint(one) == fingerprint(take_share(Share(1, 2), dataset))
    assert fingerprint(one) != fingerprint(two)
    one.inputs.zero_()
    assert bool((dataset.train.inputs == make().inputs).all())


def test_bad_data_is_named_with_its_example() -> None:
    good = make()
    check_split(good, 3, "training")
    with pytest.raises(DataError, match="empty"):
        check_split(Split(good.inputs[:0], good.targets[:0]), 3, "training")
    with pytest.raises(DataError, match="6 inputs and 5 targets"):
        check_split(Split(good.inputs, good.targets[:5]), 3, "training")
    for value in (float("nan"), float("inf")):
        bad = make()
        bad.inputs[4, 1] = value
        with pytest.raises(DataError, match=r"not finite.*example 4"):
            check_split(bad, 3, "training")
    with pytest.raises(DataError, match=r"example 2 has 2, allowed are 0 to 1"):
        check_split(good, 2, "test")
    check_split(Split(good.inputs, good.inputs), 0, "training")


CONTENT = b"some bytes of data"
FILE = DataFile("things", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
SOURCE = Source("set", "The Set", (FILE,), ("file:///nowhere-at-all",))


@pytest.mark.parametrize("folder", ["", "set"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_found_raw_or_packed(tmp_path: Path, folder: str, packed: bool) -> None:
    where = tmp_path / folder
    where.mkdir(exist_ok=True)
    (where / ("things.gz" if packed else "things")).write_bytes(gzip.compress(CONTENT) if packed else CONTENT)
    assert find_files(SOURCE, tmp_path) == {"things": CONTENT}


def test_a_wrong_sum_names_both(tmp_path: Path) -> None:
    (tmp_path / "things").write_bytes(b"other")
    with pytest.raises(DataError) as error:
        find_files(SOURCE, tmp_path)
    assert FILE.sha256 in str(error.value)
    assert hashlib.sha256(b"other").hexdigest() in str(error.value)


def test_missing_damaged_and_unreachable_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-dir"):
        find_files(SOURCE, tmp_path)
    with pytest.raises(DataError, match="could it be downloaded"):
        find_files(SOURCE, None, cache=tmp_path / "cache")
    (tmp_path / "things.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="can't be read"):
        find_files(SOURCE, tmp_path)


def test_a_download_is_checked_and_kept(tmp_path: Path) -> None:
    mirror, cache = tmp_path / "mirror", tmp_path / "cache"
    mirror.mkdir()
    (mirror / "things.gz").write_bytes(gzip.compress(CONTENT))
    source = Source("set", "The Set", (FILE,), ("file:///nowhere-at-all", mirror.as_uri()))
    assert find_files(source, None, cache=cache) == {"things": CONTENT}
    (mirror / "things.gz").unlink()
    assert find_files(source, None, cache=cache) == {"things": CONTENT}
    (mirror / "things.gz").write_bytes(gzip.compress(b"x" * 10_000_000))
    with pytest.raises(DataError, match="SHA-256"):
        find_files(source, None, cache=tmp_path / "other")


def test_idx_files() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + values.tobytes()
    assert (read_idx(data, "x") == values).all()
    for bad in (data[:-1], data + b"\0", data[:7], b"", b"\0\0\x09\x03" + data[4:], b"\0\0\x08\x00"):
        with pytest.raises(DataError, match="x"):
            read_idx(bad, "x")


@given(st.binary(max_size=40))
def test_idx_reader_survives_anything(data: bytes) -> None:
    with contextlib.suppress(DataError):
        read_idx(b"\0\0\x08" + data, "x")
