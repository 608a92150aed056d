"""What is checked before a run is founded."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.config import NodeConfig, RunChoice, Share, WorkChoice
from p2pnode.errors import BudgetSpent, MachineError
from p2pnode.home import Home
from p2pnode.identity import PeerIdentity
from p2pnode.node.checking import check_budget
from p2pnode.node.finding import found
from p2pnode.privacy.ledger import Ledger
from p2pnode.privacy.mechanism import of_round
from p2pnode.training.data import fingerprint, take_share
from p2pnode.training.registry import find_task


def test_a_second_run_whose_data_has_no_budget_left_is_not_founded(tmp_path: Path) -> None:
    home, identity = Home(tmp_path), PeerIdentity.from_seed(b"a" * 32)
    choice = WorkChoice(share=Share(1, 3))
    config = NodeConfig(tmp_path, RunChoice(), work=choice)
    manifest = found(config, home, identity).manifest
    name = fingerprint(take_share(Share(1, 3), find_task("digits").load(None)))
    limit = (manifest.privacy.epsilon, manifest.privacy.delta)
    with Ledger.open(home.ledgers / f"{name}.jsonl", name) as ledger:
        for number in range(1, manifest.training.target_rounds):
            ledger.reserve(manifest.run_id, number, of_round(manifest), limit)
        kept = ledger.reservations
    check_budget(manifest, home, choice, identity.peer_id)  # one round is left
    with Ledger.open(home.ledgers / f"{name}.jsonl", name) as ledger:
        assert ledger.reservations == kept, "looking costs nothing"
        ledger.reserve(manifest.run_id, 20, of_round(manifest), limit)
    with pytest.raises(BudgetSpent, match=r"share 1/3.*--resume.*--share.*--unsafe-no-privacy"):
        found(config, home, identity)
    with pytest.raises(MachineError):
        home.current()
    assert not home.runs.exists()
    found(NodeConfig(tmp_path, RunChoice(), work=WorkChoice(share=Share(2, 3))), home, identity)
    found(NodeConfig(tmp_path, RunChoice(unsafe_no_privacy=True), work=choice), home, identity)
