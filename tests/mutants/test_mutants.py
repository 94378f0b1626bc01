"""Tests of the kit: each mutant breaks one guarantee, and one of the cases it names must fail."""

from __future__ import annotations

import pytest
from mutants.mutant import Mutant, MutantHarness, all_mutants, caught

from mqcore.contract import Case, all_cases, run_case


@pytest.mark.parametrize("mutant", all_mutants(), ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_by_a_case_made_for_it(mutant: Mutant) -> None:
    result = next(caught(mutant), None)
    assert result is not None, (
        f"{mutant.guarantee}: {mutant.text}: none of {', '.join(mutant.cases)} fails"
    )
    assert "came:" in result.text


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_the_whole_backend_passes_in_the_mutants_place(case: Case) -> None:
    result = run_case(case, MutantHarness(None))
    assert result.status != "failed", result.text


def test_every_name_in_a_mutant_begins_the_name_of_a_case() -> None:
    names = [case.name for case in all_cases()]
    wrong = {
        mutant.name: start
        for mutant in all_mutants()
        for start in mutant.cases
        if not _any(names, start)
    }
    assert not wrong


def test_there_are_as_many_mutants_as_were_promised_and_their_names_differ() -> None:
    names = [mutant.name for mutant in all_mutants()]
    assert len(names) == len(set(names)) >= 34


def _any(names: list[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)
