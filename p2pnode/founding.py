"""Making a run: from a task's name, or a person's manifest file, to a manifest that peers can agree on."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from p2pnode.errors import DataError, ManifestError, UsageError
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.manifest import RunManifest
from p2pnode.manifest_file import build_manifest, load_manifest, sign_manifest, verify_manifest

Overrides = Mapping[str, Mapping[str, Any]]


def found_run(
    task_name: str,
    author: PeerId,
    *,
    unsafe_no_privacy: bool = False,
    name: str | None = None,
    overrides: Overrides | None = None,
    data_dir: Path | None = None,
) -> RunManifest:
    """A new run of a task: the task's own defaults, changed by `overrides` (nested like the TOML file).

    With privacy, the noise is calibrated to the promised epsilon, unless `overrides` set it; then it must keep the
    promise. Private steps follow rounds and local steps, unless set. Raises TaskError, ManifestError or DataError.
    """
    from p2pnode.training.registry import find_task

    changes = copy.deepcopy({section: dict(fields) for section, fields in (overrides or {}).items()})
    task_changes = changes.pop("task", {})
    parameters = task_changes.pop("parameters", {})
    if task_changes:
        raise UsageError(f"task.{next(iter(task_changes))} can't be set: it follows from the task and its parameters")
    if not isinstance(parameters, Mapping):
        raise UsageError("task.parameters: must be a table, set its fields one by one")
    task = find_task(task_name, parameters)
    # Without a nonce, the same person's second run of a task would be the first one again, from its beginning.
    data: dict[str, Any] = {"name": name or task_name, "author": author.text, "nonce": secrets.token_hex(8)}
    defaults = copy.deepcopy({s: dict(fields) for s, fields in task.defaults(private=not unsafe_no_privacy).items()})
    _merge(data, defaults)
    _merge(data, changes)
    data["task"] = {
        "name": task_name,
        "data_digest": task.load(data_dir).digest,
        "schema_digest": _schema_digest(task),
        "parameters": dict(parameters),
    }
    _settle_privacy(data, changes, unsafe_no_privacy)
    manifest = build_manifest(data)
    check_plan(manifest)
    return manifest


def load_run(path: Path, identity: PeerIdentity, *, unsafe_no_privacy: bool) -> tuple[RunManifest, bytes]:
    """The manifest in `path`, to found its run with `identity`, and the author's signature.

    An unsigned one is signed if `identity` is its author. Raises ManifestError, also when it switches privacy off and
    neither its signature nor `unsafe_no_privacy` says that this is meant.
    """
    manifest, signature = load_manifest(path)
    if signature is None:
        require_consent(manifest, unsafe_no_privacy)
        signature = sign_manifest(identity, manifest)
    elif unsafe_no_privacy:
        require_consent(manifest, unsafe_no_privacy)
    verify_manifest(manifest, signature)
    founders = manifest.roster.anchors or (manifest.author,)
    if identity.peer_id.text not in founders:
        raise ManifestError(
            f"{path}: this identity ({identity.peer_id}) can't found the run: the first voter is {founders[0]}"
        )
    return manifest, signature


def require_consent(manifest: RunManifest, unsafe_no_privacy: bool) -> None:
    """ManifestError unless switching privacy off was asked for exactly when the manifest does it."""
    if manifest.privacy.mode == "none" and not unsafe_no_privacy:
        raise ManifestError(
            'privacy.mode: found "none", which protects nobody\'s data; if that is meant, add --unsafe-no-privacy'
        )
    if manifest.privacy.mode != "none" and unsafe_no_privacy:
        raise ManifestError(
            f'privacy.mode: found "{manifest.privacy.mode}", but --unsafe-no-privacy was given: leave out one'
        )


def check_run(manifest: RunManifest) -> None:
    """Check what the manifest says against the task as it is installed here, and its privacy promise.

    Raises TaskError (no such task, wrong parameters) or ManifestError (another model; too little noise).
    """
    from p2pnode.privacy.accountant import check_promise
    from p2pnode.training.registry import find_task

    task = find_task(manifest.task.name, manifest.task.parameters)
    expected = _schema_digest(task)
    if manifest.task.schema_digest != expected:
        raise ManifestError(
            f"task.schema_digest: found {manifest.task.schema_digest}, must be {expected} for this task and parameters"
        )
    check_promise(manifest.privacy)


def check_plan(manifest: RunManifest) -> None:
    """Check that the run can get to its end: by a goal that can hold, with private steps for all its rounds.

    For whoever makes the run; who joins one is not asked. Raises ManifestError, TaskError.
    """
    from p2pnode.config import parse_goal
    from p2pnode.training.goals import check_goal
    from p2pnode.training.registry import find_task

    training, privacy = manifest.training, manifest.privacy
    if training.target_metric:
        task = find_task(manifest.task.name, manifest.task.parameters)
        try:
            check_goal(parse_goal(training.target_metric), getattr(task, "measured", None))
        except UsageError as error:
            raise ManifestError(f"training.target_metric: {error}") from None
    needed = training.target_rounds * (training.local_steps if privacy.mode == "example" else 1)
    if privacy.mode != "none" and privacy.steps < needed:
        times = f" x {training.local_steps} local steps" if privacy.mode == "example" else ""
        raise ManifestError(
            f"privacy.steps: found {privacy.steps}, but {training.target_rounds} rounds{times} are {needed} private "
            f"steps: every node's budget would be spent before the end; make the run anew with `p2pnode run create "
            "--set`, which fits the noise, or lower training.target_rounds"
        )


def check_data(manifest: RunManifest, data_dir: Path | None) -> None:
    """Check the data set on this machine against the manifest. DataError if it is missing or another one."""
    from p2pnode.training.registry import find_task

    found = find_task(manifest.task.name, manifest.task.parameters).load(data_dir).digest
    if found != manifest.task.data_digest:
        raise DataError(f"the data set here is another one: digest {found}, the run's is {manifest.task.data_digest}")


def parse_setting(text: str) -> tuple[tuple[str, ...], Any]:
    """`training.local_steps=5` -> (("training", "local_steps"), 5). The value is read as TOML, else as plain text."""
    import tomllib

    field, separator, value = text.partition("=")
    path = tuple(part.strip() for part in field.split("."))
    if not separator or len(path) < 2 or not all(path):
        raise UsageError(
            f'found "{text[:80]}", a setting is written SECTION.FIELD=VALUE, such as training.local_steps=5'
        )
    try:
        return path, tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return path, value.strip()


def settings_to_overrides(settings: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, dict[str, Any]]:
    """Nest settings as `found_run` takes them. UsageError if one stands in another's way."""
    nested: dict[str, Any] = {}
    for path, value in settings:
        table = nested
        for part in path[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UsageError(f"{'.'.join(path)}: set twice, once as a section and once as a value")
        table[path[-1]] = value
    return nested


def _settle_privacy(data: dict[str, Any], changes: Mapping[str, Any], unsafe_no_privacy: bool) -> None:
    from p2pnode.privacy.accountant import calibrate_gaussian, calibrate_noise, check_promise

    privacy = data.setdefault("privacy", {})
    asked = changes.get("privacy", {})
    if unsafe_no_privacy:
        if asked:
            raise UsageError(f"privacy.{next(iter(asked))} was set, but --unsafe-no-privacy was given: leave out one")
        data["privacy"] = {"mode": "none"}
        return
    mode = privacy.setdefault("mode", "example")
    if mode == "none":
        raise UsageError('privacy.mode: found "none"; only --unsafe-no-privacy switches privacy off')
    training = data.get("training", {})
    rounds, local_steps = training.get("target_rounds", 0), training.get("local_steps", 1)
    if not isinstance(rounds, int) or not isinstance(local_steps, int):
        return  # build_manifest says what is wrong
    changed = {"target_rounds", "local_steps"} & set(changes.get("training", {})) or "mode" in asked
    if "steps" not in asked and rounds and (changed or not privacy.get("steps")):
        privacy["steps"] = rounds * (local_steps if mode == "example" else 1)
    if mode == "node" and "sampling_rate" not in asked:
        privacy["sampling_rate"] = 0.0
    if "noise_multiplier" in asked:
        check_promise(build_manifest(data).privacy)
        return
    # A placeholder, so that all other fields are checked before they are calculated with.
    planned = build_manifest({**data, "privacy": {**privacy, "noise_multiplier": 1.0}}).privacy
    if mode == "node":
        privacy["noise_multiplier"] = calibrate_gaussian(planned.steps, planned.epsilon, planned.delta)
    else:
        privacy["noise_multiplier"] = calibrate_noise(
            planned.sampling_rate, planned.steps, planned.epsilon, planned.delta
        )


def _schema_digest(task: Any) -> str:
    from p2pnode.training.parameters import schema_digest, schema_of

    return schema_digest(schema_of(task.model()))


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = copy.deepcopy(value)


def describe(manifest: RunManifest, signature: bytes | None) -> Iterator[str]:
    """What a person wants to know of a run, line by line. Never raises for a wrong signature: it says so."""
    training, privacy, roster = manifest.training, manifest.privacy, manifest.roster
    yield f"run        {manifest.name}"
    yield f"id         {manifest.run_id}"
    try:
        signed = "not signed" if signature is None else "signed" if verify_manifest(manifest, signature) else ""
    except ManifestError as error:
        signed = f"NOT VALID: {error}"
    yield f"author     {manifest.author} ({signed})"
    settings = ", ".join(f"{name} {value}" for name, value in manifest.task.parameters.items())
    yield f"task       {manifest.task.name}{f' ({settings})' if settings else ''}"
    steps = (
        f"{training.local_steps} local step{'s' if training.local_steps > 1 else ''} of {training.optimizer} a round"
    )
    yield f"training   {steps}, learning rate {training.learning_rate:g}, outer {training.outer.optimizer}"
    ends = (
        [f"after {training.target_rounds} round{'s' if training.target_rounds > 1 else ''}"]
        if training.target_rounds
        else []
    )
    ends += [f"when {training.target_metric}"] if training.target_metric else []
    yield f"ends       {' or '.join(ends) or 'when everybody has left'}"
    if privacy.mode == "none":
        yield "privacy    OFF: what nodes send is not noised; others can learn about their data from it"
    else:
        yield (
            f"privacy    {privacy.mode} level: each node spends at most epsilon {privacy.epsilon:g} "
            f"at delta {privacy.delta:g}, in {privacy.steps} step{'s' if privacy.steps > 1 else ''}"
        )
        rate = f", sampling rate {privacy.sampling_rate:g}" if privacy.mode == "example" else ""
        yield f"noise      {privacy.noise_multiplier:g} times the clip of {privacy.clip:g}{rate}"
    who = "anybody" if roster.admission == "open" else f"{len(roster.peers)} listed peers"
    voters = f"{len(roster.anchors)} anchors" if roster.anchors else f"up to {manifest.limits.voters} of them"
    yield f"takes part {who}; {voters} vote"
