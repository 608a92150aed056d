"""Data sets: finding them, checking them, and sharing them out.

A data set is known by the SHA-256 sums of its raw files (`DATASETS`), so it doesn't matter where they come from: a
folder that the user names, the cache, or a public mirror. Files may lie there raw or gzipped; the sum is of the raw
bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3

from p2pnode.config import Share
from p2pnode.errors import DataError
from p2pnode.training.task import Dataset, Split

MAX_SHARES: Final = 100_000
DOWNLOAD_TIMEOUT: Final = 30.0  # seconds without a byte
_PART: Final = 1 << 20


@dataclass(frozen=True)
class DataFile:
    """One raw file: its name, its size in bytes, and its SHA-256 (hex)."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """A data set that is not shipped. mirrors: addresses under which `<file name>.gz` lies."""

    name: str
    title: str
    files: tuple[DataFile, ...]
    mirrors: tuple[str, ...]

    @property
    def digest(self) -> str:
        """BLAKE3 (hex) over names and sums of the files: what a manifest's `data_digest` names."""
        listed = "".join(f"{file.name} {file.size} {file.sha256}\n" for file in self.files)
        return blake3(f"p2pnode/data/1\n{self.name}\n{listed}".encode()).hexdigest()


def _idx_files(*sums: str) -> tuple[DataFile, ...]:
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    return tuple(DataFile(*parts) for parts in zip(names, sizes, sums, strict=True))


DATASETS: Final[dict[str, Source]] = {
    "mnist": Source(
        "mnist",
        "MNIST",
        _idx_files(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
        ),
    ),
}


def cache_folder() -> Path:
    """Where downloaded data sets are kept on this machine (platformdirs)."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("p2pnode", appauthor=False)) / "data"


def find_files(
    source: Source, data_dir: Path | None, *, cache: Path | None = None, download: bool = True
) -> dict[str, bytes]:
    """The raw bytes of a data set's files, by name, each checked against its sum.

    Looks in `data_dir` if given (there only: itself, then its sub-folder of the data set's name), else in the cache,
    else downloads into the cache. Raises DataError: a file is missing, can't be read, or has another sum (both are
    named).
    """
    if data_dir is not None:
        return _read_all(source, (data_dir, data_dir / source.name))
    folder = (cache if cache is not None else cache_folder()) / source.name
    missing = [file for file in source.files if _locate(file, (folder,)) is None]
    if missing and download:
        for file in missing:
            _download(source, file, folder)
    return _read_all(source, (folder,))


def _locate(file: DataFile, folders: tuple[Path, ...]) -> Path | None:
    candidates = (folder / name for folder in folders for name in (file.name, f"{file.name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_all(source: Source, folders: tuple[Path, ...]) -> dict[str, bytes]:
    found = {}
    for file in source.files:
        path = _locate(file, folders)
        if path is None:
            raise DataError(
                f"{source.title} is not here: {file.name} (or {file.name}.gz) is not in {folders[0]}; "
                f"name the folder that has it with --data-dir, or get it from {source.mirrors[0]}/{file.name}.gz"
            )
        found[file.name] = _checked(file, path)
    return found


def _checked(file: DataFile, path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(raw)) as stream:
                raw = stream.read(file.size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read ({error}): delete it and fetch it again") from None
    found = hashlib.sha256(raw).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{path} is not the file that is needed: its SHA-256 is {found}, expected {file.sha256}; "
            "delete it and fetch it again"
        )
    return raw


def _download(source: Source, file: DataFile, folder: Path) -> None:
    problems = []
    for mirror in source.mirrors:
        address = f"{mirror}/{file.name}.gz"
        try:
            with urllib.request.urlopen(address, timeout=DOWNLOAD_TIMEOUT) as reply:  # https only: see DATASETS
                packed = reply.read(file.size + _PART)
            with gzip.open(io.BytesIO(packed)) as stream:
                raw = stream.read(file.size + 1)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            problems.append(f"{address}: {getattr(error, 'reason', error)}")
            continue
        found = hashlib.sha256(raw).hexdigest()
        if found != file.sha256:
            problems.append(f"{address}: its SHA-256 is {found}, expected {file.sha256}")
            continue
        write_file(folder / file.name, raw)
        return
    raise DataError(
        f"{source.title} is neither in {folder} nor could it be downloaded ({'; '.join(problems)}); "
        f"get them elsewhere ({', '.join(f'{one.name}.gz' for one in source.files)}), and put them there or name their "
        "folder with --data-dir; in a clone of p2pnode, scripts/fetch-data gets them from npm"
    )


def write_file(path: Path, data: bytes) -> None:
    """Put a file in the cache, whole or not at all. Raises DataError if the folder can't be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} can't be written ({error.strerror}): check the folder and the free space") from None


