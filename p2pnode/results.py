"""What a run leaves behind: the model as safetensors, the manifest beside it, the measures as JSON. numpy only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from p2pnode.errors import MachineError, StorageError, UsageError
from p2pnode.home import RunFiles, write_atomically
from p2pnode.manifest import RunManifest
from p2pnode.manifest_file import dump_manifest, load_manifest

FORMAT: Final = "p2pnode model 1"
MODEL_FILE: Final = "model.safetensors"
NOT_PRIVATE: Final = "NONE: trained without privacy; examples of the training data may be rebuilt from it"


@dataclass(frozen=True)
class Outcome:
    """The end of a run on this node.

    tensors: name -> float32 array, in the order of the shared state. measures: of this state on the held-out split.
    epsilon, delta: what this node spent; None without privacy.
    """

    manifest: RunManifest
    signature: bytes
    tensors: Mapping[str, npt.NDArray[np.float32]]
    round: int
    state_digest: bytes
    measures: Mapping[str, float]
    confusion: Sequence[Sequence[int]] | None = None
    epsilon: float | None = None
    delta: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of the result file


@dataclass(frozen=True)
class SavedModel:
    """A model that was read back. tensors: in no particular order; metadata: as it was saved, not verified."""

    manifest: RunManifest
    signature: bytes | None
    tensors: Mapping[str, npt.NDArray[np.float32]]
    metadata: Mapping[str, str]


def privacy_note(manifest: RunManifest) -> str:
    """What the run promised each node for its data, for every record of the model."""
    privacy = manifest.privacy
    if privacy.mode == "none":
        return NOT_PRIVATE
    return f"{privacy.mode} level, epsilon at most {privacy.epsilon:g} at delta {privacy.delta:g} for each node"


def write_outcome(files: RunFiles, outcome: Outcome) -> None:
    """Write model, manifest and result into the run's directory, each whole or not at all. StorageError."""
    import safetensors.numpy

    metadata = {
        "format": FORMAT,
        "run_id": outcome.manifest.run_id,
        "run": outcome.manifest.name,
        "task": outcome.manifest.task.name,
        "round": str(outcome.round),
        "state_digest": outcome.state_digest.hex(),
        "privacy": privacy_note(outcome.manifest),
    }
    tensors = {name: np.ascontiguousarray(value) for name, value in outcome.tensors.items()}
    result = {
        **outcome.extra,
        **metadata,
        "round": outcome.round,
        "measures": dict(outcome.measures),
        "confusion": None if outcome.confusion is None else [[int(n) for n in row] for row in outcome.confusion],
        "epsilon": outcome.epsilon,
        "delta": outcome.delta,
    }
    write_atomically(files.manifest, dump_manifest(outcome.manifest, outcome.signature).encode())
    write_atomically(files.model, safetensors.numpy.save(tensors, metadata))
    write_atomically(files.result, json.dumps(result, indent=2).encode() + b"\n")


def read_model(path: Path) -> SavedModel:
    """The model in `path`, a safetensors file or the directory that holds one, and the manifest beside it.

    Raises UsageError: no such file, not a model of p2pnode, or no manifest beside it; ManifestError.
    """
    import safetensors
    import safetensors.numpy

    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"{path}: no such model")
    beside = path.with_name("manifest.toml")
    if not beside.is_file():
        raise UsageError(f"{path}: there is no manifest.toml beside this model, so its task is not known")
    manifest, signature = load_manifest(beside)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, safetensors.SafetensorError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not a model in safetensors format ({str(error)[:100]})") from None
    if any(value.dtype != np.float32 for value in tensors.values()):
        raise UsageError(f"{path}: its tensors are not all float32, so no p2pnode wrote it")
    return SavedModel(manifest, signature, tensors, metadata)


def export_run(files: RunFiles, directory: Path, *, replace: bool = False) -> list[Path]:
    """Copy model, manifest and result of a run to `directory`; what was written.

    Raises MachineError when the run has no model yet, UsageError when a file is there already and `replace` is false,
    StorageError.
    """
    sources = [path for path in (files.model, files.manifest, files.result) if path.is_file()]
    if files.model not in sources or files.manifest not in sources:
        raise MachineError(f"{files.directory}: no model here yet; a node writes it when it leaves the run")
    targets = [directory / path.name for path in sources]
    taken = [path for path in targets if path.exists()]
    if taken and not replace:
        raise UsageError(f"{taken[0]}: exists already; choose another --output, or add --replace")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for source, target in zip(sources, targets, strict=True):
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)
    except OSError as error:
        raise StorageError(f"{directory}: can't be written ({error.strerror})") from None
    return targets
