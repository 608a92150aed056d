"""Before a run is founded: whether this node could do even one round of it."""

from __future__ import annotations

from typing import Final

from p2pnode.config import Share, WorkChoice
from p2pnode.errors import BudgetSpent
from p2pnode.home import Home
from p2pnode.identity import PeerId
from p2pnode.manifest import RunManifest

DEFAULT_SHARES: Final = 4  # of a task that does not say how many


def check_budget(manifest: RunManifest, home: Home, choice: WorkChoice, me: PeerId) -> None:
    """BudgetSpent if what is left for this node's data is less than one round of the run costs. Blocks for seconds."""
    from p2pnode.privacy.ledger import Ledger
    from p2pnode.privacy.mechanism import of_round
    from p2pnode.training.data import fingerprint, take_share
    from p2pnode.training.registry import find_task

    privacy = manifest.privacy
    if privacy.mode == "none" or not any(home.ledgers.glob("*.jsonl")):
        return
    task = find_task(manifest.task.name, manifest.task.parameters)
    share = share_of(choice, me, task)
    name = fingerprint(take_share(share, task.load(choice.data_dir)))
    path = home.ledgers / f"{name}.jsonl"
    if not path.exists():
        return
    with Ledger.open(path, name) as ledger:
        before = ledger.spent(privacy.delta)
        total = ledger.with_one_more(of_round(manifest), privacy.delta)
    if total > privacy.epsilon:
        raise BudgetSpent(
            f"the privacy budget of this data (share {share}) is spent: epsilon {before:.4g} so far, and one round of "
            f"a new run would make it {total:.4g}, above the limit of {privacy.epsilon:g} over all runs. Nothing "
            "was founded. Go on with the run that you have (--resume), train on other data (--share K/N), or found a "
            "run that protects nobody's data (--unsafe-no-privacy)"
        )


def share_of(choice: WorkChoice, me: PeerId, task: object) -> Share:
    """The part of the task's data that is this node's."""
    return choice.share or Share.of_peer(me, getattr(task, "shares", DEFAULT_SHARES))