def read_idx(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """An IDX file of bytes: [n, ...] uint8 (its layout: two zero bytes, type 8, rank, big-endian sizes, values).

    Raises DataError if it is not one, whole.
    """
    rank = data[3] if len(data) >= 4 and data[:3] == b"\0\0\x08" else 0
    header = 4 + 4 * rank
    if not 1 <= rank <= 4 or len(data) < header:
        raise DataError(f"{name} is not an IDX file of bytes")
    shape = tuple(int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(rank))
    expected = 1
    for size in shape:
        expected *= size
    if len(data) - header != expected:
        raise DataError(f"{name} has {len(data) - header} values, and its header says {expected}")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def check_split(split: Split, classes: int, name: str) -> None:
    """Refuse what can't be learned from: empty, lengths that differ, values that are not finite, labels out of range.

    classes: number of classes; 0 for regression. Raises DataError, with the first bad example's number.
    """
    if len(split) == 0:
        raise DataError(f"the {name} part of the data is empty")
    if int(split.targets.shape[0]) != len(split):
        raise DataError(f"the {name} part has {len(split)} inputs and {int(split.targets.shape[0])} targets")
    for what, values in (("input", split.inputs), ("target", split.targets)):
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            finite = torch.isfinite(values).reshape(len(split), -1).all(dim=1)
            first = int(torch.nonzero(~finite)[0])
            raise DataError(
                f"the {name} part has a value that is not finite (NaN or infinite): {what} of example {first}"
            )
    if classes:
        wrong = (split.targets < 0) | (split.targets >= classes)
        if bool(wrong.any()):
            first = int(torch.nonzero(wrong)[0])
            raise DataError(
                f"the {name} part has a label out of range: example {first} has {int(split.targets[first])}, "
                f"allowed are 0 to {classes - 1}"
            )


def share_indices(share: Share, examples: int, digest: str) -> npt.NDArray[np.int64]:
    """Which of `examples` training examples a share holds, ascending; `digest` is the data set's.

    All shares of one count are disjoint and cover the set; sizes differ by at most one. The order that is cut is a
    fixed shuffle: examples sorted by 64-bit words of BLAKE3's extended output over the digest, so it is the same on
    every machine. Raises DataError if there are fewer examples than shares.
    """
    if examples < share.count:
        raise DataError(f"{examples} training examples can't be cut into {share.count} shares: use fewer")
    keyed = blake3(b"p2pnode/shares/1\0" + digest.encode()).digest(length=8 * examples)
    order = np.argsort(np.frombuffer(keyed, dtype="<u8"), kind="stable")
    start, stop = ((share.number - 1 + step) * examples // share.count for step in (0, 1))
    return np.sort(order[start:stop]).astype(np.int64)


def take_share(share: Share, dataset: Dataset) -> Split:
    """A share of the training examples, copied, so that the rest can be let go."""
    rows = torch.from_numpy(share_indices(share, len(dataset.train), dataset.digest))
    return Split(dataset.train.inputs[rows], dataset.train.targets[rows])


def fingerprint(split: Split) -> str:
    """BLAKE3 (hex) over the very examples of a share: names its privacy ledger. Never leaves the node."""
    hasher = blake3(b"p2pnode/fingerprint/1\0")
    for values in (split.inputs, split.targets):
        array = values.detach().cpu().contiguous().numpy()
        hasher.update(f"{array.dtype.str}{array.shape}\0".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()
