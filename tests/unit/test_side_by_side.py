"""The runner that adds several runs of pytest up: nothing that failed is lost in the sum."""

from __future__ import annotations

from collections import Counter

import pytest
from side_by_side import Run, counted

COLORED = (
    "\x1b[31m==== \x1b[31m\x1b[1m1 failed\x1b[0m, \x1b[32m7 passed\x1b[0m\x1b[31m in "
    "0.10s\x1b[0m\x1b[31m ====\x1b[0m"
)


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("===== 3 passed in 0.12s =====", {"passed": 3}),
        (
            "= 2 failed, 1 warning, 1 error in 75.00s (0:01:15) =",
            {"failed": 2, "warnings": 1, "errors": 1},
        ),
        (COLORED, {"failed": 1, "passed": 7}),
        (
            "===== 4 passed, 371 skipped, 2 xfailed in 9.99s =====",
            {"passed": 4, "skipped": 371, "xfailed": 2},
        ),
        ("===== no tests ran in 0.01s =====", {}),
    ],
)
def test_the_summary_line_is_read(line: str, counts: dict[str, int]) -> None:
    text = (
        "a test printed: 99 failed in 1.00s\n===== mqcore brokers =====\nredis-8: 5 "
        f"passed\n{line}\n"
    )
    assert Run("x", int("failed" in counts), text, 1.0).counts == Counter(counts)


def test_a_run_that_ended_without_a_word_is_an_error() -> None:
    assert Run("x", -11, "Segmentation fault", 1.0).counts == Counter(errors=1)
    assert Run("x", 1, "===== 370 passed in 9.00s =====", 1.0).counts == Counter(
        passed=370, errors=1
    )


def test_counts_are_told_in_pytests_order() -> None:
    assert counted(Counter(passed=5, failed=1, skipped=0)) == "1 failed, 5 passed"
    assert counted(Counter()) == "no tests ran"
