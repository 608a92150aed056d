"""Manifests: consistent, canonical, readable, signed; and plain words for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from p2pnode.errors import ManifestError
from p2pnode.identity import PeerIdentity
from p2pnode.manifest import MAX_MANIFEST_BYTES, RunManifest
from p2pnode.manifest_file import (
    COMMENTS,
    MAX_FILE_BYTES,
    build_manifest,
    dump_manifest,
    load_manifest,
    parse_manifest,
    sign_manifest,
    verify_manifest,
)

ALICE = PeerIdentity.from_seed(b"a" * 32)
BOB = PeerIdentity.from_seed(b"b" * 32)


def raw(**sections: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": "a test",
        "author": ALICE.peer_id.text,
        "task": {"name": "digits", "data_digest": "00" * 32, "schema_digest": "11" * 32},
        "privacy": {"mode": "none"},
    }
    for name, value in sections.items():
        data[name] = {**data.get(name, {}), **value} if isinstance(value, dict) else value
    return data


PRIVATE = {
    "mode": "example",
    "epsilon": 8.0,
    "delta": 1e-4,
    "clip": 0.5,
    "noise_multiplier": 2.82,
    "sampling_rate": 0.5,
    "steps": 100,
}


def problems(**sections: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        build_manifest(raw(**sections))
    return str(caught.value).splitlines()


def test_round_trips_through_toml(tmp_path: Path) -> None:
    manifest = build_manifest(
        raw(
            privacy=PRIVATE,
            exchange={"weights": [[1, 1], [3, 2]], "max_abs": 1e-7 / 3 + 1, "max_rms": 1e-5},
            roster={"admission": "list", "peers": [ALICE.peer_id.text, BOB.peer_id.text]},
            task={"parameters": {"width": 3, "rate": 3.0, "flag": True, "text": 'a "quoted" \\ thing é 😀'}},
        )
    )
    signature = sign_manifest(ALICE, manifest)
    path = tmp_path / "run.toml"
    path.write_text(dump_manifest(manifest, signature), encoding="utf-8")
    loaded, found = load_manifest(path)
    assert loaded.canonical == manifest.canonical
    assert type(loaded.task.parameters["rate"]) is float
    assert type(loaded.task.parameters["width"]) is int
    assert loaded.task.parameters["flag"] is True
    assert found == signature
    verify_manifest(loaded, signature)


@settings(max_examples=150, deadline=None)
@given(
    rate=st.floats(min_value=5e-324, max_value=1e300, exclude_min=True),
    epsilon=st.floats(min_value=1e-300, max_value=1000),
    name=st.text(min_size=1, max_size=100).filter(lambda text: text.isprintable() and text == text.strip()),
    parameters=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True),
        st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=50).filter(str.isprintable),
        max_size=5,
    ),
)
def test_every_manifest_survives_both_forms(rate: float, epsilon: float, name: str, parameters: dict[str, Any]) -> None:
    manifest = build_manifest(
        raw(
            name=name,
            training={"learning_rate": rate},
            privacy={**PRIVATE, "epsilon": epsilon},
            task={"parameters": parameters},
        )
    )
    assert parse_manifest(dump_manifest(manifest), name="x")[0].canonical == manifest.canonical
    assert RunManifest.from_canonical(manifest.canonical).digest == manifest.digest


def test_every_field_has_a_comment() -> None:
    def names(model: type[BaseModel], prefix: str = "") -> set[str]:
        found = set()
        for name, field in model.model_fields.items():
            found.add(prefix + name)
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found |= names(field.annotation, f"{prefix}{name}.")
        return found

    assert names(RunManifest) == set(COMMENTS)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"training": {"local_steps": 0}}, "training.local_steps: found 0, must be at least 1"),
        ({"training": {"local_steps": "5"}}, 'training.local_steps: found "5", must be a whole number'),
        ({"training": {"local_steps": 2.5}}, "training.local_steps: found 2.5, must be a whole number"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: found NaN, must be a finite number"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate: found -1, must be above 0"),
        ({"training": {"optimizer": "sdg"}}, 'training.optimizer: found "sdg", must be "sgd", "adam" or "adamw"'),
        ({"training": {"locl_steps": 3}}, "training.locl_steps: no such field; did you mean local_steps?"),
        ({"training": {"outer": {"rate": 3}}}, "training.outer.rate: no such field; the fields here are optimizer, "),
        ({"training": 3}, "training: found 3, must be a table"),
        ({"name": "a\x1b[31mb"}, "name: found control characters"),
        ({"author": "alice"}, 'author: found "alice", must be a peer id'),
        ({"author": "12D3KooW" + "z" * 44}, 'author: found "12D3KooWzz'),
        ({"task": {"data_digest": "AB"}}, 'task.data_digest: found "AB", must be 64 hexadecimal digits'),
        ({"task": {"parameters": {"a": [1]}}}, "task.parameters.a: found [1], must be true, false, a finite number,"),
        ({"task": {"parameters": {"a": 2**60}}}, "task.parameters.a: found 1152921504606846976, must be from -2^53"),
        ({"task": {"parameters": {"A b": 1}}}, "task.parameters: found the name 'A b', must be lower-case letters"),
        ({"privacy": {**PRIVATE, "sampling_rate": 0}}, "privacy.sampling_rate: found 0.0, must be above 0 with mode"),
        ({"privacy": {**PRIVATE, "noise_multiplier": 0}}, "privacy.noise_multiplier: found 0.0, must be above 0 with"),
        ({"privacy": {**PRIVATE, "steps": 0}}, 'privacy.steps: found 0, must be above 0 with mode "example"'),
        ({"privacy": {**PRIVATE, "delta": 0}}, "privacy.delta: found 0.0, must be above 0"),
        ({"privacy": {"mode": "none", "steps": 5}}, 'privacy.steps: found 5, must be 0 with mode "none"'),
        ({"exchange": {"weights": [[3, 1], [1, 2]]}}, "exchange.weights: found [[3, 1], [1, 2]], must be in ascending"),
        ({"exchange": {"weights": [[0, 1]]}}, "exchange.weights: found [0, 1], must be from 1"),
        ({"exchange": {"weights": [[2, 1]]}}, "exchange.weights: the first row asks for 2 steps, must be at most 1"),
        ({"exchange": {"weights": [[1, 2, 3]]}}, "exchange.weights.0"),
        ({"exchange": {"max_abs": 1, "max_rms": 2}}, "exchange.max_rms: found 2.0, must be at most max_abs (1.0)"),
        ({"roster": {"admission": "list"}}, "roster.peers: found none, must name at least one"),
        ({"roster": {"peers": [BOB.peer_id.text]}}, 'roster.peers: found 1, must be empty with admission "open"'),
        ({"roster": {"admission": "list", "peers": [BOB.peer_id.text]}}, "roster.peers: 12D3KooW"),
        ({"roster": {"anchors": [BOB.peer_id.text] * 2}}, "roster.anchors: found a peer twice"),
        (
            {"roster": {"anchors": [BOB.peer_id.text, ALICE.peer_id.text]}, "limits": {"voters": 1}},
            "roster.anchors: found 2, must be at most limits.voters (1)",
        ),
        ({"limits": {"contributors": 8}}, "limits.voters: found 32, must be at most limits.contributors (8)"),
        ({"limits": {"chunk_bytes": 1100}}, "limits.chunk_bytes: found 1100, must be a multiple of 64"),
        ({"training": {"target_metric": "accuracy>=e"}}, 'training.target_metric: found "accuracy>=e", must be like'),
        (
            {"training": {"optimizer": "adam", "momentum": 0.9}},
            "training.momentum: found 0.9, must be 0 with optimizer",
        ),
        ({"training": {"outer": {"momentum": 0.9}}}, "training.outer.momentum: found 0.9, must be 0 with"),
        ({"training": {"outer": {"optimizer": "nesterov"}}}, "training.outer.momentum: found 0, must be above 0"),
        ({"training": {"schedule": "cosine"}}, "training.target_rounds: found 0, schedule"),
        ({"protocol": 2}, "protocol: found 2, must be 1"),
    ],
)
def test_says_what_is_wrong_in_one_line(sections: dict[str, Any], line: str) -> None:
    lines = problems(**sections)
    assert len(lines) == 1
    assert lines[0].startswith(line)
    for jargon in ("pydantic", "Input should", "value_error", "type=", "union"):
        assert jargon not in lines[0]


def test_every_problem_has_its_line_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = ""\n[training]\nlocal_steps = 0\nbatch_size = 1979-05-27\nlearning_rate = inf\n')
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any("batch_size: found the date 1979-05-27, must be a whole number" in line for line in lines)
    assert any("learning_rate: found Infinity" in line for line in lines)
    assert any("author: missing" in line for line in lines)
    assert any("task: missing" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name = ", "not valid TOML"),
        (b"\xff\xfe", "not a text file"),
        (b"#" * (MAX_FILE_BYTES + 1), "larger than"),
        (b"a = " + b"[" * 5000, "not valid TOML"),
        (b"signature = 3", "missing"),
    ],
)
def test_refuses_files_that_are_no_manifest(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=words):
        load_manifest(path)
    with pytest.raises(ManifestError, match="can't be read"):
        load_manifest(tmp_path / "none.toml")


def test_the_model_itself_refuses_what_is_inconsistent() -> None:
    with pytest.raises(ValidationError):
        RunManifest.model_validate(raw(privacy={"mode": "example"}))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"name":"a test"', b'"name": "a test"'),
        lambda text: text.replace(b'"local_steps":1', b'"local_steps":1.0'),
        lambda text: text.replace(b'"protocol":1', b'"protocol":true'),
        lambda text: text.replace(b'"protocol":1', b'"protocol":1,"x":1'),
        lambda text: text.replace(b'{"author"', b'{"name":"b","author"'),
        lambda text: text + b" ",
        lambda text: text[:-1],
        lambda text: b"[" * 100_000,
        lambda text: b"\xff" + text,
        lambda text: b"",
        lambda text: text + b" " * MAX_MANIFEST_BYTES,
    ],
)
def test_canonical_bytes_have_one_form(change: Any) -> None:
    manifest = build_manifest(raw())
    text = manifest.canonical
    assert RunManifest.from_canonical(text) == manifest
    changed = change(text)
    assert changed != text
    with pytest.raises(ManifestError):
        RunManifest.from_canonical(changed)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.sampled_from(["name", "task", "author", "privacy", "x"]), s),
    ).map(lambda value: json.dumps(value).encode())
)
def test_hostile_bytes_end_in_a_manifest_error(data: bytes) -> None:
    with pytest.raises(ManifestError):
        RunManifest.from_canonical(data)


def test_only_the_author_signs_and_only_this_manifest() -> None:
    manifest = build_manifest(raw())
    other = build_manifest(raw(name="another"))
    signature = sign_manifest(ALICE, manifest)
    with pytest.raises(ManifestError, match="only the author can sign"):
        sign_manifest(BOB, manifest)
    with pytest.raises(ManifestError, match="edited"):
        verify_manifest(other, signature)
    bobs = build_manifest(raw(author=BOB.peer_id.text))
    with pytest.raises(ManifestError, match="must be made by the author"):
        verify_manifest(bobs, signature)
    for position in range(len(signature)):
        damaged = bytearray(signature)
        damaged[position] ^= 1
        with pytest.raises(ManifestError, match="signature:"):
            verify_manifest(manifest, bytes(damaged))
