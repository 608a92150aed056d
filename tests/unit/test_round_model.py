"""The round machine under everything that can go wrong at once: a hypothesis state machine, and mutants of the rules.

Real machines on a simulated network, disk and clock. What must never happen is in tests.support.witness; how the run
must get on afterwards in tests.support.chaos. scripts/model-check runs many more.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from p2pnode.round.frames import Kind
from tests.support.chaos import KINDS, TRAPS, Chaos, play
from tests.support.cluster import Trap
from tests.support.mutants import MUTANTS, mutant

PEERS = st.integers(0, 6)
BOUNDED = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)


class RoundModel(RuleBasedStateMachine):
    """Rules are faults; after each, and after the recovery at the end, nobody may have anything to accuse."""

    provisional = False

    @initialize(count=st.integers(1, 7), founders=st.integers(1, 7), asleep=st.integers(0, 3), seed=st.integers(0, 999))
    def begin(self, count: int, founders: int, asleep: int, seed: int) -> None:
        founders = min(count, founders)
        self.chaos = Chaos(
            count, seed=seed, founders=founders, asleep=min(asleep, count - founders), provisional=self.provisional
        )

    def _then(self, seconds: float) -> None:
        self.chaos.wait(seconds)
        assert not self.chaos.cluster.witness.violations

    @rule(seconds=st.sampled_from([0.05, 0.5, 2.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self._then(seconds)

    @rule(loss=st.floats(0, 0.5), duplicate=st.floats(0, 0.4), slowest=st.sampled_from([0.02, 0.3, 2.0]))
    def weather(self, loss: float, duplicate: float, slowest: float) -> None:
        self.chaos.weather(loss, duplicate, slowest)
        self._then(1.0)

    @rule(kinds=st.frozensets(st.sampled_from(KINDS), max_size=2))
    def silence(self, kinds: frozenset[Kind]) -> None:
        self.chaos.silence(kinds)
        self._then(2.0)

    @rule(sides=st.lists(st.integers(0, 2), min_size=7, max_size=7))
    def split(self, sides: list[int]) -> None:
        self.chaos.split(dict(zip(self.chaos.peers, sides, strict=False)))
        self._then(2.0)

    @rule(peer=PEERS, noticed=st.booleans())
    def crash(self, peer: int, noticed: bool) -> None:
        self.chaos.crash(self.chaos.peer(peer), noticed=noticed)
        self._then(0.5)

    @rule(peer=PEERS, trap=st.sampled_from(TRAPS))
    def crash_between_two_effects(self, peer: int, trap: Trap) -> None:
        self.chaos.trap(self.chaos.peer(peer), trap)
        self._then(2.0)

    @rule(peer=PEERS)
    def restart(self, peer: int) -> None:
        self.chaos.restart(self.chaos.peer(peer))
        self._then(0.5)

    @rule(peer=PEERS, rounds=st.integers(1, 4))
    def rewind_and_restart(self, peer: int, rounds: int) -> None:
        self.chaos.rewind(self.chaos.peer(peer), rounds)
        self.chaos.restart(self.chaos.peer(peer))
        self._then(0.5)

    @rule(peer=PEERS, seconds=st.sampled_from([0.0, 1.0, 8.0]))
    def dawdle(self, peer: int, seconds: float) -> None:
        self.chaos.dawdle(self.chaos.peer(peer), seconds)
        self._then(0.5)

    @rule(peer=PEERS, other=PEERS)
    def lose_touch(self, peer: int, other: int) -> None:
        self.chaos.lose_touch(self.chaos.peer(peer), self.chaos.peer(other))
        self._then(0.3)

    @rule(peer=PEERS, by_entry=st.booleans())
    def leave(self, peer: int, by_entry: bool) -> None:
        self.chaos.leave(self.chaos.peer(peer), by_entry=by_entry)
        self._then(1.0)

    @rule()
    def recover(self) -> None:
        self.chaos.recover()
        assert not self.chaos.cluster.witness.violations

    def teardown(self) -> None:
        if hasattr(self, "chaos"):
            self.chaos.recover()
            assert not self.chaos.cluster.witness.violations


class ProvisionalRoundModel(RoundModel):
    """The same with provisional rounds: forks may come, but the fork choice must order them."""

    provisional = True


def test_never_two_certificates_and_progress_when_faults_stop() -> None:
    run_state_machine_as_test(RoundModel, settings=BOUNDED)


def test_provisional_forks_are_ordered_by_the_fork_choice() -> None:
    run_state_machine_as_test(ProvisionalRoundModel, settings=settings(BOUNDED, max_examples=20))


@pytest.mark.parametrize("seed", [8, 21])
def test_random_scenarios(seed: int) -> None:
    story = play(seed)
    assert not story.violations
    assert story.recovery.rounds >= 2
    assert sum(story.done.values()) > 5  # the faults were there


def test_a_reducer_that_signs_two_outputs_splits_nothing() -> None:
    story = play(1, liar=True, steps=15)
    assert not story.violations
    assert story.done["lie"] > 0


@pytest.mark.parametrize(("name", "seed"), [("locks", 22), ("quorum", 0), ("closing", 38), ("promises", 1)])
def test_the_check_finds_what_a_removed_rule_prevents(name: str, seed: int) -> None:
    _, due, liar = MUTANTS[name]
    with mutant(name):
        story = play(seed, mutant=name, liar=liar, stop_on_violation=True, steps=40)
    assert due in {kind for kind, _ in story.violations}
