"""The model must catch what is broken, and let pass what is whole: few random examples are enough for either."""

from __future__ import annotations

import pytest
from hypothesis.errors import FlakyStrategyDefinition
from mutants.broken_delivery import AReleaseTakesTakeoversAway, LosesOnRelease, NeverSaysRedelivered
from mutants.broken_moves import MoveKeepsItsSource
from mutants.broken_order import LastInFirstOut
from mutants.broken_time import TakeoverLoses
from mutants.mutant import MutantHarness

from mqcore.contract import ContractError, stateful
from mqcore.contract.stateful import check_model, compare_with_memory

FEW = 50


@pytest.mark.parametrize(
    "broken",
    [
        LosesOnRelease,
        LastInFirstOut,
        TakeoverLoses,
        MoveKeepsItsSource,
        NeverSaysRedelivered,
        AReleaseTakesTakeoversAway,
    ],
)
def test_the_model_catches_a_broken_backend(broken: type) -> None:
    with pytest.raises(ContractError, match="teardown"):  # the trace is told with the finding
        check_model(lambda: MutantHarness(broken), examples=10 * FEW)


def test_the_model_lets_the_whole_backend_pass() -> None:
    check_model(lambda: MutantHarness(None), examples=FEW)


@pytest.mark.parametrize("broken", [LosesOnRelease, LastInFirstOut])
def test_the_comparison_with_memory_catches_a_broken_backend(broken: type) -> None:
    with pytest.raises(ContractError):
        compare_with_memory(MutantHarness(broken))


def test_the_number_of_examples_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQCORE_CONTRACT_EXAMPLES", "3")
    made = []

    def make() -> MutantHarness:
        made.append(MutantHarness(None))
        return made[-1]

    check_model(make)
    assert 3 <= len(made) < 30  # Hypothesis tries some more than it counts


def test_a_server_that_answers_in_other_portions_the_second_time_gets_another_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[int] = []

    def run(*_: object, **__: object) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise FlakyStrategyDefinition("Inconsistent data generation!")

    monkeypatch.setattr(stateful, "run_state_machine_as_test", run)
    check_model(lambda: MutantHarness(None), examples=1)
    assert len(tries) == 3
