"""The model finds faults, and accepts what is correct, within a few random examples."""

from __future__ import annotations

import re

import pytest
from hypothesis.errors import FlakyStrategyDefinition
from mutants.broken_delivery import AReleaseTakesTakeoversAway, LosesOnRelease, NeverSaysRedelivered
from mutants.broken_moves import MoveKeepsItsSource
from mutants.broken_order import LastInFirstOut
from mutants.broken_time import TakeoverLoses
from mutants.mutant import MutantHarness

from mqcore.contract import ContractError, stateful
from mqcore.contract.stateful import check_model, compare_with_memory, replay

FEW = 50
OWN_NAME = re.compile(r"ct\.[0-9a-f]+|(?<=')[0-9a-f]{8}(?=')")
"""A queue's name, which is new in each run, and the lineage that is made of it."""


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
    with pytest.raises(ContractError) as found:
        check_model(lambda: MutantHarness(broken), examples=10 * FEW)
    note = note_of(found.value)
    lines = note.splitlines()
    assert re.match(r" +0\.000 to ", lines[1])
    assert lines[-3].endswith("<- this step failed")

    # The line that was printed finds the same again, and nothing in a backend that is whole.
    steps = steps_of(note)
    with pytest.raises(ContractError) as again:
        replay(MutantHarness(broken), steps)
    assert OWN_NAME.sub("own", str(again.value)) == OWN_NAME.sub("own", str(found.value))
    assert note_of(again.value) == note
    replay(MutantHarness(None), steps)


def test_a_trace_is_printed_with_priorities_marks_and_times() -> None:
    with pytest.raises(ContractError) as found:
        replay(
            MutantHarness(LastInFirstOut),
            "publish jobs 2 9 0.0 -; wait 1.5; crash jobs; receive jobs 2",
        )
    assert "expected: m0 (priority 9) first" in str(found.value)
    assert "came: m1 (priority 9) came before it" in str(found.value)
    assert [" ".join(line.split()) for line in note_of(found.value).splitlines()] == [
        "steps:",
        "0.000 to 0.000 s publish jobs 2 9 0.0 - m0 (priority 9) stored, m1 (priority 9) stored",
        "0.000 to 1.500 s wait 1.5",
        "1.500 to 1.500 s crash jobs another consumer",
        "1.500 to 1.500 s receive jobs 2 <- this step failed",
        "",
        (
            "replay: pytest -k test_model --mqcore-steps 'publish jobs 2 9 0.0 -; wait 1.5; crash "
            "jobs; receive jobs 2'"
        ),
    ]


def test_the_steps_of_a_trace_that_passes_can_be_anything() -> None:
    replay(
        MutantHarness(None),
        "publish jobs 3 4 0.5 6.0; again other 0; wait 1.0; receive jobs 2; settle 0 1 move "
        "dead 0.0; renew 0; "
        "work other ack+release other; count jobs; crash dead; publish other 1 10 1.0 -; quiet; "
        "take other; "
        "rest other ack+move jobs",
    )


@pytest.mark.parametrize(
    "text", ["jump jobs", "publish jobs", "receive jobs some", "receive nowhere 1", "wait -; end"]
)
def test_an_invalid_step_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text.partition(";")[0]))):
        replay(MutantHarness(None), f"publish jobs 1 5 0.0 -; {text}")


def note_of(error: BaseException) -> str:
    # With CI=true Hypothesis adds a note.
    (note,) = [note for note in error.__notes__ if "replay:" in note]
    return str(note)


def steps_of(note: str) -> str:
    found = re.search(r"^replay: pytest -k test_model --mqcore-steps '(.*)'$", note, re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_model_accepts_the_correct_backend() -> None:
    check_model(lambda: MutantHarness(None), examples=FEW)


@pytest.mark.parametrize("broken", [LosesOnRelease, LastInFirstOut])
def test_the_comparison_with_memory_catches_a_broken_backend(broken: type) -> None:
    with pytest.raises(ContractError) as found:
        compare_with_memory(MutantHarness(broken))
    with pytest.raises(ContractError) as again:
        replay(MutantHarness(broken), steps_of(note_of(found.value)))
    assert note_of(again.value) == note_of(found.value)


def test_the_number_of_examples_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQCORE_CONTRACT_EXAMPLES", "3")
    made = []

    def make() -> MutantHarness:
        made.append(MutantHarness(None))
        return made[-1]

    check_model(make)
    assert 3 <= len(made) < 30  # Hypothesis tries some more than it counts


def test_a_server_that_answers_in_other_batches_is_tried_again(
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
