"""How a failure of the contract prints values."""

from collections import Counter
from typing import Any

import pytest

from mqcore.contract.values import described, difference
from mqcore.spi import DONE, STORED, Failed, Stored


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Counter(), "none"),
        ([], "none"),
        (Counter(["a", "a", "b"]), "{'a': 2, 'b': 1}"),
        ((Counter(), ["x"]), "(none, ['x'])"),
        ([Stored, Failed], "[Stored, Failed]"),
        ([STORED, DONE], "[Stored(duplicate=False), Done()]"),
        (list(range(20)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (20 in all)]"),
        (b"", "b''"),
        (None, "None"),
        ("x" * 1000, f"'{'x' * 399}… (1002 characters)"),
    ],
    ids=str,
)
def test_values_are_short_and_by_name(value: Any, text: str) -> None:
    assert described(value) == text


def test_of_long_lists_the_first_difference_is_printed() -> None:
    actual, expected = list(range(30)), list(range(30))
    actual[17] = -1
    assert difference(actual, expected) == ("item 17 -1 of 30", "item 17 17 of 30")


def test_a_list_that_is_cut_short_is_printed_with_its_length() -> None:
    actual, expected = list(range(20)), list(range(30))
    assert difference(actual, expected) == (described(actual), described(expected))
