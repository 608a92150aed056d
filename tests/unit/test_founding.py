"""Founding a run: a task's defaults, a person's changes, noise that keeps the promise; and what a run leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pnode.errors import DataError, MachineError, ManifestError, TaskError, UsageError
from p2pnode.founding import (
    check_data,
    check_plan,
    check_run,
    describe,
    found_run,
    load_run,
    parse_setting,
    require_consent,
    settings_to_overrides,
)
from p2pnode.home import Home
from p2pnode.identity import PeerIdentity
from p2pnode.manifest import RunManifest
from p2pnode.manifest_file import dump_manifest, load_manifest, sign_manifest, verify_manifest
from p2pnode.privacy.accountant import epsilon
from p2pnode.privacy.mechanism import Gaussian, SampledGaussian
from p2pnode.results import NOT_PRIVATE, Outcome, export_run, read_model, write_outcome
from p2pnode.training.parameters import schema_of
from p2pnode.training.registry import find_task
from p2pnode.training.saved import evaluate_saved

ALICE = PeerIdentity.from_seed(b"a" * 32)
BOB = PeerIdentity.from_seed(b"b" * 32)


@pytest.fixture(scope="module")
def digits() -> RunManifest:
    return found_run("digits", ALICE.peer_id)


@pytest.fixture(scope="module")
def open_digits() -> RunManifest:
    return found_run("digits", ALICE.peer_id, unsafe_no_privacy=True)


def spent(manifest: RunManifest) -> float:
    privacy = manifest.privacy
    if privacy.mode == "node":
        return epsilon([Gaussian(privacy.noise_multiplier, privacy.steps)], privacy.delta)
    return epsilon([SampledGaussian(privacy.sampling_rate, privacy.noise_multiplier, privacy.steps)], privacy.delta)


def test_the_default_run_is_private_and_keeps_its_promise(digits: RunManifest) -> None:
    assert digits.name == "digits"
    assert digits.author == ALICE.peer_id.text
    assert digits.privacy.mode == "example"
    assert 0.99 * digits.privacy.epsilon < spent(digits) <= digits.privacy.epsilon
    assert digits.privacy.steps == digits.training.target_rounds * digits.training.local_steps
    check_run(digits)
    check_data(digits, None)


def test_privacy_is_off_only_when_asked_for(open_digits: RunManifest) -> None:
    assert open_digits.privacy.mode == "none"
    assert open_digits.privacy.noise_multiplier == 0
    with pytest.raises(UsageError, match="only --unsafe-no-privacy"):
        found_run("digits", ALICE.peer_id, overrides={"privacy": {"mode": "none"}})
    with pytest.raises(UsageError, match=r"privacy\.epsilon was set, but --unsafe-no-privacy"):
        found_run("digits", ALICE.peer_id, unsafe_no_privacy=True, overrides={"privacy": {"epsilon": 3.0}})


def test_noise_follows_what_is_changed(digits: RunManifest) -> None:
    stricter = found_run("digits", ALICE.peer_id, overrides={"privacy": {"epsilon": 3.0}})
    assert stricter.privacy.noise_multiplier > digits.privacy.noise_multiplier
    assert spent(stricter) <= 3.0
    longer = found_run("digits", ALICE.peer_id, name="longer", overrides={"training": {"target_rounds": 40}})
    assert longer.name == "longer"
    assert longer.privacy.steps == 40 * longer.training.local_steps
    assert spent(longer) <= longer.privacy.epsilon
    by_node = found_run("digits", ALICE.peer_id, overrides={"privacy": {"mode": "node"}})
    assert by_node.privacy.steps == by_node.training.target_rounds
    assert by_node.privacy.sampling_rate == 0
    assert spent(by_node) <= by_node.privacy.epsilon


def test_noise_that_is_set_must_keep_the_promise() -> None:
    kept = found_run("digits", ALICE.peer_id, overrides={"privacy": {"noise_multiplier": 5.0}})
    assert kept.privacy.noise_multiplier == 5.0
    with pytest.raises(ManifestError, match=r"privacy\.noise_multiplier"):
        found_run("digits", ALICE.peer_id, overrides={"privacy": {"noise_multiplier": 0.5}})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training": {"local_steps": 0}}, "training.local_steps: found 0, must be at least 1"),
        ({"training": {"local_steps": "x"}}, "training.local_steps"),
        ({"training": {"lokal_steps": 1}}, "did you mean local_steps"),
        ({"privacy": {"sampling_rate": 2}}, "privacy.sampling_rate: found 2, must be at most 1"),
        ({"privacy": {"steps": 0}}, "privacy.steps"),
        ({"nonsense": {"x": 1}}, "nonsense: no such field"),
        ({"task": {"data_digest": "00" * 32}}, "can't be set"),
        ({"task": {"parameters": 3}}, "set its fields one by one"),
        ({"task": {"parameters": {"no_such": 3}}}, "no_such"),
    ],
)
def test_wrong_changes_are_refused_in_plain_words(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        found_run("digits", ALICE.peer_id, overrides=overrides)


def test_unknown_tasks() -> None:
    with pytest.raises(TaskError):
        found_run("no-such-task", ALICE.peer_id)


def test_settings() -> None:
    parsed = [
        parse_setting(text)
        for text in ("training.local_steps=5", "training.outer.optimizer=nesterov", 'exchange.codec = "float16"')
    ]
    assert settings_to_overrides(parsed) == {
        "training": {"local_steps": 5, "outer": {"optimizer": "nesterov"}},
        "exchange": {"codec": "float16"},
    }
    for text in ("", "a", "a=1", "=1", "a.=1", "training.local_steps"):
        with pytest.raises(UsageError, match=r"SECTION\.FIELD=VALUE"):
            parse_setting(text)
    with pytest.raises(UsageError, match="set twice"):
        settings_to_overrides([(("a", "b"), 1), (("a", "b", "c"), 2)])


def test_a_manifest_file_founds_a_run_only_for_its_author_and_with_consent(
    tmp_path: Path, digits: RunManifest, open_digits: RunManifest
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(dump_manifest(digits))
    manifest, signature = load_run(path, ALICE, unsafe_no_privacy=False)
    assert manifest == digits
    verify_manifest(manifest, signature)
    with pytest.raises(ManifestError, match="only the author can sign"):
        load_run(path, BOB, unsafe_no_privacy=False)
    path.write_text(dump_manifest(digits, signature))
    with pytest.raises(ManifestError, match="can't found"):
        load_run(path, BOB, unsafe_no_privacy=False)
    with pytest.raises(ManifestError, match="leave out one"):
        load_run(path, ALICE, unsafe_no_privacy=True)
    path.write_text(dump_manifest(open_digits))
    with pytest.raises(ManifestError, match="add --unsafe-no-privacy"):
        load_run(path, ALICE, unsafe_no_privacy=False)
    signature = load_run(path, ALICE, unsafe_no_privacy=True)[1]
    path.write_text(dump_manifest(open_digits, signature))
    assert load_run(path, ALICE, unsafe_no_privacy=False)[0] == open_digits  # its author's signature is the consent
    require_consent(open_digits, True)


def test_a_run_of_another_model_data_or_promise_is_refused(digits: RunManifest) -> None:
    def changed(section: str, **fields: Any) -> RunManifest:
        data = digits.model_dump(mode="json")
        data[section].update(fields)
        return RunManifest.model_validate(data)

    with pytest.raises(ManifestError, match="schema_digest"):
        check_run(changed("task", schema_digest="00" * 32))
    with pytest.raises(ManifestError, match="noise_multiplier"):
        check_run(changed("privacy", noise_multiplier=1.0))
    with pytest.raises(TaskError):
        check_run(changed("task", name="other"))
    with pytest.raises(ManifestError, match=r"found 100, but 40 rounds x 5 local steps are 200"):
        check_plan(changed("training", target_rounds=40))
    check_plan(changed("training", target_rounds=10))
    check_plan(changed("training", target_rounds=0))
    with pytest.raises(ManifestError, match=r"target_metric.*no measure is called foo; they are loss, accuracy"):
        check_plan(changed("training", target_metric="foo>=0.5"))
    with pytest.raises(DataError, match="another one"):
        check_data(changed("task", data_digest="00" * 32), None)


def test_describes_a_run(digits: RunManifest, open_digits: RunManifest) -> None:
    text = "\n".join(describe(digits, sign_manifest(ALICE, digits)))
    assert f"{ALICE.peer_id} (signed)" in text
    assert "at most epsilon 8 at delta 0.0001" in text
    assert "not signed" in "\n".join(describe(digits, None))
    assert "NOT VALID" in "\n".join(describe(open_digits, sign_manifest(ALICE, digits)))
    assert "OFF" in "\n".join(describe(open_digits, None))


def outcome(manifest: RunManifest) -> Outcome:
    generator = np.random.default_rng(1)
    schema = schema_of(find_task("digits").model())
    return Outcome(
        manifest,
        sign_manifest(ALICE, manifest),
        {tensor.name: generator.normal(size=tensor.shape).astype(np.float32) for tensor in schema},
        20,
        b"\1" * 32,
        {"accuracy": 0.5},
        [[1, 2], [3, 4]],
        7.5,
        1e-4,
    )


def test_a_result_is_written_exported_read_back_and_measured(
    tmp_path: Path, digits: RunManifest, open_digits: RunManifest
) -> None:
    home = Home(tmp_path / "home")
    files = home.run(digits.run_id)
    with pytest.raises(MachineError, match="no model here yet"):
        export_run(files, tmp_path / "out")
    kept = outcome(digits)
    write_outcome(files, kept)
    written = export_run(files, tmp_path / "out")
    assert [path.name for path in written] == ["model.safetensors", "manifest.toml", "result.json"]
    with pytest.raises(UsageError, match="exists already"):
        export_run(files, tmp_path / "out")
    export_run(files, tmp_path / "out", replace=True)
    saved = read_model(tmp_path / "out")
    assert saved.manifest == digits
    assert saved.signature == kept.signature
    assert saved.metadata["state_digest"] == "01" * 32
    assert saved.metadata["privacy"].startswith("example level, epsilon at most 8")
    for name, value in kept.tensors.items():
        assert np.array_equal(saved.tensors[name], value)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["confusion"] == [[1, 2], [3, 4]]
    assert result["epsilon"] == 7.5
    evaluation, classes = evaluate_saved(saved, data_dir=None, device="cpu")
    assert evaluation.confusion is not None
    assert int(evaluation.confusion.sum()) == evaluation.examples
    assert len(classes) == 10

    write_outcome(files, replace(outcome(open_digits), epsilon=None, delta=None))
    assert read_model(files.model).metadata["privacy"] == NOT_PRIVATE


def test_what_is_no_model_is_refused(tmp_path: Path, digits: RunManifest) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(UsageError, match="no such model"):
        read_model(path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(UsageError, match=r"no manifest\.toml beside"):
        read_model(path)
    (tmp_path / "manifest.toml").write_text(dump_manifest(digits))
    with pytest.raises(UsageError, match="not a model in safetensors format"):
        read_model(path)
    import safetensors.numpy

    path.write_bytes(safetensors.numpy.save({"w": np.zeros(3, dtype=np.float64)}))
    with pytest.raises(UsageError, match="not all float32"):
        read_model(path)
    path.write_bytes(safetensors.numpy.save({"w": np.zeros(3, dtype=np.float32)}))
    with pytest.raises(UsageError, match=r"tensor .* is .*, must be"):
        evaluate_saved(read_model(path), data_dir=None, device="cpu")


def test_the_written_manifest_is_whole(tmp_path: Path, digits: RunManifest) -> None:
    files = Home(tmp_path).run(digits.run_id)
    write_outcome(files, outcome(digits))
    manifest, signature = load_manifest(files.manifest)
    assert signature is not None
    verify_manifest(manifest, signature)
