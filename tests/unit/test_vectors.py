"""Replays protocols/vectors/*.json on the real code: what is accepted, ignored and rejected, with the clause's name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pnode.codec import FloatVector, codec_named
from p2pnode.envelope import EnvelopeFault, seal
from p2pnode.errors import InviteError, ManifestError, PeerFault
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.invite import Invite
from p2pnode.manifest import OuterSection, RunManifest
from p2pnode.manifest_file import sign_manifest, verify_manifest
from p2pnode.messages import VOTE, SlotBase
from p2pnode.replica.outer import outer_step
from p2pnode.replica.proposal import convener_of, newcomer_order, partition
from p2pnode.replica.roster import CommittedRound, Roster, RosterEntry, window_of
from p2pnode.replica.state import GlobalState, state_digest
from p2pnode.replica.tree import Tree, leaf_hash, proves
from p2pnode.round.aggregation import WeightedMean
from p2pnode.round.evidence import verify
from p2pnode.wire.chain_pb2 import Roster as RosterMessage
from p2pnode.wire.chain_pb2 import StateHeader
from p2pnode.wire.round_pb2 import Vote
from tests.support.vectors import check_case, replay_to

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "protocols" / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text("ascii"))


def bits(text: str) -> FloatVector:
    return np.frombuffer(bytes.fromhex(text), dtype=">f4").astype(np.float32)


def as_bits(values: FloatVector) -> str:
    return values.astype(">f4").tobytes().hex(" ", 4)


ROUND = load("round")


def test_the_files_are_current_and_small() -> None:
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make-vectors"), "--check"], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
    assert sum(path.stat().st_size for path in VECTORS.glob("*.json")) < 700_000


# --- rounds


@pytest.mark.parametrize("name", ROUND["scenes"])
def test_scene(name: str) -> None:
    replay_to(ROUND, name)


@pytest.mark.parametrize("case", ROUND["cases"], ids=lambda case: case["name"])
def test_round(case: dict[str, Any]) -> None:
    check_case(ROUND, case)


def test_the_documents_and_the_vectors_know_the_same_clauses() -> None:
    """Every clause that exchange.md and chain.md name has a vector, but those that no frame of a round can reach."""
    texts = [(ROOT / "protocols" / name).read_text("utf-8") for name in ("exchange.md", "evidence.md", "chain.md")]
    named = set(re.findall(r"\*\*(?:REJECT|IGNORE)\*\* `([a-z-]+)`", "".join(texts)))
    shown = {case["clause"] for case in ROUND["cases"]} | {case["refused"] for case in load("evidence")["cases"]}
    shown -= {""}
    assert shown - named == set()
    unreachable = {"commitment-group", "output-group", "record-size", "record-parent"}
    unreachable |= {"evidence-same", "evidence-manifest"}  # two envelopes of one message are equal; files only
    assert named - shown == unreachable


def test_the_documents_name_every_clause_of_the_code() -> None:
    source = ROOT / "p2pnode"
    files = [*(source / "round").glob("*.py"), *(source / "replica").glob("*.py"), source / "messages.py"]
    raised = r"\b(?:reject|Ignored|NotYet|StaleRound|FutureRound|_refuse)\(\"([a-z-]+)\""
    in_code = {name for path in files for name in re.findall(raised, path.read_text("utf-8"))}
    texts = [path.read_text("utf-8") for path in (ROOT / "protocols").glob("*.md")]
    named = set(re.findall(r"\*\*(?:REJECT|IGNORE)\*\* `([a-z-]+)`", "".join(texts)))
    assert len(in_code) > 50
    assert in_code - named == set()


@pytest.mark.parametrize("case", load("evidence")["cases"], ids=lambda case: case["name"])
def test_evidence(case: dict[str, str]) -> None:
    manifest = RunManifest.from_canonical(load("evidence")["manifest"].encode())
    raw = bytes.fromhex(case["raw"])
    if case["refused"]:
        with pytest.raises(PeerFault) as caught:
            verify(raw, manifest)
        assert caught.value.clause == case["refused"]
    else:
        found = verify(raw, manifest)
        assert (found.accused.key.hex(), found.clause, found.digest.hex()) == (
            case["accused"],
            case["clause"],
            case["digest"],
        )


# --- the rest


@pytest.mark.parametrize("case", load("envelope")["cases"], ids=lambda case: case["name"])
def test_envelope(case: dict[str, str]) -> None:
    raw = bytes.fromhex(case["raw"])
    if case["clause"]:
        with pytest.raises(EnvelopeFault) as caught:
            VOTE.open(raw)
        assert caught.value.clause == case["clause"]
    else:
        assert VOTE.open(raw).digest.hex() == case["digest"]


def test_sealing_gives_the_same_envelope() -> None:
    data = load("envelope")
    message = Vote.FromString(bytes.fromhex(data["payload"]))
    sealed = seal(PeerIdentity.from_seed(bytes.fromhex(data["seed"])), data["payload_type"], message)
    assert sealed.raw.hex() == data["cases"][0]["raw"]


def test_manifests() -> None:
    data = load("manifest")
    author = PeerIdentity.from_seed(bytes.fromhex(data["author_seed"]))
    for case in data["accept"]:
        manifest = RunManifest.from_canonical(case["canonical"].encode())
        assert manifest.run_id == case["run_id"]
        assert sign_manifest(author, manifest).hex() == case["signature"]
        verify_manifest(manifest, bytes.fromhex(case["signature"]))
    for case in data["reject"]:
        with pytest.raises(ManifestError):
            RunManifest.from_canonical(case["bytes"].encode())
    manifest = RunManifest.from_canonical(data["reject_signatures"]["canonical"].encode())
    for case in data["reject_signatures"]["cases"]:
        with pytest.raises(ManifestError):
            verify_manifest(manifest, bytes.fromhex(case["signature"]))


def test_invites() -> None:
    data = load("invite")
    for case in data["accept"]:
        invite = Invite.parse(case["text"])
        fields = (invite.run, invite.state_digest, invite.roster_digest)
        assert [field.hex() for field in fields] == [case[key] for key in ("run", "state_digest", "roster_digest")]
        assert (invite.author.text, invite.round) == (case["author"], case["round"])
        assert list(invite.addresses) == case["addresses"]
    for case in data["reject"]:
        with pytest.raises(InviteError, match=case["says"]):
            Invite.parse(case["text"])


def test_trees() -> None:
    data = load("tree")
    for case in data["trees"]:
        purpose = case["purpose"].encode()
        chunks = [bytes.fromhex(chunk) for chunk in case["chunks"]]
        leaves = [leaf_hash(purpose, case["part"], index, chunk) for index, chunk in enumerate(chunks)]
        assert [leaf.hex() for leaf in leaves] == case["leaves"]
        tree = Tree(leaves)
        assert tree.root.hex() == case["root"]
        for index, leaf in enumerate(leaves):
            proof = [bytes.fromhex(sibling) for sibling in case["proofs"][index]]
            assert tree.proof(index) == proof
            assert proves(tree.root, leaf, index, len(leaves), proof)
    for case in data["not_proofs"]:
        siblings = [bytes.fromhex(sibling) for sibling in case["siblings"]]
        root, leaf = bytes.fromhex(case["root"]), bytes.fromhex(case["leaf"])
        assert not proves(root, leaf, case["index"], case["count"], siblings), case["name"]


@pytest.mark.parametrize("case", load("partition")["cases"], ids=lambda case: case["name"])
def test_partition(case: dict[str, Any]) -> None:
    bandwidths = {PeerId(bytes.fromhex(item["peer"])): item["bandwidth"] for item in case["reducers"]}
    parts = partition(case["values"], bandwidths)
    found = [
        {
            "reducer": part.reducer.key.hex(),
            "start": part.start,
            "stop": part.stop,
            "deputy": part.deputy.key.hex() if part.deputy is not None else "",
        }
        for part in parts
    ]
    assert found == case["parts"]


@pytest.mark.parametrize("case", load("convener")["cases"], ids=lambda case: f"round {case['round']}")
def test_convener(case: dict[str, Any]) -> None:
    base = SlotBase(bytes.fromhex(case["run"]), case["round"], bytes.fromhex(case["parent"]))
    peers = [PeerId(bytes.fromhex(key)) for key in case["members"]]
    roster = Roster(tuple(RosterEntry(peer, 0, 0, True) for peer in peers))
    found = [convener_of(roster, base, attempt).key.hex() for attempt in range(len(case["conveners"]))]
    assert found == case["conveners"]
    order = sorted(peers, key=lambda peer: newcomer_order(base, peer))
    assert [peer.key.hex() for peer in order] == case["newcomers"]


def test_rosters() -> None:
    data = load("roster")
    peers = [PeerId(bytes.fromhex(key)) for key in data["peers"]]
    for case in data["windows"]:
        assert window_of(case["members"], case["window"]) == case["is"]
    for sequence in data["sequences"]:
        manifest = RunManifest.from_canonical(sequence["manifest"].encode())
        members = sorted(peers[number] for number in sequence["members"])
        roster = Roster(tuple(RosterEntry(peer, 0, 0, True) for peer in members))
        for step in sequence["steps"]:
            people = [[peers[number] for number in step[key]] for key in ("entrants", "counted", "leaving")]
            roster = roster.after(CommittedRound(step["round"], *people, step["provisional"]), manifest)
            found = [[peers.index(e.peer), e.accepted, e.last_seen, e.member] for e in roster.entries]
            assert found == step["after"], sequence["name"]
            assert roster.digest.hex() == step["digest"]


def test_states() -> None:
    data = load("state")
    for case in data["headers"]:
        assert state_digest(StateHeader.FromString(bytes.fromhex(case["header"]))).hex() == case["digest"]
    for case in data["tensors"]:
        roster = Roster.from_message(RosterMessage.FromString(bytes.fromhex(case["roster"])))
        values = (np.arange(case["values"]) % 1000).astype(np.float32) / np.float32(8)
        state = GlobalState(b"\1" * 32, 5, b"\2" * 32, roster, values, len(values))
        assert len(state.tree) == case["chunks"]
        assert state.tree.root.hex() == case["root"]
        assert roster.digest.hex() == case["roster_digest"]
        assert state.digest.hex() == case["digest"]


def test_outer_steps() -> None:
    data = load("outer")
    for case in data["steps"]:
        outer = OuterSection(**{key: case[key] for key in ("optimizer", "learning_rate", "momentum")})
        assert as_bits(outer_step(outer, bits(case["tensors"]), bits(case["update"]))) == case["result"]
    for case in data["means"]:
        rows = [bits(row) for row in case["rows"]]
        assert as_bits(WeightedMean().aggregate(rows, case["weights"])) == case["result"]


def test_codecs() -> None:
    data = load("codec")
    for case in data["accept"]:
        codec, values = codec_named(case["codec"]), bits(case["values"])
        assert codec.encode(values).hex() == case["encoded"]
        assert as_bits(codec.decode(bytes.fromhex(case["encoded"]), len(values))) == case["decoded"]
    for case in data["reject_decode"]:
        with pytest.raises(ValueError):
            codec_named(case["codec"]).decode(bytes.fromhex(case["encoded"]), case["count"])
    for case in data["reject_encode"]:
        with pytest.raises(ValueError):
            codec_named(case["codec"]).encode(bits(case["values"]))
